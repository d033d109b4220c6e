import copy
import json
import pickle
import sys

import numpy as np
import pytest
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools import mask as mask_utils

from glipv2_d2.colored_text import phrase_color
from glipv2_d2.engine.detections import Detections
from glipv2_d2.visualizer import GroundingVisualizer

BOXES = [[1.0, 2.0, 11.126, 12.0], [0.0, 0.0, 5.0, 5.0], [10.0, 4.0, 24.0, 16.0]]


def make_result(with_masks=False, source=None):
    instances = Instances((20, 30))
    instances.pred_boxes = Boxes(torch.tensor(BOXES))
    instances.scores = torch.tensor([0.75, 0.4, 0.5])
    instances.pred_classes = torch.tensor([1, 0, 1])
    if with_masks:
        instances.pred_masks = torch.zeros(3, 20, 30, dtype=torch.bool)
        for k, (left, top, right, bottom) in enumerate(BOXES):
            instances.pred_masks[k, int(top) : int(bottom), int(left) : int(right)] = True
    return Detections({"instances": instances, "phrases": ["cat", "dog"]}, source)


def empty_result():
    return make_result().above(1.0)


def test_it_is_the_dict_of_before():
    result = make_result()
    assert isinstance(result, dict) and list(result) == ["instances", "phrases"]
    assert result.error is None and {**result}.keys() == result.keys()


def test_plain_types_for_json():
    content = json.loads(json.dumps(make_result(source="a.jpg").to_json()))
    assert content == {
        "source": "a.jpg",
        "height": 20,
        "width": 30,
        "detections": [
            {"phrase": "dog", "score": 0.75, "box": [1.0, 2.0, 11.13, 12.0]},
            {"phrase": "cat", "score": 0.4, "box": [0.0, 0.0, 5.0, 5.0]},
            {"phrase": "dog", "score": 0.5, "box": [10.0, 4.0, 24.0, 16.0]},
        ],
    }
    assert empty_result().to_json() == {"source": None, "height": 20, "width": 30, "detections": []}


@pytest.mark.parametrize("with_masks", [False, True])
def test_coco_results_are_those_of_detectron2(with_masks):
    result = make_result(with_masks)
    expected = instances_to_coco_json(result["instances"], 7)
    for entry in expected:
        entry["category_id"] += 1
    assert json.loads(json.dumps(result.to_coco(7))) == json.loads(json.dumps(expected))
    if with_masks:
        assert mask_utils.area(result.to_coco(7)[2]["segmentation"]) == 14 * 12


@pytest.mark.parametrize("ids", [[3, 90], {"dog": 90, "cat": 3}])
def test_categories_have_the_ids_that_are_given(ids):
    assert [entry["category_id"] for entry in make_result().to_coco(1, ids)] == [90, 3, 90]
    assert empty_result().to_coco(1, ids) == []


@pytest.mark.parametrize("ids", [[3], {"cat": 3}])
def test_a_phrase_without_an_id_is_named(ids):
    with pytest.raises(ValueError, match="category_ids: expected an id for 'dog', found none"):
        make_result().to_coco(1, ids)


def test_supervision_has_boxes_scores_rows_and_names():
    supervision = pytest.importorskip("supervision")
    found = make_result(with_masks=True).to_supervision()
    assert isinstance(found, supervision.Detections)
    np.testing.assert_array_equal(found.xyxy, np.array(BOXES, np.float32))
    assert found.class_id.tolist() == [1, 0, 1] and found.data["class_name"].tolist() == ["dog", "cat", "dog"]
    np.testing.assert_allclose(found.confidence, [0.75, 0.4, 0.5])
    assert found.mask.shape == (3, 20, 30) and found.mask[1].sum() == 25
    empty = empty_result().to_supervision()
    assert len(empty) == 0 and empty.data["class_name"].tolist() == []


def test_without_supervision_the_way_out_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ValueError, match="expected the package supervision, found none; pip install supervision"):
        make_result().to_supervision()


def test_drawing_is_that_of_the_visualizer(tmp_path):
    image = np.full((20, 30, 3), (90, 100, 110), np.uint8)
    result = make_result()
    expected = GroundingVisualizer(image[:, :, ::-1]).draw_predictions(result["instances"], ["cat", "dog"])
    assert (np.asarray(result.draw(image)) == expected).all()
    assert (np.asarray(result.draw(image[:, :, ::-1], channel_order="RGB")) == expected).all()
    assert (expected == phrase_color(1)).all(axis=2).any()
    result.save(tmp_path / "drawn.png", image)
    assert (np.asarray(Image.open(tmp_path / "drawn.png")) == expected).all()
    # A result of a file finds the image itself.
    Image.fromarray(image[:, :, ::-1]).save(tmp_path / "photo.png")
    assert (np.asarray(make_result(source=str(tmp_path / "photo.png")).draw()) == expected).all()


def test_wrong_drawings_are_named(tmp_path):
    with pytest.raises(ValueError, match="draw: expected the image"):
        make_result().draw()
    with pytest.raises(ValueError, match=r"draw: expected an image of \(20, 30\), found \(4, 4\)"):
        make_result().draw(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="save: expected a path that ends as .png"):
        make_result().save(tmp_path / "drawn.txt", np.zeros((20, 30, 3), np.uint8))
    # Pillow reads it and cannot write it.
    with pytest.raises(ValueError, match="save: expected a path that ends as .png"):
        make_result().save(tmp_path / "drawn.psd", np.zeros((20, 30, 3), np.uint8))


def test_scores_and_numbers_are_limited():
    result = make_result(source="a.jpg")
    assert result.above(0.5).to_json()["detections"] == [result.to_json()["detections"][k] for k in (0, 2)]
    assert result.best(2)["instances"].scores.tolist() == [0.75, 0.5] and result.best(2).source == "a.jpg"
    assert len(result.best(9)["instances"]) == 3 and len(result.best(0)["instances"]) == 0


def test_a_failed_image_is_an_empty_result_with_its_reason():
    result = Detections.failed("images[3]: a.jpg: broken", ["cat"], "a.jpg")
    assert result.error == "images[3]: a.jpg: broken" and len(result["instances"]) == 0
    assert result.to_coco(1) == [] and result.to_json()["error"] == result.error


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda result: pickle.loads(pickle.dumps(result))])
def test_results_can_be_copied_and_pickled(copied):
    result = make_result(with_masks=True, source="a.jpg")
    other = copied(result)
    assert type(other) is Detections and other.source == "a.jpg"
    assert other.to_json() == result.to_json()
