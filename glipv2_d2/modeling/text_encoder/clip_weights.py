"""Read weights of CLIP-type text transformers from files of CLIP, UniCL and the transformers library."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.utils.file_io import PathManager
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from ...errors import InputError
from ...paths import is_remote
from ...tensor_files import CheckpointError, read_tensors
from .build import read_library_model

_WEIGHTS_KEY = "MODEL.TEXT_ENCODER.WEIGHTS"
_TOKENS = "token_embedding.weight"
_POSITIONS = "positional_embedding"

# Names of the transformers library and ours, outside and inside a layer. Query, key and value are joined separately.
_LIBRARY_TOKENS = "embeddings.token_embedding.weight"
_LIBRARY_POSITIONS = "embeddings.position_embedding.weight"
_RENAMED = {
    _LIBRARY_TOKENS: _TOKENS,
    _LIBRARY_POSITIONS: _POSITIONS,
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_RENAMED_IN_LAYER = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


class ClipTextWeights(NamedTuple):
    """Weights of a CLIP-type text transformer from a file or a folder.

    Attributes:
        tensors: Tensors by their names in ``CLIPTextEncoder``, with all positions (P, D) of the file.
        num_heads: Number of attention heads; None for a file of tensors, which does not show it.
    """

    tensors: dict[str, Tensor]
    num_heads: int | None

    def sizes(self) -> tuple[int, int, int, int]:
        """Read number of token ids, D, number of layers and width of the feed-forward part from the tensors.

        If a tensor that shows a size is missing, the size is guessed, and ``check_clip_text`` names the tensor.
        """
        vocab_size, hidden_size = self.tensors[_TOKENS].shape
        layers = {match[1] for name in self.tensors if (match := re.match(r"resblocks\.(\d+)\.", name))}
        inner = self.tensors.get("resblocks.0.mlp.c_fc.bias")
        return vocab_size, hidden_size, max(len(layers), 1), 4 * hidden_size if inner is None else len(inner)


def load_clip_text(weights: str, allow_download: bool) -> ClipTextWeights:
    """Read the text transformer of a CLIP-type model.

    Args:
        weights: Directory, ``package://PACKAGE/DIRECTORY`` or hub name of a model of the transformers library; or a
            file of tensors with the names of that library, of CLIP or of UniCL, with any prefix.
        allow_download: Fetch a hub name that is not in the local cache.

    Raises:
        FileNotFoundError: Nothing is found at ``weights``.
        InputError: The files are not a CLIP-type text transformer.
    """
    if is_remote(weights) or not os.path.isfile(PathManager.get_local_path(weights)):
        tensors, num_heads = _read_folder(weights, allow_download)
    else:
        try:
            (tensors, _), num_heads = read_tensors(weights), None
        except CheckpointError as error:
            raise InputError(f"{_WEIGHTS_KEY}: {error}") from error
    found = rename_clip_text(tensors)
    if not found:
        raise InputError(
            f"{_WEIGHTS_KEY}: {weights!r}: expected names of a CLIP-type text transformer, such as {_TOKENS!r} beside "
            f"{_POSITIONS!r}, found {next(iter(tensors))!r}"
        )
    for name in (_TOKENS, _POSITIONS):
        if found[name].ndim != 2:
            raise InputError(
                f"{_WEIGHTS_KEY}: {weights!r}: {name}: expected a table, found shape {tuple(found[name].shape)}"
            )
    return ClipTextWeights(found, num_heads)


def check_clip_text(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], weights: str) -> None:
    """Check that a file has every tensor of an encoder in its shape; other tensors are ignored.

    Raises:
        InputError: A tensor is missing, or its shape differs.
    """
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise InputError(f"{_WEIGHTS_KEY}: {weights!r} lacks {len(missing)} tensors of its encoder, as {missing[0]!r}")
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape:
            raise InputError(
                f"{_WEIGHTS_KEY}: {weights!r}: {name}: expected shape {tuple(tensor.shape)}, "
                f"found {tuple(tensors[name].shape)}"
            )


class ClipTextNames(NamedTuple):
    """What the names of a text transformer begin with, and whether they are those of the transformers library."""

    beginning: str
    of_library: bool


def find_clip_text(names: Collection[str]) -> ClipTextNames | None:
    """Find the first beginning of names that has both token and position embeddings; None if there is none."""
    pairs = ((_TOKENS, _POSITIONS), (_LIBRARY_TOKENS, _LIBRARY_POSITIONS))
    for of_library, (tokens, positions) in zip((False, True), pairs, strict=True):
        for beginning in (name.removesuffix(positions) for name in names if name.endswith(positions)):
            if beginning + tokens in names:
                return ClipTextNames(beginning, of_library)
    return None


def rename_clip_text(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of a text transformer the names of ``CLIPTextEncoder``.

    Args:
        tensors: Tensors by their names in CLIP ("transformer.resblocks.0.ln_1.weight"), UniCL
            ("text.resblocks.0.ln_1.weight") or transformers ("text_model.encoder.layers.0.layer_norm1.weight"), also as
            a part of a larger model.

    Returns:
        All tensors with the first prefix that has both token and position embeddings; empty if there is no such prefix.
    """
    found = find_clip_text(tensors)
    if found is None:
        return {}
    start = found.beginning
    inner = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
    if found.of_library:
        return _from_transformers(inner)
    return {name.removeprefix("transformer."): tensor for name, tensor in inner.items()}


def resize_positions(positions: Tensor, num_positions: int) -> Tensor:
    """Resize a table of positions (P, D) bilinearly to (``num_positions``, D), as an image of one column.

    Source: the resizing of UniCL's table in the official code. A table that has the right number stays as it is.
    """
    image = positions.float().T[None, :, :, None]  # (1, D, P, 1)
    resized = F.interpolate(image, size=(num_positions, 1), mode="bilinear", align_corners=False)
    return resized[0, :, :, 0].T


def _from_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {ours: tensors[name] for name, ours in _RENAMED.items() if name in tensors}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if match is None:
            continue
        layer, part, kind = match.groups()
        if part in _RENAMED_IN_LAYER:
            renamed[f"resblocks.{layer}.{_RENAMED_IN_LAYER[part]}.{kind}"] = tensor
        elif part == "self_attn.q_proj":
            names = [f"encoder.layers.{layer}.self_attn.{one}_proj.{kind}" for one in "qkv"]
            if all(one in tensors for one in names):
                renamed[f"resblocks.{layer}.attn.in_proj_{kind}"] = torch.cat([tensors[one] for one in names])
    return renamed


def _read_folder(weights: str, allow_download: bool) -> tuple[dict[str, Tensor], int]:
    """Return the tensors of a text model of transformers, by its names, and its number of heads."""

    def check(config: Any) -> Any:
        # A whole CLIP, or its text model alone.
        config = getattr(config, "text_config", config)
        if not isinstance(config, CLIPTextConfig):
            raise InputError(f"a {config.model_type}, expected a CLIP-type encoder")
        if config.hidden_act != "quick_gelu":
            raise InputError(f"hidden_act {config.hidden_act!r}, expected 'quick_gelu'")
        return config

    model, config = read_library_model(CLIPTextModel, weights, allow_download, check)
    return model.state_dict(), config.num_attention_heads
