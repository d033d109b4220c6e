"""Checkpoints that are written while training goes on: a copy of what they hold, and the thread that writes it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import torch
from torch import Tensor, nn


class BackgroundWriter:
    """Do one piece of work at a time on a thread of its own; the end of the program waits for it."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "checkpoint")
        self._running: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin a piece of work, as soon as the one before has ended.

        Raises:
            Exception: That of the work before.
        """
        self.finish()
        self._running = self._executor.submit(work)

    def check(self) -> None:
        """Raise the exception of the work if it has failed already; do not wait for it."""
        if self._running is not None and self._running.done():
            self.finish()

    def finish(self) -> None:
        """Wait for the work.

        Raises:
            Exception: That of the work; once.
        """
        if self._running is None:
            return
        # A signal may end the waiting, but not the work.
        wait([self._running])
        ended, self._running = self._running, None
        ended.result()


def copied(content: dict[str, Any]) -> dict[str, Any]:
    """Copy nested plain values and tensors, these to the CPU, so that ``torch.save`` writes the same bytes of both.

    What is one object, or one memory of several tensors, is one in the copy too. On a GPU the bytes differ by the name
    of the device.
    """
    storages: dict[int, torch.UntypedStorage] = {}
    copies: dict[int, Any] = {}
    for tensor in _dense_tensors(content):
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in storages:
            storages[key] = storage.clone() if storage.device.type == "cpu" else storage.cpu()
        place = (tensor.storage_offset(), tensor.size(), tensor.stride())
        moved = torch.empty(0, dtype=tensor.dtype).set_(storages[key], *place)
        is_parameter = isinstance(tensor, nn.Parameter)
        copies[id(tensor)] = nn.Parameter(moved, tensor.requires_grad) if is_parameter else moved
    return copy.deepcopy(content, copies)


def _dense_tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.layout == torch.strided:
            yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _dense_tensors(item)
