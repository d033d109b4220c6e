"""The hooks of a training, in the order in which they run after a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.engine import HookBase, hooks
from detectron2.solver.lr_scheduler import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn

from ..checkpoint.checkpointer import GLIPv2Checkpointer
from .ema import EMAHook, ModelEMA
from .keep import build_keep_hook
from .plateau import EarlyStopHook, build_best_weights_hook, build_plateau_hook
from .saving import EMACheckpointer, SafeStepHook, SolverKeysHook
from .stopping import StopHook


class RunParts(NamedTuple):
    """What the hooks of a training share.

    Attributes:
        checkpointer: Writes its files.
        scheduler: Scheduler of the learning rate.
        ema: Moving average of the weights, if there is one.
        stop: Knows of signals.
        build_writers: Makes the writers of its metrics.
    """

    checkpointer: GLIPv2Checkpointer
    scheduler: LRMultiplier
    ema: ModelEMA | None
    stop: StopHook
    build_writers: Callable[[], list[EventWriter]]


def build_run_hooks(
    cfg: CfgNode,
    parts: RunParts,
    data_hooks: Sequence[HookBase],
    evaluate: Callable[[], dict[str, Any]],
    test: Callable[[nn.Module], dict[str, Any]],
) -> list[HookBase]:
    """Build the hooks of a training.

    Args:
        cfg: Full config.
        parts: See ``RunParts``.
        data_hooks: Those that follow the data and signals.
        evaluate: Evaluates the model of the run, of the moving average if there is one.
        test: Evaluates a model as it is.
    """
    solver, ema = cfg.SOLVER, parts.ema
    built: list[HookBase] = [hooks.IterationTimer(), SolverKeysHook(solver)]
    if ema:
        built.append(EMAHook(ema))
    built += [hooks.LRScheduler(), *data_hooks]
    saver = EMACheckpointer(
        parts.checkpointer,
        solver.CHECKPOINT_PERIOD,
        ema,
        solver.MAX_CHECKPOINTS,
        with_tuned=cfg.MODEL.GLIPV2.TUNING.MODE != "full",
    )
    # Of sharded weights the first process writes what all of them bring together.
    savers = [saver] if comm.is_main_process() or solver.SHARD_WEIGHTS else []
    evaluators = [hooks.EvalHook(cfg.TEST.EVAL_PERIOD, evaluate)]
    plateau = build_plateau_hook(cfg, parts.scheduler, ema)
    watchers = [hook for hook in (plateau, build_best_weights_hook(cfg, ema)) if hook is not None]
    safe = SafeStepHook(savers[0] if savers else None, cfg.TEST.EVAL_PERIOD, parts.stop, bool(watchers))
    # Decisions by the metric belong to the checkpoint of the same iteration.
    built += [safe, *evaluators, *watchers, *savers] if watchers else [*savers, safe, *evaluators]
    keep = build_keep_hook(cfg, parts.checkpointer.model, test, plateau)
    if keep is not None:
        built.append(keep)
    if comm.is_main_process():
        built.append(hooks.PeriodicWriter(parts.build_writers(), period=20))
    if plateau is not None and solver.EARLY_STOP_PATIENCE:
        save_final = saver.save_final if savers else lambda: None
        built.append(EarlyStopHook(plateau, solver.EARLY_STOP_PATIENCE, save_final))
    return built
