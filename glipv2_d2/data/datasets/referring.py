"""Referring data: one image with one phrase, and all boxes that the phrase means.

The files are those of PhraseCut, of RefCOCO, RefCOCO+ and RefCOCOg, or json in COCO's format with a ``phrase``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .coco_json import CocoImage, CocoJson, Images, image_record
from .grounding_records import grounding_annotation
from .skip_report import SkipReport, with_progress
from .value_checks import (
    AnnotationError,
    Box,
    EntryError,
    OmittedEntry,
    as_integer,
    check_no_crowd,
    is_number,
    list_of,
    read_all,
    read_box,
    read_image_size,
    read_integer,
    read_json_file,
    read_object,
    read_text,
    show,
    unknown_id,
)


def load_referring_json(json_file: str, image_root: str, name: str) -> list[dict]:
    """Read json in COCO's format: one dataset dict for each image and each different phrase of its annotations.

    An image has ``id``, ``file_name``, ``height`` and ``width``. An annotation has ``image_id``, ``phrase``, a box of
    left, top, width and height, and perhaps a ``segmentation``, which is passed on as it is. Annotations of one image
    with the same phrase are one dict: the phrase means all of them. An image without phrases gives no dict.

    Returns:
        Dataset dicts in the order of the images, and of an image in the order of its annotations. Their ``image_id`` is
        "<id of the image>__<number of the phrase in the image>".

    Raises:
        FileNotFoundError: The file does not exist.
        AnnotationError: The file cannot be used, or there are too many faults.
    """
    content = CocoJson(json_file, name)
    images = content.images(folder=image_root)
    records: dict[int, dict[str, dict]] = {image_id: {} for image_id in images}

    def read(image: CocoImage, item: dict) -> None:
        check_no_crowd(item)
        phrase = read_text(item, "phrase")
        annotation = _annotation(read_box(item.get("bbox"), *image.size, has_sides=True), phrase, item)
        phrases = records[image.id]
        if phrase not in phrases:
            phrases[phrase] = {
                **image_record(image, image_root, f"{image.id}__{len(phrases)}"),
                "caption": phrase,
            }
        phrases[phrase]["annotations"].append(annotation)

    content.annotations(images, read)
    usable = [record for phrases in records.values() for record in phrases.values()]
    content.report.close(usable, "phrases with boxes")
    return usable


def load_refcoco(json_file: str, instances_file: str, image_root: str, split: str, name: str) -> list[dict]:
    """Read a split of RefCOCO, RefCOCO+ or RefCOCOg: one dataset dict for each expression.

    The json holds ``refs``, each an object in an image: ``ann_id``, ``image_id``, ``split`` and ``sentences`` with
    ``sent_id`` and ``sent``. Box, mask, size and name of the image come from COCO's file; a file name in ``refs`` would
    have a suffix that the images do not have. Masks are passed on as they are.

    Returns:
        Dataset dicts in the order of the file, with one annotation. Their ``image_id`` is the ``sent_id``.

    Raises:
        FileNotFoundError: A file does not exist.
        AnnotationError: A file cannot be used, has no expression of the split, or there are too many faults.

    Source: the files of refer (Yu et al., arXiv 1608.00272; Mao et al., arXiv 1511.02283). As there, the text is
    ``sent``, in lower case and without punctuation, not ``raw``.
    """
    refs = list_of(read_json_file(json_file), "refs", json_file)
    splits = sorted({ref["split"] for ref in refs if isinstance(ref, dict) and isinstance(ref.get("split"), str)})
    if split not in splits:
        raise AnnotationError(f"{json_file}: splits: expected {split!r} among them, found {show(splits)}")
    instances = CocoJson(instances_file, name)
    images = instances.images(folder=image_root)
    annotations = {
        as_integer(entry.get("id")): entry for entry in instances.annotation_entries() if isinstance(entry, dict)
    }
    report = SkipReport(json_file, name)
    records: dict[int, dict] = {}
    for index, ref in enumerate(with_progress(refs, f"{json_file}: objects")):
        if isinstance(ref, dict) and ref.get("split") != split:
            continue
        report.count("objects")
        where = f"refs[{index}]"
        try:
            image, box, annotation, sentences = _read_ref(ref, images, annotations)
        except EntryError as error:
            report.skip("objects", where, error)
            continue
        for sentence in sentences:
            report.count("expressions")
            try:
                sent_id, text = read_integer(read_object(sentence), "sent_id"), read_text(sentence, "sent")
                if sent_id in records:
                    expected = "an id that no other sentence has"
                    raise EntryError(f"sent_id: expected {expected}, found {sent_id}", "sentences listed twice")
            except EntryError as error:
                report.skip("expressions", where, error)
                continue
            record = {**image_record(image, image_root, sent_id), "caption": text}
            record["annotations"].append(_annotation(box, text, annotation))
            records[sent_id] = record
    report.close(records, f"expressions of the split {split!r}")
    return list(records.values())


def load_phrasecut(json_file: str, sizes_file: str, image_root: str, name: str) -> list[dict]:
    """Read a split of PhraseCut: one dataset dict for each task, which is an image with a phrase.

    A task has ``task_id``, ``image_id``, ``phrase``, ``instance_boxes`` (left, top, width, height) and ``Polygons``,
    a list for each box of polygons of points (x, y); the rest is passed over. Without ``Polygons`` there are boxes
    only. Masks are passed on flat, x and y in turn, and are not checked here. A phrase without any box is left out.

    Returns:
        Dataset dicts in the order of the file. Their ``image_id`` is the ``task_id``, a string.

    Raises:
        FileNotFoundError: A file does not exist.
        AnnotationError: A file cannot be used, or there are too many faults.

    Source: PhraseCut (arXiv 2008.01187), the files of its release.
    """
    report = SkipReport(json_file, name)
    sizes = _read_sizes(read_json_file(sizes_file, list), report)
    tasks = read_json_file(json_file, list)
    report.count("phrases", len(tasks))
    records: dict[str, dict] = {}
    for index, task in enumerate(with_progress(tasks, f"{json_file}: phrases")):
        tasks[index] = None  # The whole file need not stay in memory.
        where = f"[{index}]"
        try:
            record = _read_task(task, sizes, image_root, report, where)
            if record["image_id"] in records:
                found = f"task_id: expected an id that no other task has, found {show(record['image_id'])}"
                raise EntryError(found, "tasks listed twice")
        except EntryError as error:
            report.skip("phrases", where, error)
        else:
            records[record["image_id"]] = record
    report.close(records, "phrases with boxes")
    return list(records.values())


def _annotation(box: Box, caption: str, entry: Mapping[str, Any]) -> dict:
    """Make an annotation whose phrase is the whole caption, with the mask of an entry as it is."""
    return grounding_annotation(box, ((0, len(caption)),), segmentation=entry.get("segmentation"))


def _read_ref(ref: Any, images: Images, annotations: Mapping[int | None, dict]) -> tuple[CocoImage, Box, dict, list]:
    """Return the image, box, annotation and sentences of an object."""
    image_id, annotation_id = read_integer(read_object(ref), "image_id"), read_integer(ref, "ann_id")
    image, annotation = images.get(image_id), annotations.get(annotation_id)
    if image is None:
        raise unknown_id("image_id", image_id, "an id that stands in images of COCO's file")
    if annotation is None:
        raise unknown_id("ann_id", annotation_id, "an id that stands in annotations of COCO's file")
    if as_integer(annotation.get("image_id")) != image_id:
        found = f"{annotation_id}, of image {show(annotation.get('image_id'))}"
        raise unknown_id("ann_id", found, f"an annotation of image {image_id}")
    check_no_crowd(annotation)
    sentences = ref.get("sentences")
    if not isinstance(sentences, list) or not sentences:
        raise EntryError(f"sentences: expected a list of sentences, found {show(sentences)}")
    return image, read_box(annotation.get("bbox"), *image.size, has_sides=True), annotation, sentences


def _read_sizes(entries: list, report: SkipReport) -> dict[int, list[int]]:
    """Return height and width of each image by its id."""
    report.count("image sizes", len(entries))
    sizes: dict[int, list[int]] = {}
    for index, entry in enumerate(entries):
        try:
            image_id, size = read_integer(read_object(entry), "image_id"), read_image_size(entry)
            if sizes.setdefault(image_id, size) != size:
                raise EntryError(f"image_id: expected one size for it, found {image_id} again", "images listed twice")
        except EntryError as error:
            report.skip("image sizes", f"sizes [{index}]", error)
    return sizes


def _read_task(
    task: Any, sizes: Mapping[int, list[int]], image_root: str, report: SkipReport, where: str
) -> dict[str, Any]:
    """Return the dataset dict of a task; faulty boxes go into the report."""
    image_id = read_integer(read_object(task), "image_id")
    if image_id not in sizes:
        raise unknown_id("image_id", image_id, "the id of an image whose size is known")
    task_id, phrase = read_text(task, "task_id"), read_text(task, "phrase")
    boxes, polygons = task.get("instance_boxes"), task.get("Polygons")
    if not isinstance(boxes, list) or not boxes:
        raise EntryError(f"instance_boxes: expected a list of boxes, found {show(boxes)}")
    if polygons is None:
        polygons = [None] * len(boxes)
    if not isinstance(polygons, list) or len(polygons) != len(boxes):
        raise EntryError(
            f"Polygons: expected a list for each of the {len(boxes)} instance_boxes, found {show(polygons)}"
        )
    height, width = sizes[image_id]

    def read(box_and_mask: tuple[Any, Any]) -> dict:
        value, mask = box_and_mask
        box = read_box(value, height, width, has_sides=True)
        return _annotation(box, phrase, {"segmentation": _flat_polygons(mask)})

    found, left_out = read_all(zip(boxes, polygons, strict=True), read)
    annotations = report.keep("boxes", f"{where} (task {show(task_id)})", found, left_out)
    if not annotations:
        raise OmittedEntry(f"expected a box for {show(phrase)}, found none", "phrases without a box")
    return {
        "file_name": os.path.join(image_root, f"{image_id}.jpg"),
        "height": height,
        "width": width,
        "image_id": task_id,
        "caption": phrase,
        "annotations": annotations,
    }


def _flat_polygons(mask: Any) -> Any:
    """Return a mask with its points as x0, y0, x1, y1, ...; anything else stays for the check of masks."""
    if not isinstance(mask, list):
        return mask
    return [[number for point in polygon for number in point] if _are_points(polygon) else polygon for polygon in mask]


def _are_points(polygon: Any) -> bool:
    return isinstance(polygon, list) and all(
        isinstance(point, list) and len(point) == 2 and all(map(is_number, point)) for point in polygon
    )
