"""Keep the best detections of an image over all its prompts, and predict their masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ...device_copies import to_device
from ...structures import GroundingPredictions
from ..batch import Pairs
from ..heads.batched_selection import Candidates, find_candidates, select_together
from ..heads.detection_selector import DetectionSelector
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
        self._masks: list[Tensor] = []
        self._num_masks = 0
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
            self._draw(self._mask_head, detected, features)
        for row, rank, instances in zip(features.pairs.rows, features.pairs.ranks, detected, strict=True):
            instances.ranks = torch.full_like(instances.phrase_ids, rank)
            self._found[row].append(instances)
        if self._max_detections:
            for row in set(features.pairs.rows):
                self._found[row] = [keep_best(self._found[row], self._max_detections)]
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
        if self._mask_head is not None:
            self._set_masks(self._mask_head, merged)
        for instances in merged:
            instances.remove("ranks")
        return merged

    def _draw(self, mask_head: HourglassMaskHead, detected: list[Instances], features: PassFeatures) -> None:
        """Predict the masks of the detections of a pass; ``mask_rows`` are their places among all masks."""
        self._masks += mask_head.inference(features.levels, features.text, detected, features.pairs.prompts)
        for instances in detected:
            instances.mask_rows = torch.arange(self._num_masks, self._num_masks + len(instances))
            self._num_masks += len(instances)

    def _set_masks(self, mask_head: HourglassMaskHead, merged: Sequence[Instances]) -> None:
        """Give N images their masks, each with the words that found its box, as ``mask_probabilities`` (K, S, S)."""
        if self._max_detections:
            for instances in merged:
                instances.mask_rows = torch.zeros_like(instances.phrase_ids)
        for features in self._features:
            pairs = list(zip(features.pairs.rows, features.pairs.ranks, strict=True))
            own = [(merged[row].ranks == rank).nonzero().squeeze(1) for row, rank in pairs]
            detected = [merged[row][index] for (row, _), index in zip(pairs, own, strict=True)]
            self._draw(mask_head, detected, features)
            for (row, _), index, instances in zip(pairs, own, detected, strict=True):
                merged[row].mask_rows[index] = instances.mask_rows
        size = 2 * mask_head.pooler.resolution
        masks = torch.cat(self._masks or [mask_head.log_scale.detach().new_zeros(0, size, size, dtype=torch.float32)])
        (rows,) = to_device([torch.cat([instances.mask_rows for instances in merged])], masks.device)
        for instances, of_image in zip(merged, masks[rows].split([len(one) for one in merged]), strict=True):
            instances.remove("mask_rows")
            instances.mask_probabilities = of_image

    def _is_needed(self, pairs: Pairs) -> bool:
        ranks = {row: set(self._found[row][0].ranks.tolist()) for row in set(pairs.rows)}
        return any(rank in ranks[row] for row, rank in zip(pairs.rows, pairs.ranks, strict=True))


class WaitingPasses:
    """Passes on a device whose detections are not chosen yet: the CPU waits for the device once for all of them.

    Args:
        selector: Chooses the detections of a pair.
        limit: Detections of a pair that are kept, 0 for all; None: as the selector says.
        pool: Takes the detections.
        most_pairs: Pairs that may wait.
    """

    def __init__(self, selector: DetectionSelector, limit: int | None, pool: DetectionPool, most_pairs: int) -> None:
        self._selector = selector
        self._limit = limit
        self._pool = pool
        self._most_pairs = most_pairs
        self._passes: list[tuple[Candidates, PassFeatures]] = []

    def add(
        self,
        predictions: GroundingPredictions,
        anchors: list[Boxes],
        image_sizes: list[tuple[int, int]],
        features: PassFeatures,
    ) -> None:
        """Take the predictions of a pass; for the arguments see ``find_candidates`` and ``DetectionPool.add``."""
        found = find_candidates(self._selector, predictions, anchors, image_sizes, features.pairs.prompts)
        self._passes.append((found, features))
        if sum(len(waiting.pairs.rows) for _, waiting in self._passes) >= self._most_pairs:
            self.choose()

    def choose(self) -> None:
        """Choose the detections of the passes that wait."""
        if self._passes:
            passes = [(found, features.pairs.prompts) for found, features in self._passes]
            chosen = select_together(self._selector, passes, self._limit)
            for detected, (_, features) in zip(chosen, self._passes, strict=True):
                self._pool.add(detected, features)
            self._passes.clear()


def keep_best(instances: Sequence[Instances], max_detections: int) -> Instances:
    """Join detections of one image and drop those below the last of the best, which stays with all that tie with it."""
    merged = Instances.cat(list(instances))
    if len(merged) <= max_detections:
        return merged
    threshold = merged.scores.topk(max_detections).values[-1]
    return merged[merged.scores >= threshold]
