import copy
import json
import logging
import math
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glipv2_d2.data.datasets.annotation_checks import AnnotationError, check_dataset_dicts
from glipv2_d2.data.datasets.coco import check_dataset_files, load_coco_grounding, register_coco_grounding
from glipv2_d2.data.loading import load_dataset, load_training_dicts

SIZES = [(64, 48), (48, 64), (50, 50)]
BOXES = [[[0, 4, 6, 20, 10], [2, 30, 20, 8.5, 16]], [], [[1, 0, 0, 50, 50]]]


def test_dataset_dicts_equal_those_of_detectron2(make_dataset):
    name = make_dataset(SIZES, BOXES)
    metadata = MetadataCatalog.get(name)
    expected = load_coco_json(metadata.json_file, metadata.image_root)
    for record in expected:
        for item in record["annotations"]:
            item["bbox"] = BoxMode.convert(item["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
            item["bbox_mode"] = BoxMode.XYXY_ABS
            item["category_id"] = item["category_id"] // 10 - 1
    assert DatasetCatalog.get(name) == expected
    assert [len(record["annotations"]) for record in expected] == [2, 0, 1]


def test_loading_fills_the_metadata(make_dataset):
    name = make_dataset(SIZES, BOXES, note="from the attic")
    metadata = MetadataCatalog.get(name)
    assert (metadata.evaluator_type, metadata.task, metadata.note) == ("coco", "detection", "from the attic")
    assert metadata.get("thing_classes") is None
    DatasetCatalog.get(name)
    DatasetCatalog.get(name)
    assert metadata.thing_classes == ["red dog", "cat", "fish"]
    assert metadata.thing_dataset_id_to_contiguous_id == {10: 0, 20: 1, 30: 2}


def test_ids_in_any_order_become_ascending(make_dataset):
    def shuffle(content):
        content["categories"].reverse()
        content["images"].reverse()

    name = make_dataset(SIZES, BOXES, edit=shuffle)
    records = DatasetCatalog.get(name)
    assert MetadataCatalog.get(name).thing_classes == ["red dog", "cat", "fish"]
    assert [record["image_id"] for record in records] == [100, 101, 102]
    assert [item["category_id"] for item in records[0]["annotations"]] == [0, 2]


def test_metadata_can_be_given_and_must_agree(make_dataset):
    DatasetCatalog.get(make_dataset(SIZES, BOXES, evaluator_type="mine", thing_classes=["red dog", "cat", "fish"]))
    with pytest.raises(AnnotationError, match="boxes.json: categories are red dog, cat, fish.*thing_classes"):
        DatasetCatalog.get(make_dataset(SIZES, BOXES, thing_classes=["red dog", "cat"]))


def test_crowds_are_marked(make_dataset):
    name = make_dataset(SIZES, BOXES, edit=lambda content: content["annotations"][1].update(iscrowd=1))
    assert [item["iscrowd"] for item in DatasetCatalog.get(name)[0]["annotations"]] == [0, 1]


POLYGON = [[4, 6, 24, 6, 24, 16]]
RUNS = {"size": [48, 64], "counts": [100, 48 * 64 - 100]}


def test_masks_are_carried_along_as_they_are(make_dataset):
    def add_masks(content):
        for item, mask in zip(content["annotations"], (POLYGON, RUNS, [], None, "unchecked")):
            item["segmentation"] = mask

    # The second box has no area, and must not take its mask to another.
    one = [0, 1, 1, 5, 5]
    boxes = [[[0, 4, 6, 20, 10], [0, 4, 6, 0, 10], one], [one, one], [one]]
    records = DatasetCatalog.get(make_dataset(SIZES, boxes, edit=add_masks))
    masks = [[item.get("segmentation", "none") for item in record["annotations"]] for record in records]
    assert masks == [[POLYGON, "none"], ["none", "unchecked"], ["none"]]


@pytest.mark.parametrize("with_masks", [True, False])
def test_a_dataset_is_loaded_with_the_masks_that_can_be_used_or_with_none(make_dataset, caplog, with_masks):
    def add_masks(content):
        for item, mask in zip(content["annotations"], (POLYGON, RUNS, "unchecked")):
            item["segmentation"] = mask

    name = make_dataset(SIZES, BOXES, edit=add_masks)
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        loaded = load_dataset(name, with_masks=with_masks)
        trained = load_training_dicts(name, filter_empty=True, with_masks=with_masks)
    assert ("left out 1 masks (" in caplog.text) == with_masks
    if with_masks:
        assert f"dataset {name!r}: left out 1 masks (" in caplog.text
        assert "102.png: box 0: segmentation is 'unchecked', expected a list of polygons" in caplog.text
    for records in (loaded, trained):
        items = [item for record in records for item in record["annotations"]]
        assert ["segmentation" in item for item in items] == [with_masks, with_masks, False]
        assert not with_masks or items[0]["segmentation"] == POLYGON
        assert not with_masks or set(items[1]["segmentation"]) == {"size", "counts"}


def test_small_overhang_is_cut_and_empty_boxes_go(make_dataset, caplog):
    boxes = [[[0, -0.5, 6, 20, 43], [1, 4, 4, 0, 10]], [], [[1, 1, 1, 49, 50], [2, 50, 3, 1, 4], [0, 1, 1, 5, 5]]]
    name = make_dataset(SIZES, boxes)
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        records = DatasetCatalog.get(name)
    assert [item["bbox"] for item in records[0]["annotations"]] == [[0, 6, 19.5, 48]]
    assert [item["bbox"] for item in records[2]["annotations"]] == [[1, 1, 50, 50], [1, 1, 6, 6]]
    assert len(caplog.records) == 1
    assert "cut 2 boxes that reach past their image, left out 2 boxes without area" in caplog.text


def test_clip_boxes_cuts_any_overhang_but_not_boxes_outside(make_dataset):
    name = make_dataset(SIZES, [[[0, -30, 6, 60, 90]], [], []], clip_boxes=True)
    assert DatasetCatalog.get(name)[0]["annotations"][0]["bbox"] == [0, 6, 30, 48]
    with pytest.raises(AnnotationError, match="inside its image of 64 x 48 pixels"):
        DatasetCatalog.get(make_dataset(SIZES, [[[0, 70, 6, 60, 90]], [], []], clip_boxes=True))


def test_a_file_that_cannot_be_evaluated_is_warned_of(make_dataset, caplog):
    def strip(content):
        del content["annotations"][0]["area"], content["annotations"][1]["iscrowd"]

    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        DatasetCatalog.get(make_dataset(SIZES, BOXES, edit=strip))
    assert "2 annotations lack 'area' or 'iscrowd'" in caplog.text


def change(kind, index, **fields):
    return lambda content: content[kind][index].update(fields)


def without(kind, index, field):
    return lambda content: content[kind][index].pop(field)


BROKEN = {
    "no images": (lambda content: content.pop("images"), "images is None, expected a list"),
    "no annotations": (lambda content: content.pop("annotations"), "annotations is None, expected a list"),
    "no categories": (lambda content: content.pop("categories"), "categories is None, expected a list"),
    "empty images": (lambda content: content["images"].clear(), r"images is \[\], expected at least one"),
    "empty categories": (lambda content: content["categories"].clear(), r"categories is \[\], expected at least"),
    "number as entry": (lambda content: content["images"].append(7), r"images\[3\] is 7, expected an object"),
    "image twice": (change("images", 1, id=100), r"images\[1\]: id is 100, expected an id that no other"),
    "annotation twice": (change("annotations", 2, id=1000), r"annotations\[2\]: id is 1000, expected an id that"),
    "category twice": (change("categories", 2, id=10), r"categories\[2\]: id is 10, expected an id that no other"),
    "name twice": (change("categories", 2, name="cat"), r"categories\[2\] \(id 30\): name is 'cat', expected a name"),
    "empty name": (change("categories", 2, name=" "), r"name is ' ', expected a string"),
    "number as name": (change("categories", 2, name=3), r"name is 3, expected a string"),
    "half a character": (change("categories", 2, name="a\ud800"), r"name is 'a\\ud800', expected a string"),
    "string id": (change("annotations", 0, id="7"), r"annotations\[0\]: id is '7', expected an integer"),
    "true as id": (change("images", 0, id=True), r"images\[0\]: id is True, expected an integer"),
    "id without end": (change("images", 0, id=10**40), r"images\[0\]: id is 1000.*, expected an integer"),
    "no file name": (without("images", 1, "file_name"), r"images\[1\] \(id 101\): file_name is None, expected"),
    "no width": (without("images", 1, "width"), r"images\[1\] \(id 101\): width is None, expected a positive integer"),
    "no height": (change("images", 1, height=0), r"height is 0, expected a positive integer"),
    "unknown image": (change("annotations", 1, image_id=7), r"\(id 1001\): image_id is 7, expected an id that stands"),
    "unknown category": (change("annotations", 1, category_id=1), r"category_id is 1, expected .* in categories"),
    "list as category": (change("annotations", 1, category_id=[10]), r"category_id is \[10\], expected"),
    "crowd of two": (change("annotations", 1, iscrowd=2), r"iscrowd is 2, expected 0 or 1"),
    "box to ignore": (change("annotations", 1, ignore=1), r"ignore is 1, expected 0 .*iscrowd"),
    "no box": (without("annotations", 1, "bbox"), r"bbox is None, expected four finite numbers"),
    "three numbers": (change("annotations", 1, bbox=[1, 2, 3]), r"bbox is \[1, 2, 3\], expected four finite numbers"),
    "string in box": (change("annotations", 1, bbox=[1, 2, 3, "4"]), r"bbox is .*'4'\], expected four finite numbers"),
    "true in box": (change("annotations", 1, bbox=[1, 2, 3, True]), r"bbox is .*True\], expected four finite numbers"),
    "nan": (change("annotations", 1, bbox=[1, math.nan, 3, 4]), r"bbox is \[1, nan, 3, 4\], expected four finite"),
    "infinity": (change("annotations", 1, bbox=[1, 2, math.inf, 4]), r"bbox is .* inf, 4\], expected four finite"),
    "huge": (change("annotations", 1, bbox=[1, 2, 3, 10**400]), r"bbox is .*, expected four finite numbers"),
    "inverted": (change("annotations", 1, bbox=[9, 9, -3, 4]), r"bbox is .* -3, 4\], expected width and height >="),
    "outside": (change("annotations", 1, bbox=[65.5, 1, 3, 4]), r"expected .* inside its image.* of 64 x 48 pixels"),
    "above": (change("annotations", 1, bbox=[1, -9, 3, 4]), r"bbox is \[1, -9, 3, 4\], expected .* inside its image"),
    "too wide": (change("annotations", 1, bbox=[1, 1, 64.5, 4]), r"inside its image, up to one pixel .*clip_boxes"),
    "too high": (change("annotations", 2, bbox=[1, 1, 4, 50.5]), r"up to one pixel .* of 50 x 50 pixels"),
}


@pytest.mark.parametrize("edit, message", BROKEN.values(), ids=BROKEN)
def test_broken_files_name_file_entry_field_and_value(make_dataset, edit, message):
    name = make_dataset(SIZES, BOXES, edit=edit)
    with pytest.raises(AnnotationError, match="boxes.json.*" + message) as raised:
        DatasetCatalog.get(name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"images": [', "null", "\ufeff{}", "[" * 100_000])
def test_files_that_hold_no_object_are_named(make_dataset, text):
    name = make_dataset(SIZES, BOXES)
    Path(MetadataCatalog.get(name).json_file).write_text(text, encoding="utf-8")
    with pytest.raises(AnnotationError, match="boxes.json: .*expected") as raised:
        DatasetCatalog.get(name)
    assert "\n" not in str(raised.value)


def test_binary_file_is_named(make_dataset):
    name = make_dataset(SIZES, BOXES)
    Path(MetadataCatalog.get(name).json_file).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AnnotationError, match="boxes.json: .*expected a json file"):
        DatasetCatalog.get(name)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.integers(0, 110),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.sampled_from(["id", "bbox"]), values, max_size=2),
    max_leaves=6,
)


@pytest.fixture
def good_dataset(make_dataset):
    return make_dataset(SIZES, BOXES)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(data=st.data())
def test_any_damage_is_either_harmless_or_a_one_line_error(good_dataset, data):
    """Replace or remove one random value of a good file; what is accepted holds proper boxes only."""
    metadata = MetadataCatalog.get(good_dataset)
    content = json.loads(Path(metadata.json_file).read_text())
    owner, key = content, data.draw(st.sampled_from(sorted(content)))
    while isinstance(owner[key], (dict, list)) and owner[key] and data.draw(st.integers(0, 4)):
        owner = owner[key]
        key = data.draw(st.sampled_from(sorted(owner) if isinstance(owner, dict) else range(len(owner))))
    if data.draw(st.booleans()):
        del owner[key]
    else:
        owner[key] = data.draw(json_values)
    damaged = Path(metadata.image_root) / "damaged.json"
    damaged.write_text(json.dumps(content))
    fresh = f"{good_dataset}_damaged"
    try:
        records = load_coco_grounding(str(damaged), metadata.image_root, fresh)
    except AnnotationError as error:
        assert str(damaged) in str(error) and "\n" not in str(error) and len(str(error)) < 1000
    else:
        for record in records:
            for item in record["annotations"]:
                left, top, right, bottom = item["bbox"]
                assert 0 <= left < right <= record["width"] and 0 <= top < bottom <= record["height"]
                assert 0 <= item["category_id"] < len(MetadataCatalog.get(fresh).thing_classes)
    finally:
        MetadataCatalog.pop(fresh, None)


def test_missing_paths_are_named_with_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data/sets")
    name = f"{tmp_path.name}_missing"
    register_coco_grounding(name, tmp_path / "none.json", tmp_path / "none")
    try:
        with pytest.raises(FileNotFoundError, match=f"{name}.*json_file .*none.json .*DETECTRON2_DATASETS.*/data/sets"):
            DatasetCatalog.get(name)
        (tmp_path / "none.json").write_text("{}")
        with pytest.raises(FileNotFoundError, match="image_root .*none does not exist"):
            check_dataset_files(name)
        with pytest.raises(ValueError, match="registered already"):
            register_coco_grounding(name, "a.json", "b")
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_builtin_coco_names_say_where_they_are_expected(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="coco_2017_val.*instances_val2017.json.*DETECTRON2_DATASETS"):
        check_dataset_files("coco_2017_val")


GOOD_RECORD = {
    "file_name": "a.png",
    "width": 64,
    "height": 48,
    "annotations": [{"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}],
}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("bbox", [1, 2, math.nan, 4], "bbox is .*nan"),
        ("bbox", [1, 2, -1, 4], "bbox is .*sides >= 0"),
        ("bbox", [70, 2, 3, 4], "bbox is .*inside its image"),
        ("bbox", [1, 2, 3, 4, 30], "bbox is .*, expected four numbers"),
        ("bbox_mode", BoxMode.XYWHA_ABS, "bbox_mode is .*, expected XYXY_ABS or XYWH_ABS"),
        ("category_id", 2, "category_id is 2, expected a number from 0 to 1"),
        ("category_id", -1, "category_id is -1"),
    ],
)
def test_dicts_of_other_readers_are_checked(field, value, message):
    check_dataset_dicts("mine", [GOOD_RECORD], num_classes=2)
    record = copy.deepcopy(GOOD_RECORD)
    record["annotations"][0][field] = value
    with pytest.raises(AnnotationError, match=f"'mine': a.png: {message}"):
        check_dataset_dicts("mine", [GOOD_RECORD, record], num_classes=2)


def test_dicts_without_size_are_an_error():
    with pytest.raises(AnnotationError, match="lacks 'width'"):
        check_dataset_dicts("mine", [{"file_name": "a.png", "height": 4}], num_classes=2)
    check_dataset_dicts("mine", [{"file_name": "a.png", "width": 4, "height": 4}], num_classes=0)
