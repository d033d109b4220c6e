"""Datasets of captions whose phrases have boxes, in MDETR's json format: Flickr30K entities and the mixed data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.data import MetadataCatalog

from .coco_json import CocoJson, image_record
from .grounding_records import grounding_annotation
from .value_checks import (
    AnnotationError,
    EntryError,
    OmittedEntry,
    check_no_crowd,
    read_box,
    read_file_name,
    read_spans,
    read_text,
    show,
)


def load_grounding_json(json_file: str, image_root: str | Mapping[str, str], name: str) -> list[dict]:
    """Read a dataset.

    Each entry of ``images`` is one caption, with ``id``, ``file_name``, ``height`` and ``width``; images may come
    several times. An annotation has ``image_id``, a box of left, top, width and height, and ``tokens_positive``; where
    it has ``tokens`` they are read instead. A ``segmentation`` is carried along as it is, for ``keep_usable_masks``.
    The rest is passed over.

    Crowd regions, boxes of at most one pixel, and captions without any box left are left out by rule: such a caption
    would teach that the things it names are not there. Captions to be written (task "captioning") stay without a box.

    Returns:
        Dataset dicts in the order of the file, with ``caption``, and per annotation an XYXY box, cut to the image, and
        ``tokens_positive``. About 3 kB of memory each with five boxes.

    Raises:
        FileNotFoundError: The file does not exist.
        AnnotationError: The file cannot be used, a ``data_source`` has no directory, or there are too many faults.

    Source: the official code for data in MDETR's format. Departure: where it cuts a box at the last pixel's centre, the
    half-open box is cut at the border of the image.
    """
    content = CocoJson(json_file, name)
    images = content.images(lambda entry: read_file_name(entry, "file_name", _directory(entry, image_root, json_file)))
    records: dict[int, dict | None] = {}
    for image_id, image in images.items():
        records[image_id] = None
        if image is not None:
            try:
                caption = read_text(image.entry, "caption")
            except EntryError as error:
                content.report.skip("images", f"images (id {image_id})", error)
                continue
            records[image_id] = {
                **image_record(image, _directory(image.entry, image_root, json_file)),
                "caption": caption,
            }

    def read(record: dict, item: dict) -> None:
        check_no_crowd(item)
        box = read_box(item.get("bbox"), record["height"], record["width"], has_sides=True)
        tokens = item.get("tokens")
        spans = read_spans(item.get("tokens_positive") if tokens is None else tokens, record["caption"])
        record["annotations"].append(grounding_annotation(box, spans, segmentation=item.get("segmentation")))

    content.annotations(records, read)
    needs_boxes = MetadataCatalog.get(name).get("task") != "captioning"
    usable = []
    for record in records.values():
        if record is not None and (record["annotations"] or not needs_boxes):
            usable.append(record)
        elif record is not None:
            omitted = OmittedEntry(
                f"expected a box for {show(record['caption'])}, found none", "captions without a box"
            )
            content.report.skip("images", f"images (id {record['image_id']})", omitted)
    content.report.close(usable, "captions with boxes")
    return usable


def _directory(entry: Mapping[str, Any], image_root: str | Mapping[str, str], json_file: str) -> str:
    if isinstance(image_root, str):
        return image_root
    source = entry.get("data_source")
    directory = image_root.get(source if isinstance(source, str) else "", image_root.get(""))
    if directory is None:
        where = f"{json_file}: images (id {entry['id']}): data_source"
        raise AnnotationError(f"{where}: expected one of {list(image_root)}, found {show(source)}")
    return directory
