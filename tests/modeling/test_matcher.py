"""ATSS: against the official assignment, a slow formulation in inclusive coordinates, and cases on paper."""

import numpy as np
import pytest
import torch
from conftest import ASSETS
from detectron2.structures import Boxes

from glipv2_d2.modeling.matcher import ATSSMatcher

UNITS = ASSETS / "parity" / "units"
LEVELS = ("p3", "p4", "p5", "p6", "p7")


def half_open(inclusive):
    return Boxes(torch.as_tensor(inclusive, dtype=torch.float32) + torch.tensor([0.0, 0.0, 1.0, 1.0]))


def square_grid(stride, size, rows, columns):
    """Anchors of one level, row-major, with the centre of the first in the middle of its cell."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    centers = torch.stack((x, y), dim=-1).reshape(-1, 2).float() * stride + stride / 2
    return Boxes(torch.cat((centers - size / 2, centers + size / 2), dim=1))


def slow_assignment(anchors_per_level, boxes, topk):
    """The six steps of the official code, box by box, on inclusive coordinates in double precision."""
    levels = [level.tensor.double().numpy() - [0, 0, 1, 1] for level in anchors_per_level]
    anchors = np.concatenate(levels)
    boxes = boxes.tensor.double().numpy() - [0, 0, 1, 1]
    claims: list[dict] = [{} for _ in anchors]
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        candidates, offset = [], 0
        for level in levels:
            center_x, center_y = (level[:, 0] + level[:, 2]) / 2, (level[:, 1] + level[:, 3]) / 2
            distance = np.hypot(center_x - (x1 + x2) / 2, center_y - (y1 + y2) / 2)
            candidates += [offset + index for index in np.argsort(distance, kind="stable")[:topk]]
            offset += len(level)
        ious = {}
        for index in candidates:
            a = anchors[index]
            width = min(a[2], x2) - max(a[0], x1) + 1
            height = min(a[3], y2) - max(a[1], y1) + 1
            overlap = max(width, 0) * max(height, 0)
            area = (a[2] - a[0] + 1) * (a[3] - a[1] + 1) + (x2 - x1 + 1) * (y2 - y1 + 1)
            ious[index] = overlap / (area - overlap)
        values = np.array(list(ious.values()))
        threshold = values.mean() + values.std(ddof=1)
        for index, iou in ious.items():
            x, y = (anchors[index][:2] + anchors[index][2:]) / 2
            if iou >= threshold and min(x - x1, x2 - x, y - y1, y2 - y) > 0.01:
                claims[index][number] = iou
    return [max(claim, key=lambda number: claim[number]) if claim else -1 for claim in claims]


@pytest.mark.parametrize("case", [f"case{number}" for number in range(8)])
def test_assignment_equals_the_official_one(case):
    arrays = np.load(UNITS / "atss.npz")
    anchors = [half_open(arrays[f"anchors.{level}"]) for level in LEVELS]
    matched = ATSSMatcher(topk=9)(anchors, half_open(arrays[f"{case}.boxes"]))
    positive = (matched >= 0).nonzero().squeeze(1)
    assert positive.tolist() == arrays[f"{case}.positive_anchors"].tolist()
    assert matched[positive].tolist() == arrays[f"{case}.matched_box"].tolist()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("topk", [1, 4, 9])
def test_assignment_equals_a_box_by_box_formulation(seed, topk):
    rng = np.random.default_rng(seed)
    anchors = [square_grid(8, 64, 12, 10), square_grid(16, 128, 6, 5), square_grid(32, 256, 3, 2)]
    corner, extent = rng.uniform(0, 60, (7, 2)), rng.uniform(3, 70, (7, 2))
    boxes = Boxes(torch.tensor(np.concatenate((corner, corner + extent), axis=1)))
    matched = ATSSMatcher(topk)(anchors, boxes)
    assert matched.tolist() == slow_assignment(anchors, boxes, topk)
    assert len(set(matched.tolist())) > 3


def test_images_together_are_matched_as_each_alone():
    rng = np.random.default_rng(5)
    anchors = [square_grid(8, 64, 12, 10), square_grid(16, 128, 6, 5), square_grid(32, 256, 3, 2)]
    corner, extent = rng.uniform(0, 60, (9, 2)), rng.uniform(3, 70, (9, 2))
    boxes = Boxes(torch.tensor(np.concatenate((corner, corner + extent), axis=1)))
    images = torch.tensor([0, 0, 0, 2, 2, 3, 3, 3, 3])  # the second image has no box
    together = ATSSMatcher().match_images(anchors, boxes, images, 4)
    for image in range(4):
        own = (images == image).nonzero().squeeze(1)
        alone = ATSSMatcher()(anchors, boxes[own])
        assert torch.equal(together[image], torch.where(alone < 0, alone, alone + (own[0] if len(own) else 0)))
    assert (together >= 0).sum(dim=1).tolist()[1] == 0 < (together >= 0).sum()


@pytest.mark.filterwarnings("error")
def test_no_boxes_give_only_negatives():
    matched = ATSSMatcher()([square_grid(8, 64, 3, 2), square_grid(16, 128, 2, 1)], Boxes(torch.zeros(0, 4)))
    assert matched.dtype == torch.int64 and matched.tolist() == [-1] * 8


def test_no_anchors_give_nothing():
    assert ATSSMatcher()([Boxes(torch.zeros(0, 4))], Boxes(torch.tensor([[0.0, 0.0, 9.0, 9.0]]))).shape == (0,)


def test_single_candidate_is_positive_when_its_centre_is_inside():
    # One anchor in all: its IoU is its own mean, and the deviation of one number counts as 0.
    anchors = [Boxes(torch.tensor([[0.0, 0.0, 16.0, 16.0]]))]
    assert ATSSMatcher()(anchors, Boxes(torch.tensor([[4.0, 4.0, 12.0, 12.0]]))).tolist() == [0]
    assert ATSSMatcher()(anchors, Boxes(torch.tensor([[9.0, 4.0, 16.0, 12.0]]))).tolist() == [-1]


def test_level_smaller_than_topk_gives_all_its_anchors():
    # Candidates: 2 + 1 anchors. IoU with the box: the first anchor 1, the second 0 (side by side), the third 1/4.
    # Mean 0.417 + deviation 0.520 = 0.937: only the first passes.
    anchors = [Boxes(torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8]])), Boxes(torch.tensor([[0.0, 0, 16, 16]]))]
    assert ATSSMatcher(topk=9)(anchors, Boxes(torch.tensor([[0.0, 0.0, 8.0, 8.0]]))).tolist() == [0, -1, -1]


def test_centre_must_lie_a_hundredth_of_a_pixel_inside():
    # Anchor centre 8. The first pixel of the box has its centre at left + 0.5.
    anchors = [Boxes(torch.tensor([[0.0, 0.0, 16.0, 16.0]]))]
    for left, expected in [(7.48, 0), (7.495, -1), (7.6, -1)]:
        assert ATSSMatcher()(anchors, Boxes(torch.tensor([[left, 0.0, 20.0, 16.0]]))).tolist() == [expected]
    for right, expected in [(8.52, 0), (8.505, -1), (8.4, -1)]:
        assert ATSSMatcher()(anchors, Boxes(torch.tensor([[0.0, 0.0, right, 16.0]]))).tolist() == [expected]


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_anchor_claimed_twice_goes_to_the_highest_iou(order):
    # IoU of the single anchor: 1 with the equal box, 0.25 with the box of half its sides.
    boxes = torch.tensor([[0.0, 0.0, 16.0, 16.0], [4.0, 4.0, 12.0, 12.0]])[order]
    matched = ATSSMatcher()([Boxes(torch.tensor([[0.0, 0.0, 16.0, 16.0]]))], Boxes(boxes))
    assert matched.tolist() == [order.index(0)]


def test_equal_boxes_go_to_the_first():
    anchors = [square_grid(8, 16, 4, 4)]
    boxes = torch.tensor([[2.0, 3.0, 25.0, 22.0]])
    once = ATSSMatcher()(anchors, Boxes(boxes))
    twice = ATSSMatcher()(anchors, Boxes(boxes.repeat(3, 1)))
    assert 0 in once and twice.tolist() == once.tolist()


def test_topk_below_one_is_refused():
    with pytest.raises(ValueError, match="MATCHER.TOPK: expected at least 1, found 0"):
        ATSSMatcher(topk=0)
