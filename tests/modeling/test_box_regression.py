"""The official pixel convention on half-open boxes."""

import json

import numpy as np
import torch
from conftest import ASSETS
from detectron2.modeling.box_regression import Box2BoxTransform
from torch.testing import assert_close

from glipv2_d2.modeling.box_regression import box_deltas, center_to_edges_legacy, clip_boxes_legacy, scale_boxes_legacy

PARITY = ASSETS / "parity"
LAST_PIXEL = torch.tensor([0.0, 0.0, 1.0, 1.0])


def load(path):
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def test_detectron2_encodes_and_decodes_half_open_boxes_as_the_official_code_does_inclusive_ones():
    arrays = load(PARITY / "units" / "boxes.npz")
    transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    anchors, gt = arrays["anchors"] + LAST_PIXEL, arrays["gt"] + LAST_PIXEL
    assert_close(transform.get_deltas(anchors, gt), arrays["encoded"], atol=1e-4, rtol=1e-4)
    decoded = transform.apply_deltas(arrays["deltas"], anchors)
    assert_close(decoded - LAST_PIXEL, arrays["decoded"], atol=5e-3, rtol=1e-4)


def test_clipping_keeps_first_and_last_pixel_in_the_image():
    # An image of 20 x 10 pixels: left, top in [0, 19] x [0, 9], right, bottom in [1, 20] x [1, 10].
    boxes = torch.tensor(
        [[-5.0, -5.0, 30.0, 30.0], [2.5, 3.5, 7.25, 8.0], [25.0, 12.0, 40.0, 15.0], [-9.0, -9, -3, -2]]
    )
    expected = torch.tensor([[0.0, 0.0, 20.0, 10.0], [2.5, 3.5, 7.25, 8.0], [19.0, 9.0, 20.0, 10.0], [0.0, 0, 1, 1]])
    before = boxes.clone()
    assert torch.equal(clip_boxes_legacy(boxes, (10, 20)), expected)
    assert torch.equal(boxes, before)


def test_nothing_is_clipped_and_scaled_to_nothing():
    assert clip_boxes_legacy(torch.zeros(0, 4), (10, 20)).shape == (0, 4)
    assert scale_boxes_legacy(torch.zeros(0, 4), 2.0, 3.0).shape == (0, 4)


def test_scaling_multiplies_the_coordinates_of_first_and_last_pixel():
    # Pixels 2..9 x 3..5 become 4..18 x 9..15.
    assert scale_boxes_legacy(torch.tensor([[2.0, 3.0, 10.0, 6.0]]), 2.0, 3.0).tolist() == [[4.0, 9.0, 19.0, 16.0]]


def test_scaling_to_the_raw_image_equals_the_official_one():
    facts = json.loads((PARITY / "tiny" / "det.json").read_text())
    arrays = load(PARITY / "tiny" / "det_detections.npz")
    for image in range(2):
        (raw_height, raw_width), (height, width) = facts["raw_sizes_hw"][image], facts["batch"]["image_sizes_hw"][image]
        boxes = arrays[f"base.img{image}.boxes"] + LAST_PIXEL
        scaled = scale_boxes_legacy(boxes, raw_width / width, raw_height / height)
        assert_close(scaled - LAST_PIXEL, arrays[f"base.img{image}.boxes_original_size"], atol=5e-3, rtol=1e-4)


def test_distances_to_the_edges_are_between_pixel_centres():
    # The anchor covers the pixels 0..9, centre 4.5; the box has the pixels 2..11 x 7..8.
    anchor, box = torch.tensor([0.0, 0.0, 10.0, 10.0]), torch.tensor([2.0, 7.0, 12.0, 9.0])
    assert center_to_edges_legacy(anchor, box).tolist() == [2.5, -2.5, 6.5, 3.5]


def test_distances_broadcast():
    anchors, boxes = torch.rand(5, 1, 4), torch.rand(3, 4)
    distances = center_to_edges_legacy(anchors, boxes.expand(5, 3, 4))
    assert torch.equal(distances[4, 1], center_to_edges_legacy(anchors[4, 0], boxes[1]))


def test_encoded_boxes_are_those_of_detectron2_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    corner, extent = (
        torch.rand(2, 50, 2, generator=generator) * 300,
        torch.rand(2, 50, 2, generator=generator) * 200 + 1,
    )
    anchors, boxes = torch.cat((corner, corner + extent), dim=2)
    weights = (10.0, 10.0, 5.0, 5.0)
    assert torch.equal(box_deltas(anchors, boxes, weights), Box2BoxTransform(weights).get_deltas(anchors, boxes))
