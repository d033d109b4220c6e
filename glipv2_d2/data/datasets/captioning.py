"""Images with captions to learn to write: Karpathy's splits of COCO and Flickr30K, and COCO's own files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from .coco_json import CocoImage, CocoJson, Images, read_coco_images
from .skip_report import SkipReport, with_progress
from .value_checks import (
    AnnotationError,
    EntryError,
    OmittedEntry,
    list_of,
    read_file_name,
    read_integer,
    read_object,
    read_text,
    show,
)


def load_captioning(
    json_file: str, image_root: str, splits: tuple[str, ...], images_files: tuple[str, ...], name: str
) -> list[dict]:
    """Read a dataset: one dataset dict for each image.

    An image of Karpathy's file has ``filename``, perhaps a folder ``filepath``, ``cocoid`` or ``imgid``, a ``split``,
    and ``sentences`` with the text ``raw``. COCO's file has ``images`` and, unless it is that of a test set,
    ``annotations`` with ``image_id`` and ``caption``. Images without a caption are left out.

    Returns:
        Dataset dicts in the order of the images, with ``captions``; without them if the file has no ``annotations``.

    Raises:
        FileNotFoundError: A file does not exist.
        AnnotationError: A file cannot be used, two different images have one id, or there are too many faults.

    Source: Karpathy and Fei-Fei, arXiv 1412.2306, and its files; the format of COCO captions.
    """
    content = CocoJson(json_file, name)
    records: dict[int, dict] = {}
    if splits:
        images = list_of(content.content, "images", json_file)
        _add_karpathy_images(records, json_file, images, splits, read_coco_images(images_files), content.report)
    else:
        _add_coco_images(records, content)
    usable = []
    for record in records.values():
        record["file_name"] = os.path.join(image_root, record["file_name"])
        if record.get("captions") == []:
            error = OmittedEntry("expected at least one caption, found none", "images without a caption")
            content.report.skip("images", f"image id {record['image_id']}", error)
        else:
            usable.append(record)
    content.report.close(usable, "images with captions" + (f" of the splits {show(list(splits))}" if splits else ""))
    return usable


def _add_karpathy_images(
    records: dict[int, dict],
    json_file: str,
    images: list,
    splits: Sequence[str],
    sizes: Images,
    report: SkipReport,
) -> None:
    found = {image["split"] for image in images if isinstance(image, dict) and isinstance(image.get("split"), str)}
    missing = [split for split in splits if split not in found]
    if missing:
        raise AnnotationError(f"{json_file}: splits: expected {missing[0]!r} among them, found {show(sorted(found))}")
    for index, image in enumerate(with_progress(images, f"{json_file}: captions")):
        if isinstance(image, dict) and image.get("split") not in splits:
            continue
        report.count("images")
        where = f"images[{index}]"
        try:
            record = _read_karpathy_image(image, sizes, report, where)
        except EntryError as error:
            report.skip("images", where, error)
            continue
        image_id = record["image_id"]
        known = records.setdefault(image_id, record)
        if known is not record and known != record:
            raise AnnotationError(
                f"{json_file}: {where}: cocoid: expected an id that no other image has, found {image_id}"
            )
        if known is not record:
            twin = EntryError(f"cocoid: expected one entry, found {image_id} again", "images listed twice")
            report.skip("images", where, twin)


def _read_karpathy_image(image: Any, sizes: Images, report: SkipReport, where: str) -> dict[str, Any]:
    image_id = read_integer(read_object(image), "cocoid" if "cocoid" in image else "imgid")
    path = read_file_name(image, "filename")
    if image.get("filepath"):
        path = os.path.join(read_file_name(image, "filepath"), path)
    sentences = image.get("sentences")
    if not isinstance(sentences, list):
        raise EntryError(f"sentences: expected a list, found {show(sentences)}")
    record: dict[str, Any] = {"file_name": path, "image_id": image_id}
    known = sizes.get(image_id)
    if known is not None:
        record["height"], record["width"] = known.size
    report.count("captions", len(sentences))
    record["captions"] = []
    for number, sentence in enumerate(sentences):
        try:
            record["captions"].append(_read_caption(sentence, "raw"))
        except EntryError as error:
            report.skip("captions", f"{where}.sentences[{number}]", error)
    return record


def _add_coco_images(records: dict[int, dict], content: CocoJson) -> None:
    images = content.images()
    for image in images.values():
        if image is not None:
            height, width = image.size
            records[image.id] = {
                "file_name": image.file_name,
                "image_id": image.id,
                "height": height,
                "width": width,
            }
    if "annotations" not in content.content:
        return  # A test set.
    for record in records.values():
        record["captions"] = []

    def read(image: CocoImage, item: Mapping[str, Any]) -> None:
        records[image.id]["captions"].append(_read_caption(item, "caption"))

    content.annotations(images, read)


def _read_caption(entry: Any, field: str) -> str:
    """Return a caption without the line breaks and spaces around it."""
    return read_text(read_object(entry), field).strip()
