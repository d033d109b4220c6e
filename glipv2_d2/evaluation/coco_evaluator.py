"""detectron2's evaluator of COCO, but zero for a model that finds nothing, on the annotations that the loader uses."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.data import Metadata, MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.evaluation import COCOEvaluator, coco_evaluation
from detectron2.utils.file_io import PathManager
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..data.datasets.coco import Truth, load_detection_truth
from .ap_inputs import checked_masks, measurable_tasks


class COCOInstanceEvaluator(COCOEvaluator):
    """AP of boxes and masks on COCO, of the best 100 detections of an image and category.

    A metric is 0 if nothing was found, even without any detection, and NaN if there is nothing to find.

    Args:
        dataset_name: Registered dataset.
        tasks: "bbox", "segm" or both; ``measurable_tasks`` may leave "segm" out.
        output_folder: Folder that detections are written to.
        truth: What the detections are compared with; its annotations are changed, and numbered from 1, because the
            evaluation takes a match with annotation 0 for no match. None: the ``json_file`` of the metadata is read, in
            COCO's format; without one the dataset dicts are converted.

    Raises:
        AnnotationError: The file cannot be used.

    Source: ``COCOEvaluator`` of detectron2, which reports NaN if there is no detection at all.
    """

    _tasks: tuple[str, ...]
    _coco_api: COCO

    def __init__(
        self, dataset_name: str, tasks: Sequence[str], output_folder: str | None = None, truth: Truth | None = None
    ) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        if truth is None and metadata.get("json_file") is None:
            truth = convert_to_coco_dict(dataset_name)
        elif truth is None:
            json_file = PathManager.get_local_path(metadata.json_file)
            truth = load_detection_truth(json_file, metadata.get("image_root"))
        self._set_up(metadata, output_folder)
        self._coco_api = COCO()
        self._coco_api.dataset = truth
        self._do_evaluation = "annotations" in truth
        annotations = truth.get("annotations", [])
        self._tasks = measurable_tasks(dataset_name, tasks, annotations, truth["images"])
        for number, annotation in enumerate(annotations, 1):
            annotation["id"] = number
        with contextlib.redirect_stdout(io.StringIO()):
            self._coco_api.createIndex()

    def _set_up(self, metadata: Metadata, output_folder: str | None) -> None:
        """Do as the constructor of ``COCOEvaluator``, which would read the file as it is, with every fault."""
        self._logger = logging.getLogger(__name__)
        self._distributed = True
        self._output_dir = output_folder
        self._use_fast_impl = coco_evaluation.COCOeval_opt is not COCOeval
        self._max_dets_per_image = [1, 10, 100]
        self._cpu_device = torch.device("cpu")
        self._metadata = metadata
        self._kpt_oks_sigmas = ()

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

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: Sequence[int] | None = None) -> None:
        # pycocotools prints its steps; the results are logged as tables.
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            super()._eval_predictions(predictions, img_ids)
        self._logger.debug("pycocotools:\n%s", printed.getvalue())

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
