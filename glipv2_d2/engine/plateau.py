"""Hooks that follow a validation metric: best weights, learning rate that steps by itself, early end of a training."""

from __future__ import annotations

import logging
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.solver.lr_scheduler import LRMultiplier
from detectron2.utils import comm

from ..checkpoint.resume import BEST_WEIGHTS
from ..checkpoint.tuned_weights import save_tuned
from ..distributed import is_sharded, whole_tensors
from ..errors import InputError
from ..tensor_files import write_checkpoint
from .ema import ModelEMA, averaged

# Written beside BEST_WEIGHTS by a run that tunes less than the whole model.
BEST_TUNED_WEIGHTS = "tuned_best.safetensors"


class TrainingEnded(BaseException):
    """Ends the loop of a trainer before its last iteration, without an error.

    It is not an ``Exception`` because detectron2's loop reports every ``Exception`` as a failure.
    """


def result_of(results: Mapping[str, Any], metric: str, key: str = "SOLVER.AUTO_STEP.METRIC") -> float:
    """Return a number of an evaluation, the same on all ranks; 0 for NaN, which means a model that finds nothing.

    Args:
        results: What the main process has, by task or flat, such as all newest numbers of a training; the other
            processes need none.
        metric: Name of the number, such as "bbox/AP".
        key: Config key that names it.

    Raises:
        InputError: No evaluator has given it.
    """
    found = comm.all_gather(flatten_results_dict(dict(results)))[0]
    if metric not in found:
        names = [name for name in found if "/" in name and not name.startswith("data/")]
        raise InputError(
            f"{key}: expected a result of the evaluation, such as {', '.join(names[:4])}, found {metric!r}"
        )
    return 0.0 if math.isnan(found[metric]) else found[metric]


class _MetricHook(HookBase, ABC):
    """Look at results after every evaluation, and keep weights; a subclass says which, and has these attributes.

    It has to follow the hook that evaluates. For a resumed run to take the same decisions it has to precede the hook
    that writes checkpoints.
    """

    period: int
    ema: ModelEMA | None
    with_tuned: bool

    def after_step(self) -> None:
        # detectron2's EvalHook evaluates at the same iterations, here and below.
        next_iter = self.trainer.iter + 1
        if next_iter % self.period == 0 and next_iter != self.trainer.max_iter:
            self._look()

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._look()

    @abstractmethod
    def _look(self) -> None:
        """Read the newest results and decide."""

    def _newest(self, key: str, metric: str) -> float:
        """Return the newest value of a result, see ``result_of``."""
        latest = self.trainer.storage.latest()
        return result_of({name: value for name, (value, _) in latest.items()}, metric, key)

    def _keep(self, name: str, tuned_name: str, metric: str, value: float) -> None:
        """Write the weights, and the tuned ones alone, as the best by a metric."""
        checkpointer = self.trainer.checkpointer
        with averaged(self.ema):
            weights = checkpointer.model.state_dict()
            if is_sharded(checkpointer.model):
                weights = whole_tensors(weights)
            if comm.is_main_process() and checkpointer.save_dir:
                content = {"model": weights, "iteration": self.trainer.iter}
                write_checkpoint(os.path.join(checkpointer.save_dir, name), content)
                if self.with_tuned:
                    save_tuned(checkpointer.model, os.path.join(checkpointer.save_dir, tuned_name))
        logging.getLogger(__name__).info("iteration %d: %s %.3f is the best so far", self.trainer.iter, metric, value)


@dataclass(eq=False)
class BestWeightsHook(_MetricHook):
    """Keep the best weights by each of some metrics as ``model_best_NAME.pth``, without an effect on the training.

    Attributes:
        metrics: Names of the evaluators' numbers, higher is better.
        period: Updates between two evaluations.
        ema: Moving average of the weights, if there is one; it is what is evaluated and saved.
        with_tuned: Also write the tuned weights alone, see ``save_tuned``.
    """

    metrics: Sequence[str]
    period: int
    ema: ModelEMA | None = None
    with_tuned: bool = False
    _best: dict[str, float] = field(default_factory=dict, init=False)

    def state_dict(self) -> dict[str, Any]:
        return {"best": dict(self._best)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best = dict(state_dict["best"])

    def _look(self) -> None:
        for metric in self.metrics:
            value = self._newest("TEST.BEST_METRICS", metric)
            if value > self._best.get(metric, -math.inf):
                self._best[metric] = value
                name = re.sub(r"\W+", "_", metric)
                self._keep(f"model_best_{name}.pth", f"tuned_best_{name}.safetensors", metric, value)


@dataclass(eq=False)
class PlateauHook(_MetricHook):
    """Keep the best weights by a metric, and lower the learning rate where the metric stops growing.

    A value that is not higher than all
    before, or is NaN, counts as no gain. Evaluations during the warm-up can be the best; the rate waits for its end.

    Attributes:
        metric: Name of the evaluator's number, higher is better.
        period: Updates between two evaluations.
        scheduler: Scheduler of the learning rate; None: the rate is left alone.
        patience: More evaluations in a row without gain than this lower the rate, and the count starts again.
        factor: Factor that lowers the rates.
        min_lr: Lower limit of the rates; rates that start lower stay as they are.
        warmup_iters: Updates of the warm-up.
        ema: Moving average of the weights, if there is one; it is what is evaluated and saved.
        with_tuned: Also write the tuned weights alone, see ``save_tuned``.
        since_best: Evaluations since the best one that count.

    Source: the fine-tuning runner of the official code (SOLVER.USE_AUTOSTEP), and ``ReduceLROnPlateau`` of PyTorch.
    """

    metric: str
    period: int
    scheduler: LRMultiplier | None = None
    patience: int = 3
    factor: float = 0.1
    min_lr: float = 1e-6
    warmup_iters: int = 0
    ema: ModelEMA | None = None
    with_tuned: bool = False
    since_best: int = field(default=0, init=False)
    _best: float = field(default=-math.inf, init=False)
    _since_step: int = field(default=0, init=False)

    def state_dict(self) -> dict[str, Any]:
        # The rates themselves are in the state of the scheduler.
        return {"best": self._best, "since_step": self._since_step, "since_best": self.since_best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best = state_dict["best"]
        self._since_step = state_dict["since_step"]
        self.since_best = state_dict["since_best"]

    def _look(self) -> None:
        value = self._newest("SOLVER.AUTO_STEP.METRIC", self.metric)
        if value > self._best:
            self._best, self.since_best, self._since_step = value, 0, 0
            self._keep(BEST_WEIGHTS, BEST_TUNED_WEIGHTS, self.metric, value)
            return
        # Nothing is decided in the warm-up, since the rate has not reached its value yet.
        if self.trainer.iter + 1 >= self.warmup_iters:
            self.since_best += 1
            self._since_step += 1
        if self.scheduler is not None and self._since_step > self.patience:
            self._since_step = 0
            self._lower_rates(self.scheduler)

    def _lower_rates(self, scheduler: LRMultiplier) -> None:
        scheduler.base_lrs = [max(rate * self.factor, min(rate, self.min_lr)) for rate in scheduler.base_lrs]
        # The new rates count from the next update on; the scheduler itself would set them one update later.
        for group, rate in zip(scheduler.optimizer.param_groups, scheduler.get_lr(), strict=True):
            group["lr"] = rate
        logging.getLogger(__name__).info(
            "iteration %d: %s has not grown in %d evaluations, learning rates now up to %.2e",
            *(self.trainer.iter, self.metric, self.patience + 1, max(scheduler.base_lrs)),
        )


class EarlyStopHook(HookBase):
    """End a training whose metric has not grown for a while; it has to be the last of all hooks.

    Args:
        plateau: Counts the evaluations without gain.
        patience: Number of evaluations in a row without gain that end the training.
        save_final: Writes the last checkpoint, as at the regular end of a training, unless it is there.
    """

    def __init__(self, plateau: PlateauHook, patience: int, save_final: Callable[[], None]) -> None:
        self._plateau = plateau
        self._patience = patience
        self._save_final = save_final

    def before_train(self) -> None:
        # A run that ended early and is resumed has at most its last checkpoint left to write.
        if self._plateau.since_best >= self._patience:
            self.trainer.iter = self.trainer.start_iter - 1
            self._save_final()
            raise TrainingEnded

    def after_step(self) -> None:
        if self._plateau.since_best >= self._patience:
            logging.getLogger(__name__).info(
                "training ends after iteration %d: %d evaluations without gain (SOLVER.EARLY_STOP_PATIENCE)",
                *(self.trainer.iter, self._plateau.since_best),
            )
            self._save_final()
            raise TrainingEnded


def build_best_weights_hook(cfg: CfgNode, ema: ModelEMA | None) -> BestWeightsHook | None:
    """Build the hook that ``TEST.BEST_METRICS`` needs; None without them.

    Raises:
        InputError: Nothing is evaluated.
    """
    metrics = tuple(cfg.TEST.BEST_METRICS)
    if not metrics:
        return None
    if cfg.TEST.EVAL_PERIOD < 1 or not cfg.DATASETS.TEST:
        found = f"TEST.EVAL_PERIOD {cfg.TEST.EVAL_PERIOD} and DATASETS.TEST {cfg.DATASETS.TEST}"
        raise InputError(f"TEST.BEST_METRICS: expected a period of at least 1 and a dataset to watch, found {found}")
    return BestWeightsHook(metrics, cfg.TEST.EVAL_PERIOD, ema, cfg.MODEL.GLIPV2.TUNING.MODE != "full")


def build_plateau_hook(cfg: CfgNode, scheduler: LRMultiplier, ema: ModelEMA | None) -> PlateauHook | None:
    """Build the hook that ``SOLVER.AUTO_STEP`` and ``SOLVER.EARLY_STOP_PATIENCE`` need; None where both are off.

    Raises:
        InputError: A key has a value that is not allowed, or nothing is evaluated.
    """
    auto_step = cfg.SOLVER.AUTO_STEP
    if cfg.SOLVER.EARLY_STOP_PATIENCE < 0:
        raise InputError(f"SOLVER.EARLY_STOP_PATIENCE: expected at least 0, found {cfg.SOLVER.EARLY_STOP_PATIENCE}")
    if not auto_step.ENABLED and not cfg.SOLVER.EARLY_STOP_PATIENCE:
        return None
    for key, value, valid, expected in (
        ("TEST.EVAL_PERIOD", cfg.TEST.EVAL_PERIOD, cfg.TEST.EVAL_PERIOD > 0, "at least 1"),
        ("DATASETS.TEST", cfg.DATASETS.TEST, len(cfg.DATASETS.TEST) > 0, "a dataset to watch"),
        ("SOLVER.AUTO_STEP.PATIENCE", auto_step.PATIENCE, auto_step.PATIENCE >= 0, "at least 0"),
        ("SOLVER.AUTO_STEP.FACTOR", auto_step.FACTOR, 0 < auto_step.FACTOR < 1, "a number between 0 and 1"),
        ("SOLVER.AUTO_STEP.MIN_LR", auto_step.MIN_LR, auto_step.MIN_LR >= 0, "at least 0"),
    ):
        if not valid:
            raise InputError(f"{key}: expected {expected} with automatic steps or an early stop, found {value}")
    return PlateauHook(
        auto_step.METRIC,
        cfg.TEST.EVAL_PERIOD,
        scheduler=scheduler if auto_step.ENABLED else None,
        patience=auto_step.PATIENCE,
        factor=auto_step.FACTOR,
        min_lr=auto_step.MIN_LR,
        warmup_iters=cfg.SOLVER.WARMUP_ITERS,
        ema=ema,
        with_tuned=cfg.MODEL.GLIPV2.TUNING.MODE != "full",
    )
