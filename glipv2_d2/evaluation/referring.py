"""Referring segmentation: one phrase, one mask; evaluators of PhraseCut and of RefCOCO, RefCOCO+ and RefCOCOg."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from detectron2.structures import Boxes, BoxMode, Instances, pairwise_iou
from pycocotools import mask as mask_utils
from torch import Tensor

from ..errors import InputError
from ..modeling.phrase_results import best_detection, referred_mask
from ..plurals import counted
from .ap_inputs import checked_masks
from .mask_encoding import encode_masks
from .sample_evaluator import SampleEvaluator, by_id, percentage

# IoUs from which on a mask counts as right.
_PRECISION_THRESHOLDS = (0.5, 0.7, 0.9)
_BOX_THRESHOLD = 0.5


class ReferringResult(NamedTuple):
    """The result of one phrase in one image.

    Attributes:
        intersection: Number of pixels in both masks; 0 where masks are not evaluated.
        union: Number of pixels in either mask; 0 too.
        is_box_hit: Whether the best box has an IoU of 0.5 or more with an annotated one.
        prediction: Entry in the file of predictions, empty if no file is written: ``segmentation``, compressed run
            lengths, if masks are evaluated; ``bbox``, XYWH, and ``score`` of the best detection, if there is one.
    """

    intersection: int
    union: int
    is_box_hit: bool
    prediction: dict[str, Any]


class ReferringEvaluator(SampleEvaluator[int, dict[str, Any], ReferringResult]):
    """Scores of the masks, and of the best boxes, that a model finds for phrases.

    Protocol "phrasecut": the mask is the union of all detections with at least ``score_thresh``. ``mIoU`` is the mean
    over the pairs of image and phrase; ``cIoU`` is the sum of all intersections by the sum of all unions; ``Pr@0.5``,
    ``Pr@0.7`` and ``Pr@0.9`` are the share of pairs with at least this IoU. Protocol "refcoco": mask and box are those
    of the best detection. ``mIoU``; ``oIoU``, which is computed as ``cIoU`` is; ``acc@0.5``, the share of pairs whose
    box has at least this IoU with an annotated one.

    All are in 0..100, of the pairs that were processed; a pair without detections counts as 0. Pairs whose annotations
    have no mask cannot be judged: they are counted in a warning and left out of the scores of masks. Results are
    ``{"referring": {...}}``; predictions are written to ``referring_results.json``.

    Args:
        dataset_name, distributed, output_folder: See ``SampleEvaluator``.
        dataset_dicts: One dict of the contract for each phrase and image, with an ``image_id`` of its own.
            Masks must be checked, as ``load_dataset`` does ``with_masks``.
        protocol: "phrasecut" or "refcoco".
        score_thresh: Lowest score of a detection that belongs to the mask, in [0, 1]; protocol "phrasecut" only.
        with_masks: Without masks only ``acc@0.5`` is measured.

    Raises:
        InputError: The protocol is unknown, "phrasecut" is to be measured without masks, or two dicts have the same
            ``image_id``.

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
        if protocol not in ("phrasecut", "refcoco"):
            raise InputError(
                f"dataset {dataset_name!r}: expected the protocol 'phrasecut' or 'refcoco', found {protocol!r}"
            )
        if protocol == "phrasecut" and not with_masks:
            raise InputError(f"dataset {dataset_name!r}: expected MODEL.MASK_ON, found a model without masks")
        pairs = by_id(dataset_name, dataset_dicts, "image_id", "phrase and image")
        super().__init__(dataset_name, pairs, distributed=distributed, output_folder=output_folder)
        self._protocol, self._score_thresh, self._with_masks = protocol, score_thresh, with_masks

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Count the pixels that predictions and annotations have in common.

        Raises:
            InputError: An image is not of the dataset, or its instances have no masks, or masks of another size.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            self._results.setdefault(sample["image_id"], self._measure(self.known(sample), output["instances"]))

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Average what was counted; empty on all processes but the first, and if nothing was processed."""
        if (results := self.gather(self._known)) is None:
            return OrderedDict()
        if not results:
            self._logger.warning("dataset %r: nothing was processed", self._name)
            return OrderedDict()
        self.write(
            "referring_results.json",
            [{"image_id": image_id, **result.prediction} for image_id, result in results.items()],
        )
        scores = self._scores(list(results.values()))
        self.log(counted(len(results), "phrase"), scores)
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
        return ReferringResult(intersection, union, is_box_hit, prediction if self._output_folder else {})

    def _predicted_mask(self, instances: Instances, pair: dict[str, Any]) -> Tensor:
        """Return the mask that answers the phrase, (H, W) bool."""
        if not len(instances):
            return torch.zeros(pair["height"], pair["width"], dtype=torch.bool)
        masks = checked_masks(instances, pair)
        if self._protocol == "refcoco":
            return masks[best_detection(instances)]
        return referred_mask(instances, self._score_thresh)

    def _scores(self, results: list[ReferringResult]) -> dict[str, float]:
        scores = {}
        if self._with_masks:
            judged = [result for result in results if result.union]
            if len(judged) < len(results):
                self._logger.warning(
                    "dataset %r: left %d of %s out of the scores of masks: no annotation has one",
                    self._name,
                    len(results) - len(judged),
                    counted(len(results), "phrase"),
                )
            ious = [result.intersection / result.union for result in judged]
            scores["mIoU"] = percentage(sum(ious), len(ious))
            pixels = sum(result.intersection for result in judged), sum(result.union for result in judged)
            scores["cIoU" if self._protocol == "phrasecut" else "oIoU"] = percentage(*pixels)
            if self._protocol == "phrasecut":
                for threshold in _PRECISION_THRESHOLDS:
                    scores[f"Pr@{threshold}"] = percentage(sum(iou >= threshold for iou in ious), len(ious))
        if self._protocol == "refcoco":
            scores[f"acc@{_BOX_THRESHOLD}"] = percentage(sum(result.is_box_hit for result in results), len(results))
        return scores


def _run_lengths(mask: Tensor) -> dict[str, Any]:
    return {"size": list(mask.shape), "counts": encode_masks(mask[None])[0]}


def _common_pixels(mask: dict[str, Any], pair: dict[str, Any]) -> tuple[int, int]:
    """Count the pixels of intersection and union of a mask and all annotated masks; both 0 without annotated pixels."""
    size = [pair["height"], pair["width"]]
    parts: list[Any] = []
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
