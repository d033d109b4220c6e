"""The mean over the processes of a run, which is the identity in a single process."""

from __future__ import annotations

from detectron2.utils import comm
from torch import Tensor, distributed


def reduce_mean(tensor: Tensor) -> Tensor:
    """Average a tensor over all ranks, without a gradient.

    Loss normalizers use it: with the mean of the counts as divisor and gradients averaged over the ranks, as
    ``DistributedDataParallel`` does, the update equals that of one process that sees the whole batch.

    Args:
        tensor: Any shape, floating point, on the device of the process group's backend. Every rank must call this, also
            one whose batch holds nothing to count: it contributes a zero, not an absence.

    Returns:
        A new tensor of the same shape and dtype, equal on all ranks.
    """
    mean = tensor.detach().clone()
    world_size = comm.get_world_size()
    if world_size > 1:
        distributed.all_reduce(mean)
        mean /= world_size
    return mean
