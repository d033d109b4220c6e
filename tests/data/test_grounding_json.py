import json
import logging
import math
import os
import tracemalloc
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glipv2_d2.data.datasets.annotation_checks import check_dataset_dicts
from glipv2_d2.data.datasets.grounding_json import load_grounding_json, register_grounding_json
from glipv2_d2.data.datasets.value_checks import AnnotationError
from glipv2_d2.data.loading import load_training_dicts


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


def test_metadata_says_what_it_is(load, new_name, tmp_path):
    load([image(1)], [box(1)], task="pseudo_grounding", note="old")
    metadata = MetadataCatalog.get(new_name)
    assert (metadata.task, metadata.note) == ("pseudo_grounding", "old")
    assert metadata.json_file == str(tmp_path / "boxes.json") and metadata.image_root == str(tmp_path)
    with pytest.raises(ValueError, match="registered already"):
        register_grounding_json(new_name, "a", "b")


def test_grounding_is_the_default_and_nothing_is_read_at_once(new_name):
    register_grounding_json(new_name, "nowhere.json", "nowhere")
    assert MetadataCatalog.get(new_name).task == "grounding"
    with pytest.raises(FileNotFoundError, match="json_file nowhere.json does not exist"):
        DatasetCatalog.get(new_name)


def test_images_of_several_sources_have_several_directories(load, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    images = [image(1, data_source="coco"), image(2, data_source="vg"), image(3), image(4, data_source=["x"])]
    boxes = [box(number) for number in (1, 2, 3, 4)]
    records = load(images, boxes, {"coco": tmp_path / "a", "": tmp_path / "b"})
    assert [Path(record["file_name"]).parent.name for record in records] == ["a", "b", "b", "b"]


def test_a_source_without_directory_is_an_error(load, tmp_path):
    with pytest.raises(AnnotationError, match=r"images\[0\]: data_source is 'vg', expected one of \['coco'\]"):
        load([image(1, data_source="vg")], [box(1)], {"coco": tmp_path})


def test_a_missing_directory_of_several_is_named(load, tmp_path):
    with pytest.raises(FileNotFoundError, match="image_root .*gone does not exist"):
        load([image(1)], [box(1)], {"coco": tmp_path, "": tmp_path / "gone"})


def test_tokens_are_read_instead_of_tokens_positive(load):
    (record,) = load([image(1)], [box(1, tokens=[[12, 19]])])
    assert record["annotations"][0]["tokens_positive"] == ((12, 19),)


BAD_ANNOTATIONS = {
    "no object": (7, "found 7, expected an object"),
    "unknown image": (box(8), "image_id is 8, expected an id that stands in images"),
    "list as image": ({**box(1), "image_id": [1]}, "image_id is [1]"),
    "crowd": (box(1, iscrowd=1), "iscrowd is 1"),
    "nan": (box(1, (1, 2, math.nan, 4)), "bbox is [1, 2, nan, 4]"),
    "negative": (box(1, (9, 9, -4, 4)), "bbox is [9, 9, -4, 4]"),
    "outside": (box(1, (70, 9, 4, 4)), "bbox is [70, 9, 4, 4]"),
    "one pixel": (box(1, (9, 9, 1, 4)), "more than one pixel"),
    "beyond the caption": (box(1, spans=[(2, 99)]), "inside the caption of 19 characters"),
    "no ranges": (box(1, spans=[]), "tokens_positive is []"),
}


@pytest.mark.parametrize("bad, reason", BAD_ANNOTATIONS.values(), ids=BAD_ANNOTATIONS)
def test_bad_annotations_are_left_out_counted_and_named(load, caplog, bad, reason):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (record,) = load([image(1)], [box(1), bad])
    assert [item["bbox"] for item in record["annotations"]] == [(4, 6, 24, 16)]
    assert len(caplog.records) == 1
    assert "left out 1 annotations (annotations[1]: " in caplog.text and reason in caplog.text


BAD_IMAGES = {
    "no object": (None, "found None"),
    "no id": (image("7"), "expected an object with an integer as id"),
    "no caption": (image(2, None), "caption is None"),
    "blank caption": (image(2, " \n"), "caption is ' \\n'"),
    "no size": (image(2, height=None), "height is None"),
    "no file": (image(2, file_name=""), "file_name is ''"),
}


@pytest.mark.parametrize("bad, reason", BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_bad_images_are_left_out_counted_and_named(load, caplog, bad, reason):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (record,) = load([image(1), bad], [box(1)])
    assert record["image_id"] == 1
    assert "left out 1 images (images[1]" in caplog.text and reason in caplog.text


def test_the_boxes_of_an_image_left_out_are_not_counted_again(load, caplog):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        load([image(1), image(2, " ")], [box(1), box(2), box(2)])
    assert "annotations" not in caplog.messages[0].split("left out")[1].replace("annotations[", "")


def test_captions_without_a_box_are_left_out(load, caplog):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        records = load([image(1), image(2, "of the and"), image(3)], [box(1), box(3, (1, 1, 0, 0))])
    assert [record["image_id"] for record in records] == [1]
    assert "2 captions (image id 2: no box for 'of the and'; image id 3" in caplog.text


def test_one_warning_counts_all_and_names_the_first_three(load, caplog):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        load([image(1)], [box(1), *(box(1, spans=[(0, 50 + i)]) for i in range(5))])
    assert len(caplog.records) == 1
    assert "left out 5 annotations (annotations[1]: " in caplog.text and "; ...)" in caplog.text
    assert "[[0, 52]]" in caplog.text and "[[0, 53]]" not in caplog.text


def test_nothing_left_is_an_error(load):
    with pytest.raises(AnnotationError, match=r"found nothing to use.*1 annotations \(annotations\[0\]: tokens_pos"):
        load([image(1)], [box(1, spans=[(2, 99)])])


def test_two_captions_with_one_id_are_an_error(load):
    with pytest.raises(AnnotationError, match=r"images\[1\]: id is 1, expected an id that no other image has"):
        load([image(1), image(1)], [box(1)])


@pytest.mark.parametrize("text", ["", "[]", "{", '{"images": []}', '{"images": {}, "annotations": []}'])
def test_other_files_are_named(tmp_path, new_name, text):
    (tmp_path / "boxes.json").write_text(text)
    register_grounding_json(new_name, tmp_path / "boxes.json", tmp_path)
    with pytest.raises(AnnotationError, match="boxes.json: .*expected") as raised:
        DatasetCatalog.get(new_name)
    assert "\n" not in str(raised.value)


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


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 70) | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.sampled_from(["id", "bbox"]), values, max_size=2),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(data=st.data())
def test_any_damage_is_left_out_or_a_one_line_error(tmp_path, data):
    """Replace or remove one random value of a good file; what comes out is always fit for training."""
    content = {"images": [image(1), image(2)], "annotations": [box(1), box(2), box(2, spans=[(12, 19)])]}
    owner, key = content, data.draw(st.sampled_from(sorted(content)))
    while isinstance(owner[key], (dict, list)) and owner[key] and data.draw(st.integers(0, 4)):
        owner = owner[key]
        key = data.draw(st.sampled_from(sorted(owner) if isinstance(owner, dict) else range(len(owner))))
    if data.draw(st.booleans()):
        del owner[key]
    else:
        owner[key] = data.draw(json_values)
    damaged = tmp_path / "damaged.json"
    damaged.write_text(json.dumps(content))
    try:
        records = load_grounding_json(str(damaged), str(tmp_path), f"{tmp_path.name}_damaged")
    except AnnotationError as error:
        assert str(damaged) in str(error) and "\n" not in str(error) and len(str(error)) < 3000
    else:
        assert records and all(record["annotations"] for record in records)
        check_dataset_dicts("damaged", records, task="grounding")
    finally:
        MetadataCatalog.pop(f"{tmp_path.name}_damaged", None)


GOOD = {
    "file_name": "a.jpg",
    "height": 48,
    "width": 64,
    "caption": "a dog",
    "annotations": [{"bbox": (1, 1, 9, 9), "bbox_mode": BoxMode.XYXY_ABS, "tokens_positive": ((2, 5),), "score": 0.5}],
}


def with_box(**fields) -> dict:
    return {**GOOD, "annotations": [{**GOOD["annotations"][0], **fields}]}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**GOOD, "caption": " "}, "a.jpg: caption is ' ', expected some words"),
        ({key: GOOD[key] for key in GOOD if key != "caption"}, "lacks 'caption'"),
        ({key: GOOD[key] for key in GOOD if key != "width"}, "lacks 'width'"),
        (with_box(bbox=(1, 1, 9, math.nan)), "bbox is"),
        (with_box(bbox_mode=None), "bbox_mode is None"),
        (with_box(tokens_positive=()), r"tokens_positive is \(\)"),
        (with_box(tokens_positive=None), "tokens_positive is None"),
        (with_box(tokens_positive=((2, 6),)), "tokens_positive is .*2, 6.*expected pairs .* inside the caption"),
        (with_box(tokens_positive=((2, 5), (3, 3))), "tokens_positive is"),
        (with_box(tokens_positive=((-1, 5),)), "tokens_positive is"),
        (with_box(tokens_positive=((2,),)), "tokens_positive is"),
        (with_box(score=1.01), "score is 1.01"),
        (with_box(score=-0.1), "score is -0.1"),
        (with_box(score=math.nan), "score is nan"),
    ],
)
@pytest.mark.parametrize("task", ["grounding", "pseudo_grounding"])
def test_dicts_of_any_reader_are_checked(record, message, task):
    check_dataset_dicts("mine", [GOOD, {**GOOD, "annotations": []}], task=task)
    with pytest.raises(AnnotationError, match=f"dataset 'mine': .*{message}"):
        check_dataset_dicts("mine", [GOOD, record], task=task)


def test_no_dicts_pass_the_check():
    check_dataset_dicts("mine", [], task="grounding")
    check_dataset_dicts("mine", [], 3)
    with pytest.raises(AnnotationError, match="category_id is 3, expected a number from 0 to 2"):
        check_dataset_dicts("mine", [with_box(category_id=3)], 3)


def test_an_empty_key_tokens_leaves_the_ranges_to_tokens_positive(load):
    (record,) = load([image(1)], [box(1, tokens=None)])
    assert record["annotations"][0]["tokens_positive"] == ((2, 5),)


def test_a_file_name_that_leaves_the_image_folder_is_left_out(load, caplog):
    with caplog.at_level(logging.WARNING):
        (record,) = load([image(1, file_name="../1.jpg"), image(2)], [box(1), box(2)])
    assert record["image_id"] == 2 and "expected a path inside the folder of the images" in caplog.text


def test_masks_are_carried_along_as_they_are(load):
    polygon, runs = [[4, 6, 24, 6, 24, 16]], {"size": [48, 64], "counts": "unchecked"}
    masks = [polygon, runs, 7, [], None]
    (record,) = load([image(1)], [*(box(1, segmentation=mask) for mask in masks), box(1)])
    found = [item.get("segmentation", "none") for item in record["annotations"]]
    assert found == [polygon, runs, 7, "none", "none", "none"]


def test_a_grounding_dataset_trains_boxes_whose_masks_cannot_be_used(load, new_name, caplog):
    polygon = [[4, 6, 24, 6, 24, 16]]
    load([image(1)], [box(1, segmentation=polygon), box(1, segmentation=7)])
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (record,) = load_training_dicts(new_name, filter_empty=True, with_masks=True)
    assert [item.get("segmentation") for item in record["annotations"]] == [polygon, None]
    assert "left out 1 masks (" in caplog.text and "1.jpg: box 1: segmentation is 7, expected" in caplog.text
    (record,) = load_training_dicts(new_name, filter_empty=True)
    assert not any("segmentation" in item for item in record["annotations"])
