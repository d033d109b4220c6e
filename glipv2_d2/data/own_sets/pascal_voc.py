"""Pascal VOC xml, and lists of images as VOC and darknet have them.

``supervision`` reads this format too, but one faulty file ends it, images and lists of splits are expected where it
looks for them, and it does not say what it leaves out: this reader is the smaller part.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from ...errors import one_line
from ..datasets.skip_report import SkipReport
from ..datasets.value_checks import EntryError, OmittedEntry, as_integer, as_number, read_corners
from .folder import Folder, decode_text, read_beginning, read_bytes, stem_of
from .sets import OwnBox, OwnImage, Part

_MOST_BYTES = 2**24
_ENCODING = re.compile(rb"""\s*<\?xml[^>]*\sencoding=["']((?!(?i:utf))[\w.:-]+)["']""")
_HEAD = re.compile(rb"<annotation[\s>]")
_SIDES = ("xmin", "ymin", "xmax", "ymax")
# A line of a list: a name or path, perhaps quoted, and whether the image has objects of the class of the list.
_LISTED = re.compile(r'"?(.*?)"?(?:\s+-?[01])?')


class _WithoutDoctype(ElementTree.TreeBuilder):
    """Refuses document types: entities that are declared in them may grow without end, or name files."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise EntryError(f"expected xml without a document type, found {name!r}", "files that are not xml")


def read_xml(path: str) -> ElementTree.Element:
    """Return the root of an xml file of at most 16 MiB.

    Raises:
        EntryError: It cannot be read, is not xml, or declares a document type.
    """
    content = read_bytes(path, _MOST_BYTES)
    declared = _ENCODING.match(content)
    try:
        # The parser knows no encodings of more than one byte but Unicode's.
        text = content.decode(declared.group(1).decode()) if declared else content
        return ElementTree.fromstring(text, ElementTree.XMLParser(target=_WithoutDoctype()))
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        if isinstance(error, EntryError):
            raise
        raise EntryError(f"expected xml, found {one_line(error)}", "files that are not xml") from error


def is_pascal_voc(path: str) -> bool:
    """Tell whether an xml file may be of this format, by its beginning."""
    return bool(_HEAD.search(read_beginning(path)))


def read_pascal_voc(xml_files: Sequence[str], files: Folder, report: SkipReport) -> list[Part]:
    """Read annotations, a file for each image.

    An image is that of the same name as its xml, or else the one that the xml names. Its split is that of a list, as
    ``ImageSets/Main/train.txt``, or else of its folder or that of its xml. Where there are lists, images of none are
    left out. Corners are taken as they stand: tools count pixels from 0, and xmax is the right side, as in COCO json of
    the same sets.

    Args:
        xml_files: The files.
        files: The folder that the images lie in.
        report: Counts what is left out.
    """
    splits = read_split_lists(files)
    parts: dict[str, Part] = {}
    report.count("annotation files", len(xml_files))
    for xml_file in xml_files:
        where, names = files.relative(xml_file), set()
        try:
            root = read_xml(xml_file)
            names = {item.findtext("name") or "" for item in root.findall("object")}
            image = _read_image(root, xml_file, files, report)
            split = _split(image.path, xml_file, splits, files)
            part = parts.setdefault(split, Part(split, [], [], {}))
            part.images.append(image)
        except EntryError as error:
            report.skip("annotation files", where, error, names)
    return list(parts.values())


def read_split_lists(files: Folder) -> dict[str, str]:
    """Return the split of each image that a list names, by its path: ``train.txt``, ``val.txt``, ``test.txt``.

    A list has a name or path of an image in each line, with or without suffix. ``trainval.txt`` counts where there is
    no ``train.txt``. An image of several lists belongs to the one for training. VOC's lists for other tasks than
    detection are passed over; those of single classes, as ``cat_train.txt``, count where VoTT has written no others.
    Where no list names images to train on, these are the others: those of folders for training, or beside listed ones.
    """
    found: dict[str, str] = {}
    lists: dict[str, list[tuple[str, str]]] = {}
    texts = files.others[".txt"]
    main = [path for path in texts if os.path.dirname(path).endswith(_MAIN)]
    stems = {path: stem_of(path) for path in main or texts}
    if _LISTS.keys().isdisjoint(stems.values()):
        stems = {path: stem_of(path).rpartition("_")[2] for path in main}
    for path, stem in stems.items():
        if split := _LISTS.get(stem):
            lists.setdefault(stem, []).append((path, split))
    if "train" in lists:
        lists.pop("trainval", None)
    for path, split in [pair for stem in _LISTS for pair in lists.get(stem, ())]:
        try:
            lines = decode_text(read_bytes(path, 2**28)).splitlines()
        except EntryError:
            continue
        for line in filter(None, map(str.strip, lines)):
            try:
                listed = _LISTED.fullmatch(line)
                references = [line, *(listed.groups() if listed else ())]
                found.setdefault(files.find_first_image(references, files.root), split)
            except EntryError:
                # The image of a line is missing, or the file is no list: its lines hold boxes, for example.
                continue
    if found and "train" not in found.values():
        folders = set(map(os.path.dirname, found))
        for path in files.images:
            split = files.split_of_path(path)
            if split or os.path.dirname(path) in folders:
                found.setdefault(path, split or "train")
    return found


_MAIN = os.path.join("ImageSets", "Main")
# In the order in which they count.
_LISTS = {"train": "train", "trainval": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def _split(image: str, xml_file: str, splits: dict[str, str], files: Folder) -> str:
    if not splits:
        return files.split_of_path(xml_file) or files.split_of_path(image)
    if image not in splits:
        # As a list means it, which has no suffixes.
        image = files.find_image(os.path.splitext(os.path.basename(image))[0], files.root)
    if image not in splits:
        raise OmittedEntry("expected an image that a list of a split names", "annotations of images in no list")
    return splits[image]


def _read_image(root: ElementTree.Element, xml_file: str, files: Folder, report: SkipReport) -> OwnImage:
    if root.tag != "annotation":
        raise OmittedEntry(f"expected <annotation>, found <{root.tag}>", "other annotation files")
    folder, name = ((root.findtext(tag) or "").strip() for tag in ("folder", "filename"))
    path = files.find_own_image(xml_file, f"{folder}/{name}" if name else "")
    boxes = []
    where = files.relative(xml_file)
    for number, item in enumerate(root.findall("object")):
        try:
            boxes.append(_read_object(item, f"{where}: object {number}"))
        except EntryError as fault:
            report.count("boxes")
            report.skip("boxes", f"{where}: object {number}", fault, [item.findtext("name") or ""])
    sides = [as_integer(root.findtext(f"size/{side}")) or 0 for side in ("height", "width")]
    return OwnImage(path, boxes, (sides[0], sides[1]) if min(sides) > 0 else None)


def _read_object(item: ElementTree.Element, where: str) -> OwnBox:
    name = item.findtext("name") or ""
    if not name.strip():
        raise EntryError("name: expected the name of a class, found none", "boxes without a name")
    box = item.find("bndbox")
    polygon = _read_polygon(item.find("polygon"))
    if box is None and polygon:
        corners: Any = [min(polygon[::2]), min(polygon[1::2]), max(polygon[::2]), max(polygon[1::2])]
    else:
        corners = [None if box is None else box.findtext(side) for side in _SIDES]
    return OwnBox(name, read_corners(corners), [polygon] if polygon else None, where=where)


def _read_polygon(item: ElementTree.Element | None) -> list[float]:
    """Return x and y in turn: children x1, y1, x2, ... as Roboflow writes them, or pt with x and y; [] for none."""
    if item is None:
        return []
    texts = [one.text for point in item.findall("pt") for one in (point.find("x"), point.find("y")) if one is not None]
    if not texts:
        found = {one.tag: one.text for one in item}
        numbers = range(1, len(found) // 2 + 1)
        texts = [found.get(f"{axis}{number}") for number in numbers for axis in ("x", "y")]
    values = [as_number(text) for text in texts]
    points = [value for value in values if value is not None]
    return points if len(points) == len(values) and len(points) >= 6 else []
