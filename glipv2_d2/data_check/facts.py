"""What is known of the images, boxes and names of a set; findings are drawn from it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..data.transforms import ResizeShortestEdgeLegacy
from ..plurals import counted


class BoxFacts(NamedTuple):
    """A box of an image.

    Attributes:
        name: Its class.
        corners: XYXY in pixels of the image, as annotated.
        iscrowd: A region of many objects, which is not learned.
    """

    name: str
    corners: tuple[float, float, float, float]
    iscrowd: bool = False

    @property
    def short_side(self) -> float:
        """In pixels of the image."""
        left, top, right, bottom = self.corners
        return min(right - left, bottom - top)


class ImageFacts(NamedTuple):
    """An image: its annotation, and what its file was found to be.

    Attributes:
        split: "train", "val" or "test".
        name: Path in the folder of the split.
        path: Path of the file.
        size: Height and width in pixels, as annotated.
        boxes: Its boxes.
        is_read: The file was read; without it the fields below are not known.
        error: Why it cannot be read; "" if it can.
        truncated: What is missing of the file; "" for nothing.
        gray_share: Share of a truncated image that has no pixels, in [0, 1].
        file_size: Height and width of the upright file.
        num_bytes: Size of the file.
        file_format: Such as "JPEG".
        orientation: EXIF orientation, 1 to 8.
        is_gray, has_alpha, is_animated: One channel; transparency; more than one image.
        pixels_digest: Equal for images of equal pixels.
    """

    split: str
    name: str
    path: str
    size: tuple[int, int]
    boxes: tuple[BoxFacts, ...] = ()
    is_read: bool = False
    error: str = ""
    truncated: str = ""
    gray_share: float = 0.0
    file_size: tuple[int, int] = (0, 0)
    num_bytes: int = 0
    file_format: str = ""
    orientation: int = 1
    is_gray: bool = False
    has_alpha: bool = False
    is_animated: bool = False
    pixels_digest: str = ""

    @property
    def place(self) -> str:
        """Split and name, for reports."""
        return f"{self.split} {self.name}" if os.path.isabs(self.name) else f"{self.split}/{self.name}"

    @property
    def objects(self) -> list[BoxFacts]:
        """The boxes that are learned."""
        return [box for box in self.boxes if not box.iscrowd]


class DataFacts(NamedTuple):
    """A set as it is.

    Attributes:
        name: Its name.
        images: The images of all splits, one split after the other.
        names: Its classes.
        prompts: What prompts say for some of them.
        input_size: Shortest and longest side in pixels that the model will see images with, as in the config.
        num_tokens: Tokens of each prompt that holds a part of the names, special tokens included.
    """

    name: str
    images: list[ImageFacts]
    names: list[str]
    prompts: Mapping[str, str]
    input_size: tuple[int, int]
    num_tokens: list[int]

    @property
    def splits(self) -> list[str]:
        """The splits that have images, in their order."""
        return list(dict.fromkeys(image.split for image in self.images))

    def boxes_of(self, split: str) -> Counter[str]:
        """Count the boxes of each class that are learned or tested in a split."""
        return Counter(box.name for image in self.images if image.split == split for box in image.objects)

    def scaled(self) -> Iterator[tuple[ImageFacts, BoxFacts, float]]:
        """Yield each box with its image and the factor by which the image is resized for the model."""
        for image in self.images:
            scale = input_scale(image.size, self.input_size)
            for box in image.objects:
                yield image, box, scale

    def short_sides(self) -> np.ndarray:
        """Return the shorter side of each box as the model sees it, (M,) pixels."""
        return np.array([box.short_side * scale for _, box, scale in self.scaled()], dtype=np.float64)

    def summary(self) -> list[str]:
        """Return the figures in two lines: of the set, and of its splits."""
        boxes = sum(len(image.objects) for image in self.images)
        parts = [
            f"{split} {counted(sum(image.split == split for image in self.images), 'image')} "
            f"{counted(self.boxes_of(split).total(), 'box')}"
            for split in self.splits
        ]
        total = f"{counted(len(self.images), 'image')}, {counted(len(self.names), 'class')}, {counted(boxes, 'box')}"
        sides = self.short_sides()
        seen = ""
        if len(sides):
            seen = f"; half of them are under {np.median(sides):.0f} pixels at input size {self.input_size[0]}"
        return [f"{self.name}: {total}{seen}", f"    {'; '.join(parts)}"]

    def content(self) -> dict[str, Any]:
        """Return the figures in types of json."""
        sides = self.short_sides()
        counts = {split: self.boxes_of(split) for split in self.splits}
        shares = (1, 10, 50, 90, 99)
        return {
            "splits": {
                split: {
                    "images": sum(image.split == split for image in self.images),
                    "images_without_boxes": sum(image.split == split and not image.objects for image in self.images),
                    "boxes": count.total(),
                }
                for split, count in counts.items()
            },
            "prompts": dict(self.prompts),
            "classes": {name: {split: count[name] for split, count in counts.items()} for name in self.names},
            "input_size": list(self.input_size),
            "short_sides": {
                f"percentile_{share}": round(float(np.percentile(sides, share)), 2) for share in shares if len(sides)
            },
            "prompt_tokens": self.num_tokens,
        }


def input_scale(size: tuple[int, int], input_size: tuple[int, int]) -> float:
    """Return the factor by which an image of a height and width is resized for the model; 1 without a size."""
    if min(size) < 1 or input_size[0] == 0:
        return 1.0
    shape = ResizeShortestEdgeLegacy.get_output_shape(*size, *input_size)
    return min(shape) / min(size)
