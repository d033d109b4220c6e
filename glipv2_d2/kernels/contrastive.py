"""Triton kernels of ``masked_logsumexp``: tiles of scores are computed and used on the chip and never stored.

Shapes: A rows, B columns, E numbers of a vector. One program owns a block of vectors and walks over all blocks of the
other side. Tensor cores make each float32 product of three products of shorter mantissas (tf32x3): a score is then as
exact as one in float32, whose sums round more than that. No sum is atomic, so results repeat bit for bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import InputError

# Vectors that a program owns, vectors of the other side that it reads at a time, and the most numbers of a vector that
# it reads at a time for scores, and has gradients of. Larger tiles, or fewer warps, do not fit into the registers of
# sm_80; tests/kernels/test_compiled_kernels.py compiles them.
OWN_BLOCK = 64
OTHER_BLOCK = 32
MAX_WIDTH = 32
MAX_GRADIENT_WIDTH = 128
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
    OWN: tl.constexpr, OTHER: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Return the products of two blocks of vectors; minus infinity for ignored pairs and past the last other vector."""
    scores = tl.zeros((OWN, OTHER), tl.float32)
    for begin in range(0, dim, WIDTH):
        own = _load_tile(owns, first, num_owns, begin, dim, OWN, WIDTH)
        other = _load_tile(others, start, num_others, begin, dim, OTHER, WIDTH)
        scores = tl.dot(own, tl.trans(other), scores, input_precision="tf32x3")
    other_group = _load_entries(other_groups, start, num_others, -1, OTHER)
    grouped = (own_group[:, None] >= 0) & (other_group[None, :] >= 0)
    ignored = grouped & (own_group[:, None] != other_group[None, :])
    outside = (start + tl.arange(0, OTHER) >= num_others)[None, :]
    return tl.where(ignored | outside, float("-inf"), scores)


@triton.jit
def _forward_kernel(
    rows, columns, row_groups, column_groups, result, num_rows, num_columns, dim,
    OWN: tl.constexpr, OTHER: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * OWN
    own_group = _load_entries(row_groups, first, num_rows, -1, OWN)
    largest = tl.full((OWN,), float("-inf"), tl.float32)
    total = tl.zeros((OWN,), tl.float32)
    for start in range(0, num_columns, OTHER):
        scores = _masked_scores(
            rows, columns, own_group, column_groups, first, num_rows, start, num_columns, dim, OWN, OTHER, WIDTH
        )
        new_largest = tl.maximum(largest, tl.max(scores, axis=1))
        # A row without a column so far has the largest score -inf, and -inf - (-inf) would be NaN.
        base = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        total = total * tl.exp(largest - base) + tl.sum(tl.exp(scores - base[:, None]), axis=1)
        largest = new_largest
    own_rows = first + tl.arange(0, OWN)
    tl.store(result + own_rows, largest + tl.log(total), mask=own_rows < num_rows)


@triton.jit
def _backward_kernel(
    owns, others, own_groups, other_groups, logsumexps, grads, own_grads, num_owns, num_others, dim,
    OWN_ARE_ROWS: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, WIDTH: tl.constexpr,
    GRADIENT_WIDTH: tl.constexpr,
):  # fmt: skip
    """Compute a tile of the gradient of one side: of the rows, which own the log-sum-exps, or of the columns."""
    first = tl.program_id(0) * OWN
    begin = tl.program_id(1) * GRADIENT_WIDTH
    own_group = _load_entries(own_groups, first, num_owns, -1, OWN)
    total = tl.zeros((OWN, GRADIENT_WIDTH), tl.float32)
    for start in range(0, num_others, OTHER):
        scores = _masked_scores(
            owns, others, own_group, other_groups, first, num_owns, start, num_others, dim, OWN, OTHER, WIDTH
        )
        if OWN_ARE_ROWS:
            logsumexp = _load_entries(logsumexps, first, num_owns, float("inf"), OWN)[:, None]
            grad = _load_entries(grads, first, num_owns, 0.0, OWN)[:, None]
        else:
            logsumexp = _load_entries(logsumexps, start, num_others, float("inf"), OTHER)[None, :]
            grad = _load_entries(grads, start, num_others, 0.0, OTHER)[None, :]
        shares = tl.exp(scores - logsumexp) * grad
        other = _load_tile(others, start, num_others, begin, dim, OTHER, GRADIENT_WIDTH)
        total = tl.dot(shares, other, total, input_precision="tf32x3")
    own_rows = first + tl.arange(0, OWN)
    numbers = begin + tl.arange(0, GRADIENT_WIDTH)
    pointers = own_grads + own_rows.to(tl.int64)[:, None] * dim + numbers[None, :]
    tl.store(pointers, total, mask=(own_rows < num_owns)[:, None] & (numbers < dim)[None, :])


def _width(dim: int, most: int) -> int:
    """Return how many numbers of a vector a tile holds: a power of 2, at least the 16 that ``tl.dot`` needs."""
    return max(16, min(most, triton.next_power_of_2(dim)))


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
        grid = (triton.cdiv(len(rows), OWN_BLOCK),)
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
                OWN=OWN_BLOCK,
                OTHER=OTHER_BLOCK,
                WIDTH=_width(rows.shape[1], MAX_WIDTH),
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
    gradient_width = _width(rows.shape[1], MAX_GRADIENT_WIDTH)
    gradients = []
    for own_side, other_side, own_are_rows in ((row_side, column_side, True), (column_side, row_side, False)):
        (owns, own_groups), (others, other_groups) = own_side, other_side
        own_grads = torch.empty_like(owns)
        if len(owns):
            grid = (triton.cdiv(len(owns), OWN_BLOCK), triton.cdiv(owns.shape[1], gradient_width))
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
                    OWN=OWN_BLOCK,
                    OTHER=OTHER_BLOCK,
                    WIDTH=_width(rows.shape[1], MAX_WIDTH),
                    GRADIENT_WIDTH=gradient_width,
                    num_warps=NUM_WARPS,
                )
        gradients.append(own_grads)
    return gradients[0], gradients[1]
