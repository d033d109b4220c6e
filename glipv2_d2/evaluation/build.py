"""From the ``evaluator_type`` of a dataset to its evaluator."""

from __future__ import annotations

import os

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from ..data.training_dicts import load_dataset
from .coco_evaluator import COCOInstanceEvaluator
from .referring import ReferringEvaluator


def build_coco_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    """Build the evaluator of COCO's AP of boxes and, if the model has masks, of masks."""
    return COCOInstanceEvaluator(dataset_name, _tasks(cfg), output_folder)


def build_lvis_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    """Build the evaluator of LVIS's AP of boxes and, if the model has masks, of masks, by ``TEST.LVIS_PROTOCOLS``."""
    # Not before it is needed: the import of lvis configures the root logger, and imports OpenCV and matplotlib.
    from .lvis_evaluator import LVISEvaluator

    return LVISEvaluator(dataset_name, _tasks(cfg), cfg.TEST.LVIS_PROTOCOLS, output_folder=output_folder)


def build_referring_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    """Build the evaluator of phrases that refer to something in their image."""
    with_masks = cfg.MODEL.MASK_ON
    return ReferringEvaluator(
        dataset_name,
        load_dataset(dataset_name, with_masks=with_masks),
        MetadataCatalog.get(dataset_name).evaluator_type,
        score_thresh=cfg.MODEL.GLIPV2.TEST.REFERRING_THRESH,
        with_masks=with_masks,
        output_folder=output_folder,
    )


EVALUATORS = {
    "coco": build_coco_evaluator,
    "lvis": build_lvis_evaluator,
    "phrasecut": build_referring_evaluator,
    "refcoco": build_referring_evaluator,
}


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
    return EVALUATORS[evaluator_type](cfg, dataset_name, folder)


def _tasks(cfg: CfgNode) -> tuple[str, ...]:
    return ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
