import pytest

from glipv2_d2.prompts.builder import prompt_from_names
from glipv2_d2.prompts.name_texts import NameText, name_texts, prompt_from_texts, text_namesakes, tokenize_texts
from glipv2_d2.prompts.tokenizer import PromptTokenizer

TEXTS = [NameText("fish"), NameText("penguin", "", " , which is black and white"), NameText("hand", "there is a ")]


def spelled(prompt):
    return [[prompt.caption[begin:end] for begin, end in spans] for spans in prompt.phrase_spans]


def test_a_phrase_is_the_name_without_what_stands_around_it():
    prompt = prompt_from_texts(TEXTS, [4, 2, 9], separator=". ")
    assert prompt.caption == "fish. penguin , which is black and white. there is a hand"
    assert spelled(prompt) == [["fish"], ["penguin"], ["hand"]]
    assert prompt.category_ids == (4, 2, 9) and prompt.phrases == ("fish", "penguin", "hand")


def test_plain_names_make_the_prompt_of_names():
    names = ["bow_(weapon)", "traffic_light", "dog"]
    texts = name_texts(names, {})
    assert prompt_from_texts(texts, range(3), separator=" . ") == prompt_from_names(names, separator=" . ")


def test_texts_are_looked_up_by_the_name_of_the_category():
    texts = name_texts(["CoW", "cat"], {"CoW": ["", "flat mushroom", " here"]})
    assert texts == [NameText("flat mushroom", "", " here"), NameText("cat")]


@pytest.mark.parametrize(
    ("prompt_texts", "message"),
    [
        ({"dog": ("", "dog", "")}, "found the name 'dog', expected one of cat, cow"),
        ({"cat": ("", "cat")}, "expected three strings"),
        ({"cat": "cat"}, "expected three strings"),
        ({"cat": ("", 3, "")}, "expected three strings"),
        ({"cat": ("a ", "", "")}, "'a ', '', ''"),
        ({"cat": ("", " cat", "")}, "white space"),
        ({"cat": ("a_", "cat", "")}, "underscores"),
        ({"cat": ("(a", "cat", ")")}, "parentheses"),
        ({"cat": ("a ", "cat", "  there")}, "double spaces"),
    ],
)
def test_texts_that_would_not_be_read_as_they_are_are_refused(prompt_texts, message):
    with pytest.raises(ValueError, match="prompt_texts") as error_info:
        name_texts(["cat", "cow"], prompt_texts)
    assert message in str(error_info.value) and "\n" not in str(error_info.value)


def test_tokens_around_a_name_belong_to_no_phrase():
    tokenizer = PromptTokenizer()
    (prompt,) = tokenize_texts(tokenizer, TEXTS[1:], separator=". ", chunk_size=0)
    # [CLS] penguin , which is black and white . there is a hand [SEP]
    assert len(prompt) == 14
    assert prompt.phrase_token_map.nonzero().tolist() == [[0, 1], [1, 12]]
    assert prompt.category_ids.tolist() == [0, 1]


def test_chunks_count_the_whole_texts_and_keep_the_rows():
    tokenizer = PromptTokenizer(max_tokens=10)
    # "penguin , which is black and white" has 7 of 8 tokens: nothing else fits beside it.
    prompts = tokenize_texts(tokenizer, TEXTS, separator=". ", chunk_size=0)
    assert [prompt.phrases for prompt in prompts] == [("fish",), ("penguin",), ("hand",)]
    assert [prompt.category_ids.tolist() for prompt in prompts] == [[0], [1], [2]]
    prompts = tokenize_texts(PromptTokenizer(), TEXTS, separator=". ", chunk_size=2)
    assert [prompt.phrases for prompt in prompts] == [("fish", "penguin"), ("hand",)]


def test_plain_names_are_tokenized_as_names():
    names = ["bow_(weapon)", "traffic_light", "dog"]
    tokenizer = PromptTokenizer()
    (prompt,) = tokenize_texts(tokenizer, name_texts(names, {}), separator=". ", chunk_size=0)
    (expected,) = tokenizer.tokenize_names(names)
    assert prompt.input_ids.tolist() == expected.input_ids.tolist() and prompt.phrases == tuple(names)
    assert prompt.phrase_token_map.tolist() == expected.phrase_token_map.tolist()


def test_a_name_without_a_token_is_an_error():
    # The tokenizer reads control characters as nothing.
    with pytest.raises(ValueError, match=r"names\[0\]: no token"):
        tokenize_texts(PromptTokenizer(), [NameText("\x01", "a ", " b")], separator=". ", chunk_size=0)


def test_names_with_other_words_around_them_are_no_namesakes():
    texts = [NameText("bow", "", " of a ship"), NameText("bow"), NameText("Bow")]
    assert text_namesakes(texts) == {1: [2], 2: [1]}
