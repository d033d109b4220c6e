"""Samples of tar shards as streams that can be taken up anywhere, split by rank and worker and shuffled by seed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from .datasets.grounding_records import EntryError
from .datasets.shards import read_shard_sample
from .tar_stream import read_shard

# Last words of the seeds, see ``draws``.
_SHARDS, _BLOCK = 4, 5
# Passes in a row in which a slot may find nothing: far more than bad luck with a few damaged shards explains.
_MAX_EMPTY_PASSES = 100
# Lines about records left out that wait for the next sample; all are counted.
_MAX_LINES = 5


class ShardSet(NamedTuple):
    """A streamed dataset and how it is read.

    Attributes:
        name: Of the dataset.
        task: Kind of data.
        urls: Its shards.
        min_score: Boxes with a score below it do not count.
        dataset: Place in DATASETS.TRAIN, from 0.
        seed: Of the training stream.
        buffer_size: Samples that are held in memory and shuffled among each other.
        first_epoch: Where the streams begin.
    """

    name: str
    task: str
    urls: tuple[str, ...]
    min_score: float
    dataset: int
    seed: int
    buffer_size: int
    first_epoch: int = 0

    def share(self, epoch: int, slot: int, num_slots: int) -> tuple[list[str], int, int]:
        """Return what a slot reads in an epoch: shards, ``part`` and ``parts``.

        Of each of the shards it reads every sample whose number modulo ``parts`` is ``part``. In an epoch the slots
        together read every sample once. Where there are fewer shards than slots, some share a shard, which each of them
        reads as a whole; they change their parts from epoch to epoch, so that each gets data, however small the shard.
        """
        rng = np.random.default_rng((self.seed, epoch, self.dataset, _SHARDS))
        order = [self.urls[row] for row in rng.permutation(len(self.urls))]
        if len(order) >= num_slots:
            return order[slot::num_slots], 0, 1
        sharers = range(slot % len(order), num_slots, len(order))
        return [order[slot % len(order)]], (sharers.index(slot) + epoch) % len(sharers), len(sharers)

    def count_boxes(self, dataset_dict: dict) -> int:
        """Return the number of boxes that count."""
        return sum(item.get("score", 1.0) >= self.min_score for item in dataset_dict["annotations"])


class StreamPlace(NamedTuple):
    """A place in the stream of a slot.

    Attributes:
        ordinal: Samples that the slot has given before.
        epoch: From 0.
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
        begin: Place of the first of them in the stream.
        end: Place behind the last.
        dicts: Dataset dicts with ``image_bytes``, in the order in which they are drawn; at least one.
    """

    begin: StreamPlace
    end: StreamPlace
    dicts: list[dict]


class ShardStream:
    """The samples of one slot, in an order that is a function of the seed, the slot and the number of slots.

    The stream is cut into blocks of ``buffer_size`` samples that are shuffled; the last block of an epoch is shorter.
    Malformed records, and those without a box that counts, are passed over.
    """

    def __init__(self, shards: ShardSet, slot: int, num_slots: int, place: StreamPlace | None = None):
        """
        Args:
            shards: What is read.
            slot: Of all ranks together, from 0.
            num_slots: Of all ranks together.
            place: Beginning of a block from which reading may start; the order does not depend on it.
        """
        self.shards = shards
        self.slot = slot
        self.num_slots = num_slots
        self.place = place
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
        if next(self._records(StreamPlace(0, self.shards.first_epoch, 0, 0)), None) is None:
            reasons = [*self._damaged_shards, *self._skipped_records, "no record has a box with a sufficient score"]
            raise InputError(
                f"dataset {self.shards.name!r}: found no usable sample in {len(self.shards.urls)} shards: {reasons[0]}"
            )

    def block_of(self, ordinal: int) -> ShardBlock:
        """Read on to the block that holds sample ``ordinal``; no image is decoded.

        As long as the ordinals ascend, no file is read twice in an epoch.

        Raises:
            InputError: The slot has found nothing for many epochs.
        """
        if self._block is None or ordinal < self._block.begin.ordinal:
            place = self.place
            if place is None or ordinal < place.ordinal:
                place = StreamPlace(0, self.shards.first_epoch, 0, 0)
            self._blocks = self.blocks_from(place)
            self._block = next(self._blocks)
        while ordinal >= self._block.end.ordinal:
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

    def blocks_from(self, place: StreamPlace) -> Iterator[ShardBlock]:
        """Yield the blocks from the beginning of one on, without end."""
        num_empty = 0
        while num_empty < _MAX_EMPTY_PASSES:
            num_empty += 1
            records = self._records(place)
            while taken := list(itertools.islice(records, self.shards.buffer_size)):
                num_empty = 0
                shard, record, _ = taken[-1]
                end = StreamPlace(place.ordinal + len(taken), place.epoch, shard, record + 1)
                # Seeded by its place, so that a block is the same wherever the reading began.
                rng = np.random.default_rng((self.shards.seed, *place[1:], self.shards.dataset, self.slot, _BLOCK))
                block = ShardBlock(place, end, [taken[row][2] for row in rng.permutation(len(taken))])
                del taken
                yield block
                # It holds many images: they go before the next are read.
                del block
                place = end
            place = StreamPlace(place.ordinal, place.epoch + 1, 0, 0)
        raise InputError(
            f"dataset {self.shards.name!r}: found no usable sample in {num_empty} epochs of reader {self.slot} of "
            f"{self.num_slots} (processes x DATALOADER.NUM_WORKERS), expected data for each in its "
            f"{len(self.shards.urls)} shards"
        )

    def _records(self, place: StreamPlace) -> Iterator[tuple[int, int, dict]]:
        """Yield the usable samples from a place to the end of its epoch, each with its shard and its number there."""
        urls, part, parts = self.shards.share(place.epoch, self.slot, self.num_slots)
        for shard in range(place.shard, len(urls)):
            first = place.record if shard == place.shard else 0
            for record, sample in enumerate(read_shard(urls[shard], self._note_damage)):
                if record < first or record % parts != part:
                    continue
                try:
                    dataset_dict, left_out = read_shard_sample(sample, urls[shard])
                except EntryError as error:
                    # Files that a cut has taken away are part of the damage to the shard.
                    if not sample.is_cut:
                        self._note("records", [str(error)])
                    continue
                self._note("regions", left_out)
                if self.shards.count_boxes(dataset_dict):
                    yield shard, record, {**dataset_dict, "dataset_name": self.shards.name}
                else:
                    self._dropped["records_without_boxes"] += 1

    def _note_damage(self, line: str) -> None:
        self._damaged_shards[line] = None

    def _note(self, kind: str, lines: list[str]) -> None:
        if lines:
            self._dropped[kind] += len(lines)
            self._skipped_records += lines[: _MAX_LINES - len(self._skipped_records)]
