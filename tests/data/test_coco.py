import logging

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode

from glipv2_d2.data.datasets.registration import check_dataset_files
from glipv2_d2.data.datasets.value_checks import AnnotationError
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
    with pytest.raises(
        AnnotationError,
        match="boxes.json: categories: expected the 2 thing_classes .* red dog, cat..., found red dog, cat, fish",
    ):
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
    assert (f"masks of dataset {name!r}: left out masks (malformed masks: 1)" in caplog.text) == with_masks
    if with_masks:
        found = "found 'unchecked'"
        assert (
            f"102.png: box 0: segmentation: expected a list of polygons, or an object with counts, {found}"
            in caplog.text
        )
    for records in (loaded, trained):
        items = [item for record in records for item in record["annotations"]]
        assert ["segmentation" in item for item in items] == [with_masks, with_masks, False]
        assert not with_masks or items[0]["segmentation"] == POLYGON
        assert not with_masks or set(items[1]["segmentation"]) == {"size", "counts"}


def test_builtin_coco_names_say_where_they_are_expected(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="coco_2017_val.*instances_val2017.json.*DETECTRON2_DATASETS"):
        check_dataset_files("coco_2017_val")


def test_the_supercategory_of_a_name_is_its_parent(make_dataset):
    def add(content):
        for category, parent in zip(content["categories"], (" wild  animal ", "None", ["fish"]), strict=True):
            category["supercategory"] = parent

    name = make_dataset(SIZES, BOXES, edit=add)
    DatasetCatalog.get(name)
    assert MetadataCatalog.get(name).thing_parents == ["wild animal", "", ""]
    plain = make_dataset(SIZES, BOXES)
    DatasetCatalog.get(plain)
    assert MetadataCatalog.get(plain).thing_parents == ["", "", ""]
