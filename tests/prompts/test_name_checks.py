import logging

import pytest
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

from glipv2_d2.prompts.name_checks import check_names_differ
from glipv2_d2.prompts.tokenizer import PromptTokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PromptTokenizer:
    return PromptTokenizer()


@pytest.mark.parametrize(
    "names", [["汽车", "卡车", "car"], ["🐦", "car", "🐶"], ["car", "résumé", "Resume"], ["a", "x" * 101, "y" * 150]]
)
def test_names_with_the_same_tokens_are_an_error_in_training_alone(tokenizer, names):
    with pytest.raises(ValueError, match="dataset 'a': expected names with different tokens, found .* rename them"):
        check_names_differ(names, tokenizer, "dataset 'a'", is_train=True)
    check_names_differ(names, tokenizer, "dataset 'a'", is_train=False)


def test_all_names_of_lvis_may_be_trained_on(tokenizer, caplog):
    # Among them names that are one text once cleaned: "bow_(weapon)" and "bow_(decorative_ribbons)".
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        check_names_differ([category["name"] for category in LVIS_CATEGORIES], tokenizer, "lvis", is_train=True)
    assert not caplog.records


def test_names_without_words_are_checked_elsewhere(tokenizer, caplog):
    check_names_differ(["  ", " ", "dog"], tokenizer, "dataset 'blank'", is_train=True)
    assert not caplog.records


def test_many_unknown_pieces_are_counted(tokenizer, caplog):
    names = [f"thing {chr(0x1F400 + number)} {number}" for number in range(12)]
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        check_names_differ(names, tokenizer, "dataset 'many'", is_train=True)
    assert "found '🐀', '🐁'" in caplog.text and "and 4 others" in caplog.text
