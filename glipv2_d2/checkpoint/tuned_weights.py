"""Files of the weights that a tuning trains: small, and applied over the weights that the tuning started from."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..modeling.tuning import Tuning, noted_buffers, tuned_tensors
from ..tensor_files import CheckpointError, read_tensors, write_tensors

# Value of the metadata entry "format".
_FORMAT = "glipv2_tuned_1"
# Parts that every tuning starts from; heads of single tasks may come and go.
_BASE_PARTS = ("backbone", "text_encoder", "fusion_tower", "head")


def save_tuned(model: nn.Module, path: str | os.PathLike) -> None:
    """Write the weights that the tuning of a model trains as safetensors, whole or not at all.

    The metadata hold the mode, its settings, and the hash of the weights that do not train, see ``base_hash``.

    Args:
        model: A ``GLIPv2`` whose ``tuning`` is not "full".
        path: File to write.

    Raises:
        InputError: Everything trains, which is not a tuning.
    """
    tuning = _tuning_of(model)
    tensors = tuned_tensors(model, tuning)
    metadata = {"format": _FORMAT, "mode": tuning.mode, **tuning.settings, "base_sha256": base_hash(model, tensors)}
    write_tensors(path, {name: tensor.cpu() for name, tensor in tensors.items()}, metadata)


def load_tuned(model: nn.Module, path: str | os.PathLike) -> None:
    """Apply a file of ``save_tuned`` to a model that holds the weights it was tuned from.

    Other weights than those are a warning, not an error, since files of the same weights may differ in type. What heads
    note of the data may be missing in the file or in the model.

    Raises:
        CheckpointError: The file was not written by ``save_tuned``, is of another mode or other settings, or its names
            or shapes are not those that the model tunes.
        FileNotFoundError: There is no such file.
        InputError: The model tunes everything.
    """
    tuning = _tuning_of(model)
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path}: expected tuned weights (format {_FORMAT!r}), found "
            f"{metadata.get('format', 'a file without this entry')!r}"
        )
    for key, expected in {"mode": tuning.mode, **tuning.settings}.items():
        if metadata.get(key) != expected:
            name = "MODEL.GLIPV2.TUNING.MODE" if key == "mode" else f"MODEL.GLIPV2.TUNING.LORA.{key.upper()}"
            raise CheckpointError(
                f"{path}: {name}: expected weights of {expected!r}, which the config says, found {metadata.get(key)!r}"
            )
    tuned = tuned_tensors(model, tuning)
    _check_tuned(tensors, tuned, str(path))
    with torch.no_grad():
        for name in tuned.keys() & tensors.keys():
            tuned[name].copy_(tensors[name])
    found = base_hash(model, tuned)
    if found != metadata.get("base_sha256"):
        logging.getLogger(__name__).warning(
            "%s was tuned from other weights than those of the model: expected the hash %.12s, found %.12s",
            path,
            metadata.get("base_sha256"),
            found,
        )


def base_hash(model: nn.Module, tuned_names: Collection[str]) -> str:
    """Return the SHA-256 of the weights of a detector except the tuned ones: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.partition(".")[0] in _BASE_PARTS and name not in tuned_names:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _tuning_of(model: nn.Module) -> Tuning:
    tuning: Any = model.tuning
    if tuning.mode == "full":
        raise InputError(
            "MODEL.GLIPV2.TUNING.MODE: expected another mode than 'full' for a file of tuned weights, found 'full'"
        )
    return tuning


def _check_tuned(tensors: dict[str, Tensor], tuned: dict[str, Tensor], source: str) -> None:
    different = sorted((tensors.keys() ^ tuned.keys()) - noted_buffers())
    if different:
        side = "found, but nothing that the model tunes" if different[0] in tensors else "expected, not found"
        raise CheckpointError(
            f"{source}: expected the weights that the model tunes, of which {len(different)} names differ: "
            f"{different[0]} is {side}; MODEL.GLIPV2.TUNING.MASK_HEAD and the parts have to be those of the training"
        )
    for name in sorted(tuned.keys() & tensors.keys()):
        if tensors[name].shape != tuned[name].shape:
            raise CheckpointError(
                f"{source}: {name}: expected shape {tuple(tuned[name].shape)}, found {tuple(tensors[name].shape)}"
                f"{_hint(name)}"
            )


def _hint(name: str) -> str:
    if not name.startswith("prompt_tuner."):
        return ""
    return " (a row for each token of the longest prompt, of the hidden size of the text encoder)"
