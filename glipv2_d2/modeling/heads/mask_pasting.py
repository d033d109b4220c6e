"""From the masks of boxes to masks of the image."""

from __future__ import annotations

import torch
from detectron2.layers import paste_masks_in_image
from torch import Tensor


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
