"""Masks of boxes become masks of the image."""

import pytest
import torch

from glipv2_d2.modeling.postprocessing import paste_masks


def slow_paste(mask, box, size, threshold):
    """Sample at the centre of each pixel; the mask is 0 around its border."""
    side = len(mask)
    left, top, right, bottom = box
    result = torch.zeros(size, dtype=torch.bool)

    def cell(row, column):
        return float(mask[row, column]) if 0 <= row < side and 0 <= column < side else 0.0

    for row in range(size[0]):
        for column in range(size[1]):
            y = (row + 0.5 - top) / (bottom - top) * side - 0.5
            x = (column + 0.5 - left) / (right - left) * side - 0.5
            i, j = int(y // 1), int(x // 1)
            dy, dx = y - i, x - j
            value = (cell(i, j) * (1 - dx) + cell(i, j + 1) * dx) * (1 - dy)
            value += (cell(i + 1, j) * (1 - dx) + cell(i + 1, j + 1) * dx) * dy
            result[row, column] = value >= threshold
    return result


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_pasted_masks_equal_scalar_loops(threshold):
    masks = torch.rand(4, 4, 4, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[3.2, 2.1, 20.7, 12.4], [0, 0, 30, 20], [-5.5, -3, 8, 9.5], [25, 15, 33, 24.0]])
    pasted = paste_masks(masks, boxes, (20, 30), threshold)
    expected = torch.stack([slow_paste(mask, box, (20, 30), threshold) for mask, box in zip(masks, boxes.tolist())])
    assert pasted.dtype == torch.bool
    assert torch.equal(pasted, expected)
    assert expected.any((1, 2)).all() and not expected.all()


def test_a_full_mask_fills_its_box():
    pasted = paste_masks(torch.ones(1, 28, 28), torch.tensor([[4.0, 6.0, 14.0, 9.0]]), (12, 20))
    expected = torch.zeros(12, 20, dtype=torch.bool)
    expected[6:9, 4:14] = True
    assert torch.equal(pasted[0], expected)


def test_no_masks_are_none_of_the_image():
    pasted = paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (5, 7))
    assert pasted.shape == (0, 5, 7) and pasted.dtype == torch.bool


def test_half_precision_masks_land_where_single_precision_ones_do():
    mask = torch.zeros(1, 2, 2)
    mask[0, :, 1] = 1
    boxes = torch.tensor([[1001.0, 2.0, 1041.0, 8.0]])
    assert torch.equal(paste_masks(mask.half(), boxes, (10, 1100)), paste_masks(mask, boxes, (10, 1100)))
