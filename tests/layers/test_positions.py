"""Where positions lie: the code of a place, and what the fusion makes of it."""

import math

import numpy as np
import pytest
import torch
from slow_layers import layer_norm

from glipv2_d2.layers.fusion import BiAttentionBlock
from glipv2_d2.layers.positions import POSITION_CHANNELS, encode_positions

FORMS = ("plain", "folded")


def make_block(form="auto", positions=True):
    torch.manual_seed(0)
    sizes = {"embed_dim": 8, "num_heads": 2, "dropout": 0.0, "layer_scale": 1.0}
    return BiAttentionBlock(6, 5, **sizes, form=form, positions=positions).double()


def make_levels():
    torch.manual_seed(1)
    return [torch.randn(2, 6, *size, dtype=torch.float64) for size in ((3, 5), (2, 3))]


def test_code_holds_waves_of_both_coordinates_over_the_longer_side():
    codes = encode_positions([torch.zeros(2, 3, 2, 4), torch.zeros(2, 3, 1, 2)])
    expected = []
    for height, width in ((2, 4), (1, 2)):
        for row in range(height):
            for column in range(width):
                x, y = (column + 0.5) / width, (row + 0.5) / width
                waves = [[math.cos(math.pi * k * v) for v in (x, y)] for k in (1, 2, 4)]
                sines = [[math.sin(math.pi * k * v) for v in (x, y)] for k in (1, 2, 4)]
                expected.append([number for pair in zip(waves, sines) for wave in pair for number in wave])
    assert codes.shape == (8 + 2, POSITION_CHANNELS)
    np.testing.assert_allclose(codes.numpy(), expected, rtol=0, atol=1e-6)


def test_one_place_has_one_code_on_every_level_and_no_other_place_has_it():
    codes = encode_positions([torch.zeros(1, 1, 6, 9), torch.zeros(1, 1, 2, 3)])
    # The middle of three cells along each side is the middle of the coarser cell.
    fine = codes[: 6 * 9].unflatten(0, (6, 9))[1::3, 1::3].flatten(0, 1)
    torch.testing.assert_close(codes[6 * 9 :], fine)
    assert (torch.cdist(codes[: 6 * 9], codes[: 6 * 9]) + torch.eye(6 * 9)).min() > 0.05


def test_code_has_the_type_of_the_maps():
    codes = encode_positions([torch.zeros(1, 1, 3, 2, dtype=torch.bfloat16)])
    assert codes.dtype == torch.bfloat16 and codes.abs().max() <= 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("both_ways", [True, False])
def test_positions_change_nothing_before_they_have_learned(form, both_ways):
    features, hidden = make_levels(), torch.randn(2, 4, 5, dtype=torch.float64)
    mask = torch.ones(2, 4, dtype=torch.bool)
    plain, placed = make_block(form, positions=False), make_block(form)
    names = placed.load_state_dict(plain.state_dict(), strict=False)
    assert names.missing_keys == ["position_proj.weight"] and not names.unexpected_keys
    (levels, tokens), (expected_levels, expected) = (
        block(features, hidden, mask, both_ways) for block in (placed, plain)
    )
    assert torch.equal(tokens, expected) and all(map(torch.equal, levels, expected_levels))
    tokens.sum().backward()
    assert placed.position_proj.weight.grad.abs().sum() > 0


def test_every_position_of_the_normalized_image_says_where_it_lies():
    block, features = make_block(), make_levels()
    torch.nn.init.normal_(block.position_proj.weight)
    found = block.normalize_image(features).detach().numpy()
    place = 0
    for level in features:
        codes = encode_positions([level]).numpy()
        columns = level.flatten(2).numpy()
        for index, code in enumerate(codes):
            for image in range(2):
                normed = layer_norm(columns[image, :, index], np.ones(6), np.zeros(6), eps=1e-5)
                expected = normed + block.position_proj.weight.detach().numpy() @ code
                np.testing.assert_allclose(found[image, place], expected, rtol=0, atol=1e-12)
            place += 1


@pytest.mark.parametrize("positions", [True, False])
def test_only_with_positions_tokens_can_tell_an_image_from_one_with_the_cells_moved(positions):
    block, features = make_block(positions=positions), make_levels()
    if positions:
        torch.nn.init.normal_(block.position_proj.weight)
    hidden, mask = torch.randn(2, 4, 5, dtype=torch.float64), torch.ones(2, 4, dtype=torch.bool)
    _, tokens = block(features, hidden, mask)
    _, mirrored = block([level.flip(-1) for level in features], hidden, mask)
    assert torch.allclose(tokens, mirrored, rtol=0, atol=1e-9) is not positions
