"""Fusion in one direction: tokens read the image, the image reads no token."""

import numpy as np
import pytest
import torch
from slow_layers import bi_attention, layer_norm
from torch import Tensor

from glipv2_d2.layers.fusion import BiAttentionBlock, BiMultiHeadAttention, split_levels

FORMS = ("plain", "folded")


def randomize(module: torch.nn.Module, spread: float = 1.0) -> None:
    """Every parameter random, biases and gammas too, so that no term vanishes."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.normal_(std=spread / fan_in**0.5)


def make_attention(heads=2, dropout=0.0) -> BiMultiHeadAttention:
    attention = BiMultiHeadAttention(6, 5, 8, heads, dropout).double()
    randomize(attention, spread=2.0)
    return attention


def make_block(form="auto") -> BiAttentionBlock:
    block = BiAttentionBlock(6, 5, embed_dim=8, num_heads=2, dropout=0.0, layer_scale=0.125, form=form).double()
    randomize(block)
    return block


def make_levels() -> list[Tensor]:
    return [torch.randn(2, 6, *size, dtype=torch.float64) for size in ((3, 5), (2, 3), (1, 2))]


def make_mask(lengths: list[int], size: int) -> Tensor:
    return torch.arange(size) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("form", FORMS)
def test_tokens_read_the_image_as_in_both_directions(form):
    attention = make_attention(heads=4)
    visual, language = torch.randn(2, 7, 6, dtype=torch.float64), torch.randn(2, 5, 5, dtype=torch.float64)
    weights = {name: value.detach().numpy() for name, value in attention.named_parameters()}
    for chosen in (form, "auto"):
        actual = attention.read_image(visual, language, chosen).detach().numpy()
        for image in range(2):
            everything = np.ones(5, dtype=bool)
            _, expected = bi_attention(visual[image].numpy(), language[image].numpy(), everything, weights, 4)
            np.testing.assert_allclose(actual[image], expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="found 'fast', expected one of auto, plain, folded"):
        attention.read_image(visual, language, "fast")


@pytest.mark.parametrize("form", FORMS)
def test_block_without_image_reads_leaves_the_normalized_image_and_the_same_tokens(form):
    block = make_block(form)
    features, hidden, mask = make_levels(), torch.randn(2, 4, 5, dtype=torch.float64), make_mask([4, 2], 4)
    levels, tokens = block(features, hidden, mask, image_reads=False)
    _, expected = block(features, hidden, mask)
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-12)
    weight, bias = (block.norm_visual.get_parameter(name).detach().numpy() for name in ("weight", "bias"))
    for level, before in zip(levels, features):
        normed = layer_norm(before.permute(0, 2, 3, 1).numpy(), weight, bias, eps=1e-5)
        np.testing.assert_allclose(level.permute(0, 2, 3, 1).detach().numpy(), normed, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_without_image_reads_levels_and_other_tokens_do_not_depend_on_a_token_exactly(form):
    block = make_block(form).float()
    features, hidden = [level.float() for level in make_levels()], torch.randn(2, 4, 5)
    mask = make_mask([4, 4], 4)
    levels, tokens = block(features, hidden, mask, image_reads=False)
    other = hidden.clone()
    other[:, 2] = torch.randn(2, 5)
    other_levels, other_tokens = block(features, other, mask, image_reads=False)
    assert all(map(torch.equal, other_levels, levels))
    changed = (other_tokens != tokens).any(-1)
    assert changed.tolist() == [[False, False, True, False]] * 2


def test_positions_of_a_block_are_read_in_any_form():
    block = make_block("plain")
    features, hidden = make_levels(), torch.randn(2, 4, 5, dtype=torch.float64)
    _, expected = block(features, hidden, make_mask([4, 4], 4), image_reads=False)
    visual = block.normalize_image(features)
    assert visual.shape == (2, 15 + 6 + 2, 6)
    for form in (None, *FORMS):
        torch.testing.assert_close(block.read_image(visual, hidden, form), expected, rtol=0, atol=1e-12)
    for level, before in zip(split_levels(torch.cat([f.flatten(2).mT for f in features], 1), features), features):
        assert torch.equal(level, before)


@pytest.mark.parametrize("form", FORMS)
def test_dropout_acts_on_what_tokens_alone_read_in_training_only(form):
    attention = make_attention(dropout=1.0)
    visual, language = torch.randn(1, 7, 6, dtype=torch.float64), torch.randn(1, 5, 5, dtype=torch.float64)
    assert torch.equal(attention.read_image(visual, language, form), attention.language_out_proj.bias.expand(1, 5, 5))
    _, expected = attention.eval()(visual, language, make_mask([5], 5), form)
    torch.testing.assert_close(attention.read_image(visual, language, form), expected, rtol=0, atol=1e-12)
