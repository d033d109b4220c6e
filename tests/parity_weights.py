"""Re-create the weights of the parity fixtures: every tensor is a function of its official name and shape."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

TINY_FOLDER = Path(__file__).parent / "assets" / "parity" / "tiny"
TINY_SALT = "tiny-24:"

# Standard deviation times the square root of the fan-in, for linear layers and convolutions whose name holds the key.
GAINS = {
    "dot_product_projection_text": 12.0,
    "AttnConv": 4.0,
    "bbox_pred": 3.0,
    ".relu.fc.": 2.0,
    ".self.query": 2.0,
    ".self.key": 2.0,
    ".attn.v_proj": 2.0,
    ".attn.l_proj": 2.0,
    ".output.dense": 0.5,
}

# Mean and standard deviation of the tensors with a last name of their own.
NAMED = {
    "gamma_v": (0.5, 0.1),
    "gamma_l": (0.5, 0.1),
    "bias0": (-4.5, 0.1),
    "bias_lang": (0.0, 0.5),
    "log_scale": (0.0, 0.1),
    "shallow_log_scale": (0.0, 0.1),
    "scale": (1.0, 0.1),
    "relative_position_bias_table": (0.0, 0.2),
    "bias": (0.0, 0.05),
}


def tensor_for(name: str, shape: tuple[int, ...] | list[int], salt: str) -> np.ndarray:
    """Give the float32 value of a tensor of the official state dict (name without ``module.``).

    Source: the rule of the parity fixtures' own description.
    """
    if name.endswith("mlm_head.decoder.bias"):  # one parameter with two names
        name = name.replace("mlm_head.decoder.bias", "mlm_head.bias")
    seed = zlib.crc32((salt + name).encode())
    noise = np.random.default_rng(seed).standard_normal(tuple(shape))
    mean, deviation = _mean_and_deviation(name, tuple(shape))
    return np.asarray(mean + deviation * noise, np.float64).astype(np.float32)


def _mean_and_deviation(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    last = name.rsplit(".", 1)[-1]
    if last in NAMED:
        return NAMED[last]
    if last == "weight" and len(shape) == 1:  # norms
        return 1.0, 0.1
    if "_embeddings.weight" in name:
        return 0.0, 0.1
    gain = next((gain for key, gain in GAINS.items() if key in name), 1.0)
    return 0.0, gain / np.sqrt(np.prod(shape[1:]))


def official_state_dict(
    json_path: str | Path = TINY_FOLDER / "weights.json",
    salt: str = TINY_SALT,
    prefix: str = "",
    renamings: Sequence[tuple[str, str]] = (),
) -> dict[str, Tensor]:
    """Build the official state dict whose names and shapes a json file lists, or a part of it.

    Args:
        json_path: File with name -> {"shape", "by_rule"}. Tensors that are not made by the rule are left out.
        salt: The salt of the rule.
        prefix: Only the tensors whose names start so are made; it is cut off.
        renamings: Pairs (old, new) of name parts, replaced one after the other in what is left of the names.
    """
    tensors = {}
    for official, fact in json.loads(Path(json_path).read_text()).items():
        if fact["by_rule"] and official.startswith(prefix):
            name = official[len(prefix) :]
            for old, new in renamings:
                name = name.replace(old, new)
            tensors[name] = torch.from_numpy(tensor_for(official, fact["shape"], salt))
    return tensors


def load_tiny(file_name: str) -> dict[str, Tensor]:
    """Read the arrays of one file of the tiny fixture."""
    with np.load(TINY_FOLDER / file_name) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
