"""Signals that end a run from outside: SIGTERM and SIGUSR1, which schedulers send before they take a machine away."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import torch
from detectron2.engine import HookBase

from ..distributed import reduce_mean

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class RunStopped(BaseException):
    """A signal has ended a run; the message says how it goes on.

    It is not an ``Exception`` because detectron2's loop reports every ``Exception`` as a failure.

    Args:
        signum: The signal.
        message: One line, or several.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.exit_status = 128 + signum


class StopHook(HookBase):
    """Agree after every step, over all ranks, whether a signal has come; the hooks that save have to follow it.

    Attributes:
        requested: All ranks know of a signal.
    """

    def __init__(self) -> None:
        self.requested = False
        self._received = 0
        self._at_once = False

    @property
    def signum(self) -> int:
        """The signal; on a rank that has not got one itself, SIGTERM."""
        return self._received or signal.SIGTERM

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Take note of the signals within the context, where this is the main thread, instead of ending at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        try:
            yield
        except Exception as error:
            if not self._received:
                raise
            # Workers and other ranks that the same signal has ended: what fails now is its consequence.
            name = signal.Signals(self.signum).name
            raise RunStopped(self.signum, f"stopped by {name}; --resume goes on from the last checkpoint") from error
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def immediate(self) -> Iterator[None]:
        """Within the context a signal ends the run at once; so does one that has come before."""
        self._at_once = True
        try:
            if self._received or self.requested:
                self._raise()
            yield
        finally:
            self._at_once = False

    def after_step(self) -> None:
        device = next(self.trainer.model.parameters()).device
        self.requested = bool(reduce_mean(torch.tensor(float(self._received > 0), device=device)) > 0)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        # A launcher may pass on what the whole group of processes has got already.
        is_first = not self._received
        self._received = signum
        if self._at_once and is_first:
            self._raise()

    def _raise(self) -> None:
        name = signal.Signals(self.signum).name
        raise RunStopped(self.signum, f"stopped by {name} in an evaluation; --resume goes on from the last checkpoint")
