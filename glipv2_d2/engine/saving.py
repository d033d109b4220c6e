"""When a run is saved: every so often, before an evaluation, at a signal, and at its end; and with which keys."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.engine.hooks import PeriodicCheckpointer
from detectron2.utils import comm

from ..checkpoint.checkpointer import GLIPv2Checkpointer
from ..checkpoint.resume import BEST_WEIGHTS, EARLIER_RESULTS, numbered_checkpoints
from ..checkpoint.tuned_weights import save_tuned
from ..plurals import counted
from ..tensor_files import remove_leftovers
from .ema import ModelEMA, averaged
from .stopping import RunStopped, StopHook

# In the folder of a run that tunes less than the whole model.
TUNED_WEIGHTS = "tuned.safetensors"
_FINAL = "model_final"
# Rates and decay of parameters, which the state of the optimizer brings along.
_KEPT_BY_OPTIMIZER = {
    f"SOLVER.{name}"
    for name in (
        *("BASE_LR", "BIAS_LR_FACTOR", "WEIGHT_DECAY", "WEIGHT_DECAY_NORM", "WEIGHT_DECAY_BIAS"),
        *("TEXT_ENCODER_MULTIPLIER", "BACKBONE_MULTIPLIER", "PROMPT_MULTIPLIER", "HEAD_MULTIPLIER"),
    )
}


class EMACheckpointer(PeriodicCheckpointer):
    """Write checkpoints whose "model" is what evaluation uses: the moving average, if there is one.

    Before the first step the temporary files of runs that were killed in this folder are removed. A run that is resumed
    at its end, or beyond it, writes its last checkpoint if that is missing.

    Args:
        checkpointer: Writes the files.
        period: Updates between two checkpoints.
        ema: The moving average; None: there is none.
        max_to_keep: How many of the newest checkpoints of the period are kept, of a resumed run those of before among
            them; 0: all.
        with_tuned: At the end also write the tuned weights alone, see ``save_tuned``.
    """

    def __init__(
        self,
        checkpointer: GLIPv2Checkpointer,
        period: int,
        ema: ModelEMA | None,
        max_to_keep: int = 0,
        with_tuned: bool = False,
    ) -> None:
        # detectron2's class would remove an old file before the new one is whole.
        super().__init__(checkpointer, period)
        self._max_to_keep = max_to_keep
        self._kept: list[Path] = []
        self._ema = ema
        self._with_tuned = with_tuned
        # A checkpoint outside the period, if there is one; the next one replaces it.
        self._extra: list[Path] = []
        self._newest = -1

    def before_train(self) -> None:
        super().before_train()
        if self.checkpointer.save_dir and comm.is_main_process():
            remove_leftovers(self.checkpointer.save_dir)
            if self._max_to_keep:
                self._kept = numbered_checkpoints(self.checkpointer.save_dir, self.trainer.start_iter)
            self._put_results_aside(Path(self.checkpointer.save_dir))
        trainer = self.trainer
        if trainer.start_iter >= trainer.max_iter:
            logging.getLogger(__name__).warning(
                "SOLVER.MAX_ITER %d: the checkpoint has had %s already, so nothing is trained",
                *(trainer.max_iter, counted(trainer.start_iter, "update")),
            )
            trainer.iter = trainer.start_iter - 1
            self.save_final()
            trainer.iter = trainer.start_iter

    def after_step(self) -> None:
        self.checkpointer.check_saving()
        next_iter = self.trainer.iter + 1
        is_last = next_iter == self.max_iter
        if is_last or (next_iter % self.period == 0 and self._newest != self.trainer.iter):
            self._save_of_period()
            if is_last:
                with averaged(self._ema):
                    self._save_tuned()
                # The last evaluation may fail.
                self.checkpointer.finish_saving()

    def save_early(self) -> None:
        """Write the checkpoint of this step before other hooks are done with it.

        Where it is that of the period, no other one follows in this step; otherwise it lasts until the next one.
        """
        iteration = self.trainer.iter
        if (iteration + 1) % self.period == 0:
            self._save_of_period()
            return
        self._extra = [self._save(f"{self.file_prefix}_{iteration:07d}", self._extra)]

    def save_final(self) -> None:
        """Write the last checkpoint of a training that does not end by itself, unless the newest one is it."""
        if os.path.basename(self.checkpointer.get_checkpoint_file()) == f"{_FINAL}.pth":
            return
        self._save(_FINAL, self._extra)
        self._extra = []
        with averaged(self._ema):
            self._save_tuned()
        self.checkpointer.finish_saving()

    def _save_of_period(self) -> None:
        iteration, replaced = self.trainer.iter, self._extra
        if (iteration + 1) % self.period == 0:
            name = f"{self.file_prefix}_{iteration:07d}"
            # A step that is done again on resume has its file already.
            self._kept = [path for path in self._kept if path.stem != name]
            while self._max_to_keep and len(self._kept) >= self._max_to_keep:
                replaced = [*replaced, self._kept.pop(0)]
            self._kept.append(self._save(name, replaced))
        if iteration + 1 >= self.max_iter:
            self._save(_FINAL, replaced)
        self._newest, self._extra = iteration, []

    def _put_results_aside(self, folder: Path) -> None:
        """Leave nothing in this folder that results would be made with and that is older than this training.

        Of a run that is made longer these are the weights of its first end; its best weights go on being the best.
        """
        is_new = self.trainer.start_iter == 0
        if not is_new and self.trainer.start_iter >= self.trainer.max_iter:
            return
        for name, aside in EARLIER_RESULTS.items():
            if (folder / name).is_file() and (is_new or name != BEST_WEIGHTS):
                (folder / name).replace(folder / aside)
                logging.getLogger(__name__).warning("%s: %s of an earlier training is now %s", folder, name, aside)

    def _save(self, name: str, replaced: Sequence[Path]) -> Path:
        """Write a checkpoint that takes the place of others; return its path."""
        with averaged(self._ema):
            self.checkpointer.save(name, replaced=replaced, iteration=self.trainer.iter)
        return Path(self.checkpointer.save_dir, f"{name}.pth")

    def _save_tuned(self) -> None:
        if self._with_tuned:
            save_tuned(self.checkpointer.model, os.path.join(self.checkpointer.save_dir, TUNED_WEIGHTS))


class SafeStepHook(HookBase):
    """Save a run before each evaluation, which may fail, and where a signal asks for the end; it precedes evaluations.

    The checkpoint says whether the evaluation of its step is still to come and matters: then a resumed run first does
    what is left of the step, and so equals one that was not interrupted.

    Args:
        saver: Writes the checkpoint; None on all processes but the first.
        eval_period: Steps between two evaluations; 0: there is only one, after the last step.
        stop: Knows of signals; it comes before all hooks that save.
        decides: Hooks behind the evaluation decide by its results, and save after it.
    """

    def __init__(self, saver: EMACheckpointer | None, eval_period: int, stop: StopHook, decides: bool) -> None:
        self._saver = saver
        self._period = eval_period
        self._stop = stop
        self._decides = decides
        self._unfinished = False

    def before_step(self) -> None:
        if not self._unfinished:
            return
        self._unfinished = False
        trainer, hooks = self.trainer, self.trainer._hooks
        trainer.iter = trainer.storage.iter = trainer.iter - 1
        for hook in hooks[hooks.index(self) + 1 :]:
            hook.after_step()
        trainer.iter = trainer.storage.iter = trainer.iter + 1

    def after_step(self) -> None:
        trainer, next_iter = self.trainer, self.trainer.iter + 1
        evaluates = self._period > 0 and next_iter % self._period == 0
        if next_iter == trainer.max_iter:
            # The end is saved anyway, before the last evaluation, by which a run that is made longer has to decide.
            self._unfinished = evaluates and self._decides
            return
        if (evaluates or self._stop.requested) and self._saver is not None:
            self._unfinished = evaluates and (self._decides or self._stop.requested)
            # Where nothing decides, the checkpoint of the period is there already.
            if self._unfinished or self._decides or next_iter % self._saver.period:
                self._saver.save_early()
            self._unfinished = False
            # Whatever ends the evaluation, the file is there.
            self._saver.checkpointer.finish_saving()
        if self._stop.requested:
            # No process ends before the file is there.
            comm.synchronize()
            name = signal.Signals(self._stop.signum).name
            last = trainer.checkpointer.get_checkpoint_file()
            done = counted(next_iter, "update")
            raise RunStopped(self._stop.signum, f"stopped by {name} after {done}\n--resume goes on from {last}")

    def state_dict(self) -> dict[str, Any]:
        return {"unfinished": True} if self._unfinished else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._unfinished = state_dict["unfinished"]


class SolverKeysHook(HookBase):
    """Save the solver keys with each checkpoint; a run that is resumed with others names them in one warning.

    Args:
        solver: The part ``SOLVER`` of the config.
    """

    def __init__(self, solver: CfgNode) -> None:
        self._keys = dict(_flat("SOLVER", solver))

    def state_dict(self) -> dict[str, Any]:
        return self._keys

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare the keys of a checkpoint; a key that only one of both has is another version's and is left out."""
        changed = [key for key, value in self._keys.items() if key in state_dict and state_dict[key] != value]
        lines = [
            f"{key} was {state_dict[key]}, is {self._keys[key]}"
            + (" (without effect: the optimizer keeps the checkpoint's)" if key in _KEPT_BY_OPTIMIZER else "")
            for key in changed
        ]
        if lines:
            logging.getLogger(__name__).warning(
                "the run goes on with other solver keys than the checkpoint's: %s", "; ".join(lines)
            )


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the keys below a part of a config with their values, in types that a checkpoint may hold."""
    if isinstance(value, CfgNode):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    else:
        yield name, list(value) if isinstance(value, tuple) else value
