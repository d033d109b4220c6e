"""Copies to the device: few, in one piece, and without waiting for what the device has to do before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor

# Every tensor in a piece begins at a multiple of it, in bytes; a view as any type of numbers needs 8.
_ALIGNMENT = 16


def to_device(tensors: Sequence[Tensor], device: torch.device | str) -> list[Tensor]:
    """Copy tensors of the CPU to a device, together in one copy.

    Each tensor by itself would be a copy, and an ordinary copy waits until the device has done all that it was asked
    for before. To CUDA the piece goes from pinned memory and nobody waits.

    Args:
        tensors: Tensors of any types and shapes.
        device: Where to; tensors that are there are returned as they are.
    """
    device = torch.device(device)
    elsewhere = [tensor for tensor in tensors if tensor.device.type != device.type]
    if not elsewhere:
        return list(tensors)
    moved = iter(_to_device(elsewhere, device))
    return [next(moved) if tensor.device.type != device.type else tensor for tensor in tensors]


def _to_device(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    rooms = [-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes]
    packed = torch.empty(sum(rooms), dtype=torch.uint8, pin_memory=device.type == "cuda")
    for tensor, place, size in zip(tensors, packed.split(rooms), sizes, strict=True):
        place[:size].view(tensor.dtype).view(tensor.shape).copy_(tensor)
    places = packed.to(device, non_blocking=True).split(rooms)
    return [
        place[:size].view(tensor.dtype).view(tensor.shape)
        for tensor, place, size in zip(tensors, places, sizes, strict=True)
    ]


def instances_to_device(instances: Sequence[Instances], device: torch.device) -> list[Instances]:
    """Copy ``Instances`` of the CPU to a device: all fields that are plain numbers, boxes or bit masks in one copy."""
    if device.type == "cpu":
        return [one.to(device) for one in instances]
    wrappers = {Boxes, BitMasks}
    fields = [(row, name, value) for row, one in enumerate(instances) for name, value in one.get_fields().items()]
    packed = [(row, name, value) for row, name, value in fields if isinstance(value, Tensor) or type(value) in wrappers]
    numbers = to_device([value if isinstance(value, Tensor) else value.tensor for *_, value in packed], device)
    moved = [one.to("cpu") for one in instances]
    for (row, name, value), tensor in zip(packed, numbers, strict=True):
        moved[row].set(name, tensor if isinstance(value, Tensor) else type(value)(tensor))
    return moved
