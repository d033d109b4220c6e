"""PhraseCut: phrases of Visual Genome's images, each with the boxes and polygons of everything it means."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .grounding_records import EntryError, read_box, read_image_size, read_text
from .referring_records import referring_annotation, referring_record, register_referring
from .registration import check_dataset_files
from .skip_report import SkipReport, with_progress
from .value_checks import is_integer, is_number, read_json_file, show


def register_phrasecut(
    name: str,
    json_file: str | os.PathLike[str],
    sizes_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    **metadata: Any,
) -> None:
    """Register a split of PhraseCut under a name for DATASETS.TRAIN and DATASETS.TEST.

    No file is read before the dataset is used.

    Args:
        name: New in the catalog.
        json_file: Tasks of the split, ``refer_train.json`` for example.
        sizes_file: ``image_data_split.json``, which has the sizes of all images.
        image_root: Folder of the images, named ``<image_id>.jpg``.
        metadata: More entries of the dataset's metadata.

    Raises:
        ValueError: The name is taken.
    """
    files = {"json_file": json_file, "sizes_file": sizes_file, "image_root": image_root}
    register_referring(name, load_phrasecut, "phrasecut", files, metadata)


def load_phrasecut(json_file: str, sizes_file: str, image_root: str, name: str) -> list[dict]:
    """Read a registered split: one dataset dict for each task, which is an image with a phrase.

    A task has ``task_id``, ``image_id``, ``phrase``, ``instance_boxes`` (left, top, width, height) and ``Polygons``,
    a list for each box of polygons of points (x, y); the rest is passed over. Without ``Polygons`` there are boxes
    only. Masks are passed on flat, x and y in turn, and are not checked here.

    What cannot be used is left out, and one warning counts it and names the first few: malformed tasks and those of an
    image whose size is not known, boxes outside their image or of at most one pixel, and phrases without any box left.

    Returns:
        Dataset dicts in the order of the file. Their ``image_id`` is the ``task_id``, a string.

    Raises:
        FileNotFoundError: A file or the image directory does not exist.
        AnnotationError: A file is no json list, or nothing is left.

    Source: PhraseCut (arXiv 2008.01187), the files of its release.
    """
    check_dataset_files(name)
    report = SkipReport(json_file)
    sizes = _read_sizes(read_json_file(sizes_file, list), report)
    tasks = read_json_file(json_file, list)
    records: dict[str, dict] = {}
    for index, task in enumerate(with_progress(tasks, f"{json_file}: phrases")):
        tasks[index] = None  # The whole file need not stay in memory.
        where = f"[{index}]"
        try:
            record, left_out = _read_task(task, sizes, image_root)
            if record["image_id"] in records:
                raise EntryError(f"task_id is {show(record['image_id'])}, expected an id that no other task has")
        except EntryError as error:
            report.skip("phrases", where, str(error))
            continue
        where += f" (task {show(record['image_id'])})"
        for reason in left_out:
            report.skip("boxes", where, reason)
        if record["annotations"]:
            records[record["image_id"]] = record
        else:
            report.skip("phrases", where, f"no box for {show(record['caption'])}")
    report.close(records, "phrases with boxes")
    return list(records.values())


def _read_sizes(entries: list, report: SkipReport) -> dict[int, list[int]]:
    """Return height and width of each image by its id."""
    sizes: dict[int, list[int]] = {}
    for index, entry in enumerate(entries):
        try:
            if not isinstance(entry, dict) or not is_integer(entry.get("image_id")):
                raise EntryError(f"found {show(entry)}, expected an object with an integer as image_id")
            size = read_image_size(entry)
            if sizes.setdefault(entry["image_id"], size) != size:
                raise EntryError(f"image_id is {entry['image_id']}, expected one size for it")
        except EntryError as error:
            report.skip("image sizes", f"sizes [{index}]", str(error))
    return sizes


def _read_task(task: Any, sizes: Mapping[int, list[int]], image_root: str) -> tuple[dict, list[str]]:
    """Return a dataset dict, and a line for each box that was left out of it."""
    if not isinstance(task, dict):
        raise EntryError(f"found {show(task)}, expected an object")
    image_id, boxes, polygons = task.get("image_id"), task.get("instance_boxes"), task.get("Polygons")
    if not is_integer(image_id) or image_id not in sizes:
        raise EntryError(f"image_id is {show(image_id)}, expected the id of an image whose size is known")
    task_id, phrase = read_text(task, "task_id"), read_text(task, "phrase")
    if not isinstance(boxes, list) or not boxes:
        raise EntryError(f"instance_boxes is {show(boxes)}, expected a list of boxes")
    if polygons is None:
        polygons = [None] * len(boxes)
    if not isinstance(polygons, list) or len(polygons) != len(boxes):
        raise EntryError(f"Polygons is {show(polygons)}, expected a list for each of the {len(boxes)} instance_boxes")
    annotations: list[dict] = []
    left_out: list[str] = []
    for value, mask in zip(boxes, polygons):
        try:
            box = read_box(value, *sizes[image_id], has_sides=True)
        except EntryError as error:
            left_out.append(str(error))
            continue
        annotations.append(referring_annotation(box, phrase, _flat_polygons(mask)))
    file_name = os.path.join(image_root, f"{image_id}.jpg")
    return referring_record(file_name, sizes[image_id], task_id, phrase, annotations), left_out


def _flat_polygons(mask: Any) -> Any:
    """Return a mask with its points as x0, y0, x1, y1, ...; what is no list of points stays for the check of masks."""
    if not isinstance(mask, list):
        return mask
    return [[number for point in polygon for number in point] if _are_points(polygon) else polygon for polygon in mask]


def _are_points(polygon: Any) -> bool:
    return isinstance(polygon, list) and all(
        [
            isinstance(point, list) and len(point) == 2 and is_number(point[0]) and is_number(point[1])
            for point in polygon
        ]
    )
