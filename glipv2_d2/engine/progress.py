"""The progress of a training, as a person wants to see it: a bar on a terminal, and a line for each evaluation."""

from __future__ import annotations

import logging
import math
import sys
import time
from typing import Any

from detectron2.engine import HookBase, TrainerBase
from detectron2.utils import comm
from tqdm import tqdm

# What the terminal gets of a run, beside warnings; log.txt has all.
_SHOWN = tuple(f"{__package__}.{name}" for name in ("keep", "own_run", "progress", "run_log", "runs", "words_share"))
_LOSSES = "detectron2.utils.events"
_ROOTS = ("fvcore", "detectron2", "glipv2_d2")


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


class ElapsedTime(HookBase):
    """Keep the time that a run has taken in its checkpoints: a run that is resumed goes on counting.

    Args:
        begin: When this process began, in seconds as ``time.time`` gives them.
    """

    def __init__(self, begin: float) -> None:
        self._begin = begin

    @property
    def minutes(self) -> float:
        """The time until now, that before a resume included."""
        return (time.time() - self._begin) / 60

    def state_dict(self) -> dict[str, Any]:
        return {"minutes": self.minutes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._begin -= 60 * state_dict["minutes"]


class _AboveBars:
    """Standard output, whose lines stand above the bars of a terminal: these are cleared and drawn again."""

    def write(self, text: str) -> None:
        tqdm.write(text, file=sys.stdout, end="")

    def flush(self) -> None:
        sys.stdout.flush()


def quiet_terminal() -> None:
    """Keep the terminal to what a person needs of a run, see ``show_progress``, and to warnings."""
    shown = _SHOWN if sys.stderr.isatty() else (*_SHOWN, _LOSSES)

    def is_wanted(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or record.name in shown

    handlers = {handler for name in _ROOTS for handler in logging.getLogger(name).handlers}
    for handler in handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.addFilter(is_wanted)
            if sys.stderr.isatty():
                handler.stream = _AboveBars()


def show_progress(trainer: TrainerBase) -> None:
    """Show losses and a line for each evaluation; on a terminal a bar takes the place of the losses."""
    has_bar = sys.stderr.isatty() and comm.is_main_process()
    trainer.register_hooks([EvaluationLine(), *([ProgressBar()] if has_bar else [])])
