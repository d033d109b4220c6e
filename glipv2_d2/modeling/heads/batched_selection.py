"""Choose the detections of many images together, on a device that should not wait for the CPU in between."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import nms

from ...device_copies import to_device
from ...structures import GroundingPredictions, TokenizedPrompt
from ..box_regression import pixel_bounds
from ..token_scoring import token_to_phrase_scores
from .detection_selector import DetectionSelector

# The suppression reads so many of the best candidates of a pair, or four for each detection that is wanted, and all of
# them only if these do not decide: its time and memory grow with the square of their number.
_CANDIDATES = 1024
_CANDIDATES_PER_DETECTION = 4


class Candidates(NamedTuple):
    """The C best candidates of M pairs of an image and a prompt, best first.

    Attributes:
        boxes: (M, C, 4) XYXY, half-open, clipped to the image.
        scores: (M, C); negative where a pair has fewer candidates.
        phrases: (M, C) int64, rows of the prompt.
        num_phrases: The most phrases of a pair.
        image_sizes: Height and width of the M images.
    """

    boxes: Tensor
    scores: Tensor
    phrases: Tensor
    num_phrases: int
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
    num_tokens, num_phrases = predictions.token_logits[0].shape[-1], max(len(prompt.phrases) for prompt in prompts)
    token_map = torch.zeros(len(prompts), max(num_phrases, 1), num_tokens, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        token_map[row, : len(prompt.phrases), : len(prompt)] = prompt.phrase_token_map
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
    return Candidates(boxes, scores, phrases, num_phrases, image_sizes)


@torch.no_grad()
def select_together(
    selector: DetectionSelector,
    passes: Sequence[tuple[Candidates, list[TokenizedPrompt]]],
    limit: int | None = None,
) -> list[list[Instances]]:
    """Choose the detections of all pairs of some passes; the CPU waits for the device twice.

    It waits twice more if the best candidates of a pair leave open which detections are the best.

    Args:
        selector: The rules.
        passes: The candidates of each pass, and the prompts of its pairs.
        limit: Detections to keep of each pair, 0 for all; None: as the selector says.

    Returns:
        For each pass the detections of its pairs, on the CPU, as ``DetectionSelector`` returns them.
    """
    limit = selector.detections_per_image if limit is None else limit
    candidates = [one for one, _ in passes]
    most = max(one.scores.shape[1] for one in candidates)
    narrow = max(_CANDIDATES, _CANDIDATES_PER_DETECTION * limit) if limit else most
    pairs = [pair for one, prompts in passes for pair in zip(one.image_sizes, prompts, strict=True)]
    for width in (narrow, most):
        rows = suppress(candidates, selector.nms_thresh, width)
        if width >= most or all(_is_decided(of_pair, limit) for of_pair in rows):
            break
    found = [_detections(*pair, of_pair, limit) for pair, of_pair in zip(pairs, rows, strict=True)]
    remaining = iter(found)
    return [list(itertools.islice(remaining, len(prompts))) for _, prompts in passes]


def suppress(passes: Sequence[Candidates], nms_thresh: float, width: int | None = None) -> list[Tensor]:
    """Suppress candidates that overlap better ones of their pair and phrase; the CPU waits for the device twice.

    Args:
        passes: The candidates of each pass.
        nms_thresh: IoU above which a candidate is suppressed.
        width: The number of best candidates of each pair that are read; None: all.

    Returns:
        For each pair what is left, best first, (K, 8) float64 on the CPU: box, score, phrase, the pair, and the score
        of the best candidate that was not read, negative for none.
    """
    table, first = [], 0
    for boxes, scores, phrases, _, _ in passes:
        pair = torch.arange(first, first + len(scores), device=boxes.device)[:, None].expand_as(phrases)
        is_cut = width is not None and scores.shape[1] > width
        unread = scores[:, width].unsqueeze(1) if is_cut else scores.new_full((len(scores), 1), -1.0)
        columns = torch.stack((scores, phrases, pair, unread.expand_as(scores)), dim=-1)
        table.append(torch.cat((boxes, columns), dim=-1)[:, :width].flatten(0, 1).double())
        first += len(scores)
    rows = torch.cat(table)
    # Phrases do not suppress each other: their boxes are moved apart, in a precision that this leaves exact.
    num_phrases = max(one.num_phrases for one in passes)
    reach = 1 + max(max(size) for one in passes for size in one.image_sizes)
    boxes = rows[:, :4] + ((rows[:, 6] * num_phrases + rows[:, 5]) * reach)[:, None]
    rows = rows[nms(boxes, rows[:, 4], nms_thresh)].cpu()
    rows = rows[rows[:, 4] >= 0]
    order = rows[:, 6].argsort(stable=True)
    return list(rows[order].split(rows[:, 6].long().bincount(minlength=first).tolist()))


def _is_decided(rows: Tensor, limit: int) -> bool:
    """Tell whether no candidate that was not read can be among the ``limit`` best, or tie with the last of them."""
    if not len(rows) or rows[0, 7] < 0:
        return True
    return len(rows) >= limit and bool(rows[limit - 1, 4] > rows[0, 7])


def _detections(image_size: tuple[int, int], prompt: TokenizedPrompt, rows: Tensor, limit: int) -> Instances:
    if 0 < limit < len(rows):
        rows = rows[rows[:, 4] >= rows[limit - 1, 4]]
    result = Instances(image_size)
    result.pred_boxes = Boxes(rows[:, :4].float())
    result.scores = rows[:, 4].float()
    result.phrase_ids = rows[:, 5].long()
    result.pred_classes = prompt.category_ids[result.phrase_ids]
    return result
