"""Annotated masks to evaluate against, checked before native code sees them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ..data.datasets.grounding_records import EntryError
from ..data.datasets.mask_checks import read_segmentation
from ..data.datasets.skip_report import SkipReport, with_progress
from ..errors import InputError


def measurable_tasks(
    dataset_name: str, tasks: Sequence[str], annotations: list[dict[str, Any]], images: list[dict[str, Any]]
) -> tuple[str, ...]:
    """Check annotated masks, and leave the task "segm" out, with a warning, where no annotation has one.

    Annotations are changed in place: one whose mask is missing or cannot be used gets a mask of no pixel, which is
    never found; one warning counts these and names the first few.

    Args:
        tasks: Nothing happens if "segm" is not among them.
        annotations: In COCO's format. Without any, as in a test set, all tasks stay.
        images: With ``id``, ``height`` and ``width``.

    Raises:
        InputError: No task is left.
    """
    if "segm" not in tasks or not annotations:
        return tuple(tasks)
    if not any(annotation.get("segmentation") for annotation in annotations):
        others = tuple(task for task in tasks if task != "segm")
        if not others:
            raise InputError(f"dataset {dataset_name!r}: no annotation has a 'segmentation', expected some for 'segm'")
        logging.getLogger(__name__).warning(
            "dataset %r: no annotation has a 'segmentation'; masks are not evaluated", dataset_name
        )
        return others
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    report = SkipReport(f"dataset {dataset_name!r}, evaluation")
    for number, annotation in enumerate(with_progress(annotations, f"{dataset_name}: masks")):
        size = sizes.get(annotation["image_id"])
        if size is None:
            continue  # Of no image that is evaluated.
        try:
            annotation["segmentation"] = read_segmentation(annotation.get("segmentation"), *size)
        except EntryError as error:
            report.skip("masks, which count as not found", f"annotations[{number}]", str(error))
            height, width = size
            annotation["segmentation"] = {"size": [height, width], "counts": [height * width]}
    report.close(annotations, "masks")
    return tuple(tasks)
