"""Where positions lie: their coordinates, and what the fusion makes of them."""

import numpy as np
import pytest
import torch
from slow_layers import layer_norm

from glipv2_d2.layers.fusion import BiAttentionBlock
from glipv2_d2.layers.positions import cell_coordinates, relative_coordinates

FORMS = ("plain", "folded")


def make_block(form="auto", positions=True):
    torch.manual_seed(0)
    sizes = {"embed_dim": 8, "num_heads": 2, "dropout": 0.0, "layer_scale": 1.0}
    return BiAttentionBlock(6, 5, **sizes, form=form, positions=positions).double()


def make_levels():
    torch.manual_seed(1)
    return [torch.randn(2, 6, *size, dtype=torch.float64) for size in ((3, 5), (2, 3))]


def test_the_longer_side_runs_from_minus_one_to_one():
    points = torch.tensor([[0.0, 0.0], [200.0, 100.0], [100.0, 50.0]])
    assert relative_coordinates(points, (100, 200)).tolist() == [[-1, -1], [1, 0], [0, -0.5]]
    assert relative_coordinates(points.flip(1), (200, 100)).tolist() == [[-1, -1], [0, 1], [-0.5, 0]]


def test_cells_of_all_levels_have_the_coordinates_of_their_centres_row_by_row():
    found = cell_coordinates([torch.zeros(2, 3, 2, 4), torch.zeros(2, 3, 1, 2)])
    fine = [[x, y] for y in (-0.75, -0.25) for x in (-0.75, -0.25, 0.25, 0.75)]
    assert found.tolist() == [*fine, [-0.5, -0.5], [0.5, -0.5]]


def test_cells_of_levels_whose_sizes_were_rounded_up_lie_in_the_frame_of_the_finest():
    # 104 x 168 pixels at the strides 8, 16, 64 and 128; the cells of the last are 16 of the finest wide.
    sizes = [(13, 21), (7, 11), (2, 3), (1, 2), (1, 1), (1, 1)]
    found = cell_coordinates([torch.zeros(1, 1, *size) for size in sizes]).split([h * w for h, w in sizes])
    for (height, width), stride, coordinates in zip(sizes, (1, 2, 8, 16, 32, 64), found):
        centres = [[stride * (x + 0.5), stride * (y + 0.5)] for y in range(height) for x in range(width)]
        torch.testing.assert_close(coordinates, torch.tensor(centres) * 2 / 21 - 1)


def test_coordinates_have_the_type_of_the_maps():
    assert cell_coordinates([torch.zeros(1, 1, 3, 2, dtype=torch.bfloat16)]).dtype == torch.bfloat16


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("both_ways", [True, False])
def test_what_attends_reads_places_and_the_image_goes_on_without_them(form, both_ways):
    features, hidden = make_levels(), torch.randn(2, 4, 5, dtype=torch.float64)
    mask = torch.ones(2, 4, dtype=torch.bool)
    block = make_block(form)
    levels, tokens = block(features, hidden, mask, both_ways)
    # The slow way: the attention of the block on normalized features with their places added.
    columns = torch.cat([level.flatten(2) for level in features], 2).transpose(1, 2)
    normed = torch.tensor(layer_norm(columns.numpy(), np.ones(6), np.zeros(6), eps=1e-5))
    weight = block.position_proj.weight.detach()
    coordinates = [[(2 * x + 1) / 5 - 1, (2 * y + 1) / 5 - 1] for y in range(3) for x in range(5)]
    coordinates += [[(4 * x + 2) / 5 - 1, (4 * y + 2) / 5 - 1] for y in range(2) for x in range(3)]
    # Cells have the single precision of their coordinates.
    placed = normed + torch.tensor(coordinates, dtype=torch.float64) @ weight.T
    language = block.norm_language(hidden)
    to_image, to_text = block.attention(placed, language, mask, form)
    torch.testing.assert_close(tokens, language + to_text, rtol=0, atol=1e-6)
    expected = normed + to_image if both_ways else normed
    found = torch.cat([level.flatten(2) for level in levels], 2).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_places_are_learned():
    block, mask = make_block(), torch.ones(2, 4, dtype=torch.bool)
    block(make_levels(), torch.randn(2, 4, 5, dtype=torch.float64), mask)[1].square().sum().backward()
    assert block.position_proj.weight.grad.abs().min() > 0


@pytest.mark.parametrize("positions", [True, False])
def test_only_with_positions_tokens_can_tell_an_image_from_one_with_the_cells_moved(positions):
    block, features = make_block(positions=positions), make_levels()
    hidden, mask = torch.randn(2, 4, 5, dtype=torch.float64), torch.ones(2, 4, dtype=torch.bool)
    _, tokens = block(features, hidden, mask)
    _, mirrored = block([level.flip(-1) for level in features], hidden, mask)
    assert torch.allclose(tokens, mirrored, rtol=0, atol=1e-9) is not positions
