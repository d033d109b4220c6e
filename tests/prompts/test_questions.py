import pytest

from glipv2_d2.prompts.questions import (
    ANSWER_PHRASE,
    names_something,
    question_prompt,
    question_to_answer,
    question_to_ground,
)
from glipv2_d2.prompts.tokenizer import PromptTokenizer, without_special_tokens

#           0         1         2
#           0123456789012345678901234567
QUESTION = "Is the cat left of the dog?"
CAT, DOG = (7, 10), (23, 26)


@pytest.fixture(scope="module")
def tokenizer() -> PromptTokenizer:
    return PromptTokenizer()


def words(prompt, tokenizer) -> list[str]:
    return [tokenizer._encoder.id_to_token(index) for index in prompt.input_ids.tolist()]


def phrases(prompt, tokenizer) -> list[list[str]]:
    found = words(prompt, tokenizer)
    return [[word for word, marked in zip(found, row) if marked] for row in prompt.phrase_token_map.tolist()]


def test_a_plain_question_is_its_words(tokenizer):
    prompt = question_prompt(QUESTION, tokenizer)
    assert words(prompt, tokenizer) == "[CLS] is the cat left of the dog ? [SEP]".split()
    assert prompt.phrases == () and prompt.phrase_token_map.shape == (0, 10)


def test_the_mask_token_stands_behind_the_question(tokenizer):
    spans = [[CAT], [DOG], [], [CAT, DOG]]
    prompt = question_prompt(QUESTION, tokenizer, spans, names_answer=[False, True, True, False], with_mask=True)
    assert words(prompt, tokenizer) == "[CLS] is the cat left of the dog ? [MASK] [SEP]".split()
    assert phrases(prompt, tokenizer) == [["cat"], ["dog", "[MASK]"], ["[MASK]"], ["cat", "dog"]]
    assert prompt.phrases == ("cat", "dog", ANSWER_PHRASE, "cat dog") and prompt.category_ids.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("max_tokens", "expected"),
    [
        (11, "[CLS] is the cat left of the dog ? [MASK] [SEP]"),
        (10, "[CLS] is the cat left of the dog [MASK] [SEP]"),
        (9, "[CLS] is the cat left of the [MASK] [SEP]"),
        (4, "[CLS] is [MASK] [SEP]"),
    ],
)
def test_a_long_question_makes_room_for_the_mask_token(max_tokens, expected):
    tokenizer = PromptTokenizer(max_tokens=max_tokens)
    prompt = question_prompt(QUESTION, tokenizer, [[CAT], [DOG], []], names_answer=[False, False, True], with_mask=True)
    assert words(prompt, tokenizer) == expected.split()
    expected_phrases = [[word] if word in expected else [] for word in ("cat", "dog", "[MASK]")]
    assert phrases(prompt, tokenizer) == expected_phrases


def test_a_question_to_ground_has_its_things_and_the_answer(tokenizer):
    prompt = question_to_ground("What color is the man's umbrella in the picture?", tokenizer)
    assert prompt.phrases[-1] == ANSWER_PHRASE and phrases(prompt, tokenizer)[-1] == ["[MASK]"]
    assert any("umbrella" in phrase for phrase in prompt.phrases)
    assert not any("color" in phrase or "picture" in phrase for phrase in prompt.phrases)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("How many crows are there?", ("many crows",)),
        ("Which is higher up, the inukshuk or the pink tricycle?", ("the inukshuk", "the pink tricycle")),
        ("Is there a mandarin orange in the picture?", ("a mandarin orange",)),
        ("What colour is the tricycle?", ("the tricycle",)),
        ("Why?", ()),
    ],
)
def test_what_names_no_thing_is_no_phrase_of_a_question(tokenizer, question, expected):
    assert question_to_ground(question, tokenizer).phrases == (*expected, ANSWER_PHRASE)


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [("the cat", True), ("time lapse", True), ("What Color", False), ("this picture", False), ("yes", False)],
)
def test_the_last_word_of_a_phrase_says_whether_it_is_a_thing(phrase, expected):
    assert names_something(phrase) is expected


#       [CLS] is there very very very big dog beside the cat ? [MASK] [SEP]
CROWDED = "is there very very very big dog beside the cat?"


@pytest.mark.parametrize(
    ("max_tokens", "grounded", "num_lost", "kept", "lost"),
    [
        (14, True, 0, ("dog", "the cat", "[answer]"), ()),
        (13, True, 1, ("dog", "the cat", "[answer]"), ()),
        # Of "the cat" one word is left.
        (12, True, 2, ("dog", "the cat", "[answer]"), ()),
        (11, True, 3, ("dog", "[answer]"), ("the cat",)),
        (9, True, 5, ("dog", "[answer]"), ("the cat",)),
        (6, True, 8, ("[answer]",), ("dog", "the cat")),
        (13, False, 0, (), ()),
        (6, False, 7, (), ()),
    ],
)
def test_what_a_question_loses_to_the_token_limit_is_counted_and_named(max_tokens, grounded, num_lost, kept, lost):
    asked = question_to_answer(CROWDED, PromptTokenizer(max_tokens=max_tokens), grounded=grounded)
    assert asked.num_lost_tokens == num_lost and len(asked.prompt) == 14 - (not grounded) - num_lost
    assert [phrase.split()[-1] for phrase in asked.prompt.phrases] == [phrase.split()[-1] for phrase in kept]
    assert [phrase.split()[-1] for phrase in asked.lost_phrases] == [phrase.split()[-1] for phrase in lost]
    assert asked.prompt.phrase_token_map.shape == (len(kept), len(asked.prompt))
    assert asked.prompt.phrase_token_map.any(dim=1).all()
    assert asked.prompt.category_ids.tolist() == list(range(len(kept)))


def test_the_answer_keeps_its_token_and_gets_the_next_row_where_phrases_are_lost():
    tokenizer = PromptTokenizer(max_tokens=6)
    prompt = question_to_answer(CROWDED, tokenizer, grounded=True).prompt
    assert phrases(prompt, tokenizer) == [["[MASK]"]]


def test_tokens_of_typed_special_tokens_are_counted_as_they_are_read():
    # [CLS] is ( mask ) here ? [SEP]
    asked = question_to_answer("is [MASK] here?", PromptTokenizer(max_tokens=6), grounded=False)
    assert asked.num_lost_tokens == 2


@pytest.mark.parametrize("question", ["", " \n\t"])
def test_a_blank_question_is_an_error(tokenizer, question):
    for make_prompt in (question_prompt, question_to_ground):
        with pytest.raises(ValueError, match="question: expected some words, found"):
            make_prompt(question, tokenizer)


def test_a_typed_special_token_is_text(tokenizer):
    prompt = question_prompt("What is [MASK]? [SEP] [CLS]", tokenizer, [[(8, 14)]], with_mask=True)
    ids = prompt.input_ids.tolist()
    start, end, mask = ids[0], ids[-1], tokenizer.mask_id
    assert [index for index in ids if index in (start, end, mask)] == [start, mask, end]
    assert ids[-2] == mask and phrases(prompt, tokenizer) == [["(", "mask", ")"]]
    assert prompt.phrases == ("[MASK]",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[MASK] [SEP][PAD]", "(MASK) (SEP)(PAD)"),
        ("<|endoftext|><|startoftext|> <s></s><mask>", "(|endoftext|)(|startoftext|) (s)(/s)(mask)"),
        ("[mask] [a] <b> [MASKS] x < s >", "[mask] [a] <b> [MASKS] x < s >"),
        ("", ""),
    ],
)
def test_special_tokens_lose_their_brackets_and_nothing_moves(text, expected):
    assert without_special_tokens(text) == expected and len(text) == len(expected)
