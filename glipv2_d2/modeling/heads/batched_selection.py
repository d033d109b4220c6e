"""Choose the detections of many images together, on a device that should not wait for the CPU in between."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import batched_nms

from ...device_copies import to_device
from ...structures import GroundingPredictions, TokenizedPrompt, pad_token_maps
from ..box_regression import pixel_bounds
from ..token_scoring import token_to_phrase_scores
from .detection_selector import DetectionSelector

# The suppression reads so many of the best candidates of a pair for each detection that is wanted, and all of them only
# if these do not decide: its time grows with the square of their number.
_CANDIDATES_PER_DETECTION = 4


class Candidates(NamedTuple):
    """The C best candidates of M pairs of an image and a prompt, best first.

    Attributes:
        boxes: (M, C, 4) XYXY, half-open, clipped to the image.
        scores: (M, C); negative where a pair has fewer candidates.
        phrases: (M, C) int64, rows of the prompt.
        image_sizes: Height and width of the M images.
    """

    boxes: Tensor
    scores: Tensor
    phrases: Tensor
    image_sizes: list[tuple[int, int]]


@torch.no_grad()
def find_candidates(
    selector: DetectionSelector,
    predictions: GroundingPredictions,
    anchors: list[Boxes],
    image_sizes: list[tuple[int, int]],
    prompts: list[TokenizedPrompt],
) -> Candidates:
    """Find the candidates of M pairs by the rules of ``DetectionSelector``, without waiting for the device.

    Args:
        selector: The rules.
        predictions: Predictions for M pairs.
        anchors: L sets of anchors.
        image_sizes: M pairs of height and width without padding, pixels.
        prompts: M prompts.
    """
    token_map = pad_token_maps(prompts, predictions.token_logits[0].shape[-1])
    longest = int(token_map.sum(dim=2).max())
    device = predictions.token_logits[0].device
    token_map, bounds = to_device([token_map, pixel_bounds(image_sizes)], device)
    token_scores = torch.cat(predictions.token_logits, dim=1).float().sigmoid()  # (M, R, T)
    # Predictions for tokens of no phrase, or for padding, must not have an effect.
    token_scores = token_scores.where(token_map.any(dim=1, keepdim=True), 0.0)
    phrase_scores = token_to_phrase_scores(token_scores, token_map, selector.score_aggregation, longest)  # (M, R, P)
    centerness = torch.cat(predictions.centerness_logits, dim=1).float().sigmoid()
    deltas = torch.cat(predictions.box_deltas, dim=1)
    valid = deltas.isfinite().all(dim=2) & ~centerness.isnan()
    is_candidate = (phrase_scores > selector.score_thresh) & valid[..., None]  # False for NaN
    products = torch.where(is_candidate, phrase_scores * centerness[..., None], -1.0)
    best, places, begin = [], [], 0
    for level in products.split([level.shape[1] for level in predictions.token_logits], dim=1):
        of_level = level.flatten(1).topk(min(selector.topk_candidates, level[0].numel()))
        best.append(of_level.values)
        places.append(of_level.indices + begin)
        begin += level[0].numel()
    products, order = torch.cat(best, dim=1).sort(dim=1, descending=True, stable=True)
    place = torch.cat(places, dim=1).gather(1, order)
    anchor, phrases = place // token_map.shape[1], place % token_map.shape[1]  # (M, C)
    deltas = deltas.gather(1, anchor[..., None].expand(-1, -1, 4)).flatten(0, 1)
    boxes = selector.box2box_transform.apply_deltas(deltas, Boxes.cat(anchors).tensor[anchor.flatten()])
    boxes = boxes.view(*anchor.shape, 4).maximum(bounds[:, :1]).minimum(bounds[:, 1:])
    scores = torch.where(products < 0, products, products.sqrt())
    return Candidates(boxes, scores, phrases, image_sizes)


@torch.no_grad()
def best_apart(boxes: Tensor, scores: Tensor, nms_thresh: float, count: int) -> tuple[Tensor, Tensor]:
    """Choose the best boxes of M pairs, no two on one object, without waiting for the device.

    They are the first that ``torchvision.ops.nms`` keeps of each pair. It suppresses all boxes, and its time grows with
    the square of their number; here every box is compared with the chosen ones only.

    Args:
        boxes: (M, R, 4) XYXY.
        scores: (M, R), at least 0. Of equal scores the first is the best.
        nms_thresh: IoU with a better box above which a box is not chosen.
        count: K, boxes to choose of each pair.

    Returns:
        The chosen boxes, (M, K, 4), best first; where a pair has fewer, zeros follow. And for each box the chosen one
        that it overlaps most, (M, R) int64; of equal ones the best, and that too if it overlaps none.
    """
    corners = boxes.transpose(1, 2).contiguous()  # (M, 4, R)
    areas = _areas(corners)
    largest, nearest, chosen = torch.zeros_like(scores), torch.zeros_like(scores, dtype=torch.int64), []
    for number in range(count):
        best, index = scores.max(dim=1, keepdim=True)
        # A box of zeros overlaps nothing.
        box = corners.gather(2, index[:, None].expand(-1, 4, -1)).where(best[:, None] >= 0, 0.0)  # (M, 4, 1)
        shared = torch.cat((corners[:, :2].maximum(box[:, :2]), corners[:, 2:].minimum(box[:, 2:])), dim=1)
        shared = _areas(shared)
        # NaN for two boxes without area, which overlap nothing.
        overlaps = shared / (_areas(box) + areas - shared)
        # As torchvision, in double precision: 3 / 5 in single precision is above 0.6.
        scores = scores.masked_fill(overlaps.double() > nms_thresh, -1.0).scatter(1, index, -1.0)
        nearer = overlaps > largest
        largest, nearest = torch.where(nearer, overlaps, largest), nearest.masked_fill(nearer, number)
        chosen.append(box[..., 0])
    return torch.stack(chosen, dim=1), nearest


def _areas(corners: Tensor) -> Tensor:
    """Return the areas (M, R) of boxes (M, 4, R), 0 where there is nothing between left and right or top and bottom."""
    width, height = (corners[:, 2:] - corners[:, :2]).clamp(min=0).unbind(1)
    return width * height


@torch.no_grad()
def select_together(
    selector: DetectionSelector,
    passes: Sequence[tuple[Candidates, list[TokenizedPrompt]]],
    limit: int | None = None,
) -> list[list[Instances]]:
    """Choose the detections of all pairs of some passes; the CPU waits for the device once.

    Args:
        selector: The rules.
        passes: The candidates of each pass, and the prompts of its pairs.
        limit: Detections to keep of each pair, 0 for all; None: as the selector says.

    Returns:
        For each pass the detections of its pairs, on the CPU, as ``DetectionSelector`` returns them.
    """
    limit = selector.detections_per_image if limit is None else limit
    rows = suppress([candidates for candidates, _ in passes], selector.nms_thresh, limit)
    pairs = [pair for one, prompts in passes for pair in zip(one.image_sizes, prompts, strict=True)]
    found = [_detections(*pair, of_pair, limit) for pair, of_pair in zip(pairs, rows, strict=True)]
    remaining = iter(found)
    return [list(itertools.islice(remaining, len(prompts))) for _, prompts in passes]


def suppress(passes: Sequence[Candidates], nms_thresh: float, limit: int = 0) -> list[Tensor]:
    """Suppress candidates that overlap better ones of their pair and phrase; the CPU waits for the device once.

    It waits for the candidates of all pairs and suppresses them itself. A device would have to be asked twice, for the
    number of those that are left and for their boxes.

    Args:
        passes: The candidates of each pass.
        nms_thresh: IoU above which a candidate is suppressed.
        limit: For each pair so many of the best that are left, and all that tie with the last of them, are among the
            result; worse ones may be missing. 0: none is.

    Returns:
        For each pair what is left, best first, (K, 6) float64 on the CPU: box, score, phrase.
    """
    tables = [torch.cat((one.boxes, torch.stack((one.scores, one.phrases), dim=-1)), dim=-1) for one in passes]
    on_cpu = torch.cat([table.flatten(0, 1) for table in tables]).cpu().double()
    sizes = [table.shape[1] for table in tables for _ in table]
    return [_suppress_pair(rows[rows[:, 4] >= 0], nms_thresh, limit) for rows in on_cpu.split(sizes)]


def _suppress_pair(rows: Tensor, nms_thresh: float, limit: int) -> Tensor:
    """Suppress the candidates of a pair, rows as ``suppress`` returns them; with a limit they come best first."""
    few = _CANDIDATES_PER_DETECTION * limit
    if 0 < few < len(rows):
        kept = batched_nms(rows[:few, :4], rows[:few, 4], rows[:few, 5], nms_thresh)
        # No other candidate can be among the best, or tie with the last of them.
        if len(kept) >= limit and rows[kept[limit - 1], 4] > rows[few, 4]:
            return rows[kept]
    # In double precision torchvision's moving apart of the phrases is exact.
    return rows[batched_nms(rows[:, :4], rows[:, 4], rows[:, 5], nms_thresh)]


def _detections(image_size: tuple[int, int], prompt: TokenizedPrompt, rows: Tensor, limit: int) -> Instances:
    if 0 < limit < len(rows):
        rows = rows[rows[:, 4] >= rows[limit - 1, 4]]
    result = Instances(image_size)
    result.pred_boxes = Boxes(rows[:, :4].float())
    result.scores = rows[:, 4].float()
    result.phrase_ids = rows[:, 5].long()
    result.pred_classes = prompt.category_ids[result.phrase_ids]
    return result
