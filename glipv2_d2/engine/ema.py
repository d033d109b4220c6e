"""Exponential moving average of the weights of a model, and the hook that keeps it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..distributed import own_part, placed_like
from ..errors import InputError


class ModelEMA:
    """Keep a moving average of the trainable parameters and floating-point buffers of a model.

    Frozen parameters are their own average and take no memory here. The average starts as the weights at
    construction.

    Args:
        model: The model that is trained, not wrapped.
        decay: Share of the old average that an update keeps, in (0, 1).
        warmup: Update number n, from 0, keeps at most (1 + n) / (10 + n): a short run forgets its first weights.

    Source: ``ModelEma`` of the official code, which has no warm-up; that one is ``ExponentialMovingAverage`` of
    TensorFlow.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = False) -> None:
        if not 0 < decay < 1:
            raise InputError(f"SOLVER.EMA_DECAY: expected 0 (off) or a number between 0 and 1, found {decay}")
        self._live = _averaged_tensors(model)
        self._average = {name: tensor.detach().clone() for name, tensor in self._live.items()}
        self._decay = decay
        self._warmup = warmup

    @torch.no_grad()
    def update(self, number: int = 0) -> None:
        """Move the average towards the weights: average = decay * average + (1 - decay) * weights.

        Args:
            number: Updates before this one; only the warm-up reads it.
        """
        decay = min(self._decay, (1 + number) / (10 + number)) if self._warmup else self._decay
        get_ema_multi_avg_fn(decay)(*self._parts(), None)

    @torch.no_grad()
    def reset(self) -> None:
        """Start again from the present weights."""
        torch._foreach_copy_(*self._parts())

    @contextlib.contextmanager
    def apply(self) -> Iterator[None]:
        """Within the context the model holds the average; after it, its own weights, bit for bit."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights of the model and the average."""
        average, live = self._parts()
        weights = [tensor.clone() for tensor in live]
        torch._foreach_copy_(live, average)
        torch._foreach_copy_(average, weights)

    def _parts(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the averages and the weights; of sharded ones what this rank holds."""
        average, live = ([own_part(tensor) for tensor in group.values()] for group in (self._average, self._live))
        return average, live

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the model does not hold at this moment: the average, or within ``apply`` its own weights."""
        return dict(self._average)

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Read what ``state_dict`` returned.

        Raises:
            InputError: The names are not those of the model.
        """
        if state_dict.keys() != self._average.keys():
            names = sorted(state_dict.keys() ^ self._average.keys())
            raise InputError(
                f"moving average in the checkpoint: expected the names of the model, found {len(names)} that only "
                f"one of them has, such as {names[0]!r}"
            )
        for name, tensor in state_dict.items():
            self._average[name].copy_(placed_like(tensor, self._average[name]))


def averaged(ema: ModelEMA | None) -> contextlib.AbstractContextManager[None]:
    """Return a context within which the model holds its average, if there is one: for evaluations and checkpoints."""
    return ema.apply() if ema else contextlib.nullcontext()


class EMAHook(HookBase):
    """Update the moving average of the weights after every step.

    Checkpoints are written while the average is applied, see ``EMACheckpointer``: their "model" is the average, and
    the state of this hook is the weights that training goes on with.
    """

    def __init__(self, ema: ModelEMA) -> None:
        self._ema = ema
        self._resumed = False

    def before_train(self) -> None:
        if not self._resumed:
            self._ema.reset()

    def after_step(self) -> None:
        self._ema.update(self.trainer.iter)

    def state_dict(self) -> dict[str, Tensor]:
        return self._ema.state_dict()

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        self._ema.load_state_dict(state_dict)
        self._ema.swap()
        self._resumed = True


def _averaged_tensors(model: nn.Module) -> dict[str, Tensor]:
    saved = model.state_dict().keys()
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    buffers = {name: b for name, b in model.named_buffers() if name in saved and b.is_floating_point()}
    return {**parameters, **buffers}
