import json
import logging
import math
import os

import pytest
from damaged_json import damaged
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glipv2_d2.data import register_phrasecut
from glipv2_d2.data.datasets.annotation_checks import check_dataset_dicts
from glipv2_d2.data.datasets.phrasecut import load_phrasecut
from glipv2_d2.data.datasets.value_checks import AnnotationError

TRIANGLE = [[4, 6], [24.5, 6], [24, 16]]
SIZES = [
    {"image_id": 7, "height": 48, "width": 64, "split": "train", "coco_id": None},
    {"image_id": 8, "height": 30, "width": 20, "split": "train"},
]


def task(task_id="7__0", **fields) -> dict:
    return {
        "task_id": task_id,
        "image_id": 7,
        "phrase": "red dog",
        "instance_boxes": [[4, 6, 20.5, 10]],
        "Polygons": [[TRIANGLE]],
        "ann_ids": [1],
        "phrase_structure": {"name": "dog", "attributes": ["red"]},
        **fields,
    }


@pytest.fixture
def load(tmp_path, new_name):
    """A function that registers a split of these tasks and loads it."""

    def write_and_load(tasks, sizes=SIZES, **metadata):
        (tmp_path / "refer.json").write_text(json.dumps(tasks))
        (tmp_path / "sizes.json").write_text(json.dumps(sizes))
        register_phrasecut(new_name, tmp_path / "refer.json", tmp_path / "sizes.json", tmp_path, **metadata)
        return DatasetCatalog.get(new_name)

    return write_and_load


def test_a_task_is_an_image_with_a_phrase_and_all_it_means(load, tmp_path):
    two = task("7__1", instance_boxes=[[4, 6, 20, 10], [0, 0, 64, 48]], Polygons=[[TRIANGLE, TRIANGLE], [TRIANGLE]])
    second, first = load([two, task("8__0", image_id=8, instance_boxes=[[2, 3, 5, 6]], phrase="cat")])
    polygon = [4, 6, 24.5, 6, 24, 16]
    whole = {"bbox_mode": BoxMode.XYXY_ABS, "tokens_positive": ((0, 7),)}
    assert second == {
        "file_name": os.path.join(tmp_path, "7.jpg"),
        "height": 48,
        "width": 64,
        "image_id": "7__1",
        "caption": "red dog",
        "annotations": [
            {"bbox": (4, 6, 24, 16), "segmentation": [polygon, polygon], **whole},
            {"bbox": (0, 0, 64, 48), "segmentation": [polygon], **whole},
        ],
    }
    assert first["file_name"] == os.path.join(tmp_path, "8.jpg") and (first["height"], first["width"]) == (30, 20)
    assert first["annotations"][0]["tokens_positive"] == ((0, 3),)
    check_dataset_dicts("x", [first, second], task="grounding")


def test_metadata_says_what_it_is(load, new_name, tmp_path):
    load([task()], note="mine")
    metadata = MetadataCatalog.get(new_name)
    assert (metadata.task, metadata.evaluator_type, metadata.note) == ("grounding", "phrasecut", "mine")
    assert metadata.json_file == str(tmp_path / "refer.json") and metadata.sizes_file == str(tmp_path / "sizes.json")
    assert metadata.image_root == str(tmp_path)
    with pytest.raises(ValueError, match="registered already"):
        register_phrasecut(new_name, "a", "b", "c")


@pytest.mark.parametrize("field, file", [("json_file", "refer.json"), ("sizes_file", "sizes.json")])
def test_nothing_is_read_at_once_and_a_missing_file_is_named(tmp_path, new_name, field, file):
    for name in {"refer.json", "sizes.json"} - {file}:
        (tmp_path / name).write_text("[]")
    register_phrasecut(new_name, tmp_path / "refer.json", tmp_path / "sizes.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{field} .*{file} does not exist"):
        DatasetCatalog.get(new_name)


@pytest.mark.parametrize("polygons", [None, [[]]])
def test_a_task_without_polygons_has_boxes_only(load, polygons):
    (record,) = load([task(Polygons=polygons)])
    assert [sorted(item) for item in record["annotations"]] == [["bbox", "bbox_mode", "tokens_positive"]]


MALFORMED_MASKS = [
    [[TRIANGLE[0], [1, 2, 3]]],
    [[TRIANGLE[0], [1, "2"]]],
    [[TRIANGLE[0], [math.nan, 2]]],
    [[1, 2, 3, 4]],
    [7],
    7,
    {"a": 1},
]


@pytest.mark.parametrize("mask", MALFORMED_MASKS, ids=str)
def test_malformed_points_are_left_to_the_check_of_masks(load, mask):
    (record,) = load([task(Polygons=[mask])])
    assert str(record["annotations"][0]["segmentation"]) == str(mask)


BAD_TASKS = {
    "no object": (7, "found 7, expected an object"),
    "unknown image": (task("a", image_id=9), "image_id is 9, expected the id of an image whose size is known"),
    "list as image": (task("a", image_id=[7]), "image_id is [7]"),
    "number as task": (task(3), "task_id is 3, expected a string"),
    "task twice": (task(), "task_id is '7__0', expected an id that no other task has"),
    "blank phrase": (task("a", phrase=" "), "phrase is ' '"),
    "no phrase": (task("a", phrase=None), "phrase is None"),
    "no boxes": (task("a", instance_boxes=[], Polygons=[]), "instance_boxes is [], expected a list of boxes"),
    "boxes of another type": (task("a", instance_boxes={"x": 1}), "instance_boxes is {'x': 1}"),
    "polygons of fewer boxes": (task("a", Polygons=[]), "Polygons is [], expected a list for each of the 1"),
    "polygons of another type": (task("a", Polygons={"a": 1}), "Polygons is {'a': 1}"),
}


@pytest.mark.parametrize("bad, reason", BAD_TASKS.values(), ids=BAD_TASKS)
def test_bad_tasks_are_left_out_counted_and_named(load, caplog, bad, reason):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (record,) = load([task(), bad])
    assert record["image_id"] == "7__0" and len(record["annotations"]) == 1
    assert len(caplog.records) == 1 and "left out 1 phrases ([1]: " in caplog.text and reason in caplog.text


def test_bad_boxes_are_left_out_with_their_masks(load, caplog):
    boxes = [[4, 6, 20, 10], [4, 6, -1, 10], [9, 9, 1, 1], [99, 9, 4, 4], "box", [4, 6, 10, 10]]
    masks = [[[[i, 0], [1, 1], [2, 2]]] for i in range(6)]
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (record,) = load([task(instance_boxes=boxes, Polygons=masks)])
    assert [item["bbox"] for item in record["annotations"]] == [(4, 6, 24, 16), (4, 6, 14, 16)]
    assert [item["segmentation"][0][0] for item in record["annotations"]] == [0, 5]
    assert "left out 4 boxes ([0] (task '7__0'): bbox is [4, 6, -1, 10]" in caplog.text


def test_a_phrase_without_any_box_left_is_left_out(load, caplog):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (record,) = load([task(), task("7__1", instance_boxes=[[70, 9, 4, 4]], phrase="cat")])
    assert record["caption"] == "red dog"
    assert "1 boxes" in caplog.text and "1 phrases ([1] (task '7__1'): no box for 'cat')" in caplog.text


BAD_SIZES = {
    "no object": (3, "found 3"),
    "no id": ({"height": 3, "width": 3}, "expected an object with an integer as image_id"),
    "no width": ({"image_id": 9, "height": 3}, "width is None, expected a positive integer"),
    "two sizes": ({"image_id": 7, "height": 3, "width": 3}, "image_id is 7, expected one size for it"),
}


@pytest.mark.parametrize("bad, reason", BAD_SIZES.values(), ids=BAD_SIZES)
def test_bad_sizes_are_left_out_and_named(load, caplog, bad, reason):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (record,) = load([task()], [*SIZES, bad, SIZES[0]])
    assert (record["height"], record["width"]) == (48, 64)
    assert "left out 1 image sizes (sizes [2]: " in caplog.text and reason in caplog.text


def test_nothing_left_is_an_error(load):
    with pytest.raises(
        AnnotationError, match=r"found nothing to use, expected phrases with boxes; left out: 1 phrases"
    ):
        load([task(image_id=9)])


@pytest.mark.parametrize("text", ["", "{}", "[", "3"])
@pytest.mark.parametrize("file", ["refer.json", "sizes.json"])
def test_other_files_are_named(tmp_path, new_name, text, file):
    for name in ("refer.json", "sizes.json"):
        (tmp_path / name).write_text(text if name == file else "[]")
    register_phrasecut(new_name, tmp_path / "refer.json", tmp_path / "sizes.json", tmp_path)
    with pytest.raises(AnnotationError, match=f"{file}: .*expected a (json file|list)") as raised:
        DatasetCatalog.get(new_name)
    assert "\n" not in str(raised.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(data=st.data())
def test_any_damage_is_left_out_or_a_one_line_error(tmp_path, data):
    """Replace or remove one random value of good files; what comes out is always fit for training."""
    content = damaged(data, {"refer": [task(), task("7__1", phrase="cat")], "sizes": SIZES})
    paths = {name: tmp_path / f"{name}.json" for name in content}
    for name, path in paths.items():
        path.write_text(json.dumps(content[name]))
    name = f"{tmp_path.name}_damaged"
    try:
        records = load_phrasecut(str(paths["refer"]), str(paths["sizes"]), str(tmp_path), name)
    except AnnotationError as error:
        assert str(tmp_path) in str(error) and "\n" not in str(error) and len(str(error)) < 3000
    else:
        assert records and all(record["annotations"] for record in records)
        assert len({record["image_id"] for record in records}) == len(records)
        check_dataset_dicts("damaged", records, task="grounding")
    finally:
        MetadataCatalog.pop(name, None)
