"""The lenient reader of json in COCO's format under detection, grounding, referring data, questions and captions.

An image or annotation that cannot be used is left out and counted, see ``skip_report``. Anything that would change the
meaning of the others is an error: categories without a name or with one name twice, two images with one id.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from .skip_report import SkipReport, with_progress
from .value_checks import (
    AnnotationError,
    EntryError,
    OmittedEntry,
    as_integer,
    has_image_size,
    is_text,
    list_of,
    read_file_name,
    read_image_size,
    read_integer,
    read_json_file,
    read_object,
    show,
    unknown_id,
)

# Names that exporters give to a first category that no object has.
BACKGROUND = ("_background_", "__background__", "__ignore__")
# Two entries of one id that agree in these are the same image.
_IDENTITY = ("file_name", "coco_url", "caption", "questions")


class CocoImage(NamedTuple):
    """An image as COCO lists it.

    Attributes:
        id: Its id in the file.
        file_name: Its path below the image folder.
        size: Height and width in pixels; empty where the file need not say them and does not.
        entry: The whole entry, with the fields of other formats.
    """

    id: int
    file_name: str
    size: list[int]
    entry: dict[str, Any]


# By their ids; None for an image that was left out.
Images = dict[int, CocoImage | None]


class CocoJson:
    """The content of a json file in COCO's format; each method reads one part of it.

    Args:
        json_file: The file.
        dataset: Name of the dataset that it is read for.

    Raises:
        FileNotFoundError: The file does not exist.
        AnnotationError: It is not json, or does not hold an object.
    """

    def __init__(self, json_file: str, dataset: str = "") -> None:
        self.json_file = json_file
        self.content: dict[str, Any] = read_json_file(json_file)
        self.report = SkipReport(json_file, dataset)
        # The id that stands for each category; filled by ``categories``.
        self.category_ids: dict[int, int] = {}

    def images(
        self,
        path_of: Callable[[dict[str, Any]], str] | None = None,
        *,
        folder: str = "",
        one_entry_per_file: bool = False,
        needs_size: bool = True,
    ) -> Images:
        """Read ``images`` with ``id``, ``file_name``, ``height`` and ``width``, in the order of the file.

        Args:
            path_of: Reads the path of an image from its entry; None: ``file_name``, see ``read_file_name``.
            folder: The folder that these paths are relative to.
            one_entry_per_file: A second entry of the same file is a fault.
            needs_size: An image without a proper ``height`` and ``width`` is a fault.

        Raises:
            AnnotationError: ``images`` is not a list, or two different images have one id.
        """
        entries = list_of(self.content, "images", self.json_file)
        self.report.count("images", len(entries))
        images: Images = {}
        paths: set[str] = set()
        for index, entry in enumerate(entries):
            where = f"images[{index}]"
            try:
                image_id = read_integer(read_object(entry), "id")
                where += f" (id {image_id})"
                known = images.setdefault(image_id, None)
                if known is not None:
                    raise self._doubled(where, known, entry)
                path = read_file_name(entry, "file_name", folder) if path_of is None else path_of(entry)
                if one_entry_per_file and path in paths:
                    raise EntryError(f"file_name: expected one entry, found {show(path)} again", "images listed twice")
                size = read_image_size(entry) if needs_size or has_image_size(entry) else []
                images[image_id] = CocoImage(image_id, path, size, entry)
                paths.add(path)
            except EntryError as error:
                self.report.skip("images", where, error)
        return images

    def annotations(self, images: Mapping[int, Any], read: Callable[[Any, dict[str, Any]], None]) -> None:
        """Call a reader with the image and the entry of each of ``annotations``, which a test set may lack.

        An annotation of an image that is not listed is a fault, one of an image that was left out is left out with it.

        Args:
            images: What the reader gets, by the ids of the images; None for an image that was left out.
            read: Raises EntryError for an annotation that cannot be used.

        Raises:
            AnnotationError: ``annotations`` is not a list.
        """
        entries = self.annotation_entries()
        self.report.count("annotations", len(entries))
        for index, entry in enumerate(with_progress(entries, f"{self.json_file}: annotations")):
            entries[index] = None  # The whole file need not stay in memory.
            try:
                image_id = read_integer(read_object(entry), "image_id")
                if image_id not in images:
                    raise unknown_id("image_id", image_id, "an id that stands in images")
                image = images[image_id]
                if image is None:
                    found = f"image_id: expected an image that is used, found {image_id}"
                    raise OmittedEntry(found, "annotations of images that are left out")
                read(image, entry)
            except EntryError as error:
                known_id = f" (id {show(entry['id'])})" if isinstance(entry, dict) and "id" in entry else ""
                self.report.skip("annotations", f"annotations[{index}]{known_id}", error)

    def annotation_entries(self) -> list[Any]:
        """Return ``annotations``, none if the file is that of a test set.

        Raises:
            AnnotationError: It is not a list.
        """
        return list_of(self.content, "annotations", self.json_file) if "annotations" in self.content else []

    def categories(self) -> dict[int, str]:
        """Return the names of ``categories`` by their ids, in ascending order of the ids.

        A category that no annotation has is left out if it only stands for the others: the supercategory of all of
        them, as Roboflow writes it, or a background. One that is listed twice, under one id or under two, counts once;
        ``category_ids`` holds the first id for both.

        The name is ``name``, or where a file of LVIS has none the first of the ``synonyms``.

        Raises:
            AnnotationError: There is no category, or one has no id, no name, or those of a different one.
        """
        rows = list_of(self.content, "categories", self.json_file)
        if not rows:
            raise AnnotationError(f"{self.json_file}: categories: expected at least one, found []")
        self.report.count("categories", len(rows))
        names: dict[int, str] = {}
        ids_of_rows: dict[str, int] = {}
        for index, row in enumerate(rows):
            category_id = as_integer(row.get("id")) if isinstance(row, dict) else None
            if category_id is None:
                self._fail(f"categories[{index}]", "an object with an integer as id", row)
            where = f"categories[{index}] (id {category_id})"
            synonyms = row.get("synonyms")
            name = row.get("name", synonyms[0] if isinstance(synonyms, list) and synonyms else None)
            if isinstance(name, str) and not name.strip():
                self.report.change(f"category with the blank name {show(name)}, which no prompt asks for")
            elif not is_text(name):
                self._fail(f"{where}: name", "a name that is not empty", row.get("name"))
            content = json.dumps({**row, "id": None}, sort_keys=True)
            first_id = ids_of_rows.get(content)
            if self.category_ids.get(category_id, first_id) != first_id:
                self._fail(f"{where}: id", "an id that no other category has", category_id)
            if first_id is None:
                names[category_id], ids_of_rows[content] = name, category_id
            else:
                error = EntryError(f"name: expected one entry, found {show(name)} again", "categories listed twice")
                self.report.skip("categories", where, error)
            self.category_ids[category_id] = category_id if first_id is None else first_id
        for category_id in self._empty_rows(rows, names):
            self.report.change(f"category {show(names.pop(category_id))} left out, which stands for the others")
        first_ids = {name: category_id for category_id, name in reversed(names.items())}
        for category_id, name in names.items():
            if first_ids[name] != category_id:
                self._fail(f"categories (id {category_id}): name", "a name that no other category has", name)
        return dict(sorted(names.items()))

    def parents(self, category_ids: Iterable[int]) -> list[str]:
        """Return the parent of each category, the ``supercategory`` of COCO, "" for one without."""
        rows = {as_integer(row["id"]): row.get("supercategory") for row in self.content["categories"]}
        found = [rows[category_id] for category_id in category_ids]
        texts = [" ".join(parent.split()) if isinstance(parent, str) else "" for parent in found]
        # Roboflow writes "none".
        return ["" if text.lower() == "none" else text for text in texts]

    def _empty_rows(self, rows: Sequence[dict[str, Any]], names: Mapping[int, str]) -> list[int]:
        """Return the ids of the categories that only stand for the others."""
        parents = {as_integer(row["id"]): row.get("supercategory") for row in rows}
        counts = Counter(parent for parent in parents.values() if isinstance(parent, str))
        num_others = len(parents) - 1
        found = []
        for category_id, name in names.items():
            own = parents[category_id]
            is_root = own in (None, "", "none") and counts[name] - (own == name) == num_others
            if num_others and (name in BACKGROUND or is_root):
                found.append(category_id)
        if not found:
            return []
        items = [item for item in self.annotation_entries() if isinstance(item, dict)]
        used = {as_integer(item.get("category_id")) for item in items}
        return [category_id for category_id in found if category_id not in used]

    def _doubled(self, where: str, known: CocoImage, entry: dict[str, Any]) -> EntryError:
        """Return the error of a second entry of an id, with which nothing is lost.

        Raises:
            AnnotationError: The entries are of two images; annotations could be of either.
        """
        if any(known.entry.get(field) != entry.get(field) for field in _IDENTITY):
            self._fail(f"{where}: id", "an id that no other image has", known.id)
        return OmittedEntry(f"id: expected one entry, found {known.id} again", "images listed twice")

    def _fail(self, where: str, expected: str, found: Any) -> NoReturn:
        raise AnnotationError(f"{self.json_file}: {where}: expected {expected}, found {show(found)}")


def image_record(image: CocoImage, image_root: str, image_id: int | str | None = None) -> dict[str, Any]:
    """Make a dataset dict of an image without annotations.

    Args:
        image: The image.
        image_root: The folder of its path.
        image_id: The id in the dict, if it is another one.
    """
    height, width = image.size
    return {
        "file_name": os.path.join(image_root, image.file_name),
        "height": height,
        "width": width,
        "image_id": image.id if image_id is None else image_id,
        "annotations": [],
    }


def read_coco_images(json_files: Sequence[str]) -> Images:
    """Read the ``images`` of files in COCO's format by their ids: other files name the ids only.

    Raises:
        FileNotFoundError: A file does not exist.
        AnnotationError: A file is not of this format.
    """
    images: Images = {}
    for json_file in json_files:
        content = CocoJson(json_file)
        found = content.images()
        content.report.close([image for image in found.values() if image is not None], "images")
        images.update(found)
    return images
