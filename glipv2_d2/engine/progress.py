"""The progress of a training, as a person wants to see it: a bar on a terminal, and a line for each evaluation."""

from __future__ import annotations

import logging
import math
import sys

from detectron2.engine import HookBase, TrainerBase
from tqdm import tqdm

# Loggers that say of an evaluation in many lines what one line says; log.txt has them all.
_EVALUATION = ("detectron2.evaluation", "glipv2_d2.evaluation", "glipv2_d2.engine.trainer")
_LOSSES = "detectron2.utils.events"


class EvaluationLine(HookBase):
    """Log the results of each evaluation of boxes before the last, in one line."""

    def after_step(self) -> None:
        latest = self.trainer.storage.latest()
        value, iteration = latest.get("bbox/AP", (math.nan, -1))
        if iteration == self.trainer.iter:
            logging.getLogger(__name__).info(
                "after %d of %d updates: AP %.1f, AP50 %.1f",
                *(iteration + 1, self.trainer.max_iter, value, latest["bbox/AP50"][0]),
            )


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
    """Keep the console to losses and a line for each evaluation; on a terminal a bar takes the place of the losses."""
    trainer.register_hooks([EvaluationLine()])
    hidden: tuple[str, ...] = _EVALUATION
    if sys.stderr.isatty():
        trainer.register_hooks([ProgressBar()])
        hidden = (*hidden, _LOSSES)

    def is_wanted(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or not record.name.startswith(hidden)

    handlers = {handler for name in ("detectron2", "glipv2_d2") for handler in logging.getLogger(name).handlers}
    for handler in handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.addFilter(is_wanted)
