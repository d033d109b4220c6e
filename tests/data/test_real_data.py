"""Real photographs and exports of annotation tools, in the folder that the environment variable GLIPV2_REAL_DATA names.

They are not part of the repository; without the variable these tests are skipped.
"""

import json
import os
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from glipv2_d2.data import (
    register_captioning,
    register_coco_grounding,
    register_referring_json,
    register_vqa,
    register_vqa_jsonl,
)
from glipv2_d2.data.datasets.coco import load_detection_truth
from glipv2_d2.data.datasets.skip_report import DataReport
from glipv2_d2.data.image_reading import read_image
from glipv2_d2.data.loading import load_dataset
from glipv2_d2.errors import InputError

ROOT = Path(os.environ.get("GLIPV2_REAL_DATA", "no-real-data"))
pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason="GLIPV2_REAL_DATA names no folder")

SETS = sorted(
    str(path.relative_to(ROOT)) for split in ("train", "val", "test") for path in ROOT.glob(f"*/{split}.json")
)
SETS += [f"coco_mini/instances_{split}.json" for split in ("train", "val")]

# Exports without a fault. The images of most are not there.
EXPORTS = [
    "roboflow/animals_polygons/_annotations.coco.json",
    "roboflow/soft_drink_half_pixels/_annotations.coco.json",
    "roboflow/face_mask_NA_supercategory/custom_val.json",
    "labelme/coco_export/annotations.json",
    "cvat/people_pets/instances_default.json",
    "cvat/people_pets/keypoints_annotation.txt",
    "cvat/people_pets/segmentation_annotationjson.txt",
    "coco_other/sahi/coco_evaluate/dataset.json",
    "coco_other/sahi/combined_coco.json",
    "coco_other/sahi/terrain1_coco.json",
    "coco_other/sahi/visdrone2019-det-train-first50image.json",
    "voc100/coco_format_v1/instances_default.json",
    "voc100/coco_format_v2/instances_v2.json",
]
OTHER_FORMATS = [
    *("via/via/via_bbox.json", "voc100/labelme_format/labelme_format/2007_000027.json"),
    *("voc100/yolo_format/obj_train_data/obj_train_data/2007_000027.txt", "coco_other/sahi/coco_evaluate/result.json"),
]


@pytest.mark.parametrize("file", SETS)
def test_every_image_and_box_of_a_set_loads(new_name, file):
    path = ROOT / file
    register_coco_grounding(new_name, path, path.parent / "images")
    with DataReport() as report:
        records = load_dataset(new_name, with_masks=True)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert len(records) == len(content["images"])
    assert sum(len(record["annotations"]) for record in records) == len(content["annotations"])
    assert not any(one.counts for one in report.files.values())
    assert MetadataCatalog.get(new_name).thing_classes == [
        row["name"] for row in sorted(content["categories"], key=lambda row: row["id"])
    ]
    assert read_image(records[0], "RGB").shape == (records[0]["height"], records[0]["width"], 3)
    truth = load_detection_truth(str(path), str(path.parent / "images"))
    assert [item["bbox"] for item in truth["annotations"]] == [item["bbox"] for item in content["annotations"]]
    assert [item["area"] for item in truth["annotations"]] == [item["area"] for item in content["annotations"]]


@pytest.mark.parametrize("file", EXPORTS)
def test_an_export_loads_whole(new_name, file):
    path = ROOT / "formats" / file
    register_coco_grounding(new_name, path, path.parent)
    with DataReport() as report:
        records = DatasetCatalog.get(new_name)
    content = json.loads(path.read_text(encoding="utf-8"))
    found = report.files[str(path), new_name]
    assert not found.counts
    if "animals_polygons" in file:  # One of them reaches 245 pixels past its image.
        assert found.changed == {"boxes cut at the border of their image": 12}
    assert sum(len(record["annotations"]) for record in records) == len(content["annotations"]) > 0


@pytest.mark.parametrize(
    ("file", "first", "is_class"),
    [
        ("roboflow/face_mask_NA_supercategory/custom_val.json", "mask_weared_incorrect", True),
        ("labelme/coco_export/annotations.json", "_background_", False),
        ("roboflow/soft_drink_half_pixels/_annotations.coco.json", None, False),
    ],
)
def test_category_0_is_a_class_or_an_empty_row(new_name, file, first, is_class):
    path = ROOT / "formats" / file
    register_coco_grounding(new_name, path, path.parent)
    DatasetCatalog.get(new_name)
    rows = json.loads(path.read_text(encoding="utf-8"))["categories"]
    assert rows[0]["id"] == 0 and first in (None, rows[0]["name"])
    assert (MetadataCatalog.get(new_name).thing_classes[0] == rows[0]["name"]) == is_class


@pytest.mark.parametrize("file", OTHER_FORMATS)
def test_another_format_is_one_clear_error(new_name, file):
    path = ROOT / "formats" / file
    register_coco_grounding(new_name, path, path.parent)
    with pytest.raises(InputError, match=f"{path.name}: (images: )?expected (a list|an object|a json file)") as raised:
        DatasetCatalog.get(new_name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("split", ["train", "val"])
def test_captions_of_coco_load(new_name, split):
    folder = ROOT / "coco_mini"
    register_captioning(new_name, folder / f"captions_{split}.json", folder / "images")
    records = load_dataset(new_name)
    assert len(records) == 50 and all(len(record["captions"]) >= 5 for record in records)


@pytest.mark.parametrize("split", ["train", "val"])
def test_questions_of_vqa_load(new_name, split):
    folder = ROOT / "vqa_coco"
    files = [folder / "vqav2" / f"v2_{name}_{split}2014_{kind}.json" for name, kind in VQA_FILES]
    if not files[0].is_file():
        pytest.skip(f"no questions of {split}2014")
    register_vqa(new_name, *files, folder / "coco" / f"{split}2014")
    content = json.loads(files[0].read_text(encoding="utf-8"))
    records = load_dataset(new_name)
    assert len(records) == len(content["questions"]) and all(record["answers"] for record in records)


VQA_FILES = (("OpenEnded_mscoco", "questions"), ("mscoco", "annotations"))


def test_yes_no_questions_of_pope_load(new_name):
    folder = ROOT / "vqa_coco"
    register_vqa_jsonl(new_name, folder / "pope.jsonl", folder / "coco" / "val2014")
    records = DatasetCatalog.get(new_name)
    assert len(records) == 36 and {record["answers"][0] for record in records} == {"yes", "no"}
    assert records[0]["question"] == "Is there a sink in the image?"


def test_phrases_can_be_the_names_of_a_set(tmp_path, new_name):
    content = json.loads((ROOT / "voc100" / "val.json").read_text())
    names = {row["id"]: row["name"] for row in content["categories"]}
    for item in content["annotations"]:
        item["phrase"] = names[item["category_id"]]
    (tmp_path / "a.json").write_text(json.dumps(content))
    register_referring_json(new_name, tmp_path / "a.json", ROOT / "voc100" / "images")
    records = load_dataset(new_name, with_masks=True)
    assert sum(len(record["annotations"]) for record in records) == len(content["annotations"])
