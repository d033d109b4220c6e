"""Choose the anchors that learn each box."""

from __future__ import annotations

import torch
from detectron2.structures.boxes import Boxes, matched_pairwise_iou
from torch import Tensor

from ..errors import InputError
from .box_regression import center_to_edges_legacy

# Distance in pixels by which the centre of a positive anchor must lie inside its box.
MIN_INSIDE = 0.01


class ATSSMatcher:
    """Match anchors to boxes by adaptive training sample selection.

    For each box:

    1. The ``topk`` anchors of each level with the nearest centre are candidates (all of a smaller level).
    2. The IoU threshold is mean + standard deviation (n - 1) of the IoU of its candidates. A pyramid with one
       candidate in all has no deviation: it counts as 0.
    3. A candidate is positive if its IoU reaches the threshold and its centre lies more than 0.01 pixel inside the box.
    4. An anchor that is positive for several boxes goes to the one with the highest IoU, the first of equal ones.

    A box may get no anchor, for example if it is too small to hold a centre. ``torch.topk`` chooses among anchors at
    equal distance.

    Args:
        topk: Candidates per level and box, at least 1.

    Raises:
        InputError: ``topk`` is below 1.

    Source: ATSS (arXiv 1912.02424), Alg. 1; ``ATSSLossComputation`` of the official code, which fails without boxes.
    """

    def __init__(self, topk: int = 9):
        if topk < 1:
            raise InputError(f"MODEL.GLIPV2.MATCHER.TOPK: expected at least 1, found {topk}")
        self.topk = topk

    def __call__(self, anchors_per_level: list[Boxes], gt_boxes: Boxes) -> Tensor:
        """Match the anchors of one image.

        Args:
            anchors_per_level: L sets of anchors, half-open XYXY.
            gt_boxes: M boxes on the same device, in the same frame.

        Returns:
            (R,) int64 over all levels in order: index of the matched box, -1 for a negative. All -1 if M is 0.
        """
        image = torch.zeros(len(gt_boxes), dtype=torch.int64, device=gt_boxes.device)
        return self.match_images(anchors_per_level, gt_boxes, image, 1)[0]

    def match_images(self, anchors_per_level: list[Boxes], gt_boxes: Boxes, images: Tensor, num_images: int) -> Tensor:
        """Match the anchors of N images at once, each with its own boxes; on a device nobody waits.

        Args:
            anchors_per_level: L sets of anchors, the same for all images.
            gt_boxes: The boxes of all images, M in all.
            images: (M,) int64, the image of each box.
            num_images: N.

        Returns:
            (N, R) int64: index of the matched box among the M, -1 for a negative.
        """
        anchors = Boxes.cat(anchors_per_level)
        num_boxes, num_anchors = len(gt_boxes), len(anchors)
        if num_boxes == 0:
            return torch.full((num_images, num_anchors), -1, dtype=torch.int64, device=anchors.device)

        candidates = self._nearest_anchors(anchors_per_level, gt_boxes)  # (M, K)
        num_candidates = candidates.shape[1]
        box_ids = torch.arange(num_boxes, device=candidates.device)[:, None].expand_as(candidates).flatten()  # (M*K,)
        candidates = candidates.flatten()  # (M*K,)
        candidate_anchors, candidate_boxes = anchors[candidates], gt_boxes[box_ids]
        ious = matched_pairwise_iou(candidate_anchors, candidate_boxes)

        per_box = ious.view(num_boxes, num_candidates)
        deviation = per_box.std(dim=1, correction=min(1, num_candidates - 1))
        threshold = (per_box.mean(dim=1) + deviation)[box_ids]
        inside = center_to_edges_legacy(candidate_anchors.tensor, candidate_boxes.tensor).amin(dim=1) > MIN_INSIDE
        positive = inside & (ious >= threshold)

        places = images[box_ids] * num_anchors + candidates  # among the anchors of all images
        ious = ious.masked_fill(~positive, 0.0)
        best_iou = ious.new_zeros(num_images * num_anchors).scatter_reduce(0, places, ious, "amax")
        wins = positive & (ious == best_iou[places])
        unmatched = places.new_full((num_images * num_anchors,), num_boxes)
        matched = unmatched.scatter_reduce(0, places, box_ids.masked_fill(~wins, num_boxes), "amin")
        return matched.masked_fill(matched == num_boxes, -1).view(num_images, num_anchors)

    def _nearest_anchors(self, anchors_per_level: list[Boxes], gt_boxes: Boxes) -> Tensor:
        """Return (M, K) indices, into the anchors of all levels, of the candidates of each box."""
        box_x, box_y = gt_boxes.get_centers()[:, :, None].unbind(dim=1)  # (M, 1) each
        candidates, offset = [], 0
        for anchors in anchors_per_level:
            anchor_x, anchor_y = anchors.get_centers().unbind(dim=1)  # (Hl*Wl,) each
            distance = (anchor_x - box_x).square() + (anchor_y - box_y).square()  # (M, Hl*Wl), squared
            nearest = distance.topk(min(self.topk, len(anchors)), dim=1, largest=False).indices
            candidates.append(nearest + offset)
            offset += len(anchors)
        return torch.cat(candidates, dim=1)
