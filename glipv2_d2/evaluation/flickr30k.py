"""Phrase grounding on Flickr30K Entities: the share of phrases that one of the best boxes finds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from detectron2.structures import Boxes, BoxMode, Instances, pairwise_iou
from torch import Tensor

from ..errors import InputError
from ..structures import CharSpan
from .sample_evaluator import SampleEvaluator, by_id, percentage, recalls

_IOU_THRESHOLD = 0.5
# Boxes of a phrase that the file of predictions holds.
_MAX_WRITTEN = 10


class Phrase(NamedTuple):
    """A phrase with the boxes that are to be found.

    Attributes:
        text: The words of the phrase.
        boxes: (M, 4), M >= 1, XYXY in pixels of the original image.
    """

    text: str
    boxes: Tensor


class PhraseResult(NamedTuple):
    """Ranks, from 0, of the first right box of a phrase among its predicted boxes.

    Attributes:
        any_box: Rank of the first box that fits one of the annotated boxes; None if no box does.
        merged: Rank of the first box that fits the box around all of them; None if no box does.
    """

    any_box: int | None
    merged: int | None


class CaptionResult(NamedTuple):
    """The phrases of one caption, and their entry in the file of predictions, which is empty if no file is written."""

    phrases: list[PhraseResult]
    prediction: list[dict[str, Any]]


class Flickr30kEvaluator(SampleEvaluator[str, list[Phrase], CaptionResult]):
    """Recall of phrases, by both protocols for phrases that have several boxes.

    Results are "any_box" and "merged". A box is right if its IoU is at least 0.5 with any of the annotated boxes of the
    phrase ("any_box"), or with the smallest box around all of them ("merged"). Both have ``R@1``, ``R@5`` and ``R@10``,
    the share, in 0..100, of phrases of which one of the best 1, 5 or 10 boxes is right, ``R@all``, the same for all
    boxes, and ``phrases``, their number. A phrase without any predicted box counts as not found. Up to 10 boxes of each
    phrase are written to ``flickr30k_results.json``.

    Args:
        dataset_name, distributed, output_folder: See ``SampleEvaluator``.
        dataset_dicts: One for each caption, with an ``image_id`` of its own. Annotations with the same
            ``tokens_positive`` are the boxes of one phrase; ``pred_classes`` are phrases in the order of first use.

    Raises:
        InputError: Two dicts have the same ``image_id``.

    Source: MDETR's evaluation, which GLIP and GLIPv2 report (any-box, Sec. B.1). As there, IoUs are those of inclusive
    corners without an added pixel.
    """

    def __init__(
        self,
        dataset_name: str,
        dataset_dicts: Sequence[dict[str, Any]],
        *,
        distributed: bool = True,
        output_folder: str | None = None,
    ) -> None:
        captions = by_id(dataset_name, dataset_dicts, "image_id", "caption")
        known = {image_id: phrases_of(item) for image_id, item in captions.items()}
        super().__init__(dataset_name, known, distributed=distributed, output_folder=output_folder)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Look for the phrases of some captions among the detections.

        Raises:
            InputError: A caption is not of the dataset, or a detection is of a phrase that it does not have.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            result = self._measure(sample["image_id"], self.known(sample), output["instances"])
            self._results.setdefault(sample["image_id"], result)

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Count what was found; empty on all processes but the first, and if nothing was processed."""
        if (results := self.gather(self._known)) is None:
            return OrderedDict()
        if not results:
            self._logger.warning("dataset %r: nothing was processed", self._name)
            return OrderedDict()
        self.write(
            "flickr30k_results.json",
            [{"image_id": image_id, "phrases": result.prediction} for image_id, result in results.items()],
        )
        found = [phrase for result in results.values() for phrase in result.phrases]
        scores = OrderedDict(
            any_box=_recalls([phrase.any_box for phrase in found]), merged=_recalls([phrase.merged for phrase in found])
        )
        for protocol, values in scores.items():
            self.log(f"protocol {protocol}", values)
        return scores

    def _measure(self, image_id: str, phrases: Sequence[Phrase], instances: Instances) -> CaptionResult:
        classes = instances.pred_classes.cpu()
        if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < len(phrases):
            found = [int(classes.min()), int(classes.max())]
            raise InputError(
                f"image {image_id!r}: expected pred_classes in 0..{len(phrases) - 1}, found them in {found}"
            )
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
        return CaptionResult(results, written)


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
    """Return the rank, from 0, of the first of (K, 4) boxes that fits one of (M, 4) annotated boxes; None if none fits.

    Both are XYXY, half-open, in pixels.
    """
    # The official IoU takes the last pixels for edges, and so sees all boxes a pixel smaller.
    last_pixel = boxes.new_tensor([0, 0, 1, 1])
    ious = pairwise_iou(Boxes(boxes - last_pixel), Boxes(annotated - last_pixel))
    hits = (ious >= _IOU_THRESHOLD).any(dim=1).nonzero()
    return int(hits[0]) if len(hits) else None


def _recalls(ranks: Sequence[int | None]) -> dict[str, float]:
    found = sum(rank is not None for rank in ranks)
    return {**recalls(ranks), "R@all": percentage(found, len(ranks)), "phrases": float(len(ranks))}
