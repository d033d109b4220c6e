"""The progress of a training, as a person wants to see it: a bar on a terminal; elsewhere the lines of the log do."""

from __future__ import annotations

import logging
import math
import sys

from detectron2.engine import HookBase, TrainerBase
from tqdm import tqdm


class ProgressBar(HookBase):
    """A bar with the loss, the remaining time and the newest AP, on standard error."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def before_train(self) -> None:
        self._bar = tqdm(
            total=self.trainer.max_iter,
            initial=self.trainer.start_iter,
            desc="training",
            unit="update",
            dynamic_ncols=True,
        )

    def after_step(self) -> None:
        if self._bar is None:
            return
        latest = self.trainer.storage.latest()
        shown = {"loss": "total_loss", "AP": "bbox/AP", "AP50": "bbox/AP50"}
        values = {name: latest[key][0] for name, key in shown.items() if key in latest}
        self._bar.set_postfix({name: f"{value:.3g}" for name, value in values.items() if math.isfinite(value)}, False)
        self._bar.update()

    def after_train(self) -> None:
        if self._bar is not None:
            self._bar.close()


def show_progress(trainer: TrainerBase) -> None:
    """Add a bar to a trainer if standard error is a terminal, in place of the lines on the console."""
    if not sys.stderr.isatty():
        return
    trainer.register_hooks([ProgressBar()])
    for handler in logging.getLogger("detectron2").handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.addFilter(lambda record: record.name != "detectron2.utils.events")
