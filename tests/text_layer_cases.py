"""Text layers of both kinds, small enough for the slow formulations, and the comparison with those."""

import numpy as np
import torch
from slow_clip import pre_norm_layer as slow_pre_norm_layer
from slow_layers import language_layer as slow_language_layer
from torch import Tensor, nn

from glipv2_d2.layers.language_layer import LanguageLayer
from glipv2_d2.layers.pre_norm_layer import PreNormLayer

SLOW = {LanguageLayer: slow_language_layer, PreNormLayer: slow_pre_norm_layer}


def make_layer(kind: type[nn.Module], drop: float = 0.0, spread: float = 1.5, dtype=torch.float64) -> nn.Module:
    """Width 6 in 3 heads, with every parameter random; ``drop`` is its dropout or the rate of dropped paths."""
    torch.manual_seed(0)
    layer = kind(6, 3, 10, drop).to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=spread / (parameter.shape[1] if parameter.ndim > 1 else 1) ** 0.5)
    return layer


def make_mask(lengths: list[int], size: int) -> Tensor:
    return torch.arange(size) < torch.tensor(lengths)[:, None]


def slow_forward(layer: nn.Module, hidden: Tensor, mask: Tensor) -> np.ndarray:
    """The slow formulation of one text, (T, D) and (T,)."""
    weights = {name: value.detach().numpy() for name, value in layer.named_parameters()}
    return SLOW[type(layer)](hidden.numpy(), mask.numpy(), weights, 3)


def assert_equals_slow(layer: nn.Module, hidden: Tensor, mask: Tensor) -> None:
    actual = layer(hidden, mask)
    for prompt in range(len(hidden)):
        expected = slow_forward(layer, hidden[prompt], mask[prompt])
        np.testing.assert_allclose(actual[prompt].detach().numpy(), expected, rtol=1e-10, atol=1e-10)
