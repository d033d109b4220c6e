"""Which boxes train the mask head and what they should draw, on cases that fit on squared paper."""

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from torch.testing import assert_close

from glipv2_d2.modeling.heads.mask_targets import MatchedRegions, crop_masks, match_proposals

ALL = 100


def make_instances(*boxes):
    instances = Instances((100, 100))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    return instances


def match(proposals, instances, usable=None, max_proposals=ALL):
    proposals = Boxes(torch.tensor(proposals, dtype=torch.float32).reshape(-1, 4))
    usable = torch.tensor(usable if usable is not None else [True] * len(instances), dtype=torch.bool)
    regions = match_proposals(proposals, instances, usable, max_proposals)
    assert regions.boxes.shape == (len(regions.matched_idxs), 4) and regions.matched_idxs.dtype == torch.int64
    return regions.boxes.tolist(), regions.matched_idxs.tolist()


FIRST, SECOND = [0, 0, 10, 10], [0, 20, 10, 40]


@pytest.mark.parametrize(
    "proposal, matched",
    [
        # 50 of 100 pixels: exactly one half is enough.
        ([0, 0, 10, 5], [0]),
        ([0, 0, 10, 4.9], []),
        # 100 of 200 pixels.
        ([0, 0, 10, 20], [0]),
        ([0, 0, 10, 20.5], []),
        ([1, 21, 10, 39], [1]),
        ([50, 50, 60, 60], []),
        ([5, 5, 5, 5], []),
    ],
)
def test_proposal_matches_from_one_half_on(proposal, matched):
    boxes, indices = match([proposal], make_instances(FIRST, SECOND))
    assert indices == [*matched, 0, 1]
    assert boxes == [*([proposal] if matched else []), FIRST, SECOND]


def test_proposal_goes_to_the_box_that_it_overlaps_most():
    # Over [0, 10] x [0, 12] the IoU is 10 / 12 with the first and 12 / 14 with the second.
    assert match([[0, 0, 10, 12]], make_instances(FIRST, [0, 0, 10, 14]))[1] == [1, 0, 1]


def test_no_more_proposals_than_asked_and_the_first_that_match():
    proposals = [[50, 50, 60, 60], [0, 0, 10, 9], [0, 0, 10, 8], [0, 20, 10, 38], [0, 0, 10, 7]]
    boxes, indices = match(proposals, make_instances(FIRST, SECOND), max_proposals=3)
    assert boxes == [*proposals[1:4], FIRST, SECOND] and indices == [0, 0, 1, 0, 1]
    assert match(proposals, make_instances(FIRST, SECOND), max_proposals=0)[0] == [FIRST, SECOND]


def test_boxes_without_a_mask_train_neither_themselves_nor_their_proposals():
    # The proposal overlaps the second box, which has a mask, by 10 / 14 only.
    instances = make_instances([0, 0, 10, 10], [0, 0, 10, 14])
    assert match([[0, 0, 10, 10]], instances, usable=[False, True]) == ([[0, 0, 10, 14]], [1])
    assert match([[0, 0, 10, 10]], instances, usable=[False, False]) == ([], [])


def test_unusable_proposals_do_not_use_up_the_limit():
    proposals = [[0, 20, 10, 40], [0, 0, 10, 9]]
    assert match(proposals, make_instances(FIRST, SECOND), [True, False], max_proposals=1)[1] == [0, 0]


def test_images_without_boxes_and_without_proposals():
    assert match([[0, 0, 10, 10]], make_instances()) == ([], [])
    assert match([], make_instances(FIRST)) == ([FIRST], [0])
    assert match([], make_instances()) == ([], [])


# --- the masks --------------------------------------------------------------------------------------------------------


def regions_of(boxes, indices):
    return MatchedRegions(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(indices).long())


def polygon_of(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


def bitmap_of(left, top, right, bottom):
    mask = torch.zeros(100, 100, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


RECTANGLES = [(10, 20, 22, 60), (30, 30, 90, 90)]
MASKS = {
    "polygons": PolygonMasks([polygon_of(*rectangle) for rectangle in RECTANGLES]),
    "bitmaps": BitMasks(torch.stack([bitmap_of(*rectangle) for rectangle in RECTANGLES])),
}


@pytest.mark.parametrize("kind", MASKS)
def test_mask_is_cut_to_the_frame_of_its_region(kind):
    # The frame [10, 34] x [20, 60]: a cell is 3 x 5 pixels, and the mask fills the left 12 of 24.
    targets = crop_masks(MASKS[kind], regions_of([[10, 20, 35, 61]], [0]), 8)
    assert targets.dtype == torch.float32
    assert targets.tolist() == [[[1, 1, 1, 1, 0, 0, 0, 0]] * 8]


@pytest.mark.parametrize("kind", MASKS)
def test_each_region_gets_the_mask_that_it_matched(kind):
    regions = regions_of([[30, 30, 91, 91], [10, 20, 23, 61], [30, 30, 91, 151]], [1, 0, 1])
    targets = crop_masks(MASKS[kind], regions, 4)
    below = [[1] * 4] * 2 + [[0] * 4] * 2
    assert targets.tolist() == [[[1] * 4] * 4, [[1] * 4] * 4, below]


@pytest.mark.parametrize("kind", MASKS)
def test_region_beside_its_mask_and_region_of_one_pixel(kind):
    targets = crop_masks(MASKS[kind], regions_of([[60, 1, 80, 9], [50, 50, 51, 51], [40, 40, 40, 40]], [0, 1, 1]), 4)
    assert not targets[0].any()
    assert targets[1].all() and targets[2].all()


@pytest.mark.parametrize("masks", [*MASKS.values(), PolygonMasks([]), BitMasks(torch.zeros(0, 9, 9))])
def test_no_regions_have_no_targets(masks):
    assert crop_masks(masks, regions_of([], []), 28).shape == (0, 28, 28)


def test_pieces_of_a_mask_are_united():
    masks = PolygonMasks([polygon_of(0, 0, 4, 16) + polygon_of(12, 0, 16, 16)])
    targets = crop_masks(masks, regions_of([[0, 0, 17, 17]], [0]), 4)
    assert_close(targets, torch.tensor([1.0, 0, 0, 1]).expand(1, 4, 4))
