"""detectron2's evaluator of COCO, with zero for a model that finds nothing and errors that name what is missing."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

from detectron2.evaluation import COCOEvaluator
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..data.datasets.value_checks import AnnotationError
from .ap_inputs import checked_masks, measurable_tasks


class COCOInstanceEvaluator(COCOEvaluator):
    """AP of boxes and masks on COCO, of the best 100 detections of an image and category.

    A metric is 0 where nothing was found, also if there is no detection at all, and NaN where there is nothing to find.

    Args:
        dataset_name: Its metadata hold ``json_file`` in COCO's format. Annotations are numbered anew, from 1: the
            evaluation takes a match with annotation 0 for none.
        tasks: Of "bbox" and "segm"; of these, what ``measurable_tasks`` leaves.
        output_folder: Where detections are written.

    Raises:
        AnnotationError: An annotation lacks what COCO's evaluation needs.

    Source: ``COCOEvaluator`` of detectron2, which reports NaN if there is no detection at all.
    """

    def __init__(self, dataset_name: str, tasks: Sequence[str], output_folder: str | None = None) -> None:
        super().__init__(dataset_name, tasks=tuple(tasks), output_dir=output_folder)
        content = self._coco_api.dataset
        annotations = content.get("annotations", [])
        _check_fields(self._metadata.json_file, annotations)
        self._tasks = measurable_tasks(dataset_name, self._tasks, annotations, content["images"])
        for number, annotation in enumerate(annotations, 1):
            annotation["id"] = number
        with contextlib.redirect_stdout(io.StringIO()):
            self._coco_api.createIndex()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep the detections of some images; of masks their run lengths.

        Raises:
            InputError: Masks are evaluated and instances have none, or of another size than the image.
        """
        if "segm" in self._tasks:
            for sample, output in zip(inputs, outputs, strict=True):
                if len(output["instances"]):
                    checked_masks(output["instances"], sample)
        super().process(inputs, outputs)

    def _derive_coco_results(
        self, coco_eval: COCOeval | None, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        if coco_eval is None:
            coco_eval = _evaluation_of_nothing(self._coco_api, iou_type)
        return super()._derive_coco_results(coco_eval, iou_type, class_names)


def _check_fields(json_file: str, annotations: Sequence[dict[str, Any]]) -> None:
    """Check before any image is run what pycocotools would stop at when all of them are through."""
    for number, annotation in enumerate(annotations):
        missing = [field for field in ("area", "iscrowd") if field not in annotation]
        if missing:
            raise AnnotationError(f"{json_file}: annotations[{number}] has no {missing[0]!r}, expected COCO's format")


def _evaluation_of_nothing(ground_truth: COCO, iou_type: str) -> COCOeval:
    """Evaluate no detections, which ``COCO.loadRes`` cannot read."""
    with contextlib.redirect_stdout(io.StringIO()):
        nothing = COCO()
        nothing.dataset = {**ground_truth.dataset, "annotations": []}
        nothing.createIndex()
        evaluation = COCOeval(ground_truth, nothing, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation
