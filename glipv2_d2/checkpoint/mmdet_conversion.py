"""Names of GLIP as mmdetection 3 converts it, and the order in which its Swin Transformer merges patches.

Source: mmdetection's converter of the official files and its GLIP model. Neither was at hand: the rules follow its
documented behaviour and were not compared with one of its files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from torch import Tensor

from ..tensor_files import CheckpointError
from .glip_conversion import convert_glip_state_dict
from .name_rules import ConversionReport, translate_name

# Beginnings of mmdetection's names, with those of the official names.
_BEGINNINGS = {
    "backbone.patch_embed.projection": "backbone.body.patch_embed.proj",
    "backbone.patch_embed.norm": "backbone.body.patch_embed.norm",
    "backbone.stages": "backbone.body.layers",
    **{f"backbone.norm{stage}": f"backbone.body.norm{stage}" for stage in (1, 2, 3)},
    **{f"neck.lateral_convs.{index}.conv": f"backbone.fpn.fpn_inner{index + 2}" for index in range(3)},
    **{f"neck.fpn_convs.{index}.conv": f"backbone.fpn.fpn_layer{index + 2}" for index in range(3)},
    "neck.fpn_convs.3.conv": "backbone.fpn.top_blocks.p6",
    "neck.fpn_convs.4.conv": "backbone.fpn.top_blocks.p7",
    "language_model.language_backbone": "language_backbone",
    "bbox_head.head": "rpn.head",
}
# Inner parts of names: in a block of the Swin Transformer, and in an image layer of the tower.
_INSIDE = {
    ".attn.w_msa.": ".attn.",
    ".ffn.layers.0.0.": ".mlp.fc1.",
    ".ffn.layers.1.": ".mlp.fc2.",
    ".dyconvs.": ".DyConv.",
    ".attnconv.": ".AttnConv.",
}
_TOWER = "bbox_head.head.dyhead_tower."


def is_mmdet_state_dict(names: Collection[str]) -> bool:
    """Tell from its names whether a state dict is GLIP in mmdetection."""
    return any(name.startswith(_TOWER) for name in names)


def official_name(name: str) -> str | None:
    """Return the official name of a tensor of mmdetection's GLIP; None if it has none."""
    official = translate_name(name, _BEGINNINGS)
    if official is None:
        return None
    for theirs, part in _INSIDE.items():
        official = official.replace(theirs, part)
    return official


def convert_mmdet_state_dict(
    state_dict: Mapping[str, Tensor],
    *,
    expected: Collection[str] | None = None,
    source: str = "mmdetection checkpoint",
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Rename the weights of mmdetection's GLIP to those of ``GLIPv2``.

    Args:
        state_dict: Names and tensors.
        expected: See ``convert_glip_state_dict``.
        source: Name of the file for errors.

    Returns:
        The same tensors under our names, those of patch merging in the official order; and a report on every name.

    Raises:
        CheckpointError: The tower is not a tower of GLIP, or a patch merging does not merge four patches.
    """
    official, origins, unknown = {}, {}, []
    for name, tensor in state_dict.items():
        translated = official_name(name)
        if translated is None:
            unknown.append(name)
            continue
        origins[translated] = name
        official[translated] = _official_order(tensor, name, source) if ".downsample." in name else tensor
    tensors, report = convert_glip_state_dict(official, expected=expected, source=source)
    return tensors, dataclasses.replace(
        report,
        source=f"mmdetection's {report.source}",
        used={origins[name]: ours for name, ours in report.used.items()},
        ignored={origins[name]: reason for name, reason in report.ignored.items()},
        unknown=(*unknown, *(origins[name] for name in report.unknown)),
    )


def _official_order(tensor: Tensor, name: str, source: str) -> Tensor:
    """Reorder the inputs of a patch merging, the last dimension of the tensor (..., 4C).

    mmdetection unfolds the map: channel after channel, each with its four patches row by row. The official code stacks
    the patches, each with all its channels: top left, bottom left, top right, bottom right.
    """
    if tensor.ndim == 0 or tensor.shape[-1] % 4:
        raise CheckpointError(f"{source}: {name}: expected inputs of four patches, found shape {tuple(tensor.shape)}")
    by_patch = tensor.unflatten(-1, (-1, 4)).transpose(-1, -2)  # (..., 4, C)
    return by_patch[..., [0, 2, 1, 3], :].flatten(-2)
