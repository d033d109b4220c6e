"""The inputs of AP: annotations and masks, checked, and the detections of a dataset as rows of arrays."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.structures import BoxMode, Instances
from detectron2.utils.file_io import PathManager
from torch import Tensor

from ..data.datasets.mask_checks import read_segmentation
from ..data.datasets.skip_report import SkipReport, with_progress
from ..data.datasets.value_checks import AnnotationError, EntryError, OmittedEntry, show
from ..errors import InputError, space_errors
from .mask_encoding import MaskEncoder


def check_fields(json_file: str, kind: str, entries: Any, fields: Sequence[str], format_name: str) -> None:
    """Check that all entries of an annotation file have the fields that an evaluation reads.

    It is called before any image is run: the evaluation itself would stop when all of them are through.

    Args:
        json_file: Name of the file, for the message.
        kind: Key of the entries, as "annotations".
        entries: Their list, not trusted.
        fields: Names of the fields.
        format_name: "COCO" or "LVIS", for the message.

    Raises:
        AnnotationError: The entries are not a list, or a field is missing.
    """
    if not isinstance(entries, list):
        raise AnnotationError(f"{json_file}: {kind}: expected a list, found {show(entries)}")
    for number, entry in enumerate(entries):
        missing = [field for field in fields if not isinstance(entry, dict) or field not in entry]
        if missing:
            raise AnnotationError(
                f"{json_file}: {kind}[{number}]: expected {missing[0]!r}, as in {format_name}'s format, found none"
            )


def measurable_tasks(
    dataset_name: str, tasks: Sequence[str], annotations: list[dict[str, Any]], images: list[dict[str, Any]]
) -> tuple[str, ...]:
    """Check annotated masks, and leave the task "segm" out, with a warning, if no annotation has a mask.

    The annotations themselves are changed: an empty mask, which is never found, replaces a mask that is missing or
    cannot be used. One warning counts these and names the first few.

    Args:
        dataset_name: Name of the dataset, for messages.
        tasks: "bbox", "segm" or both. Without "segm" nothing happens.
        annotations: In COCO's format. If there are none, as in a test set, all tasks stay.
        images: In COCO's format, with ``id``, ``height`` and ``width``.

    Returns:
        The tasks that can be measured.

    Raises:
        InputError: No task is left.
    """
    if "segm" not in tasks or not annotations:
        return tuple(tasks)
    if not any(annotation.get("segmentation") for annotation in annotations):
        others = tuple(task for task in tasks if task != "segm")
        if not others:
            raise InputError(
                f"dataset {dataset_name!r}: expected a 'segmentation' in annotations for 'segm', found none"
            )
        logging.getLogger(__name__).warning(
            "dataset %r: no annotation has a 'segmentation'; masks are not evaluated", dataset_name
        )
        return others
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    report = SkipReport(f"evaluation of dataset {dataset_name!r}", dataset_name)
    for number, annotation in enumerate(with_progress(annotations, f"{dataset_name}: masks")):
        size = sizes.get(annotation["image_id"])
        if size is None:
            continue  # Its image is not evaluated.
        try:
            annotation["segmentation"] = read_segmentation(annotation.get("segmentation"), *size)
        except EntryError as error:
            # Loading has limited faulty masks; here those are counted too that an annotation does not have.
            omitted = OmittedEntry(str(error), "masks that count as not found")
            report.skip("annotations", f"annotations[{number}]", omitted)
            height, width = size
            annotation["segmentation"] = {"size": [height, width], "counts": [height * width]}
    report.close(annotations, "masks")
    return tuple(tasks)


def checked_masks(instances: Instances, sample: dict[str, Any]) -> Tensor:
    """Return the masks of the K detections of one image.

    Args:
        instances: The detections.
        sample: Model input of the image, with ``image_id``, ``height`` and ``width``.

    Returns:
        (K, H, W) bool, in the size of the original image.

    Raises:
        InputError: There are no masks, or they are not of the size of the original image.
    """
    where = f"image {sample['image_id']!r}"
    if not instances.has("pred_masks"):
        raise InputError(
            f"{where}: expected pred_masks, since masks are evaluated (MODEL.MASK_ON), found instances without them"
        )
    masks = instances.pred_masks
    expected = (len(instances), sample["height"], sample["width"])
    if tuple(masks.shape) != expected or masks.dtype != torch.bool:
        raise InputError(
            f"{where}: expected pred_masks of torch.bool and shape {expected}, the size of the original image, "
            f"found {masks.dtype} of shape {tuple(masks.shape)}"
        )
    return masks


class DetectionRows(NamedTuple):
    """K detections. The detections of one image keep the order of the model.

    Attributes:
        image_ids: (K,) int64, or strings where those of the dataset are.
        image_sizes: (K, 2) int32, height and width.
        category_ids: (K,) int64, ids of the annotation file.
        scores: (K,) float32 in [0, 1].
        boxes: (K, 4) float32, XYWH in pixels of the original image.
        counts: (K,) object, bytes, the run lengths of ``encode_masks``; None without masks.
    """

    image_ids: np.ndarray
    image_sizes: np.ndarray
    category_ids: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    counts: np.ndarray

    @classmethod
    def from_instances(
        cls, instances: Instances, sample: dict[str, Any], category_ids: np.ndarray, encoder: MaskEncoder | None
    ) -> DetectionRows:
        """Make the rows of one image.

        Args:
            instances: Detections, with ``pred_boxes`` XYXY in pixels of the original image.
            sample: Model input of the image, with ``image_id`` and, for masks, ``height`` and ``width``.
            category_ids: (number of classes,) id in the annotation file for each value of ``pred_classes``.
            encoder: Encodes the masks too; ``counts`` are there when it has finished. None: masks are ignored.

        Raises:
            InputError: A value of ``pred_classes`` has no id, or masks are needed and missing or of another size.
        """
        classes = instances.pred_classes.cpu().numpy()
        unknown = classes[(classes < 0) | (classes >= len(category_ids))]
        if len(unknown):
            raise InputError(
                f"image {sample['image_id']!r}: expected pred_classes in 0..{len(category_ids) - 1}, the contiguous "
                f"ids of the dataset, found {unknown[0]}"
            )
        counts = np.full(len(classes), None, dtype=object)
        if encoder is not None and len(classes):
            encoder.encode(checked_masks(instances, sample), counts, sample["image_id"])
        boxes = instances.pred_boxes.tensor.detach().float().cpu()
        return cls(
            image_ids=np.full(len(classes), sample["image_id"]),
            image_sizes=np.tile(np.array(instances.image_size, dtype=np.int32), (len(classes), 1)),
            category_ids=category_ids[classes],
            scores=instances.scores.detach().float().cpu().numpy(),
            boxes=BoxMode.convert(boxes, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).numpy(),
            counts=counts,
        )

    @classmethod
    def from_results(cls, results: Sequence[Mapping[str, Any]]) -> DetectionRows:
        """Make rows of boxes from dicts in COCO's format of results; of masks nothing is read."""
        columns = {
            name: np.array([one[key] for one in results], dtype=dtype)
            for name, key, dtype in (
                ("image_ids", "image_id", None if results else np.int64),
                ("category_ids", "category_id", np.int64),
                ("scores", "score", np.float64),
                ("boxes", "bbox", np.float64),
            )
        }
        nothing = np.full(len(results), None, dtype=object)
        columns["boxes"] = columns["boxes"].reshape(-1, 4)
        return cls(image_sizes=np.zeros((len(results), 2), dtype=np.int32), counts=nothing, **columns)

    @classmethod
    def join(cls, parts: Sequence[DetectionRows]) -> DetectionRows:
        """Concatenate rows; without parts, return no rows."""
        shapes = ((0,), (0, 2), (0,), (0,), (0, 4), (0,))
        types = (np.int64, np.int32, np.int64, np.float32, np.float32, object)
        nothing = cls(*(np.zeros(shape, dtype) for shape, dtype in zip(shapes, types, strict=True)))
        return cls(*map(np.concatenate, zip(nothing, *parts, strict=True)))

    def with_inclusive_sizes(self) -> DetectionRows:
        """Return the rows with boxes whose sizes are differences of inclusive corners: one pixel less, at least 0.

        Source: ``convert_to_xywh`` of the official evaluation of LVIS.
        """
        sizes = (self.boxes[:, 2:] - 1).clip(min=0)
        return self._replace(boxes=np.concatenate((self.boxes[:, :2], sizes), axis=1))

    def select(self, rows: np.ndarray) -> DetectionRows:
        """Return the rows that a (K,) bool array marks."""
        return DetectionRows(*(column[rows] for column in self))

    def best_of_images(self, limit: int) -> np.ndarray:
        """Mark, (K,) bool, the ``limit`` best detections of every image; of equal scores, the first."""
        return self._best(self.image_ids, limit)

    def best_of_categories(self, limit: int) -> np.ndarray:
        """Mark, (K,) bool, the ``limit`` best detections of every category over all images.

        Of equal scores, the image with the lowest id comes first, and within an image the order of the model counts.
        The number of processes makes no difference.
        """
        return self._best(self.category_ids, limit)

    def _best(self, groups: np.ndarray, limit: int) -> np.ndarray:
        # The last key is the first criterion; rows that are equal in all keys keep their order.
        order = np.lexsort((self.image_ids, -self.scores, groups))
        ordered = groups[order]
        best = np.zeros(len(order), dtype=bool)
        # Rank of a row in its group: its position less that of the first row of the group.
        best[order] = np.arange(len(order)) - np.searchsorted(ordered, ordered, side="left") < limit
        return best

    def to_results(self, kind: str) -> list[dict[str, Any]]:
        """Return one dict per row, in the format that ``lvis`` reads.

        Args:
            kind: "bbox" writes ``bbox``, "segm" writes ``segmentation``, "all" writes both, if there are masks.
        """
        results: list[dict[str, Any]] = []
        columns = (column.tolist() for column in self)
        for image_id, size, category_id, score, box, counts in zip(*columns, strict=True):
            result: dict[str, Any] = {"image_id": image_id, "category_id": category_id, "score": score}
            if kind != "segm":
                result["bbox"] = box
            if kind != "bbox" and counts is not None:
                result["segmentation"] = {"size": size, "counts": counts.decode("ascii")}
            results.append(result)
        return results

    def write(self, json_file: str) -> None:
        """Write all rows to a json file in the result format of COCO and LVIS."""
        chunk = 10_000  # Number of rows that are Python objects at the same time.
        starts = range(0, len(self.image_ids), chunk)
        with space_errors(json_file), PathManager.open(json_file, "w") as file:
            file.write("[")
            for start in with_progress(starts, json_file):
                part = DetectionRows(*(column[start : start + chunk] for column in self))
                file.write((",\n" if start else "") + json.dumps(part.to_results("all"))[1:-1])
            file.write("]")
