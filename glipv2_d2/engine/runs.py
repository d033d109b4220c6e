"""The two runs of a config, training and evaluation, as each process of them sees it."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from ..checkpoint.checkpointer import GLIPv2Checkpointer
from ..evaluation.build import check_test_data
from ..evaluation.result_tables import warn_of_earlier_results, write_result_table
from ..folders import check_writable, lock_folder
from ..modeling.build import choose_device
from .command_line import build_config, one_line_errors
from .run_log import start_log
from .trainer import GLIPv2Trainer
from .truth_sheet import write_sheet


def start_run(arguments: argparse.Namespace, *, for_results: bool = False) -> CfgNode:
    """Build the config of a command line and prepare its log and random numbers.

    With ``--num-gpus 0`` the device of a config that leaves it open is the CPU; config.yaml still leaves it open.
    """
    cfg = build_config(arguments.config_file, arguments.opts, for_results=for_results, measures=for_results)
    return _start(cfg, arguments)


@contextlib.contextmanager
def sole_training(arguments: argparse.Namespace) -> Iterator[CfgNode]:
    """Start a run as ``start_run`` does, and keep other trainings out of its folder until it ends.

    Two would mix their files, as where a job comes twice, or SLURM starts a whole training for each of its tasks.

    Raises:
        InputError: Another one is at work there.
    """
    cfg = build_config(arguments.config_file, arguments.opts)
    lock: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    # Windows has no such locks.
    if comm.is_main_process() and os.name == "posix":
        check_writable(cfg.OUTPUT_DIR, "OUTPUT_DIR")
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        # Data workers outlive a killed training, which may go on at once.
        lock = lock_folder(cfg.OUTPUT_DIR, "OUTPUT_DIR", inherited=False)
    with lock:
        yield _start(cfg, arguments)


def _start(cfg: CfgNode, arguments: argparse.Namespace) -> CfgNode:
    start_log(cfg, arguments)
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
    if not arguments.eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if arguments.num_gpus == 0 and cfg.MODEL.DEVICE == "auto":
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = "cpu"
        cfg.freeze()
    logging.getLogger(__name__).info("device: %s", choose_device(cfg.MODEL.DEVICE))
    return cfg


def train(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Train in this process, one of those that ``launch_run`` starts; return the results of the last evaluation."""
    with one_line_errors(arguments.traceback), sole_training(arguments) as cfg:
        trainer = GLIPv2Trainer(cfg)
        trainer.resume_or_load(resume=arguments.resume)
        return trainer.train()


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Evaluate in this process, one of those that ``launch_run`` starts; return the results."""
    with one_line_errors(arguments.traceback):
        cfg = start_run(arguments, for_results=True)
        check_test_data(cfg)
        warn_of_earlier_results(cfg.OUTPUT_DIR)
        model = GLIPv2Trainer.build_model(cfg)
        checkpointer = GLIPv2Checkpointer.from_config(model, cfg, cfg.OUTPUT_DIR, for_results=True)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=arguments.resume)
        resumed = checkpointer.get_checkpoint_file() if arguments.resume else ""
        # train_net.py has detectron2's flags alone.
        waiting = list(cfg.DATASETS.TEST) if vars(arguments).get("sheet") and comm.is_main_process() else []

        def write(results: dict[str, Any], failures: dict[str, str]) -> None:
            files = {"config_file": arguments.config_file, "checkpoint": resumed}
            write_result_table(cfg, results, cfg.OUTPUT_DIR, **files, failures=failures)
            for name in [name for name in waiting if name in results]:
                waiting.remove(name)
                write_sheet(cfg, name)

        return GLIPv2Trainer.test(cfg, model, report=write)
