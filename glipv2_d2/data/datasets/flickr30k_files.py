"""The files of Flickr30K Entities: sentences with marked phrases, and boxes of what the phrases mean, in XML."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple
from xml.etree import ElementTree

from detectron2.utils.file_io import PathManager

from ...structures import CharSpan
from .grounding_records import EntryError
from .value_checks import AnnotationError, show

# A marked phrase: "[/EN#283585/people Two young guys]". Its types are between slashes; a bracket ends it at the end of
# a word only.
_PHRASE = re.compile(r"\[/EN#(\d+)(?:/[^/\s]+)+ (.*?)\](?=\s|$)")
_LARGEST_XML = 2**20  # bytes; the files of the release have a few thousand


class Sentence(NamedTuple):
    """A caption without its marks.

    Attributes:
        text: The caption.
        phrases: Half-open character range and entity id of each marked phrase, in the order of the text.
    """

    text: str
    phrases: list[tuple[CharSpan, str]]


class ImageBoxes(NamedTuple):
    """What is annotated in an image.

    Attributes:
        height: In pixels.
        width: In pixels.
        boxes: For each entity id its boxes, XYXY in pixels. Entities without a box are absent.
        left_out: A line for each box that cannot be used.
    """

    height: int
    width: int
    boxes: dict[str, list[tuple[float, float, float, float]]]
    left_out: list[str]


def read_sentences(path: str) -> list[Sentence]:
    """Read the captions of an image, one a line; ``Sentences/1000092795.txt`` for example.

    Raises:
        FileNotFoundError: There is no such file.
        AnnotationError: It is no text in UTF-8, or a bracket in it marks no phrase.

    Source: the format of the release (Plummer et al., ICCV 2015).
    """
    try:
        with PathManager.open(path, "r", encoding="utf-8") as file:
            lines = file.read().split("\n")
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: {error}; expected text in UTF-8") from error
    return [_read_sentence(line.strip(), f"{path}: line {row}") for row, line in enumerate(lines, 1) if line.strip()]


def _read_sentence(line: str, where: str) -> Sentence:
    parts: list[str] = []
    phrases: list[tuple[CharSpan, str]] = []
    length = end_of_last = 0
    for match in _PHRASE.finditer(line):
        words = match.group(2).strip()
        parts += [line[end_of_last : match.start()], words]
        begin = length + match.start() - end_of_last
        length = begin + len(words)
        end_of_last = match.end()
        if words:
            phrases.append(((begin, length), match.group(1)))
    text = "".join([*parts, line[end_of_last:]]).rstrip()
    if "/EN#" in text:
        raise AnnotationError(f"{where} is {show(line)}, expected phrases as [/EN#ID/TYPE WORDS]")
    return Sentence(text, phrases)


def read_image_boxes(path: str) -> ImageBoxes:
    """Read the annotations of an image; ``Annotations/1000092795.xml`` for example.

    Their coordinates are those of first and last pixels and begin with 1. An object may have several entity ids
    (``name``); objects without a box (``scene``, ``nobndbox``) are passed over.

    A document that declares a document type is refused before anything it declares is read: no entity is resolved.

    Raises:
        FileNotFoundError: There is no such file.
        AnnotationError: It is no XML of an image with a size, or more than a megabyte.

    Source: the format of the release, whose own reader subtracts 1 from all coordinates. Here the box is half-open.
    """
    root = _parse(path)
    try:
        height, width = (_number(root.find("size"), side) for side in ("height", "width"))
        if height < 1 or width < 1:
            raise EntryError(f"size is {width} x {height}, expected at least one pixel")
    except EntryError as error:
        raise AnnotationError(f"{path}: {error}") from error
    boxes: dict[str, list[tuple[float, float, float, float]]] = {}
    left_out: list[str] = []
    for node in root.iter("object"):
        names = [name.text.strip() for name in node.findall("name") if name.text]
        for found in node.findall("bndbox"):
            try:
                box = _read_box(found, height, width)
            except EntryError as error:
                left_out.append(f"object {show(', '.join(names))}: {error}")
                continue
            for name in names:
                boxes.setdefault(name, []).append(box)
    return ImageBoxes(height, width, boxes, left_out)


def read_image_ids(path: str) -> Iterator[str]:
    """Yield the ids of the images of a split, one a line of ``test.txt`` for example.

    Raises:
        FileNotFoundError: There is no such file.
        AnnotationError: A line is no number, or a number stands there twice.
    """
    known = set()
    with PathManager.open(path, "r", encoding="utf-8", errors="replace") as file:
        for row, line in enumerate(file, 1):
            image_id = line.strip()
            if not image_id:
                continue
            if not (image_id.isascii() and image_id.isdigit()) or image_id in known:
                raise AnnotationError(f"{path}: line {row} is {show(image_id)}, expected the number of another image")
            known.add(image_id)
            yield image_id


class _PlainTree(ElementTree.TreeBuilder):
    """Builds a tree of a document without a document type."""

    def doctype(self, name: str, public_id: str | None, system_id: str | None) -> None:
        raise EntryError(f"declares the document type {show(name)}, expected none")


def _parse(path: str) -> ElementTree.Element:
    with PathManager.open(path, "rb") as file:
        content = file.read(_LARGEST_XML + 1)
    if len(content) > _LARGEST_XML:
        raise AnnotationError(f"{path}: has more than {_LARGEST_XML} bytes, expected the annotations of one image")
    parser = ElementTree.XMLParser(target=_PlainTree())
    try:
        parser.feed(content)
        return parser.close()
    except (EntryError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise AnnotationError(f"{path}: {' '.join(str(error).split())}; expected the XML of an image") from error


def _read_box(node: ElementTree.Element, height: int, width: int) -> tuple[float, float, float, float]:
    first_x, first_y, last_x, last_y = (_number(node, edge) for edge in ("xmin", "ymin", "xmax", "ymax"))
    is_inside = first_x <= width and first_y <= height and last_x >= 1 and last_y >= 1
    if not (first_x <= last_x and first_y <= last_y and is_inside):
        found = f"box is {[first_x, first_y, last_x, last_y]}"
        raise EntryError(f"{found}, expected a box inside an image of {width} x {height} pixels")
    return (first_x - 1.0, first_y - 1.0, float(last_x), float(last_y))


def _number(node: ElementTree.Element | None, tag: str) -> int:
    text = "" if node is None else (node.findtext(tag) or "").strip()
    if not re.fullmatch(r"-?[0-9]{1,9}", text):
        raise EntryError(f"{tag} is {show(text)}, expected an integer")
    return int(text)
