"""detectron2's evaluator of COCO, but zero for a model that finds nothing, and errors that name what is missing."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

from detectron2.evaluation import COCOEvaluator
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .ap_inputs import check_fields, checked_masks, measurable_tasks


class COCOInstanceEvaluator(COCOEvaluator):
    """AP of boxes and masks on COCO, of the best 100 detections of an image and category.

    A metric is 0 if nothing was found, even without any detection, and NaN if there is nothing to find.

    Args:
        dataset_name: Registered dataset whose metadata has ``json_file`` in COCO's format. Annotations are numbered
            anew, from 1, because the evaluation takes a match with annotation 0 for no match.
        tasks: "bbox", "segm" or both; ``measurable_tasks`` may leave "segm" out.
        output_folder: Folder that detections are written to.

    Raises:
        AnnotationError: An annotation lacks what COCO's evaluation needs.

    Source: ``COCOEvaluator`` of detectron2, which reports NaN if there is no detection at all.
    """

    _tasks: tuple[str, ...]

    def __init__(self, dataset_name: str, tasks: Sequence[str], output_folder: str | None = None) -> None:
        super().__init__(dataset_name, tasks=tuple(tasks), output_dir=output_folder)
        content = self._coco_api.dataset
        annotations = content.get("annotations", [])
        check_fields(self._metadata.json_file, "annotations", annotations, ("area", "iscrowd"), "COCO")
        self._tasks = measurable_tasks(dataset_name, self._tasks, annotations, content["images"])
        for number, annotation in enumerate(annotations, 1):
            annotation["id"] = number
        with contextlib.redirect_stdout(io.StringIO()):
            self._coco_api.createIndex()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep the detections of some images; of masks, the run lengths.

        Raises:
            InputError: Masks are evaluated, and those of the instances are missing or not of the size of their image.
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


def _evaluation_of_nothing(ground_truth: COCO, iou_type: str) -> COCOeval:
    """Evaluate an empty list of detections, which ``COCO.loadRes`` cannot read."""
    with contextlib.redirect_stdout(io.StringIO()):
        nothing = COCO()
        nothing.dataset = {**ground_truth.dataset, "annotations": []}
        nothing.createIndex()
        evaluation = COCOeval(ground_truth, nothing, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation
