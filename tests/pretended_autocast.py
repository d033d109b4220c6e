"""Autocast of a GPU for tensors that only say they are on one: torch's own casts what is really there."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torchvision  # noqa: F401  registers operators that are cast, too
from torch.utils._pytree import tree_leaves, tree_map_only

_KEY = "AutocastCUDA"
# Operators that run in the type of autocast, and those that run in the widest type of their arguments, as listed at
# https://docs.pytorch.org/docs/stable/amp.html. All others that autocast knows run in single precision.
_LOWER = {
    *("_convolution", "addbmm", "addmm", "addmv", "addr", "baddbmm", "bmm", "chain_matmul", "conv1d", "conv2d"),
    *("conv3d", "conv_tbc", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution", "einsum"),
    *("linalg_multi_dot", "linalg_vecdot", "linear", "matmul", "mm", "mv", "prelu", "scaled_dot_product_attention"),
}
_WIDEST = {
    *("addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "grid_sampler", "index_put", "scatter_add"),
    *("tensordot", "vdot"),
}


@contextlib.contextmanager
def cast_by_autocast(device_tensor: type[torch.Tensor]) -> Iterator[None]:
    """Within the context autocast of "cuda" casts tensors of this class."""
    libraries = {name: torch.library.Library(name, "IMPL") for name in ("aten", "torchvision")}
    with warnings.catch_warnings():
        # That kernels of torch are replaced, which is what this is for.
        warnings.simplefilter("ignore")
        for full_name in torch._C._dispatch_get_registrations_for_dispatch_key(_KEY):
            namespace, _, name = full_name.partition("::")
            name, _, overload = name.partition(".")
            operator = getattr(getattr(getattr(torch.ops, namespace), name), overload or "default")
            libraries[namespace].impl(operator, _kernel(operator, name, device_tensor), _KEY, allow_override=True)
    try:
        yield
    finally:
        for library in libraries.values():
            library._destroy()


def _kernel(operator: Any, name: str, device_tensor: type[torch.Tensor]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, device_tensor)]
        floats = [one.dtype for one in tensors if one.dtype in (torch.float16, torch.bfloat16, torch.float32)]
        if name in _LOWER:
            dtype = torch.get_autocast_dtype("cuda")
        elif name in _WIDEST:
            dtype = max(floats, key=lambda one: one.itemsize, default=torch.float32)
        else:
            dtype = torch.float32

        def cast(tensor: torch.Tensor) -> torch.Tensor:
            is_cast = tensor.is_floating_point() and tensor.dtype != torch.float64
            return tensor.to(dtype) if is_cast else tensor

        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)):
            if kwargs.get("dtype") is None:
                args, kwargs = tree_map_only(device_tensor, cast, (args, kwargs))
            result = operator(*args, **kwargs)
            # The operators of torchvision return the type that they were given.
            returns = operator.namespace == "torchvision" and name != "nms" and floats
            return result.to(floats[0]) if returns else result

    return run
