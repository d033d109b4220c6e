"""The order in which training sees its samples: draws and batches, pure functions of the seed.

A draw is the index of a stored sample, or stands for the next sample of a dataset in shards (``shard_draw``).
"""

from __future__ import annotations

import enum
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from ...errors import InputError

# The shares of the datasets are met to within one draw in every so many draws.
ROUND_LENGTH = 8192
# Shorter pieces would cost more time than they hold draws.
_MIN_PIECE = 1024


class SeedWord(enum.IntEnum):
    """The last word of a seed says what it is for, so that no two uses of a seed meet.

    A seed without one counts as ending in 0: the order of an epoch in ``draw_by_size``, and ``sample_seed``.
    """

    DATASETS = 1
    ORDER = 2
    REDRAW = 3
    SHARDS = 4
    BLOCK = 5
    CAPTIONS = 6


class StreamEntry(NamedTuple):
    """One draw of the training stream.

    Attributes:
        row: Index of the sample among all stored samples.
        position: Position of the draw in the stream over all ranks, from 0.
    """

    row: int
    position: int


class ShardEntry(NamedTuple):
    """One draw of the training stream that takes the next sample of a streamed dataset.

    Attributes:
        dataset: Index of the dataset in DATASETS.TRAIN.
        position: Position of the draw in the stream over all ranks, from 0.
        slot: Which of this rank's streams of the dataset the sample comes from.
        ordinal: Number of the sample in that stream, from 0.
    """

    dataset: int
    position: int
    slot: int
    ordinal: int


def shard_draw(dataset: int) -> int:
    """Return the number that stands for "the next sample of streamed dataset ``dataset``" among indices: -1, -2, ..."""
    return -1 - dataset


def sample_seed(seed: int, position: int) -> int:
    """Return the seed (64 bits) of all randomness in the sample drawn at ``position`` of the stream."""
    return int(np.random.SeedSequence((seed, position)).generate_state(1, np.uint64)[0])


def draw_by_size(members: Sequence[np.ndarray], seed: int) -> Iterator[np.ndarray]:
    """Draw every member of all datasets once, in random order, epoch after epoch.

    Args:
        members: For each dataset the draws it consists of; at least one in all.
        seed: Not negative.

    Yields:
        The draws of one epoch or, of a small dataset, of several, int64.
    """
    table = np.concatenate(members)
    num_epochs = math.ceil(_MIN_PIECE / len(table))
    for first in itertools.count(step=num_epochs):
        epochs = range(first, first + num_epochs)
        yield table[np.concatenate([np.random.default_rng((seed, e)).permutation(len(table)) for e in epochs])]


def draw_by_ratio(members: Sequence[np.ndarray], ratios: Sequence[float], seed: int) -> Iterator[np.ndarray]:
    """Draw from each dataset its share; within a dataset every member once, in random order, pass after pass.

    Args:
        members: For each dataset the draws it consists of, at least one each.
        ratios: For each dataset its share of the draws, up to a common factor.
        seed: Not negative.

    Yields:
        ``ROUND_LENGTH`` draws, int64. In them a dataset has its share, rounded up or down at random.
    """
    bounds = np.cumsum(ratios) / math.fsum(ratios)
    passes = [_Passes(own, seed, dataset) for dataset, own in enumerate(members)]
    for number in itertools.count():
        rng = np.random.default_rng((seed, number, 0, SeedWord.DATASETS))
        # Equally spaced points with one random offset: no share is off by more than one draw.
        points = (np.arange(ROUND_LENGTH) + rng.random()) / ROUND_LENGTH
        datasets = rng.permutation(np.searchsorted(bounds[:-1], points, side="right"))
        draws = np.empty(ROUND_LENGTH, dtype=np.int64)
        for dataset, own in enumerate(passes):
            chosen = datasets == dataset
            draws[chosen] = own.take(int(chosen.sum()))
        yield draws


class _Passes:
    """The members of one dataset, shuffled anew for each pass."""

    def __init__(self, members: np.ndarray, seed: int, dataset: int):
        self._members = members
        self._rng = np.random.default_rng((seed, dataset, 0, SeedWord.ORDER))
        self._waiting = members[:0]

    def take(self, count: int) -> np.ndarray:
        """Return the next ``count`` members."""
        num_passes = max(0, math.ceil((count - len(self._waiting)) / len(self._members)))
        passes = self._rng.permuted(np.tile(self._members, (num_passes, 1)), axis=1)
        taken = np.concatenate([self._waiting, passes.ravel()])
        self._waiting = taken[count:]
        return taken[:count]


class TrainingBatchSampler(Sampler[list[StreamEntry | ShardEntry]]):
    """Draw an infinite stream of batches, each from one group of samples.

    The stream over all ranks is one sequence of draws. A rank takes every ``world_size``-th draw and collects its draws
    group by group; a batch leaves when it is full, and what is left waits. So the draws do not depend on the number of
    ranks, and batch k can be reached without drawing the samples before it. Where there are several kinds of samples,
    the ranks collect their draws together instead, into batches of ``world_size`` times the size, of which each rank
    takes every ``world_size``-th sample: so the k-th batches of all ranks are of one group.

    Where the k-th batches of all ranks together would hold no sample with a box, their earliest draw is replaced by one
    that has a box, of the same kind, and of the same group if possible.

    Batch k takes its streamed samples from slot k modulo ``num_slots``. A loader with that many workers makes all
    batches of a slot in one worker, which can so read a stream front to back.
    """

    def __init__(
        self,
        draw: Callable[[], Iterator[np.ndarray]],
        groups: Sequence[int] | np.ndarray,
        batch_size: int,
        *,
        seed: int,
        is_empty: Sequence[bool] | np.ndarray | None = None,
        shard_group: int = 0,
        streamed: Sequence[int] = (),
        kinds: Sequence[int] | np.ndarray | None = None,
        rank: int = 0,
        world_size: int = 1,
        start_batch: int = 0,
        num_slots: int = 1,
        first_shard_batch: int = 0,
    ):
        """
        Args:
            draw: Begins the sequence of draws; it comes in pieces of any length.
            groups: For each stored sample the group it may share a batch with.
            batch_size: Samples of this rank in a batch.
            seed: Not negative, the same on all ranks.
            is_empty: For each stored sample whether it has no box; by default all have one.
            shard_group: Group of the streamed samples, whose shape is not known before they are read.
            streamed: Datasets that are streams; they replace empty samples where no stored one has a box.
            kinds: For each stored sample its kind; a group holds one kind. Streamed ones and, by default, all are 0.
            rank: Rank of this process, from 0.
            world_size: Number of processes.
            start_batch: Batches of this rank to leave out at the start.
            num_slots: Number of streams of each streamed dataset in this process.
            first_shard_batch: Batch of this rank from which on the ordinals of streamed samples are counted.

        Raises:
            InputError: ``batch_size`` is not positive, or all samples of a kind are stored and empty.
        """
        if batch_size < 1:
            raise InputError(f"batch_size: expected at least 1, found {batch_size}")
        self.draw = draw
        self.groups = np.asarray(groups, dtype=np.int64)
        self.is_empty = np.zeros(len(self.groups), dtype=bool) if is_empty is None else np.asarray(is_empty, dtype=bool)
        self.kinds = np.zeros_like(self.groups) if kinds is None else np.asarray(kinds, dtype=np.int64)
        for kind in set(self.kinds[self.is_empty].tolist()):
            of_kind = self.is_empty[self.kinds == kind]
            if of_kind.all() and not (kind == 0 and streamed):
                raise InputError(f"DATASETS.TRAIN: expected an image with a box, found {len(of_kind)} without any")
        num_kinds = len({*self.kinds.tolist(), *([0] if streamed else [])})
        # Sequences of draws that are collected apart, and the samples of a batch of one of them.
        self.num_parts = world_size if num_kinds < 2 else 1
        self.part_size = batch_size * world_size // self.num_parts
        self.seed = seed
        self.shard_group = shard_group
        self.streamed = list(streamed)
        self.rank = rank
        self.world_size = world_size
        self.start_batch = start_batch
        self.num_slots = num_slots
        self.first_shard_batch = first_shard_batch

    def __iter__(self) -> Iterator[list[StreamEntry | ShardEntry]]:
        num_before = 0
        # How many samples of each (draw, slot) came before.
        ordinals: Counter[tuple[int, int]] = Counter()
        for batches in self._batches():
            skipped = batches[: max(0, self.start_batch - num_before)]
            self._count_shard_draws(skipped, num_before, ordinals)
            for number, batch in enumerate(batches[len(skipped) :], num_before + len(skipped)):
                # Batch by batch: all numbers of an epoch as objects of Python would be gigabytes.
                yield [self._entry(draw, position, number, ordinals) for draw, position in batch.tolist()]
            num_before += len(batches)

    def _entry(
        self, draw: int, position: int, number: int, ordinals: Counter[tuple[int, int]]
    ) -> StreamEntry | ShardEntry:
        if draw >= 0:
            return StreamEntry(draw, position)
        slot = number % self.num_slots
        ordinals[draw, slot] += 1
        return ShardEntry(shard_draw(draw), position, slot, ordinals[draw, slot] - 1)

    def _count_shard_draws(self, batches: np.ndarray, first_number: int, ordinals: Counter[tuple[int, int]]) -> None:
        """Count streamed samples in batches (B, batch_size, 2) that are left out."""
        rows, columns = np.nonzero(batches[..., 0] < 0)
        counted = first_number + rows >= self.first_shard_batch
        if counted.any():
            draws = batches[rows[counted], columns[counted], 0]
            slots = (first_number + rows[counted]) % self.num_slots
            pairs, counts = np.unique(np.stack([draws, slots]), axis=1, return_counts=True)
            ordinals.update(
                {(draw, slot): n for (draw, slot), n in zip(pairs.T.tolist(), counts.tolist(), strict=True)}
            )

    def _batches(self) -> Iterator[np.ndarray]:
        """Yield the batches of this rank in their order, some at a time: (B, batch_size, 2) of (draw, position)."""
        # The other parts matter only where a batch of all ranks may turn out empty.
        own_part = self.rank % self.num_parts
        parts = range(self.num_parts) if self.is_empty.any() else (own_part,)
        nothing = np.empty((0, self.part_size, 2), dtype=np.int64)
        full: dict[int, np.ndarray] = dict.fromkeys(parts, nothing)
        waiting: dict[int, dict[int, np.ndarray]] = {part: {} for part in parts}
        num_draws = 0
        for drawn in self.draw():
            draws = np.stack([drawn, num_draws + np.arange(len(drawn))], axis=1)
            for part in parts:
                own = draws[(part - num_draws) % self.num_parts :: self.num_parts]
                full[part] = np.concatenate([full[part], self._fill_batches(waiting[part], own)])
            num_draws += len(drawn)
            num_whole = min(len(batches) for batches in full.values())
            whole = np.stack([full[part][:num_whole] for part in parts], axis=1)  # (B, parts, part_size, 2)
            full = {part: batches[num_whole:] for part, batches in full.items()}
            self._redraw_empty(whole)
            own_batches = whole[:, parts.index(own_part)]
            yield own_batches[:, self.rank // self.num_parts :: self.world_size // self.num_parts]

    def _fill_batches(self, waiting: dict[int, np.ndarray], draws: np.ndarray) -> np.ndarray:
        """Add draws to those that wait, and take out the full batches in the order in which they got full."""
        batches = [np.empty((0, self.part_size, 2), dtype=np.int64)]
        groups = np.where(draws[:, 0] < 0, self.shard_group, np.append(self.groups, 0)[draws[:, 0].clip(min=-1)])
        for group in np.unique(groups).tolist():
            entries = np.concatenate([waiting.get(group, draws[:0]), draws[groups == group]])
            num_full = len(entries) // self.part_size * self.part_size
            batches.append(entries[:num_full].reshape(-1, self.part_size, 2))
            waiting[group] = entries[num_full:]
        filled = np.concatenate(batches)
        return filled[np.argsort(filled[:, -1, 1])]

    def _redraw_empty(self, batches: np.ndarray) -> None:
        """Put a sample with a box into each batch of all ranks, (B, parts, part_size, 2), that holds none."""
        if not self.is_empty.any():
            return
        # A streamed sample always has a box; it reads the False at the end.
        lacks_boxes = np.append(self.is_empty, False)[batches[..., 0].clip(min=-1)]
        for number in np.flatnonzero(lacks_boxes.all(axis=(1, 2))):
            positions = batches[number, ..., 1]
            part, column = np.unravel_index(positions.argmin(), positions.shape)
            batches[number, part, column, 0] = self._draw_with_box(*batches[number, part, column].tolist())

    def _draw_with_box(self, row: int, position: int) -> int:
        with_boxes = np.flatnonzero(~self.is_empty & (self.kinds == self.kinds[row]))
        rng = np.random.default_rng((self.seed, position, 0, SeedWord.REDRAW))
        if not len(with_boxes):
            return shard_draw(int(rng.choice(self.streamed)))
        of_group = with_boxes[self.groups[with_boxes] == self.groups[row]]
        return int(rng.choice(of_group if len(of_group) else with_boxes))
