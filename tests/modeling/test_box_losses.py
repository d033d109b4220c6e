"""GIoU loss and centerness targets."""

import math

import numpy as np
import pytest
import torch
from conftest import ASSETS
from detectron2.modeling.box_regression import Box2BoxTransform
from torch.testing import assert_close

from glipv2_d2.modeling.losses.box_losses import centerness_targets, giou_loss_legacy

LAST_PIXEL = torch.tensor([0.0, 0.0, 1.0, 1.0])
TRANSFORM = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))


@pytest.fixture(scope="module")
def units():
    with np.load(ASSETS / "parity" / "units" / "boxes.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def test_giou_loss_and_its_gradient_equal_the_official_ones(units):
    anchors = units["anchors"] + LAST_PIXEL
    deltas = units["deltas"].clone().requires_grad_()
    gt_boxes = TRANSFORM.apply_deltas(units["encoded"], anchors)
    loss = giou_loss_legacy(TRANSFORM.apply_deltas(deltas, anchors), gt_boxes)
    (loss * units["weights"]).sum().backward()
    assert_close(loss.detach(), units["giou_each"], atol=1e-5, rtol=1e-4)
    assert_close(deltas.grad, units["giou_grad"], atol=1e-5, rtol=1e-4)


# Inclusive sides without "+ 1", so a half-open box of 11 x 11 pixels has the area 100.
@pytest.mark.parametrize(
    ("pred", "gt", "expected"),
    [
        ([0, 0, 11, 11], [0, 0, 11, 11], 0.0),
        # Side by side with a gap of 10: IoU 0, the enclosing area is 300, of which 200 are covered.
        ([0, 0, 11, 11], [20, 0, 31, 11], 1 + 100 / 300),
        # Inside: IoU 25 / 100, the enclosing box is the larger one.
        ([0, 0, 6, 6], [0, 0, 11, 11], 0.75),
        # Shifted by half: intersection 50, union 150, enclosing area 150.
        ([5, 0, 16, 11], [0, 0, 11, 11], 1 - 50 / 150),
        # Half a pixel wide: it counts as a line at its left, enclosed by a box of 15 x 10.
        ([15, 0, 15.5, 11], [0, 0, 11, 11], 1 + 50 / 150),
    ],
)
def test_hand_computed_giou(pred, gt, expected):
    pred, gt = torch.tensor([pred], dtype=torch.float32), torch.tensor([gt], dtype=torch.float32)
    assert_close(giou_loss_legacy(pred, gt), torch.tensor([expected]), atol=1e-6, rtol=1e-6)


def test_two_boxes_of_one_pixel_have_a_finite_loss_and_gradient():
    pred = torch.tensor([[3.0, 3.0, 4.0, 4.0]], requires_grad=True)
    loss = giou_loss_legacy(pred, torch.tensor([[3.0, 3.0, 4.0, 4.0]]))
    loss.sum().backward()
    assert loss.isfinite().all() and pred.grad.isfinite().all()


def test_centerness_equals_the_official_one(units):
    anchors = units["anchors"] + LAST_PIXEL
    gt_boxes = TRANSFORM.apply_deltas(units["centre_targets_input"], anchors)
    assert_close(centerness_targets(anchors, gt_boxes), units["centre_targets"], atol=1e-5, rtol=1e-5)


def test_hand_computed_centerness():
    # Anchor centre 5.5 (pixels 2..9). To the pixel centres of the box: left 5.5, right 11, top 5.5, bottom 5.5.
    anchors = torch.tensor([[2.0, 2.0, 10.0, 10.0]])
    gt_boxes = torch.tensor([[0.0, 0.0, 17.5, 12.0]])
    assert_close(centerness_targets(anchors, gt_boxes), torch.tensor([math.sqrt(5.5 / 11)]))


def test_centre_outside_has_no_centerness():
    anchors = torch.tensor([[2.0, 2.0, 10.0, 10.0]]).expand(3, 4)
    gt_boxes = torch.tensor([[7.0, 0.0, 20.0, 12.0], [0.0, 0.0, 12.0, 5.0], [7.0, 7.0, 20.0, 20.0]])
    assert centerness_targets(anchors, gt_boxes).tolist() == [0.0, 0.0, 0.0]


def test_no_pairs_give_no_losses():
    nothing = torch.zeros(0, 4)
    assert giou_loss_legacy(nothing, nothing).shape == (0,)
    assert centerness_targets(nothing, nothing).shape == (0,)
