"""Small sets of novel names in the layout of ODinW."""

import json

import cv2
import numpy as np
import prepare_shapeworld
import prepare_small_sets
import pytest
from detectron2.data import MetadataCatalog

from glipv2_d2 import register_coco_grounding
from glipv2_d2.data.datasets.coco import load_coco_grounding

ANNOTATIONS = "annotations_without_background.json"
SIZES = {"train": 6, "valid": 2, "test": 3}


def build(output, *words):
    sizes = ["--num-train", "6", "--num-val", "2", "--num-test", "3", "--num-novel", "7", "--size", "96"]
    prepare_small_sets.main(["--world", "shapeworld", "--output", str(output), *sizes, *words])


def load(folder, key, split):
    return json.loads((folder / key / split / ANNOTATIONS).read_text())


def names(content):
    return [category["name"] for category in content["categories"]]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    build(folder)
    return folder


def test_every_set_has_three_splits_of_images_beside_their_json(sets):
    assert {path.name for path in sets.iterdir()} == {"a", "b", "c", "all", "LICENSES.md", "manifest.json"}
    for key, factor in (("a", 1), ("b", 1), ("c", 1), ("all", 3)):
        for split, number in SIZES.items():
            images = {image["file_name"] for image in load(sets, key, split)["images"]}
            assert len(images) == factor * number
            assert {path.name for path in (sets / key / split).iterdir()} == {ANNOTATIONS, *images}


def test_sets_share_the_novel_names_out(sets):
    # Seven names in three parts: three, two and two.
    parts = [names(load(sets, key, "train")) for key in "abc"]
    assert [len(part) for part in parts] == [3, 2, 2]
    assert sorted(sum(parts, [])) == names(load(sets, "all", "test")) and len(set(sum(parts, []))) == 7
    for split in SIZES:
        assert names(load(sets, "b", split)) == parts[1]
    # Shapes of one kind stay together.
    groups = [[one["supercategory"] for one in load(sets, key, "train")["categories"]] for key in "abc"]
    assert all(max(one) <= min(other) for one, other in zip(groups, groups[1:]))


def test_the_test_of_all_names_is_val_novel_of_the_world(sets, tmp_path):
    world = prepare_shapeworld.prepare_shapeworld(
        tmp_path / "world", num_train=1, num_val=9, num_names=2, num_novel=7, size=96
    )
    novel = json.loads((world / "annotations" / "val_novel.json").read_text())
    test = load(sets, "all", "test")
    assert names(test) == names(novel)
    keys = ("image_id", "category_id", "bbox", "area")
    assert [[one[key] for key in keys] for one in test["annotations"]] == [
        [one[key] for key in keys] for one in novel["annotations"]
    ]
    files = ("all/test/000009.jpg", "world/val_novel/000009.jpg")
    assert (sets / files[0]).read_bytes() == (tmp_path / files[1]).read_bytes()


def test_splits_show_different_scenes(sets):
    images = [cv2.imread(str(sets / "a" / split / "000001.jpg")) for split in SIZES]
    assert all((one != other).mean() > 0.3 for one, other in zip(images, images[1:]))


def test_what_is_written_can_be_read_and_its_builtin_name_is_known(sets, tmp_path):
    split = sets / "a" / "valid"
    register_coco_grounding(tmp_path.name, split / ANNOTATIONS, split)
    records = load_coco_grounding(str(split / ANNOTATIONS), str(split), tmp_path.name)
    assert len(records) == 2 and all(record["annotations"] for record in records)
    metadata = MetadataCatalog.get("small_a_val")
    assert metadata.json_file.endswith(f"small_sets/a/valid/{ANNOTATIONS}")
    assert metadata.image_root.endswith("small_sets/a/valid")
    assert MetadataCatalog.get("small_all_test").json_file.endswith("small_sets/all/test/" + ANNOTATIONS)


def test_the_same_parameters_change_nothing_and_others_build_anew(sets, capsys, monkeypatch):
    drawn = []
    compose = prepare_small_sets.compose_scene
    monkeypatch.setattr(prepare_small_sets, "compose_scene", lambda *args: drawn.append(1) or compose(*args))
    build(sets)
    assert "there already" in capsys.readouterr().out and drawn == []
    before = load(sets, "a", "train")["annotations"]
    build(sets, "--seed", "1")
    assert len(drawn) == 6 * sum(SIZES.values()) and load(sets, "a", "train")["annotations"] != before
    build(sets)
    assert load(sets, "a", "train")["annotations"] == before


def test_boxes_are_where_the_objects_are(sets):
    content = load(sets, "c", "train")
    for box in content["annotations"]:
        image = cv2.imread(str(sets / "c" / "train" / f"{box['image_id']:06d}.jpg")).astype(np.float32)
        left, top, width, height = box["bbox"]
        assert 0 <= left <= left + width <= 96 and 0 <= top <= top + height <= 96
        assert 0 < box["area"] <= width * height
        # Shapes are in strong colours, grounds are pale.
        saturation = image.max(axis=2) - image.min(axis=2)
        assert saturation[top : top + height, left : left + width].max() > 60


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-sets", "8"], "--num-sets: expected 1 to 7, found 8"),
        (["--num-sets", "0"], "--num-sets: expected 1 to 7, found 0"),
        (["--num-test", "0"], "--num-test: expected at least 1, found 0"),
    ],
)
def test_numbers_that_cannot_be_are_named(tmp_path, words, message):
    with pytest.raises(SystemExit, match=message):
        build(tmp_path / "sets", *words)
