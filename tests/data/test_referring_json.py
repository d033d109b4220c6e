import json
import logging
import os

import pytest
from damaged_json import damaged
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glipv2_d2.data import register_referring_json
from glipv2_d2.data.datasets.annotation_checks import check_dataset_dicts
from glipv2_d2.data.datasets.referring_json import load_referring_json
from glipv2_d2.data.datasets.value_checks import AnnotationError

RLE = {"size": [48, 64], "counts": "abc"}


def image(image_id, **fields) -> dict:
    return {"id": image_id, "file_name": f"{image_id}.jpg", "height": 48, "width": 64, **fields}


def item(image_id, phrase, bbox=(4, 6, 20, 10), **fields) -> dict:
    return {"image_id": image_id, "phrase": phrase, "bbox": list(bbox), "segmentation": RLE, **fields}


@pytest.fixture
def load(tmp_path, new_name):
    """A function that registers a json of these images and annotations and loads it."""

    def write_and_load(images, annotations, **metadata):
        (tmp_path / "a.json").write_text(json.dumps({"images": images, "annotations": annotations}))
        register_referring_json(new_name, tmp_path / "a.json", tmp_path, **metadata)
        return DatasetCatalog.get(new_name)

    return write_and_load


def test_each_different_phrase_of_an_image_is_a_dict_with_all_its_boxes(load, tmp_path):
    annotations = [item(3, "crow"), item(9, "saw"), item(9, "crow", (0, 0, 64, 48)), item(9, "saw", (1, 2, 3, 4))]
    records = load([image(9), image(3), image(4)], annotations)
    assert [(record["image_id"], record["caption"]) for record in records] == [
        *(("9__0", "saw"), ("9__1", "crow"), ("3__0", "crow"))
    ]
    whole = {"bbox_mode": BoxMode.XYXY_ABS, "tokens_positive": ((0, 3),), "segmentation": RLE}
    assert records[0] == {
        "file_name": os.path.join(tmp_path, "9.jpg"),
        "height": 48,
        "width": 64,
        "image_id": "9__0",
        "caption": "saw",
        "annotations": [{"bbox": (4, 6, 24, 16), **whole}, {"bbox": (1, 2, 4, 6), **whole}],
    }
    assert records[1]["annotations"][0]["bbox"] == (0, 0, 64, 48)
    check_dataset_dicts("x", records, task="grounding")


def test_a_box_without_mask_stays(load):
    (record,) = load([image(1)], [item(1, "crow", segmentation=None)])
    assert "segmentation" not in record["annotations"][0]


def test_metadata_says_what_it_is(load, new_name, tmp_path):
    load([image(1)], [item(1, "crow")], note="mine")
    metadata = MetadataCatalog.get(new_name)
    assert (metadata.task, metadata.evaluator_type, metadata.note) == ("grounding", "phrasecut", "mine")
    assert metadata.json_file == str(tmp_path / "a.json") and metadata.image_root == str(tmp_path)
    with pytest.raises(ValueError, match="registered already"):
        register_referring_json(new_name, "a", "b")


def test_the_kind_of_evaluation_can_be_chosen(load, new_name):
    load([image(1)], [item(1, "crow")], evaluator_type="refcoco")
    assert MetadataCatalog.get(new_name).evaluator_type == "refcoco"


def test_nothing_is_read_at_once(new_name):
    register_referring_json(new_name, "nowhere.json", "nowhere")
    with pytest.raises(FileNotFoundError, match="json_file nowhere.json does not exist"):
        DatasetCatalog.get(new_name)


BAD_ANNOTATIONS = {
    "no object": (7, "found 7, expected an object"),
    "unknown image": (item(8, "crow"), "image_id is 8, expected an id that stands in images"),
    "list as image": (item(1, "crow") | {"image_id": [1]}, "image_id is [1]"),
    "crowd": (item(1, "crow", iscrowd=1), "iscrowd is 1, expected 0"),
    "no phrase": (item(1, None), "phrase is None"),
    "blank phrase": (item(1, " "), "phrase is ' '"),
    "negative": (item(1, "crow", (9, 9, -4, 4)), "bbox is [9, 9, -4, 4]"),
    "tiny": (item(1, "crow", (9, 9, 1, 4)), "more than one pixel"),
}


@pytest.mark.parametrize("bad, reason", BAD_ANNOTATIONS.values(), ids=BAD_ANNOTATIONS)
def test_bad_annotations_are_left_out_counted_and_named(load, caplog, bad, reason):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (record,) = load([image(1)], [item(1, "crow"), bad])
    assert len(record["annotations"]) == 1
    assert len(caplog.records) == 1
    assert "left out 1 annotations (annotations[1]: " in caplog.text and reason in caplog.text


BAD_IMAGES = {
    "no object": (None, "found None"),
    "no id": (image("7"), "expected an object with an integer as id"),
    "no size": (image(2, height=None), "height is None"),
    "path": (image(2, file_name="/a.jpg"), "expected a path inside the folder"),
}


@pytest.mark.parametrize("bad, reason", BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_bad_images_are_left_out_counted_and_named_once(load, caplog, bad, reason):
    boxes = [item(1, "crow")] + [item(2, "crow")] * (isinstance(bad, dict) and bad["id"] == 2)
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (record,) = load([image(1), bad], boxes)
    assert record["image_id"] == "1__0"
    assert "left out 1 images (images[1]" in caplog.text and reason in caplog.text
    assert "annotations" not in caplog.messages[0]


def test_nothing_left_is_an_error(load):
    with pytest.raises(AnnotationError, match="found nothing to use, expected phrases with boxes"):
        load([image(1)], [])


def test_two_images_with_one_id_are_an_error(load):
    with pytest.raises(AnnotationError, match=r"images\[1\]: id is 1, expected an id that no other image has"):
        load([image(1), image(1)], [])


@pytest.mark.parametrize("text", ["", "[]", "{", '{"images": []}', '{"images": {}, "annotations": []}'])
def test_other_files_are_named(tmp_path, new_name, text):
    (tmp_path / "a.json").write_text(text)
    register_referring_json(new_name, tmp_path / "a.json", tmp_path)
    with pytest.raises(AnnotationError, match="a.json: .*expected") as raised:
        DatasetCatalog.get(new_name)
    assert "\n" not in str(raised.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(data=st.data())
def test_any_damage_is_left_out_or_a_one_line_error(tmp_path, data):
    """Replace or remove one random value of a good file; what comes out is always fit for training."""
    annotations = [item(1, "crow"), item(2, "saw"), item(2, "crow"), item(2, "saw")]
    content = damaged(data, {"images": [image(1), image(2)], "annotations": annotations})
    path, name = tmp_path / "damaged.json", f"{tmp_path.name}_damaged"
    path.write_text(json.dumps(content))
    try:
        records = load_referring_json(str(path), str(tmp_path), name)
    except AnnotationError as error:
        assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 3000
    else:
        assert records and all(record["annotations"] for record in records)
        assert len({record["image_id"] for record in records}) == len(records)
        check_dataset_dicts("damaged", records, task="grounding")
    finally:
        MetadataCatalog.pop(name, None)
