"""Any text as class names, caption, phrase or question: prompts, or one line that says why not."""

import pytest
from fuzzing import assert_holds_for_random_input
from hypothesis import strategies as st

from glipv2_d2.prompts.answer_normalization import normalize_answer
from glipv2_d2.prompts.flip_words import swap_left_right
from glipv2_d2.prompts.name_texts import name_texts, tokenize_texts
from glipv2_d2.prompts.noun_phrases import find_phrase, listed_names, noun_phrases
from glipv2_d2.prompts.questions import question_to_answer
from glipv2_d2.prompts.tokenizer import PromptTokenizer
from glipv2_d2.prompts.user_prompts import caption_prompt, names_in, names_prompts
from glipv2_d2.structures import TokenizedPrompt

pytestmark = pytest.mark.slow

TOKENIZERS = {size: PromptTokenizer(max_tokens=size) for size in (3, 16, 256)}
SEPARATORS = (". ", ".", ", ", " ", "; ", "\n", "-", "a", "", " . ")

words = st.sampled_from(
    [
        *"a the two red orange left right dog cat can light people of and or not on with is saw his 1,000 3".split(),
        *(".", ",", ";", ":", "!", "?", "(", ")", "[", "]", "'s", '"', "-", "_", "\n", "\t", " ", "  ", "\r\n", "1. "),
        *("[SEP]", "[MASK]", "[CLS]", "[PAD]", "[UNK]", "<|endoftext|>", "[unused1]", "##s", "&amp;", "%s", "\\", "/"),
        *("東京", "عربى", "😀", "👨\u200d👩\u200d👧", "e\u0301", "\u00df", "\u0130", "\ufb03", "\u00ad", "\u200b"),
        *("\ufeff", "\x00", "\x07", "\x7f", "\ud800", "\udfff", "\u2028", "\u202e", "\u0085", "\U000e0041", "\uffff"),
    ]
)
texts = st.one_of(
    st.lists(words, max_size=30).map(" ".join),
    st.lists(words, max_size=30).map("".join),
    st.text(max_size=60),
    st.builds(lambda text, number: text * number, words | st.text(min_size=1, max_size=9), st.integers(1, 4000)),
)
values = texts | st.none() | st.integers() | st.lists(texts, max_size=2)


def assert_sound(prompt: TokenizedPrompt, tokenizer: PromptTokenizer) -> None:
    """The parts of a prompt fit together, and no token is special but those at the ends."""
    assert 2 <= len(prompt.input_ids) <= tokenizer.max_tokens
    assert prompt.phrase_token_map.shape == (len(prompt.phrases), len(prompt.input_ids))
    assert len(prompt.category_ids) == len(prompt.phrases)
    assert not prompt.phrase_token_map[:, [0, -1]].any()
    unknown_or_text = {*prompt.input_ids[1:-1].tolist()} - {tokenizer.unknown_id, tokenizer.mask_id}
    assert not unknown_or_text & set(tokenizer.special_ids)


def test_any_names_are_all_asked_for_or_refused_in_one_line():
    def check(data: st.DataObject) -> None:
        tokenizer = TOKENIZERS[data.draw(st.sampled_from(sorted(TOKENIZERS)))]
        separator = data.draw(st.sampled_from(SEPARATORS) | st.text(max_size=3))
        size = data.draw(st.sampled_from([0, 1, 2, 40]))
        if data.draw(st.booleans()):
            names = data.draw(st.lists(texts, max_size=8) | st.lists(values, max_size=4) | values)
            prompts = names_prompts(names, tokenizer=tokenizer, separator=separator, chunk_size=size)
        else:
            names = data.draw(st.lists(texts, min_size=1, max_size=8))
            entries = st.dictionaries(st.sampled_from(names), st.tuples(texts, texts, texts) | values, max_size=2)
            prompts = tokenize_texts(
                tokenizer, name_texts(names, data.draw(entries)), separator=separator, chunk_size=size
            )
        assert [row for prompt in prompts for row in prompt.category_ids.tolist()] == list(range(len(names)))
        for prompt in prompts:
            assert_sound(prompt, tokenizer)
            rows = prompt.phrase_token_map.any(dim=1).tolist()
            assert all(found or not phrase.strip() for found, phrase in zip(rows, prompt.phrases))

    assert_holds_for_random_input(check, TypeError)


def test_any_caption_or_question_is_a_prompt_or_refused_in_one_line():
    def check(data: st.DataObject) -> None:
        tokenizer = TOKENIZERS[data.draw(st.sampled_from(sorted(TOKENIZERS)))]
        text = data.draw(texts)
        assert all(0 <= begin < end <= len(text) and text[begin:end].strip() for begin, end in listed_names(text))
        names = names_in(text)
        assert len(names) != 1 or len(listed_names(text)) > 1
        for phrase, spans in noun_phrases(text):
            assert [text[begin:end] for begin, end in spans] == [phrase] and phrase.strip()
        normalize_answer(text)
        swapped, _ = swap_left_right(text, [spans for _, spans in noun_phrases(text)])
        assert swap_left_right(swapped, [])[0] == text or swapped != text
        kind = data.draw(st.sampled_from(["caption", "phrases", "names", "question", "grounded", "decode"]))
        if kind == "caption":
            prompt = caption_prompt(text, None, tokenizer)
        elif kind == "phrases":
            ranges = st.tuples(st.integers(-2, 40), st.integers(-2, 40))
            pieces = st.builds(lambda begin, end: text[begin:end], st.integers(0, 40), st.integers(0, 40))
            phrases = data.draw(st.lists(ranges | texts | pieces, max_size=4))
            for phrase in phrases:
                find_phrase(text, phrase)
            prompt = caption_prompt(text, phrases, tokenizer)
        elif kind == "names":
            (prompt, *_) = names_prompts(names or [text], tokenizer=tokenizer, separator=". ", chunk_size=0)
        elif kind == "decode":
            ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
            decoded = tokenizer.decode(ids)
            assert isinstance(decoded.text, str)
            return
        else:
            asked = question_to_answer(text, tokenizer, grounded=kind == "grounded")
            prompt = asked.prompt
        assert_sound(prompt, tokenizer)

    assert_holds_for_random_input(check)
