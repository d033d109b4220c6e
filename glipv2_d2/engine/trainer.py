"""The trainer: detectron2's, with this package's data, optimizer, step, moving average and evaluation."""

from __future__ import annotations

import contextlib
import logging
import signal
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.evaluation import DatasetEvaluator, print_csv_format
from detectron2.solver.lr_scheduler import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from ..checkpoint.checkpointer import GLIPv2Checkpointer
from ..data.build import TestLoader, TrainLoader, build_test_loader, build_train_loader, tuned_prompts
from ..data.loading import LoadedDataset, check_is_available, load_test_dataset
from ..errors import InputError, one_line
from ..evaluation.build import build_evaluator
from ..modeling.build import build_model
from ..solver import build_gradient_clipper, build_lr_scheduler, build_optimizer
from .config_values import check_solver_values, warn_of_tuning
from .data_hooks import DataStateHook, SkippedImagesHook
from .ema import ModelEMA, averaged
from .inference import JudgementError, run_on_dataset
from .plateau import TrainingEnded
from .run_hooks import RunParts, build_run_hooks
from .stopping import RunStopped, StopHook
from .train_loop import (
    GroundingTrainLoop,
    amp_dtype,
    check_sharding,
    has_idle_parts,
    shard_model,
    whole_weights,
    wrap_model,
)


class GLIPv2Trainer(DefaultTrainer):
    """Train and evaluate a model from a config; see ``DefaultTrainer`` for its methods and attributes.

    It differs in three points. The data loader is built when training starts, since its stream of samples begins where
    the checkpoint ended. One iteration is one update from ``SOLVER.ACCUMULATION_STEPS`` batches. With
    ``SOLVER.EMA_DECAY``, evaluations use the moving average of the weights, and it is the "model" of checkpoints.

    Raises:
        InputError: A solver key has a value that is not allowed, or a key is changed that nothing reads.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # The constructor of DefaultTrainer builds the loader and its own training step, so it is left out.
        super(DefaultTrainer, self).__init__()
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        check_solver_values(cfg)
        check_sharding(cfg)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        # DefaultTrainer's methods read it.
        self.cfg = cfg
        model = self.build_model(cfg)
        if cfg.SOLVER.SHARD_WEIGHTS and comm.get_world_size() > 1:
            shard_model(model)
        optimizer = self.build_optimizer(cfg, model)
        solver = cfg.SOLVER
        self._ema = ModelEMA(model, solver.EMA_DECAY, solver.EMA_WARMUP) if solver.EMA_DECAY else None
        self._skipped_images = SkippedImagesHook(cfg.DATALOADER.MAX_SKIPPED_SHARE)
        self._stop = StopHook()
        self._data_state = DataStateHook(cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD, stop=self._stop)
        self._trainer = GroundingTrainLoop(
            wrap_model(model, find_unused_parameters=has_idle_parts(cfg)),
            None,
            optimizer,
            clip_gradients=build_gradient_clipper(cfg),
            accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
            precision=amp_dtype(cfg),
            max_nonfinite_steps=cfg.SOLVER.MAX_NONFINITE_STEPS,
            seed=cfg.SEED,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = GLIPv2Checkpointer.from_config(
            model, cfg, cfg.OUTPUT_DIR, in_background=solver.SAVE_IN_BACKGROUND, trainer=weakref.proxy(self)
        )
        warn_of_tuning(cfg)
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    def train(self) -> dict[str, Any] | None:
        """Train from ``start_iter`` to the end; return the last results if ``TEST.EXPECTED_RESULTS`` is set.

        Raises:
            RunStopped: SIGTERM, SIGUSR1 or Ctrl-C has ended the run; the first two after a step, with a checkpoint.
            InputError, FileNotFoundError: Data of DATASETS.TRAIN or DATASETS.TEST cannot be used.
        """
        self.check_test_data(self.cfg)
        loader = self.build_train_loader(self.cfg, self.start_iter, self._data_state.saved)
        if self.cfg.MODEL.GLIPV2.TUNING.MODE == "prompt":
            self.checkpointer.model.prompt_tuner.bind(tuned_prompts(self.cfg))
        self._data_state.attach(loader)
        self._trainer.data_loader = self._skipped_images.watch(loader, loader.num_images)
        try:
            with contextlib.suppress(TrainingEnded), self._stop.watch():
                return super().train()
        except KeyboardInterrupt:
            last = self.checkpointer.get_checkpoint_file()
            way_on = f"--resume goes on from {last}" if last else "there is no checkpoint yet"
            raise RunStopped(signal.SIGINT, f"stopped by Ctrl-C in iteration {self.iter}\n{way_on}") from None
        finally:
            self._finish_saving()
        return None

    def _finish_saving(self) -> None:
        """Wait for a checkpoint that is being written where something else has ended the run."""
        try:
            self.checkpointer.finish_saving()
        except OSError as error:
            logging.getLogger(__name__).error("%s", error)

    def build_hooks(self) -> list[HookBase]:
        """Build the hooks in the order in which they run after a step."""

        def evaluate() -> dict[str, Any]:
            with averaged(self._ema), whole_weights(self.model), self._stop.immediate():
                self._last_eval_results = self.test(self.cfg, self.model)
            return self._last_eval_results

        def test(model: nn.Module) -> dict[str, Any]:
            with self._stop.immediate():
                return self.test(self.cfg, model)

        parts = RunParts(self.checkpointer, self.scheduler, self._ema, self._stop, self.build_writers)
        return build_run_hooks(self.cfg, parts, [self._skipped_images, self._stop, self._data_state], evaluate, test)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = build_model(cfg)
        logging.getLogger(__name__).debug("model:\n%s", model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(
        cls, cfg: CfgNode, start_iter: int = 0, saved: Mapping[str, Any] | None = None
    ) -> TrainLoader:
        return build_train_loader(cfg, start_iter, saved)

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: Sequence[DatasetEvaluator] | None = None,
        report: Callable[[dict[str, Any], dict[str, str]], None] | None = None,
    ) -> dict[str, Any]:
        """Evaluate a model on all DATASETS.TEST; each is read once, for its loader and its evaluator.

        Args:
            cfg: The config.
            model: A model with its weights.
            evaluators: One for each dataset; by default those of ``build_evaluator``.
            report: Called after each dataset with the results so far and, for the datasets that failed, the reasons.
                With it a dataset that cannot be read or judged does not end the evaluation of several.

        Returns:
            The results of a single dataset, or those of several by their names; see ``run_on_dataset`` for images that
            cannot be read.

        Raises:
            InputError, OSError: A dataset cannot be read or judged; with ``report`` at the end, for all of them.
        """
        results: dict[str, Any] = {}
        failures: dict[str, str] = {}
        for index, name in enumerate(cfg.DATASETS.TEST):
            # An error in the middle of the images would leave the other processes waiting.
            fails_alike = True
            try:
                dataset = load_test_dataset(cfg, name)
                loader = cls.build_test_loader(cfg, dataset)
                evaluator = cls.build_evaluator(cfg, dataset) if evaluators is None else evaluators[index]
                # The next one is read without this one in memory.
                del dataset
                fails_alike = comm.get_world_size() == 1
                results[name] = run_on_dataset(cfg, model, name, loader, evaluator)
            except (InputError, OSError) as error:
                fails_alike = fails_alike or isinstance(error, JudgementError)
                if report is None or not fails_alike or len(cfg.DATASETS.TEST) == 1:
                    raise
                failures[name] = one_line(error)
                logging.getLogger(__name__).error("dataset %r failed: %s", name, failures[name])
            else:
                if comm.is_main_process():
                    logging.getLogger(__name__).debug("results for %s in csv format:", name)
                    print_csv_format(results[name])
            if report is not None:
                report(results, failures)
        if failures:
            first, reason = next(iter(failures.items()))
            raise InputError(
                f"DATASETS.TEST: expected {len(cfg.DATASETS.TEST)} datasets that can be evaluated, found "
                f"{len(failures)} that failed ({', '.join(failures)}); {first}: {reason}"
            )
        return results[cfg.DATASETS.TEST[0]] if len(cfg.DATASETS.TEST) == 1 else results

    @classmethod
    def check_test_data(cls, cfg: CfgNode) -> None:
        """Check all DATASETS.TEST without a model: files, annotations, images, prompts, and what evaluators need.

        Raises:
            InputError: A dataset is not registered or cannot be used.
            FileNotFoundError: Annotations or images of one are not there.
        """
        for name in cfg.DATASETS.TEST:
            check_is_available(name)
        for name in cfg.DATASETS.TEST:
            dataset = load_test_dataset(cfg, name)
            cls.build_test_loader(cfg, dataset)
            cls.build_evaluator(cfg, dataset)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset: LoadedDataset) -> TestLoader:
        return build_test_loader(cfg, dataset)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset: LoadedDataset, output_folder: str | None = None
    ) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset, output_folder)
