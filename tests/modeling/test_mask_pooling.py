"""What is pooled for a box: its frame, its level, its samples."""

import math

import pytest
import torch
from torch.testing import assert_close

from glipv2_d2.modeling.heads.mask_pooling import RegionPooler, mask_frames

STRIDES = [8, 16, 32, 64, 128]


def make_pooler(**changes):
    return RegionPooler(**{"strides": STRIDES, "resolution": 2, "sampling_ratio": 2} | changes)


def square(size, left=0.0, top=0.0):
    return [left, top, left + size, top + size]


def random_levels(num_images=1, channels=3):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(num_images, channels, 256 // s, 256 // s, generator=generator) for s in STRIDES]


@pytest.mark.parametrize(
    "box, frame",
    [
        ([10.0, 20.0, 31.0, 24.5], [10.0, 20.0, 30.0, 23.5]),
        # The frame of a single pixel has its width, not none.
        ([3.0, 4.0, 4.0, 8.0], [3.0, 4.0, 4.0, 7.0]),
        ([3.0, 4.0, 3.0, 4.0], [3.0, 4.0, 4.0, 5.0]),
    ],
)
def test_frame_ends_at_the_last_pixel_and_is_never_empty(box, frame):
    boxes = torch.tensor([box])
    assert mask_frames(boxes).tolist() == [frame]
    assert boxes.tolist() == [box]


@pytest.mark.parametrize(
    "size, level",
    # 224 pixels: 2^4, the second level. The official + 1e-6 is a matter of 0.0002 pixels.
    [(1, 0), (111.9, 0), (112, 0), (223.9, 0), (224, 1), (447.9, 1), (448, 2), (896, 3), (1792, 4), (9000, 4)],
)
def test_level_follows_the_size_of_the_half_open_box(size, level):
    assert make_pooler().assign_levels([torch.tensor([square(size)])]).tolist() == [level]


def test_level_follows_the_area_of_boxes_that_are_no_squares():
    wide = torch.tensor([[0.0, 0.0, 448.0, 112.0], [0.0, 0.0, 448.0, 111.0]])
    assert make_pooler().assign_levels([wide]).tolist() == [1, 0]


def bilinear(level, y, x):
    """The feature at (y, x), cells at whole numbers; samples outside the map go to its border."""
    height, width = level.shape[1:]
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = min(int(y), height - 1), min(int(x), width - 1)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    return (
        level[:, top, left] * (1 - dy) * (1 - dx)
        + level[:, top, right] * (1 - dy) * dx
        + level[:, bottom, left] * dy * (1 - dx)
        + level[:, bottom, right] * dy * dx
    )


def slow_pool(levels, image, box, resolution, sampling_ratio):
    """ROIAlign without the shift by half a cell, in scalar loops."""
    left, top, right, bottom = box
    place = math.floor(4 + math.log2(math.sqrt((right - left) * (bottom - top)) / 224 + 1e-6)) - 3
    place = min(max(place, 0), len(levels) - 1)
    stride, level = STRIDES[place], levels[place][image]
    y0, x0 = top / stride, left / stride
    cell_h = max((bottom - 1) / stride - y0, 1.0) / resolution
    cell_w = max((right - 1) / stride - x0, 1.0) / resolution
    rows, columns = sampling_ratio or math.ceil(cell_h), sampling_ratio or math.ceil(cell_w)
    result = torch.zeros(level.shape[0], resolution, resolution)
    for i in range(resolution):
        for j in range(resolution):
            for sy in range(rows):
                for sx in range(columns):
                    y, x = y0 + cell_h * (i + (sy + 0.5) / rows), x0 + cell_w * (j + (sx + 0.5) / columns)
                    result[:, i, j] += bilinear(level, y, x) / (rows * columns)
    return result


@torch.no_grad()
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
def test_pooled_features_equal_scalar_loops(sampling_ratio):
    levels = random_levels(num_images=2)
    boxes = [
        [[10.3, 20.7, 95.2, 141.0], [0.0, 0.0, 255.0, 250.0], [33.0, 40.0, 36.0, 42.0]],
        [[5.0, 8.0, 252.0, 240.0], [100.0, 3.0, 130.5, 200.0]],
    ]
    pooled = make_pooler(resolution=3, sampling_ratio=sampling_ratio)(levels, [torch.tensor(b) for b in boxes])
    expected = [slow_pool(levels, i, box, 3, sampling_ratio) for i, image in enumerate(boxes) for box in image]
    assert_close(pooled, torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_boxes_of_images_do_not_mix_and_an_image_may_have_none():
    levels = random_levels(num_images=3)
    boxes = [torch.tensor([square(50, 20)]), torch.zeros(0, 4), torch.tensor([square(230), square(9, 100)])]
    pooler = make_pooler()
    alone = [pooler([level[i : i + 1] for level in levels], [boxes[i]]) for i in (0, 2)]
    assert_close(pooler(levels, boxes), torch.cat(alone))


def test_no_box_at_all_pools_nothing():
    pooled = make_pooler()(random_levels(2), [torch.zeros(0, 4)] * 2)
    assert pooled.shape == (0, 3, 2, 2)


def test_gradient_goes_to_the_level_of_each_box():
    levels = [level.requires_grad_() for level in random_levels()]
    make_pooler()(levels, [torch.tensor([square(50), square(250)])]).sum().backward()
    assert [bool(level.grad.any()) for level in levels] == [True, True, False, False, False]


def test_half_precision_features_keep_the_place_of_the_boxes():
    # At 1301.5 half precision knows whole numbers only: the centre would be that of pixel 1352, where the ramp is 0.
    ramp = (torch.arange(256.0) - 169).expand(1, 1, 256, 256)
    levels = [ramp.half()] + [torch.zeros(1, 1, 4, 4).half()] * 4
    pooled = make_pooler(resolution=1)(levels, [torch.tensor([[1301.5, 0.0, 1402.5, 101.0]])])
    assert pooled.dtype == torch.float16
    assert pooled.item() == pytest.approx(1351.5 / 8 - 169)


@pytest.mark.parametrize("strides", [[8, 16, 64], [6, 12], [16, 8]])
def test_strides_that_are_not_doubled_are_an_error(strides):
    with pytest.raises(ValueError, match="RegionPooler: expected powers of 2, each twice the one before"):
        make_pooler(strides=strides)
