import json
import logging
import os

import pytest
from damaged_json import damaged
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glipv2_d2.data import register_refcoco
from glipv2_d2.data.datasets.annotation_checks import check_dataset_dicts
from glipv2_d2.data.datasets.refcoco import load_refcoco
from glipv2_d2.data.datasets.value_checks import AnnotationError

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
    return {
        "ref_id": ann_id,
        "ann_id": ann_id,
        "image_id": image_id,
        "split": split,
        "category_id": 1,
        "file_name": f"COCO_train2014_{image_id:012d}_{ann_id}.jpg",
        "sentences": texts,
        **fields,
    }


@pytest.fixture
def load(tmp_path, new_name):
    """A function that registers a split of these objects and loads it."""

    def write_and_load(refs, coco=None, split="val", **metadata):
        (tmp_path / "refs.json").write_text(json.dumps({"refs": refs}))
        (tmp_path / "instances.json").write_text(json.dumps(coco or instances()))
        files = (tmp_path / "refs.json", tmp_path / "instances.json", tmp_path)
        register_refcoco(new_name, *files, split, **metadata)
        return DatasetCatalog.get(new_name)

    return write_and_load


def test_every_expression_is_a_dict_with_the_image_of_coco(load, tmp_path):
    records = load([ref(71, 10, sentences=[(5, "cat")]), ref(sentences=[(3, "the red dog"), (4, "left dog")])])
    assert [record["image_id"] for record in records] == [5, 3, 4]
    assert records[1] == {
        "file_name": os.path.join(tmp_path, "COCO_train2014_000000000009.jpg"),
        "height": 48,
        "width": 64,
        "image_id": 3,
        "caption": "the red dog",
        "annotations": [
            {
                "bbox": (4, 6, 24, 16),
                "bbox_mode": BoxMode.XYXY_ABS,
                "tokens_positive": ((0, 11),),
                "segmentation": [POLYGON],
            }
        ],
    }
    assert (records[0]["height"], records[0]["width"]) == (30, 20)
    assert records[2]["caption"] == "left dog" and records[2]["annotations"][0]["tokens_positive"] == ((0, 8),)
    check_dataset_dicts("x", records, task="grounding")


def test_only_the_split_is_read(load):
    refs = [ref(split="train"), ref(72, split="testA", sentences=[(1, "all")]), ref(71, 10, sentences=[(2, "cat")])]
    assert [record["caption"] for record in load(refs, split="testA")] == ["all"]


def test_an_object_without_mask_has_a_box(load):
    (record,) = load([ref(72)])
    assert "segmentation" not in record["annotations"][0]


def test_metadata_says_what_it_is(load, new_name, tmp_path):
    load([ref()], note="mine")
    metadata = MetadataCatalog.get(new_name)
    assert (metadata.task, metadata.evaluator_type, metadata.split) == ("grounding", "refcoco", "val")
    assert metadata.json_file == str(tmp_path / "refs.json") and metadata.note == "mine"
    assert metadata.instances_file == str(tmp_path / "instances.json") and metadata.image_root == str(tmp_path)
    with pytest.raises(ValueError, match="registered already"):
        register_refcoco(new_name, "a", "b", "c", "val")


@pytest.mark.parametrize("field, file", [("json_file", "refs.json"), ("instances_file", "instances.json")])
def test_nothing_is_read_at_once_and_a_missing_file_is_named(tmp_path, new_name, field, file):
    for name in {"refs.json", "instances.json"} - {file}:
        (tmp_path / name).write_text("{}")
    register_refcoco(new_name, tmp_path / "refs.json", tmp_path / "instances.json", tmp_path, "val")
    with pytest.raises(FileNotFoundError, match=f"{field} .*{file} does not exist"):
        DatasetCatalog.get(new_name)


def test_an_unknown_split_is_named(load):
    with pytest.raises(AnnotationError, match=r"splits are \['train', 'val'\], expected 'test' among them"):
        load([ref(), ref(split="train"), 7, ref(split=None), ref(split=["a"])], split="test")


BAD_OBJECTS = {
    "no object": (7, "found 7, expected an object"),
    "unknown image": (ref(image_id=3), "image_id is 3, expected an id that stands in images of COCO's file"),
    "text as image": (ref(image_id=9) | {"image_id": "9"}, "image_id is '9'"),
    "unknown annotation": (ref(5), "ann_id is 5, expected an id that stands in annotations of COCO's file"),
    "list as annotation": (ref() | {"ann_id": [70]}, "ann_id is [70]"),
    "annotation of another image": (ref(71), "ann_id is 71, of image 10, expected an annotation of image 9"),
    "no sentences": (ref() | {"sentences": None}, "sentences is None, expected a list of sentences"),
    "empty sentences": (ref() | {"sentences": []}, "sentences is []"),
}


@pytest.mark.parametrize("bad, reason", BAD_OBJECTS.values(), ids=BAD_OBJECTS)
def test_bad_objects_are_left_out_counted_and_named(load, caplog, bad, reason):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (record,) = load([ref(sentences=[(1, "dog")]), bad])
    assert record["image_id"] == 1
    assert len(caplog.records) == 1 and "left out 1 objects (refs[1]: " in caplog.text and reason in caplog.text


BAD_ENTRIES = {
    "crowd": ("annotations", {"iscrowd": 1}, "iscrowd is 1 in annotation 71, expected 0"),
    "negative": ("annotations", {"bbox": [2, 3, -5, 6]}, "bbox is [2, 3, -5, 6]"),
    "outside": ("annotations", {"bbox": [25, 3, 5, 6]}, "inside an image of 20 x 30 pixels"),
    "tiny": ("annotations", {"bbox": [2, 3, 1, 6]}, "more than one pixel"),
    "no size": ("images", {"width": 0}, "width is 0, expected a positive integer"),
    "path": ("images", {"file_name": "../a.jpg"}, "expected a path inside the folder"),
}


@pytest.mark.parametrize("kind, change, reason", BAD_ENTRIES.values(), ids=BAD_ENTRIES)
def test_unusable_entries_of_coco_are_named_where_they_are_needed(load, caplog, kind, change, reason):
    coco = instances()
    coco[kind][1].update(change)
    coco[kind] += [None, {"id": "a"}, {}]
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (record,) = load([ref(), ref(71, 10, sentences=[(2, "cat"), (3, "a cat")])], coco)
    assert record["image_id"] == 0
    assert "left out 1 objects (refs[1]: " in caplog.text and reason in caplog.text


def test_bad_sentences_are_left_out_and_the_others_stay(load, caplog):
    sentences = [(1, "dog"), ("2", "b"), (3, " "), (1, "dog again"), (True, "c"), (4, "red dog")]
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        records = load([ref(sentences=sentences), ref(72, sentences=[(4, "all"), (5, "everything")])])
    assert [record["caption"] for record in records] == ["dog", "red dog", "everything"]
    assert "left out 5 expressions (refs[0]: sentence is {" in caplog.text
    assert "sent is ' '" in caplog.text and "sent_id is 1, expected an id that no other sentence has" in caplog.text


def test_a_sentence_that_is_no_object_is_left_out(load, caplog):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (record,) = load([ref(sentences=[(1, "dog")]), ref(72) | {"sentences": ["dog"]}])
    assert record["image_id"] == 1 and "left out 1 expressions (refs[1]: sentence is 'dog'" in caplog.text


def test_nothing_left_is_an_error(load):
    with pytest.raises(AnnotationError, match=r"found nothing to use, expected expressions of the split 'val'"):
        load([ref(5)])


@pytest.mark.parametrize("text", ["", "[]", "{", '{"refs": 3}', '{"images": 3, "annotations": []}', '{"images": []}'])
@pytest.mark.parametrize("file", ["refs.json", "instances.json"])
def test_other_files_are_named(tmp_path, new_name, text, file):
    (tmp_path / "refs.json").write_text(json.dumps({"refs": [ref()]}))
    (tmp_path / "instances.json").write_text(json.dumps(instances()))
    (tmp_path / file).write_text(text)
    register_refcoco(new_name, tmp_path / "refs.json", tmp_path / "instances.json", tmp_path, "val")
    with pytest.raises(AnnotationError, match=f"{file}: .*expected") as raised:
        DatasetCatalog.get(new_name)
    assert "\n" not in str(raised.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(data=st.data())
def test_any_damage_is_left_out_or_a_one_line_error(tmp_path, data):
    """Replace or remove one random value of good files; what comes out is always fit for training."""
    refs = [ref(sentences=[(1, "dog"), (2, "red dog")]), ref(72, sentences=[(3, "all")]), ref(71, 10, "train")]
    content = damaged(data, {"refs": {"refs": refs}, "coco": instances()})
    paths = {name: tmp_path / f"{name}.json" for name in content}
    for name, path in paths.items():
        path.write_text(json.dumps(content[name]))
    name = f"{tmp_path.name}_damaged"
    try:
        records = load_refcoco(str(paths["refs"]), str(paths["coco"]), str(tmp_path), "val", name)
    except AnnotationError as error:
        assert str(tmp_path) in str(error) and "\n" not in str(error) and len(str(error)) < 3000
    else:
        assert records and all(len(record["annotations"]) == 1 for record in records)
        assert len({record["image_id"] for record in records}) == len(records)
        check_dataset_dicts("damaged", records, task="grounding")
    finally:
        MetadataCatalog.pop(name, None)
