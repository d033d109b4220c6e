"""Communication between the processes of a run: means, rows whose number differs by rank, and sharded tensors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from detectron2.utils import comm
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable


def reduce_mean(tensor: Tensor) -> Tensor:
    """Average a tensor over all ranks, without a gradient; in a single process the tensor stays as it is.

    Loss normalizers use it. With the mean of the counts as divisor, and gradients averaged over the ranks as
    ``DistributedDataParallel`` does, the update equals that of one process with the whole batch.

    Args:
        tensor: Any shape, floating point, on the device of the process group's backend. Every rank must call this. A
            rank whose batch has nothing to count contributes a zero.

    Returns:
        A new tensor of the same shape and dtype, equal on all ranks.
    """
    mean = tensor.detach().clone()
    world_size = comm.get_world_size()
    if world_size > 1:
        distributed.all_reduce(mean)
        mean /= world_size
    return mean


def mean_over_ranks(total: Tensor, count: float) -> Tensor:
    """Divide the sum of a loss, a scalar, by the mean of its ``count`` over all ranks.

    Once gradients are averaged over the ranks it is the mean over all that count on any rank. Without any it is 0.
    """
    # One that counts on one rank is a mean count of 1 / ranks.
    return total / reduce_mean(total.new_full((), count)).clamp(min=1 / comm.get_world_size())


def max_over_ranks(tensor: Tensor) -> None:
    """Give a tensor, in place, the largest value of all ranks at each place; every rank calls this."""
    if comm.get_world_size() > 1:
        distributed.all_reduce(tensor, op=distributed.ReduceOp.MAX)


class GatheredRows(NamedTuple):
    """Rows of all ranks, those of rank 0 first.

    Attributes:
        vectors: (total, d) float32.
        labels: (total, k) int64.
        start: Index of the first row of this rank.
    """

    vectors: Tensor
    labels: Tensor
    start: int


def gather_with_grad(sets: Sequence[tuple[Tensor, Tensor]], capacity: int) -> list[GatheredRows]:
    """Collect sets of rows of all ranks in one collective operation, with gradients back to the rank of each row.

    The gradient of a row is the sum of the gradients of all ranks, in one more collective operation. Every rank must
    call this and run the backward pass through ``vectors``, even a rank without rows. On a device the CPU waits once,
    for the numbers of rows.

    Args:
        sets: For each set vectors, (n, d) float32, and labels, (n, k) int64 in the range of int32, which are carried
            along without a gradient. n may differ between the ranks and may be 0; d + k is at least the number of sets.
        capacity: The most rows of a rank in all sets, equal on all ranks. Every rank sends this many, so that no rank
            has to ask the others for their numbers first.

    Returns:
        Each set as it is on all ranks.

    Raises:
        ValueError: There are more rows than the capacity, or the vectors are not float32.
    """
    vectors, labels = (torch.cat(parts) for parts in zip(*sets, strict=True))
    if vectors.dtype != torch.float32:
        raise ValueError(f"gather_with_grad: expected float32 vectors, found {vectors.dtype}")
    if len(vectors) > capacity:
        raise ValueError(f"gather_with_grad: expected at most {capacity} rows, found {len(vectors)}")
    world_size, rank = comm.get_world_size(), comm.get_rank()
    if world_size == 1:
        return [GatheredRows(*one, 0) for one in sets]
    # One integer tensor holds the bits of everything; its first row holds the numbers of rows that count.
    rows = torch.cat((vectors.detach().contiguous().view(torch.int32), labels.to(torch.int32)), dim=1)
    parcel = rows.new_zeros(1 + capacity, rows.shape[1])
    for number, (own, _) in enumerate(sets):
        parcel[0, number] = len(own)
    parcel[1 : 1 + len(rows)] = rows
    parcels = parcel.new_empty(world_size * len(parcel), parcel.shape[1])
    distributed.all_gather_into_tensor(parcels, parcel)
    parcels = parcels.view(world_size, *parcel.shape)
    counts = parcels[:, 0, : len(sets)].tolist()
    pieces = [parcel[1 : 1 + sum(own)].split(own) for parcel, own in zip(parcels, counts, strict=True)]
    everything = torch.cat([piece for of_set in zip(*pieces, strict=True) for piece in of_set])
    totals = [sum(of_set) for of_set in zip(*counts, strict=True)]
    starts = [sum(of_set[:rank]) for of_set in zip(*counts, strict=True)]
    begins = [begin + start for begin, start in zip(accumulate(totals, initial=0), starts, strict=False)]
    own_rows = [slice(begin, begin + count) for begin, count in zip(begins, counts[rank], strict=True)]
    values = everything[:, : vectors.shape[1]].contiguous().view(torch.float32)
    values = _RowsOfAllRanks.apply(vectors, values, own_rows).split(totals)
    gathered_labels = everything[:, vectors.shape[1] :].to(torch.int64).split(totals)
    return [GatheredRows(*one) for one in zip(values, gathered_labels, starts, strict=True)]


class _RowsOfAllRanks(torch.autograd.Function):
    """Gathered values, connected with the rows of this rank."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, values: Tensor, own_rows: list[slice]) -> Tensor:
        ctx.own_rows = own_rows
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        total = grad.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return torch.cat([total[rows] for rows in ctx.own_rows]), None, None


def is_sharded(model: nn.Module) -> bool:
    """Say whether each rank holds a part of every parameter."""
    return any(map(_is_part, model.parameters()))


def whole_tensor(tensor: Tensor) -> Tensor:
    """Return a sharded tensor as a whole, on all ranks, which all call this; any other as it is."""
    part: Any = tensor
    return part.full_tensor() if _is_part(tensor) else tensor


def whole_tensors(content: Any) -> Any:
    """Replace sharded tensors in nested dicts, lists and tuples by whole ones on the CPU.

    Every rank calls this with the same content. Only the first gets the tensors, the others None in their place.
    """
    if _is_part(content):
        whole = whole_tensor(content)
        return whole.cpu() if comm.is_main_process() else None
    if isinstance(content, dict):
        return {key: whole_tensors(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(map(whole_tensors, content))
    return content


def placed_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """Return a whole tensor, the same on all ranks, in the parts of one that is sharded; for any other, as it is."""
    if not _is_part(reference):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    part: Any = reference
    device = part.device_mesh.device_type
    return distribute_tensor(tensor.to(device), part.device_mesh, part.placements)


def own_part(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this rank holds, in the same memory; all of one that is not sharded."""
    part: Any = tensor
    return part.to_local() if _is_part(tensor) else tensor


def _is_part(value: Any) -> bool:
    # Only what shards a model imports the module, which takes half a second.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)
