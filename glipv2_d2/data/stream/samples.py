"""The samples of a training stream, each made from nothing but its entry in the stream and the seed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetFromList
from torch.utils.data import Dataset

from ..dataset_mappers.base import DroppedText, boxes_to_train_on, image_of
from ..image_reading import UnreadableImageError
from .order import SeedWord, ShardEntry, StreamEntry, sample_seed
from .shards import ReadPosition, ShardSet, ShardStream

# Samples that may be tried in place of one before it gives up: far more than single bad files explain.
MAX_REPLACEMENTS = 10

# What samples count under "dropped": text past the token limit with its boxes; images that lost all their boxes; of
# streamed data malformed boxes and records, and records of which no box counts; questions none of whose answers is in
# the list.
DROPPED_COUNTS = (
    *DroppedText._fields,
    *("samples", "regions", "records", "records_without_boxes", "questions_without_answers"),
)


class TrainingSamples(Dataset):
    """The samples of all training datasets, by entry of the training stream."""

    def __init__(
        self,
        stored: StoredSamples,
        streamed: StreamedSamples,
        mapper: Callable[[dict], dict],
        seed: int,
    ):
        """
        Args:
            stored: Samples of datasets whose dicts are in memory.
            streamed: Samples of datasets in shards.
            mapper: Makes a model input from a dataset dict.
            seed: Seed of the stream, not negative.
        """
        self.stored = stored
        self.streamed = streamed
        self.mapper = mapper
        self.seed = seed

    def __getitem__(self, entry: StreamEntry | ShardEntry) -> dict:
        """Make the sample of a stream entry, with the reports that ``build_train_loader`` lists.

        Another sample takes the place of one whose image cannot be read, and of one that has boxes but loses all of
        them on its way, except for questions and captions to write; where all others lose theirs too, it stays.

        Raises:
            UnreadableImageError: Too many images in a row could not be read.
        """
        seed = sample_seed(self.seed, entry.position)
        if isinstance(entry, ShardEntry):
            candidates = self.streamed.candidates(entry, seed)
        else:
            candidates = self.stored.candidates(entry, seed)
        dropped: Counter[str] = Counter()
        skipped: list[str] = []
        sample = None
        for dataset_dict in itertools.islice(candidates, 1 + MAX_REPLACEMENTS):
            try:
                candidate = self.mapper({**dataset_dict, "sample_seed": seed})
            except UnreadableImageError as error:
                skipped.append(str(error))
                continue
            dropped.update(candidate.pop("dropped", {}))
            is_whole = "task" in candidate or len(candidate["instances"]) > 0 or not boxes_to_train_on(dataset_dict)
            dropped["samples"] += not is_whole
            if sample is None or is_whole:
                sample = candidate
            if is_whole:
                break
        if sample is None:
            raise UnreadableImageError(
                f"{len(skipped)} images in a row could not be read; the last: {skipped[-1]}; check that the folder of "
                f"the images is there and can be read"
            )
        notes = self.streamed.notes(entry) if isinstance(entry, ShardEntry) else {}
        dropped.update(notes.pop("dropped", {}))
        notes.update(dropped={key: count for key, count in dropped.items() if count}, skipped_files=skipped)
        return {**sample, **{key: value for key, value in notes.items() if value}}


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
            pseudo_datasets: Names of the datasets whose samples get captions of other images of their dataset.
            num_negative_captions: Number of these captions.
            needs_boxes: For each dict whether it teaches nothing without boxes; by default all.
        """
        self.groups = groups
        self.is_empty = np.array([not boxes_to_train_on(item) for item in dicts], dtype=bool)
        if needs_boxes is not None:
            self.is_empty &= needs_boxes
        self.num_negative_captions = num_negative_captions
        names = np.array([item.get("dataset_name", "") for item in dicts])
        self.rows = {name: np.flatnonzero(names == name) for name in pseudo_datasets}
        # Packed into one array, which worker processes share.
        self.dicts = DatasetFromList(list(dicts), copy=False) if dicts else []

    def candidates(self, entry: StreamEntry, seed: int) -> Iterator[dict]:
        """Yield the sample itself, then others of its group by the sample's own seed; with boxes, if it has some."""
        yield self._with_captions(entry.row, seed)
        is_suitable = self.groups == self.groups[entry.row]
        if not self.is_empty[entry.row]:
            is_suitable &= ~self.is_empty
        is_suitable[entry.row] = False
        others = np.flatnonzero(is_suitable)
        rng = np.random.default_rng(seed)
        for row in rng.choice(others, min(MAX_REPLACEMENTS, len(others)), replace=False).tolist():
            yield self._with_captions(row, seed)

    def _with_captions(self, row: int, seed: int) -> dict:
        rows = self.rows.get(self.dicts[row].get("dataset_name"))
        if rows is None:
            return self.dicts[row]
        return _with_captions(self.dicts, rows, int(rows.searchsorted(row)), self.num_negative_captions, seed)


class StreamedSamples:
    """The streams of a process: one for each dataset in shards and each slot that it is asked for."""

    def __init__(
        self,
        shard_sets: Mapping[int, ShardSet],
        *,
        rank: int = 0,
        world_size: int = 1,
        num_slots: int = 1,
        positions: Mapping[str, Sequence[int]] | None = None,
    ):
        """
        Args:
            shard_sets: By their index in DATASETS.TRAIN.
            rank: Rank of this process.
            world_size: Number of processes.
            num_slots: Streams of a dataset in each process.
            positions: Where streams may begin to read, as ``notes`` reports it under ``stream_position``.
        """
        self.shard_sets = dict(shard_sets)
        self.first_slot = rank * num_slots
        self.num_slots = world_size * num_slots
        self.positions = dict(positions or {})
        # Opened in the worker that reads them.
        self._streams: dict[str, ShardStream] = {}

    def candidates(self, entry: ShardEntry, seed: int) -> Iterator[dict]:
        """Yield the sample itself, then others of its block by the sample's own seed, then those that follow."""
        stream = self._stream(entry)
        block = stream.block_of(entry.ordinal)
        own = entry.ordinal - block.begin.ordinal
        num_captions = stream.shards.num_negative_captions
        rows = range(len(block.dicts))
        yield _with_captions(block.dicts, rows, own, num_captions, seed)
        for row in np.random.default_rng(seed).permutation(len(block.dicts)).tolist():
            if row != own:
                yield _with_captions(block.dicts, rows, row, num_captions, seed)
        for later in stream.blocks_from(block.end):
            rows = range(len(later.dicts))
            yield from (_with_captions(later.dicts, rows, row, num_captions, seed) for row in rows)

    def notes(self, entry: ShardEntry) -> dict[str, Any]:
        """Return what the reading has to report since the last time.

        ``stream_position`` is the name of the stream and the position where its present block begins: a stream that
        begins there reads no more than this block again. The others are those of ``build_train_loader``.
        """
        stream = self._stream(entry)
        begin = stream.block_of(entry.ordinal).begin
        return {"stream_position": (self._name(entry), list(begin)), **stream.take_report()}

    def _stream(self, entry: ShardEntry) -> ShardStream:
        name = self._name(entry)
        if name not in self._streams:
            begin = ReadPosition(*self.positions[name]) if name in self.positions else None
            slot = self.first_slot + entry.slot
            self._streams[name] = ShardStream(self.shard_sets[entry.dataset], slot, self.num_slots, begin)
        return self._streams[name]

    def _name(self, entry: ShardEntry) -> str:
        return f"{entry.dataset}/{self.shard_sets[entry.dataset].name}/{self.first_slot + entry.slot}"


def _with_captions(dicts: Sequence[dict], rows: Sequence[int] | np.ndarray, own: int, number: int, seed: int) -> dict:
    """Return the dict of ``rows[own]`` with the captions of ``number`` other rows, less those of the same image."""
    sample = dicts[int(rows[own])]
    if not number:
        return sample
    others = (dicts[int(rows[other])] for other in choose_others(len(rows), own, number, seed))
    captions = [other["caption"] for other in others if image_of(other) != image_of(sample)]
    return {**sample, "negative_captions": captions}


def choose_others(count: int, own: int, number: int, seed: int) -> list[int]:
    """Choose up to ``number`` different rows of ``count``, but not ``own``, by a sample's seed."""
    rng = np.random.default_rng((seed, SeedWord.CAPTIONS))
    rows = rng.choice(count, min(number + 1, count), replace=False).tolist()
    return [row for row in rows if row != own][:number]
