"""Prompts of some names of a vocabulary: those that a tokenizer makes of these names alone."""

import pytest
import torch
from detectron2.data import MetadataCatalog
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_samples import make_prompt

from glipv2_d2.prompts.builder import plain_name, prompt_from_caption
from glipv2_d2.prompts.name_subsets import is_vocabulary, prompts_of_names, split_prompts
from glipv2_d2.prompts.name_texts import NameText, tokenize_texts
from glipv2_d2.prompts.tokenizer import PromptTokenizer

NAMES = MetadataCatalog.get("lvis_v1_val").thing_classes
TOKENIZER = PromptTokenizer()


def assert_same_prompts(found, expected, rows):
    ids = torch.tensor(rows)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.input_ids, other.input_ids)
        assert torch.equal(one.phrase_token_map, other.phrase_token_map)
        assert torch.equal(one.category_ids, ids[other.category_ids])
        assert (one.phrases, one.name_ranges) == (other.phrases, other.name_ranges)


@settings(max_examples=40)
@given(
    st.sets(st.integers(0, 1202), min_size=1, max_size=60).map(sorted),
    st.sampled_from([(". ", 40), (" . ", 0), (", ", 7)]),
)
def test_some_names_are_tokenized_as_if_nothing_else_were_asked_for(rows, form):
    separator, chunk_size = form
    vocabulary = TOKENIZER.tokenize_names(NAMES, separator=separator, chunk_size=chunk_size)
    expected = TOKENIZER.tokenize_names([NAMES[row] for row in rows], separator=separator, chunk_size=chunk_size)
    assert_same_prompts(prompts_of_names(vocabulary, rows, max_tokens=256), expected, rows)


@settings(max_examples=20)
@given(st.sets(st.integers(0, 299), min_size=1, max_size=60), st.sampled_from([(40, 0), (300, 40)]))
def test_own_names_and_others_are_prompts_as_if_nothing_else_were_asked_for(rows, form):
    count, chunk_size = form
    vocabulary = TOKENIZER.tokenize_names(NAMES[:count], chunk_size=chunk_size)
    own = {plain_name(NAMES[row]) for row in rows}
    parts = [[row for row in range(count) if (plain_name(NAMES[row]) in own) is is_own] for is_own in (True, False)]
    for found, part in zip(split_prompts(vocabulary, own, max_tokens=256), parts, strict=True):
        expected = TOKENIZER.tokenize_names([NAMES[row] for row in part], chunk_size=chunk_size) if part else []
        assert_same_prompts(found, expected, part)


@pytest.mark.parametrize(
    ("asked", "own", "others"),
    [
        (["Red_Car", "cat"], ["Red_Car"], ["cat"]),
        (["red  car (toy)"], ["red  car (toy)"], []),
        (["redcar", "auto"], [], ["redcar", "auto"]),
        ([" ", "red car"], ["red car"], []),
    ],
)
def test_case_and_spelling_of_an_own_name_do_not_count_but_synonyms_are_others(asked, own, others):
    prompts = TOKENIZER.tokenize_names(asked, with_blank=True)
    parts = split_prompts(prompts, {"red car"}, max_tokens=9)
    assert [[name for one in part for name in one.phrases] for part in parts] == [own, others]


def test_names_with_the_tokens_of_an_own_name_are_own_ones():
    """The tokenizer drops accents: composed, decomposed or none, the tuned model reads the same."""
    own = {"café", TOKENIZER.token_name("café")}
    prompts = TOKENIZER.tokenize_names(["Cafe", "coffee", "cafe\u0301", "CAF\u00c9"])
    parts = split_prompts(prompts, own, max_tokens=9)
    assert [[name for one in part for name in one.phrases] for part in parts] == [
        ["Cafe", "cafe\u0301", "CAF\u00c9"],
        ["coffee"],
    ]
    caption = TOKENIZER(prompt_from_caption("a cafe", [[(2, 6)]], ["cafe"]))
    assert split_prompts([caption], own, max_tokens=9) == ([caption], [])
    # What the vocabulary does not know has the same tokens, whatever it is.
    assert TOKENIZER.token_name("\u6c7d") == TOKENIZER.token_name(" ") == ""


def test_a_prompt_of_one_kind_stays_as_it_is_and_so_does_a_caption():
    names, caption = make_prompt([1], [3]), make_prompt([1], [3], names=False)
    assert split_prompts([names], {"phrase 0", "phrase 1"}, max_tokens=9) == ([names], [])
    assert split_prompts([names], {"phrase 7"}, max_tokens=9) == ([], [names])
    assert split_prompts([caption], {"phrase 0"}, max_tokens=9) == ([], [caption])
    assert split_prompts([caption], {"phrase 0", "phrase 1"}, max_tokens=9) == ([caption], [])


def test_words_around_a_name_come_along():
    texts = [NameText("fish"), NameText("penguin", "", " , black and white"), NameText("hand", "there is a ")]
    vocabulary = tokenize_texts(TOKENIZER, texts, separator=". ", chunk_size=2)
    expected = tokenize_texts(TOKENIZER, texts[1:], separator=". ", chunk_size=2)
    assert_same_prompts(prompts_of_names(vocabulary, [1, 2], max_tokens=256), expected, [1, 2])


def test_a_blank_name_leaves_nothing_behind():
    names = ["", "black king", "rook", " "]
    vocabulary = TOKENIZER.tokenize_names(names, with_blank=True)
    assert vocabulary[0].name_ranges[0] == vocabulary[0].name_ranges[3] == (0, 0)
    assert_same_prompts(
        prompts_of_names(vocabulary, [1, 2], max_tokens=256), TOKENIZER.tokenize_names(names[1:3]), [1, 2]
    )


def test_the_order_is_that_of_the_rows_and_no_rows_are_no_prompts():
    vocabulary = TOKENIZER.tokenize_names(["cat", "dog", "bus"], chunk_size=1)
    found = prompts_of_names(vocabulary, [2, 0], max_tokens=256)
    assert [(one.phrases, one.category_ids.tolist()) for one in found] == [(("bus",), [2]), (("cat",), [0])]
    assert prompts_of_names(vocabulary, [], max_tokens=256) == []


@pytest.mark.parametrize(("max_tokens", "sizes"), [(256, [3]), (7, [3]), (6, [2, 1]), (3, [1, 1, 1])])
def test_a_prompt_takes_as_many_names_as_fit(max_tokens, sizes):
    # [CLS] cat . dog . bus [SEP]
    vocabulary = TOKENIZER.tokenize_names(["cat", "dog", "bus", "cow"])
    found = prompts_of_names(vocabulary, [0, 1, 2], max_tokens=max_tokens)
    assert [len(one.phrases) for one in found] == sizes


def test_a_caption_is_no_vocabulary():
    names = TOKENIZER.tokenize_names(["cat", "dog"])
    caption = TOKENIZER(prompt_from_caption("a cat and a dog", [[(2, 5)], [(12, 15)]]))
    assert is_vocabulary(names) and not is_vocabulary([caption]) and not is_vocabulary([*names, caption])
    assert not is_vocabulary([make_prompt([1], names=False)])
