"""Oddities of real sets, in the folder that the environment variable GLIPV2_REAL_DATA names."""

import json
import os
import shutil
from pathlib import Path

import pytest
from check_cases import by_kind, micro_cfg

from glipv2_d2.data_check import check_own_sets, find_reported

ROOT = Path(os.environ.get("GLIPV2_REAL_DATA", "no-real-data"))
pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason="GLIPV2_REAL_DATA names no folder")


def findings_of(path):
    own, left_out = find_reported(str(path))
    findings = check_own_sets(own, micro_cfg(), left_out=left_out)
    assert findings.unreadable == {} and not any(one.kind == "truncated images" for one in findings.findings)
    return by_kind(findings)


def test_raccoon_has_four_pairs_of_copies_with_other_boxes_and_three_gray_images():
    found = findings_of(ROOT / "raccoon")
    pairs = [
        tuple(sorted(part.split()[0] for part in case.split(" / "))) for case in found["copies with other boxes"].cases
    ]
    expected = [(11, 116), (120, 83), (52, 74), (65, 98)]
    assert sorted(pairs) == [tuple(f"train/raccoon-{number}.jpg" for number in pair) for pair in expected]
    assert found["copies within a split"].number == 4 and "copies across splits" not in found
    assert found["gray images"].cases == tuple(f"train/raccoon-{number}.jpg" for number in (150, 152, 161))
    assert all(one.severity != "stop" for one in found.values())


def test_bccd_has_two_boxes_without_area_and_two_abbreviations():
    found = findings_of(ROOT / "bccd" / "as_found")
    one = found["left out: boxes without area"]
    assert one.number == 2 and all(any(name in case for case in one.cases) for name in ("00338", "00343"))
    assert findings_of(ROOT / "bccd")["abbreviated names"].cases == ("'RBC'", "'WBC'")


def test_faces_are_tiny_for_the_small_model():
    one = findings_of(ROOT / "face_mask")["tiny boxes"]
    assert one.severity == "warning" and "INPUT.MIN_SIZE_TEST 256" in one.advice


def test_validation_images_of_plant_defects_train():
    found = findings_of(ROOT / "plant_defects")
    assert found["no training images"].severity == "warning"


def test_crowds_and_empty_images_of_coco_are_counted():
    found = findings_of(ROOT / "coco_mini")
    assert found["crowd boxes"].number == 10 and found["images without boxes"].number == 3


def test_a_photograph_in_two_splits_is_found_under_another_name(tmp_path):
    root = tmp_path / "animals"
    shutil.copytree(ROOT / "animals_masks", root)
    train, val = (json.loads((root / f"{split}.json").read_text()) for split in ("train", "val"))
    # As published: it is in train and valid, with the same boxes.
    (image,) = [row for row in train["images"] if row["file_name"].startswith("ce7043029c91888c")]
    shutil.copy(root / "images" / image["file_name"], root / "images" / "103.jpg")
    val["images"].append(image | {"id": 9999, "file_name": "103.jpg"})
    boxes = [row for row in train["annotations"] if row["image_id"] == image["id"]]
    val["annotations"] += [row | {"id": 9999 + number, "image_id": 9999} for number, row in enumerate(boxes)]
    (root / "val.json").write_text(json.dumps(val))
    found = findings_of(root)
    assert found["copies across splits"].cases == (f"train/{image['file_name']} = val/103.jpg",)
    assert "copies with other boxes" not in found


@pytest.mark.parametrize("name", ["playing_cards", "bike_helmets", "traffic_vn", "voc100", "animals_masks"])
def test_other_sets_can_be_trained_on(name):
    assert all(one.severity != "stop" for one in findings_of(ROOT / name).values())
