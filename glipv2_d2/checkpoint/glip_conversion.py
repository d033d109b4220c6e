"""Names of the official GLIP checkpoints, and those that this package has for them.

Source: names and shapes of GLIP-T (A), (B), (C), GLIP-T and GLIP-L as the official code builds them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ..modeling.heads.table import HEADS
from ..tensor_files import CheckpointError, unwrap_weights
from .name_rules import ConversionReport, convert_names

# Official name, our name. An entry covers the tensor of that name and everything below it. {block} counts the blocks of
# the tower; {fusion}, {text} and {image} are the indices of a block's three layers in the official flat sequence.
_TOWER = "rpn.head.dyhead_tower"
_FUSION = (_TOWER + ".{fusion}.b_attn", "fusion_tower.blocks.{block}.fusion")
_TEXT = (_TOWER + ".{text}", "fusion_tower.blocks.{block}.language_layer")
_IMAGE = (_TOWER + ".{image}", "fusion_tower.blocks.{block}.dyconv")

_OUTSIDE_THE_TOWER = (
    ("backbone.body", "backbone.bottom_up"),
    ("backbone.fpn.fpn_inner2", "backbone.fpn_lateral3"),
    ("backbone.fpn.fpn_inner3", "backbone.fpn_lateral4"),
    ("backbone.fpn.fpn_inner4", "backbone.fpn_lateral5"),
    ("backbone.fpn.fpn_layer2", "backbone.fpn_output3"),
    ("backbone.fpn.fpn_layer3", "backbone.fpn_output4"),
    ("backbone.fpn.fpn_layer4", "backbone.fpn_output5"),
    ("backbone.fpn.top_blocks", "backbone.top_block"),
    ("language_backbone.body.model", "text_encoder.bert"),
    ("rpn.head.bbox_pred", "head.bbox_pred"),
    ("rpn.head.centerness", "head.centerness"),
    ("rpn.head.scales", "head.scales"),
    ("rpn.head.dot_product_projection_text", "head.text_projection"),
    ("rpn.head.log_scale", "head.log_scale"),
    ("rpn.head.bias_lang", "head.bias_lang"),
    ("rpn.head.bias0", "head.bias0"),
    ("rpn.head.mlm_head.transform.dense", "mlm_head.dense"),
    ("rpn.head.mlm_head.transform.LayerNorm", "mlm_head.norm"),
    ("rpn.head.mlm_head.decoder", "mlm_head.decoder"),
    ("rpn.head.mlm_head.bias", "mlm_head.decoder.bias"),
    ("rpn.loss_evaluator.shallow_contrastive_projection_image", "contrastive_head.image_projection"),
    ("rpn.loss_evaluator.shallow_contrastive_projection_text", "contrastive_head.text_projection"),
    ("rpn.loss_evaluator.shallow_log_scale", "contrastive_head.log_scale"),
)
_FUSION_LAYER = (
    ("layer_norm_v", "norm_visual"),
    ("layer_norm_l", "norm_language"),
    ("gamma_v", "gamma_visual"),
    ("gamma_l", "gamma_language"),
    ("attn.v_proj", "attention.visual_proj"),
    ("attn.l_proj", "attention.language_proj"),
    ("attn.values_v_proj", "attention.visual_value_proj"),
    ("attn.values_l_proj", "attention.language_value_proj"),
    ("attn.out_v_proj", "attention.visual_out_proj"),
    ("attn.out_l_proj", "attention.language_out_proj"),
)
_TEXT_LAYER = (
    ("attention.self.query", "query"),
    ("attention.self.key", "key"),
    ("attention.self.value", "value"),
    ("attention.output.dense", "attention_output"),
    ("attention.output.LayerNorm", "attention_norm"),
    ("intermediate.dense", "intermediate"),
    ("output.dense", "output"),
    ("output.LayerNorm", "output_norm"),
)
_IMAGE_LAYER = (
    *((f"DyConv.{index}.conv", f"convs.{index}.conv") for index in range(3)),
    *((f"DyConv.{index}.bn", f"convs.{index}.norm") for index in range(3)),
    ("offset", "offset"),
    ("AttnConv.1", "level_attention"),
    ("relu.fc", "relu.fc"),
)

# Names that a detector does not use, with the reason.
_IGNORED = (
    (r"rpn\.head\.cls_logits\..*", "classification branch that nothing reads"),
    (r"rpn\.anchor_generator\..*", "anchors come from the config"),
    (r"language_backbone\.body\.model\.pooler\..*", "pooled sentence that nothing reads"),
    (r".*\.position_ids", "constant"),
    (r"rpn\.head\.contrastive_align_projection_.*", "contrastive alignment of the pre-training"),
    (r"rpn\.loss_evaluator\.(?!shallow_).*", "loss without a counterpart"),
    (r"rpn\.(resizer|tunable_linear)\..*", "prompt tuning"),
)
# Heads that only a training needs, with the reason to leave them out of a model without them.
OPTIONAL_PARTS = {
    name: f"head of {entry.key}, which the model does not train with"
    for name, entry in HEADS.items()
    if not entry.gives_results
}


class TowerLayout(NamedTuple):
    """Form of a tower.

    Attributes:
        num_blocks: Number of blocks, 0 without a tower.
        fused: Whether its blocks fuse image and text, as in all released models except GLIP-T (A).
    """

    num_blocks: int
    fused: bool


def is_glip_state_dict(names: Collection[str]) -> bool:
    """Tell from its names whether a state dict is one of the official code."""
    return any(name.startswith(("rpn.head.", "language_backbone.", "backbone.body.")) for name in names)


def convert_glip_state_dict(
    state_dict: Mapping[str, Any],
    *,
    expected: Collection[str] | None = None,
    ema: bool = False,
    source: str = "GLIP checkpoint",
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Rename the weights of an official GLIP model to those of ``GLIPv2``.

    Args:
        state_dict: Official names and tensors, with or without the prefix "module.", alone or as "model" of a whole
            checkpoint.
        expected: Names that the model has. With them the report lists missing names, and heads that only a
            pre-training has are left out of a model without them.
        ema: Take the moving average that the checkpoint keeps beside the weights.
        source: Name of the file for errors.

    Returns:
        The same tensors under our names, and a report on every name.

    Raises:
        CheckpointError: This is not a GLIP checkpoint, or its tower is neither that of GLIP-T (A) nor a fused one.
    """
    tensors = unwrap_weights(state_dict, source, ema=ema)
    if not is_glip_state_dict(tensors):
        raise CheckpointError(
            f"{source}: expected names of the official GLIP code, such as 'rpn.head.bias0', "
            f"found {next(iter(tensors))!r}"
        )
    layout = find_official_layout(tensors, source)
    kind = f"GLIP, {layout.num_blocks} blocks {'with' if layout.fused else 'without'} fusion"
    return convert_names(
        tensors, _name_pairs(layout), _IGNORED, source=kind, expected=expected, optional_parts=OPTIONAL_PARTS
    )


def find_layout(names: Iterable[str]) -> TowerLayout:
    """Read the form of the tower from our names."""
    parts = [match.groups() for name in names if (match := re.match(r"fusion_tower\.blocks\.(\d+)\.(\w+)\.", name))]
    return TowerLayout(len({block for block, _ in parts}), any(part == "fusion" for _, part in parts))


def find_official_layout(names: Iterable[str], source: str) -> TowerLayout:
    """Read the form of the tower from official names.

    The index of a layer alone does not say its kind: entry 3 is a DyConv in GLIP-T (A) and a fusion in the others.

    Raises:
        CheckpointError: The image layers are neither all entries nor every third.
    """
    parts = [match.groups() for name in names if (match := re.match(_TOWER + r"\.(\d+)\.(\w+)\.", name))]
    indices = sorted({int(index) for index, part in parts if part == "DyConv"})
    fused = any(part == "b_attn" for _, part in parts)
    released = [3 * block + 2 if fused else block for block in range(len(indices))]
    if indices != released:
        raise CheckpointError(
            f"{source}: expected the DyConv layers of the {'fused' if fused else 'unfused'} tower at {released}, "
            f"found them at {indices}"
        )
    return TowerLayout(len(indices), fused)


def _name_pairs(layout: TowerLayout) -> dict[str, str]:
    """Write the table out for every block of a tower."""
    tables = [(_IMAGE, _IMAGE_LAYER)]
    if layout.fused:
        tables += [(_FUSION, _FUSION_LAYER), (_TEXT, _TEXT_LAYER)]
    pairs = dict(_OUTSIDE_THE_TOWER)
    for block in range(layout.num_blocks):
        first = 3 * block if layout.fused else block
        indices = {"fusion": first, "text": first + 1, "image": first + 2 if layout.fused else first, "block": block}
        for (official_layer, our_layer), table in tables:
            for official, ours in table:
                pairs[f"{official_layer.format(**indices)}.{official}"] = f"{our_layer.format(**indices)}.{ours}"
    return pairs
