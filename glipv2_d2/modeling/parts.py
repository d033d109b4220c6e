"""The parts of a model, built from a config: the fusion tower, and the heads that only some models have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import nn

from ..errors import InputError
from ..prompts.answers import AnswerVocabulary
from ..prompts.tokenizer import PromptTokenizer
from .fusion_tower import FusionTower
from .heads.captioning_head import CaptioningHead
from .heads.contrastive_head import ContrastiveHead
from .heads.mask_head import HourglassMaskHead
from .heads.mlm_head import MLMHead
from .heads.phrase_center_head import PhraseCenterHead
from .heads.vqa_head import VQAHead
from .lora import LoRASettings
from .prompt_tuning import PROMPT_ROWS, PromptTuner
from .text_generation import GenerationRules


def build_tower(cfg: CfgNode, channels: int, text_encoder: nn.Module | None = None) -> FusionTower:
    """Build the tower for levels of ``channels`` channels and the text of an encoder, if there is one.

    Raises:
        InputError: The text is to know places, but does not read the image.
    """
    tower, fusion = cfg.MODEL.GLIPV2.TOWER, cfg.MODEL.GLIPV2.FUSION
    places = {"FUSION.POSITIONS": fusion.POSITIONS, "PHRASE_CENTER.ENABLED": cfg.MODEL.GLIPV2.PHRASE_CENTER.ENABLED}
    if any(places.values()) and not fusion.ENABLED:
        name = next(name for name, value in places.items() if value)
        raise InputError(f"MODEL.GLIPV2.{name}: expected False where MODEL.GLIPV2.FUSION.ENABLED is False, found True")
    language: dict[str, Any] = {}
    if text_encoder is not None:
        language = {
            "fusion": fusion.ENABLED,
            "fusion_embed_dim": fusion.EMBED_DIM,
            "fusion_num_heads": fusion.NUM_HEADS,
            "fusion_dropout": fusion.DROPOUT,
            "fusion_positions": fusion.POSITIONS,
            "layer_scale": fusion.LAYER_SCALE,
            "language_num_heads": text_encoder.num_heads,
            "language_intermediate_size": text_encoder.intermediate_size,
            "language_dropout": text_encoder.dropout,
            "language_layer_type": getattr(text_encoder, "language_layer_type", "post_norm"),
        }
    return FusionTower(
        channels,
        text_encoder.hidden_size if text_encoder is not None else 0,
        num_blocks=tower.NUM_BLOCKS,
        channels=tower.CHANNELS,
        deformable=tower.DEFORMABLE,
        dynamic_relu=tower.DYNAMIC_RELU,
        use_checkpoint=tower.USE_CHECKPOINT,
        **(language or {"fusion": False}),
    )


def build_optional_heads(
    cfg: CfgNode, levels: Sequence[ShapeSpec], tower: FusionTower, text_encoder: nn.Module
) -> dict[str, Any]:
    """Build the heads that the config switches on, and what the model has to know of them.

    Args:
        cfg: The config.
        levels: Channels and stride of the levels of the pyramid.
        tower: The tower that reads them.
        text_encoder: The encoder.

    Returns:
        Arguments of ``GLIPv2``; a head that is switched off is not among them.
    """
    config, language_dim = cfg.MODEL.GLIPV2, text_encoder.hidden_size
    heads: dict[str, Any] = {}
    if config.CONTRASTIVE.ENABLED:
        heads["contrastive_head"] = ContrastiveHead(cfg, channels=levels[0].channels, language_dim=language_dim)
    if config.MLM.ENABLED:
        heads["mlm_head"] = MLMHead(cfg, language_dim=language_dim, vocab_size=text_encoder.vocab_size)
    if config.PHRASE_CENTER.ENABLED:
        heads["phrase_center_head"] = PhraseCenterHead(cfg, language_dim=language_dim)
    if config.VQA.ENABLED:
        answers = AnswerVocabulary.from_config(cfg)
        heads["vqa_head"] = VQAHead(
            cfg, language_dim=language_dim, num_answers=len(answers), frequencies=answers.frequencies
        )
    if config.CAPTIONING.ENABLED:
        heads["captioning_head"] = CaptioningHead(cfg, language_dim=language_dim, vocab_size=text_encoder.vocab_size)
        heads["generation_rules"] = _build_generation_rules(cfg, text_encoder.vocab_size)
        heads["grounds_captions"] = config.CAPTIONING.GROUNDED
    if cfg.MODEL.MASK_ON:
        features = config.MASK_HEAD.FEATURES
        heads["mask_head"] = HourglassMaskHead(
            cfg,
            channels=levels[0].channels if features == "fpn" else tower.out_channels,
            language_dim=language_dim,
            strides=[level.stride for level in levels],
        )
        heads |= {"mask_features": features, "mask_thresh": config.TEST.MASK_THRESH}
    return heads


def tuning_options(cfg: CfgNode, language_dim: int) -> dict[str, Any]:
    """Return the arguments of ``GLIPv2`` that say what trains, for text of width ``language_dim``.

    Raises:
        InputError: A prompt is to be tuned for captions, which have none of a fixed form.
    """
    tuning = cfg.MODEL.GLIPV2.TUNING
    options: dict[str, Any] = {
        "tuning": tuning.MODE,
        "tune_mask_head": tuning.MASK_HEAD,
        "lora": LoRASettings(tuning.LORA.RANK, tuning.LORA.ALPHA, tuple(tuning.LORA.PARTS)),
    }
    if tuning.MODE == "prompt":
        if cfg.MODEL.GLIPV2.CAPTIONING.ENABLED:
            raise InputError(
                "MODEL.GLIPV2.TUNING.MODE: found 'prompt', which needs MODEL.GLIPV2.CAPTIONING.ENABLED False"
            )
        num_rows = max(PROMPT_ROWS, cfg.MODEL.TEXT_ENCODER.MAX_TOKENS)
        options["prompt_tuner"] = PromptTuner(language_dim, num_rows)
    return options


def _build_generation_rules(cfg: CfgNode, vocab_size: int) -> GenerationRules:
    tokenizer, captioning = PromptTokenizer.from_config(cfg), cfg.MODEL.GLIPV2.CAPTIONING
    if captioning.MAX_LENGTH > tokenizer.max_content_tokens:
        raise InputError(
            f"MODEL.GLIPV2.CAPTIONING.MAX_LENGTH: expected at most {tokenizer.max_content_tokens} tokens "
            f"(MODEL.TEXT_ENCODER.MAX_TOKENS without special tokens), found {captioning.MAX_LENGTH}"
        )
    special = [index for index in tokenizer.special_ids if index != tokenizer.end_id]
    return GenerationRules(
        start_id=tokenizer.start_id,
        end_id=tokenizer.end_id,
        # An encoder may have room for more ids than the tokenizer has words.
        banned_ids=(*special, *tokenizer.reserved_ids, *range(tokenizer.vocab_size, vocab_size)),
        beam_size=captioning.BEAM_SIZE,
        max_length=captioning.MAX_LENGTH,
        min_length=captioning.MIN_LENGTH,
        length_penalty=captioning.LENGTH_PENALTY,
        no_repeat_ngram=captioning.NO_REPEAT_NGRAM,
    )
