"""Names and captions to prompts."""

import json
import re

import pytest
from conftest import ASSETS
from hypothesis import given
from hypothesis import strategies as st

from glipv2_d2.prompts.builder import (
    check_vocabulary,
    clean_name,
    namesakes,
    prompt_from_caption,
    prompt_from_names,
    siblings,
)
from glipv2_d2.prompts.tokenizer import PromptTokenizer

CLASS_PROMPTS = json.loads((ASSETS / "parity" / "text" / "class_prompts.json").read_text())
LABEL_MAPS = json.loads((ASSETS / "parity" / "text" / "od_label_maps.json").read_text())

some_text = st.text(alphabet="ab _(). \t,é😀", min_size=1, max_size=12)
usable_names = st.lists(some_text.filter(lambda name: clean_name(name).strip()), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def tokenizer():
    return PromptTokenizer()


@pytest.mark.parametrize("name, cleaned", CLASS_PROMPTS["clean_name_cases"].items())
def test_names_are_cleaned_as_officially(name, cleaned):
    assert clean_name(name) == cleaned


@pytest.mark.parametrize(
    "name, cleaned",
    [("a(b", "a(b"), ("a)b", "a)b"), (")a(", ")a("), ("()a", "a"), ("a((b)c)d(", "ad("), ("a   b", "a  b")],
)
def test_parentheses_that_do_not_pair_stay(name, cleaned):
    assert clean_name(name) == cleaned == re.sub(r"\(.*\)", "", name).replace("  ", " ")


def test_cleaning_takes_no_longer_than_reading():
    # A search for a pair that starts again at each of them would take 10 ** 10 steps.
    name = "(" * 100_000
    assert clean_name(name) == name


def is_plain(case):
    return "separation_tokens" in case and "" not in case["cleaned"] and "suppressed" not in case["why"]


@pytest.mark.parametrize(
    "case", list(filter(is_plain, CLASS_PROMPTS["evaluation_prompts"])), ids=lambda case: case["why"][:40]
)
def test_caption_and_spans_of_names_are_the_official_ones(case):
    prompt = prompt_from_names(case["class_names"], case["labels"], separator=case["separation_tokens"])
    assert prompt.caption == case["caption"]
    assert prompt.phrase_spans == tuple((tuple(span),) for span in case["spans"])
    assert prompt.category_ids == tuple(case["labels"])
    assert prompt.phrases == tuple(case["class_names"])


def test_category_ids_of_names_default_to_their_rows():
    assert prompt_from_names(["cat", "dog"]).category_ids == (0, 1)


@given(usable_names)
def test_span_of_a_name_holds_the_cleaned_name(names):
    prompt = prompt_from_names(names)
    for name, ((begin, end),) in zip(names, prompt.phrase_spans):
        assert prompt.caption[begin:end] == clean_name(name)


@pytest.mark.parametrize(
    "names, error, message",
    [
        ([], ValueError, "names: expected at least one"),
        ("cat", TypeError, "names: expected a list of strings, found the str 'cat'"),
        ({"cat"}, TypeError, "found the set"),
        (["cat", 3], TypeError, r"names\[1\]: expected a string, found 3"),
        (["cat", "(gone)"], ValueError, r"names\[1\]: nothing is left of '\(gone\)'"),
        (["cat", "  "], ValueError, r"names\[1\]: nothing is left"),
        (["cat", ""], ValueError, r"names\[1\]: nothing is left of ''"),
        (["cat", "dog\nbus"], ValueError, r"names\[1\]: 'dog\\nbus' holds a line break, expected a name on one line"),
        (["cat\n", "dog"], ValueError, r"names\[0\]: 'cat\\n' holds a line break"),
        (["cat", "dog\r\n"], ValueError, r"names\[1\]: .* holds a line break"),
        (["cat", "dog\u2028bus"], ValueError, r"names\[1\]: .* holds a line break"),
        (["cat", "(\n)"], ValueError, r"names\[1\]: nothing is left"),
        (["cat", "d\n" + "o" * 1_000], ValueError, r"names\[1\]: 'd\\no{54}o*\.\.\.' holds"),
        (["cat", "(" + "o" * 1_000 + ")"], ValueError, r"names\[1\]: nothing is left of '\(o*\.\.\.'"),
        (["cat", ["dog"] * 100], TypeError, r"names\[1\]: expected a string"),
    ],
)
def test_names_without_a_prompt_are_refused(names, error, message):
    for function in (prompt_from_names, check_vocabulary):
        with pytest.raises(error, match=message) as caught:
            function(names)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_vocabulary_with_the_same_name_twice_is_refused_by_its_rows():
    with pytest.raises(ValueError, match="rows 0 and 2 are both 'cat'"):
        check_vocabulary(["cat", "dog", "cat"])
    with pytest.raises(ValueError, match=r"rows 0 and 1 are both 'o{57}\.\.\.'"):
        check_vocabulary(["o" * 1_000] * 2)


def test_vocabulary_may_hold_names_that_read_the_same():
    names = ["bow_(weapon)", "bow_(decorative_ribbons)"]
    check_vocabulary(names)
    assert prompt_from_names(names).caption == "bow . bow "


@pytest.mark.parametrize("separator", ["", "and"])
def test_separator_that_glues_names_together_is_refused(separator):
    with pytest.raises(ValueError, match="INPUT.PROMPT.SEPARATOR"):
        prompt_from_names(["cat", "dog"], separator=separator)


def test_category_ids_must_be_as_many_as_names():
    with pytest.raises(ValueError, match="equally many"):
        prompt_from_names(["cat", "dog"], [1])


def test_caption_keeps_its_text_and_names_phrases_by_their_spans():
    prompt = prompt_from_caption("a dog, mostly white", [[[2, 5], [14, 19]], [(0, 1)]])
    assert prompt.caption == "a dog, mostly white"
    assert prompt.phrases == ("dog white", "a")
    assert prompt.phrase_spans == (((2, 5), (14, 19)), ((0, 1),))
    assert prompt.category_ids == (0, 1)


def test_caption_takes_phrases_and_category_ids_of_the_caller():
    prompt = prompt_from_caption("a dog", [[(2, 5)]], ["puppy"], [7])
    assert (prompt.phrases, prompt.category_ids) == (("puppy",), (7,))


def test_caption_without_phrases_is_a_prompt_without_rows():
    assert prompt_from_caption("a dog", []).phrases == ()


@pytest.mark.parametrize(
    "caption, spans, error, message",
    [
        ("", [], ValueError, "caption: expected some words"),
        (" \n\t", [], ValueError, "caption: expected some words"),
        (None, [], TypeError, "caption: expected a string, found NoneType"),
        ("dog", [[(0, 0)]], ValueError, r"span \(0, 0\)"),
        ("dog", [[(0, 4)]], ValueError, r"span \(0, 4\)"),
        ("dog", [[(-1, 2)]], ValueError, r"span \(-1, 2\)"),
        ("dog", [[(2, 1)]], ValueError, r"span \(2, 1\)"),
        ("dog", [[(0, 1)], [[0, 1, 2]]], ValueError, r"phrase_spans\[1\]: expected pairs of .*, found \[0, 1, 2\]"),
        ("dog", [[(0.0, 1.0)]], ValueError, "expected pairs of integers"),
        ("dog", [(0, 1)], ValueError, "expected pairs of integers, found 0"),
        ("dog", [["ab"]], ValueError, "expected pairs of integers"),
    ],
)
def test_captions_with_bad_text_or_spans_are_refused(caption, spans, error, message):
    with pytest.raises(error, match=message) as caught:
        prompt_from_caption(caption, spans)
    assert "\n" not in str(caught.value)


def test_namesakes_read_alike_in_a_prompt():
    names = ["bow_(weapon)", "cat", "bow_(decorative_ribbons)", "hot_dog", "Hot  dog_(food)", "bow_tie", "bow"]
    assert namesakes(names) == {0: [2, 6], 2: [0, 6], 6: [0, 2], 3: [4], 4: [3]}
    assert namesakes([]) == {}


def test_siblings_have_one_parent_and_are_not_it():
    names = ["crow", "Bird", "car", "stone", "robin", "cup", "bow_(weapon)", "sword", "weapon"]
    parents = ["bird", "bird", "vehicle", "", "bird", "", "Weapon", "Weapon", "Weapon"]
    birds, weapons = [0, 4], [6, 7]
    assert siblings(names, parents) == {0: birds, 4: birds, 6: weapons, 7: weapons}
    assert siblings([], []) == {}


def test_one_parent_of_all_names_makes_no_siblings():
    assert siblings(["crow", "robin"], ["bird", "bird"]) == {}


def test_tokens_of_a_training_prompt_carry_the_official_category_ids(tokenizer):
    # Officially a (256,) row of class keys, -1 elsewhere; here the same follows from the map and the category ids.
    (case,) = LABEL_MAPS
    spans = case["label_to_span"]
    names = [case["caption"][begin:end] for begin, end in spans.values()]
    prompt = tokenizer(prompt_from_names(names, [int(label) for label in spans]))
    found = [-1] * len(prompt)
    for row, token in prompt.phrase_token_map.nonzero().tolist():
        found[token] = int(prompt.category_ids[row])
    assert prompt_from_names(names).caption == case["caption"]
    assert found == case["positive_map_for_od_labels"][: len(prompt)]
