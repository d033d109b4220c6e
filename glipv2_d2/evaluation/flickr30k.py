"""Phrase grounding on Flickr30K Entities: the share of phrases that one of the best boxes finds."""

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
from torch import Tensor

from ..errors import InputError
from ..structures import CharSpan
from .gathering import GatheringEvaluator

_IOU_THRESHOLD = 0.5
_RECALLS = (1, 5, 10)
# Boxes of a phrase that the file of predictions holds.
_MAX_WRITTEN = 10


class Phrase(NamedTuple):
    """What is to be found.

    Attributes:
        text: Its words.
        boxes: (M, 4), M >= 1, XYXY in pixels of the original image.
    """

    text: str
    boxes: Tensor


class PhraseResult(NamedTuple):
    """Where the first right box of a phrase stands among its boxes, the best first.

    Attributes:
        any_box: Place of the first that fits one of the annotated boxes; None if none does.
        merged: Place of the first that fits the box around all of them; None if none does.
    """

    any_box: int | None
    merged: int | None


class CaptionResult(NamedTuple):
    """What came out for one caption.

    Attributes:
        image_id: Of the pair of image and caption.
        phrases: One for each phrase.
        prediction: For the file of predictions; empty if none is written.
    """

    image_id: str
    phrases: list[PhraseResult]
    prediction: dict[str, Any]


class Flickr30kEvaluator(GatheringEvaluator):
    """Recall of phrases, by both protocols for phrases that have several boxes.

    Results are "any_box", where a box is right that has an IoU of 0.5 or more with any of the annotated boxes of the
    phrase, and "merged", where it must have it with the smallest box around all of them. Each has ``R@1``, ``R@5`` and
    ``R@10``, the share, in 0..100, of phrases of which one of the best 1, 5 or 10 boxes is right, ``R@all`` of all
    boxes, and ``phrases``, their number. A phrase without any box counts as not found. Predictions, up to 10 boxes of
    each phrase, go to ``flickr30k_results.json``.

    Args:
        dataset_name: For messages.
        dataset_dicts: One for each caption, with an ``image_id`` that no other has. Annotations with the same
            ``tokens_positive`` are the boxes of one phrase; ``pred_classes`` are phrases in the order of first use.
        distributed: Collect the numbers of all processes; the first of them averages.
        output_folder: None: predictions are not written.

    Raises:
        InputError: An ``image_id`` stands there twice.

    Source: MDETR's evaluation, which GLIP and GLIPv2 report (any-box, Sec. B.1). IoUs are those of inclusive corners
    without adding a pixel, as there.
    """

    def __init__(
        self,
        dataset_name: str,
        dataset_dicts: Sequence[dict[str, Any]],
        *,
        distributed: bool = True,
        output_folder: str | None = None,
    ) -> None:
        super().__init__(distributed)
        self._phrases = {item["image_id"]: phrases_of(item) for item in dataset_dicts}
        if len(self._phrases) < len(dataset_dicts):
            found = f"{len(dataset_dicts)} dicts with {len(self._phrases)} different image_id"
            raise InputError(f"dataset {dataset_name!r}: {found}, expected one for each caption")
        self._name, self._output_folder = dataset_name, output_folder

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Look for the phrases of some captions among the detections.

        Raises:
            InputError: A caption is not of the dataset, or a detection is of a phrase that it does not have.
        """
        for sample, output in zip(inputs, outputs):
            phrases = self._phrases.get(sample["image_id"])
            if phrases is None:
                raise InputError(f"image {sample['image_id']!r}: expected one of the dataset {self._name!r}")
            self._results.append(self._measure(sample["image_id"], phrases, output["instances"]))

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Count what was found; empty on all processes but the first, and if nothing was processed."""
        if (results := self.gather()) is None:
            return OrderedDict()
        if not results:
            logging.getLogger(__name__).warning("dataset %r: nothing was processed", self._name)
            return OrderedDict()
        # A sampler may repeat a caption.
        results = [result for _, result in sorted({result.image_id: result for result in results}.items())]
        if self._output_folder:
            PathManager.mkdirs(self._output_folder)
            with PathManager.open(os.path.join(self._output_folder, "flickr30k_results.json"), "w") as file:
                json.dump([result.prediction for result in results], file)
        found = [phrase for result in results for phrase in result.phrases]
        scores = OrderedDict(
            any_box=_recalls([phrase.any_box for phrase in found]), merged=_recalls([phrase.merged for phrase in found])
        )
        for protocol, values in scores.items():
            logging.getLogger(__name__).info(
                "dataset %r, protocol %s:\n%s", self._name, protocol, create_small_table(values)
            )
        return scores

    def _measure(self, image_id: str, phrases: Sequence[Phrase], instances: Instances) -> CaptionResult:
        classes = instances.pred_classes.cpu()
        if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < len(phrases):
            found = [int(classes.min()), int(classes.max())]
            raise InputError(f"image {image_id!r}: pred_classes reach over {found}, expected 0..{len(phrases) - 1}")
        # Equally good boxes stay in the order of the model.
        scores, order = instances.scores.detach().float().cpu().sort(descending=True, stable=True)
        boxes, classes = instances.pred_boxes.tensor.detach().float().cpu()[order], classes[order]
        results, written = [], []
        for row, phrase in enumerate(phrases):
            own = boxes[classes == row]
            results.append(PhraseResult(first_hit(own, phrase.boxes), first_hit(own, merged_box(phrase.boxes))))
            if self._output_folder:
                best = scores[classes == row][:_MAX_WRITTEN]
                written.append({"phrase": phrase.text, "boxes": own[:_MAX_WRITTEN].tolist(), "scores": best.tolist()})
        return CaptionResult(image_id, results, {"image_id": image_id, "phrases": written})


def phrases_of(dataset_dict: dict[str, Any]) -> list[Phrase]:
    """Return the phrases of a caption in the order of first use, which is that of the prompt, with their boxes."""
    caption = dataset_dict["caption"]
    boxes_of_phrase: dict[tuple[CharSpan, ...], list[list[float]]] = {}
    for item in dataset_dict["annotations"]:
        spans = tuple(sorted((int(begin), int(end)) for begin, end in item["tokens_positive"]))
        box = BoxMode.convert(list(item["bbox"]), item["bbox_mode"], BoxMode.XYXY_ABS)
        boxes_of_phrase.setdefault(spans, []).append(box)
    return [
        Phrase(" ".join(caption[begin:end] for begin, end in spans), torch.tensor(boxes, dtype=torch.float32))
        for spans, boxes in boxes_of_phrase.items()
    ]


def merged_box(boxes: Tensor) -> Tensor:
    """Return the smallest box, (1, 4), around (M, 4) boxes, M >= 1, XYXY."""
    return torch.cat((boxes[:, :2].amin(dim=0), boxes[:, 2:].amax(dim=0)))[None]


def first_hit(boxes: Tensor, annotated: Tensor) -> int | None:
    """Return the place of the first of (K, 4) boxes that fits one of (M, 4) annotated ones; None if none does.

    Both are XYXY, half-open, in pixels.
    """
    # From edges to last pixels: the official IoU takes those as edges, and so sees all boxes a pixel smaller.
    last_pixel = boxes.new_tensor([0, 0, 1, 1])
    ious = pairwise_iou(Boxes(boxes - last_pixel), Boxes(annotated - last_pixel))
    hits = (ious >= _IOU_THRESHOLD).any(dim=1).nonzero()
    return int(hits[0]) if len(hits) else None


def _recalls(places: Sequence[int | None]) -> dict[str, float]:
    """Return the share of phrases that are found, by the number of boxes that may be looked at; NaN without any."""
    total = len(places)
    scores = {}
    for limit in (*_RECALLS, None):
        found = sum(place is not None and (limit is None or place < limit) for place in places)
        scores[f"R@{limit or 'all'}"] = 100.0 * found / total if total else float("nan")
    return {**scores, "phrases": float(total)}
