"""Keep the best detections of an image over all its prompts, and predict their masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Instances
from torch import Tensor

from ..batch import Pairs
from ..heads.mask_head import HourglassMaskHead


class PassFeatures(NamedTuple):
    """The features of a pass that the mask head reads.

    Attributes:
        pairs: The pass.
        levels: L tensors (len(pairs.rows), C, Hl, Wl).
        text: (len(pairs.rows), T, D).
    """

    pairs: Pairs
    levels: list[Tensor]
    text: Tensor


class DetectionPool:
    """Collect the detections of N images, pass by pass, and keep the best; each call of the model has its own pool.

    The result does not depend on how the prompts are cut into passes. Detections that can no longer be among the best
    are dropped at once. When the last detection of a pass is dropped, the features for its masks are dropped too.

    Args:
        num_images: N.
        max_detections: Detections of an image to keep, over all its prompts; those that tie with the last of them stay
            too. 0 keeps all.
        mask_head: Predicts the masks of the detections that are kept; None for a model without masks.
    """

    def __init__(self, num_images: int, max_detections: int, mask_head: HourglassMaskHead | None = None) -> None:
        self._found: list[list[Instances]] = [[] for _ in range(num_images)]
        self._features: list[PassFeatures] = []
        self._max_detections = max_detections
        self._mask_head = mask_head

    def add(self, detected: list[Instances], features: PassFeatures) -> None:
        """Take the detections of a pass.

        Args:
            detected: The detections of each pair, with ``pred_boxes`` in the frame of the features, ``scores`` and
                ``phrase_ids``.
            features: The features of the pass.
        """
        if self._mask_head is not None and not self._max_detections:
            masks = self._mask_head.inference(features.levels, features.text, detected, features.pairs.prompts)
            for instances, masks_of_pair in zip(detected, masks, strict=True):
                instances.mask_probabilities = masks_of_pair
        for row, rank, instances in zip(features.pairs.rows, features.pairs.ranks, detected, strict=True):
            instances.ranks = torch.full_like(instances.phrase_ids, rank)
            self._found[row].append(instances)
        if self._max_detections:
            for row in set(features.pairs.rows):
                self._found[row] = [_keep_best(self._found[row], self._max_detections)]
            if self._mask_head is not None:
                self._features = [kept for kept in (*self._features, features) if self._is_needed(kept.pairs)]

    def merge(self) -> list[Instances]:
        """Return the detections of each image, best first, with ``mask_probabilities`` if the model has masks.

        Ties are in the order of the prompts. It fails for an image whose prompts were never added.
        """
        merged = []
        for instances_of_image in self._found:
            instances = Instances.cat(instances_of_image)
            instances = instances[instances.ranks.argsort(stable=True)]
            merged.append(instances[instances.scores.argsort(descending=True, stable=True)])
        if self._mask_head is not None and self._max_detections:
            _set_masks(self._mask_head, self._features, merged)
        for instances in merged:
            instances.remove("ranks")
        return merged

    def _is_needed(self, pairs: Pairs) -> bool:
        ranks = {row: set(self._found[row][0].ranks.tolist()) for row in set(pairs.rows)}
        return any(rank in ranks[row] for row, rank in zip(pairs.rows, pairs.ranks, strict=True))


def _keep_best(instances: Sequence[Instances], max_detections: int) -> Instances:
    """Join detections of one image and drop those below the last of the best, which stays with all that tie with it."""
    merged = Instances.cat(list(instances))
    if len(merged) <= max_detections:
        return merged
    threshold = merged.scores.topk(max_detections).values[-1]
    return merged[merged.scores >= threshold]


def _set_masks(mask_head: HourglassMaskHead, features: Sequence[PassFeatures], detections: Sequence[Instances]) -> None:
    """Predict the masks of N images, each with the words that found its box, as ``mask_probabilities`` (K, S, S)."""
    size = 2 * mask_head.pooler.resolution
    for instances in detections:
        instances.mask_probabilities = instances.scores.new_zeros(len(instances), size, size)
    for pairs, levels, text in features:
        own = [
            (detections[row].ranks == rank).nonzero().squeeze(1)
            for row, rank in zip(pairs.rows, pairs.ranks, strict=True)
        ]
        instances = [detections[row][index] for row, index in zip(pairs.rows, own, strict=True)]
        probabilities = mask_head.inference(levels, text, instances, pairs.prompts)
        for row, index, masks in zip(pairs.rows, own, probabilities, strict=True):
            detections[row].mask_probabilities[index] = masks.to(detections[row].mask_probabilities)
