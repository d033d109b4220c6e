"""Measure a model on the datasets of DATASETS.TEST; the results are also written to OUTPUT_DIR/result_table.md."""

from __future__ import annotations

import argparse

from .config_arguments import add_config_arguments, add_folder_argument, add_process_arguments, config_keys, find_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``glipv2 eval``."""
    add_folder_argument(parser)
    add_config_arguments(parser)
    add_process_arguments(parser)
    parser.add_argument("--resume", action="store_true", help="take the last checkpoint of OUTPUT_DIR")
    parser.add_argument(
        "--sheet", action="store_true", help="draw the first 12 images of detection data, found beside annotated"
    )


def run(arguments: argparse.Namespace) -> None:
    """Evaluate, in as many processes as asked for."""
    from ..engine.launch import launch_run
    from ..engine.runs import evaluate

    arguments.opts, arguments.eval_only = config_keys(arguments), True
    arguments.config_file = find_config(arguments)
    launch_run(evaluate, arguments)
