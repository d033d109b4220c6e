"""Predicted masks as evaluators need them: checked against their image, and run-length encoded."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from pycocotools import mask as mask_utils
from torch import Tensor

from ..errors import InputError


def checked_masks(instances: Instances, sample: dict[str, Any]) -> Tensor:
    """Return the masks of the detections of one image.

    Args:
        sample: Its model input, with ``image_id``, ``height`` and ``width``.

    Returns:
        (K, H, W) bool, H and W those of the original image.

    Raises:
        InputError: There are no masks, or they are not of the size of the original image.
    """
    where = f"image {sample['image_id']!r}"
    if not instances.has("pred_masks"):
        raise InputError(
            f"{where}: found instances without pred_masks, expected masks, since masks are evaluated (MODEL.MASK_ON)"
        )
    masks = instances.pred_masks
    expected = (len(instances), sample["height"], sample["width"])
    if tuple(masks.shape) != expected or masks.dtype != torch.bool:
        raise InputError(
            f"{where}: pred_masks are {masks.dtype} of shape {tuple(masks.shape)}, "
            f"expected torch.bool of shape {expected}, the size of the original image"
        )
    return masks


def encode_masks(masks: Tensor) -> list[bytes]:
    """Encode masks as COCO's compressed run lengths.

    Args:
        masks: (K, H, W) bool.

    Returns:
        The ``counts`` of K masks; ``size`` is [H, W].
    """
    # One after the other: the encoder wants columns, and a turned copy of all masks would double the memory.
    return [mask_utils.encode(np.asfortranarray(mask))["counts"] for mask in masks.cpu().numpy().view(np.uint8)]
