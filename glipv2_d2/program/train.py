"""Train a detector on your own images and boxes; with --config-file and no --data, run that config as it is.

--data takes a folder or a file of COCO json, Pascal VOC, YOLO or LabelMe. All else is chosen from the data and the
machine, is said at the start and written to OUTPUT/config.yaml: the model, what it starts from, the size of images, the
length. At the end OUTPUT holds model_best.pth, results.json and a folder "report" with curves and drawings.
"""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path

from ..errors import InputError, space_errors
from .config_arguments import add_config_arguments, add_process_arguments, config_keys
from .output import write_line

# Epochs or minutes; nobody waits longer.
_MOST = 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``glipv2 train``."""
    own = parser.add_argument_group("own images and boxes")
    own.add_argument("--data", default="", metavar="PATH", help="folder or file of images and boxes")
    own.add_argument("--output", type=Path, metavar="DIR", help="folder of the run")
    own.add_argument(
        "--weights",
        default="",
        metavar="FILE",
        help="start from these (default: those of make words, train or demo in the folder output, or none)",
    )
    own.add_argument(
        "--keep", action="store_true", help="forget nothing: other names stay as the weights know them (docs/tuning.md)"
    )
    own.add_argument("--epochs", type=float, metavar="N", help="passes over the images (default: by their number)")
    own.add_argument("--minutes", type=float, metavar="N", help="time for training and evaluations on this machine")
    own.add_argument("--resume", action="store_true", help="go on where the run in DIR was stopped")
    own.add_argument("--overwrite", action="store_true", help="replace the run in DIR")
    add_process_arguments(parser)
    add_config_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Train on own data; without any, run a config in as many processes as asked for."""
    arguments.opts, arguments.eval_only = config_keys(arguments), False
    if arguments.data or arguments.output:
        _run_own(arguments)
        return
    if not arguments.config_file:
        raise InputError("train: expected --data PATH and --output DIR, or --config-file FILE, found neither")
    from ..engine.launch import launch_run
    from ..engine.runs import train

    launch_run(train, arguments)


def _run_own(arguments: argparse.Namespace) -> None:
    from torch.multiprocessing import ProcessExitedException

    from ..engine.launch import check_processes, is_first_process, launch_run
    from ..engine.own_run import CONFIG_NAME

    arguments.begin = time.time()
    _check_arguments(arguments)
    num_processes = check_processes(arguments)
    if is_first_process(arguments):
        _prepare_run(arguments, num_processes)
    # The others wait for the first, so they find its config.
    arguments.config_file, arguments.opts = str(arguments.output / CONFIG_NAME), []
    try:
        launch_run(_train_own, arguments)
    except (SystemExit, ProcessExitedException) as end:
        # A signal has another status.
        is_error = isinstance(end.code, str) if isinstance(end, SystemExit) else end.exit_code == 1
        # Without a checkpoint there is no run to go on with.
        if is_error and not arguments.resume and not list(arguments.output.glob("model_*.pth")):
            (arguments.output / CONFIG_NAME).unlink(missing_ok=True)
            (arguments.output / "metrics.json").unlink(missing_ok=True)
        raise


def _prepare_run(arguments: argparse.Namespace, num_processes: int) -> None:
    """Write the config of a new run, and say what was chosen; of one that goes on, look for it."""
    from ..engine.command_line import build_config
    from ..engine.own_run import CONFIG_NAME, KEEP, check_output, clear_output, find_start, plan_run

    output = arguments.output
    check_output(output, arguments.resume, arguments.overwrite, arguments.weights)
    if arguments.resume:
        return
    start = find_start(arguments.weights, arguments.config_file, Path.cwd())
    limits = {"epochs": arguments.epochs, "minutes": arguments.minutes, "num_processes": num_processes}
    options = [KEEP, "True", *arguments.opts] if arguments.keep else arguments.opts
    if arguments.keep and not start.weights:
        raise InputError("--keep: expected weights that know other names, found none; name them by --weights")
    write_line(f"reading {arguments.data}, then training; all results go to {output}")
    plan = plan_run(arguments.data, output, start, **limits, options=options)
    clear_output(output)
    with space_errors(output / CONFIG_NAME):
        (output / CONFIG_NAME).write_text(build_config(plan.config_file, plan.options).dump(), encoding="utf-8")
    for line in plan.reasons:
        write_line(line)


def _train_own(arguments: argparse.Namespace) -> None:
    """Train in this process, one of those that ``launch_run`` starts."""
    from ..engine.command_line import one_line_errors
    from ..engine.own_run import finish_run, readers_of_run
    from ..engine.progress import ElapsedTime, quiet_terminal, show_progress
    from ..engine.runs import sole_training
    from ..engine.stopping import RunStopped
    from ..engine.trainer import GLIPv2Trainer

    one_line = one_line_errors(arguments.traceback)
    with one_line, readers_of_run(arguments.output), sole_training(arguments) as cfg:
        quiet_terminal()
        trainer = GLIPv2Trainer(cfg)
        elapsed = ElapsedTime(arguments.begin)
        # Before the checkpoint is loaded, in which its state is.
        trainer.register_hooks([elapsed])
        trainer.resume_or_load(resume=arguments.resume)
        show_progress(trainer)
        try:
            trainer.train()
        except RunStopped as stop:
            way_on = f"go on by: glipv2 train --output {shlex.quote(str(arguments.output))} --resume"
            raise RunStopped(stop.exit_status - 128, f"{str(stop).splitlines()[0]}\n{way_on}") from None
        for line in finish_run(cfg, trainer.checkpointer.model, elapsed):
            write_line(line)


def _check_arguments(arguments: argparse.Namespace) -> None:
    """Refuse arguments that contradict each other, before anything is read.

    Raises:
        InputError: There are such arguments.
    """
    chosen = {"--epochs": arguments.epochs, "--minutes": arguments.minutes}
    for name, value in chosen.items():
        if value is not None and not 0 < value <= _MOST:
            raise InputError(f"{name}: expected a number above 0, at most {_MOST:,}, found {value:g}")
    if arguments.output is None:
        raise InputError("--output: expected the folder of the run, found none")
    if arguments.resume:
        given = {"--data": arguments.data, "--weights": arguments.weights, **chosen, "--overwrite": arguments.overwrite}
        given |= {"--keep": arguments.keep, "--config-file": arguments.config_file}
        found = [name for name, value in given.items() if value]
        if found or arguments.opts:
            raise InputError(
                f"--resume: expected --output alone, since the run goes on as it was, found {' '.join(found) or 'keys'}"
            )
    elif not arguments.data:
        raise InputError("--data: expected a folder or a file of images and boxes, found none")
