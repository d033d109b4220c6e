import importlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

from glipv2_d2.data.datasets import builtin
from glipv2_d2.data.datasets.odinw import ODINW_SETS
from glipv2_d2.data.datasets.value_checks import AnnotationError
from glipv2_d2.data.loading import load_dataset
from glipv2_d2.prompts.builder import check_vocabulary, prompt_from_names

GOLDEN = Path(__file__).parents[1] / "assets" / "golden" / "builtin_datasets.jsonl"
README = Path(__file__).parents[2] / "datasets" / "README.md"

# Every name but those of ODinW, with what its metadata say; paths are below the root.
EXPECTED = {entry.pop("name"): entry for entry in map(json.loads, GOLDEN.read_text().splitlines())}
# Name: the json of LVIS.
LVIS = {name: Path(entry["json_file"]).name for name, entry in EXPECTED.items() if name.startswith("lvis_v1_")}
ODINW = {f"odinw_{key}_{split}": key for key in ODINW_SETS for split in ("train", "val", "test")}
NAMES = {*EXPECTED, *ODINW}
# The names of categories that the metadata of LVIS hold before the file is read.
LARGE_FIELDS = ("name", "thing_classes", "class_image_count")


@pytest.fixture
def registered_in(monkeypatch):
    """A function that registers the named datasets anew below a root, until the end of the test."""

    def register(root) -> None:
        for catalog in (DatasetCatalog, MetadataCatalog):
            kept = {name: entry for name, entry in catalog.data.items() if name not in NAMES}
            monkeypatch.setattr(catalog, "data", kept)
        monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
        importlib.reload(builtin)

    return register


def below(root: str, value: Any) -> Any:
    """A value of the metadata with paths as in the list of expected ones; tuples become lists."""
    if isinstance(value, dict):
        return {key: below(root, one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [below(root, one) for one in value]
    return value.removeprefix(f"{root}/") if isinstance(value, str) else value


def test_every_name_leads_to_its_files_below_the_root(registered_in, tmp_path):
    registered_in(tmp_path)
    for name, expected in EXPECTED.items():
        metadata = MetadataCatalog.get(name).as_dict()
        found = {key: below(str(tmp_path), value) for key, value in metadata.items() if key not in LARGE_FIELDS}
        assert {key: value for key, value in found.items() if value not in (None, [])} == expected, name
        assert (metadata.get("thing_classes") is None) == (name not in LVIS)
        with pytest.raises(FileNotFoundError, match=f"{re.escape(name)}.*{tmp_path}.*DETECTRON2_DATASETS"):
            DatasetCatalog.get(name)


def test_names_are_registered_at_import():
    assert set(DatasetCatalog.list()) >= NAMES


def test_all_sets_of_odinw_lie_in_one_folder(registered_in, tmp_path):
    registered_in(tmp_path)
    for name, key in ODINW.items():
        assert MetadataCatalog.get(name).json_file.startswith(f"{tmp_path / 'odinw' / ODINW_SETS[key].folder}/")


LVIS_IMAGES = [
    {
        "id": 5,
        "coco_url": "http://images.cocodataset.org/val2017/000000000005.jpg",
        "height": 48,
        "width": 64,
        "not_exhaustive_category_ids": [3],
        "neg_category_ids": [7],
    }
]
LVIS_BOX = {"id": 1, "image_id": 5, "category_id": 1203, "bbox": [4, 6, 20, 10], "area": 100}


def write_lvis(root, name, boxes, categories=LVIS_CATEGORIES) -> None:
    for folder in ("coco", "lvis"):
        (root / folder).mkdir()
    content = {"images": LVIS_IMAGES, "annotations": boxes, "categories": categories}
    (root / "lvis" / LVIS[name]).write_text(json.dumps(content))


@pytest.mark.parametrize("name", LVIS)
def test_lvis_passes_through_the_loading_of_datasets(registered_in, images_exist, tmp_path, name):
    registered_in(tmp_path)
    write_lvis(tmp_path, name, [{**LVIS_BOX, "segmentation": [[4, 6, 24, 6, 24, 16]]}])
    metadata = MetadataCatalog.get(name)
    # The names and how many images have them are there before the file is read.
    assert metadata.thing_classes == [category["name"] for category in LVIS_CATEGORIES]
    # The one name that detectron2 replaces.
    assert metadata.thing_classes[161] == "bull" and "horned_cow" not in metadata.thing_classes
    assert [entry["id"] for entry in metadata.class_image_count] == list(range(1, 1204))
    (record,) = load_dataset(name, with_masks=True)
    assert record["file_name"] == str(tmp_path / "coco" / "val2017" / "000000000005.jpg")
    assert (record["not_exhaustive_category_ids"], record["neg_category_ids"]) == ([3], [7])
    (annotation,) = record["annotations"]
    assert annotation["category_id"] == 1202 and annotation["segmentation"] == [[4, 6, 24, 6, 24, 16]]
    assert record["never_negative_ids"] == [2]
    assert metadata.evaluator_type == "lvis" and len(metadata.thing_classes) == 1203


def test_other_categories_than_those_of_lvis_v1_are_refused(registered_in, tmp_path):
    registered_in(tmp_path)
    write_lvis(tmp_path, "lvis_v1_minival", [LVIS_BOX], LVIS_CATEGORIES[1:])
    with pytest.raises(AnnotationError, match="expected the 1203 thing_classes in the metadata of 'lvis_v1_minival'"):
        load_dataset("lvis_v1_minival")


def test_the_names_of_detectron2_stay_its_own():
    assert {"lvis_v1_train", "lvis_v1_val"} <= set(DatasetCatalog.list())
    assert MetadataCatalog.get("lvis_v1_train").get("task") is None


def test_every_name_of_lvis_finds_its_place_in_a_prompt():
    names = MetadataCatalog.get("lvis_v1_minival").thing_classes
    detectron2s = MetadataCatalog.get("lvis_v1_val").thing_classes
    assert [pair for pair in zip(names, detectron2s, strict=True) if pair[0] != pair[1]] == [("bull", "horned_cow")]
    check_vocabulary(names)
    prompt = prompt_from_names(names)
    texts = [prompt.caption[begin:end] for ((begin, end),) in prompt.phrase_spans]
    assert len(texts) == 1203 and all(text.strip() for text in texts)
    assert not any(character in text for text in texts for character in "_()")
    # Names that differ in their parentheses alone read the same, and keep a row each.
    assert [row for row, name in enumerate(names) if name.startswith("bow_(")] == [
        row for row, text in enumerate(texts) if text.strip() == "bow"
    ]
    assert len(set(texts)) < len(texts)


def test_a_home_folder_is_found(registered_in, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    registered_in(os.path.join("~", "data"))
    assert MetadataCatalog.get("vg_train").json_file.startswith(str(tmp_path / "data"))


def test_the_readme_names_every_dataset_and_no_other():
    text = README.read_text(encoding="utf-8")
    listed = set(re.findall(r"^Names?: (.+(?:\n.+)*)", text, re.MULTILINE))
    names = {name for line in listed for name in re.findall(r"`([A-Za-z0-9_+]+)`", line)}
    # One line for three splits of each set, whose names follow.
    patterns = {name for name in names if name.startswith("odinw_SET_")}
    (sets,) = re.findall(r"`SET` is one of (.+(?:\n.+)*)", text)
    names -= patterns
    names |= {pattern.replace("SET", key) for pattern in patterns for key in re.findall(r"`(\w+)`", sets)}
    by_detectron2 = {name for name in names - NAMES if name.startswith("coco_")}
    assert names - by_detectron2 == NAMES
