import json

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

from glipv2_d2 import register_coco_grounding
from glipv2_d2.evaluation import build_evaluator


@pytest.fixture
def dataset(tmp_path):
    """Two images, one box of category 5 and one of category 9."""
    json_file = tmp_path / "annotations.json"
    content = {
        "images": [{"id": k, "file_name": f"{k}.png", "height": 100, "width": 100} for k in (1, 2)],
        "categories": [{"id": 5, "name": "cup"}, {"id": 9, "name": "dog"}],
        "annotations": [
            {"id": k, "image_id": k, "category_id": c, "bbox": [10, 10, 40, 40], "area": 1600, "iscrowd": 0}
            for k, c in ((1, 5), (2, 9))
        ],
    }
    json_file.write_text(json.dumps(content))
    register_coco_grounding("evaluated", json_file, tmp_path)
    DatasetCatalog.get("evaluated")
    yield "evaluated"
    DatasetCatalog.remove("evaluated")
    MetadataCatalog.remove("evaluated")


def evaluate(evaluator, predicted_classes):
    evaluator.reset()
    for image_id, predicted_class in zip((1, 2), predicted_classes):
        instances = Instances((100, 100))
        instances.pred_boxes = Boxes(torch.tensor([[10.0, 10.0, 50.0, 50.0]]))
        instances.scores = torch.tensor([0.9])
        instances.pred_classes = torch.tensor([predicted_class])
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]["AP50"]


@pytest.mark.parametrize("predicted_classes, expected", [((0, 1), 100.0), ((1, 0), 0.0)])
def test_coco_dataset_is_scored_by_box_ap(dataset, tmp_path, predicted_classes, expected):
    evaluator = build_evaluator(get_cfg(), dataset, str(tmp_path / "out"))
    assert evaluate(evaluator, predicted_classes) == pytest.approx(expected)
    assert (tmp_path / "out" / "coco_instances_results.json").is_file()


def test_predictions_go_to_a_folder_per_dataset(dataset, tmp_path):
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    evaluate(build_evaluator(cfg, dataset), (0, 1))
    assert (tmp_path / "inference" / "evaluated" / "coco_instances_results.json").is_file()


def test_unknown_evaluator_type_names_the_dataset(dataset):
    metadata = MetadataCatalog.get(dataset)
    del metadata.evaluator_type
    metadata.evaluator_type = "sem_seg"
    with pytest.raises(ValueError, match="'evaluated'.*'sem_seg'"):
        build_evaluator(get_cfg(), dataset)
