"""Datasets in WebDataset tar shards: an image and its grounding record side by side, read as a stream."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Sequence
from typing import Any

from detectron2.data import MetadataCatalog

from ...errors import InputError
from ..tar_stream import TarSample, expand_shard_urls, find_shards, read_shard
from .grounding_records import EntryError, read_odvg_grounding
from .registration import register_dataset

TASKS_OF_SHARDS = ("pseudo_grounding", "grounding")
_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")


def register_shards(
    name: str,
    urls: str | Sequence[str],
    *,
    task: str = "pseudo_grounding",
    num_samples: int | None = None,
    **metadata: Any,
) -> None:
    """Register tar shards under a name for DATASETS.TRAIN; training reads them as a stream.

    A sample is ``KEY.jpg`` (or jpeg, png, webp) and ``KEY.json`` with a record of one image in ODVG's grounding format,
    see ``read_odvg_grounding``; its ``filename`` is not read. All other files are passed over. No file is opened before
    the dataset is used.

    Args:
        name: New in the catalog.
        urls: Paths or addresses of the shards. Braces like ``{000000..000099}`` are expanded, and in paths a ``*`` when
            the dataset is used. The order of the shards is that of their names.
        task: "pseudo_grounding" for boxes of a teacher with scores, "grounding" for annotated ones.
        num_samples: Samples in all shards together, needed only where DATASETS.TRAIN_RATIOS is empty.
        metadata: More entries of the dataset's metadata.

    Raises:
        InputError: The name is taken, or an argument has a value that cannot be.
    """
    if task not in TASKS_OF_SHARDS:
        raise InputError(f"dataset {name!r}: task is {task!r}, expected one of {list(TASKS_OF_SHARDS)}")
    if num_samples is not None and (type(num_samples) is not int or num_samples < 1):
        raise InputError(f"dataset {name!r}: num_samples is {num_samples!r}, expected a positive integer or None")
    try:
        shard_urls = expand_shard_urls(urls)
    except ValueError as error:
        raise InputError(f"dataset {name!r}: {error}") from error
    register_dataset(
        name,
        functools.partial(load_shards, name),
        shard_urls=shard_urls,
        task=task,
        num_samples=num_samples,
        **metadata,
    )


def shard_urls_of(name: str) -> list[str] | None:
    """Return the shards of a registered dataset, None for one that is no stream.

    Raises:
        FileNotFoundError: A shard that is a file is not there.
    """
    urls = MetadataCatalog.get(name).get("shard_urls")
    if urls is None:
        return None
    try:
        return find_shards(urls)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"dataset {name!r}: {error}") from error


def load_shards(name: str) -> list[dict]:
    """Read all samples of registered shards into memory, for tools that show or count a small dataset.

    Returns:
        Dataset dicts in the order of the shards, with ``image_bytes``. Malformed records and damaged shards are counted
        and the first few named in a warning.

    Raises:
        FileNotFoundError: A shard that is a file is not there.
    """
    dataset_dicts: list[dict] = []
    left_out: list[str] = []
    for url in shard_urls_of(name):
        for sample in read_shard(url, left_out.append):
            try:
                dataset_dict, problems = read_shard_sample(sample, url)
            except EntryError as error:
                # Files that a cut has taken away are part of the damage to the shard.
                left_out += [] if sample.is_cut else [str(error)]
            else:
                dataset_dicts.append(dataset_dict)
                left_out += problems
    if left_out:
        logging.getLogger(__name__).warning(
            "dataset %r: left out %d records, boxes or ends of shards, such as %s",
            name,
            len(left_out),
            "; ".join(left_out[:3]),
        )
    return dataset_dicts


def read_shard_sample(sample: TarSample, url: str) -> tuple[dict, list[str]]:
    """Make a dataset dict from the files of a sample; the image is not decoded.

    Args:
        sample: Not trusted.
        url: Of its shard; with the key it makes up ``file_name`` and ``image_id``.

    Returns:
        The dataset dict with ``image_bytes``, possibly without annotations, and a line for each box left out.

    Raises:
        EntryError: It has no image or no usable record.
    """
    where = f"{url}: {sample.key!r:.100}"
    suffix = next((suffix for suffix in _IMAGE_SUFFIXES if suffix in sample.files), None)
    missing = "an image" if suffix is None else "json"
    if suffix is None or "json" not in sample.files:
        raise EntryError(f"{where}: holds files {sorted(sample.files)}, expected {missing} among them")
    try:
        entries, left_out = read_odvg_grounding(json.loads(sample.files["json"]))
    except (ValueError, RecursionError) as error:
        raise EntryError(f"{where}: {' '.join(str(error).split())}") from error
    file_name = f"{url}/{sample.key}.{suffix}"
    dataset_dict = {"file_name": file_name, "image_id": sample.key, "image_bytes": sample.files[suffix], **entries}
    return dataset_dict, [f"{where}: {line}" for line in left_out]
