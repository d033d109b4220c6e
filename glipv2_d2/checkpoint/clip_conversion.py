"""Weights of image-text models, CLIP and UniCL: their text transformer, and their image tower if it is a Swin."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from ..modeling.text_encoder.clip_weights import find_clip_text, rename_clip_text, resize_positions
from ..tensor_files import CheckpointError
from .name_rules import ConversionReport
from .swin_conversion import BOTTOM_UP, convert_swin_state_dict, is_swin_state_dict

_ENCODER = "text_encoder"
_TOKENS = "token_embedding.weight"
_POSITIONS = "positional_embedding"
_PATCHES = "patch_embed.proj.weight"
# Names of a text transformer that the encoder has too.
_TEXT_NAMES = re.compile(r"token_embedding\.weight|positional_embedding|(ln_final|resblocks)\..+")

_IGNORED = (
    (r"(.*\.)?(text|image|visual)_projection(\..*)?|(.*\.)?logit_(scale|bias)", "comparison of whole images and texts"),
    (r".*\.(position_ids|attn_mask)", "constant"),
    (r"(.*\.)?(visual|vision_model)\..*", "image tower that is not a Swin Transformer"),
)


def is_clip_state_dict(names: Collection[str]) -> bool:
    """Tell from its names whether a state dict holds the text transformer of an image-text model, and no detector."""
    has_tower = any(name.startswith("fusion_tower.") for name in names)
    return not has_tower and find_clip_text(names) is not None


def convert_clip_state_dict(
    state_dict: Mapping[str, Tensor],
    *,
    expected: Mapping[str, Tensor] | None = None,
    source: str = "CLIP checkpoint",
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Rename the weights of an image-text model to those of the text encoder and of the bottom-up network.

    Args:
        state_dict: Names and tensors of CLIP, UniCL or CLIP in the transformers library.
        expected: Tensors of the model, if it is known: positions are resized to their number in the model, and a part
            that the model lacks is left out.
        source: Name of the file for errors.

    Returns:
        The same tensors under our names, query, key and value of a layer joined; and a report on every name.

    Raises:
        CheckpointError: The positions are not a table, or the model has none of the parts.
    """
    # Each tensor becomes an object of its own, by which its name is found again.
    state_dict = {name: tensor.detach() for name, tensor in state_dict.items()}
    text = {name: t for name, t in rename_clip_text(state_dict).items() if _TEXT_NAMES.fullmatch(name)}
    used = {old: f"{_ENCODER}.{new}" for old, new in _text_names(state_dict, text).items()}
    tensors = {f"{_ENCODER}.{name}": tensor for name, tensor in text.items()}
    swin, swin_used, ignored = _convert_swin(state_dict)
    tensors.update(swin)
    used.update(swin_used)
    if expected is not None:
        tensors, used = _keep_known_parts(tensors, used, ignored, expected, source)
        _resize(tensors, expected, source)
    for name in state_dict.keys() - used.keys() - ignored.keys():
        reason = next((reason for pattern, reason in _IGNORED if re.fullmatch(pattern, name)), None)
        if reason is not None:
            ignored[name] = reason
    unknown = tuple(name for name in state_dict if name not in used and name not in ignored)
    missing = tuple(name for name in expected or () if name not in tensors)
    return tensors, ConversionReport("image-text model", used, ignored, unknown, missing)


def _text_names(state_dict: Mapping[str, Tensor], text: Mapping[str, Tensor]) -> dict[str, str]:
    """Map the name of each tensor of the text transformer in the file to its new name."""
    names = {id(tensor): name for name, tensor in state_dict.items()}
    used = {names[id(tensor)]: new for new, tensor in text.items() if id(tensor) in names}
    found = find_clip_text(state_dict)
    if found is not None and found.of_library:
        beginning = found.beginning
        for name in state_dict:
            part = re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.[qkv]_proj\.(\w+)", name.removeprefix(beginning))
            if part and name.startswith(beginning) and (new := f"resblocks.{part[1]}.attn.in_proj_{part[2]}") in text:
                used[name] = new
    return used


def _convert_swin(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """Convert the Swin Transformer in a file; return tensors, names used and names ignored, empty without one."""
    for beginning in [name.removesuffix(_PATCHES) for name in state_dict if name.endswith(_PATCHES)]:
        inner = {n.removeprefix(beginning): t for n, t in state_dict.items() if n.startswith(beginning)}
        if is_swin_state_dict(inner):
            tensors, report = convert_swin_state_dict(inner)
            used = {beginning + name: ours for name, ours in report.used.items()}
            return tensors, used, {beginning + name: reason for name, reason in report.ignored.items() if beginning}
    return {}, {}, {}


def _keep_known_parts(
    tensors: dict[str, Tensor],
    used: dict[str, str],
    ignored: dict[str, str],
    expected: Mapping[str, Tensor],
    source: str,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Leave out the text or the image part if the model has another in its place; ``ignored`` gets the reason."""
    reasons = {}
    if f"{_ENCODER}.{_TOKENS}" not in expected:
        reasons[_ENCODER] = "the model has a text encoder of another type"
    if f"{BOTTOM_UP}.{_PATCHES}" not in expected:
        reasons[BOTTOM_UP] = "the model has another backbone"
    for part, reason in reasons.items():
        ignored.update({old: reason for old, new in used.items() if new.startswith(part + ".")})
    tensors = {n: t for n, t in tensors.items() if not n.startswith(tuple(part + "." for part in reasons))}
    if not tensors:
        raise CheckpointError(
            f"{source}: expected weights for the model, found an image-text model, but {' and '.join(reasons.values())}"
        )
    return tensors, {old: new for old, new in used.items() if old not in ignored}


def _resize(tensors: dict[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    name = f"{_ENCODER}.{_POSITIONS}"
    if name not in tensors:
        return
    if tensors[name].ndim != 2:
        raise CheckpointError(f"{source}: {name}: expected a table, found shape {tuple(tensors[name].shape)}")
    if len(tensors[name]) != len(expected[name]):
        tensors[name] = resize_positions(tensors[name], len(expected[name])).contiguous()
