"""Samples of tar shards as streams that can be resumed anywhere, split by rank and worker and shuffled by seed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ...errors import InputError
from ..dataset_mappers.base import boxes_to_train_on
from ..datasets.tar_shards import read_shard_dicts
from .order import SeedWord

# Passes in a row in which a slot may find nothing: far more than bad luck with a few damaged shards explains.
_MAX_EMPTY_PASSES = 100
# Lines about records left out that wait for the next sample; all are counted.
_MAX_LINES = 5


class ShardSet(NamedTuple):
    """A streamed dataset and how it is read.

    Attributes:
        name: Name of the dataset.
        urls: Its shards.
        min_score: Boxes with a lower score do not count.
        num_negative_captions: Captions of other images that a sample gets.
        dataset: Index in DATASETS.TRAIN.
        buffer_size: Samples that are held in memory and shuffled among each other.
        seed: Seed of the training stream.
        first_epoch: Epoch in which the streams begin.
    """

    name: str
    urls: tuple[str, ...]
    min_score: float
    num_negative_captions: int
    dataset: int
    buffer_size: int
    seed: int = 0
    first_epoch: int = 0

    def share(self, epoch: int, slot: int, num_slots: int) -> tuple[list[str], int, int]:
        """Return what a slot reads in an epoch: shards, ``part`` and ``parts``.

        It reads every sample of these shards whose number modulo ``parts`` is ``part``. In an epoch the slots together
        read every sample once. Where there are fewer shards than slots, some share a shard, which each of them reads as
        a whole; they change their parts from epoch to epoch, so that each gets data, however small the shard.
        """
        rng = np.random.default_rng((self.seed, epoch, self.dataset, SeedWord.SHARDS))
        order = [self.urls[row] for row in rng.permutation(len(self.urls))]
        if len(order) >= num_slots:
            return order[slot::num_slots], 0, 1
        sharers = range(slot % len(order), num_slots, len(order))
        return [order[slot % len(order)]], (sharers.index(slot) + epoch) % len(sharers), len(sharers)


class ReadPosition(NamedTuple):
    """A position in the stream of a slot.

    Attributes:
        ordinal: Samples that the slot has given before.
        epoch: Epoch, from 0.
        shard: Number of the shard among those of the slot in this epoch.
        record: Number of the sample in the shard.
    """

    ordinal: int
    epoch: int
    shard: int
    record: int


class ShardBlock(NamedTuple):
    """Samples that are shuffled among each other.

    Attributes:
        begin: Position of the first of them in the stream.
        end: Position behind the last.
        dicts: Dataset dicts with ``image_bytes``, in the order in which they are drawn; at least one.
    """

    begin: ReadPosition
    end: ReadPosition
    dicts: list[dict]


class ShardStream:
    """The samples of one slot, in an order that is a function of the seed, the slot and the number of slots.

    The stream is cut into blocks of ``buffer_size`` samples that are shuffled; the last block of an epoch is shorter.
    Malformed records, and those without a box that counts, are passed over.
    """

    def __init__(self, shards: ShardSet, slot: int, num_slots: int, begin: ReadPosition | None = None):
        """
        Args:
            shards: The shards to read.
            slot: Number of the slot among those of all ranks together, from 0.
            num_slots: Number of slots of all ranks together.
            begin: Beginning of a block from which reading may start; the order does not depend on it.
        """
        self.shards = shards
        self.slot = slot
        self.num_slots = num_slots
        self.begin = begin
        self._damaged_shards: dict[str, None] = {}
        self._skipped_records: list[str] = []
        self._dropped: Counter[str] = Counter()
        self._blocks: Iterator[ShardBlock] = iter(())
        self._block: ShardBlock | None = None

    def check(self) -> None:
        """Make sure that the slot's first epoch holds a usable sample; nothing behind it is read.

        Raises:
            InputError: It holds none.
        """
        if next(self._records(ReadPosition(0, self.shards.first_epoch, 0, 0)), None) is None:
            reasons = [*self._damaged_shards, *self._skipped_records, "no record has a box with a sufficient score"]
            raise InputError(
                f"dataset {self.shards.name!r}: expected usable samples in its {len(self.shards.urls)} shards, found "
                f"none: {reasons[0]}"
            )

    def block_of(self, ordinal: int) -> ShardBlock:
        """Read on to the block that holds sample ``ordinal``; no image is decoded.

        As long as the ordinals ascend, no file is read twice in an epoch.

        Raises:
            InputError: The slot has found nothing for many epochs.
        """
        if self._block is None or ordinal < self._block.begin.ordinal:
            begin = self.begin
            if begin is None or ordinal < begin.ordinal:
                begin = ReadPosition(0, self.shards.first_epoch, 0, 0)
            self._blocks = self.blocks_from(begin)
            self._block = next(self._blocks)
        while ordinal >= self._block.end.ordinal:
            # It holds many images: they go before the next are read.
            self._block = None
            self._block = next(self._blocks)
        return self._block

    def take_report(self) -> dict[str, Any]:
        """Return what was left out since the last time.

        That is ``damaged_shards`` and the first few ``skipped_records``, one line each, and counts under ``dropped``.
        """
        report = {
            "damaged_shards": list(self._damaged_shards),
            "skipped_records": self._skipped_records,
            "dropped": self._dropped,
        }
        self._damaged_shards, self._skipped_records, self._dropped = {}, [], Counter()
        return report

    def blocks_from(self, begin: ReadPosition) -> Iterator[ShardBlock]:
        """Yield the blocks from the beginning of one on, without end."""
        num_empty = 0
        while num_empty < _MAX_EMPTY_PASSES:
            num_empty += 1
            records = self._records(begin)
            while taken := list(itertools.islice(records, self.shards.buffer_size)):
                num_empty = 0
                shard, record, _ = taken[-1]
                end = ReadPosition(begin.ordinal + len(taken), begin.epoch, shard, record + 1)
                # Seeded by its position, so that a block is the same wherever the reading began.
                seed = (self.shards.seed, *begin[1:], self.shards.dataset, self.slot, SeedWord.BLOCK)
                order = np.random.default_rng(seed).permutation(len(taken))
                block = ShardBlock(begin, end, [taken[row][2] for row in order])
                del taken
                yield block
                # As in ``block_of``: no second reference to its images.
                del block
                begin = end
            begin = ReadPosition(begin.ordinal, begin.epoch + 1, 0, 0)
        raise InputError(
            f"dataset {self.shards.name!r}: expected usable samples for each reader in its {len(self.shards.urls)} "
            f"shards, found none in {num_empty} epochs of reader {self.slot} of {self.num_slots} (processes x "
            f"DATALOADER.NUM_WORKERS)"
        )

    def _records(self, begin: ReadPosition) -> Iterator[tuple[int, int, dict]]:
        """Yield the usable samples from a position to the end of its epoch, each with its shard and number."""
        urls, part, parts = self.shards.share(begin.epoch, self.slot, self.num_slots)
        for shard in range(begin.shard, len(urls)):
            first = begin.record if shard == begin.shard else 0

            def is_wanted(record: int, first: int = first) -> bool:
                return record >= first and record % parts == part

            for record, dataset_dict in read_shard_dicts(urls[shard], self._note, is_wanted):
                if boxes_to_train_on(dataset_dict, self.shards.min_score):
                    yield shard, record, {**dataset_dict, "dataset_name": self.shards.name}
                else:
                    self._dropped["records_without_boxes"] += 1

    def _note(self, kind: str, lines: list[str]) -> None:
        if kind == "shards":
            self._damaged_shards.update(dict.fromkeys(lines))
        elif lines:
            self._dropped[kind] += len(lines)
            self._skipped_records += lines[: _MAX_LINES - len(self._skipped_records)]
