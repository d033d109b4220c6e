"""Protocols of evaluations: how a dataset is asked for its names, and how many detections count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..structures import DetectionLimits

# Value of a key of the config that leaves the choice to the dataset.
BY_DATASET = -1

# Names of a prompt (0: as many as fit), and limits, by the ``evaluator_type`` of a dataset. The others are asked for as
# many names as fit, and keep TEST.DETECTIONS_PER_IMAGE of an image over all its prompts.
# Source: GLIPv2, App. D.2, and the official evaluation of LVIS.
_CHUNK_SIZES = {"lvis": 40}
_LIMITS = {"lvis": DetectionLimits(per_prompt=300, per_image=0)}


def chunk_size_of(cfg: CfgNode, dataset_name: str) -> int:
    """Return the most names of a prompt of a dataset at test time, 0 for as many as fit.

    ``MODEL.GLIPV2.TEST.PROMPT_CHUNK_SIZE`` decides; -1 there leaves it to ``prompt_chunk_size`` in the metadata of the
    dataset, or else to its ``evaluator_type``.
    """
    asked = cfg.MODEL.GLIPV2.TEST.PROMPT_CHUNK_SIZE
    return asked if asked != BY_DATASET else _of_dataset(dataset_name, "prompt_chunk_size", _CHUNK_SIZES.get, 0)


def limits_of(cfg: CfgNode, dataset_name: str) -> DetectionLimits:
    """Return how many detections of a prompt and of an image of a dataset are kept, 0 for all.

    ``MODEL.GLIPV2.TEST.DETECTIONS_PER_PROMPT`` and ``TEST.DETECTIONS_PER_IMAGE`` decide; -1 in the first of them leaves
    both to ``detection_limits`` in the metadata of the dataset, or else to its ``evaluator_type``.
    """
    per_prompt, per_image = cfg.MODEL.GLIPV2.TEST.DETECTIONS_PER_PROMPT, cfg.TEST.DETECTIONS_PER_IMAGE
    if per_prompt != BY_DATASET:
        return DetectionLimits(per_prompt, per_image)
    return DetectionLimits(*_of_dataset(dataset_name, "detection_limits", _LIMITS.get, DetectionLimits(0, per_image)))


def _of_dataset(dataset_name: str, field: str, by_type: Callable[..., Any], default: Any) -> Any:
    metadata = MetadataCatalog.get(dataset_name)
    return metadata.get(field, by_type(metadata.get("evaluator_type"), default))
