"""Referring data: phrases of json in COCO's format, RefCOCO's expressions, and PhraseCut's tasks."""

import json
import logging
import math
import os

import pytest
from damaged_json import assert_fit_or_one_line, damaged
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glipv2_d2.data import register_phrasecut, register_refcoco, register_referring_json
from glipv2_d2.data.datasets.dict_checks import check_dataset_dicts
from glipv2_d2.data.datasets.referring import load_phrasecut, load_refcoco
from glipv2_d2.data.datasets.value_checks import AnnotationError

WHOLE = {"bbox_mode": BoxMode.XYXY_ABS}


def write(folder, **files):
    """Write json files and return their paths in order."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return [folder / f"{name}.json" for name in files]


# --- json in COCO's format; its faults are those of test_faults.py


def item(image_id, phrase, bbox=(4, 6, 20, 10), **fields) -> dict:
    return {"image_id": image_id, "phrase": phrase, "bbox": list(bbox), "segmentation": {"counts": "abc"}, **fields}


@pytest.fixture
def load_json(tmp_path, new_name):
    """A function that registers a json of three images and these annotations and loads it."""

    def write_and_load(*annotations, **metadata):
        images = [{"id": i, "file_name": f"{i}.jpg", "height": 48, "width": 64} for i in (9, 3, 4)]
        (path,) = write(tmp_path, a={"images": images, "annotations": annotations})
        register_referring_json(new_name, path, tmp_path, **metadata)
        return DatasetCatalog.get(new_name)

    return write_and_load


def test_each_different_phrase_of_an_image_is_a_dict_with_all_its_boxes(load_json, tmp_path):
    records = load_json(item(3, "crow"), item(9, "saw"), item(9, "crow", (0, 0, 64, 48)), item(9, "saw", (1, 2, 3, 4)))
    assert [(record["image_id"], record["caption"]) for record in records] == [
        *(("9__0", "saw"), ("9__1", "crow"), ("3__0", "crow"))
    ]
    whole = {**WHOLE, "tokens_positive": ((0, 3),), "segmentation": {"counts": "abc"}}
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


def test_a_box_without_mask_stays(load_json):
    (record,) = load_json(item(3, "crow", segmentation=None))
    assert "segmentation" not in record["annotations"][0]


# --- RefCOCO

POLYGON = [4.5, 6, 24, 6, 24, 16]


def instances(**fields) -> dict:
    images = [
        {"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "height": 48, "width": 64},
        {"id": 10, "file_name": "COCO_train2014_000000000010.jpg", "height": 30, "width": 20},
    ]
    annotations = [
        {"id": 70, "image_id": 9, "bbox": [4, 6, 20, 10], "segmentation": [POLYGON], "iscrowd": 0, "category_id": 1},
        {"id": 71, "image_id": 10, "bbox": [2, 3, 5, 6], "segmentation": [POLYGON], "iscrowd": 0, "category_id": 1},
        {"id": 72, "image_id": 9, "bbox": [0, 0, 64, 48], "iscrowd": 0, "category_id": 1},
    ]
    return {"images": images, "annotations": annotations, "categories": [], **fields}


def ref(ann_id=70, image_id=9, split="val", sentences=((0, "the red dog"),), **fields) -> dict:
    texts = [{"sent_id": sent_id, "sent": sent, "raw": f"{sent}!"} for sent_id, sent in sentences]
    own = {"ref_id": ann_id, "ann_id": ann_id, "image_id": image_id, "split": split, "category_id": 1}
    return {**own, "file_name": f"COCO_train2014_{image_id:012d}_{ann_id}.jpg", "sentences": texts, **fields}


@pytest.fixture
def load_refs(tmp_path, new_name):
    """A function that registers a split of these objects and loads it."""

    def write_and_load(refs, coco=None, split="val", **metadata):
        paths = write(tmp_path, refs={"refs": refs}, instances=coco or instances())
        register_refcoco(new_name, *paths, tmp_path, split, **metadata)
        return DatasetCatalog.get(new_name)

    return write_and_load


def test_every_expression_is_a_dict_with_the_image_of_coco(load_refs, new_name, tmp_path):
    refs = [ref(71, 10, sentences=[(5, "cat")]), ref(sentences=[(3, "the red dog"), (4, "left dog")])]
    records = load_refs(refs, note="mine")
    assert [record["image_id"] for record in records] == [5, 3, 4]
    assert records[1] == {
        "file_name": os.path.join(tmp_path, "COCO_train2014_000000000009.jpg"),
        "height": 48,
        "width": 64,
        "image_id": 3,
        "caption": "the red dog",
        "annotations": [{**WHOLE, "bbox": (4, 6, 24, 16), "tokens_positive": ((0, 11),), "segmentation": [POLYGON]}],
    }
    assert (records[0]["height"], records[0]["width"]) == (30, 20)
    assert records[2]["caption"] == "left dog" and records[2]["annotations"][0]["tokens_positive"] == ((0, 8),)
    check_dataset_dicts("x", records, task="grounding")
    metadata = MetadataCatalog.get(new_name)
    assert (metadata.task, metadata.evaluator_type, metadata.split) == ("grounding", "refcoco", "val")
    assert metadata.instances_file == str(tmp_path / "instances.json") and metadata.note == "mine"


def test_only_the_split_is_read_and_an_object_without_mask_has_a_box(load_refs):
    refs = [ref(split="train"), ref(72, split="testA", sentences=[(1, "all")]), ref(71, 10, sentences=[(2, "cat")])]
    (record,) = load_refs(refs, split="testA")
    assert record["caption"] == "all" and "segmentation" not in record["annotations"][0]


def test_an_unknown_split_is_named(load_refs):
    with pytest.raises(AnnotationError, match=r"splits: expected 'test' among them, found \['train', 'val'\]"):
        load_refs([ref(), ref(split="train"), 7, ref(split=None), ref(split=["a"])], split="test")


BAD_OBJECTS = {
    "no object": (7, "expected an object, found 7"),
    "unknown image": (ref(image_id=3), "image_id: expected an id that stands in images of COCO's file, found 3"),
    "text as image": (ref() | {"image_id": "nine"}, "image_id: expected an integer, found 'nine'"),
    "unknown annotation": (ref(5), "ann_id: expected an id that stands in annotations of COCO's file, found 5"),
    "list as annotation": (ref() | {"ann_id": [70]}, "ann_id: expected an integer, found [70]"),
    "of another image": (ref(71), "ann_id: expected an annotation of image 9, found '71, of image 10'"),
    "no sentences": (ref() | {"sentences": None}, "sentences: expected a list of sentences, found None"),
    "empty sentences": (ref() | {"sentences": []}, "sentences: expected a list of sentences, found []"),
}


@pytest.mark.parametrize("bad, reason", BAD_OBJECTS.values(), ids=BAD_OBJECTS)
def test_bad_objects_are_left_out_counted_and_named(load_refs, caplog, bad, reason):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (record,) = load_refs([ref(sentences=[(1, "dog")]), bad])
    assert record["image_id"] == 1
    (message,) = caplog.messages
    assert "left out objects (" in message and f"refs[1]: {reason}" in message


BAD_ENTRIES = {
    "crowd": ("annotations", {"iscrowd": 1}, "iscrowd: expected 0, found 1"),
    "negative": ("annotations", {"bbox": [2, 3, -5, 6]}, "bbox: expected sides >= 0, found [2, 3, -5, 6]"),
    "outside": ("annotations", {"bbox": [25, 3, 5, 6]}, "inside its image of 20 x 30 pixels"),
    "tiny": ("annotations", {"bbox": [2, 3, 1, 6]}, "with at most 1 pixel of it inside"),
    "no size": ("images", {"width": 0}, "image_id: expected an id that stands in images of COCO's file, found 10"),
    "path": ("images", {"file_name": "../a.jpg"}, "image_id: expected an id that stands in images"),
}


@pytest.mark.parametrize("kind, change, reason", BAD_ENTRIES.values(), ids=BAD_ENTRIES)
def test_unusable_entries_of_coco_are_named_where_they_are_needed(load_refs, caplog, kind, change, reason):
    coco = instances()
    coco[kind][1].update(change)
    coco[kind] += [None, {"id": "a"}, {}]
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (record,) = load_refs([ref(), ref(71, 10, sentences=[(2, "cat"), (3, "a cat")])], coco)
    assert record["image_id"] == 0
    assert "left out objects (" in caplog.text and "refs[1]: " in caplog.text and reason in caplog.text


def test_bad_sentences_are_left_out_and_the_others_stay(load_refs, caplog):
    sentences = [(1, "dog"), ("2b", "b"), (3, " "), (1, "dog again"), (True, "c"), (4, "red dog")]
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        records = load_refs(
            [
                ref(sentences=sentences),
                ref(72, sentences=[(4, "all"), (5, "x")]),
                ref(sentences=[(6, "y")]),
                ref(72) | {"sentences": ["dog"]},
            ]
        )
    assert [record["caption"] for record in records] == ["dog", "red dog", "x", "y"]
    faults = "malformed ids: 2, malformed texts: 1, sentences listed twice: 2, malformed entries: 1"
    assert f"expressions ({faults})" in caplog.text
    assert "refs[0]: sent: expected a string that is not empty, found ' '" in caplog.text
    assert "sent_id: expected an id that no other sentence has, found 1" in caplog.text


# --- PhraseCut

TRIANGLE = [[4, 6], [24.5, 6], [24, 16]]
SIZES = [
    {"image_id": 7, "height": 48, "width": 64, "split": "train", "coco_id": None},
    {"image_id": 8, "height": 30, "width": 20, "split": "train"},
]


def task(task_id="7__0", **fields) -> dict:
    own = {"task_id": task_id, "image_id": 7, "phrase": "red dog", "instance_boxes": [[4, 6, 20.5, 10]]}
    return {**own, "Polygons": [[TRIANGLE]], "ann_ids": [1], "phrase_structure": {"name": "dog"}, **fields}


@pytest.fixture
def load_tasks(tmp_path, new_name):
    """A function that registers a split of these tasks and loads it."""

    def write_and_load(tasks, sizes=SIZES, **metadata):
        register_phrasecut(new_name, *write(tmp_path, refer=tasks, sizes=sizes), tmp_path, **metadata)
        return DatasetCatalog.get(new_name)

    return write_and_load


def test_a_task_is_an_image_with_a_phrase_and_all_it_means(load_tasks, new_name, tmp_path):
    two = task("7__1", instance_boxes=[[4, 6, 20, 10], [0, 0, 64, 48]], Polygons=[[TRIANGLE, TRIANGLE], [TRIANGLE]])
    second, first = load_tasks([two, task("8__0", image_id=8, instance_boxes=[[2, 3, 5, 6]], phrase="cat")], note="x")
    polygon = [4, 6, 24.5, 6, 24, 16]
    whole = {**WHOLE, "tokens_positive": ((0, 7),)}
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
    metadata = MetadataCatalog.get(new_name)
    assert (metadata.task, metadata.evaluator_type, metadata.note) == ("grounding", "phrasecut", "x")
    assert metadata.json_file == str(tmp_path / "refer.json") and metadata.sizes_file == str(tmp_path / "sizes.json")


@pytest.mark.parametrize("polygons", [None, [[]]])
def test_a_task_without_polygons_has_boxes_only(load_tasks, polygons):
    (record,) = load_tasks([task(Polygons=polygons)])
    assert [sorted(one) for one in record["annotations"]] == [["bbox", "bbox_mode", "tokens_positive"]]


MALFORMED_MASKS = [
    *([[TRIANGLE[0], [1, 2, 3]]], [[TRIANGLE[0], [1, "2"]]], [[TRIANGLE[0], [math.nan, 2]]]),
    *([[1, 2, 3, 4]], [7], 7, {"a": 1}),
]


@pytest.mark.parametrize("mask", MALFORMED_MASKS, ids=str)
def test_malformed_points_are_left_to_the_check_of_masks(load_tasks, mask):
    (record,) = load_tasks([task(Polygons=[mask])])
    assert str(record["annotations"][0]["segmentation"]) == str(mask)


BAD_TASKS = {
    "no object": (7, "expected an object, found 7"),
    "unknown image": (task("a", image_id=9), "image_id: expected the id of an image whose size is known, found 9"),
    "list as image": (task("a", image_id=[7]), "image_id: expected an integer, found [7]"),
    "number as task": (task(3), "task_id: expected a string that is not empty, found 3"),
    "task twice": (task(), "task_id: expected an id that no other task has, found '7__0'"),
    "blank phrase": (task("a", phrase=" "), "phrase: expected a string that is not empty, found ' '"),
    "no boxes": (task("a", instance_boxes=[]), "instance_boxes: expected a list of boxes, found []"),
    "boxes of another type": (task("a", instance_boxes={"x": 1}), "instance_boxes: expected a list of boxes, found {"),
    "polygons of fewer boxes": (task("a", Polygons=[]), "a list for each of the 1 instance_boxes, found []"),
    "polygons of another type": (task("a", Polygons={"a": 1}), "instance_boxes, found {'a': 1}"),
}


@pytest.mark.parametrize("bad, reason", BAD_TASKS.values(), ids=BAD_TASKS)
def test_bad_tasks_are_left_out_counted_and_named(load_tasks, caplog, bad, reason):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (record,) = load_tasks([task(), bad])
    assert record["image_id"] == "7__0" and len(record["annotations"]) == 1
    (message,) = caplog.messages
    assert "left out phrases (" in message and "; [1]: " in message and reason in message


def test_bad_boxes_are_left_out_with_their_masks_and_a_phrase_without_any(load_tasks, caplog):
    boxes = [[4, 6, 20, 10], [4, 6, -1, 10], [9, 9, 1, 1], [99, 9, 4, 4], "box", [4, 6, 10, 10]]
    masks = [[[[i, 0], [1, 1], [2, 2]]] for i in range(6)]
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (record,) = load_tasks([task(instance_boxes=boxes, Polygons=masks), task("b", instance_boxes=[[1, 1, 0, 1]])])
    assert [one["bbox"] for one in record["annotations"]] == [(4, 6, 24, 16), (4, 6, 14, 16)]
    assert [one["segmentation"][0][0] for one in record["annotations"]] == [0, 5]
    assert "boxes with a negative side: 1, boxes of at most one pixel: 1, boxes outside their image: 1" in caplog.text
    assert "phrases (phrases without a box: 1)" in caplog.text and "[0] (task '7__0'): bbox: expected" in caplog.text


BAD_SIZES = {
    "no object": (3, "expected an object, found 3"),
    "no id": ({"height": 3, "width": 3}, "image_id: expected an integer, found None"),
    "no width": ({"image_id": 9, "height": 3}, "width: expected a positive integer, found None"),
    "two sizes": ({"image_id": 7, "height": 3, "width": 3}, "image_id: expected one size for it, found 7 again"),
}


@pytest.mark.parametrize("bad, reason", BAD_SIZES.values(), ids=BAD_SIZES)
def test_bad_sizes_are_left_out_and_named(load_tasks, caplog, bad, reason):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (record,) = load_tasks([task()], [*SIZES, bad, SIZES[0]])
    assert (record["height"], record["width"]) == (48, 64)
    assert "left out image sizes (" in caplog.text and f"sizes [2]: {reason}" in caplog.text


# --- what RefCOCO and PhraseCut have in common


@pytest.mark.parametrize(
    ("kind", "wanted"), [("refs", "expressions of the split 'val'"), ("tasks", "phrases with boxes")]
)
def test_nothing_left_is_an_error(load_refs, load_tasks, kind, wanted):
    with pytest.raises(AnnotationError, match=f"expected {wanted}, found nothing to use; left out: .*[(]unknown "):
        load_refs([ref(5)]) if kind == "refs" else load_tasks([task(image_id=9)])


FILES = {
    "refs": (register_refcoco, ("val",), {"refs": {"refs": [ref()]}, "instances": instances()}),
    "tasks": (register_phrasecut, (), {"refer": [task()], "sizes": SIZES}),
}


@pytest.mark.parametrize("text", ["", "[", "3", '{"refs": 3}', '{"images": 3}', '{"images": []}'])
@pytest.mark.parametrize(("kind", "file"), [(kind, file) for kind, one in FILES.items() for file in one[2]])
def test_other_files_are_named(tmp_path, new_name, kind, file, text):
    register, split, files = FILES[kind]
    register(new_name, *write(tmp_path, **{**files, file: text}), tmp_path, *split)
    if file == "instances" and text == '{"images": []}':
        with pytest.raises(AnnotationError, match="refs.json: expected .* found nothing to use"):
            DatasetCatalog.get(new_name)
    else:
        with pytest.raises(
            AnnotationError, match=rf"{file}.json: (.*: )?expected (a json file|a list|an object)"
        ) as raised:
            DatasetCatalog.get(new_name)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", FILES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_any_damage_is_left_out_or_a_one_line_error(tmp_path, kind, data):
    """Replace or remove one random value of good files; the records that come out are always fit for training."""
    paths = [str(path) for path in write(tmp_path, **damaged(data, FILES[kind][2]))]
    name, load = f"{tmp_path.name}_damaged", load_refcoco if kind == "refs" else load_phrasecut
    records = assert_fit_or_one_line(
        lambda: load(*paths, str(tmp_path), *FILES[kind][1], name), tmp_path, name, "grounding"
    )
    assert all(record["annotations"] for record in records)
    assert len({record["image_id"] for record in records}) == len(records)
