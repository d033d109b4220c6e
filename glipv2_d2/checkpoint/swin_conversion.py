"""Names of ImageNet-trained Swin Transformers, as their authors and timm write them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from ..tensor_files import CheckpointError
from .name_rules import ConversionReport, convert_names

BOTTOM_UP = "backbone.bottom_up"

_IGNORED = (
    (r"head\..*", "ImageNet classifier"),
    (r"norm\..*", "norm in front of the ImageNet classifier"),
    (r".*\.attn_mask", "computed from the size of the image"),
)


def is_swin_state_dict(names: Collection[str]) -> bool:
    """Tell from its names whether a state dict is that of a Swin Transformer by itself."""
    return "patch_embed.proj.weight" in names and "layers.0.blocks.0.attn.qkv.weight" in names


def convert_swin_state_dict(
    state_dict: Mapping[str, Tensor],
    *,
    expected: Collection[str] | None = None,
    source: str = "Swin checkpoint",
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Rename the weights of an ImageNet Swin Transformer to those of the bottom-up network.

    Args:
        state_dict: Names and tensors of the authors' code, or of timm, where patch merging begins a stage instead of
            ending the one before. Both merge the four patches in the same order.
        expected: Names that the model has; with them the report lists missing names.
        source: Name of the file for errors.

    Returns:
        The same tensors under our names, and a report on every name. The norms of the network's outputs are not among
        them: a classifier has none.

    Raises:
        CheckpointError: The model has another backbone.
    """
    if expected is not None and f"{BOTTOM_UP}.patch_embed.proj.weight" not in expected:
        raise CheckpointError(
            f"{source}: expected weights of the model's backbone (MODEL.BACKBONE.NAME), found those of another, a Swin "
            "Transformer"
        )
    pairs = {"patch_embed": f"{BOTTOM_UP}.patch_embed", "layers": f"{BOTTOM_UP}.layers"}
    if not any(name.startswith("layers.0.downsample.") for name in state_dict):
        stages = {name.split(".")[1] for name in state_dict if name.startswith("layers.") and ".downsample." in name}
        for stage in stages:
            pairs[f"layers.{stage}.downsample"] = f"{BOTTOM_UP}.layers.{int(stage) - 1}.downsample"
    return convert_names(state_dict, pairs, _IGNORED, source="ImageNet Swin Transformer", expected=expected)
