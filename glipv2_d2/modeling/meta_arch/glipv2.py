"""GLIPv2 as a detectron2 meta-architecture: images and prompts in, losses or instances out."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_anchor_generator, build_backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, ImageList, Instances

from ...prompts.vocabulary import build_default_prompts
from ...structures import GroundingPredictions, LanguageFeatures, TokenBatch, TokenizedPrompt
from ..box_regression import scale_boxes_legacy
from ..fusion_tower import FusionTower
from ..heads.contrastive_head import ContrastiveHead
from ..heads.grounding_head import GroundingHead
from ..heads.mlm_head import MLMHead
from ..prompt_cache import PromptCache
from ..text_encoder import build_text_encoder


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
        anchor_generator: One anchor per location and level.
        head_in_features: Levels that the tower reads, fine to coarse.
        default_prompts: Called when an input at test time has no ``prompts``; None makes that an error.
        max_detections: Most detections per image over all its prompts; ties at the cut stay.
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
        max_detections: int = 100,
        pixel_mean: list[float],
        pixel_std: list[float],
    ) -> None:
        super().__init__(backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.text_encoder = text_encoder
        self.fusion_tower = tower
        self.contrastive_head = contrastive_head
        self.mlm_head = mlm_head
        self.anchor_generator = anchor_generator
        self.max_detections = max_detections
        self._default_prompts = default_prompts
        self._prompt_cache = PromptCache()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        text_encoder = build_text_encoder(cfg)
        levels = list(cfg.MODEL.GLIPV2.IN_FEATURES)
        shapes = backbone.output_shape()
        missing = [level for level in levels if level not in shapes]
        if missing:
            raise ValueError(f"MODEL.GLIPV2.IN_FEATURES: the backbone has the levels {list(shapes)}, not {missing}")
        channels, language_dim = shapes[levels[0]].channels, text_encoder.hidden_size
        tower = _build_tower(cfg, channels, text_encoder)
        return {
            "backbone": backbone,
            "text_encoder": text_encoder,
            "tower": tower,
            "head": GroundingHead(
                cfg, channels=tower.out_channels, language_dim=language_dim, num_levels=len(levels)
            ),
            **_build_pretraining_heads(cfg, channels, text_encoder),
            "anchor_generator": build_anchor_generator(cfg, [shapes[level] for level in levels]),
            "head_in_features": levels,
            "default_prompts": functools.cache(functools.partial(build_default_prompts, cfg)),
            "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def train(self, mode: bool = True) -> GLIPv2:
        # A fused optimizer changes weights without counting it in Tensor._version.
        self._prompt_cache.clear()
        return super().train(mode)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Run N images with their prompts; see ``structures`` for the keys of inputs and outputs."""
        if self.training:
            return self._forward_losses(batched_inputs)
        results: list[dict[str, Instances] | None] = [None] * len(batched_inputs)
        for rows in self._rows_by_padded_size(batched_inputs):
            instances = self._detect([batched_inputs[row] for row in rows])
            for row, instances_per_image in zip(rows, instances):
                results[row] = {"instances": instances_per_image}
        return results

    def _forward_losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        if not all(inputs.get("prompts") for inputs in batched_inputs):
            raise ValueError("model input: expected 'prompts' in training, found none; use glipv2_d2.data's loaders")
        prompts = [inputs["prompts"][0] for inputs in batched_inputs]
        instances = [inputs["instances"].to(self.device) for inputs in batched_inputs]
        images = self.preprocess_image(batched_inputs)
        features = self._visual_features(images)
        tokens = TokenBatch.from_prompts(prompts, self.device)
        language = self.text_encoder(tokens)
        predictions, fused_text = self._predict(features, language)
        anchors = self.anchor_generator(features)
        targets = self.head.label_anchors(anchors, instances, prompts, tokens.input_ids.shape[1])
        losses = self.head.losses(predictions, anchors, targets, tokens.mask)
        if self.contrastive_head is not None:
            losses |= self.contrastive_head.losses(features, language, prompts, targets, instances)
        if self.mlm_head is not None:
            losses |= self.mlm_head.losses(fused_text, prompts)
        return losses

    def _visual_features(self, images: ImageList) -> list[Tensor]:
        features = self.backbone(images.tensor)
        return [features[level] for level in self.head_in_features]

    def _predict(self, features: list[Tensor], language: LanguageFeatures) -> tuple[GroundingPredictions, Tensor]:
        """Return the predictions and the fused text (N, T, D)."""
        features, language = self.fusion_tower(features, language)
        text = language.hidden if self.fusion_tower.fuses_text else language.embedded
        return self.head(features, text), language.hidden

    def _rows_by_padded_size(self, batched_inputs: list[dict[str, Any]]) -> list[list[int]]:
        divisor = max(self.backbone.size_divisibility, 1)
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for row, inputs in enumerate(batched_inputs):
            size = inputs["image"].shape[-2:]
            groups[tuple(-(-side // divisor) for side in size)].append(row)
        return list(groups.values())

    def _detect(self, batched_inputs: list[dict[str, Any]]) -> list[Instances]:
        """Detect in N images of one padded size; boxes in pixels of the original images."""
        images = self.preprocess_image(batched_inputs)
        features = self._visual_features(images)
        anchors = self.anchor_generator(features)
        prompts = [self._prompts_of(inputs) for inputs in batched_inputs]
        found: list[list[Instances]] = [[] for _ in batched_inputs]
        for chunk in range(max(len(prompts_per_image) for prompts_per_image in prompts)):
            rows = [row for row, prompts_per_image in enumerate(prompts) if chunk < len(prompts_per_image)]
            chunk_prompts = [prompts[row][chunk] for row in rows]
            chunk_features = features if len(rows) == len(prompts) else [level[rows] for level in features]
            language = self._prompt_cache.encode(self.text_encoder, chunk_prompts, self.device)
            predictions, _ = self._predict(chunk_features, language)
            image_sizes = [images.image_sizes[row] for row in rows]
            for row, instances in zip(rows, self.head.inference(predictions, anchors, image_sizes, chunk_prompts)):
                found[row].append(instances)
        return [
            rescale_instances(self._merge_chunks(instances), inputs.get("height"), inputs.get("width"))
            for instances, inputs in zip(found, batched_inputs)
        ]

    def _prompts_of(self, inputs: dict[str, Any]) -> list[TokenizedPrompt]:
        prompts = inputs.get("prompts")
        if prompts is None and self._default_prompts is not None:
            prompts = self._default_prompts()
        if not prompts:
            raise ValueError(
                "model input: expected the key 'prompts' with at least one TokenizedPrompt, found none; "
                "a vocabulary to fall back on is taken from DATASETS.TEST"
            )
        return prompts

    def _merge_chunks(self, instances: list[Instances]) -> Instances:
        """Join the detections of one image under all its prompts and keep the best."""
        if len(instances) == 1:
            return instances[0]
        merged = Instances.cat(instances)
        if 0 < self.max_detections < len(merged):
            threshold = merged.scores.topk(self.max_detections).values[-1]
            merged = merged[merged.scores >= threshold]
        return merged[merged.scores.argsort(descending=True, stable=True)]


def _build_tower(cfg: CfgNode, channels: int, text_encoder: nn.Module) -> FusionTower:
    tower, fusion = cfg.MODEL.GLIPV2.TOWER, cfg.MODEL.GLIPV2.FUSION
    return FusionTower(
        channels,
        text_encoder.hidden_size,
        num_blocks=tower.NUM_BLOCKS,
        channels=tower.CHANNELS,
        num_groups=tower.NUM_GROUPS,
        deformable=tower.DEFORMABLE,
        deform_form=tower.DEFORM_FORM,
        dynamic_relu=tower.DYNAMIC_RELU,
        fusion=fusion.ENABLED,
        fusion_embed_dim=fusion.EMBED_DIM,
        fusion_num_heads=fusion.NUM_HEADS,
        fusion_dropout=fusion.DROPOUT,
        fusion_form=fusion.FORM,
        layer_scale=fusion.LAYER_SCALE,
        language_num_heads=text_encoder.num_heads,
        language_intermediate_size=text_encoder.intermediate_size,
        language_dropout=text_encoder.dropout,
        language_layer_type=getattr(text_encoder, "language_layer_type", "post_norm"),
        use_checkpoint=tower.USE_CHECKPOINT,
    )


def _build_pretraining_heads(cfg: CfgNode, channels: int, text_encoder: nn.Module) -> dict[str, nn.Module | None]:
    """Build the heads of the losses that only pre-training has, None for those that are switched off."""
    contrastive_head = mlm_head = None
    if cfg.MODEL.GLIPV2.CONTRASTIVE.ENABLED:
        contrastive_head = ContrastiveHead(cfg, channels=channels, language_dim=text_encoder.hidden_size)
    if cfg.MODEL.GLIPV2.MLM.ENABLED:
        mlm_head = MLMHead(cfg, language_dim=text_encoder.hidden_size, vocab_size=text_encoder.vocab_size)
    return {"contrastive_head": contrastive_head, "mlm_head": mlm_head}


def rescale_instances(instances: Instances, height: int | None, width: int | None) -> Instances:
    """Move detections from the pixels of the resized image to those of the original.

    Args:
        instances: Detections with ``image_size`` of the resized image.
        height, width: Of the original image; None keeps the size as it is.

    Source: ``BoxList.resize`` of the official code, which multiplies corner pixels, not edges.
    """
    old_height, old_width = instances.image_size
    height = old_height if height is None else height
    width = old_width if width is None else width
    fields = dict(instances.get_fields())
    boxes = fields.pop("pred_boxes").tensor
    result = Instances((height, width), **fields)
    result.pred_boxes = Boxes(scale_boxes_legacy(boxes, width / old_width, height / old_height))
    return result
