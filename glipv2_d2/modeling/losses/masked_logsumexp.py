"""Log-sum-exps over all pairs of two sets without storing the pairs: the heavy part of the contrastive loss."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOGSUMEXP_FORMS = ("auto", "chunked", "triton")
# Pairs that the chunked form holds at a time: 4 MiB in single precision, a few times over.
CHUNK_PAIRS = 2**20


def masked_logsumexp(
    rows: Tensor, columns: Tensor, row_groups: Tensor, column_groups: Tensor, form: str = "auto"
) -> Tensor:
    """Return log sum_b exp(rows[a] . columns[b]) for each row a, over the columns that are not ignored.

    A pair is ignored if both of its groups are at least 0 and differ. Memory grows with A + B, not with A x B, also in
    the backward pass, which computes the products again.

    Args:
        rows: (A, E).
        columns: (B, E).
        row_groups: (A,) int64, -1 for no group.
        column_groups: (B,) int64.
        form: "chunked" is plain torch for any device and precision. "triton" is a kernel for CUDA in single precision.
            "auto" takes the kernel where it can run.

    Returns:
        (A,); minus infinity for a row without a column, which sends back no gradient.

    Raises:
        ValueError: The form is unknown, or the kernel does not run on such tensors.
    """
    return _MaskedLogSumExp.apply(rows, columns, row_groups, column_groups, _choose_form(form, rows))


def ignored_pairs(row_groups: Tensor, column_groups: Tensor) -> Tensor:
    """Return (A, B) bool, True where both groups are at least 0 and differ."""
    rows, columns = row_groups[:, None], column_groups[None]
    return (rows >= 0) & (columns >= 0) & (rows != columns)


def _choose_form(form: str, vectors: Tensor) -> str:
    if form not in LOGSUMEXP_FORMS:
        raise ValueError(f"masked_logsumexp form: expected one of {', '.join(LOGSUMEXP_FORMS)}, found {form!r}")
    if form == "auto":
        runs = vectors.is_cuda and vectors.dtype == torch.float32 and importlib.util.find_spec("triton")
        return "triton" if runs else "chunked"
    if form == "triton" and vectors.dtype != torch.float32:
        raise ValueError(f"masked_logsumexp: form 'triton' needs float32 vectors, found {vectors.dtype}")
    return form


class _MaskedLogSumExp(torch.autograd.Function):
    """Keep only inputs and result for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, row_groups: Tensor, column_groups: Tensor, form: str
    ) -> Tensor:
        rows, columns = rows.contiguous(), columns.contiguous()
        if form == "triton":
            from ...kernels.contrastive import logsumexp_forward
        else:
            logsumexp_forward = _chunked_forward
        result = logsumexp_forward(rows, columns, row_groups, column_groups)
        ctx.save_for_backward(rows, columns, row_groups, column_groups, result)
        ctx.form = form
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        if ctx.form == "triton":
            from ...kernels.contrastive import logsumexp_backward
        else:
            logsumexp_backward = _chunked_backward
        rows, columns, row_groups, column_groups, result = ctx.saved_tensors
        gradients = logsumexp_backward(rows, columns, row_groups, column_groups, result, grad.contiguous())
        return *gradients, None, None, None


def _chunks(num_rows: int, num_columns: int) -> Iterator[slice]:
    size = max(1, CHUNK_PAIRS // max(1, num_columns))
    for start in range(0, num_rows, size):
        yield slice(start, start + size)


def _scores(rows: Tensor, columns: Tensor, row_groups: Tensor, column_groups: Tensor) -> Tensor:
    """Return the products of some rows with all columns, minus infinity where ignored."""
    scores = rows @ columns.T
    return scores.masked_fill_(ignored_pairs(row_groups, column_groups), -torch.inf)


def _chunked_forward(rows: Tensor, columns: Tensor, row_groups: Tensor, column_groups: Tensor) -> Tensor:
    result = rows.new_empty(len(rows))
    for chunk in _chunks(len(rows), len(columns)):
        result[chunk] = _scores(rows[chunk], columns, row_groups[chunk], column_groups).logsumexp(dim=1)
    return result


def _chunked_backward(
    rows: Tensor, columns: Tensor, row_groups: Tensor, column_groups: Tensor, result: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    grad_rows, grad_columns = torch.empty_like(rows), torch.zeros_like(columns)
    # All scores of a row without a column are minus infinity, and stay so when a finite number is subtracted.
    result = result.masked_fill(result == -torch.inf, 0.0)
    for chunk in _chunks(len(rows), len(columns)):
        scores = _scores(rows[chunk], columns, row_groups[chunk], column_groups)
        shares = scores.sub_(result[chunk, None]).exp_().mul_(grad[chunk, None])
        torch.mm(shares, columns, out=grad_rows[chunk])
        grad_columns.addmm_(shares.T, rows[chunk])
    return grad_rows, grad_columns
