"""Scores of generated captions, and whether the objects that they name are in their images."""

from __future__ import annotations

import json
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from ..errors import InputError
from ..prompts.decoding import DecodedText
from .caption_metrics import score_captions
from .gathering import GatheringEvaluator
from .named_objects import Mention, Name, annotated_boxes, find_mentions, name_of

# Turns token ids into text; the ``decode`` of a tokenizer.
Decode = Callable[[Sequence[int]], DecodedText]


class CaptionedImage(NamedTuple):
    """What is known of an image.

    Attributes:
        image_id: Its own, or the first of several that it has in the dataset.
        references: Its captions; none in a test set.
        boxes: By name what is annotated in it, XYXY in pixels of the original image.
    """

    image_id: int
    references: list[str]
    boxes: dict[Name, list[list[float]]]


class CaptionResult(NamedTuple):
    """The caption of one image.

    Attributes:
        image_id: Of the image.
        caption: As the model wrote it.
        score: Of the caption.
        is_annotated: For each known name that the caption mentions, whether it is annotated in the image.
        phrases: Of a grounded caption, for each such mention its place in the caption and its boxes, the best first.
        hits: Of a grounded caption, for each mention of what is annotated, the place of the first of these boxes that
            fits, from 0; None if none of them does.
    """

    image_id: int
    caption: str
    score: float
    is_annotated: list[bool]
    phrases: list[dict[str, Any]]
    hits: list[int | None]


class CaptioningEvaluator(GatheringEvaluator):
    """BLEU, ROUGE-L and CIDEr of captions, METEOR and SPICE where they can be computed, and named objects.

    Results are ``{"captioning": {...}}`` with the values of ``score_captions`` and ``pycocoevalcap``, 1 or 0, which
    tells whether it computed them. Where the dataset has names, which are its ``thing_classes`` and the phrases of its
    annotations, also ``named_objects``, how many times captions mention one of them, and ``named_objects_in_scene``,
    the share of these, in 0..100, that is annotated in the image; NaN if nothing is named.

    Judged are the images that were processed and have references; others are counted in a warning. An image counts
    once. A file ``caption_predictions.json`` has the captions of all, a list in the order of the dataset, with
    ``image_id``, ``caption`` and ``score``; ``caption_scores.json`` has the results, with the ``implementation`` that
    was used.

    Args:
        dataset_name: For messages.
        dataset_dicts: As the contract describes them, with ``captions`` or ``caption``. Several may be of one image,
            with the same ``image_id`` or the same file; its references and annotations are those of all of them.
        decode: Turns token ids into text.
        thing_classes: Names of categories, if annotations have a ``category_id``.
        implementation: As of ``score_captions``.
        distributed: Collect the captions of all processes; the first of them judges.
        output_folder: None: no file is written.

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
        super().__init__(distributed)
        self._images = _join_images(dataset_dicts, thing_classes)
        self._names = {name_of(name) for name in thing_classes or ()}
        self._names.update(name for image in self._images.values() for name in image.boxes)
        self._name, self._decode, self._implementation = dataset_name, decode, implementation
        self._output_folder = output_folder

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Read the captions of some images.

        Args:
            inputs: Model inputs with ``image_id``.
            outputs: Model outputs with ``caption_ids`` (T,) and ``caption_score``.

        Raises:
            InputError: An image is not of the dataset.
        """
        for sample, output in zip(inputs, outputs):
            image = self._images.get(sample["image_id"])
            if image is None:
                raise InputError(f"image {sample['image_id']!r}: expected one of the dataset {self._name!r}")
            decoded = self._decode(output["caption_ids"].tolist())
            mentions = find_mentions(decoded.text, self._names)
            phrases, hits = self._ground(image, mentions, decoded, output)
            self._results.append(
                CaptionResult(
                    image.image_id,
                    decoded.text,
                    float(output["caption_score"]),
                    [mention.name in image.boxes for mention in mentions],
                    phrases,
                    hits,
                )
            )

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Judge the captions; empty on all processes but the first, and if there is nothing to judge."""
        if (results := self.gather()) is None:
            return OrderedDict()
        # What several samples are of, or what two processes had, is there once, in the order of the dataset.
        found = {result.image_id: result for result in reversed(results)}
        image_ids = {image.image_id: None for image in self._images.values()}
        results = [found[image_id] for image_id in image_ids if image_id in found]
        if self._output_folder:
            self._write("caption_predictions.json", [self._prediction(result) for result in results])
        judged = [result for result in results if self._images[result.image_id].references]
        logger = logging.getLogger(__name__)
        if len(judged) < len(image_ids):
            logger.warning(
                "dataset %r: %d of %d images were processed, and %d of these have captions to judge by",
                *(self._name, len(results), len(image_ids), len(judged)),
            )
        if not judged:
            return OrderedDict()
        scored = score_captions(
            [result.caption for result in judged],
            [self._images[result.image_id].references for result in judged],
            self._implementation,
        )
        scores = {**scored.values, "pycocoevalcap": float(scored.implementation == "pycocoevalcap")}
        if self._names:
            scores.update(named_object_scores(judged))
        results_by_task = OrderedDict(captioning=scores, **self._grounding_scores(judged))
        if self._output_folder:
            self._write("caption_scores.json", {"implementation": scored.implementation, **results_by_task})
        for task, values in results_by_task.items():
            logger.info("dataset %r, %d captions, %s:\n%s", self._name, len(judged), task, create_small_table(values))
        return results_by_task

    def _ground(
        self, image: CaptionedImage, mentions: Sequence[Mention], decoded: DecodedText, output: dict[str, Any]
    ) -> tuple[list[dict[str, Any]], list[int | None]]:
        """Return the phrases with their boxes and the places of those that fit; plain captions have neither."""
        return [], []

    def _grounding_scores(self, results: Sequence[CaptionResult]) -> dict[str, dict[str, float]]:
        """Return further tasks with their scores; there are none for plain captions."""
        return {}

    def _prediction(self, result: CaptionResult) -> dict[str, Any]:
        return {"image_id": result.image_id, "caption": result.caption, "score": result.score}

    def _write(self, file_name: str, content: Any) -> None:
        PathManager.mkdirs(self._output_folder)
        with PathManager.open(os.path.join(self._output_folder, file_name), "w") as file:
            json.dump(content, file)


def named_object_scores(results: Iterable[CaptionResult]) -> dict[str, float]:
    """Count how many times captions mention a known name, and return the share that is in the scene, in 0..100."""
    is_annotated = [is_there for result in results for is_there in result.is_annotated]
    share = 100.0 * sum(is_annotated) / len(is_annotated) if is_annotated else float("nan")
    return {"named_objects": float(len(is_annotated)), "named_objects_in_scene": share}


def _join_images(
    dataset_dicts: Iterable[dict[str, Any]], thing_classes: Sequence[str] | None
) -> dict[int, CaptionedImage]:
    """Return the image of each ``image_id``; those that are one image share it."""
    images: dict[int, CaptionedImage] = {}
    of_files: dict[tuple[str, int | None], CaptionedImage] = {}
    for item in dataset_dicts:
        image = images.get(item["image_id"]) or CaptionedImage(item["image_id"], [], {})
        # The name of what is no file of its own need not be the only one.
        if "file_name" in item and "image_bytes" not in item:
            image = of_files.setdefault((item["file_name"], item.get("tsv_offset")), image)
        images[item["image_id"]] = image
        captions = item.get("captions") or ([item["caption"]] if item.get("caption") else [])
        image.references.extend(captions)
        for name, boxes in annotated_boxes(item, thing_classes).items():
            image.boxes.setdefault(name, []).extend(boxes)
    return images
