"""Hooks of the trainer: moving average, and checkpoints that hold it."""

from __future__ import annotations

import contextlib
import os

from detectron2.checkpoint import Checkpointer
from detectron2.engine import HookBase
from detectron2.engine.hooks import PeriodicCheckpointer
from torch import Tensor

from ..checkpoint.tuned_weights import save_tuned
from .ema import ModelEMA

# In the folder of a run that tunes less than the whole model.
TUNED_WEIGHTS = "tuned.safetensors"


class EMAHook(HookBase):
    """Update the moving average of the weights after every step.

    Its state belongs to checkpoints that are written while the average is applied, see ``EMACheckpointer``: their
    "model" is the average, and the state here the weights that training goes on with.
    """

    def __init__(self, ema: ModelEMA) -> None:
        self._ema = ema
        self._resumed = False

    def before_train(self) -> None:
        if not self._resumed:
            self._ema.reset()

    def after_step(self) -> None:
        self._ema.update()

    def state_dict(self) -> dict[str, Tensor]:
        return self._ema.state_dict()

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        self._ema.load_state_dict(state_dict)
        self._ema.swap()
        self._resumed = True


class EMACheckpointer(PeriodicCheckpointer):
    """Write checkpoints whose "model" is what evaluation uses: the moving average, if there is one.

    Args:
        checkpointer: Writes them.
        period: Updates between two.
        ema: The moving average.
        max_to_keep: Numbered checkpoints that are kept, the newest; 0: all.
        with_tuned: At the end also write what the run has tuned, alone, see ``save_tuned``.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        period: int,
        ema: ModelEMA | None,
        max_to_keep: int = 0,
        with_tuned: bool = False,
    ) -> None:
        super().__init__(checkpointer, period, max_to_keep=max_to_keep or None)
        self._ema = ema
        self._with_tuned = with_tuned

    def after_step(self) -> None:
        next_iter = self.trainer.iter + 1
        if next_iter % self.period == 0 or next_iter == self.max_iter:
            with self._ema.apply() if self._ema else contextlib.nullcontext():
                super().after_step()
                if next_iter == self.max_iter:
                    self._save_tuned()

    def save_final(self) -> None:
        """Write the last checkpoint of a training that ends early."""
        with self._ema.apply() if self._ema else contextlib.nullcontext():
            self.save("model_final", iteration=self.trainer.iter)
            self._save_tuned()

    def _save_tuned(self) -> None:
        if self._with_tuned:
            save_tuned(self.checkpointer.model, os.path.join(self.checkpointer.save_dir, TUNED_WEIGHTS))
