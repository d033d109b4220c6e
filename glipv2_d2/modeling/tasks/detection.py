"""The detection task: boxes, and masks if the model has a mask head, for all phrases of all prompts of an image."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor

from ...errors import memory_errors
from ...layers.reading import BOTH_WAYS, CAUSAL, Reading
from ...structures import GroundingPredictions, TokenizedPrompt
from ..batch import Fused, InputImages, Pairs, TrunkShapes
from ..postprocessing import finish_instances, original_size
from ..trunk import Trunk
from .base import Task
from .detection_pool import DetectionPool, PassFeatures, WaitingPasses
from .prompt_passes import plan_passes
from .shortlist import Shortlist
from .word_evidence import WordEvidence

Result = TypeVar("Result")

logger = logging.getLogger(__name__)

# Pairs of an image and a prompt whose detections are chosen together on a device; their features are kept for masks.
_MOST_WAITING = 32


class Detection(Task):
    """Detect the phrases of prompts.

    Args:
        reading: How image and text read each other in the tower.
        max_detections: Most detections per image over all its prompts, 0 for all; ties at the cut stay. It holds for
            inputs without ``detection_limits``.
        prompts_per_pass: Most prompts, over all images, that run through the tower together at test time; halved when
            memory runs out. Results do not depend on it.
        shortlist: Chooses the names of each image; None: all names are asked for.
        max_tokens: Most tokens of a prompt, special tokens included.
        test_reading: How they read each other at test time, if not as in training.
    """

    name = "detection"
    heads: ClassVar[tuple[str, ...]] = (
        *("head", "contrastive_head", "mlm_head", "phrase_center_head", "mask_head", "class_words_head"),
    )
    needs_boxes = True

    def __init__(
        self,
        reading: Reading = BOTH_WAYS,
        max_detections: int = 100,
        prompts_per_pass: int = 8,
        test_reading: Reading | None = None,
        shortlist: Shortlist | None = None,
        max_tokens: int = 256,
    ) -> None:
        super().__init__(reading)
        self.test_reading = test_reading or reading
        self.max_detections = max_detections
        self.prompts_per_pass = prompts_per_pass
        self.shortlist = shortlist
        self.max_tokens = max_tokens

    @classmethod
    def from_config(cls, cfg: CfgNode, shapes: TrunkShapes) -> Detection:
        """Read the config; see ``Task``."""
        test = cfg.MODEL.GLIPV2.TEST
        # Questions are read as they were trained.
        test_reading = CAUSAL if test.CAUSAL_CAPTIONS and cls is Detection else None
        limits = cfg.TEST.DETECTIONS_PER_IMAGE, test.PROMPTS_PER_PASS
        max_tokens = cfg.MODEL.TEXT_ENCODER.MAX_TOKENS
        return cls(cls.reading_of(cfg), *limits, test_reading, Shortlist.from_config(cfg), max_tokens)

    @classmethod
    def reading_of(cls, cfg: CfgNode) -> Reading:
        """Return how image and text read each other in the tower."""
        return BOTH_WAYS

    def inference(self, model: Trunk, inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Detect in N images of one padded size; boxes in pixels of the original images."""
        prompts = [model.prompts_of(one) for one in inputs]
        outputs: list[dict[str, Any]] = [{} for _ in inputs]
        images = model.preprocess_image(inputs)
        found = self.find(model, inputs, prompts, images, model.visual_features(images), outputs)
        return self.finish(model, inputs, found, outputs)

    def most_detections(self, inputs: dict[str, Any]) -> int:
        """Return the most detections of an image, 0 for all."""
        limits = inputs.get("detection_limits")
        return self.max_detections if limits is None else limits.per_image

    def find(
        self,
        model: Trunk,
        inputs: Sequence[dict[str, Any]],
        prompts: Sequence[list[TokenizedPrompt]],
        images: InputImages,
        features: list[Tensor],
        outputs: list[dict[str, Any]],
    ) -> list[Instances]:
        """Detect in N images whose features are known.

        Args:
            model: The model.
            inputs: Model inputs with the same limits; their own prompts and images are not read.
            prompts: A list for each image, at least one prompt each.
            images: Normalized and padded.
            features: L levels (N, C, Hl, Wl) of the backbone.
            outputs: One for each image; ``answer`` adds to them.

        Returns:
            What ``finish`` takes: detections in pixels of the network's input, best first, on the CPU but for
            ``mask_probabilities``.
        """
        anchors = model.anchors_of(features)
        if self.shortlist is not None:
            prompts = self.shortlist.choose(model, features, anchors, images.image_sizes, prompts)
        # Images run together only if their limits are equal.
        limits = inputs[0].get("detection_limits")
        limit = None if limits is None else limits.of_a_prompt
        pool = DetectionPool(len(inputs), self.most_detections(inputs[0]), model.mask_head)
        waiting = WaitingPasses(model.head.selector, limit, pool, _MOST_WAITING)
        for pairs, (fused, predictions) in self.passes(model, images, features, prompts, waiting.choose):
            self.answer(model, pairs, fused, outputs)
            image_sizes = [images.image_sizes[row] for row in pairs.rows]
            levels = [] if model.mask_head is None else model.mask_head.levels_of(fused)
            of_pass = PassFeatures(pairs, levels, fused.text)
            if model.device.type == "cpu":
                detected = model.head.inference(predictions, anchors, image_sizes, pairs.prompts, limit)
                pool.add(detected, of_pass)
            else:
                waiting.add(predictions, anchors, image_sizes, of_pass)
            # The next pass takes their memory.
            del fused, predictions
        waiting.choose()
        return pool.merge()

    def finish(
        self,
        model: Trunk,
        inputs: Sequence[dict[str, Any]],
        found: Sequence[Instances],
        outputs: list[dict[str, Any]],
    ) -> list[dict[str, Any]]:
        """Add the detections of N images to their outputs, in pixels of the original images, where the model is."""
        sizes = [original_size(*pair) for pair in zip(inputs, (one.image_size for one in found), strict=True)]
        threshold = 0.5 if model.mask_head is None else model.mask_head.threshold
        for output, instances in zip(outputs, finish_instances(found, sizes, model.device, threshold), strict=True):
            output["instances"] = instances
        return outputs

    def passes(
        self,
        model: Trunk,
        images: InputImages,
        features: list[Tensor],
        prompts: Sequence[Sequence[TokenizedPrompt]],
        free: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[Pairs, tuple[Fused, GroundingPredictions]]]:
        """Fuse N images with their prompts, pass by pass, and predict; the token logits hold the evidence of classes.

        Args:
            model: The model.
            images: The images, normalized and padded.
            features: L levels (N, C, Hl, Wl) of them.
            prompts: A list for each image.
            free: Gives back memory before a pass is tried again.
        """
        anchors = model.anchors_of(features)
        evidence = None if model.class_words_head is None else WordEvidence(model, images)
        # Without fusion the levels are the same for every prompt.
        mixed = [] if model.fusion_tower.fuses_text else model.mix_levels(features)

        def run(pairs: Pairs) -> tuple[Fused, GroundingPredictions]:
            language = model.read_prompts(pairs.prompts, self.test_reading)
            selected = pairs.select([*features, *mixed])
            own_features, own_levels = selected[: len(features)], selected[len(features) :]
            fused = model.fuse(own_features, language, self.test_reading, levels=own_levels or None)
            return fused, fused.predictions if evidence is None else evidence.add(fused.predictions, anchors, pairs)

        return self._run_passes(prompts, run, free)

    def _run_passes(
        self, prompts: Sequence[Sequence[TokenizedPrompt]], run: Callable[[Pairs], Result], free: Callable[[], None]
    ) -> Iterator[tuple[Pairs, Result]]:
        """Run all pairs of an image and a prompt; of a pass that needs too much memory, and from then on, the halves.

        Args:
            prompts: A list for each image.
            run: Runs a pass.
            free: Gives back memory before a pass is tried again.
        """
        waiting = plan_passes(prompts, self.prompts_per_pass)[::-1]
        while waiting:
            pairs = waiting.pop()
            try:
                with memory_errors():
                    result = run(pairs)
            except MemoryError:
                if len(pairs.rows) == 1:
                    raise
            else:
                yield pairs, result
                del result
                continue
            self.prompts_per_pass = len(pairs.rows) // 2
            logger.warning(
                f"MODEL.GLIPV2.TEST.PROMPTS_PER_PASS: {len(pairs.rows)} prompts together need more memory than there "
                f"is; going on with {self.prompts_per_pass}"
            )
            waiting = [part for one in (*waiting, pairs) for part in one.split(self.prompts_per_pass)[::-1]]
            free()

    def answer(self, model: Trunk, pairs: Pairs, fused: Fused, outputs: list[dict[str, Any]]) -> None:
        """Add other results of a pass to the outputs of the images; a hook for subclasses."""
