import json
import logging
import os
import tracemalloc
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode

from glipv2_d2 import add_glipv2_config
from glipv2_d2.data.datasets.dict_checks import check_dataset_dicts
from glipv2_d2.data.datasets.formats import register_grounding_json
from glipv2_d2.data.datasets.value_checks import AnnotationError
from glipv2_d2.data.loading import load_test_dataset, load_training_dicts
from glipv2_d2.evaluation import build_evaluator
from glipv2_d2.evaluation.flickr30k import Flickr30kEvaluator


def image(image_id, caption="a dog and a red dog", **fields) -> dict:
    file_name = f"{image_id}.jpg"
    return {"id": image_id, "file_name": file_name, "height": 48, "width": 64, "caption": caption, **fields}


def box(image_id, bbox=(4, 6, 20, 10), spans=((2, 5),), **fields) -> dict:
    return {"image_id": image_id, "bbox": list(bbox), "tokens_positive": [list(span) for span in spans], **fields}


@pytest.fixture
def load(tmp_path, new_name):
    """A function that registers a json of these images and annotations and loads it."""
    json_file = tmp_path / "boxes.json"

    def write_and_load(images, annotations, image_root=tmp_path, **options):
        json_file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))
        register_grounding_json(new_name, json_file, image_root, **options)
        return DatasetCatalog.get(new_name)

    return write_and_load


def test_captions_get_their_boxes_in_the_order_of_the_file(load, tmp_path):
    records = load([image(9), image(3)], [box(3), box(9, (0, 0, 64, 48), ((2, 5), (12, 19))), box(3, spans=[(12, 19)])])
    assert records[0] == {
        "file_name": os.path.join(tmp_path, "9.jpg"),
        "height": 48,
        "width": 64,
        "image_id": 9,
        "caption": "a dog and a red dog",
        "annotations": [{"bbox": (0, 0, 64, 48), "bbox_mode": BoxMode.XYXY_ABS, "tokens_positive": ((2, 5), (12, 19))}],
    }
    assert [item["bbox"] for item in records[1]["annotations"]] == [(4, 6, 24, 16)] * 2
    assert [item["tokens_positive"] for item in records[1]["annotations"]] == [((2, 5),), ((12, 19),)]
    check_dataset_dicts("x", records, task="grounding")


def test_images_of_several_sources_have_several_directories(load, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    images = [image(1, data_source="coco"), image(2, data_source="vg"), image(3), image(4, data_source=["x"])]
    boxes = [box(number) for number in (1, 2, 3, 4)]
    records = load(images, boxes, {"coco": tmp_path / "a", "": tmp_path / "b"})
    assert [Path(record["file_name"]).parent.name for record in records] == ["a", "b", "b", "b"]


def test_a_source_without_directory_is_an_error(load, tmp_path):
    with pytest.raises(AnnotationError, match=r"images \(id 1\): data_source: expected one of \['coco'\], found 'vg'"):
        load([image(1, data_source="vg")], [box(1)], {"coco": tmp_path})


def test_a_missing_directory_of_several_is_named(load, tmp_path):
    with pytest.raises(FileNotFoundError, match="image_root .*gone does not exist"):
        load([image(1)], [box(1)], {"coco": tmp_path, "": tmp_path / "gone"})


def test_tokens_are_read_instead_of_tokens_positive(load):
    (record,) = load([image(1)], [box(1, tokens=[[12, 19]])])
    assert record["annotations"][0]["tokens_positive"] == ((12, 19),)


def test_captions_without_a_box_are_left_out(load, caplog):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        records = load([image(1), image(2, "of the and"), image(3)], [box(1), box(3, (1, 1, 0, 0))])
    assert [record["image_id"] for record in records] == [1]
    assert "annotations (boxes without area: 1), images (captions without a box: 2)" in caplog.text
    assert "images (id 2): expected a box for 'of the and', found none" in caplog.text


def test_long_and_foreign_captions_are_kept_whole(load):
    captions = ["dog " * 2500, "\u202ekalb \u0643\u0644\u0628", "dog\x00\x1b[2J"]
    images = [image(i, caption) for i, caption in enumerate(captions)]
    records = load(images, [box(i, spans=[(0, 3)]) for i in range(3)])
    assert [record["caption"] for record in records] == captions


def test_a_record_with_five_boxes_takes_a_few_kilobytes(load):
    images = [image(i, f"caption number {i}, with some more words in it") for i in range(300)]
    boxes = [box(i, (j + 0.5, 6.25, 20.5, 10.125), [(j, j + 9)]) for i in range(300) for j in range(5)]
    tracemalloc.start()
    try:
        records = load(images, boxes)
        del images, boxes
        size = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(records) == 300 and size / 300 < 6000


def test_an_empty_key_tokens_leaves_the_ranges_to_tokens_positive(load):
    (record,) = load([image(1)], [box(1, tokens=None)])
    assert record["annotations"][0]["tokens_positive"] == ((2, 5),)


def test_masks_are_carried_along_as_they_are(load):
    polygon, runs = [[4, 6, 24, 6, 24, 16]], {"size": [48, 64], "counts": "unchecked"}
    masks = [polygon, runs, 7, [], None]
    (record,) = load([image(1)], [*(box(1, segmentation=mask) for mask in masks), box(1)])
    found = [item.get("segmentation", "none") for item in record["annotations"]]
    assert found == [polygon, runs, 7, "none", "none", "none"]


def test_a_grounding_dataset_trains_boxes_whose_masks_cannot_be_used(load, new_name, caplog, images_exist):
    polygon = [[4, 6, 24, 6, 24, 16]]
    load([image(1)], [box(1, segmentation=polygon), box(1, segmentation=7)])
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (record,) = load_training_dicts(new_name, filter_empty=True, with_masks=True)
    assert [item.get("segmentation") for item in record["annotations"]] == [polygon, None]
    assert (
        "left out masks (malformed masks: 1)" in caplog.text and "1.jpg: box 1: segmentation: expected" in caplog.text
    )
    (record,) = load_training_dicts(new_name, filter_empty=True)
    assert not any("segmentation" in item for item in record["annotations"])


def test_phrases_of_captions_are_evaluated_as_those_of_flickr30k(load, new_name, tmp_path, images_exist):
    load([image(9), image(3)], [box(3), box(9)])
    cfg = get_cfg()
    add_glipv2_config(cfg)
    evaluator = build_evaluator(cfg, load_test_dataset(cfg, new_name), str(tmp_path))
    assert isinstance(evaluator, Flickr30kEvaluator)
