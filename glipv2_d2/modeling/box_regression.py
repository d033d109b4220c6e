"""Box arithmetic of the official weights, for boxes in detectron2's half-open coordinates.

The official code counts pixels: its box (x1, y1, x2, y2) holds the columns x1..x2, so it is x2 - x1 + 1 wide. With the
half-open box (x1, y1, x2 + 1, y2 + 1) most of its arithmetic is detectron2's own: anchors with offset 0.5, IoU,
``Box2BoxTransform`` (encode and decode, sizes clamped from above). This module holds the rest, which differs:
clipping, scaling, and distances from a centre to the edges.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..device_copies import to_device

# A box reaches from the centre of its first pixel to the centre of its last one in the official distances, half a pixel
# less on each side than in half-open coordinates.
HALF_PIXEL = 0.5


def clip_boxes_legacy(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Clip boxes so that their first and last pixel lie in the image.

    Args:
        boxes: (K, 4) XYXY, half-open, pixels.
        image_size: Height and width of the image without padding, at least 1.

    Returns:
        (K, 4): left and top in [0, size - 1], right and bottom in [1, size]; a box outside the image becomes the pixels
        on its border. A new tensor.

    Source: official ``clip_to_image``, which clamps all coordinates to [0, size - 1].
    """
    (bounds,) = to_device([pixel_bounds([image_size]).to(boxes.dtype)], boxes.device)
    return torch.minimum(torch.maximum(boxes, bounds[0, 0]), bounds[0, 1])


def pixel_bounds(image_sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Return the least and the largest coordinates of boxes in N images, (N, 2, 4), see ``clip_boxes_legacy``."""
    return torch.tensor(
        [[[0, 0, 1, 1], [width - 1, height - 1, width, height]] for height, width in image_sizes]
    ).float()


def scale_boxes_legacy(boxes: Tensor, scale_x: float, scale_y: float) -> Tensor:
    """Scale boxes to an image of another size by the coordinates of their first and last pixel.

    Args:
        boxes: (K, 4) XYXY, half-open, pixels.
        scale_x: New width / old width.
        scale_y: New height / old height.

    Returns:
        (K, 4), half-open: left * scale_x, and (right - 1) * scale_x + 1. A new tensor.

    Source: official ``BoxList.resize``, followed by the "+ 1" of its COCO output.
    """
    numbers = torch.tensor([[scale_x, scale_y, scale_x, scale_y], [0, 0, 1, 1]], dtype=boxes.dtype)
    scale, last_pixel = to_device([numbers], boxes.device)[0]
    return (boxes - last_pixel) * scale + last_pixel


def box_deltas(anchors: Tensor, boxes: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """Encode boxes relative to anchors, as ``Box2BoxTransform.get_deltas``, which waits for a device to check anchors.

    Args:
        anchors: (M, 4) XYXY, half-open, pixels, wider and higher than 0.
        boxes: (M, 4) in the same form.
        weights: Factors of the deltas.

    Returns:
        (M, 4) dx, dy, dw, dh.
    """
    sizes, box_sizes = anchors[:, 2:] - anchors[:, :2], boxes[:, 2:] - boxes[:, :2]
    (x, y), (box_x, box_y) = (anchors[:, :2] + 0.5 * sizes).unbind(1), (boxes[:, :2] + 0.5 * box_sizes).unbind(1)
    (width, height), (box_width, box_height) = sizes.unbind(1), box_sizes.unbind(1)
    wx, wy, ww, wh = weights
    dx, dy = wx * (box_x - x) / width, wy * (box_y - y) / height
    return torch.stack((dx, dy, ww * torch.log(box_width / width), wh * torch.log(box_height / height)), dim=1)


def center_to_edges_legacy(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Measure how far the edges of boxes lie from the centres of anchors.

    Args:
        anchors: (..., 4) XYXY, half-open, pixels.
        boxes: (..., 4) XYXY, half-open, pixels; broadcast against ``anchors``.

    Returns:
        (..., 4) distances to the left, top, right and bottom edge, in pixels between pixel centres; negative where the
        centre is past that edge.

    Source: the left, top, right and bottom of the official ATSS loss, which read inclusive coordinates.
    """
    centers = (anchors[..., :2] + anchors[..., 2:]) / 2
    return torch.cat((centers - boxes[..., :2], boxes[..., 2:] - centers), dim=-1) - HALF_PIXEL
