"""Where the images of COCO are and how large, by their ids: other files only name the ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .grounding_records import EntryError, read_file_name, read_image_size
from .value_checks import AnnotationError, is_integer, read_json_file, show


class CocoImage(NamedTuple):
    """An image as COCO lists it.

    Attributes:
        file_name: Path below its folder.
        size: Height and width in pixels.
    """

    file_name: str
    size: list[int]


def read_coco_images(json_files: Sequence[str]) -> dict[int, CocoImage]:
    """Read the ``images`` of files in COCO's format by their ids: ``id``, ``file_name``, ``height`` and ``width``.

    Raises:
        FileNotFoundError: A file does not exist.
        AnnotationError: A file is no such json, or an image breaks the format.
    """
    images: dict[int, CocoImage] = {}
    for json_file in json_files:
        entries = read_json_file(json_file).get("images")
        if not isinstance(entries, list):
            raise AnnotationError(f"{json_file}: images is {show(entries)}, expected a list")
        for index, entry in enumerate(entries):
            where = f"{json_file}: images[{index}]"
            if not isinstance(entry, dict) or not is_integer(entry.get("id")):
                raise AnnotationError(f"{where} is {show(entry)}, expected an object with an integer as id")
            try:
                images[entry["id"]] = CocoImage(read_file_name(entry, "file_name"), read_image_size(entry))
            except EntryError as error:
                raise AnnotationError(f"{where}: {error}") from error
    return images
