"""Measure a model on the datasets of DATASETS.TEST, or on images and boxes of your own.

The results are also written to OUTPUT_DIR/result_table.md.
"""

from __future__ import annotations

import argparse
import os

from ..errors import InputError
from .config_arguments import add_config_arguments, add_folder_argument, add_process_arguments, config_keys, find_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``glipv2 eval``."""
    add_folder_argument(parser)
    add_config_arguments(parser)
    add_process_arguments(parser)
    parser.add_argument(
        "--data", metavar="PATH", help="measure on these images and boxes: their val and test, or all without splits"
    )
    parser.add_argument(
        "--output", metavar="DIR", help="folder of the results (default: OUTPUT_DIR; with --data: eval beside config)"
    )
    parser.add_argument("--resume", action="store_true", help="take the last checkpoint of OUTPUT_DIR")
    parser.add_argument(
        "--sheet", action="store_true", help="draw the first 12 images of detection data, found beside annotated"
    )


def run(arguments: argparse.Namespace) -> None:
    """Evaluate, in as many processes as asked for."""
    from ..engine.launch import launch_run
    from ..engine.runs import evaluate

    options, arguments.eval_only = config_keys(arguments), True
    arguments.config_file = find_config(arguments)
    arguments.opts = [*_keys_of_data(arguments), *options]
    launch_run(evaluate, arguments)


def _keys_of_data(arguments: argparse.Namespace) -> list[str]:
    """Return the config keys that ``--output`` and ``--data`` stand for; the set is read and registered."""
    output = arguments.output
    if arguments.data is None:
        return [] if output is None else ["OUTPUT_DIR", output]
    if arguments.resume:
        raise InputError("--resume: expected no --data, since checkpoints lie in the folder of a run, found both")
    from ..data.own_sets import register_test_sets

    folder, name = os.path.split(arguments.config_file)
    if output is None and name != "config.yaml":
        raise InputError("--output: expected the folder of the results beside --data, found none")
    output = os.path.join(folder, "eval") if output is None else output
    if os.path.realpath(output) == os.path.realpath(folder):
        raise InputError(
            f"--output: expected another folder than that of the run, which has data of its own, found {output}"
        )
    names = register_test_sets(arguments.data, os.path.join(output, "datasets"))
    data = {"DATASETS.REGISTER": (os.path.abspath(arguments.data),), "DATASETS.DIVIDE": False, "DATASETS.TRAIN": ()}
    keys = {**data, "DATASETS.TEST": names, "OUTPUT_DIR": output}
    return [word for key, value in keys.items() for word in (key, str(value))]
