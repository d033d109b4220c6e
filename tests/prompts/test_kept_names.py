"""Other names that a tuning keeps: which they are, and where they stand in a prompt."""

import numpy as np
import pytest

from glipv2_d2.errors import InputError
from glipv2_d2.prompts.kept_names import KeptNames, mix_names
from glipv2_d2.prompts.name_texts import NameText
from glipv2_d2.prompts.tokenizer import PromptTokenizer
from glipv2_d2.structures import KEPT_NAME

KEEP = "MODEL.GLIPV2.TUNING.KEEP"


def test_names_of_lvis_are_kept_but_for_those_of_the_data(tiny_cfg):
    names = KeptNames.from_config(tiny_cfg, ["Teddy_Bear", "cone"])
    assert "teddy bear" not in names.names and "cone" not in names.names
    assert "alarm clock" in names.names and len(set(names.names)) == len(names.names) > 1100
    assert (names.number, names.share) == (20, 0.25)


def test_a_file_has_a_name_on_each_line(tiny_cfg, tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("\ufeffcat\n\n  a red  ball \nCat\nbow_(weapon)\nDog\n", encoding="utf-8")
    tiny_cfg.merge_from_list([f"{KEEP}.NAMES", str(file)])
    assert KeptNames.from_config(tiny_cfg, ["dog"]).names == ("Cat", "a red ball", "bow")


def test_a_dataset_has_names_too(tiny_cfg):
    tiny_cfg.merge_from_list([f"{KEEP}.NAMES", "coco_2017_val"])
    names = KeptNames.from_config(tiny_cfg, ["dog"]).names
    assert len(names) == 79 and names[:2] == ("person", "bicycle")


@pytest.mark.parametrize(
    ("content", "options", "error", "message"),
    [
        (b"Cat\n", [], InputError, "expected a name that the training data do not have"),
        (b"\xff\xfe", [], InputError, "expected text in UTF-8"),
        (None, [], FileNotFoundError, "expected a text file or a registered dataset, found none"),
        (b"dog\n", [f"{KEEP}.IMAGES", 1.5], InputError, "expected a share from 0 to 1, found 1.5"),
        (b"dog\n", [f"{KEEP}.NUM_NAMES", 0], InputError, "expected at least 1, found 0"),
    ],
)
def test_what_cannot_be_kept_is_named(tiny_cfg, tmp_path, content, options, error, message):
    file = tmp_path / "names.txt"
    if content is not None:
        file.write_bytes(content)
    tiny_cfg.merge_from_list([f"{KEEP}.NAMES", str(file), *options])
    with pytest.raises(error, match=message):
        KeptNames.from_config(tiny_cfg, ["cat"])


def test_names_are_drawn_once_each_for_the_share_of_images():
    names = KeptNames(("a", "b", "c"), number=2, share=0.25)
    rng = np.random.default_rng(0)
    drawn = [names.draw(rng) for _ in range(1000)]
    assert all(len(one) in (0, 2) and len(set(one)) == len(one) for one in drawn)
    assert 0.2 < np.mean([len(one) > 0 for one in drawn]) < 0.3
    assert {name for one in drawn for name in one} == {"a", "b", "c"}
    # Where there are no more, all of them.
    assert sorted(names._replace(number=9, share=1.0).draw(np.random.default_rng(0))) == ["a", "b", "c"]


def test_own_names_keep_their_order_among_others():
    own = [(NameText("cat"), 4), (NameText("dog"), 7)]
    mixed = [mix_names(own, ["x", "y"], np.random.default_rng(seed)) for seed in range(100)]
    for phrases, rows in mixed:
        assert [phrases[row] for row in rows] == own and rows == sorted(rows)
        others = [phrase for row, phrase in enumerate(phrases) if row not in rows]
        assert others == [(NameText("x"), KEPT_NAME), (NameText("y"), KEPT_NAME)]
    # All six places of two among four.
    assert len({tuple(rows) for _, rows in mixed}) == 6


def test_without_others_nothing_is_drawn():
    rng = np.random.default_rng(0)
    assert mix_names([(NameText("cat"), 0)], [], rng) == ([(NameText("cat"), 0)], [0])
    assert rng.random() == np.random.default_rng(0).random()


def test_models_are_compared_with_the_same_prompts():
    names, tokenizer = KeptNames(("cat", "dog", "red ball"), number=2, share=0.5), PromptTokenizer()
    first, second = (names.prompts(tokenizer, ". ", 3) for _ in range(2))
    assert [one.phrases for one in first] == [one.phrases for one in second]
    assert all(one.category_ids.tolist() == [KEPT_NAME] * 2 for one in first)
