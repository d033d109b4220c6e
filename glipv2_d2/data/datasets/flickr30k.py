"""Flickr30K Entities: every caption with the phrases that have boxes in its image, to be found there.

Sentences with marked phrases are text files, and the boxes of the entities that the phrases name are XML.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple
from xml.etree import ElementTree

from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from ...errors import one_line
from ...structures import CharSpan
from .skip_report import SkipReport, with_progress
from .value_checks import (
    AnnotationError,
    Box,
    EntryError,
    OmittedEntry,
    as_integer,
    as_number,
    cut_box,
    read_corners,
    show,
)

# A marked phrase: "[/EN#283585/people Two young guys]". Its types are between slashes; a bracket ends it at the end of
# a word only.
_PHRASE = re.compile(r"\[/EN#(\d+)(?:/[^/\s]+)+ (.*?)\](?=\s|$)")
_LARGEST_XML = 2**20  # bytes; the files of the release have a few thousand


def load_flickr30k(entities_root: str, split: str, image_root: str, name: str) -> list[dict]:
    """Read a split: one dataset dict for each caption.

    A phrase that is marked in the caption and has boxes in the image is to be found: an annotation for each of its
    boxes, in the order of the phrases, with the characters of the phrase in ``tokens_positive``. The same entity may be
    named by two phrases of a caption, and a phrase may have several boxes.

    Captions none of whose phrases has a box are left out by rule. An image whose files are malformed or missing is left
    out whole.

    Returns:
        Dataset dicts in the order of the list and of the captions. Their ``image_id`` is "<image id>_<row of the
        caption>", from 0.

    Raises:
        FileNotFoundError: The list of images is missing.
        AnnotationError: Nothing is left, or there are too many faults.

    Source: Flickr30K Entities (Plummer et al., ICCV 2015); GLIP evaluates the same captions, phrases and boxes, its
    captions by way of MDETR's json.
    """
    ids_file = os.path.join(entities_root, f"{split}.txt")
    report = SkipReport(ids_file, name)
    records: list[dict] = []
    image_ids = read_image_ids(ids_file, report)
    for image_id in with_progress(image_ids, f"{name}: captions"):
        where = f"image {image_id}"
        try:
            sentences = read_sentences(os.path.join(entities_root, "Sentences", f"{image_id}.txt"))
            image = read_image_boxes(os.path.join(entities_root, "Annotations", f"{image_id}.xml"))
        except AnnotationError as error:
            report.skip("images", where, EntryError(str(error), "malformed files"))
            continue
        except FileNotFoundError as error:
            found = f"{error.filename}: expected a file of the release, found none"
            report.skip("images", where, EntryError(found, "missing files"))
            continue
        report.count("boxes", image.num_boxes)
        for fault in image.left_out:
            report.skip("boxes", where, fault)
        file_name = os.path.join(image_root, f"{image_id}.jpg")
        for row, sentence in enumerate(sentences):
            report.count("captions")
            try:
                records.append(_make_record(sentence, image, file_name, f"{image_id}_{row}"))
            except EntryError as error:
                report.skip("captions", f"{where}, caption {row}", error)
    report.close(records, f"captions of the split {split!r} with boxes")
    return records


class Sentence(NamedTuple):
    """A caption without its marks.

    Attributes:
        text: The caption.
        phrases: Half-open character range and entity id of each marked phrase, in the order of the text.
    """

    text: str
    phrases: list[tuple[CharSpan, str]]


class ImageBoxes(NamedTuple):
    """The annotations of an image.

    Attributes:
        height, width: Size of the image in pixels.
        boxes: For each entity id its boxes, XYXY in pixels. Entities without a box are absent.
        num_boxes: Boxes in the file.
        left_out: The fault of each box that cannot be used.
    """

    height: int
    width: int
    boxes: dict[str, list[Box]]
    num_boxes: int
    left_out: list[EntryError]


def read_sentences(path: str) -> list[Sentence]:
    """Read the captions of an image, one a line; ``Sentences/1000092795.txt`` for example.

    Raises:
        FileNotFoundError: The file does not exist.
        AnnotationError: It is not text in UTF-8, or a bracket in it does not mark a phrase.

    Source: the format of the release (Plummer et al., ICCV 2015).
    """
    try:
        with PathManager.open(path, "r", encoding="utf-8-sig") as file:
            lines = file.read().split("\n")
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: expected text in UTF-8, found {error}") from error
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
        raise AnnotationError(f"{where}: expected phrases as [/EN#ID/TYPE WORDS], found {show(line)}")
    return Sentence(text, phrases)


def read_image_boxes(path: str) -> ImageBoxes:
    """Read the annotations of an image; ``Annotations/1000092795.xml`` for example.

    Their coordinates are those of first and last pixels and begin with 1. An object may have several entity ids
    (``name``); objects without a box (``scene``, ``nobndbox``) are passed over.

    A document that declares a document type is refused before anything it declares is read: no entity is resolved.

    Raises:
        FileNotFoundError: The file does not exist.
        AnnotationError: It is not the XML of an image with a size, or has more than a megabyte.

    Source: the format of the release, whose own reader subtracts 1 from all coordinates. Here the box is half-open.
    """
    root = _parse(path)
    size = root.find("size")
    height, width = (as_integer(size.findtext(side) if size is not None else None) for side in ("height", "width"))
    if not height or not width or height < 1 or width < 1:
        raise AnnotationError(f"{path}: size: expected width and height in pixels, found {width} x {height}")
    boxes: dict[str, list[Box]] = {}
    left_out: list[EntryError] = []
    num_boxes = 0
    for node in root.iter("object"):
        names = [name.text.strip() for name in node.findall("name") if name.text]
        for found in node.findall("bndbox"):
            num_boxes += 1
            try:
                box = _read_box(found, height, width)
            except EntryError as error:
                left_out.append(EntryError(f"object {show(', '.join(names))}: {error}", error.kind))
                continue
            for name in names:
                boxes.setdefault(name, []).append(box)
    return ImageBoxes(height, width, boxes, num_boxes, left_out)


def read_image_ids(path: str, report: SkipReport) -> list[str]:
    """Return the ids of the images of a split, one a line of ``test.txt`` for example.

    A line that is not a number, or repeats one, goes into the report.

    Raises:
        FileNotFoundError: The file does not exist.
    """
    known: dict[str, None] = {}
    with PathManager.open(path, "r", encoding="utf-8-sig", errors="replace") as file:
        for row, line in enumerate(file, 1):
            image_id = line.strip()
            if not image_id:
                continue
            report.count("images")
            if image_id in known or not (image_id.isascii() and image_id.isdigit()):
                kind = "images listed twice" if image_id in known else "malformed ids"
                error = EntryError(f"expected the number of another image, found {show(image_id)}", kind)
                report.skip("images", f"line {row}", error)
            else:
                known[image_id] = None
    return list(known)


class _PlainTree(ElementTree.TreeBuilder):
    """Builds a tree of a document without a document type."""

    def doctype(self, name: str, public_id: str | None, system_id: str | None) -> None:
        raise EntryError(f"the document type {show(name)}")


def _parse(path: str) -> ElementTree.Element:
    with PathManager.open(path, "rb") as file:
        content = file.read(_LARGEST_XML + 1)
    if len(content) > _LARGEST_XML:
        raise AnnotationError(f"{path}: expected the XML of one image, found more than {_LARGEST_XML} bytes")
    parser = ElementTree.XMLParser(target=_PlainTree())
    try:
        parser.feed(content)
        return parser.close()
    except (EntryError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise AnnotationError(f"{path}: expected the XML of an image, found {one_line(error)}") from error


def _read_box(node: ElementTree.Element, height: int, width: int) -> Box:
    """Return a box whose numbers in the file are those of its first and last pixels, counted from 1."""
    first = [as_number(node.findtext(edge)) for edge in ("xmin", "ymin")]
    last = [node.findtext(edge) for edge in ("xmax", "ymax")]
    corners = [None if number is None else number - 1 for number in first] + last
    box = read_corners(corners)
    cut_box(box, height, width)  # Only checked: a few boxes of the release begin a pixel before their image.
    return box


def _make_record(sentence: Sentence, image: ImageBoxes, file_name: str, pair_id: str) -> dict:
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "tokens_positive": (span,)}
        for span, entity in sentence.phrases
        for box in image.boxes.get(entity, ())
    ]
    if not annotations:
        raise OmittedEntry("expected a phrase with a box, found none", "captions without a box")
    return {
        "file_name": file_name,
        "height": image.height,
        "width": image.width,
        "image_id": pair_id,
        "caption": sentence.text,
        "annotations": annotations,
    }
