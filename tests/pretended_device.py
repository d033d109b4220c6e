"""A GPU that is not there: tensors that say they are on ``cuda:0`` while their numbers are on the CPU.

A program that runs on them shows, without a GPU, what would fail or be slow on one: operations on tensors of two
devices, moments at which the CPU waits for the device (a number, a number of rows, a copy to the CPU), copies to the
device, and how many kernels are launched, each with its place in the package. Autocast is that of a GPU, and so is
every branch on ``device.type``. Numbers are those of the CPU; for the kernels of Triton their plain twins run.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from pretended_autocast import cast_by_autocast
from torch.utils._python_dispatch import TorchDispatchMode

import glipv2_d2
from glipv2_d2.modeling.losses import masked_logsumexp

DEVICE = torch.device("cuda", 0)
_PACKAGE = str(Path(glipv2_d2.__file__).parent)
# The CPU waits for a number, or for the number of rows of a result.
_WAITS = {
    *("_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "nms"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"),
}
# They take tensors of two devices.
_MOVES = {"copy_", "_to_copy"}
# Addresses of the memory that was pinned.
_PINNED: set[int] = set()
_INDEXES = {"index", "index_put", "index_put_", "_index_put_impl_"}


class Event(NamedTuple):
    """Something that costs time between two devices.

    Attributes:
        operation: Its name.
        place: The innermost two places in the package, "file:line < file:line".
    """

    operation: str
    place: str


class Traffic:
    """What happened between the pretended device and the CPU.

    Attributes:
        mixed: Operations on tensors of two devices, which a GPU refuses.
        waits: Moments at which the CPU waits for the device. A copy to the device that is not ``non_blocking`` is one.
        copies: Copies to the device.
        unpinned: Copies to the device from memory that is not pinned; the driver copies them twice.
        launches: Number of kernels; views launch none.
    """

    def __init__(self) -> None:
        self.mixed: Counter[Event] = Counter()
        self.waits: Counter[Event] = Counter()
        self.copies: Counter[Event] = Counter()
        self.unpinned: Counter[Event] = Counter()
        self.launches = 0

    def clear(self) -> None:
        """Forget everything."""
        self.__init__()  # type: ignore[misc]

    def __str__(self) -> str:
        """Everything but the launches, the most frequent first."""
        names = ("mixed", "waits", "copies", "unpinned")
        return "\n".join(
            f"{name}: {getattr(self, name).total()}"
            + "".join(f"\n  {count} {one.operation} at {one.place}" for one, count in getattr(self, name).most_common())
            for name in names
        )


class DeviceTensor(torch.Tensor):
    """A tensor on the pretended device; ``numbers`` are its values on the CPU."""

    numbers: torch.Tensor

    @staticmethod
    def __new__(cls, numbers: torch.Tensor) -> DeviceTensor:
        # For the core of torch it is a meta tensor, which needs no driver; only the choice of kernels, and with it
        # autocast, is that of a GPU.
        if numbers.layout is torch.strided:
            shell = torch.empty_strided(numbers.shape, numbers.stride(), dtype=numbers.dtype, device="meta")
        else:
            shell = torch.sparse_coo_tensor(
                size=numbers.shape, dtype=numbers.dtype, device="meta", check_invariants=False
            )
        result = torch.Tensor._make_subclass(cls, shell, False, device_for_backend_keys=DEVICE)
        result.numbers = numbers
        return result

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Move or convert as usual; on the pretended device there is nothing to move."""
        other = next((one for one in (*args, *kwargs.values()) if isinstance(one, torch.Tensor)), None)
        if other is not None:
            return self.to(other.device, other.dtype)
        device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        options: dict[str, Any] = {"memory_format": memory_format} if memory_format is not None else {}
        if device is not None and device.type == "cpu":
            options |= {"device": device, "non_blocking": non_blocking}
        return super().to(dtype=dtype or self.dtype, copy=kwargs.get("copy", False), **options)

    # Left to the core, a list of rows would be moved to "meta", where its numbers are lost.
    def __getitem__(self, index: Any) -> Any:
        """Read rows as usual."""
        return super().__getitem__(_move_lists(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        """Set rows as usual."""
        super().__setitem__(_move_lists(index), value)

    def tolist(self) -> Any:
        """Copy to the CPU and return the numbers."""
        return self.to("cpu").tolist()

    def __repr__(self, **kwargs: Any) -> str:
        """Show the numbers."""
        return f"DeviceTensor({self.numbers})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run without a ``PretendedDevice``, for an optimizer or a test outside of it."""
        return _run(func, args, kwargs or {}, Traffic())


class PretendedDevice(TorchDispatchMode):
    """Within it "cuda" is the pretended device, and ``traffic`` is counted."""

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic = traffic

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation of the core."""
        return _run(func, args, kwargs or {}, self.traffic)


@contextlib.contextmanager
def pretended_device() -> Iterator[Traffic]:
    """Within the context models and tensors can be moved to "cuda"; yields what happens there."""
    lifts, overwrites = torch._C._only_lift_cpu_tensors(), torch.__future__.get_overwrite_module_params_on_conversion()
    # As FakeTensorMode does where there is no driver.
    torch._C._ensureCUDADeviceGuardSet()
    torch._C._set_only_lift_cpu_tensors(True)
    # A parameter cannot become one of another class in place.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    traffic = Traffic()
    patches = {
        "torch.cuda._lazy_init": lambda: None,
        "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
        "torch.cuda.is_bf16_supported": lambda *_, **__: True,
        "torch.Tensor.pin_memory": _pin,
        # Kernels need a GPU; their plain twins do not.
        "glipv2_d2.kernels.contrastive.logsumexp_forward": masked_logsumexp._chunked_forward,
        "glipv2_d2.kernels.contrastive.logsumexp_backward": masked_logsumexp._chunked_backward,
    }
    try:
        with contextlib.ExitStack() as stack:
            for name, patch in patches.items():
                stack.enter_context(mock.patch(name, patch))
            stack.enter_context(cast_by_autocast(DeviceTensor))
            stack.enter_context(PretendedDevice(traffic))
            yield traffic
    finally:
        _PINNED.clear()
        torch._C._set_only_lift_cpu_tensors(lifts)
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)


def _pin(tensor: torch.Tensor, *_: Any) -> torch.Tensor:
    pinned = tensor.clone()
    _PINNED.add(pinned.untyped_storage().data_ptr())
    return pinned


def _move_lists(index: Any) -> Any:
    if isinstance(index, (list, np.ndarray)):
        return torch.tensor(index, device=DEVICE)
    return tuple(map(_move_lists, index)) if isinstance(index, tuple) else index


def _run(func: Any, args: Any, kwargs: dict[str, Any], traffic: Traffic) -> Any:
    tensors: list[torch.Tensor] = []
    _map(tensors.append, (*args, *kwargs.values()))
    here = [one for one in tensors if isinstance(one, DeviceTensor)]
    assert not any(one.is_meta for one in tensors), f"{func}: the core made a tensor without numbers at {_place()}"
    # The core takes the device of a DeviceTensor for "meta".
    asked = kwargs.get("device")
    goes_here = not _is_cpu(asked) and (bool(here) or asked is not None)
    if here or goes_here:
        _count(func, args, kwargs, tensors, traffic)
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    pins = kwargs.get("pin_memory")
    kwargs = {name: False if name in ("pin_memory", "non_blocking") else value for name, value in kwargs.items()}
    kwargs = {name: _map(_numbers, value) for name, value in kwargs.items()}
    result = func(*_map(_numbers, args), **kwargs)
    if not goes_here:
        if pins:
            _PINNED.add(result.untyped_storage().data_ptr())
        return result
    if torch.Tag.inplace_view in func.tags:
        # The shape changes in place: that of the numbers has, that of the shell follows.
        with torch._C._DisableTorchDispatch():
            func(*args)
    # What is changed in place stays the same tensor.
    known = {id(tensor.numbers): tensor for tensor in here}
    return _map(lambda one: known[id(one)] if id(one) in known else DeviceTensor(one), result)


def _map(change: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """Change the tensors in lists and tuples; pytree is several times slower."""
    if isinstance(value, torch.Tensor):
        return change(value)
    return type(value)([_map(change, one) for one in value]) if type(value) in (list, tuple) else value


def _numbers(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.numbers if isinstance(tensor, DeviceTensor) else tensor


def _count(func: Any, args: Any, kwargs: dict[str, Any], tensors: list[torch.Tensor], traffic: Traffic) -> None:
    """Count what an operation with tensors on the device, or with a result there, costs."""
    name = func._schema.name.split("::")[1]
    event = functools.partial(_event, name)
    here = any(isinstance(one, DeviceTensor) for one in tensors)
    elsewhere = [one for one in tensors if not isinstance(one, DeviceTensor) and one.ndim]
    target_is_here = isinstance(args[0], DeviceTensor) if args else False
    if name in _MOVES:
        source = args[-1] if name == "_to_copy" else args[1]
        from_here = isinstance(source, DeviceTensor)
        to_here = target_is_here if name == "copy_" else not (from_here and _is_cpu(kwargs.get("device")))
        if from_here != to_here:
            _count_copy(event, source, to_here, kwargs.get("non_blocking") or args[2:] == (True,), traffic)
    elif name in _INDEXES and target_is_here:
        indexes = [one for one in args[1] if isinstance(one, torch.Tensor)]
        masks = [one for one in indexes if one.dtype in (torch.bool, torch.uint8)]
        # A mask and one number are filled in without a list of places.
        if masks and not (name == "index_put_" and args[2].numel() == 1):
            traffic.waits[event()] += 1
        for index in indexes:
            if not isinstance(index, DeviceTensor):
                _count_copy(event, index, True, False, traffic)
    elif here and elsewhere:
        traffic.mixed[event()] += 1
    if here and (name in _WAITS or (name == "repeat_interleave" and kwargs.get("output_size") is None)):
        traffic.waits[event()] += 1
    results = func._schema.returns
    if not results or results[0].alias_info is None or results[0].alias_info.is_write:
        traffic.launches += 1


def _count_copy(
    event: Callable[[], Event], source: torch.Tensor, to_here: bool, non_blocking: bool, traffic: Traffic
) -> None:
    if not non_blocking:
        traffic.waits[event()] += 1
    if to_here:
        traffic.copies[event()] += 1
        if source.untyped_storage().data_ptr() not in _PINNED:
            traffic.unpinned[event()] += 1


def _is_cpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cpu"


def _event(operation: str) -> Event:
    return Event(operation, _place())


def _place() -> str:
    """Return the innermost two places in the package, or those that asked for a copy."""
    places: list[str] = []
    frame = sys._getframe(1)
    while frame is not None and len(places) < 2:
        code = frame.f_code
        if code.co_filename.startswith(_PACKAGE) and not code.co_filename.endswith("device_copies.py"):
            places.append(f"{code.co_filename[len(_PACKAGE) + 1 :]}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(places)
