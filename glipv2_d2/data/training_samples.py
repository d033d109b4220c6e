"""The samples of a training stream, each made from nothing but its entry in the stream and the seed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable

from torch.utils.data import Dataset

from .dataset_mappers.base import DroppedText, UnreadableImageError
from .sample_sources import MAX_REPLACEMENTS, StoredSamples, StreamedSamples, has_boxes
from .samplers import ShardEntry, StreamEntry, sample_seed

# What samples count under "dropped": text past the token limit with its boxes; images that lost all their boxes; of
# streamed data malformed boxes and records, and records of which no box counts; questions none of whose answers is in
# the list.
DROPPED_COUNTS = (
    *DroppedText._fields,
    *("samples", "regions", "records", "records_without_boxes", "questions_without_answers"),
)


class TrainingSamples(Dataset):
    """The samples of all training datasets, by entry of the training stream."""

    def __init__(self, stored: StoredSamples, streamed: StreamedSamples, mapper: Callable[[dict], dict], seed: int):
        """
        Args:
            stored: Samples of datasets whose dicts are in memory.
            streamed: Samples of datasets in shards.
            mapper: Makes a model input from a dataset dict.
            seed: Of the stream, not negative.
        """
        self.stored = stored
        self.streamed = streamed
        self.mapper = mapper
        self.seed = seed

    def __getitem__(self, entry: StreamEntry | ShardEntry) -> dict:
        """Make the sample of a stream entry, with the reports that ``build_train_loader`` lists.

        Another sample takes the place of one whose image cannot be read, and of one that has boxes but loses all of
        them on its way, but for questions and for captions to write; where all others lose theirs too, it stays.

        Raises:
            UnreadableImageError: Too many images in a row could not be read.
        """
        seed = sample_seed(self.seed, entry.position)
        source = self.streamed if isinstance(entry, ShardEntry) else self.stored
        dropped: Counter[str] = Counter()
        skipped: list[str] = []
        sample = None
        for dataset_dict in itertools.islice(source.candidates(entry, seed), 1 + MAX_REPLACEMENTS):
            try:
                candidate = self.mapper({**dataset_dict, "sample_seed": seed})
            except UnreadableImageError as error:
                skipped.append(str(error))
                continue
            dropped.update(candidate.pop("dropped", {}))
            is_whole = "task" in candidate or len(candidate["instances"]) > 0 or not has_boxes(dataset_dict)
            dropped["samples"] += not is_whole
            if sample is None or is_whole:
                sample = candidate
            if is_whole:
                break
        if sample is None:
            raise UnreadableImageError(f"{len(skipped)} images in a row could not be read; the last: {skipped[-1]}")
        notes = source.notes(entry)
        dropped.update(notes.pop("dropped", {}))
        notes.update(dropped={key: count for key, count in dropped.items() if count}, skipped_files=skipped)
        return {**sample, **{key: value for key, value in notes.items() if value}}
