"""Triton kernels of ``masked_logsumexp``: tiles of scores are computed and used on the chip and never stored.

Shapes: A rows, B columns, E numbers of a vector. One program owns a block of vectors and walks over all blocks of the
other side. Products are exact float32, without the shortened mantissas of tensor cores. No sum is
atomic, so results repeat bit for bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import InputError

# Number of vectors in a tile, and the most numbers of a vector that are loaded at a time. With prefetching, tiles take
# 64 KiB of shared memory.
BLOCK_SIZE = 64
MAX_WIDTH = 64
# With fewer warps the accumulators do not fit into the registers.
NUM_WARPS = 8


@triton.jit
def _load_tile(vectors, first, count, begin, dim, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """Load a tile: vectors from ``first`` on, their numbers from ``begin`` on, with zeros past the ends."""
    rows = first + tl.arange(0, BLOCK)
    numbers = begin + tl.arange(0, WIDTH)
    pointers = vectors + rows.to(tl.int64)[:, None] * dim + numbers[None, :]
    return tl.load(pointers, mask=(rows < count)[:, None] & (numbers < dim)[None, :], other=0.0)


@triton.jit
def _load_entries(values, first, count, default, BLOCK: tl.constexpr):
    """Load a block of a vector, with a default past its end."""
    rows = first + tl.arange(0, BLOCK)
    return tl.load(values + rows, mask=rows < count, other=default)


@triton.jit
def _masked_scores(
    owns, others, own_group, other_groups, first, num_owns, start, num_others, dim,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Return the products of two blocks of vectors; minus infinity for ignored pairs and past the last other vector."""
    scores = tl.zeros((BLOCK, BLOCK), tl.float32)
    for begin in range(0, dim, WIDTH):
        own = _load_tile(owns, first, num_owns, begin, dim, BLOCK, WIDTH)
        other = _load_tile(others, start, num_others, begin, dim, BLOCK, WIDTH)
        scores = tl.dot(own, tl.trans(other), scores, input_precision="ieee")
    other_group = _load_entries(other_groups, start, num_others, -1, BLOCK)
    grouped = (own_group[:, None] >= 0) & (other_group[None, :] >= 0)
    ignored = grouped & (own_group[:, None] != other_group[None, :])
    outside = (start + tl.arange(0, BLOCK) >= num_others)[None, :]
    return tl.where(ignored | outside, float("-inf"), scores)


@triton.jit
def _forward_kernel(
    rows, columns, row_groups, column_groups, result, num_rows, num_columns, dim,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * BLOCK
    own_group = _load_entries(row_groups, first, num_rows, -1, BLOCK)
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, num_columns, BLOCK):
        scores = _masked_scores(
            rows, columns, own_group, column_groups, first, num_rows, start, num_columns, dim, BLOCK, WIDTH
        )
        new_largest = tl.maximum(largest, tl.max(scores, axis=1))
        # A row without a column so far has the largest score -inf, and -inf - (-inf) would be NaN.
        base = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        total = total * tl.exp(largest - base) + tl.sum(tl.exp(scores - base[:, None]), axis=1)
        largest = new_largest
    own_rows = first + tl.arange(0, BLOCK)
    tl.store(result + own_rows, largest + tl.log(total), mask=own_rows < num_rows)


@triton.jit
def _backward_kernel(
    owns, others, own_groups, other_groups, logsumexps, grads, own_grads, num_owns, num_others, dim,
    OWN_ARE_ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Compute a tile of the gradient of one side: of the rows, which own the log-sum-exps, or of the columns."""
    first = tl.program_id(0) * BLOCK
    begin = tl.program_id(1) * WIDTH
    own_group = _load_entries(own_groups, first, num_owns, -1, BLOCK)
    total = tl.zeros((BLOCK, WIDTH), tl.float32)
    for start in range(0, num_others, BLOCK):
        scores = _masked_scores(
            owns, others, own_group, other_groups, first, num_owns, start, num_others, dim, BLOCK, WIDTH
        )
        if OWN_ARE_ROWS:
            logsumexp = _load_entries(logsumexps, first, num_owns, float("inf"), BLOCK)[:, None]
            grad = _load_entries(grads, first, num_owns, 0.0, BLOCK)[:, None]
        else:
            logsumexp = _load_entries(logsumexps, start, num_others, float("inf"), BLOCK)[None, :]
            grad = _load_entries(grads, start, num_others, 0.0, BLOCK)[None, :]
        shares = tl.exp(scores - logsumexp) * grad
        other = _load_tile(others, start, num_others, begin, dim, BLOCK, WIDTH)
        total = tl.dot(shares, other, total, input_precision="ieee")
    own_rows = first + tl.arange(0, BLOCK)
    numbers = begin + tl.arange(0, WIDTH)
    pointers = own_grads + own_rows.to(tl.int64)[:, None] * dim + numbers[None, :]
    tl.store(pointers, total, mask=(own_rows < num_owns)[:, None] & (numbers < dim)[None, :])


def _width(dim: int) -> int:
    """Return how many numbers of a vector a tile holds: a power of 2, at least the 16 that ``tl.dot`` needs."""
    return max(16, min(MAX_WIDTH, triton.next_power_of_2(dim)))


def logsumexp_forward(rows: Tensor, columns: Tensor, row_groups: Tensor, column_groups: Tensor) -> Tensor:
    """Compute ``masked_logsumexp``, (A,), of contiguous float32 vectors (A, E) and (B, E).

    Raises:
        InputError: The tensors are not on a CUDA device.
    """
    # Under TRITON_INTERPRET=1 the decorator makes another type of function, which runs on any device.
    if isinstance(_forward_kernel, triton.JITFunction) and not rows.is_cuda:
        raise InputError(f"masked_logsumexp: form 'triton' needs tensors on a CUDA device, found {rows.device}")
    result = rows.new_empty(len(rows))
    if len(rows):
        grid = (triton.cdiv(len(rows), BLOCK_SIZE),)
        with torch.cuda.device_of(rows):
            _forward_kernel[grid](
                rows,
                columns,
                row_groups.to(torch.int32),
                column_groups.to(torch.int32),
                result,
                len(rows),
                len(columns),
                rows.shape[1],
                BLOCK=BLOCK_SIZE,
                WIDTH=_width(rows.shape[1]),
                num_warps=NUM_WARPS,
            )
    return result


def logsumexp_backward(
    rows: Tensor, columns: Tensor, row_groups: Tensor, column_groups: Tensor, result: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of rows and columns from the result of ``logsumexp_forward`` and its gradient, (A,)."""
    row_side, column_side = (rows, row_groups.to(torch.int32)), (columns, column_groups.to(torch.int32))
    # A row without a column: -inf - inf is -inf, not NaN, and its exponential is 0.
    result = result.masked_fill(result == -torch.inf, torch.inf)
    width = _width(rows.shape[1])
    gradients = []
    for own_side, other_side, own_are_rows in ((row_side, column_side, True), (column_side, row_side, False)):
        (owns, own_groups), (others, other_groups) = own_side, other_side
        own_grads = torch.empty_like(owns)
        if len(owns):
            grid = (triton.cdiv(len(owns), BLOCK_SIZE), triton.cdiv(owns.shape[1], width))
            with torch.cuda.device_of(owns):
                _backward_kernel[grid](
                    owns,
                    others,
                    own_groups,
                    other_groups,
                    result,
                    grad,
                    own_grads,
                    len(owns),
                    len(others),
                    owns.shape[1],
                    OWN_ARE_ROWS=own_are_rows,
                    BLOCK=BLOCK_SIZE,
                    WIDTH=width,
                    num_warps=NUM_WARPS,
                )
        gradients.append(own_grads)
    return gradients[0], gradients[1]
