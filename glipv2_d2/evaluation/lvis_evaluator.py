"""Evaluator of LVIS with both of its protocols."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.utils.logger import create_small_table

from ..data.datasets.coco import Truth, load_detection_truth
from ..data.datasets.value_checks import AnnotationError, show
from ..errors import InputError
from .ap_engine import average_precisions, mean_precision, precisions
from .ap_evaluator import APEvaluator
from .ap_inputs import DetectionRows, check_fields

# Protocol: suffix of the names of its results.
_SUFFIXES = {"standard": "", "fixed": "_fixed"}
_TASKS = ("bbox", "segm")
_BOXES = ("official", "exact")
# Fields that the evaluation needs beside those of COCO's format.
_FIELDS = {"images": ("neg_category_ids", "not_exhaustive_category_ids"), "categories": ("frequency",)}


class LVISEvaluator(APEvaluator):
    """AP of boxes and masks on LVIS, by the standard protocol and as Fixed AP.

    The standard protocol counts the best 300 detections of each image. Its result depends on how scores compare between
    categories. Fixed AP counts the best 10,000 detections of each category over all images, any number of them
    in one image.

    Results are "bbox" and "segm", and "bbox_fixed" and "segm_fixed": each AP, AP50, AP75, APs, APm, APl, and APr, APc
    and APf for rare, common and frequent categories. Detections are written to ``lvis_instances_results.json``. A
    metric is 0 if nothing was found, and NaN if there is nothing to find (APr without rare categories). Images that no
    process saw count as images without detections.

    Args:
        dataset_name: Registered dataset whose metadata has ``json_file`` in LVIS's format. Its
            ``thing_dataset_id_to_contiguous_id`` gives the contiguous ids; without it, these are category ids less 1.
        tasks: "bbox", "segm" or both.
        protocols: "standard", "fixed" or both.
        boxes: "exact" compares boxes as they are. "official" takes a pixel from their width and height, as the official
            GLIP does: its boxes are inclusive corners, and it writes their difference. A perfect box of 16 pixels then
            has an IoU of 0.879, and AP is lower than it should be.
        distributed: Collect the detections of all processes; the first of them evaluates.
        output_folder: Folder of the detections; None: they are not written.
        detections_per_image: Limit of the standard protocol.
        detections_per_category: Limit of Fixed AP.
        truth: What the detections are compared with; unusable masks of its annotations are changed. None: ``json_file``
            is read.
        engine: "auto" or "reference", as ``precisions`` takes it.
        mask_threads: Threads that encode masks while the model runs; 0: none.

    Raises:
        InputError: A task or protocol is unknown, or none is given.
        AnnotationError: The annotations lack fields that LVIS's evaluation reads.

    Source: LVIS API; "Evaluating Large-Vocabulary Object Detectors: The Devil is in the Details" (Fixed AP), the
    protocol of the official GLIP.
    """

    file_name = "lvis_instances_results.json"
    first_category_id = 1

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] = ("bbox",),
        protocols: Sequence[str] = ("standard", "fixed"),
        *,
        boxes: str = "exact",
        distributed: bool = True,
        output_folder: str | None = None,
        detections_per_image: int = 300,
        detections_per_category: int = 10_000,
        truth: Truth | None = None,
        engine: str = "auto",
        mask_threads: int = 0,
    ) -> None:
        for field, found, known in (
            ("tasks", tasks, _TASKS),
            ("TEST.LVIS_PROTOCOLS", protocols, tuple(_SUFFIXES)),
            ("TEST.LVIS_BOXES", (boxes,), _BOXES),
        ):
            if not found or not set(found) <= set(known):
                raise InputError(f"{field}: expected one or more of {known}, found {tuple(found)}")
        super().__init__(
            dataset_name,
            tasks,
            distributed=distributed,
            output_folder=output_folder,
            engine=engine,
            mask_threads=mask_threads,
        )
        self._boxes, self._protocols = boxes, tuple(protocols)
        self._limits = {"standard": detections_per_image, "fixed": detections_per_category}
        if self._judges:
            metadata = MetadataCatalog.get(dataset_name)
            if truth is None:
                truth = load_detection_truth(metadata.json_file, metadata.get("image_root"), is_lvis=True)
            self._compare_with(_checked_truth(metadata.json_file, truth))

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep the detections of some images, in the form of ``boxes``."""
        seen = len(self._parts)
        super().process(inputs, outputs)
        if self._boxes == "official":
            self._parts[seen:] = [rows.with_inclusive_sizes() for rows in self._parts[seen:]]

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Measure the detections; empty on all processes but the first, and for a dataset without annotations."""
        results: OrderedDict[str, dict[str, float]] = OrderedDict()
        rows = self._gather()
        if rows is None:
            return results
        known = _known_pairs(self._truth)
        by_id = sorted(self._truth["categories"], key=lambda category: category["id"])
        frequencies = np.array([category["frequency"] for category in by_id])
        for protocol in self._protocols:
            counted = rows.select(self._best(protocol, rows))
            counted = counted.select(_are_among(counted, *known))
            for task in self._tasks:
                precision = precisions(self._truth, counted, task, rules="lvis", engine=self._engine)
                name = task + _SUFFIXES[protocol]
                results[name] = {
                    **average_precisions(precision),
                    **{f"AP{one}": mean_precision(precision[:, :, frequencies == one, 0]) for one in "rcf"},
                }
                self._logger.info("LVIS, %s protocol, %s:\n%s", protocol, task, create_small_table(results[name]))
        return results

    def _is_unannotated(self) -> bool:
        return not self._truth["annotations"]

    def _counted(self, rows: DetectionRows) -> DetectionRows:
        return rows.select(np.any([self._best(protocol, rows) for protocol in self._protocols], axis=0))

    def _best(self, protocol: str, rows: DetectionRows) -> np.ndarray:
        limit = self._limits[protocol]
        return rows.best_of_images(limit) if protocol == "standard" else rows.best_of_categories(limit)


def _checked_truth(json_file: str, truth: Truth) -> Truth:
    """Return the annotations, an empty list for a file without them, as of a test set.

    Raises:
        AnnotationError: An entry lacks a field that the evaluation needs, or has another value than it needs.
    """
    content = {"annotations": [], **truth}
    if not content["annotations"]:
        # Nothing is judged, so the fields that judging needs may be absent.
        return content
    for kind, fields in _FIELDS.items():
        check_fields(json_file, kind, content[kind], fields, "LVIS")
    for number, image in enumerate(content["images"]):
        for field in _FIELDS["images"]:
            if not isinstance(image[field], list):
                found = show(image[field])
                raise AnnotationError(
                    f"{json_file}: images[{number}].{field}: expected a list of category ids, found {found}"
                )
    for number, category in enumerate(content["categories"]):
        if category["frequency"] not in ("r", "c", "f"):
            found = show(category["frequency"])
            raise AnnotationError(
                f"{json_file}: categories[{number}].frequency: expected 'r', 'c' or 'f', found {found}"
            )
    return content


def _known_pairs(truth: Truth) -> tuple[np.ndarray, np.ndarray]:
    """Return image ids and category ids, both (number of pairs,) int64, of the pairs in which detections count.

    These are the pairs of an image and a category that is annotated in it or known to be absent. LVIS says nothing
    about other pairs.
    """
    pairs = {(annotation["image_id"], annotation["category_id"]) for annotation in truth["annotations"]}
    for image in truth["images"]:
        pairs.update((image["id"], category_id) for category_id in image["neg_category_ids"])
    images_and_categories = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)
    return images_and_categories[:, 0], images_and_categories[:, 1]


def _are_among(rows: DetectionRows, image_ids: np.ndarray, category_ids: np.ndarray) -> np.ndarray:
    """Mark, (K,) bool, the detections whose image and category are a pair of those given."""
    stride = 1 + max(int(ids.max(initial=0)) for ids in (category_ids, rows.category_ids))
    return np.isin(rows.image_ids * stride + rows.category_ids, image_ids * stride + category_ids)
