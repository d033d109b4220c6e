"""Findings about boxes: those that cannot be meant, those too small to be seen, and how classes are spread."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from ..data.own_sets import training_splits
from ..plurals import agreeing, counted
from .facts import BoxFacts, DataFacts, ImageFacts
from .findings import Finding, percent, some

# A box is tiny where its shorter side is less than this many pixels for the model, the stride of its finest level.
TINY_PIXELS = 8
# A smaller share of tiny boxes is a note only.
_MANY_TINY = 0.1
# Boxes of a whole set all lie in here if their coordinates are parts of the image instead of pixels.
_NEARLY_ALL = 0.95
_FEWEST_TO_JUDGE = 20
_RARE = 5


def box_kind(corners: tuple[float, float, float, float], size: tuple[int, int]) -> str:
    """Return what is wrong with a box: "faulty", "without area", "outside", "reaching out" or "".

    Args:
        corners: XYXY in pixels.
        size: Height and width of its image.
    """
    left, top, right, bottom = corners
    height, width = size
    if not all(math.isfinite(value) for value in corners):
        return "faulty"
    if right <= left or bottom <= top:
        return "without area"
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        return "outside"
    return "reaching out" if left < 0 or top < 0 or right > width or bottom > height else ""


def box_findings(facts: DataFacts, detection_limit: int) -> Iterator[Finding]:
    """Yield what was found about boxes.

    Args:
        facts: The set.
        detection_limit: Most detections of an image; 0 for no limit.
    """
    pairs = [(image, box) for image in facts.images for box in image.objects]
    if not pairs:
        yield Finding("stop", "no boxes", 0, "no image has a box", "check that the annotations belong to these images")
        return
    yield from _impossible(pairs)
    yield from _relative(pairs)
    yield from _tiny(facts)
    yield from _doubled(facts)
    crowds = [(image, box) for image in facts.images for box in image.boxes if box.iscrowd]
    if crowds:
        text = f"{counted(len(crowds), 'box')} {agreeing(len(crowds), 'is', 'are')} of crowds, which are not learned"
        yield Finding("note", "crowd boxes", len(crowds), text, "", _cases(crowds))
    full = [image for image in facts.images if 0 < detection_limit < len(image.objects)]
    if full:
        most = max(len(image.objects) for image in full)
        yield Finding(
            "warning",
            "many boxes",
            len(full),
            f"{counted(len(full), 'image')} {agreeing(len(full), 'has', 'have')} more boxes than the "
            f"{detection_limit} detections that are kept",
            f"set TEST.DETECTIONS_PER_IMAGE {most}",
            tuple(f"{image.place}: {len(image.objects)}" for image in full),
        )


def _impossible(pairs: list[tuple[ImageFacts, BoxFacts]]) -> Iterator[Finding]:
    kinds: dict[str, list[tuple[ImageFacts, BoxFacts]]] = {}
    for image, box in pairs:
        kinds.setdefault(box_kind(box.corners, image.size), []).append((image, box))
    advice = {
        "faulty": "correct such boxes, or leave them out",
        "without area": "correct such boxes, or leave them out",
        "outside": "check that such boxes belong to their images",
        "reaching out": "",
    }
    verbs = {
        "faulty": "not four finite numbers",
        "without area": "without area",
        "outside": "outside of the image",
        "reaching out": "partly outside of the image, and cut at its border",
    }
    for kind, way_out in advice.items():
        found = kinds.get(kind, [])
        if found:
            severity = "note" if kind == "reaching out" else "warning" if len(found) < len(pairs) else "stop"
            text = f"{len(found)} of {counted(len(pairs), 'box')} {agreeing(len(found), 'is', 'are')} {verbs[kind]}"
            yield Finding(severity, f"boxes {kind}", len(found), text, way_out, _cases(found))


def _relative(pairs: list[tuple[ImageFacts, BoxFacts]]) -> Iterator[Finding]:
    """Yield a finding if nearly all boxes lie where coordinates from 0 to 1, or from 0 to 100, would lie."""
    ends = np.array([max(box.corners) for _, box in pairs])
    sides = np.array([min(image.size) for image, _ in pairs])
    for limit, words, fewest in ((1.0, "parts of the image from 0 to 1", 1), (100.0, "per cent", _FEWEST_TO_JUDGE)):
        inside = (ends <= limit) & (sides > 3 * limit)
        if len(pairs) >= fewest and inside.mean() >= _NEARLY_ALL:
            number = int(inside.sum())
            yield Finding(
                "stop" if limit == 1 else "warning",
                "relative boxes",
                number,
                f"{number} of {counted(len(pairs), 'box')} {agreeing(number, 'ends', 'end')} before "
                f"{counted(int(limit), 'pixel')}, so the coordinates are probably {words}",
                "multiply them by width and height of the image",
                _cases([pair for pair, flag in zip(pairs, inside.tolist(), strict=True) if flag][:100]),
            )
            return


def _tiny(facts: DataFacts) -> Iterator[Finding]:
    """Yield a finding about boxes that are too small for the model, with the input size that most of them need."""
    found = [(image, box, box.short_side * scale) for image, box, scale in facts.scaled()]
    tiny = [entry for entry in found if entry[2] < TINY_PIXELS]
    if not tiny:
        return
    share = len(tiny) / len(found)
    text = (
        f"{len(tiny):,} of {counted(len(found), 'box')} ({percent(share)}) {agreeing(len(tiny), 'is', 'are')} under "
        f"{TINY_PIXELS} pixels at input size {facts.input_size[0]}"
    )
    size = needed_input_size(facts)
    advice = f"at INPUT.MIN_SIZE_TEST {size} nine of ten boxes are large enough" if size > facts.input_size[0] else ""
    severity = "warning" if share >= _MANY_TINY else "note"
    cases = tuple(f"{image.place}: {box.name} {side:.1f} pixels" for image, box, side in tiny)
    yield Finding(severity, "tiny boxes", len(tiny), text, advice if severity == "warning" else "", cases)


def needed_input_size(facts: DataFacts, share: float = 0.9) -> int:
    """Return the shorter side of images, a multiple of 32 pixels, at which a share of all boxes is not tiny.

    It is never more than the images have, since enlarging them shows nothing new; 0 without boxes.
    """
    needed, largest = [], 0
    for image, box, _ in facts.scaled():
        largest = max(largest, min(image.size))
        needed.append(min(image.size) * TINY_PIXELS / max(box.short_side, 1e-6))
    if not needed:
        return 0
    return 32 * math.ceil(min(float(np.quantile(needed, share)), largest) / 32)


def _doubled(facts: DataFacts) -> Iterator[Finding]:
    """Yield findings about boxes that stand in their image twice."""
    twice: list[tuple[ImageFacts, BoxFacts]] = []
    other_names: list[tuple[ImageFacts, BoxFacts]] = []
    for image in facts.images:
        names: dict[tuple[float, ...], set[str]] = {}
        for box in image.objects:
            known = names.setdefault(tuple(round(value, 1) for value in box.corners), set())
            if box.name in known:
                twice.append((image, box))
            elif known:
                other_names.append((image, box))
            known.add(box.name)
    if twice:
        text = f"{counted(len(twice), 'box')} {agreeing(len(twice), 'stands', 'stand')} in the same image twice"
        yield Finding("warning", "boxes twice", len(twice), text, "leave the copy out", _cases(twice))
    if other_names:
        number = len(other_names)
        text = f"{counted(number, 'box')} {agreeing(number, 'has', 'have')} the place of a box of another class"
        yield Finding("note", "boxes of two classes", number, text, "", _cases(other_names))


def class_findings(facts: DataFacts) -> Iterator[Finding]:
    """Yield what was found about the spread of boxes over classes, splits and images."""
    counts = {split: facts.boxes_of(split) for split in facts.splits}
    total = sum(counts.values(), Counter())
    train_split, val_split = training_splits(counts)
    train, val = counts.get(train_split), counts.get(val_split)
    if train is None or val is None and train_split != "train":
        train = None
        yield Finding("stop", "no training images", 0, "no split for training was found", "name a folder train")
    elif train_split != "train":
        text = f"no split for training was found: the images of {train_split} train, those of {val_split} validate"
        yield Finding("warning", "no training images", 0, text, "name a folder train")

    def missing(
        severity: str,
        kind: str,
        text: str,
        advice: str,
        keep: Callable[[str], bool],
        numbers: Counter[str] = total,
    ) -> Iterator[Finding]:
        names = [name for name in facts.names if keep(name)]
        if names:
            number = counted(len(names), "class")
            verb = agreeing(len(names), "has", "have")
            shown = tuple(f"{name} ({numbers[name]})" if numbers[name] else name for name in names)
            yield Finding(severity, kind, len(names), f"{number} {verb} {text}", advice, shown)

    yield from missing(
        "warning",
        "classes without boxes",
        "no box at all",
        "leave such classes out, or check their names",
        lambda n: not total[n],
    )
    if train is not None:
        yield from missing(
            "warning",
            "classes not trained",
            "no box to train on, and boxes in other splits",
            "move some images of such classes to the training split",
            lambda name: not train[name] and total[name] > 0,
        )
        yield from missing(
            "warning",
            "rare classes",
            f"fewer than {_RARE} boxes to train on",
            "add images",
            lambda name: 0 < train[name] < _RARE,
            train,
        )
    if train is not None and val is not None:
        yield from missing(
            "note",
            "classes not in val",
            "no box in the validation split, so the AP is not known",
            "",
            lambda name: train[name] > 0 and not val[name],
        )
    empty = [image for image in facts.images if not image.objects]
    if empty and total:
        many = 2 * len(empty) > len(facts.images)
        text = f"{len(empty)} of {counted(len(facts.images), 'image')} {agreeing(len(empty), 'has', 'have')} no box"
        advice = "check that the annotations belong to these images" if many else ""
        cases = tuple(image.place for image in empty)
        yield Finding("warning" if many else "note", "images without boxes", len(empty), text, advice, cases)


def _cases(pairs: list[tuple[ImageFacts, BoxFacts]]) -> tuple[str, ...]:
    return tuple(
        f"{image.place}: {box.name} [{some([f'{value:g}' for value in box.corners], 4)}]" for image, box in pairs
    )
