import pytest
from check_cases import micro_cfg

from glipv2_d2.data_check.names import alike_names, name_findings, prompt_findings, prompt_tokens
from glipv2_d2.prompts.tokenizer import PromptTokenizer

TOKENIZER = PromptTokenizer.from_config(micro_cfg())


def kinds(names, prompts=None):
    return {one.kind: one for one in name_findings(names, prompts or {}, TOKENIZER)}


@pytest.mark.parametrize(
    "names", [["raccoon"], ["red blood cell", "white blood cell"], ["With Helmet", "Without Helmet"]]
)
def test_plain_names_have_no_findings(names):
    assert kinds(names) == {}


@pytest.mark.parametrize(
    ("names", "kind", "severity", "case"),
    [
        (["RBC", "cell"], "abbreviated names", "warning", "'RBC'"),
        (["rbc", "cell"], "abbreviated names", "warning", "'rbc'"),
        (["0", "cat"], "names of numbers", "warning", "'0'"),
        (["class_3", "cat"], "names of numbers", "warning", "'class_3'"),
        (["\U0001f600 face", "cat"], "unknown names", "warning", "'\U0001f600 face'"),
        (["chien égaré", "cat"], "names with accents", "note", "'chien égaré'"),
        (["red\u200b dog", "cat"], "names with control characters", "warning", "'red\\u200b dog'"),
        (["with_mask", "cat"], "names with underscores", "note", "'with_mask'"),
        (["trafficLight", "cat"], "joined names", "note", 'trafficLight: "traffic Light"'),
        (["helmet", "helmets"], "alike names", "warning", "'helmet' and 'helmets'"),
        (["", "cat"], "empty names", "warning", None),
        (["two\nlines", "cat"], "unusable names", "stop", None),
        (["Dog", "dog"], "alike names", "warning", "'Dog' and 'dog'"),
        (["\U0001f600", "\U0001f601"], "names with equal tokens", "stop", "'\U0001f600' = '\U0001f601'"),
    ],
)
def test_each_fault_of_a_name_is_named(names, kind, severity, case):
    one = kinds(names)[kind]
    assert one.severity == severity and (case is None or case in one.cases)


@pytest.mark.parametrize("name", ["tv", "sky", "gym", "Jack", "DVD player"])
def test_words_of_the_vocabulary_are_no_abbreviations(name):
    assert "abbreviated names" not in kinds([name, "cat"])


def test_the_advice_shows_how_a_name_is_said_in_words():
    assert "names: {RBC: ...}" in kinds(["RBC"])["abbreviated names"].advice
    assert kinds(["RBC"], {"RBC": "red blood cell"}) == {}


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("powdery mildew", "powedry_mildew", True),
        ("Raccoon", "racoon", True),
        ("bus", "BUS", True),
        ("box", "boxes", True),
        ("traffic light", "traffic-light", True),
        ("house", "mouse", False),
        ("with mask", "without mask", False),
        ("early blight", "late blight", False),
        ("player 1", "player 2", False),
        ("nine", "ten", False),
    ],
)
def test_names_are_alike_by_spelling(one, other, alike):
    assert alike_names(["zebra", one, other]) == ([(1, 2)] if alike else [])


def test_tokens_are_those_of_the_prompts():
    assert [TOKENIZER.count_tokens(name) for name in ("cat", "red dog")] == [1, 2]
    # [CLS] cat . red dog [SEP], and each name alone.
    assert prompt_tokens(["cat", "red dog"], TOKENIZER, ". ", 0) == [6]
    assert prompt_tokens(["cat", "red dog"], TOKENIZER, ". ", 1) == [3, 4]


def test_names_of_more_than_one_prompt_are_a_note():
    (one,) = prompt_findings([250, 120], ["x"] * 300, 256)
    assert one.kind == "several prompts" and "300 names take 2 prompts" in one.text
    assert list(prompt_findings([250], ["x"] * 100, 256)) == []


def test_names_that_no_prompt_can_hold_have_no_tokens():
    assert prompt_tokens(["a " * 400], TOKENIZER, ". ", 0) == []
