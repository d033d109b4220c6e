"""The inter-image contrastive loss between all regions and all words of a batch, on all ranks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from detectron2.utils import comm
from torch import Tensor

from ...distributed import reduce_mean
from .masked_logsumexp import LOGSUMEXP_FORMS, ignored_pairs, masked_logsumexp
from .region_word_targets import LabelledVectors, dense_targets, factor_targets

CONTRASTIVE_FORMS = (*LOGSUMEXP_FORMS, "dense")


class SharedVectors(NamedTuple):
    """Regions, or words, of this rank and of all ranks.

    Attributes:
        local: The n vectors of this rank.
        everywhere: The vectors of all ranks, one rank after the other; ``local`` itself in a single process.
        start: Row of ``everywhere`` where the n rows of ``local`` begin.
    """

    local: LabelledVectors
    everywhere: LabelledVectors
    start: int


def contrastive_loss(
    regions: SharedVectors, words: SharedVectors, region_phrases: Tensor, word_phrases: Tensor, form: str = "auto"
) -> Tensor:
    """Compute the cross entropy of similarities and targets along both axes of the batch's region-word matrix.

    The target of a region is spread evenly over its positive words in all images, that of a word over its positive
    regions, see ``dense_targets``. Each axis gives the mean over the regions, or words, with at least one positive;
    all others serve as negatives only.

    Each rank computes its own regions and words. The mean of the results over the ranks is the loss of the whole batch,
    and the mean of the gradients, which ``DistributedDataParallel`` takes, is its gradient.

    Args:
        regions: Unit vectors with their labels.
        words: Unit vectors divided by the temperature, with their labels.
        region_phrases: (2, n) int64, pairs of a region of this rank and the phrase that it shows.
        word_phrases: (2, m) int64, pairs of a word of this rank and a phrase that it helps to spell.
        form: "dense" computes the whole matrix as the formula is written. The other forms give the same numbers and
            never store the matrix, see ``masked_logsumexp``.

    Returns:
        A scalar; 0 without regions, in a graph that still reaches all vectors.

    Source: GLIPv2 (arXiv 2206.05836), Eq. 4 and 5. Departure: regions of unknown category are not compared
    with the names of other images. The paper leaves the normalization open.
    """
    to_words = soft_cross_entropy(
        regions.local, words.everywhere, region_phrases, _shift(word_phrases, words.start), form
    )
    to_regions = soft_cross_entropy(
        words.local, regions.everywhere, word_phrases, _shift(region_phrases, regions.start), form
    )
    # At least 1 over all ranks together, which is 1 / world size in the mean over the ranks.
    counts = reduce_mean(torch.stack((to_words[1], to_regions[1]))).clamp(min=1 / comm.get_world_size())
    return to_words[0] / counts[0] + to_regions[0] / counts[1]


def _shift(phrases: Tensor, start: int) -> Tensor:
    """Move the members of phrases from rows of a rank to rows of all ranks."""
    return torch.stack((phrases[0] + start, phrases[1]))


def soft_cross_entropy(
    rows: LabelledVectors, columns: LabelledVectors, row_phrases: Tensor, column_phrases: Tensor, form: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Sum the cross entropy of all rows whose target is not empty.

    Args:
        rows: A regions, or A words.
        columns: B words, or B regions.
        row_phrases, column_phrases: See ``dense_targets``.
        form: See ``contrastive_loss``.

    Returns:
        The sum, and the number of rows in it, as a tensor in the precision of the vectors.

    Raises:
        ValueError: The form is unknown.
    """
    if form == "dense":
        return _dense_cross_entropy(rows, columns, row_phrases, column_phrases)
    targets = factor_targets(rows, columns, row_phrases, column_phrases)
    counts = targets.positives_per_row(len(rows.vectors))
    used = counts > 0
    weights = used / counts.clamp(min=1).to(rows.vectors.dtype)
    # A row's cross entropy: its log-sum-exp minus the mean score of its positive columns.
    positive_sum = targets.score_sum(rows.vectors, columns.vectors, weights)
    if rows.vectors.device.type != "cpu":
        # The others are computed in vain: nobody waits for the number of those that count.
        every = masked_logsumexp(rows.vectors, columns.vectors, rows.groups, columns.groups, form)
        return torch.where(used, every, 0.0).sum() - positive_sum, used.sum().to(rows.vectors.dtype)
    # Nearly all regions have a positive, and if all do, no copy is made. Most words have none.
    used_rows = (rows.vectors, rows.groups) if used.all() else (rows.vectors[used], rows.groups[used])
    logsumexp = masked_logsumexp(used_rows[0], columns.vectors, used_rows[1], columns.groups, form)
    return logsumexp.sum() - positive_sum, used.sum().to(rows.vectors.dtype)


def _dense_cross_entropy(
    rows: LabelledVectors, columns: LabelledVectors, row_phrases: Tensor, column_phrases: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute ``soft_cross_entropy`` with the similarities and targets of all pairs in memory: the reference."""
    similarities = rows.vectors @ columns.vectors.T  # (A, B)
    targets = dense_targets(rows, columns, row_phrases, column_phrases)
    similarities = similarities.masked_fill(ignored_pairs(rows.groups, columns.groups), -torch.inf)
    used = targets.any(dim=1)
    similarities, targets = similarities[used], targets[used]
    log_probabilities = similarities.log_softmax(dim=1).masked_fill(~targets, 0.0)
    cross_entropy = -log_probabilities.sum(dim=1) / targets.sum(dim=1)
    return cross_entropy.sum(), used.sum().to(similarities.dtype)
