"""Annotations of sentences: boxes with the character ranges of their phrases, and records in ODVG's format."""

from __future__ import annotations

from typing import Any

from detectron2.structures import BoxMode

from ...prompts.noun_phrases import find_phrase
from ...structures import CharSpan
from .value_checks import (
    Box,
    EntryError,
    is_text,
    read_box,
    read_image_size,
    read_object,
    read_score,
    read_spans,
    read_text,
    show,
)

# By the phrases of a region, the places of all of them; one for a caption. A short line can ask for thousands of places
# for each of thousands of boxes.
Places = dict[tuple[str, ...], tuple[CharSpan, ...]]


def grounding_annotation(
    box: Box, spans: tuple[CharSpan, ...], score: Any = None, segmentation: Any = None
) -> dict[str, Any]:
    """Make an annotation of a dataset dict.

    Tuples and few keys keep it small: a dataset has millions.

    Args:
        box: XYXY in pixels.
        spans: Character ranges of its phrase.
        score: Score of a pseudo box, in [0, 1]; None if it has none.
        segmentation: Its mask as it is, for ``keep_usable_masks``; None or an empty list if it has none.

    Raises:
        EntryError: The score is not a number in [0, 1].
    """
    annotation: dict[str, Any] = {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "tokens_positive": spans}
    if score is not None:
        annotation["score"] = read_score(score)
    if segmentation:
        annotation["segmentation"] = segmentation
    return annotation


def read_odvg_grounding(record: Any) -> tuple[dict[str, Any], list[EntryError]]:
    """Read the grounding record of one image in ODVG's format, with or without scores.

    The record is ``{"height", "width", "grounding": {"caption", "regions": [{"bbox", "phrase", "tokens_positive",
    "score"}]}}``; other keys are passed over. A region has one box or a list of boxes, and one score for all or one for
    each. Without ``tokens_positive`` its phrase, or list of phrases, is searched in the caption, and all occurrences
    count.

    Args:
        record: A value from json; not trusted.

    Returns:
        ``height``, ``width``, ``caption`` and ``annotations`` of a dataset dict, with no annotation if no box can be
        used; and what is wrong with each region or box that was left out.

    Raises:
        EntryError: The record, its size, its caption or the list of regions is not what it should be.
    """
    grounding = read_object(record).get("grounding")
    if not isinstance(grounding, dict):
        raise EntryError(f"grounding: expected an object with caption and regions, found {show(grounding)}")
    height, width = read_image_size(record)
    caption = read_text(grounding, "caption")
    regions = grounding.get("regions")
    if not isinstance(regions, list):
        raise EntryError(f"regions: expected a list, found {show(regions)}")
    annotations: list[dict] = []
    left_out: list[EntryError] = []
    known: Places = {}
    for region in regions:
        try:
            boxes, scores, spans = _read_region(region, caption, known)
        except EntryError as error:
            left_out.append(error)
            continue
        for value, score in zip(boxes, scores, strict=True):
            try:
                annotations.append(grounding_annotation(read_box(value, height, width), spans, score))
            except EntryError as error:
                left_out.append(error)
    return {"height": height, "width": width, "caption": caption, "annotations": annotations}, left_out


def _read_region(region: Any, caption: str, known: Places) -> tuple[list, list, tuple[CharSpan, ...]]:
    boxes = read_object(region).get("bbox")
    if not isinstance(boxes, list) or not boxes:
        raise EntryError(f"bbox: expected a box or a list of boxes, found {show(boxes)}")
    if not isinstance(boxes[0], list):
        boxes = [boxes]
    scores = region.get("score")
    if not isinstance(scores, list):
        scores = [scores] * len(boxes)
    if len(scores) != len(boxes):
        raise EntryError(f"score: expected one number or {len(boxes)}, found {show(scores)}", "malformed scores")
    if region.get("tokens_positive") is not None:
        return boxes, scores, read_spans(region["tokens_positive"], caption)
    phrases = region.get("phrase")
    return boxes, scores, _search(phrases if isinstance(phrases, list) else [phrases], caption, known)


def _search(phrases: list, caption: str, known: Places) -> tuple[CharSpan, ...]:
    if not phrases:
        raise EntryError(f"phrase: expected at least one, found {show(phrases)}", "malformed texts")
    for phrase in phrases:
        if not is_text(phrase):
            raise EntryError(f"phrase: expected a string that is not empty, found {show(phrase)}", "malformed texts")
    wanted = tuple(dict.fromkeys(phrases))
    if wanted not in known:
        known[wanted] = tuple(sorted({span for phrase in wanted for span in _places(phrase, caption)}))
    return known[wanted]


def _places(phrase: str, caption: str) -> list[CharSpan]:
    try:
        return find_phrase(caption, phrase)[1]
    except ValueError as error:
        expected = f"words of the caption {show(caption)}"
        raise EntryError(
            f"phrase: expected {expected}, found {show(phrase)}", "phrases that are not in their caption"
        ) from error
