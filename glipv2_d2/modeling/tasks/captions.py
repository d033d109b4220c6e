"""The captioning task: write a text about the image word by word, and find its words in the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from detectron2.config import CfgNode
from detectron2.structures import ImageList
from torch import Tensor

from ...errors import InputError
from ...layers.reading import CAUSAL
from ...prompts.tokenizer import PromptTokenizer
from ..batch import TrunkShapes
from ..postprocessing import original_size, rescale_boxes
from ..trunk import Trunk
from .base import Task
from .caption_decoder import CaptionDecoder
from .caption_grounding import caption_prompt, ground_tokens
from .text_generation import GeneratedText, GenerationRules, generate


class Captions(Task):
    """Write captions.

    Args:
        rules: Rules of the search.
        grounded: Find the words of a caption in the image.
    """

    name = "captioning"
    heads: ClassVar[tuple[str, ...]] = ("head", "phrase_center_head", "captioning_head")
    answered_by = "captioning_head"

    def __init__(self, rules: GenerationRules, grounded: bool = False) -> None:
        super().__init__(CAUSAL)
        self.rules = rules
        self.grounded = grounded

    @classmethod
    def from_config(cls, cfg: CfgNode, shapes: TrunkShapes) -> Captions:
        """Read the config; see ``Task``.

        Raises:
            InputError: A caption may be longer than a prompt, or a number is out of its range.
        """
        tokenizer, config = PromptTokenizer.from_config(cfg), cfg.MODEL.GLIPV2.CAPTIONING
        if config.MAX_LENGTH > tokenizer.max_content_tokens:
            raise InputError(
                f"MODEL.GLIPV2.CAPTIONING.MAX_LENGTH: expected at most {tokenizer.max_content_tokens} tokens "
                f"(MODEL.TEXT_ENCODER.MAX_TOKENS without special tokens), found {config.MAX_LENGTH}"
            )
        special = [index for index in tokenizer.special_ids if index != tokenizer.end_id]
        rules = GenerationRules(
            start_id=tokenizer.start_id,
            end_id=tokenizer.end_id,
            # An encoder may have more ids than the tokenizer.
            banned_ids=(*special, *tokenizer.reserved_ids, *range(tokenizer.vocab_size, shapes.vocab_size)),
            beam_size=config.BEAM_SIZE,
            max_length=config.MAX_LENGTH,
            min_length=config.MIN_LENGTH,
            length_penalty=config.LENGTH_PENALTY,
            no_repeat_ngram=config.NO_REPEAT_NGRAM,
        )
        return cls(rules, config.GROUNDED)

    def inference(self, model: Trunk, inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Write a caption for each of N images of one padded size, and find its words if ``grounded`` is True."""
        images = model.preprocess_image(inputs)
        features = model.visual_features(images)
        decoder = CaptionDecoder(model.text_encoder, model.fusion_tower, model.captioning_head)
        texts = generate(decoder.step, decoder.prepare(features), len(images), self.rules, model.device)
        outputs = [{"caption_ids": text.token_ids, "caption_score": text.score} for text in texts]
        if self.grounded:
            self._find_words(model, images, features, texts, inputs, outputs)
        return outputs

    def _find_words(
        self,
        model: Trunk,
        images: ImageList,
        features: list[Tensor],
        texts: Sequence[GeneratedText],
        inputs: Sequence[dict[str, Any]],
        outputs: Sequence[dict[str, Any]],
    ) -> None:
        """Add the best boxes of each word of N captions to their outputs, in pixels of the original images."""
        prompts = [caption_prompt(text.token_ids, self.rules.start_id, self.rules.end_id) for text in texts]
        language = model.read_prompts(prompts, self.reading)
        predictions = model.fuse(features, language, self.reading).predictions
        anchors = model.anchors_of(features)
        # Without the start token.
        predictions = predictions._replace(token_logits=[level[..., 1:] for level in predictions.token_logits])
        lengths, sizes, head = [len(text.token_ids) for text in texts], images.image_sizes, model.head
        found = ground_tokens(predictions, anchors, sizes, lengths, head.box2box_transform, head.selector.nms_thresh)
        for output, (boxes, scores), one, size in zip(outputs, found, inputs, sizes, strict=True):
            output["token_boxes"] = rescale_boxes(boxes, size, original_size(one, size))
            output["token_scores"] = scores
