"""From the ``evaluator_type`` of a dataset to its evaluator."""

from __future__ import annotations

import os

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator


def build_coco_evaluator(dataset_name: str, output_folder: str) -> DatasetEvaluator:
    """Build detectron2's evaluator of box AP, which counts the best 100 detections of an image."""
    return COCOEvaluator(dataset_name, tasks=("bbox",), output_dir=output_folder)


EVALUATORS = {"coco": build_coco_evaluator}


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
    """Build the evaluator of a registered dataset.

    Args:
        output_folder: Where predictions are written; None: a folder per dataset in ``OUTPUT_DIR/inference``.

    Raises:
        ValueError: The metadata of the dataset name no known ``evaluator_type``.
    """
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if evaluator_type not in EVALUATORS:
        raise ValueError(
            f"dataset {dataset_name!r}: expected an evaluator_type among {sorted(EVALUATORS)} in its metadata, "
            f"found {evaluator_type!r}"
        )
    folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name) if output_folder is None else output_folder
    return EVALUATORS[evaluator_type](dataset_name, folder)
