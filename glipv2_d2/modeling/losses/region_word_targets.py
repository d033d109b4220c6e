"""Which regions and words of a batch belong together: the targets of the contrastive loss, dense and factored."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class LabelledVectors(NamedTuple):
    """Regions, or words, of many images, packed without padding.

    Attributes:
        vectors: (n, E).
        images: (n,) int64, id of the image, at least 0, unique over all ranks.
        categories: (n,) int64, id across images of the object that a region shows, or of the name in a detection prompt
            that a word spells. -1 for a region of unknown category, and for a word of a sentence or of no name.
        groups: (n,) int64. A pair of a region and a word takes no part in the loss if both groups are at least 0 and
            differ.
    """

    vectors: Tensor
    images: Tensor
    categories: Tensor
    groups: Tensor


def label_regions(vectors: Tensor, images: Tensor, categories: Tensor) -> LabelledVectors:
    """Join regions with their labels, see ``LabelledVectors``.

    A region of unknown category may show an object that another image's prompt names. It is therefore not compared with
    the names of other images: its group is its image.
    """
    return LabelledVectors(vectors, images, categories, torch.where(categories < 0, images, -1))


def label_words(vectors: Tensor, images: Tensor, categories: Tensor) -> LabelledVectors:
    """Join words with their labels, see ``LabelledVectors``. The group of a word in a name is its image."""
    return LabelledVectors(vectors, images, categories, torch.where(categories >= 0, images, -1))


def dense_targets(
    rows: LabelledVectors, columns: LabelledVectors, row_phrases: Tensor, column_phrases: Tensor
) -> Tensor:
    """Build the target matrix as the paper defines it.

    Within an image, a region and a word belong together if they share a phrase. Across images, they belong together if
    both have the same category; the paper calls this the propagation of labels. Words of sentences have no category, so
    nothing is propagated to them.

    Args:
        rows: A regions, or A words.
        columns: B words, or B regions.
        row_phrases: (2, n) int64, pairs of a row and a phrase. Equal indices of phrases mean the same phrase of the
            same image in both arguments.
        column_phrases: (2, m) int64, pairs of a column and a phrase.

    Returns:
        (A, B) bool.

    Source: GLIPv2 (arXiv 2206.05836), Eq. 4 and Fig. 2.
    """
    num_phrases = int(torch.cat((row_phrases[1], column_phrases[1], row_phrases.new_tensor([-1]))).max()) + 1
    row_marks = rows.vectors.new_zeros(len(rows.images), num_phrases)
    column_marks = rows.vectors.new_zeros(len(columns.images), num_phrases)
    row_marks[tuple(row_phrases)] = 1
    column_marks[tuple(column_phrases)] = 1
    own = row_marks @ column_marks.T > 0
    propagated = (rows.categories[:, None] == columns.categories) & (rows.categories >= 0)[:, None]
    return torch.where(rows.images[:, None] == columns.images, own, propagated)


class FactoredTargets(NamedTuple):
    """The target matrix as a product of two sparse ones: rows and columns that belong together meet at a hub.

    T[row, column] is the sum of the row's signs over all hubs that both belong to. Phrases and categories are hubs with
    sign 1. A category within one image is a hub with sign -1: within an image only phrases count, so it cancels the
    category's hub there. Memory and work grow with the number of rows and columns, not with the number of pairs.

    Attributes:
        row_entries: (2, n) int64, pairs of a hub and a row.
        row_signs: (n,) int64, 1 or -1.
        column_entries: (2, m) int64, pairs of a hub and a column.
        num_hubs: Number of hubs, at least.
        column_signs: (m,) int64, 1, or 0 for a column that is not at its hub; a sign of a row may be 0, too.
    """

    row_entries: Tensor
    row_signs: Tensor
    column_entries: Tensor
    num_hubs: int
    column_signs: Tensor

    def positives_per_row(self, num_rows: int) -> Tensor:
        """Count the positive columns of each row, (A,) int64."""
        columns_per_hub = self.column_signs.new_zeros(self.num_hubs)
        columns_per_hub = columns_per_hub.index_add(0, self.column_entries[0], self.column_signs)
        hub, row = self.row_entries
        return torch.zeros(num_rows, dtype=torch.int64, device=row.device).index_add(
            0, row, self.row_signs * columns_per_hub[hub]
        )

    def score_sum(self, rows: Tensor, columns: Tensor, row_weights: Tensor) -> Tensor:
        """Sum the products of all positive pairs, each times the weight of its row.

        Args:
            rows: (A, E).
            columns: (B, E).
            row_weights: (A,).

        Returns:
            A scalar.
        """
        weights = self.row_signs * row_weights[self.row_entries[1]]
        row_sums = self._sum_at_hubs(self.row_entries, weights, rows)
        column_sums = self._sum_at_hubs(self.column_entries, self.column_signs.to(weights.dtype), columns)
        return (row_sums * column_sums).sum()

    def _sum_at_hubs(self, entries: Tensor, weights: Tensor, vectors: Tensor) -> Tensor:
        # Unlike index_add, neither form needs an intermediate result of the size of the entries.
        if vectors.device.type != "cpu":
            # A sparse product would wait for the device, and bags are summed in a fixed order.
            order = entries[0].argsort(stable=True)
            hubs = torch.arange(self.num_hubs, device=vectors.device)
            begins = torch.searchsorted(entries[0][order], hubs)
            weights = weights[order].to(vectors.dtype)
            return F.embedding_bag(entries[1][order], vectors, begins, mode="sum", per_sample_weights=weights)
        members = torch.sparse_coo_tensor(entries, weights, (self.num_hubs, len(vectors)), check_invariants=False)
        return torch.sparse.mm(members, vectors)  # (hubs, E)


def factor_targets(
    rows: LabelledVectors, columns: LabelledVectors, row_phrases: Tensor, column_phrases: Tensor
) -> FactoredTargets:
    """Factor the matrix of ``dense_targets``, which has the same arguments."""
    if rows.vectors.device.type != "cpu":
        return factor_without_counting(rows, columns, row_phrases, column_phrases)
    num_rows = len(rows.images)
    _, categories = torch.cat((rows.categories, columns.categories)).unique(return_inverse=True)
    _, images = torch.cat((rows.images, columns.images)).unique(return_inverse=True)
    categories_of_images = images * (num_rows + len(columns.images)) + categories
    known_rows = (rows.categories >= 0).nonzero().squeeze(1)
    known_columns = (columns.categories >= 0).nonzero().squeeze(1)

    def entries(phrases: Tensor, known: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Return hubs, with separate numbers for each kind of hub, and their members."""
        kinds = (phrases[1], categories[first + known], categories_of_images[first + known])
        hubs = [3 * hub + kind for kind, hub in enumerate(kinds)]
        return torch.cat(hubs), torch.cat((phrases[0], known, known))

    row_hubs, row_members = entries(row_phrases, known_rows, 0)
    column_hubs, column_members = entries(column_phrases, known_columns, num_rows)
    row_signs = torch.ones_like(row_hubs)
    row_signs[len(row_hubs) - len(known_rows) :] = -1

    used, hubs = torch.cat((row_hubs, column_hubs)).unique(return_inverse=True)
    row_hubs, column_hubs = hubs[: len(row_hubs)], hubs[len(row_hubs) :]
    # Most names of a prompt have no box in the batch. A hub with rows only, or columns only, adds nothing.
    met = torch.bincount(row_hubs, minlength=len(used)) * torch.bincount(column_hubs, minlength=len(used)) > 0
    number = met.cumsum(0) - 1
    row_kept, column_kept = met[row_hubs], met[column_hubs]
    return FactoredTargets(
        torch.stack((number[row_hubs], row_members))[:, row_kept],
        row_signs[row_kept],
        torch.stack((number[column_hubs], column_members))[:, column_kept],
        int(met.sum()),
        torch.ones_like(column_hubs[column_kept]),
    )


def factor_without_counting(
    rows: LabelledVectors, columns: LabelledVectors, row_phrases: Tensor, column_phrases: Tensor
) -> FactoredTargets:
    """Factor the matrix of ``dense_targets`` for a device: no size depends on a number that is known there only.

    Every phrase, category and category of an image that could be a hub is one, whoever is at it: signs of 0 take out
    the rows and columns of unknown category.
    """
    num_rows, num_vectors = len(rows.images), len(rows.images) + len(columns.images)
    categories = _ranks(torch.cat((rows.categories, columns.categories)))
    images = _ranks(torch.cat((rows.images, columns.images)))
    of_images = _ranks(images * num_vectors + categories)
    phrases = _ranks(torch.cat((row_phrases[1], column_phrases[1])))
    # One kind of hubs after the other.
    of_category = len(phrases) + categories
    of_image = len(phrases) + num_vectors + of_images

    def entries(phrases: Tensor, members: Tensor, own: slice, labels: LabelledVectors) -> tuple[Tensor, Tensor]:
        """Return pairs of a hub and a member, and 1 or 0 for each."""
        everyone = torch.arange(len(labels.images), device=members.device)
        hubs = torch.cat((phrases, of_category[own], of_image[own]))
        known = (labels.categories >= 0).long()
        signs = torch.cat((torch.ones_like(members), known, known))
        return torch.stack((hubs, torch.cat((members, everyone, everyone)))), signs

    first, last = slice(num_rows), slice(num_rows, None)
    row_entries, row_signs = entries(phrases[: row_phrases.shape[1]], row_phrases[0], first, rows)
    column_entries, column_signs = entries(phrases[row_phrases.shape[1] :], column_phrases[0], last, columns)
    row_signs[len(row_signs) - num_rows :] *= -1
    num_hubs = len(phrases) + 2 * num_vectors
    return FactoredTargets(row_entries, row_signs, column_entries, num_hubs, column_signs)


def _ranks(numbers: Tensor) -> Tensor:
    """Return for each number how many of them are smaller."""
    return torch.searchsorted(numbers.sort().values, numbers)
