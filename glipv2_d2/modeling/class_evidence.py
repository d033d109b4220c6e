"""What the classes of an image classifier say about names: class probabilities of boxes, compared by word vectors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Keeps the logarithm finite where no kept class is like a name.
_LEAST_RATIO = 1e-6


def box_cell_shares(boxes: Tensor, stride: float, height: int, width: int) -> Tensor:
    """Return for each box how its area is shared among the cells of a feature map.

    The mean of the map over the box is the product of these shares and the map, exactly, without sampling.

    Args:
        boxes: (..., 4) XYXY in pixels; the part outside the map does not count.
        stride: Side of a cell, pixels.
        height: Cells of the map, from top to bottom.
        width: Cells of the map, from left to right.

    Returns:
        (..., height * width), rows that sum to 1. A box without area takes the cells that it touches, and one outside
        the map the nearest cell.
    """
    lengths = [
        _interval_shares(boxes[..., axis] / stride, boxes[..., axis + 2] / stride, count)
        for axis, count in ((1, height), (0, width))
    ]
    return (lengths[0][..., :, None] * lengths[1][..., None, :]).flatten(-2)  # (..., height * width)


def _interval_shares(begin: Tensor, end: Tensor, count: int) -> Tensor:
    """Share intervals, (...), among ``count`` cells of length 1; rows of (..., count) sum to 1."""
    # A sliver takes the place of an interval without length.
    begin = begin.clamp(0, count - 1e-3)
    end = end.clamp(max=count).maximum(begin + 1e-3)
    cells = torch.arange(count, device=begin.device, dtype=begin.dtype)
    overlaps = (end[..., None].minimum(cells + 1) - begin[..., None].maximum(cells)).clamp(min=0)
    return overlaps / overlaps.sum(dim=-1, keepdim=True)


def kept_probabilities(logits: Tensor, temperature: float, kept: int) -> Tensor:
    """Return class probabilities, softmax of logits divided by a temperature, of the ``kept`` likeliest classes.

    Args:
        logits: (..., K).
        temperature: Above 1 the probabilities are closer to each other.
        kept: Classes of a row that keep their probability, scaled to a sum of 1; others get 0. At most K count.
    """
    best = (logits / temperature).topk(min(kept, logits.shape[-1]), dim=-1)
    return torch.zeros_like(logits).scatter(-1, best.indices, best.values.softmax(dim=-1))


def centred(vectors: Tensor, mean: Tensor | None = None) -> Tensor:
    """Scale word vectors (n, D) to length 1, subtract a mean, their own by default, and scale again."""
    vectors = F.normalize(vectors, dim=-1)
    return F.normalize(vectors - (vectors.mean(dim=0) if mean is None else mean), dim=-1)


def name_ratios(class_vectors: Tensor, name_vectors: Tensor, temperature: float) -> Tensor:
    """Say how much better than the names of all classes a name fits a class.

    Args:
        class_vectors: (K, D) of length 1.
        name_vectors: (P, D) of length 1.
        temperature: Divides the cosines.

    Returns:
        (K, P) above 0: the exponential of the cosine of class and name, divided by the mean of what the names of all
        classes get. It does not depend on the other names.
    """
    own = (class_vectors @ class_vectors.T / temperature).exp().mean(dim=1, keepdim=True)  # (K, 1)
    return (class_vectors @ name_vectors.T / temperature).exp() / own


def name_evidence(probabilities: Tensor, ratios: Tensor) -> Tensor:
    """Return the logarithm of the expected ratio of each box and name, (..., P).

    0 says nothing, above 0 the classes speak for the name, below 0 against it.

    Args:
        probabilities: (..., K), of the classes.
        ratios: (..., K, P), see ``name_ratios``.
    """
    return (probabilities @ ratios).clamp(min=_LEAST_RATIO).log()
