"""The order in which training sees its samples: a pure function of the seed, so that it can be taken up anywhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class StreamEntry(NamedTuple):
    """One draw of the training stream.

    Attributes:
        index: Of the sample in the dataset.
        position: Of the draw in the stream over all ranks, from 0.
    """

    index: int
    position: int


def sample_seed(seed: int, position: int) -> int:
    """Return the seed (64 bits) of all randomness in the sample drawn at ``position`` of the stream."""
    return int(np.random.SeedSequence((seed, position)).generate_state(1, np.uint64)[0])


class TrainingBatchSampler(Sampler[list[StreamEntry]]):
    """Draw an infinite stream of batches, each from one group of samples.

    The stream over all ranks is one shuffled epoch after the other. A rank takes every ``world_size``-th draw and
    collects its draws group by group; a batch leaves when it is full, and what is left waits for the next epoch. So the
    draws do not depend on the number of ranks, and batch k can be reached without drawing the samples before it.
    """

    def __init__(
        self,
        groups: Sequence[int] | np.ndarray,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_batch: int = 0,
    ):
        """
        Args:
            groups: For each sample of the dataset the group it may share a batch with.
            batch_size: Samples of this rank in a batch.
            seed: Not negative, the same on all ranks.
            rank: Of this process, from 0.
            world_size: Number of processes.
            start_batch: Batches of this rank to leave out at the start.

        Raises:
            ValueError: There is no sample, or ``batch_size`` is not positive.
        """
        if len(groups) == 0 or batch_size < 1:
            raise ValueError(f"found {len(groups)} samples and batch_size {batch_size}, expected at least 1 of both")
        self.groups = np.asarray(groups)
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start_batch = start_batch

    def __iter__(self) -> Iterator[list[StreamEntry]]:
        waiting = {group: np.empty((0, 2), dtype=np.int64) for group in np.unique(self.groups)}
        num_skipped = 0
        for epoch in itertools.count():
            batches = self._fill_batches(waiting, self._draws(epoch))
            keep_from = min(self.start_batch - num_skipped, len(batches))
            num_skipped += keep_from
            for batch in batches[keep_from:]:
                yield [StreamEntry(*entry) for entry in batch.tolist()]

    def _draws(self, epoch: int) -> np.ndarray:
        """Return what this rank draws in an epoch, rows of (index, position)."""
        size = len(self.groups)
        order = np.random.default_rng((self.seed, epoch)).permutation(size)
        first = (self.rank - epoch * size) % self.world_size
        offsets = np.arange(first, size, self.world_size)
        return np.stack([order[offsets], epoch * size + offsets], axis=1)

    def _fill_batches(self, waiting: dict[int, np.ndarray], draws: np.ndarray) -> list[np.ndarray]:
        """Add draws to those that wait, and take out the full batches in the order in which they got full."""
        batches: list[np.ndarray] = []
        groups = self.groups[draws[:, 0]]
        for group in waiting:
            entries = np.concatenate([waiting[group], draws[groups == group]])
            num_full = len(entries) // self.batch_size * self.batch_size
            batches.extend(entries[:num_full].reshape(-1, self.batch_size, 2))
            waiting[group] = entries[num_full:]
        return sorted(batches, key=lambda batch: batch[-1, 1])
