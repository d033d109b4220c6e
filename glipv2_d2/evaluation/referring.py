"""Referring segmentation: one phrase, one mask; evaluators of PhraseCut and of RefCOCO, RefCOCO+ and RefCOCOg."""

from __future__ import annotations

import json
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from detectron2.structures import Boxes, BoxMode, Instances, pairwise_iou
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table
from pycocotools import mask as mask_utils
from torch import Tensor

from ..errors import InputError
from .gathering import GatheringEvaluator
from .predicted_masks import checked_masks, encode_masks

# IoU from which on a mask counts as right.
_PRECISION_THRESHOLDS = (0.5, 0.7, 0.9)
_BOX_THRESHOLD = 0.5


def referred_mask(instances: Instances, score_thresh: float) -> Tensor:
    """Unite the masks of what a phrase refers to.

    Args:
        instances: Detections of one phrase, with ``pred_masks`` (K, H, W) bool and ``scores`` (K,).
        score_thresh: From this score on a detection is part of it. Where none has it, the best alone is, the first of
            equally good ones.

    Returns:
        (H, W) bool, the union; all False without detections.
    """
    if not len(instances):
        return torch.zeros(instances.image_size, dtype=torch.bool, device=instances.scores.device)
    chosen = instances.scores >= score_thresh
    if not chosen.any():
        chosen[best_detection(instances)] = True
    return instances.pred_masks[chosen].any(dim=0)


def best_detection(instances: Instances) -> int:
    """Return the index of the detection with the highest score, the first of equally good ones; K >= 1."""
    return int((instances.scores == instances.scores.max()).nonzero()[0])


class ReferringResult(NamedTuple):
    """What came out for one phrase in one image.

    Attributes:
        image_id: Of the pair of image and phrase.
        intersection: Pixels of both masks; 0 where masks are not evaluated.
        union: Pixels of either mask.
        is_box_hit: Whether the best box has an IoU of 0.5 or more with an annotated one.
        prediction: For the file of predictions: ``segmentation``, compressed run lengths, if masks are evaluated;
            ``bbox``, XYWH, and ``score`` of the best detection, if there is one. Empty if no file is written.
    """

    image_id: int
    intersection: int
    union: int
    is_box_hit: bool
    prediction: dict[str, Any]


class ReferringEvaluator(GatheringEvaluator):
    """Scores of the masks, and of the best boxes, that a model finds for phrases.

    Protocol "phrasecut": the mask is the union of all detections from ``score_thresh`` on. ``mIoU``, the mean over the
    pairs of image and phrase; ``cIoU``, all pixels of the intersections by all pixels of the unions; ``Pr@0.5``,
    ``Pr@0.7`` and ``Pr@0.9``, the share of pairs with at least this IoU. Protocol "refcoco": the mask and the box of
    the best detection. ``mIoU``; ``oIoU``, which is computed as ``cIoU`` is; ``acc@0.5``, the share of pairs whose box
    has at least this IoU with the annotated one (with any, if there are several).

    All are in 0..100, of the pairs that were processed; a pair without detections counts as 0. Pairs whose annotations
    have no mask cannot be judged: they are counted in a warning and left out of the scores of masks. Results are
    ``{"referring": {...}}``; predictions go to ``referring_results.json``.

    Args:
        dataset_name: For messages.
        dataset_dicts: One for each phrase and image, as the contract describes them, with an ``image_id`` that no other
            has. Masks must be checked, as ``load_dataset`` does ``with_masks``.
        protocol: "phrasecut" or "refcoco".
        score_thresh: Of "phrasecut".
        with_masks: Without masks only ``acc@0.5`` is measured.
        distributed: Collect the numbers of all processes; the first of them averages.
        output_folder: None: predictions are not written.

    Raises:
        InputError: There is no such protocol, "phrasecut" is to be measured without masks, or an ``image_id`` stands
            there twice.

    Source: PhraseCut, Sec. 5 (mean IoU, cum IoU, Pr@); MDETR and MAttNet for RefCOCO. PhraseCut's own code fills
    polygons with PIL, which marks a border that COCO's rasterization does not.
    """

    def __init__(
        self,
        dataset_name: str,
        dataset_dicts: Sequence[dict[str, Any]],
        protocol: str,
        *,
        score_thresh: float = 0.5,
        with_masks: bool = True,
        distributed: bool = True,
        output_folder: str | None = None,
    ) -> None:
        super().__init__(distributed)
        if protocol not in ("phrasecut", "refcoco"):
            raise InputError(f"dataset {dataset_name!r}: protocol is {protocol!r}, expected 'phrasecut' or 'refcoco'")
        if protocol == "phrasecut" and not with_masks:
            raise InputError(f"dataset {dataset_name!r}: found a model without masks, expected MODEL.MASK_ON")
        self._pairs = {item["image_id"]: item for item in dataset_dicts}
        if len(self._pairs) < len(dataset_dicts):
            found = f"{len(dataset_dicts)} dicts with {len(self._pairs)} different image_id"
            raise InputError(f"dataset {dataset_name!r}: {found}, expected one for each phrase and image")
        self._name, self._protocol, self._score_thresh = dataset_name, protocol, score_thresh
        self._with_masks, self._output_folder = with_masks, output_folder

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Count the pixels that predictions and annotations have in common.

        Raises:
            InputError: An image is not of the dataset, or its instances have no masks, or masks of another size.
        """
        for sample, output in zip(inputs, outputs):
            pair = self._pairs.get(sample["image_id"])
            if pair is None:
                raise InputError(f"image {sample['image_id']!r}: expected one of the dataset {self._name!r}")
            self._results.append(self._measure(pair, output["instances"]))

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Average what was counted; empty on all processes but the first, and if nothing was processed."""
        if (results := self.gather()) is None:
            return OrderedDict()
        if not results:
            logging.getLogger(__name__).warning("dataset %r: nothing was processed", self._name)
            return OrderedDict()
        # Sums of IoUs depend on their order; this one does not depend on the number of processes.
        results = sorted(results, key=lambda result: result.image_id)
        if self._output_folder:
            PathManager.mkdirs(self._output_folder)
            with PathManager.open(os.path.join(self._output_folder, "referring_results.json"), "w") as file:
                json.dump([{"image_id": result.image_id, **result.prediction} for result in results], file)
        scores = self._scores(results)
        logging.getLogger(__name__).info(
            "dataset %r, %d phrases:\n%s", self._name, len(results), create_small_table(scores)
        )
        return OrderedDict(referring=scores)

    def _measure(self, pair: dict[str, Any], instances: Instances) -> ReferringResult:
        intersection = union = 0
        prediction: dict[str, Any] = {}
        if self._with_masks:
            mask = _run_lengths(self._predicted_mask(instances, pair))
            intersection, union = _common_pixels(mask, pair)
            prediction["segmentation"] = {**mask, "counts": mask["counts"].decode("ascii")}
        is_box_hit = False
        if len(instances):
            best = best_detection(instances)
            box = instances.pred_boxes.tensor[best].detach().float().cpu()
            is_box_hit = bool((pairwise_iou(Boxes(box[None]), _annotated_boxes(pair)) >= _BOX_THRESHOLD).any())
            prediction["bbox"] = BoxMode.convert(box.tolist(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
            prediction["score"] = float(instances.scores[best])
        return ReferringResult(
            pair["image_id"], intersection, union, is_box_hit, prediction if self._output_folder else {}
        )

    def _predicted_mask(self, instances: Instances, pair: dict[str, Any]) -> Tensor:
        """Return the mask that answers the phrase, (H, W) bool."""
        if not len(instances):
            return torch.zeros(pair["height"], pair["width"], dtype=torch.bool)
        masks = checked_masks(instances, pair)
        if self._protocol == "refcoco":
            return masks[best_detection(instances)]
        return referred_mask(instances, self._score_thresh)

    def _scores(self, results: list[ReferringResult]) -> dict[str, float]:
        """Average over pairs that are in an order of their own."""
        scores = {}
        if self._with_masks:
            judged = [result for result in results if result.union]
            if len(judged) < len(results):
                logging.getLogger(__name__).warning(
                    "dataset %r: left %d of %d phrases out of the scores of masks: no annotation has one",
                    self._name,
                    len(results) - len(judged),
                    len(results),
                )
            ious = [result.intersection / result.union for result in judged]
            scores["mIoU"] = _percentage(sum(ious), len(ious))
            pixels = sum(result.intersection for result in judged), sum(result.union for result in judged)
            scores["cIoU" if self._protocol == "phrasecut" else "oIoU"] = _percentage(*pixels)
            if self._protocol == "phrasecut":
                for threshold in _PRECISION_THRESHOLDS:
                    scores[f"Pr@{threshold}"] = _percentage(sum(iou >= threshold for iou in ious), len(ious))
        if self._protocol == "refcoco":
            scores[f"acc@{_BOX_THRESHOLD}"] = _percentage(sum(result.is_box_hit for result in results), len(results))
        return scores


def _percentage(part: float, whole: float) -> float:
    return 100.0 * part / whole if whole else float("nan")


def _run_lengths(mask: Tensor) -> dict[str, Any]:
    return {"size": list(mask.shape), "counts": encode_masks(mask[None])[0]}


def _common_pixels(mask: dict[str, Any], pair: dict[str, Any]) -> tuple[int, int]:
    """Count intersection and union of a mask with all annotated ones together; both 0 if those have no pixel."""
    size = [pair["height"], pair["width"]]
    parts = []
    for segmentation in (item["segmentation"] for item in pair["annotations"] if "segmentation" in item):
        parts += mask_utils.frPyObjects(segmentation, *size) if isinstance(segmentation, list) else [segmentation]
    annotated = mask_utils.merge(parts) if parts else None
    num_annotated = int(mask_utils.area(annotated)) if parts else 0
    if not num_annotated:
        return 0, 0
    intersection = int(mask_utils.area(mask_utils.merge([mask, annotated], intersect=True)))
    return intersection, int(mask_utils.area(mask)) + num_annotated - intersection


def _annotated_boxes(pair: dict[str, Any]) -> Boxes:
    boxes = [BoxMode.convert(item["bbox"], item["bbox_mode"], BoxMode.XYXY_ABS) for item in pair["annotations"]]
    return Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
