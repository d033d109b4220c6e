"""Hooks of the trainer: moving average, checkpoints that hold it, and images that cannot be read."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from detectron2.checkpoint import Checkpointer
from detectron2.engine import HookBase
from detectron2.engine.hooks import PeriodicCheckpointer

from ..distributed import reduce_mean
from .ema import ModelEMA

# Shares of fewer images than this say little.
MIN_DRAWN_IMAGES = 100


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
    """Write checkpoints whose "model" is what evaluation uses: the moving average, if there is one."""

    def __init__(self, checkpointer: Checkpointer, period: int, ema: ModelEMA | None) -> None:
        super().__init__(checkpointer, period)
        self._ema = ema

    def after_step(self) -> None:
        next_iter = self.trainer.iter + 1
        if next_iter % self.period == 0 or next_iter == self.max_iter:
            with self._ema.apply() if self._ema else contextlib.nullcontext():
                super().after_step()


class SkippedImagesHook(HookBase):
    """Count the images that the data loader could not read, and stop when they are too many.

    Args:
        max_share: Largest share of unreadable images among all that were drawn, in [0, 1].
    """

    def __init__(self, max_share: float) -> None:
        self._max_share = max_share
        self._files: dict[str, None] = {}
        self._counts = torch.zeros(2)

    def watch(self, loader: Iterable[list[dict[str, Any]]]) -> Iterator[list[dict[str, Any]]]:
        """Yield the batches of a loader unchanged; samples list unreadable files under ``skipped_files``."""
        for batch in loader:
            for sample in batch:
                files = sample.get("skipped_files", ())
                self._files.update(dict.fromkeys(files))
                self._counts += torch.tensor([len(files), len(files) + 1])
            yield batch

    def after_step(self) -> None:
        """Raise an error past the allowed share.

        Raises:
            ValueError: Too many images could not be read; the message names one.
        """
        device = next(self.trainer.model.parameters()).device
        skipped, drawn = reduce_mean(self._counts.to(device)).tolist()
        if drawn >= MIN_DRAWN_IMAGES and skipped > self._max_share * drawn:
            example = f", such as {next(iter(self._files))}" if self._files else " on other ranks"
            raise ValueError(
                f"training images: expected at most {self._max_share:.1%} unreadable (DATALOADER.MAX_SKIPPED_SHARE), "
                f"found {skipped / drawn:.1%} of the images drawn so far{example}"
            )

    def after_train(self) -> None:
        if self._files:
            logging.getLogger(__name__).warning(
                "%d unreadable images were skipped:\n%s", len(self._files), "\n".join(self._files)
            )
