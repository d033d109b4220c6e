"""Matrix products in single precision without gradients, by the library that is fastest on the CPU at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_PLAIN = ContextVar("plain", default=False)

# From this many multiplications on, a product of oneDNN is not slower than one of MKL (one thread, 128 x 64 x 128: both
# 20 microseconds; 64 x 64 x 64: 14 and 8).
MIN_PRODUCTS = 2**20


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """Compute ``F.linear``, followed by a GELU if asked for.

    Where ``uses_onednn`` says so, oneDNN computes the product. It has kernels for AVX-512 on processors of every maker;
    MKL, which torch calls, stops at AVX2 on some: 105 against 240 GFLOP/s on one core of an AMD EPYC (Zen 5).

    Args:
        x: (..., K).
        weight: (O, K).
        bias: (O,) or None.
        gelu: Apply the exact GELU.

    Returns:
        (..., O).
    """
    if uses_onednn(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "none")
    product = F.linear(x, weight, bias)
    return F.gelu(product) if gelu else product


def per_head(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply each of H heads by a matrix of its own, by ``linear`` where that calls oneDNN.

    Args:
        x: (N, H, T, K).
        weight: (H, O, K).

    Returns:
        (N, H, T, O).
    """
    if not uses_onednn(x[:, 0], weight[0]):
        return x @ weight.transpose(1, 2)
    # oneDNN has no fast kernel for rows with a gap between them; transposed ones it reads as they are.
    matrices = [one if one.t().is_contiguous() else one.contiguous() for one in weight]
    return torch.stack([linear(one, matrix) for one, matrix in zip(x.unbind(1), matrices, strict=True)], dim=1)


def apply(layer: nn.Linear, x: Tensor, gelu: bool = False) -> Tensor:
    """Apply a linear layer as ``linear`` does; small products call the layer itself, with its hooks."""
    if uses_onednn(x, layer.weight):
        return linear(x, layer.weight, layer.bias, gelu)
    return F.gelu(layer(x)) if gelu else layer(x)


def library_layers() -> AbstractContextManager:
    """Let the linear layers of other libraries compute their products by ``linear``, within this context."""
    skipped = torch.is_grad_enabled() or torch.compiler.is_compiling()
    return nullcontext() if skipped else _LinearMode()


class _LinearMode(TorchFunctionMode):
    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is F.linear and not kwargs:
            return linear(*args)
        return func(*args, **(kwargs or {}))


def uses_onednn(x: Tensor, weight: Tensor) -> bool:
    """Tell whether ``linear`` calls oneDNN: for large products in float32 on a CPU with AVX-512, without gradients."""
    return (
        is_cpu_inference(x)
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * len(weight) >= MIN_PRODUCTS
        and torch._C._get_mkldnn_enabled()
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def is_cpu_inference(x: Tensor) -> bool:
    """Tell whether what is computed from ``x`` may take a form for CPUs that has no gradients.

    That is so without gradients, autocast and tracing (for compilation or export), in single precision at least.
    """
    return (
        # A subclass of Tensor may say that it is elsewhere, or have no numbers.
        type(x) in (Tensor, nn.Parameter)
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not _PLAIN.get()
    )


@contextmanager
def plain_forms() -> Iterator[None]:
    """Compute as elsewhere, without the forms for CPUs, in this thread: to compare results and times."""
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)
