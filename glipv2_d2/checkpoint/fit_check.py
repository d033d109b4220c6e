"""Which weights of a file belong to a model."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..tensor_files import CheckpointError
from .glip_conversion import find_layout

# The one layer of a detector without text that belongs to the classes of its data; models that read text have none.
_CLASS_LAYER = "head.cls_logits."
_FLOAT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def without_other_classes(tensors: Mapping[str, Tensor], model_tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file without its class layer, if it differs from the model's in the number of classes.

    Args:
        tensors: Tensors of the file under the names of this package.
        model_tensors: Tensors of the model.

    Returns:
        All others, and a class layer that fits or differs in more than that.
    """
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith(_CLASS_LAYER)
        or name not in model_tensors
        or len(tensor) == len(model_tensors[name])
        or tensor.shape[1:] != model_tensors[name].shape[1:]
    }


def check_fit(tensors: Mapping[str, Tensor], model_tensors: Mapping[str, Tensor], source: str) -> None:
    """Make sure that tensors belong to a model; parts that one of the two lacks altogether are fine.

    Raises:
        CheckpointError: No name is the model's; a shape differs; the towers differ in form; a numbered sequence of
            modules has another length; or the weights use positions and the model does not.
    """
    common = [name for name in tensors if name in model_tensors]
    if not common:
        raise CheckpointError(
            f"{source}: expected names of the model, such as {next(iter(model_tensors))!r}, found "
            f"{next(iter(tensors), None)!r}; none of its {len(tensors)} names is the model's"
        )
    layout, expected_layout = find_layout(tensors), find_layout(model_tensors)
    if layout.num_blocks and expected_layout.num_blocks and layout != expected_layout:
        raise CheckpointError(
            f"{source}: fusion tower: expected {expected_layout.num_blocks} blocks, fusion {expected_layout.fused} "
            f"(MODEL.GLIPV2.TOWER.NUM_BLOCKS, FUSION.ENABLED), found {layout.num_blocks} blocks, fusion {layout.fused}"
        )
    lengths, expected_lengths = _sequence_lengths(tensors), _sequence_lengths(model_tensors)
    for sequence in sorted(lengths.keys() & expected_lengths.keys()):
        if lengths[sequence] != expected_lengths[sequence]:
            raise CheckpointError(
                f"{source}: {sequence}: expected {expected_lengths[sequence]} entries, found {lengths[sequence]}"
            )
    positions = [name for name in tensors if is_position_weight(name) and name not in model_tensors]
    if positions and expected_layout.num_blocks:
        raise CheckpointError(
            f"{source}: {positions[0]}: expected a model with MODEL.GLIPV2.FUSION.POSITIONS True, found one without"
        )
    different = [name for name in common if tensors[name].shape != model_tensors[name].shape]
    if different:
        name = different[0]
        more = f"; {len(different) - 1} more shapes differ" if len(different) > 1 else ""
        raise CheckpointError(
            f"{source}: {name}: expected shape {tuple(model_tensors[name].shape)}, found {tuple(tensors[name].shape)}"
            f"{more}"
        )


def check_update_scales(tensors: Mapping[str, Tensor], model_tensors: Mapping[str, Tensor], source: str) -> None:
    """Make sure that low-rank updates are of the scale that the model multiplies them by.

    Raises:
        CheckpointError: They are of another scale.
    """
    for name, expected in model_tensors.items():
        if name.endswith(".lora.scale") and name in tensors and tensors[name] != expected.cpu():
            raise CheckpointError(
                f"{source}: {name}: expected MODEL.GLIPV2.TUNING.LORA.ALPHA / RANK {expected:g}, "
                f"found {tensors[name]:g}"
            )


def is_position_weight(name: str) -> bool:
    """Tell whether ``MODEL.GLIPV2.FUSION.POSITIONS`` adds the weight of this name."""
    return ".fusion.position_proj." in name


def _sequence_lengths(names: Iterable[str]) -> dict[str, int]:
    """Count the members of each numbered sequence of modules, such as the layers of a transformer."""
    members: dict[str, set[str]] = defaultdict(set)
    for name in names:
        for match in re.finditer(r"\.(\d+)\.", name):
            members[name[: match.start()]].add(match[1])
    return {sequence: len(numbers) for sequence, numbers in members.items()}


def check_values(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    """Check the types and values of the tensors that a model takes.

    Raises:
        CheckpointError: Where the model has floating-point numbers a tensor has others, or one is NaN or infinite.
    """
    for name, tensor in tensors.items():
        if name not in expected or not expected[name].is_floating_point():
            continue
        if tensor.dtype not in _FLOAT_TYPES:
            raise CheckpointError(f"{source}: {name}: expected floating-point numbers, found {tensor.dtype}")
        if tensor.is_meta:
            raise CheckpointError(f"{source}: {name}: expected finite numbers, found a tensor without values")
        if not bool(torch.isfinite(tensor).all()):
            number = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(f"{source}: {name}: expected finite numbers, found {number} NaN or infinite ones")
