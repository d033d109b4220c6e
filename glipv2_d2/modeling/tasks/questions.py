"""The task of answering questions: an answer from a list, and boxes of what the question names."""

from __future__ import annotations

from typing import Any, ClassVar

from detectron2.config import CfgNode

from ...layers.reading import Reading
from ..batch import Fused, Pairs
from ..trunk import Trunk
from .detection import Detection


class Questions(Detection):
    """Answer questions; a question is the first prompt of its image."""

    name = "vqa"
    heads: ClassVar[tuple[str, ...]] = ("head", "phrase_center_head", "vqa_head")
    answered_by = "vqa_head"
    needs_boxes = False

    @classmethod
    def reading_of(cls, cfg: CfgNode) -> Reading:
        """Return how image and text read each other in the tower."""
        return Reading(image_reads=cfg.MODEL.GLIPV2.VQA.IMAGE_READS_QUESTION)

    def answer(self, model: Trunk, pairs: Pairs, fused: Fused, outputs: list[dict[str, Any]]) -> None:
        """Rate the answers of the questions of a pass."""
        answers = model.vqa_head.inference(fused.hidden, fused.language.mask)
        for row, rank, scores in zip(pairs.rows, pairs.ranks, answers, strict=True):
            if rank == 0:
                outputs[row]["answer_scores"] = scores
