"""Dataset dicts of referring data: one image with one phrase, and all boxes that the phrase means."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from .grounding_records import grounding_annotation
from .registration import register_dataset


def referring_annotation(box: tuple[float, ...], caption: str, segmentation: Any = None) -> dict:
    """Make an annotation whose phrase is the whole caption.

    Args:
        box: XYXY in pixels.
        caption: Not blank.
        segmentation: Its mask as the file has it, for ``keep_usable_masks``; None or an empty list if it has none.
    """
    return grounding_annotation(box, ((0, len(caption)),), segmentation=segmentation)


def referring_record(
    file_name: str, size: list[int], pair_id: int | str, caption: str, annotations: list[dict]
) -> dict:
    """Make a dataset dict.

    Args:
        file_name: Path of the image.
        size: Its height and width in pixels.
        pair_id: Of the image with this phrase: the ``image_id`` of the dict, which no other dict of the set has.
        caption: The phrase.
        annotations: Of ``referring_annotation``.
    """
    height, width = size
    return {
        "file_name": file_name,
        "height": height,
        "width": width,
        "image_id": pair_id,
        "caption": caption,
        "annotations": annotations,
    }


def register_referring(
    name: str, load: Callable[..., list[dict]], evaluator_type: str, sources: dict[str, Any], metadata: dict[str, Any]
) -> None:
    """Register a referring dataset.

    Args:
        name: New in the catalog.
        load: Called with ``sources`` and ``name`` when the dataset is used.
        evaluator_type: "phrasecut" or "refcoco".
        sources: Paths and other strings by their names, under which the metadata has them too.
        metadata: More entries of the metadata; they win over ``evaluator_type``.

    Raises:
        ValueError: The name is taken.
    """
    sources = {field: os.fspath(value) for field, value in sources.items()}
    entries = {"task": "grounding", "evaluator_type": evaluator_type, **sources, **metadata}
    register_dataset(name, functools.partial(load, **sources, name=name), **entries)
