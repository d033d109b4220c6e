"""Readers of captions to learn to write: Karpathy's files, COCO's, and captions whose phrases have boxes."""

import json
import logging
import os
import re

import pytest
from damaged_json import assert_fit_or_one_line, damaged
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glipv2_d2.data import register_captioning, register_grounding_json, register_odvg
from glipv2_d2.data.datasets.captioning import load_captioning
from glipv2_d2.data.datasets.value_checks import AnnotationError
from glipv2_d2.data.loading import load_dataset, load_training_dicts

pytestmark = pytest.mark.usefixtures("images_exist")


def karpathy(image_id, split="train", captions=("A dog.", "A cat ."), **fields) -> dict:
    sentences = [{"raw": caption, "tokens": [], "sentid": i} for i, caption in enumerate(captions)]
    own = {"filename": f"{image_id}.jpg", "filepath": "val2014", "cocoid": image_id, "imgid": 900, "split": split}
    return {**own, "sentences": sentences, **fields}


def coco_image(image_id, **fields) -> dict:
    return {"id": image_id, "file_name": f"{image_id}.jpg", "height": 48, "width": 64, **fields}


def coco_caption(image_id, caption="A dog.\n") -> dict:
    return {"id": 1, "image_id": image_id, "caption": caption}


@pytest.fixture
def load(tmp_path, new_name):
    """A function that registers a json of captions and loads it."""

    def write_and_load(content, sizes=None, **options):
        (tmp_path / "captions.json").write_text(json.dumps(content))
        if sizes is not None:
            (tmp_path / "sizes.json").write_text(json.dumps({"images": sizes}))
            options["images_files"] = [tmp_path / "sizes.json"]
        DatasetCatalog.pop(new_name, None)
        MetadataCatalog.pop(new_name, None)
        register_captioning(new_name, tmp_path / "captions.json", tmp_path, **options)
        return load_dataset(new_name)

    return write_and_load


def test_karpathys_splits_hold_their_images_with_all_captions(load, tmp_path, new_name):
    images = [karpathy(5), karpathy(3, "restval", ["  A bird. \n"]), karpathy(4, "val"), karpathy(6, "test")]
    first, second = load({"images": images, "dataset": "coco"}, [coco_image(5)], splits=("train", "restval"))
    assert first == {
        "file_name": os.path.join(tmp_path, "val2014", "5.jpg"),
        "image_id": 5,
        "height": 48,
        "width": 64,
        "captions": ["A dog.", "A cat ."],
    }
    assert second["captions"] == ["A bird."] and "height" not in second
    metadata = MetadataCatalog.get(new_name)
    assert (metadata.task, metadata.evaluator_type) == ("captioning", "captioning")


def test_flickr30k_has_no_folders_and_its_own_ids(load, tmp_path):
    image = {key: value for key, value in karpathy(7).items() if key not in ("filepath", "cocoid")}
    (record,) = load({"images": [image]}, splits=("train",))
    assert (record["file_name"], record["image_id"]) == (str(tmp_path / "7.jpg"), 900)


def test_captions_of_coco_meet_their_images(load, tmp_path):
    annotations = [coco_caption(2), coco_caption(1, "B"), coco_caption(2, "C"), coco_caption(9, "of no image")]
    first, second = load({"images": [coco_image(2), coco_image(1)], "annotations": annotations})
    assert first == {
        "file_name": str(tmp_path / "2.jpg"),
        "image_id": 2,
        "height": 48,
        "width": 64,
        "captions": ["A dog.", "C"],
    }
    assert second["captions"] == ["B"]


def test_a_test_set_has_images_alone_and_cannot_train(load, new_name):
    (record,) = load({"images": [coco_image(1)]})
    assert "captions" not in record
    with pytest.raises(ValueError, match="expected a dataset to train on, found images without 'captions'"):
        load_training_dicts(new_name, filter_empty=True)


def test_images_without_a_caption_are_left_out_counted_and_named(load, caplog):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        images = [karpathy(1, captions=[]), karpathy(2), karpathy(3, captions=[" "])]
        (record,) = load({"images": images}, splits=["train"])
    assert record["image_id"] == 2
    assert "images without a caption: 2" in caplog.text
    assert "image id 1: expected at least one caption, found none" in caplog.text
    assert "images[2].sentences[0]: raw: expected a string that is not empty, found ' '" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (record,) = load({"images": [coco_image(1), coco_image(2)], "annotations": [coco_caption(2)]})
    assert record["image_id"] == 2 and "left out images (images without a caption: 1)" in caplog.text


BAD_KARPATHY = {
    "no object": (None, "images", "found None"),
    "no id": (karpathy(None, imgid="x"), "images", "cocoid: expected an integer, found None"),
    "no file": (karpathy(1, filename=""), "images", "filename: expected .*found ''"),
    "outside": (karpathy(1, filepath="../x"), "images", "a path inside the folder"),
    "no list": (karpathy(1, sentences={}), "images", r"sentences: expected .*a list.*found \{\}"),
}


@pytest.mark.parametrize("bad, kind, reason", BAD_KARPATHY.values(), ids=BAD_KARPATHY)
def test_bad_images_of_karpathy_are_left_out(load, caplog, bad, kind, reason):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (record,) = load({"images": [bad, karpathy(2)]}, splits=["train"])
    assert record["image_id"] == 2
    assert f"left out {kind} (" in caplog.text and re.search(reason, caplog.text)


@pytest.mark.parametrize(
    ("content", "splits", "message"),
    [
        ({"images": 1}, (), "images: expected .*a list.*found 1"),
        ({"images": [], "annotations": 1}, (), "annotations: expected .*a list.*found 1"),
        ({"images": [karpathy(1)]}, ("train", "tset"), r"splits: expected .*'tset' among them.*found \['train'\]"),
        (
            {"images": [karpathy(1), karpathy(1) | {"filename": "other.jpg"}]},
            ("train",),
            r"images\[1\]: cocoid: expected an id that no other image has, found 1",
        ),
        (
            {"images": [karpathy(1, captions=[])]},
            ("train",),
            "expected images with captions of.*, found nothing to use",
        ),
        ({"images": []}, (), "expected images with captions.*, found nothing to use"),
    ],
)
def test_other_files_are_named_in_one_line(load, content, splits, message):
    with pytest.raises(AnnotationError, match=f"captions.json: {message}") as raised:
        load(content, splits=splits)
    assert "\n" not in str(raised.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(data=st.data())
def test_any_damage_is_left_out_or_a_one_line_error(tmp_path, data):
    """Replace or remove one random value of good files; what comes out is always fit for training."""
    splits = data.draw(st.sampled_from([(), ("train", "val")]))
    captions = {"images": [coco_image(1), coco_image(2)], "annotations": [coco_caption(1), coco_caption(2)]}
    if splits:
        captions = {"images": [karpathy(1), karpathy(2), karpathy(3, "val")]}
    files = {"captions": captions, "sizes": {"images": [coco_image(1), coco_image(2)]}}
    for name, content in damaged(data, files).items():
        (tmp_path / name).write_text(json.dumps(content))
    name = f"{tmp_path.name}_damaged"
    paths = str(tmp_path / "captions"), str(tmp_path), splits, (str(tmp_path / "sizes"),)
    assert_fit_or_one_line(lambda: load_captioning(*paths, name), tmp_path, name, "captioning")


# --- captions whose phrases have boxes


def test_grounded_captions_of_mdetr_stay_without_a_box(tmp_path, new_name):
    images = [{**coco_image(i), "caption": "a dog"} for i in (1, 2)]
    boxes = [{"image_id": 1, "bbox": [4, 6, 20, 10], "tokens_positive": [[2, 5]]}]
    (tmp_path / "a.json").write_text(json.dumps({"images": images, "annotations": boxes}))
    register_grounding_json(new_name, tmp_path / "a.json", tmp_path, task="captioning")
    first, second = load_training_dicts(new_name, filter_empty=True, min_score=0.9)
    assert [item["tokens_positive"] for item in first["annotations"]] == [((2, 5),)]
    assert second["caption"] == "a dog" and second["annotations"] == []
    assert MetadataCatalog.get(new_name).evaluator_type == "grounded_captioning"


def test_captions_with_pseudo_boxes_stay_without_a_box(tmp_path, new_name):
    regions = [{"bbox": [1, 1, 9, 9], "tokens_positive": [[2, 5]], "score": 0.25}]
    lines = [
        {"filename": f"{i}.jpg", "height": 48, "width": 64, "grounding": {"caption": "a dog", "regions": own}}
        for i, own in enumerate((regions, []))
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    register_odvg(new_name, tmp_path / "a.jsonl", tmp_path, task="captioning")
    first, second = load_training_dicts(new_name, filter_empty=True, min_score=0.9)
    assert [item["score"] for item in first["annotations"]] == [0.25] and second["annotations"] == []
    assert MetadataCatalog.get(new_name).evaluator_type == "grounded_captioning"
