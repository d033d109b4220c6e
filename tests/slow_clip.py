"""Slow second formulation of CLIP-type text layers, in double precision, one token and one head at a time."""

from __future__ import annotations

import numpy as np
from slow_layers import layer_norm, linear, softmax


def pre_norm_layer(x: np.ndarray, mask: np.ndarray, weights: dict[str, np.ndarray], num_heads: int) -> np.ndarray:
    """Update (T, D), the tokens of one prompt; those outside ``mask`` (T,) are seen by none."""
    normed = layer_norm(x, weights["ln_1.weight"], weights["ln_1.bias"], 1e-12)
    width = x.shape[1]
    size = width // num_heads
    joined = normed @ weights["attn.in_proj_weight"].T + weights["attn.in_proj_bias"]
    query, key, value = (joined[:, part * width : (part + 1) * width] for part in range(3))
    attended = np.zeros_like(x)
    real = np.flatnonzero(mask)
    for head in range(num_heads):
        columns = slice(head * size, (head + 1) * size)
        for token in range(len(x)):
            scores = np.array([query[token, columns] @ key[other, columns] for other in real]) / np.sqrt(size)
            attended[token, columns] = softmax(scores, 0) @ value[real, columns]
    x = x + linear(attended, weights, "attn.out_proj")
    inner = linear(layer_norm(x, weights["ln_2.weight"], weights["ln_2.bias"], 1e-12), weights, "mlp.c_fc")
    return x + linear(inner / (1 + np.exp(-1.702 * inner)), weights, "mlp.c_proj")


def clip_text_encoder(
    ids: np.ndarray, mask: np.ndarray, weights: dict[str, np.ndarray], num_layers: int, num_heads: int
) -> np.ndarray:
    """Encode one prompt of T token ids to (T, D)."""
    x = weights["token_embedding.weight"][ids] + weights["positional_embedding"][: len(ids)]
    for layer in range(num_layers):
        start = f"resblocks.{layer}."
        own = {name.removeprefix(start): value for name, value in weights.items() if name.startswith(start)}
        x = pre_norm_layer(x, mask, own, num_heads)
    return layer_norm(x, weights["ln_final.weight"], weights["ln_final.bias"], 1e-12)
