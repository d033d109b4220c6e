"""Where training samples come from: dataset dicts in memory, and streams of shards; both choose replacements."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetFromList

from .samplers import ShardEntry, StreamEntry
from .shards import ShardBlock, ShardSet, ShardStream, StreamPlace

# Samples that may be tried in place of one before it gives up: far more than single bad files explain.
MAX_REPLACEMENTS = 10
# Last word of the seed of a choice of captions, see ``draws``.
_CAPTIONS = 6


def has_boxes(dataset_dict: dict) -> bool:
    """Tell whether an image has a box that is no crowd region."""
    return any(not item.get("iscrowd", 0) for item in dataset_dict.get("annotations", ()))


def choose_others(count: int, own: int, number: int, seed: int) -> list[int]:
    """Choose up to ``number`` different rows of ``count``, but not ``own``, by a sample's seed."""
    rng = np.random.default_rng((seed, _CAPTIONS))
    rows = rng.choice(count, min(number + 1, count), replace=False).tolist()
    return [row for row in rows if row != own][:number]


class StoredSamples:
    """Dataset dicts in memory, those of one dataset after the other."""

    def __init__(
        self,
        dicts: Sequence[dict],
        groups: np.ndarray,
        *,
        pseudo_datasets: Collection[str] = (),
        num_negative_captions: int = 0,
        needs_boxes: np.ndarray | None = None,
    ):
        """
        Args:
            dicts: Each with ``dataset_name``; there may be none.
            groups: For each of them the group that its replacement comes from.
            pseudo_datasets: Names of those whose samples get captions of other images of the dataset.
            num_negative_captions: How many.
            needs_boxes: For each dict whether it teaches nothing without boxes; by default all.
        """
        self.groups = groups
        self.is_empty = np.array([not has_boxes(item) for item in dicts], dtype=bool)
        if needs_boxes is not None:
            self.is_empty &= needs_boxes
        self.num_negative_captions = num_negative_captions
        names = np.array([item.get("dataset_name", "") for item in dicts])
        self.rows = {name: np.flatnonzero(names == name) for name in pseudo_datasets}
        # Packed into one array, which worker processes share.
        self.dicts = DatasetFromList(list(dicts), copy=False) if dicts else []

    def candidates(self, entry: StreamEntry, seed: int) -> Iterator[dict]:
        """Yield the sample itself, then others of its group by the sample's own seed; with boxes, if it has some."""
        yield self._with_captions(entry.index, seed)
        is_suitable = self.groups == self.groups[entry.index]
        if not self.is_empty[entry.index]:
            is_suitable &= ~self.is_empty
        is_suitable[entry.index] = False
        others = np.flatnonzero(is_suitable)
        rng = np.random.default_rng(seed)
        for index in rng.choice(others, min(MAX_REPLACEMENTS, len(others)), replace=False).tolist():
            yield self._with_captions(index, seed)

    def notes(self, entry: StreamEntry) -> dict[str, Any]:
        """Return what the reading of the entry has to report: nothing, for dicts in memory."""
        return {}

    def _with_captions(self, index: int, seed: int) -> dict:
        dataset_dict = self.dicts[index]
        rows = self.rows.get(dataset_dict.get("dataset_name"))
        if rows is None:
            return dataset_dict
        others = choose_others(len(rows), int(rows.searchsorted(index)), self.num_negative_captions, seed)
        return {**dataset_dict, "negative_captions": [self.dicts[int(rows[row])]["caption"] for row in others]}


class StreamedSamples:
    """The streams of a process: one for each dataset in shards and each slot that it is asked for."""

    def __init__(
        self,
        shard_sets: Mapping[int, ShardSet],
        *,
        rank: int = 0,
        world_size: int = 1,
        num_slots: int = 1,
        places: Mapping[str, Sequence[int]] | None = None,
        num_negative_captions: int = 0,
    ):
        """
        Args:
            shard_sets: By their place in DATASETS.TRAIN.
            rank: Of this process.
            world_size: Number of processes.
            num_slots: Streams of a dataset in each process.
            places: Where streams may begin to read, as ``notes`` reports it under ``stream_place``.
            num_negative_captions: How many captions of other images a sample of pseudo-box data gets.
        """
        self.shard_sets = dict(shard_sets)
        self.first_slot = rank * num_slots
        self.num_slots = world_size * num_slots
        self.places = dict(places or {})
        self.num_negative_captions = num_negative_captions
        # Opened in the worker that reads them.
        self._streams: dict[str, ShardStream] = {}

    def candidates(self, entry: ShardEntry, seed: int) -> Iterator[dict]:
        """Yield the sample itself, then others of its block by the sample's own seed, then those that follow."""
        stream = self._stream(entry)
        block = stream.block_of(entry.ordinal)
        own = entry.ordinal - block.begin.ordinal
        is_pseudo_data = self.shard_sets[entry.dataset].task == "pseudo_grounding"
        num_captions = self.num_negative_captions if is_pseudo_data else 0
        yield _with_captions(block, own, num_captions, seed)
        for row in np.random.default_rng(seed).permutation(len(block.dicts)).tolist():
            if row != own:
                yield _with_captions(block, row, num_captions, seed)
        for later in stream.blocks_from(block.end):
            yield from (_with_captions(later, row, num_captions, seed) for row in range(len(later.dicts)))

    def notes(self, entry: ShardEntry) -> dict[str, Any]:
        """Return what the reading has to report since the last time.

        ``stream_place`` is the name of the stream and the place where its present block begins: a stream that begins
        there reads no more than this block again. The others are those of ``build_train_loader``.
        """
        stream = self._stream(entry)
        place = stream.block_of(entry.ordinal).begin
        return {"stream_place": (self._name(entry), list(place)), **stream.take_report()}

    def _stream(self, entry: ShardEntry) -> ShardStream:
        name = self._name(entry)
        if name not in self._streams:
            place = StreamPlace(*self.places[name]) if name in self.places else None
            slot = self.first_slot + entry.slot
            self._streams[name] = ShardStream(self.shard_sets[entry.dataset], slot, self.num_slots, place)
        return self._streams[name]

    def _name(self, entry: ShardEntry) -> str:
        return f"{entry.dataset}/{self.shard_sets[entry.dataset].name}/{self.first_slot + entry.slot}"


def _with_captions(block: ShardBlock, row: int, number: int, seed: int) -> dict:
    """Return a dataset dict of a block, with captions of others there."""
    if not number:
        return block.dicts[row]
    others = choose_others(len(block.dicts), row, number, seed)
    return {**block.dicts[row], "negative_captions": [block.dicts[other]["caption"] for other in others]}
