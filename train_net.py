#!/usr/bin/env python
"""Train or evaluate a model: ``python train_net.py --config-file FILE [--eval-only] [--resume] [KEY VALUE ...]``.

The flags are those of detectron2's training scripts; ``torchrun`` may start the processes instead of ``--num-gpus``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from glipv2_d2 import GLIPv2Trainer
from glipv2_d2.checkpoint.checkpointer import GLIPv2Checkpointer
from glipv2_d2.engine.command_line import build_config, one_line_errors, parse_train_arguments
from glipv2_d2.engine.launch import launch_run
from glipv2_d2.evaluation.build import check_test_data
from glipv2_d2.evaluation.result_tables import write_result_table


def setup(arguments: argparse.Namespace) -> CfgNode:
    """Build the config of the command line and prepare logging and random numbers."""
    cfg = build_config(arguments.config_file, arguments.opts)
    default_setup(cfg, arguments)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="glipv2_d2")
    return cfg


def run(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Train or evaluate in this process, one of those that ``launch`` starts; return the results of an evaluation."""
    with one_line_errors(arguments.traceback):
        cfg = setup(arguments)
        if arguments.eval_only:
            check_test_data(cfg)
            model = GLIPv2Trainer.build_model(cfg)
            checkpointer = GLIPv2Checkpointer.from_config(model, cfg, cfg.OUTPUT_DIR, for_results=True)
            checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=arguments.resume)
            resumed = checkpointer.get_checkpoint_file() if arguments.resume else ""

            def write(results: dict[str, Any], failures: dict[str, str]) -> None:
                files = {"config_file": arguments.config_file, "checkpoint": resumed}
                write_result_table(cfg, results, cfg.OUTPUT_DIR, **files, failures=failures)

            return GLIPv2Trainer.test(cfg, model, report=write)
        trainer = GLIPv2Trainer(cfg)
        trainer.resume_or_load(resume=arguments.resume)
        return trainer.train()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    arguments = parse_train_arguments(argv)
    with one_line_errors(arguments.traceback):
        launch_run(run, arguments)


if __name__ == "__main__":
    main()
