"""Masks through the augmentations of their image: polygons stay polygons wherever they can."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, PolygonMasks
from detectron2.structures.masks import polygons_to_bitmask
from fvcore.transforms.transform import CropTransform
from pycocotools import mask as mask_util
from torch import Tensor

Segmentation = list[list[float]] | dict | None


def transform_masks(
    segmentations: Sequence[Segmentation], transforms: T.TransformList, image_size: tuple[int, int]
) -> tuple[PolygonMasks | BitMasks, Tensor]:
    """Move masks with their image.

    Polygons are moved point by point. If one of the masks is an RLE or the image is cropped, all of them become bitmaps
    of a byte for each pixel, which show whether anything of a mask is left.

    Args:
        segmentations: M masks in the frame of the original image, as ``keep_usable_masks`` leaves them; None: no mask.
        transforms: The transforms that the image went through.
        image_size: Height and width after them.

    Returns:
        M masks in the frame of the new image, empty where there is none, and (M,) bool, True where there is one.
    """
    needs_bitmaps = any(isinstance(mask, dict) for mask in segmentations) or any(
        isinstance(transform, CropTransform) for transform in transforms.transforms
    )
    if needs_bitmaps:
        # One after the other: beside the result there is never more than one bitmap in memory.
        bitmaps = torch.zeros(len(segmentations), *image_size, dtype=torch.bool)
        for row, mask in enumerate(segmentations):
            if mask is not None:
                bitmaps[row] = torch.from_numpy(_bitmap(mask, transforms, image_size))
        return BitMasks(bitmaps), bitmaps.flatten(1).any(dim=1)
    polygons = [_moved_polygons(mask, transforms) if isinstance(mask, list) else [] for mask in segmentations]
    return PolygonMasks(polygons), torch.tensor([mask is not None for mask in segmentations], dtype=torch.bool)


def _moved_polygons(polygons: list[list[float]], transforms: T.TransformList) -> list[np.ndarray]:
    """Move the points of polygons; a crop moves them too, and cuts nothing off."""
    # Copies, since transforms may work in place.
    points = [np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in polygons]
    return [transforms.apply_coords(own).reshape(-1) for own in points]


def _bitmap(mask: list[list[float]] | dict, transforms: T.TransformList, image_size: tuple[int, int]) -> np.ndarray:
    """Return a mask as (H, W) bool of the new image."""
    if isinstance(mask, dict):
        moved = transforms.apply_segmentation(mask_util.decode(mask))
        return np.ascontiguousarray(moved).astype(bool)
    return polygons_to_bitmask(_moved_polygons(mask, transforms), *image_size)
