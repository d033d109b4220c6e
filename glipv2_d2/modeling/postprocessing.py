"""From the pixels of the network's input to those of the original image: boxes, masks and detections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..device_copies import instances_to_device
from .box_regression import scale_boxes_legacy


def original_size(inputs: Mapping[str, Any], image_size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of the original image; those of the network's input if the model input lacks them."""
    height, width = (inputs.get(key) or side for key, side in zip(("height", "width"), image_size, strict=True))
    return height, width


def rescale_boxes(boxes: Tensor, image_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Move boxes (..., 4) XYXY from an image of ``image_size`` to one of ``size``, both (height, width) in pixels.

    Source: ``BoxList.resize`` of the official code, which multiplies corner pixels, not edges.
    """
    scaled = scale_boxes_legacy(boxes.flatten(0, -2), size[1] / image_size[1], size[0] / image_size[0])
    return scaled.view_as(boxes)


def finish_instances(
    detections: Sequence[Instances], sizes: Sequence[tuple[int, int]], device: torch.device, mask_thresh: float
) -> list[Instances]:
    """Move detections of N images to the pixels of the original ones, and the results to a device in one copy.

    Args:
        detections: N images, on the CPU but for ``mask_probabilities``, (K, S, S) in the frames of their boxes, which
            become ``pred_masks``, (K, height, width) bool.
        sizes: Height and width of the N original images.
        device: Where to.
        mask_thresh: Probability from which on a pixel belongs to a mask.
    """
    scaled = [rescale_instances(one, size) for one, size in zip(detections, sizes, strict=True)]
    results = instances_to_device(scaled, device)
    for result, one, size in zip(results, detections, sizes, strict=True):
        if one.has("mask_probabilities"):
            result.pred_masks = paste_masks(one.mask_probabilities, result.pred_boxes.tensor, size, mask_thresh)
    return results


def rescale_instances(instances: Instances, size: tuple[int, int]) -> Instances:
    """Move boxes from the pixels of the network's input to those of the original image; masks are left out.

    Args:
        instances: Detections with ``image_size`` of the network's input.
        size: Height and width of the original image.
    """
    fields = dict(instances.get_fields())
    boxes = fields.pop("pred_boxes").tensor
    fields.pop("mask_probabilities", None)
    result = Instances(size, **fields)
    result.pred_boxes = Boxes(rescale_boxes(boxes, instances.image_size, size))
    return result


def paste_masks(probabilities: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Paste the masks of K boxes into the image, by bilinear interpolation.

    Args:
        probabilities: (K, S, S) in [0, 1]; they fall off to 0 over the border of the box.
        boxes: (K, 4) XYXY, half-open, pixels of the image, which they overlap.
        image_size: Height and width of the image, pixels.
        threshold: Probability from which on a pixel belongs to the mask; above 0.

    Returns:
        (K, height, width) bool.

    Source: the mask post-processing of the official code, which rounds the boxes to whole pixels first.
    """
    if not len(probabilities):
        return torch.zeros(0, *image_size, dtype=torch.bool, device=probabilities.device)
    return paste_masks_in_image(probabilities.float(), boxes.float(), image_size, threshold)
