"""Findings about image files: whether and how they can be read, and which are copies of each other."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from ..data.image_reading import UnreadableImageError, format_of_suffix, image_kind, read_image
from ..data.own_sets import training_splits
from ..plurals import agreeing, counted
from .facts import DataFacts, ImageFacts
from .findings import Finding

# From here on reading an image takes longer than a training step of a small model.
_HUGE_PIXELS = 16_000_000
_HUGE_BYTES = 20_000_000
_ROBOFLOW_NAME = re.compile(r"(.+)\.rf\.[0-9a-f]{16,}\.\w+$")
_SINGULAR = {"are": "is", "have": "has", "hold": "holds"}
_READ_AGAIN = "open and save such files again, or leave them out"


def read_file(image: ImageFacts) -> ImageFacts:
    """Read the file of an image, and return the image with what it was found to be."""
    try:
        with open(image.path, "rb") as file:
            content = file.read()
    except OSError as error:
        return image._replace(is_read=True, error=error.strerror or type(error).__name__)
    truncated: list[str] = []
    record: dict[str, Any] = {"file_name": image.name, "image_bytes": content}
    try:
        kind = image_kind(content)
        if kind.num_pixels == image.size[0] * image.size[1]:
            # An image of a known size may be larger.
            record |= {"height": kind.upright_size[0], "width": kind.upright_size[1]}
        pixels = read_image(record, "RGB", truncated)
    except (UnreadableImageError, ValueError) as error:
        reason = str(error).removeprefix(f"{image.name}: ").split("; expected")[0]
        return image._replace(is_read=True, error=reason, num_bytes=len(content))
    return image._replace(
        is_read=True,
        truncated=truncated[0].removeprefix(f"{image.name}: ") if truncated else "",
        gray_share=float((pixels == 128).all(axis=2).mean()) if truncated else 0.0,
        file_size=pixels.shape[:2],
        num_bytes=len(content),
        file_format=kind.file_format,
        orientation=kind.orientation,
        is_gray=kind.is_gray,
        has_alpha=kind.has_alpha,
        is_animated=kind.is_animated,
        pixels_digest=f"{pixels.shape[:2]} {hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()}",
    )


def image_findings(facts: DataFacts) -> Iterator[Finding]:
    """Yield what was found about files; those that were not read are left out."""
    read = [image for image in facts.images if image.is_read]
    good = [image for image in read if not image.error]
    bad = [image for image in read if image.error]
    total = counted(len(read), "image")
    if bad:
        train_split, _ = training_splits(facts.splits)
        severity = "warning" if any(image.split == train_split for image in good) else "stop"
        text = f"{len(bad)} of {total} cannot be read"
        yield Finding(severity, "unreadable images", len(bad), text, _READ_AGAIN, _cases(bad, lambda one: one.error))

    def found(
        severity: str, kind: str, text: str, advice: str, keep: Callable[[ImageFacts], str | bool]
    ) -> Iterator[Finding]:
        kept = [image for image in good if keep(image)]
        if kept:
            cases = _cases(kept, lambda one: str(keep(one)) if keep(one) is not True else "")
            verb, _, what = text.partition(" ")
            verb = agreeing(len(kept), _SINGULAR[verb], verb)
            yield Finding(severity, kind, len(kept), f"{len(kept)} of {total} {verb} {what}", advice, cases)

    yield from found(
        "warning",
        "truncated images",
        "are cut off, and read as far as possible; the rest is gray",
        _READ_AGAIN,
        lambda one: bool(one.truncated) and f"{one.gray_share:.0%} gray",
    )
    yield from found(
        "warning",
        "sizes that differ",
        "have another size than annotated, and cannot be trained on",
        "correct width and height, and check that the boxes belong to the files",
        lambda one: (
            one.file_size != one.size
            and f"{one.size[1]} x {one.size[0]} annotated, {one.file_size[1]} x {one.file_size[0]} in the file"
        ),
    )
    yield from found(
        "warning",
        "huge images",
        "are huge and slow to read",
        f"shrink them to about {2 * facts.input_size[0]} pixels",
        lambda one: (
            (one.file_size[0] * one.file_size[1] > _HUGE_PIXELS or one.num_bytes > _HUGE_BYTES)
            and f"{one.file_size[1]} x {one.file_size[0]}, {one.num_bytes / 1e6:.1f} MB"
        ),
    )
    yield from found("note", "turned images", "are turned upright by EXIF", "", _orientation)
    yield from found("note", "misnamed images", "have the suffix of another format, which does no harm", "", _misnamed)
    yield from found("note", "gray images", "are gray", "", lambda one: one.is_gray)
    yield from found("note", "images with alpha", "are transparent, which is left out", "", lambda one: one.has_alpha)
    yield from found(
        "note", "animated images", "hold several images; the first is used", "", lambda one: one.is_animated
    )
    yield from _copies(good)
    yield from _variants(facts.images)


def _copies(images: Iterable[ImageFacts]) -> Iterator[Finding]:
    """Yield what was found about images of equal pixels."""
    groups: dict[str, list[ImageFacts]] = {}
    for image in images:
        groups.setdefault(image.pixels_digest, []).append(image)
    copied = [group for group in groups.values() if len(group) > 1]
    leaks = [group for group in copied if len({image.split for image in group}) > 1]
    within = [group for group in copied if len({image.split for image in group}) < len(group)]
    if leaks:
        number = len(leaks)
        yield Finding(
            "warning",
            "copies across splits",
            number,
            f"{counted(number, 'image')} {agreeing(number, 'is', 'are')} in more than one split, so results are "
            f"better than they should be",
            "leave the copies in the training split out",
            tuple(" = ".join(image.place for image in group) for group in leaks),
        )
    if within:
        number = sum(len(group) - len({image.split for image in group}) for group in within)
        yield Finding(
            "note",
            "copies within a split",
            number,
            f"{counted(number, 'image')} {agreeing(number, 'is a copy', 'are copies')} of another in the same split",
            "",
            tuple(" = ".join(image.place for image in group) for group in within),
        )
    differing = [group for group in copied if len({_box_key(image) for image in group}) > 1]
    if differing:
        yield Finding(
            "warning",
            "copies with other boxes",
            len(differing),
            f"{counted(len(differing), 'image')} {agreeing(len(differing), 'has', 'have')} copies with other boxes",
            "keep the better boxes, and leave the other copy out",
            tuple(
                " / ".join(f"{image.place} {counted(len(image.boxes), 'box')} {_first_box(image)}" for image in group)
                for group in differing
            ),
        )


def _variants(images: Iterable[ImageFacts]) -> Iterator[Finding]:
    """Yield what was found about augmented copies of one photograph, which Roboflow names NAME.rf.NUMBER."""
    groups: dict[str, list[ImageFacts]] = {}
    for image in images:
        found = _ROBOFLOW_NAME.match(os.path.basename(image.name))
        if found:
            groups.setdefault(found[1], []).append(image)
    copied = [group for group in groups.values() if len(group) > 1]
    leaks = [group for group in copied if len({image.split for image in group}) > 1]
    if leaks:
        text = f"{counted(len(leaks), 'photograph')} of Roboflow {agreeing(len(leaks), 'is', 'are')} in several splits"
        yield Finding(
            "warning",
            "variants across splits",
            len(leaks),
            f"{text} as augmented copies, so results are better than they should be",
            "leave the copies in the training split out",
            tuple(" = ".join(image.place for image in group) for group in leaks),
        )
    elif copied:
        number = sum(map(len, copied))
        text = f"{counted(number, 'image')} are augmented copies of {counted(len(copied), 'photograph')}"
        cases = tuple(" = ".join(image.place for image in group) for group in copied)
        yield Finding("note", "variants within a split", number, text, "", cases)


def _box_key(image: ImageFacts) -> tuple:
    return tuple(sorted((box.name, *(round(value, 1) for value in box.corners)) for box in image.boxes))


def _first_box(image: ImageFacts) -> str:
    return "" if not image.boxes else "[" + ", ".join(f"{value:.0f}" for value in image.boxes[0].corners) + "]"


def _orientation(image: ImageFacts) -> str | bool:
    return image.orientation > 1 and f"orientation {image.orientation}"


def _misnamed(image: ImageFacts) -> str | bool:
    suffix = os.path.splitext(image.name)[1].lower()
    return format_of_suffix(suffix) != image.file_format and f"{image.file_format} named {suffix or 'nothing'}"


def _cases(images: Iterable[ImageFacts], what: Callable[[ImageFacts], str]) -> tuple[str, ...]:
    return tuple(f"{image.place}: {what(image)}".removesuffix(": ") for image in images)
