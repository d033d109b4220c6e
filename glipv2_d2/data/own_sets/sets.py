"""What readers of exports hand over, and what becomes of it: a set in one canonical form."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, NamedTuple

from ..datasets.value_checks import Box

SPLITS = ("train", "val", "test")
# What helps a set without images that validate; see ``make_splits``.
MORE_IMAGES = "add images: without splits, one validates if others have all its classes"


def training_splits(found: Collection[str]) -> tuple[str, str]:
    """Return the splits that train and validate: without images to train on, those of validation and of test.

    Args:
        found: Splits of a set; a returned one need not be among them.
    """
    return ("train", "val") if "train" in found else ("val", "test")


class OwnBox(NamedTuple):
    """One object as a reader found it; nothing but the types is checked yet.

    Attributes:
        name: Its class.
        corners: XYXY in pixels, perhaps larger than the image.
        segmentation: Polygons or run lengths as COCO writes them, not checked; None for none.
        iscrowd: 1 for a region of many objects.
        area: Area of its mask in square pixels, where the file says it.
        where: Its place in the file, for reports.
    """

    name: str
    corners: Box
    segmentation: Any = None
    iscrowd: int = 0
    area: float | None = None
    where: str = ""


class OwnImage(NamedTuple):
    """One image file and its objects.

    Attributes:
        path: The file, which is there.
        boxes: Its objects, perhaps none.
        size: Height and width that the boxes are meant for, in pixels; None where the file does not say them.
        source_id: Its id in a COCO json.
    """

    path: str
    boxes: list[OwnBox]
    size: tuple[int, int] | None = None
    source_id: int | None = None


class Part(NamedTuple):
    """What one reader found for one split.

    Attributes:
        split: "train", "val", "test", or "" where nothing says it.
        images: In any order.
        names: All classes that the files list, with objects or without.
        source_ids: Ids of the classes in a COCO json, by name.
    """

    split: str
    images: list[OwnImage]
    names: list[str]
    source_ids: dict[str, int]


class CocoSet(NamedTuple):
    """One split in the canonical form: equal for all forms in which the same images and boxes were given.

    Attributes:
        image_root: The folder that all its images lie in, absolute.
        content: ``images`` sorted by ``file_name``, with the size of the upright file; ``annotations`` sorted by image
            and box, cut to the image and rounded to 0.01 pixel; ``categories`` sorted by name. All ids count from 1.
        source_ids: For ``images`` and ``categories`` that came from a COCO json: its ids, by those here.
    """

    image_root: str
    content: dict[str, Any]
    source_ids: dict[str, dict[int, int]]

    def json_text(self) -> str:
        """Return the content as json; equal sets give equal texts."""
        return json.dumps(self.content, indent=1, ensure_ascii=False) + "\n"


class OwnSets(NamedTuple):
    """The splits of one set.

    Attributes:
        name: Made of the name of its folder, for registered names.
        splits: By "train", "val", "test"; those that there are, in this order.
        names: The classes, sorted, the same for all splits.
        prompts: What prompts say for some of the classes.
        unused_names: Classes that the files list and no box has; they are not among ``names``.
        seed: The seed by which a validation split was made; None where the splits were found.
        source: The absolute path of the folder or file that it was read from.
    """

    name: str
    splits: dict[str, CocoSet]
    names: list[str]
    prompts: dict[str, str]
    unused_names: list[str]
    seed: int | None
    source: str
