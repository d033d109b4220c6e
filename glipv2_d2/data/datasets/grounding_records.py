"""Parts of grounding annotations from files that are not trusted: captions, character ranges, boxes and scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.structures import BoxMode

from ...errors import InputError
from ...prompts.noun_phrases import find_phrase
from ...structures import CharSpan
from .value_checks import is_integer, is_number, is_text, show, stays_inside

# Officially a box whose last pixel is not beyond its first, in width or height, is left out: one pixel is too little.
_MIN_SIDE = 1.0


class EntryError(InputError):
    """An entry that cannot be used; the message is one line: field, value found, and what was expected."""


class TinyBoxError(EntryError):
    """A proper box that is at most one pixel wide or high inside its image."""


def read_image_size(entry: Mapping[str, Any], height_field: str = "height", width_field: str = "width") -> list[int]:
    """Return height and width.

    Raises:
        EntryError: One is no positive integer.
    """
    for field in (height_field, width_field):
        if not (is_integer(entry.get(field)) and entry[field] > 0):
            raise EntryError(f"{field} is {show(entry.get(field))}, expected a positive integer")
    return [entry[height_field], entry[width_field]]


def read_text(entry: Mapping[str, Any], field: str) -> str:
    """Return a text as it stands there; control characters and any direction of writing are left to the tokenizer.

    Raises:
        EntryError: It is no string, is blank, or has half a character in it.
    """
    if not is_text(entry.get(field)):
        raise EntryError(f"{field} is {show(entry.get(field))}, expected a string that is not empty")
    return entry[field]


def read_file_name(entry: Mapping[str, Any], field: str) -> str:
    """Read the path of an image relative to its folder.

    Raises:
        EntryError: It is no text, or leaves the folder.
    """
    file_name = read_text(entry, field)
    if not stays_inside(file_name):
        raise EntryError(f"{field} is {show(file_name)}, expected a path inside the folder of the images")
    return file_name


def read_spans(value: Any, caption: str) -> tuple[CharSpan, ...]:
    """Return the half-open character ranges of a phrase.

    Raises:
        EntryError: It is no list of pairs, or a range is empty, blank or leaves the caption.
    """
    if not isinstance(value, list) or not value:
        raise EntryError(f"tokens_positive is {show(value)}, expected a list of pairs")
    for pair in value:
        if not (isinstance(pair, list) and len(pair) == 2 and is_integer(pair[0]) and is_integer(pair[1])):
            raise EntryError(f"tokens_positive is {show(value)}, expected pairs of integers")
        begin, end = pair
        if not (0 <= begin < end <= len(caption) and caption[begin:end].strip()):
            raise EntryError(
                f"tokens_positive is {show(value)}, expected ranges that hold text inside the caption of "
                f"{len(caption)} characters"
            )
    return tuple((begin, end) for begin, end in value)


def read_box(value: Any, height: int, width: int, *, has_sides: bool = False) -> tuple[float, float, float, float]:
    """Return a box, XYXY in pixels, cut to its image.

    Args:
        value: Left, top, right, bottom; or left, top, width, height.
        height: Of the image in pixels.
        width: Of the image in pixels.
        has_sides: The last two numbers are width and height.

    Raises:
        EntryError: It is not four finite numbers, or it has a negative side or lies outside its image.
        TinyBoxError: Inside the image it is not more than a pixel wide and high.
    """
    if not (isinstance(value, (list, tuple)) and len(value) == 4 and all([is_number(number) for number in value])):
        raise EntryError(f"bbox is {show(value)}, expected four finite numbers")
    left, top, right, bottom = map(float, value)
    if has_sides:
        right, bottom = left + right, top + bottom
    if not (left <= right and top <= bottom and left <= width and top <= height and right >= 0 and bottom >= 0):
        raise EntryError(f"bbox is {show(value)}, expected sides >= 0 inside an image of {width} x {height} pixels")
    box = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
    if not (box[2] - box[0] > _MIN_SIDE and box[3] - box[1] > _MIN_SIDE):
        raise TinyBoxError(f"bbox is {show(value)}, expected more than one pixel of width and height inside its image")
    return box


def read_score(value: Any) -> float:
    """Return the score of a pseudo box.

    Raises:
        EntryError: It is no number in [0, 1].
    """
    if not (is_number(value) and 0 <= value <= 1):
        raise EntryError(f"score is {show(value)}, expected a number in [0, 1]")
    return float(value)


def grounding_annotation(
    box: tuple[float, ...], spans: tuple[CharSpan, ...], score: Any = None, segmentation: Any = None
) -> dict:
    """Make an annotation of a dataset dict.

    Tuples and few keys keep it small: a dataset has millions.

    Args:
        box: XYXY in pixels.
        spans: Character ranges of its phrase.
        score: Of a pseudo box, in [0, 1]; None if it has none.
        segmentation: Its mask as it is, for ``keep_usable_masks``; None or an empty list if it has none.

    Raises:
        EntryError: The score is no number in [0, 1].
    """
    annotation = {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "tokens_positive": spans}
    if score is not None:
        annotation["score"] = read_score(score)
    if segmentation:
        annotation["segmentation"] = segmentation
    return annotation


def read_odvg_grounding(record: Any) -> tuple[dict, list[str]]:
    """Read the grounding record of one image in ODVG's format, with or without scores.

    The record is ``{"height", "width", "grounding": {"caption", "regions": [{"bbox", "phrase", "tokens_positive",
    "score"}]}}``; other keys are passed over. A region has one box or a list of boxes, and one score for all or one for
    each. Without ``tokens_positive`` its phrase, or list of phrases, is searched in the caption, and all places count.

    Args:
        record: What json held; not trusted.

    Returns:
        ``height``, ``width``, ``caption`` and ``annotations`` of a dataset dict, with no annotation if no box can be
        used; and a line for each region or box that was left out.

    Raises:
        EntryError: The record, its size, its caption or the list of regions is not what it should be.
    """
    grounding = record.get("grounding") if isinstance(record, dict) else None
    if not isinstance(grounding, dict):
        found = f"grounding is {show(grounding)}" if isinstance(record, dict) else f"found {show(record)}"
        raise EntryError(f"{found}, expected an object with caption and regions")
    height, width = read_image_size(record)
    caption = read_text(grounding, "caption")
    regions = grounding.get("regions")
    if not isinstance(regions, list):
        raise EntryError(f"regions is {show(regions)}, expected a list")
    annotations: list[dict] = []
    left_out: list[str] = []
    for region in regions:
        try:
            boxes, scores, spans = _read_region(region, caption)
        except EntryError as error:
            left_out.append(str(error))
            continue
        for value, score in zip(boxes, scores):
            try:
                annotations.append(grounding_annotation(read_box(value, height, width), spans, score))
            except EntryError as error:
                left_out.append(str(error))
    return {"height": height, "width": width, "caption": caption, "annotations": annotations}, left_out


def _read_region(region: Any, caption: str) -> tuple[list, list, tuple[CharSpan, ...]]:
    if not isinstance(region, dict):
        raise EntryError(f"region is {show(region)}, expected an object")
    boxes = region.get("bbox")
    if not isinstance(boxes, list) or not boxes:
        raise EntryError(f"bbox is {show(boxes)}, expected a box or a list of boxes")
    if not isinstance(boxes[0], list):
        boxes = [boxes]
    scores = region.get("score")
    if not isinstance(scores, list):
        scores = [scores] * len(boxes)
    if len(scores) != len(boxes):
        raise EntryError(f"score is {show(scores)}, expected one number or {len(boxes)}")
    if region.get("tokens_positive") is not None:
        return boxes, scores, read_spans(region["tokens_positive"], caption)
    phrases = region.get("phrase")
    return boxes, scores, _search(phrases if isinstance(phrases, list) else [phrases], caption)


def _search(phrases: list, caption: str) -> tuple[CharSpan, ...]:
    spans: list[CharSpan] = []
    for phrase in phrases:
        if not is_text(phrase):
            raise EntryError(f"phrase is {show(phrase)}, expected a string that is not empty")
        try:
            spans += find_phrase(caption, phrase)[1]
        except ValueError as error:
            raise EntryError(f"phrase is {show(phrase)}, expected words of the caption {show(caption)}") from error
    if not spans:
        raise EntryError(f"phrase is {show(phrases)}, expected at least one")
    return tuple(sorted(set(spans)))
