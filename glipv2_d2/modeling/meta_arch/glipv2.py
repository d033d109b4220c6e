"""GLIPv2 as a detectron2 meta-architecture: images and prompts in, losses or instances out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_anchor_generator, build_backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import ImageList
from torch import Tensor, nn

from ...errors import InputError
from ...prompts.vocabulary import build_default_prompts
from ...structures import GroundingPredictions, LanguageFeatures, TokenBatch, TokenizedPrompt
from ..batch_checks import rows_of_questions, task_of_batch, training_instances
from ..box_regression import scale_boxes_legacy
from ..caption_decoder import CaptionDecoder
from ..caption_grounding import caption_prompt, ground_tokens
from ..detections import DetectionPool, FusedOutput, PassFeatures, rescale_instances
from ..fusion_tower import FusionTower
from ..heads.captioning_head import CaptioningHead
from ..heads.contrastive_head import ContrastiveHead
from ..heads.grounding_head import GroundingHead
from ..heads.mask_head import HourglassMaskHead
from ..heads.mlm_head import MLMHead
from ..heads.phrase_center_head import PhraseCenterHead
from ..heads.vqa_head import VQAHead
from ..lora import LoRASettings
from ..parts import build_optional_heads, build_tower, tuning_options
from ..prompt_cache import PromptCache
from ..prompt_passes import plan_passes, rows_by_padded_size
from ..prompt_tuning import PromptTuner
from ..text_encoder import build_text_encoder
from ..text_generation import GenerationRules, generate
from ..tuning import apply_tuning

# What the mask head reads.
MASK_FEATURES = ("fpn", "fused")
# Parts that the losses of all heads depend on; the contrastive loss on the first two alone.
_TRUNK = ("backbone", "text_encoder", "prompt_tuner", "fusion_tower")


@META_ARCH_REGISTRY.register()
class GLIPv2(DenseDetector):
    """Detect what a prompt names: a dense detector whose classes are the phrases of a text.

    Image and prompt are encoded apart, fused by the tower, and every anchor is then aligned with every token.
    The model has no tokenizer: prompts arrive as token ids (see ``structures``).

    At test time images run together only if they are padded to the same size, since the network does not mask padding:
    the result for an image does not depend on what else is in the batch.

    Args:
        backbone: Returns the named levels.
        text_encoder: Maps a ``TokenBatch`` to ``LanguageFeatures``.
        tower: Fuses levels and tokens.
        head: Aligns anchors with tokens, regresses boxes.
        contrastive_head: Contrasts regions and words of the whole batch before fusion; None for a model without.
        mlm_head: Restores masked tokens from the fused text; None for a model without.
        phrase_center_head: Finds phrases from the fused text, in training; None for a model without.
        vqa_head: Answers questions; None for a model without.
        captioning_head: Predicts the next word of a caption; None for a model without.
        generation_rules: How a caption is searched; needed with a ``captioning_head``.
        grounds_captions: Find the words of a caption in the image.
        mask_head: Predicts the masks of detections; None for a model without.
        mask_features: What it reads, one of ``MASK_FEATURES``.
        mask_thresh: Probability from which on a pixel belongs to a mask.
        prompt_tuner: Added to what the text encoder says of a prompt; None for a model without.
        tuning: What trains, see ``apply_tuning``.
        tune_mask_head: The mask head trains as well.
        lora: Of the ``tuning`` "lora".
        anchor_generator: One anchor per location and level.
        head_in_features: Levels that the tower reads, fine to coarse.
        default_prompts: Called when an input at test time has no ``prompts``; None makes that an error.
        max_detections: Most detections per image over all its prompts, 0 for all; ties at the cut stay.
        prompts_per_pass: Most prompts, over all images, that run through the tower together at test time.
        pixel_mean, pixel_std: One number per channel, in ``INPUT.FORMAT`` order.

    Source: GLIPv2, Sec. 3.1; GLIP, Sec. 3.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        text_encoder: nn.Module,
        tower: FusionTower,
        head: GroundingHead,
        anchor_generator: nn.Module,
        head_in_features: list[str],
        default_prompts: Callable[[], list[TokenizedPrompt]] | None = None,
        contrastive_head: ContrastiveHead | None = None,
        mlm_head: MLMHead | None = None,
        phrase_center_head: PhraseCenterHead | None = None,
        vqa_head: VQAHead | None = None,
        captioning_head: CaptioningHead | None = None,
        generation_rules: GenerationRules | None = None,
        grounds_captions: bool = False,
        mask_head: HourglassMaskHead | None = None,
        mask_features: str = "fpn",
        mask_thresh: float = 0.5,
        prompt_tuner: PromptTuner | None = None,
        tuning: str = "full",
        tune_mask_head: bool = False,
        lora: LoRASettings = LoRASettings(),
        max_detections: int = 100,
        prompts_per_pass: int = 8,
        pixel_mean: list[float],
        pixel_std: list[float],
    ) -> None:
        super().__init__(backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.text_encoder = text_encoder
        self.fusion_tower = tower
        self.contrastive_head = contrastive_head
        self.mlm_head = mlm_head
        self.phrase_center_head = phrase_center_head
        self.vqa_head = vqa_head
        self.captioning_head = captioning_head
        self.generation_rules = generation_rules
        self.grounds_captions = grounds_captions
        self.mask_head = mask_head
        if mask_features not in MASK_FEATURES:
            raise InputError(
                f"MODEL.GLIPV2.MASK_HEAD.FEATURES: expected one of {list(MASK_FEATURES)}, found {mask_features!r}"
            )
        self.mask_features = mask_features
        self.mask_thresh = mask_thresh
        self.anchor_generator = anchor_generator
        self.max_detections = max_detections
        self.prompts_per_pass = prompts_per_pass
        self._default_prompts = default_prompts
        self._prompt_cache = PromptCache()
        self.prompt_tuner = prompt_tuner
        self.tuning = apply_tuning(self, tuning, tune_mask_head=tune_mask_head, lora=lora)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        text_encoder = build_text_encoder(cfg)
        levels = list(cfg.MODEL.GLIPV2.IN_FEATURES)
        shapes = backbone.output_shape()
        missing = [level for level in levels if level not in shapes]
        if missing:
            raise InputError(f"MODEL.GLIPV2.IN_FEATURES: the backbone has the levels {list(shapes)}, not {missing}")
        channels, language_dim = shapes[levels[0]].channels, text_encoder.hidden_size
        tower = build_tower(cfg, channels, text_encoder)
        return {
            "backbone": backbone,
            "text_encoder": text_encoder,
            "tower": tower,
            "head": GroundingHead(cfg, channels=tower.out_channels, language_dim=language_dim, num_levels=len(levels)),
            **build_optional_heads(cfg, [shapes[level] for level in levels], tower, text_encoder),
            **tuning_options(cfg, language_dim),
            "anchor_generator": build_anchor_generator(cfg, [shapes[level] for level in levels]),
            "head_in_features": levels,
            "default_prompts": functools.cache(functools.partial(build_default_prompts, cfg)),
            "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
            "prompts_per_pass": cfg.MODEL.GLIPV2.TEST.PROMPTS_PER_PASS,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def train(self, mode: bool = True) -> GLIPv2:
        # A fused optimizer changes weights without counting it in Tensor._version.
        self._prompt_cache.clear()
        super().train(mode)
        for part in self.tuning.fixed_parts:
            part.eval()
        return self

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Run N images with their prompts; see ``structures`` for the keys of inputs and outputs."""
        if self.training:
            return self._forward_losses(batched_inputs)
        results: list[dict[str, Any]] = [{}] * len(batched_inputs)
        for rows in rows_by_padded_size(batched_inputs, self.backbone.size_divisibility):
            group = [batched_inputs[row] for row in rows]
            is_captioned = self._task_of(group) == "captioning"
            for row, result in zip(rows, self._write_captions(group) if is_captioned else self._detect(group)):
                results[row] = result
        return results

    def _forward_losses(self, pictures: list[dict[str, Any]]) -> dict[str, Tensor]:
        batched_inputs = [one for inputs in pictures for one in (inputs, *inputs.get("more_questions", ()))]
        task = self._task_of(batched_inputs)
        instances = training_instances(batched_inputs, task, self.device)
        prompts = [inputs["prompts"][0] for inputs in batched_inputs]
        images = self.preprocess_image(pictures)
        causal, image_reads = task == "captioning", self._image_reads(task)
        losses: dict[str, Tensor] = {}
        features, rows = self._visual_features(images), rows_of_questions(pictures, self.device)
        if rows is not None and image_reads:
            features, rows = [level[rows] for level in features], None
        tokens = TokenBatch.from_prompts(prompts, self.device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._trains("text_encoder")):
            language = self.text_encoder(tokens, causal=causal)
        if instances:
            fused = self._predict(features, language, causal, image_reads=image_reads, rows=rows)
            hidden = fused.hidden
            anchors = self.anchor_generator(features)
        else:
            hidden = self._fuse(features, language, causal, False, image_reads, rows)[1].hidden
        if instances and self._trains(*_TRUNK, "head"):
            targets = self.head.label_anchors(anchors, instances, prompts, tokens.input_ids.shape[1])
            losses = self.head.losses(fused.predictions, anchors, targets, tokens.mask)
            if self.contrastive_head is not None and task == "detection" and self._trains(*_TRUNK[:2]):
                losses |= self.contrastive_head.losses(features, language, prompts, targets, instances)
            if self.mlm_head is not None and task == "detection" and self._trains(*_TRUNK):
                losses |= self.mlm_head.losses(hidden, prompts)
        # Over fixed layers the text would be drawn to what a fixed head reads.
        if instances and self.phrase_center_head is not None and self._trains("phrase_center_head"):
            image_size = tuple(images.tensor.shape[-2:])
            losses |= self.phrase_center_head.losses(hidden, prompts, instances, image_size)
        if self.mask_head is not None and task == "detection" and self._trains(*_TRUNK, "mask_head"):
            proposals = self.head.proposals(fused.predictions, anchors, images.image_sizes, prompts, instances)
            levels = self._mask_levels(features, fused)
            losses |= self.mask_head.losses(levels, fused.text, proposals, instances, prompts)
        if task == "vqa" and self._trains(*_TRUNK, "vqa_head"):
            answer_scores = torch.stack([inputs["answer_scores"] for inputs in batched_inputs])
            losses |= self.vqa_head.losses(hidden, tokens.mask, answer_scores)
        if task == "captioning" and self._trains(*_TRUNK, "captioning_head"):
            losses |= self.captioning_head.losses(hidden, prompts)
        if not losses:
            raise InputError(f"MODEL.GLIPV2.TUNING.MODE: {self.tuning.mode!r} trains nothing with a batch for {task}")
        return losses

    def _trains(self, *parts: str) -> bool:
        """Say whether any of the parts trains."""
        return not self.tuning.trained_parts.isdisjoint(parts)

    def _image_reads(self, task: str) -> bool:
        """Say whether the image reads the text: a caption never, a question as its head wants it."""
        return task != "captioning" and (task != "vqa" or self.vqa_head.image_reads)

    def _task_of(self, batched_inputs: list[dict[str, Any]]) -> str:
        heads = {"detection": self.head, "vqa": self.vqa_head, "captioning": self.captioning_head}
        return task_of_batch(batched_inputs, heads)

    def _visual_features(self, images: ImageList) -> list[Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._trains("backbone")):
            features = self.backbone(images.tensor)
        return [features[level] for level in self.head_in_features]

    def _predict(
        self,
        features: list[Tensor],
        language: LanguageFeatures,
        causal: bool = False,
        mixed: list[Tensor] | None = None,
        **reading: Any,
    ) -> FusedOutput:
        """Run tower and head; ``mixed`` are the levels of the tower where they are known without the text."""
        levels, language = self._fuse(features, language, causal, mixed is None, **reading)
        levels = levels if mixed is None else mixed
        text = language.hidden if self.fusion_tower.fuses_text else language.embedded
        return FusedOutput(self.head(levels, text), levels, text, language.hidden)

    def _fuse(
        self, features: list[Tensor], language: LanguageFeatures, *options: Any, **reading: Any
    ) -> tuple[list[Tensor], LanguageFeatures]:
        """Run the tower, see ``FusionTower`` for the options, on the tuned text."""
        if self.prompt_tuner is not None:
            language = self.prompt_tuner(language)
        return self.fusion_tower(features, language, *options, **reading)

    def _mask_levels(self, features: list[Tensor], fused: FusedOutput) -> list[Tensor]:
        return features if self.mask_features == "fpn" else fused.levels

    def _detect(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Detect in N images of one padded size, and answer what is asked; boxes in pixels of the original images."""
        task = self._task_of(batched_inputs)
        outputs: list[dict[str, Any]] = [{} for _ in batched_inputs]
        passes = plan_passes([self._prompts_of(inputs) for inputs in batched_inputs], self.prompts_per_pass)
        images = self.preprocess_image(batched_inputs)
        features = self._visual_features(images)
        anchors = self.anchor_generator(features)
        mixed = None if self.fusion_tower.fuses_text else self.fusion_tower.mix_levels(features)
        pool = DetectionPool(len(batched_inputs), self.max_detections, self.mask_head)
        for pairs in passes:
            levels = pairs.select(features)
            language = self._prompt_cache.encode(self.text_encoder, pairs.prompts, self.device)
            own = None if mixed is None else pairs.select(mixed)
            fused = self._predict(levels, language, mixed=own, image_reads=self._image_reads(task))
            if task == "vqa":
                answers = self.vqa_head.inference(fused.hidden, language.mask)
                for row, place, scores in zip(pairs.rows, pairs.places, answers):
                    if place == 0:  # A question is the first prompt of its image.
                        outputs[row]["answer_scores"] = scores
            image_sizes = [images.image_sizes[row] for row in pairs.rows]
            detected = self.head.inference(fused.predictions, anchors, image_sizes, pairs.prompts)
            pool.add(detected, PassFeatures(pairs, self._mask_levels(levels, fused), fused.text))
        for output, instances, inputs in zip(outputs, pool.merge(), batched_inputs):
            size = (inputs.get("height"), inputs.get("width"))
            output["instances"] = rescale_instances(instances, *size, self.mask_thresh)
        return outputs

    def _write_captions(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Write a caption for each of N images of one padded size, and find its words if the model is made for that."""
        images = self.preprocess_image(batched_inputs)
        features = self._visual_features(images)
        decoder = CaptionDecoder(self.text_encoder, self.fusion_tower, self.captioning_head)
        texts = generate(decoder.step, decoder.prepare(features), len(images), self.generation_rules, self.device)
        outputs = [{"caption_ids": text.token_ids, "caption_score": text.score} for text in texts]
        if not self.grounds_captions:
            return outputs
        rules = self.generation_rules
        prompts = [caption_prompt(text.token_ids, rules.start_id, rules.end_id) for text in texts]
        language = self.text_encoder(TokenBatch.from_prompts(prompts, self.device), causal=True)
        predictions = self._predict(features, language, causal=True).predictions
        anchors = self.anchor_generator(features)
        for row, (output, text, inputs) in enumerate(zip(outputs, texts, batched_inputs)):
            own = GroundingPredictions(*([level[row] for level in levels] for levels in predictions))
            # Without the start of the text and what follows its last word.
            own = own._replace(token_logits=[level[:, 1 : 1 + len(text.token_ids)] for level in own.token_logits])
            found = ground_tokens(
                own, anchors, images.image_sizes[row], self.head.box2box_transform, self.head.selector.nms_thresh
            )
            height, width = images.image_sizes[row]
            factors = (inputs.get("width", width) / width, inputs.get("height", height) / height)
            output["token_boxes"] = scale_boxes_legacy(found.boxes.flatten(0, 1), *factors).view_as(found.boxes)
            output["token_scores"] = found.scores
        return outputs

    def _prompts_of(self, inputs: dict[str, Any]) -> list[TokenizedPrompt]:
        prompts = inputs.get("prompts")
        if prompts is None and self._default_prompts is not None:
            prompts = self._default_prompts()
        if not prompts:
            raise InputError(
                "model input: expected the key 'prompts' with at least one TokenizedPrompt, found none; "
                "a vocabulary to fall back on is taken from DATASETS.TEST"
            )
        return prompts
