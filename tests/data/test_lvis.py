import json
import logging

import numpy as np
import pytest
from detection_cases import HEIGHT, WIDTH, make_annotation, make_content, process
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis import load_lvis_json
from detectron2.structures import BoxMode
from PIL import Image

from glipv2_d2 import add_glipv2_config, register_coco_grounding, register_lvis
from glipv2_d2.data import DetectionDatasetMapper
from glipv2_d2.data.loading import load_dataset
from glipv2_d2.evaluation.lvis_evaluator import LVISEvaluator

POLYGON = [[4, 6, 24, 6, 24, 16]]
URL = "http://images.cocodataset.org/"


def lvis_content(category_ids=(1, 2, 3)) -> dict:
    """Two images and three boxes; image 9 stands first, and of its cows not all have a box."""
    names = (["bow_(weapon)"], ["horned_cow", "bull"], ["bow_(decorative_ribbons)"])
    images = [
        {"id": 9, "coco_url": URL + "val2017/000000000009.jpg", "width": 64, "height": 48},
        {"id": 5, "coco_url": URL + "train2017/000000000005.jpg", "width": 50, "height": 50},
    ]
    images[0] |= {"neg_category_ids": [category_ids[2]], "not_exhaustive_category_ids": [category_ids[1]]}
    images[1] |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    boxes = [(9, 0, [4, 6, 20, 10]), (5, 2, [1, 2, 8.5, 16]), (5, 1, [0, 0, 9, 9])]
    return {
        "images": images,
        "annotations": [
            {"id": i, "image_id": image, "category_id": category_ids[row], "bbox": box, "segmentation": POLYGON}
            for i, (image, row, box) in enumerate(boxes, 1)
        ],
        "categories": [
            {"id": id_, "name": one[-1], "synonyms": one, "frequency": "f", "synset": "bow.n.01"}
            for id_, one in zip(category_ids, names)
        ],
    }


@pytest.fixture
def register(tmp_path, new_name):
    """A function that writes and registers annotations, and returns the name of the dataset."""

    def write(content: dict, **metadata) -> str:
        (tmp_path / "lvis.json").write_text(json.dumps(content))
        register_lvis(new_name, tmp_path / "lvis.json", tmp_path, **metadata)
        return new_name

    return write


def test_dataset_dicts_equal_those_of_detectron2(register, tmp_path):
    name = register(lvis_content())
    expected = load_lvis_json(str(tmp_path / "lvis.json"), f"{tmp_path}/")
    for record in expected:
        for item in record["annotations"]:
            item["bbox"] = BoxMode.convert(item["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
            item |= {"bbox_mode": BoxMode.XYXY_ABS, "iscrowd": 0}
    found = DatasetCatalog.get(name)
    assert [record.pop("never_negative_ids", None) for record in found] == [None, [1]]
    assert found == expected
    assert [record["image_id"] for record in found] == [5, 9] and len(found[0]["annotations"]) == 2
    assert found[1]["file_name"] == str(tmp_path / "val2017" / "000000000009.jpg")
    assert (found[1]["neg_category_ids"], found[1]["not_exhaustive_category_ids"]) == ([3], [2])


def test_names_are_those_of_the_official_code_and_ids_become_contiguous(register):
    content = lvis_content((7, 30, 12))
    name = register(content, note="from the attic")
    metadata = MetadataCatalog.get(name)
    assert (metadata.evaluator_type, metadata.task, metadata.note) == ("lvis", "detection", "from the attic")
    first, second = DatasetCatalog.get(name)
    assert metadata.thing_classes == ["bow_(weapon)", "bow_(decorative_ribbons)", "bull"]
    assert metadata.thing_dataset_id_to_contiguous_id == {7: 0, 12: 1, 30: 2}
    assert [item["category_id"] for item in first["annotations"]] == [1, 2]
    # As in the file, and as the boxes' ids.
    assert second["not_exhaustive_category_ids"] == [30] and second["never_negative_ids"] == [2]


def test_lists_of_an_image_may_be_absent_and_name_categories_that_are_not_there(register):
    content = lvis_content()
    content["images"][0]["not_exhaustive_category_ids"] = [77, 3]
    del content["images"][1]["not_exhaustive_category_ids"], content["images"][1]["neg_category_ids"]
    first, second = DatasetCatalog.get(register(content))
    assert first["not_exhaustive_category_ids"] == first["neg_category_ids"] == []
    assert second["never_negative_ids"] == [2]


@pytest.mark.parametrize(("value", "expected"), [([3], [2]), ([77], None), (None, None), ("3", None), ([[3]], None)])
def test_a_file_in_coco_format_may_have_such_lists_too(tmp_path, new_name, value, expected):
    content = lvis_content()
    for image in content["images"]:
        image["file_name"] = f"{image['id']}.jpg"
        image["not_exhaustive_category_ids"] = []
    content["images"][1]["not_exhaustive_category_ids"] = value
    (tmp_path / "coco.json").write_text(json.dumps(content))
    register_coco_grounding(new_name, tmp_path / "coco.json", tmp_path)
    first, second = DatasetCatalog.get(new_name)
    wanted = {content["images"][1]["id"]: expected}
    for record in (first, second):
        assert record.get("never_negative_ids") == wanted.get(record["image_id"])


def test_a_polygon_of_two_points_costs_its_mask_and_nothing_else(register, tmp_path, caplog, images_exist):
    content = lvis_content()
    content["annotations"][0]["segmentation"] = [[4, 6, 24, 6]]
    content["annotations"][1]["segmentation"] = [[4, 6, 24, 6], *POLYGON]
    del content["annotations"][2]["segmentation"]
    name = register(content)
    with pytest.raises(AssertionError, match="invalid polygon"):
        load_lvis_json(str(tmp_path / "lvis.json"), f"{tmp_path}/")
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        records = load_dataset(name, with_masks=True)
    masks = [[item.get("segmentation") for item in record["annotations"]] for record in records]
    assert masks == [[POLYGON, None], [None]]
    assert len([record for record in caplog.records if record.name.startswith("glipv2_d2")]) == 1
    assert "left out parts of masks (polygons without area: 1), masks (polygons without area: 1)" in caplog.text
    assert "000000000009.jpg: box 0: polygon: expected at least 3 points" in caplog.text


@pytest.mark.parametrize("expected", [100.0, 0.0])
def test_the_evaluator_reads_the_registered_file(register, expected, images_exist):
    """Contiguous ids 0, 1, 2 are the categories 7, 12, 30: found as what they are, or as the next one."""
    box, other = [8, 8, 40, 40], [60, 60, 40, 24]
    content = make_content(
        [make_annotation(1, 30, box), make_annotation(2, 7, other), make_annotation(2, 12, box)],
        images=(1, 2),
        categories=((30, "r"), (7, "c"), (12, "f")),
    )
    for image in content["images"]:
        image["coco_url"] = f"{URL}val2017/{image.pop('file_name')}"
    for category in content["categories"]:
        category["synonyms"] = [category["name"]]
    name = register(content)
    records = load_dataset(name, with_masks=True)
    assert [(record["height"], record["width"]) for record in records] == [(HEIGHT, WIDTH)] * 2
    right = {1: [(30, 0.9, box)], 2: [(7, 0.8, other), (12, 0.7, box)]}
    wrong = {1: [(7, 0.9, box)], 2: [(12, 0.8, other), (30, 0.7, box)]}
    evaluator = LVISEvaluator(name, ("bbox", "segm"), distributed=False)
    found = process(evaluator, right if expected else wrong, (7, 12, 30))
    assert set(found) == {"bbox", "segm", "bbox_fixed", "segm_fixed"}
    for result in found.values():
        assert [result[key] for key in ("AP", "APr", "APc", "APf")] == [pytest.approx(expected)] * 4


def test_training_prompts_leave_out_what_may_be_in_the_image(register, tmp_path):
    for folder, file, size in (("val2017", "000000000009.jpg", (64, 48)), ("train2017", "000000000005.jpg", (50, 50))):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(tmp_path / folder / file)
    content = lvis_content()
    content["categories"].append({"id": 4, "synonyms": ["cup"], "frequency": "f"})
    name = register(content)
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.DATASETS.TRAIN = (name,)
    mapper = DetectionDatasetMapper(cfg)
    # Image 5 has a cow and ribbons; image 9 a weapon, and perhaps cows without a box.
    for record, expected in zip(load_dataset(name), [{"bull", "bow_(decorative_ribbons)"}, {"bow_(weapon)"}]):
        phrases = [set(mapper({**record, "sample_seed": seed})["prompts"][0].phrases) for seed in range(10)]
        assert all(expected <= found <= expected | {"cup"} for found in phrases)
        assert expected | {"cup"} in phrases
