"""From the ``evaluator_type`` of a dataset to its evaluator."""

from __future__ import annotations

import logging
import os

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from ..data.dataset_mappers.build import mapper_of
from ..data.loading import LoadedDataset, check_is_available
from ..errors import InputError
from ..prompts.answers import AnswerVocabulary
from ..prompts.tokenizer import PromptTokenizer
from .ap_engine import COCO_LIMIT
from .captioning import CaptioningEvaluator
from .coco_evaluator import COCOInstanceEvaluator
from .flickr30k import Flickr30kEvaluator
from .grounded_captioning import GroundedCaptioningEvaluator
from .lvis_evaluator import LVISEvaluator
from .referring import ReferringEvaluator
from .vqa import VQAEvaluator


def build_coco_evaluator(cfg: CfgNode, dataset: LoadedDataset, output_folder: str) -> DatasetEvaluator:
    """Build the evaluator of COCO's AP of boxes and, if the model has masks, of masks."""
    return COCOInstanceEvaluator(
        dataset.name,
        _tasks(cfg),
        output_folder,
        dataset.truth,
        cfg.TEST.EVALUATION_ENGINE,
        mask_threads=cfg.DATALOADER.NUM_WORKERS,
        limit=_counted_detections(cfg, dataset.name),
    )


def build_lvis_evaluator(cfg: CfgNode, dataset: LoadedDataset, output_folder: str) -> DatasetEvaluator:
    """Build the evaluator of LVIS's AP of boxes and, if the model has masks, of masks, by ``TEST.LVIS_*``."""
    return LVISEvaluator(
        dataset.name,
        _tasks(cfg),
        cfg.TEST.LVIS_PROTOCOLS,
        boxes=cfg.TEST.LVIS_BOXES,
        output_folder=output_folder,
        truth=dataset.truth,
        engine=cfg.TEST.EVALUATION_ENGINE,
        mask_threads=cfg.DATALOADER.NUM_WORKERS,
    )


def build_referring_evaluator(cfg: CfgNode, dataset: LoadedDataset, output_folder: str) -> DatasetEvaluator:
    """Build the evaluator of referring phrases."""
    return ReferringEvaluator(
        dataset.name,
        dataset.dicts,
        MetadataCatalog.get(dataset.name).evaluator_type,
        score_thresh=cfg.MODEL.GLIPV2.TEST.REFERRING_THRESH,
        with_masks=cfg.MODEL.MASK_ON,
        output_folder=output_folder,
    )


def build_flickr30k_evaluator(cfg: CfgNode, dataset: LoadedDataset, output_folder: str) -> DatasetEvaluator:
    """Build the evaluator of the phrases of captions."""
    return Flickr30kEvaluator(dataset.name, dataset.dicts, output_folder=output_folder)


def build_vqa_evaluator(cfg: CfgNode, dataset: LoadedDataset, output_folder: str) -> DatasetEvaluator:
    """Build the evaluator of answers to questions, with the answers of ``MODEL.GLIPV2.VQA.ANSWERS``."""
    answers = AnswerVocabulary.from_config(cfg).answers
    return VQAEvaluator(dataset.name, dataset.dicts, answers, output_folder=output_folder)


def build_captioning_evaluator(cfg: CfgNode, dataset: LoadedDataset, output_folder: str) -> DatasetEvaluator:
    """Build the evaluator of captions and, if both data and model have boxes, of the boxes of their words."""
    metadata = MetadataCatalog.get(dataset.name)
    is_grounded = metadata.evaluator_type == "grounded_captioning" and cfg.MODEL.GLIPV2.CAPTIONING.GROUNDED
    evaluator = GroundedCaptioningEvaluator if is_grounded else CaptioningEvaluator
    return evaluator(
        dataset.name,
        dataset.dicts,
        PromptTokenizer.from_config(cfg).decode,
        thing_classes=metadata.get("thing_classes"),
        output_folder=output_folder,
    )


EVALUATORS = {
    "coco": build_coco_evaluator,
    "lvis": build_lvis_evaluator,
    "phrasecut": build_referring_evaluator,
    "refcoco": build_referring_evaluator,
    "flickr30k": build_flickr30k_evaluator,
    "vqa": build_vqa_evaluator,
    "captioning": build_captioning_evaluator,
    "grounded_captioning": build_captioning_evaluator,
}


def build_evaluator(cfg: CfgNode, dataset: LoadedDataset, output_folder: str | None = None) -> DatasetEvaluator:
    """Build the evaluator of a dataset; of detection data without an ``evaluator_type``, that of COCO.

    Args:
        cfg: The config.
        dataset: A dataset that ``load_test_dataset`` has read.
        output_folder: Folder of the predictions; None: a folder per dataset in ``OUTPUT_DIR/inference``.

    Raises:
        InputError: The ``evaluator_type`` of the dataset is missing or unknown.
    """
    default = "coco" if mapper_of(dataset.name).has_category_names else None
    evaluator_type = MetadataCatalog.get(dataset.name).get("evaluator_type", default)
    if evaluator_type not in EVALUATORS:
        raise InputError(
            f"dataset {dataset.name!r}: expected an evaluator_type among {sorted(EVALUATORS)} in its metadata, "
            f"found {evaluator_type!r}"
        )
    folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset.name) if output_folder is None else output_folder
    return EVALUATORS[evaluator_type](cfg, dataset, folder)


def check_test_data(cfg: CfgNode) -> None:
    """Check before any image is run that the data of all ``DATASETS.TEST`` are there.

    Of several datasets those without data are a warning each, since the others can be evaluated.

    Raises:
        InputError: A dataset is not registered.
        FileNotFoundError: Annotations or images are not there, of any of them.
    """
    missing = []
    for name in cfg.DATASETS.TEST:
        try:
            check_is_available(name)
        except FileNotFoundError as error:
            missing.append(error)
            if len(missing) == len(cfg.DATASETS.TEST):
                raise missing[0] from None
            logging.getLogger(__name__).warning("%s", error)


def _counted_detections(cfg: CfgNode, name: str) -> int:
    """Return COCO's limit of detections of an image and class, or for an own set that of an image where it is higher.

    Tables of public data keep COCO's, whatever the model gives.
    """
    is_own = MetadataCatalog.get(name).get("own_source") is not None
    return max(COCO_LIMIT, cfg.TEST.DETECTIONS_PER_IMAGE) if is_own else COCO_LIMIT


def _tasks(cfg: CfgNode) -> tuple[str, ...]:
    return ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
