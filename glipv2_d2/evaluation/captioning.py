"""Scores of generated captions, and whether the objects that they name are in their images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ..plurals import counted
from ..prompts.decoding import DecodedText
from .caption_metrics import score_captions
from .named_objects import Mention, Name, annotated_boxes, find_mentions, name_of
from .sample_evaluator import SampleEvaluator, percentage

# Turns token ids into text; the ``decode`` of a tokenizer.
Decode = Callable[[Sequence[int]], DecodedText]


class CaptionedImage(NamedTuple):
    """What is known of an image.

    Attributes:
        image_id: Id of the image; if the dataset has several, the first.
        references: Its captions; empty in a test set.
        boxes: For each name the annotated boxes, XYXY in pixels of the original image.
    """

    image_id: int
    references: list[str]
    boxes: dict[Name, list[list[float]]]


class CaptionResult(NamedTuple):
    """The caption of one image.

    Attributes:
        caption: Text that the model wrote.
        score: Score of the caption.
        is_annotated: For each known name that the caption mentions, whether it is annotated in the image.
        phrases: For each such mention of a grounded caption its position in the caption and its boxes, the best first.
        hits: For each mention, in a grounded caption, of an annotated object the rank, from 0, of the first of these
            boxes that fits; None if no box fits.
    """

    caption: str
    score: float
    is_annotated: list[bool]
    phrases: list[dict[str, Any]]
    hits: list[int | None]


class CaptioningEvaluator(SampleEvaluator[int, CaptionedImage, CaptionResult]):
    """BLEU, ROUGE-L and CIDEr of captions, METEOR and SPICE where they can be computed, and named objects.

    Results are ``{"captioning": {...}}`` with the values of ``score_captions`` and ``pycocoevalcap``, 1 or 0, which
    tells whether it computed them. The names of a dataset are its ``thing_classes`` and the phrases of its annotations.
    A dataset with names also gets ``named_objects``, how many times captions mention one of them, and
    ``named_objects_in_scene``, the share of these, in 0..100, that is annotated in the image; NaN if nothing is named.

    Images that were processed and have references are judged; a warning counts the others. Each image counts once.
    ``caption_predictions.json`` gets all captions, a list in the order of the dataset, with ``image_id``, ``caption``
    and ``score``; ``caption_scores.json`` gets the results, with the ``implementation`` that computed them.

    Args:
        dataset_name, distributed, output_folder: See ``SampleEvaluator``.
        dataset_dicts: Dicts of the contract, with ``captions`` or ``caption``. Dicts with the same
            ``image_id`` or the same file are of one image, which gets the references and annotations of all of them.
        decode: Turns token ids into text.
        thing_classes: Names of categories, if annotations have a ``category_id``.
        implementation: See ``score_captions``.

    Source: the captioning of COCO (Chen et al., 2015).
    """

    def __init__(
        self,
        dataset_name: str,
        dataset_dicts: Sequence[dict[str, Any]],
        decode: Decode,
        *,
        thing_classes: Sequence[str] | None = None,
        implementation: str = "auto",
        distributed: bool = True,
        output_folder: str | None = None,
    ) -> None:
        images = _join_images(dataset_dicts, thing_classes)
        super().__init__(dataset_name, images, distributed=distributed, output_folder=output_folder)
        self._names = {name_of(name) for name in thing_classes or ()}
        self._names.update(name for image in images.values() for name in image.boxes)
        self._decode, self._implementation = decode, implementation

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Read the captions of some images.

        Args:
            inputs: Model inputs with ``image_id``.
            outputs: Model outputs with ``caption_ids`` (T,) and ``caption_score``.

        Raises:
            InputError: An image is not of the dataset.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            image = self.known(sample)
            decoded = self._decode(output["caption_ids"].tolist())
            mentions = find_mentions(decoded.text, self._names)
            phrases, hits = self._ground(image, mentions, decoded, output)
            is_annotated = [mention.name in image.boxes for mention in mentions]
            result = CaptionResult(decoded.text, float(output["caption_score"]), is_annotated, phrases, hits)
            self._results.setdefault(image.image_id, result)

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Judge the captions; empty on all processes but the first, and if there is nothing to judge."""
        image_ids = list(dict.fromkeys(image.image_id for image in self._known.values()))
        if (results := self.gather(image_ids)) is None:
            return OrderedDict()
        predictions = [self._prediction(image_id, result) for image_id, result in results.items()]
        self.write("caption_predictions.json", predictions)
        judged = {key: result for key, result in results.items() if self._known[key].references}
        if len(judged) < len(image_ids):
            self._logger.warning(
                "dataset %r: %d of %s processed, and %d of these with captions to judge by",
                *(self._name, len(results), counted(len(image_ids), "image"), len(judged)),
            )
        if not judged:
            return OrderedDict()
        scored = score_captions(
            [result.caption for result in judged.values()],
            [self._known[image_id].references for image_id in judged],
            self._implementation,
        )
        scores = {**scored.values, "pycocoevalcap": float(scored.implementation == "pycocoevalcap")}
        if self._names:
            scores.update(named_object_scores(judged.values()))
        results_by_task = OrderedDict(captioning=scores, **self._grounding_scores(list(judged.values())))
        self.write("caption_scores.json", {"implementation": scored.implementation, **results_by_task})
        for task, values in results_by_task.items():
            self.log(f"{counted(len(judged), 'caption')}, {task}", values)
        return results_by_task

    def _ground(
        self, image: CaptionedImage, mentions: Sequence[Mention], decoded: DecodedText, output: dict[str, Any]
    ) -> tuple[list[dict[str, Any]], list[int | None]]:
        """Return ``phrases`` and ``hits`` of a result; both are empty for plain captions."""
        return [], []

    def _grounding_scores(self, results: Sequence[CaptionResult]) -> dict[str, dict[str, float]]:
        """Return further tasks with their scores; there are none for plain captions."""
        return {}

    def _prediction(self, image_id: int, result: CaptionResult) -> dict[str, Any]:
        return {"image_id": image_id, "caption": result.caption, "score": result.score}


def named_object_scores(results: Iterable[CaptionResult]) -> dict[str, float]:
    """Count how many times captions mention a known name, and return the share that is in the scene, in 0..100."""
    found = [is_there for result in results for is_there in result.is_annotated]
    return {"named_objects": float(len(found)), "named_objects_in_scene": percentage(sum(found), len(found))}


def _join_images(
    dataset_dicts: Iterable[dict[str, Any]], thing_classes: Sequence[str] | None
) -> dict[int, CaptionedImage]:
    """Return the image of each ``image_id``; ids of the same image share it."""
    images: dict[int, CaptionedImage] = {}
    of_files: dict[tuple[str, int | None], CaptionedImage] = {}
    for item in dataset_dicts:
        image = images.get(item["image_id"]) or CaptionedImage(item["image_id"], [], {})
        # Images of an archive may have equal names.
        if "file_name" in item and "image_bytes" not in item:
            image = of_files.setdefault((item["file_name"], item.get("tsv_offset")), image)
        images[item["image_id"]] = image
        captions = item.get("captions") or ([item["caption"]] if item.get("caption") else [])
        image.references.extend(captions)
        for name, boxes in annotated_boxes(item, thing_classes).items():
            image.boxes.setdefault(name, []).extend(boxes)
    return images
