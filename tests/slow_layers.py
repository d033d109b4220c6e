"""Slow second formulations of the layers, in double precision and mostly in scalar loops, that tests compare with."""

from __future__ import annotations

import math

import numpy as np

LIMIT = 50_000.0


def softmax(scores: np.ndarray, axis: int) -> np.ndarray:
    exponentials = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return exponentials / exponentials.sum(axis=axis, keepdims=True)


def clamp(values: np.ndarray) -> np.ndarray:
    return np.minimum(np.maximum(values, -LIMIT), LIMIT)


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * weight + bias


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def hard_sigmoid(x: np.ndarray) -> np.ndarray:
    return np.clip(x + 3, 0, 6) / 6


def linear(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def group_norm(x: np.ndarray, num_groups: int, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """(N, C, H, W), eps 1e-5."""
    result = np.empty_like(x)
    size = x.shape[1] // num_groups
    for image in range(len(x)):
        for first in range(0, x.shape[1], size):
            group = x[image, first : first + size]
            result[image, first : first + size] = (group - group.mean()) / math.sqrt(group.var() + 1e-5)
    return result * weight[:, None, None] + bias[:, None, None]


def conv2d(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """Plain convolution of (N, C, H, W)."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    kernel_h, kernel_w = weight.shape[2:]
    out_h, out_w = ((length - taps) // stride + 1 for length, taps in zip(x.shape[2:], (kernel_h, kernel_w)))
    result = np.empty((len(x), len(weight), out_h, out_w))
    for row in range(out_h):
        for column in range(out_w):
            top, left = row * stride, column * stride
            window = x[:, :, top : top + kernel_h, left : left + kernel_w]
            result[:, :, row, column] = np.einsum("nchw,ochw->no", window, weight) + bias
    return result


def sample(plane: np.ndarray, row: float, column: float) -> float:
    """Read a plane (H, W) bilinearly; pixels outside are 0."""
    value = 0.0
    top, left = math.floor(row), math.floor(column)
    for y in (top, top + 1):
        for x in (left, left + 1):
            if 0 <= y < plane.shape[0] and 0 <= x < plane.shape[1]:
                value += plane[y, x] * (1 - abs(row - y)) * (1 - abs(column - x))
    return value


def deform_conv(
    x: np.ndarray,
    offset: np.ndarray,
    modulation: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    stride: int,
    padding: int,
) -> np.ndarray:
    """Modulated deformable convolution, tap by tap."""
    out_channels, channels, kernel_h, kernel_w = weight.shape
    num_images, _, out_h, out_w = offset.shape
    result = np.empty((num_images, out_channels, out_h, out_w))
    for n, y, x_ in np.ndindex(num_images, out_h, out_w):
        result[n, :, y, x_] = bias
        for i, j in np.ndindex(kernel_h, kernel_w):
            tap = i * kernel_w + j
            row = y * stride - padding + i + offset[n, 2 * tap, y, x_]
            column = x_ * stride - padding + j + offset[n, 2 * tap + 1, y, x_]
            for c in range(channels):
                value = sample(x[n, c], row, column) * modulation[n, tap, y, x_]
                result[n, :, y, x_] += weight[:, c, i, j] * value
    return result


def read_flat(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """Read each image of (N, K, H, W) as (K, height, width), number by number."""
    num_images, channels = maps.shape[:2]
    result = np.empty((num_images, channels, height, width))
    for n in range(num_images):
        memory = [float(value) for plane in maps[n] for line in plane for value in line]
        for c, y, x in np.ndindex(channels, height, width):
            result[n, c, y, x] = memory[c * height * width + y * width + x]
    return result


def resize_aligned(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Enlarge (N, C, h, w) bilinearly; the corner pixels of both grids coincide."""
    result = np.empty((*x.shape[:2], height, width))
    row_step = (x.shape[2] - 1) / (height - 1) if height > 1 else 0.0
    column_step = (x.shape[3] - 1) / (width - 1) if width > 1 else 0.0
    for n, c, row, column in np.ndindex(result.shape):
        result[n, c, row, column] = sample(x[n, c], row * row_step, column * column_step)
    return result


def dynamic_relu(x: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    hidden = np.maximum(linear(x.mean((2, 3)), weights, "relu.fc.0"), 0)
    shares = hard_sigmoid(linear(hidden, weights, "relu.fc.2"))
    slope1, intercept1, slope2, intercept2 = (part[:, :, None, None] for part in np.split(shares, 4, axis=1))
    first = x * (2 * (slope1 - 0.5) + 1) + (intercept1 - 0.5)
    second = x * (2 * (slope2 - 0.5)) + (intercept2 - 0.5)
    return np.maximum(first, second)


def dyconv(
    features: list[np.ndarray], weights: dict[str, np.ndarray], num_groups: int, deformable: bool
) -> list[np.ndarray]:
    """DyConv with dynamic ReLU; ``weights`` under the names of the module."""

    def unit(index: int, x: np.ndarray, offset: np.ndarray | None, modulation: np.ndarray | None) -> np.ndarray:
        prefix, stride = f"convs.{index}", 2 if index == 2 else 1
        kernel, bias = weights[f"{prefix}.conv.weight"], weights[f"{prefix}.conv.bias"]
        if offset is None or modulation is None:
            x = conv2d(x, kernel, bias, stride, 1)
        else:
            x = deform_conv(x, offset, modulation, kernel, bias, stride, 1)
        return group_norm(x, num_groups, weights[f"{prefix}.norm.weight"], weights[f"{prefix}.norm.bias"])

    results = []
    for level, x in enumerate(features):
        offset = modulation = None
        if deformable:
            maps = conv2d(x, weights["offset.weight"], weights["offset.bias"], 1, 1)
            offset, modulation = maps[:, :18], 1 / (1 + np.exp(-maps[:, 18:]))
        branches = [unit(1, x, offset, modulation)]
        if level > 0:
            branches.append(unit(2, features[level - 1], offset, modulation))
        if level + 1 < len(features):
            coarser = features[level + 1]
            if offset is not None and modulation is not None:
                offset, modulation = (read_flat(maps, *coarser.shape[2:]) for maps in (offset, modulation))
            branches.append(resize_aligned(unit(0, coarser, offset, modulation), *x.shape[2:]))
        total = np.zeros_like(branches[0])
        for branch in branches:
            pooled = branch.mean((2, 3), keepdims=True)
            score = conv2d(pooled, weights["level_attention.weight"], weights["level_attention.bias"], 1, 0)
            total += branch * hard_sigmoid(np.maximum(score, 0))
        results.append(dynamic_relu(total / len(branches), weights))
    return results


def bi_attention(
    visual: np.ndarray, language: np.ndarray, mask: np.ndarray, weights: dict[str, np.ndarray], num_heads: int
) -> tuple[np.ndarray, np.ndarray]:
    """Updates of one image (S, C) and its prompt (T, D); ``weights`` under the names of BiMultiHeadAttention."""
    query, visual_value = (linear(visual, weights, name) for name in ("visual_proj", "visual_value_proj"))
    key, language_value = (linear(language, weights, name) for name in ("language_proj", "language_value_proj"))
    size = query.shape[1] // num_heads
    visual_heads, language_heads = [], []
    for head in range(num_heads):
        part = slice(head * size, (head + 1) * size)
        scores = clamp(query[:, part] / math.sqrt(size) @ key[:, part].T)  # (S, T)
        real = scores[:, mask]
        visual_heads.append(softmax(real, axis=1) @ language_value[mask][:, part])
        language_heads.append(softmax(scores, axis=0).T @ visual_value[:, part])
    return (
        linear(np.concatenate(visual_heads, axis=1), weights, "visual_out_proj"),
        linear(np.concatenate(language_heads, axis=1), weights, "language_out_proj"),
    )


def language_layer(hidden: np.ndarray, mask: np.ndarray, weights: dict[str, np.ndarray], num_heads: int) -> np.ndarray:
    """One prompt (T, D); ``weights`` under the names of LanguageLayer."""
    query, key, value = (linear(hidden, weights, name) for name in ("query", "key", "value"))
    size = query.shape[1] // num_heads
    heads = []
    for head in range(num_heads):
        part = slice(head * size, (head + 1) * size)
        scores = clamp(query[:, part] @ key[:, part].T / math.sqrt(size))
        heads.append(softmax(scores[:, mask], axis=1) @ value[mask][:, part])
    attended = linear(np.concatenate(heads, axis=1), weights, "attention_output")
    norms = {name: (weights[f"{name}.weight"], weights[f"{name}.bias"]) for name in ("attention_norm", "output_norm")}
    hidden = layer_norm(hidden + attended, *norms["attention_norm"], eps=1e-12)
    inner = clamp(gelu(clamp(linear(hidden, weights, "intermediate"))))
    return clamp(layer_norm(hidden + clamp(linear(inner, weights, "output")), *norms["output_norm"], eps=1e-12))
