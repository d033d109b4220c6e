#!/usr/bin/env python
"""Tune a model on many small datasets: a grid of sets, modes, shots and seeds, with its table and its plot.

    python tools/run_odinw.py --weights glip_tiny.pth                                # ODinW-13, full and prompt tuning
    python tools/run_odinw.py --config-file configs/demo/glipv2_micro.yaml --weights model_final.pth --num-gpus 0 \\
        --sets small_a small_b small_c --modes full prompt --shots 0 1 3 --max-iter 100 --eval-period 25
    python tools/run_odinw.py --config-file configs/dyhead/dyhead_swin_t.yaml --weights dyhead_o365.pth \\
        --modes full --shots 1 3 5 10 all                                            # the detector without text

    python tools/run_odinw.py --config-file configs/demo/glipv2_micro.yaml --weights model_final.pth --num-gpus 0 \\
        --data photos other_photos --modes full --shots 0 all                         # own images, see docs/own_data.md

    python tools/run_odinw.py --config-file configs/demo/glipv2_micro.yaml --weights model_final.pth --num-gpus 0 \\
        --sets small_a --old-sets stampworld_val --unseen-sets small_b_test --shots 0 10 \\
        --modes full full+names full+replay full+keep lora+names                      # what is forgotten, and what not

A mode with "+names" forgets nothing: the tuned weights answer for the names of the set, the base for all others
(MODEL.GLIPV2.TUNING.KEEP). One set of weights has "+keep", with "+replay" without the choice of weights between base
and tuned model at its end, with "+between" by that choice alone. The table has the names of the sets, those of the
old sets, and those of the unseen sets, before the tuning (zero_shot) and after it.

A set NAME is three registered detection datasets, NAME_train, NAME_val and NAME_test; odinw13 and odinw35 stand for all
sets of these suites. A set without test images is tested on NAME_val. Each cell of the grid trains and tests in
processes of train_net.py, in a folder of its own, and is done when its results.json is there. The same command goes on
where a run was stopped: it skips the cells that are done, and resumes the one that was stopped. Shots are images of
each category, "0" is zero-shot, "all" is all data.

The recipe is that of the official runner: at most 200 epochs, where an epoch shows all images of a cell 8, 4, 2 or 1
times for 1, 3, 5 or 10 shots. After each epoch, the validation set decides on the learning rate, the best weights and
an early end.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from detectron2.data import DatasetCatalog
from detectron2.utils.file_io import PathManager
from odinw_modes import MODES, plain_mode, recipe, result_file
from odinw_report import ALL_DATA, ZERO_SHOT, finite, write_report

from glipv2_d2 import GLIPv2Trainer
from glipv2_d2.checkpoint.resume import BASE_WEIGHTS, KEPT_WEIGHTS
from glipv2_d2.config_files import find_config_file
from glipv2_d2.data.datasets.few_shot import few_shot_settings
from glipv2_d2.data.datasets.odinw import ODINW_13, ODINW_SETS
from glipv2_d2.data.loading import load_training_dicts
from glipv2_d2.data.own_sets import find_own_sets, register_own_sets
from glipv2_d2.engine.command_line import build_config, describe
from glipv2_d2.errors import InputError
from glipv2_d2.folders import lock_folder
from glipv2_d2.tensor_files import file_sha256, write_text

ROOT = Path(__file__).resolve().parents[1]
# Epochs, and the number of times that an epoch shows each image, by shots.
EPOCHS = 200
COPIES = {1: 8, 3: 4, 5: 2}
RESULTS, SETTINGS, LOG = "results.json", "cell.json", "process.log"

# Stages of the backbone that stay as they are in the official recipe. A config may freeze more.
FREEZE_KEY, FROZEN_STAGES = "MODEL.BACKBONE.FREEZE_AT", 2


class Cell(NamedTuple):
    """A cell of the grid; ``seed`` is None if nothing is trained."""

    dataset: str
    mode: str
    shots: str
    seed: int | None

    def folder(self, output: Path) -> Path:
        """Return the folder of this cell."""
        if self.mode == ZERO_SHOT:
            return output / self.dataset / ZERO_SHOT
        return output / self.dataset / f"{self.mode}_{self.shots}_seed{self.seed}"


class CellError(InputError):
    """A process of a cell failed, and the message is its last line; or the folder is of another run."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="configs/glip/glip_swin_t_c.yaml", help="default: %(default)s")
    parser.add_argument("--weights", required=True, help="weights of the model that is tuned")
    parser.add_argument("--sets", nargs="+", help="default: those of --data, or odinw13")
    parser.add_argument("--data", nargs="+", default=[], metavar="PATH", help="own images and boxes: more sets")
    parser.add_argument(
        "--modes", nargs="+", choices=MODES, metavar="MODE", default=["full", "prompt"], help="default: full prompt"
    )
    parser.add_argument("--shots", nargs="+", default=["0", "1", "3", "5", "10", ALL_DATA], help="default: %(default)s")
    parser.add_argument("--seeds", nargs="+", type=int, default=[3, 30, 300], help="default: 3 30 300; all: the 1st")
    parser.add_argument("--old-sets", nargs="+", default=[], help="datasets tested on as well; of prompts: the base")
    parser.add_argument("--unseen-sets", nargs="+", default=[], help="the same for names that no training has seen")
    parser.add_argument("--max-iter", type=int, help="updates instead of epochs")
    parser.add_argument("--eval-period", type=int, help="updates between two validations, with --max-iter")
    parser.add_argument("--metric", default="bbox/AP", help="default: %(default)s")
    parser.add_argument("--num-gpus", type=int, default=1, help="default: 1; 0: the CPU")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "odinw", help="default: output/odinw")
    parser.add_argument("--keep-weights", action="store_true", help="keep the weights of every cell that were tested")
    parser.add_argument("--mode-opts", nargs="+", action="append", default=[], metavar="WORD", help="MODE KEY VALUE...")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs for every cell")
    arguments = parser.parse_args(argv)
    wrong = [shots for shots in arguments.shots if shots != ALL_DATA and not shots.isdecimal()]
    if wrong:
        parser.error(f"--shots: expected numbers and {ALL_DATA!r}, found {wrong[0]!r}")
    if (arguments.max_iter is None) != (arguments.eval_period is None):
        parser.error("--max-iter and --eval-period: expected both or neither")
    for words in arguments.mode_opts:
        if words[0] not in {*arguments.modes, *map(plain_mode, arguments.modes)} or len(words) % 2 == 0:
            parser.error(f"--mode-opts: expected one of --modes and KEY VALUE pairs, found {' '.join(words)!r}")
    return arguments


def add_own_sets(arguments: argparse.Namespace) -> None:
    """Register the sets of ``--data`` here and in the processes of all cells; without ``--sets`` they are the sets.

    Raises:
        InputError, FileNotFoundError: One cannot be used.
    """
    paths = [os.path.abspath(path) for path in arguments.data]
    own = [find_own_sets(path) for path in paths]
    for one in own:
        register_own_sets(one, arguments.output / "datasets")
    arguments.sets = arguments.sets or [one.name for one in own] or ["odinw13"]
    if paths:
        arguments.opts = ["DATASETS.REGISTER", str(tuple(paths)), *arguments.opts]


def tested_data(dataset: str) -> str:
    """Return the name of the data that a set is tested on."""
    name = f"{dataset}_test"
    has_no_test = name not in DatasetCatalog and f"{dataset}_val" in DatasetCatalog
    return f"{dataset}_val" if has_no_test else name


def tested_datasets(arguments: argparse.Namespace, cell: Cell) -> tuple[str, ...]:
    """Return the names of all data that a cell is tested on."""
    # A tuned prompt answers for its own names alone, see ``base_results``.
    return (tested_data(cell.dataset), *(() if cell.mode == "prompt" else other_sets(arguments)))


def other_sets(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Return the names of the old and unseen sets, each once."""
    return tuple(dict.fromkeys([*arguments.old_sets, *arguments.unseen_sets]))


def expand_sets(sets: Sequence[str]) -> list[str]:
    """Return the sets, each once; ``odinw13`` and ``odinw35`` stand for all sets of these suites."""
    groups = {"odinw13": ODINW_13, "odinw35": tuple(ODINW_SETS)}
    names = [[f"odinw_{key}" for key in groups[name]] if name in groups else [name] for name in sets]
    return list(dict.fromkeys(name for group in names for name in group))


def plan_cells(sets: Sequence[str], modes: Sequence[str], shots: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """List the cells of the grid. The number of shots comes first in the order, so that early tables compare modes."""
    cells = []
    modes, seeds = list(dict.fromkeys(modes)), list(dict.fromkeys(seeds))
    for number in dict.fromkeys(word if word == ALL_DATA else str(int(word)) for word in shots):
        if number == "0":
            cells += [Cell(name, ZERO_SHOT, number, None) for name in sets]
            continue
        own_seeds = seeds[:1] if number == ALL_DATA else seeds
        cells += [Cell(name, mode, number, seed) for mode in modes for seed in own_seeds for name in sets]
    return cells


def schedule(arguments: argparse.Namespace, cell: Cell) -> list[str]:
    """Return the options that depend on the config and the training data of a cell, which are read here.

    These are the frozen stages, the length of the training, and the period of its validations.

    Raises:
        InputError: A dataset or a key of the config is unknown, or a category has too few images.
        FileNotFoundError: The data is not there.
    """
    options = [*data_options(cell), *mode_options(arguments, cell)]
    options_here = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(arguments.output)]
    cfg = build_config(str(ROOT / arguments.config_file), [*options, *options_here])
    filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    few_shot = few_shot_settings(cfg)
    num_images = sum(len(load_training_dicts(name, filter_empty, few_shot=few_shot)) for name in cfg.DATASETS.TRAIN)
    period, max_iter = arguments.eval_period, arguments.max_iter
    if period is None:
        copies = 1 if cell.shots == ALL_DATA else COPIES.get(int(cell.shots), 1)
        period = math.ceil(num_images * copies / cfg.SOLVER.IMS_PER_BATCH)
        max_iter = EPOCHS * period
    # The official runner keeps the long warm-up of pre-training, which is longer than a short run.
    warmup = min(cfg.SOLVER.WARMUP_ITERS, max_iter // 10)
    frozen = [] if FREEZE_KEY in options else [FREEZE_KEY, str(max(FROZEN_STAGES, cfg.MODEL.BACKBONE.FREEZE_AT))]
    return [
        *frozen,
        *("SOLVER.MAX_ITER", str(max_iter), "TEST.EVAL_PERIOD", str(period), "SOLVER.WARMUP_ITERS", str(warmup)),
        *("SOLVER.CHECKPOINT_PERIOD", str(period), "SOLVER.MAX_CHECKPOINTS", "2"),
    ]


def check_tests(arguments: argparse.Namespace, cell: Cell) -> None:
    """Read what a cell is tested on after its training, before it; what it is validated on the training reads first.

    Raises:
        InputError: Data cannot be used.
        FileNotFoundError: Data are not there.
    """
    tests = str(tested_datasets(arguments, cell))
    output = ["OUTPUT_DIR", str(cell.folder(arguments.output)), "DATASETS.TEST", tests, "MODEL.DEVICE", "cpu"]
    options = [*mode_options(arguments, cell), *output]
    GLIPv2Trainer.check_test_data(build_config(str(ROOT / arguments.config_file), options))


def data_options(cell: Cell) -> list[str]:
    """Return the options that choose training data, validation data and seed."""
    shots = "0" if cell.shots == ALL_DATA else cell.shots
    return [
        *("DATASETS.TRAIN", str((f"{cell.dataset}_train",)), "DATASETS.TEST", str((f"{cell.dataset}_val",))),
        *("DATASETS.FEW_SHOT.SHOTS", shots, "DATASETS.FEW_SHOT.SEED", str(cell.seed), "SEED", str(cell.seed)),
    ]


def mode_options(arguments: argparse.Namespace, cell: Cell) -> list[str]:
    """Return the recipe of a mode, with the changes of the command line."""
    options = recipe(cell.mode, cell.shots == ALL_DATA, arguments.metric)
    names = (plain_mode(cell.mode), cell.mode)
    options += [
        word for name in dict.fromkeys(names) for words in arguments.mode_opts if words[0] == name for word in words[1:]
    ]
    return [*options, *arguments.opts]


def commands(arguments: argparse.Namespace, cell: Cell, length: Sequence[str]) -> list[list[str]]:
    """Return the programs of a cell: the training, if there is one, and the test."""
    folder = cell.folder(arguments.output)
    start = ["train_net.py", "--config-file", arguments.config_file, "--num-gpus", str(arguments.num_gpus)]
    tests = str(tested_datasets(arguments, cell))
    test = ["OUTPUT_DIR", str(folder / "test"), "DATASETS.TEST", tests, "MODEL.WEIGHTS"]
    if cell.mode == ZERO_SHOT:
        return [[*start, "--eval-only", *arguments.opts, *test, arguments.weights]]
    options = mode_options(arguments, cell)
    output = ["OUTPUT_DIR", str(folder), "MODEL.WEIGHTS", arguments.weights]
    train = [*start, "--resume", *options, *data_options(cell), *length, *output]
    # The best weights contain the tuned weights that --opts may start from.
    result = ["MODEL.GLIPV2.TUNING.WEIGHTS", "", *test, str(folder / result_file(cell.mode))]
    return [train, [*start, "--eval-only", *options, *result]]


def call(command: Sequence[str], log: Path, lock: int, environment: Mapping[str, str] | None = None) -> None:
    """Run a program of this repository to its end, with its output in a file.

    The process holds the lock too. If this runner is killed, the process goes on, and the next runner must not start
    another one.

    Args:
        command: The program and its arguments.
        log: The file.
        lock: Descriptor of the locked folder.
        environment: Variables that the process has beside those of this one.

    Raises:
        CellError: The program failed.
    """
    with log.open("a") as stream:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            stdout=stream,
            stderr=subprocess.STDOUT,
            pass_fds=(lock,),
            env={**os.environ, **(environment or {})},
        )
        try:
            process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise CellError(f"{log}: {lines[-1] if lines else f'exit status {process.returncode}'}")


def base_results(arguments: argparse.Namespace, weights_hash: str, lock: int) -> dict:
    """Return the results of the base model on the other datasets, from their file or by testing it once.

    With a tuned prompt the model is the base for every other prompt.
    """
    folder = arguments.output / "base"
    start = ["train_net.py", "--config-file", arguments.config_file, "--num-gpus", str(arguments.num_gpus)]
    tests = ["OUTPUT_DIR", str(folder), "DATASETS.TEST", str(other_sets(arguments))]
    command = [*start, "--eval-only", *arguments.opts, *tests, "MODEL.WEIGHTS", arguments.weights]
    settings = {"weights_sha256": weights_hash, "command": command}
    if _read_json(folder / SETTINGS) != settings:
        folder.mkdir(parents=True, exist_ok=True)
        call(command, folder / LOG, lock)
        write_text(folder / SETTINGS, json.dumps(settings, indent=1))
    return _read_json(folder / "result_table.json")["results"]


def cell_settings(arguments: argparse.Namespace, cell: Cell, weights_hash: str) -> dict:
    """Return the settings that tell a cell from one of the same name with other options."""
    settings = {**cell._asdict(), "weights_sha256": weights_hash, "commands": commands(arguments, cell, [])}
    return settings | {"max_iter": arguments.max_iter, "eval_period": arguments.eval_period}


def run_cell(arguments: argparse.Namespace, cell: Cell, weights_hash: str, lock: int) -> dict:
    """Return the results of a cell, from its file or by training and testing it.

    Raises:
        CellError: A process failed, or the folder is of another run.
        InputError: The training data of the cell cannot be used.
    """
    folder = cell.folder(arguments.output)
    settings, known = cell_settings(arguments, cell, weights_hash), _read_json(folder / SETTINGS)
    changed = (
        f"{folder / SETTINGS}: expected the options of this run, found others; remove the folder or change --output"
    )
    if known is not None and known | settings != known:
        raise CellError(changed)
    results = _read_json(folder / RESULTS)
    if results is not None:
        # A run that was stopped after the results has left checkpoints.
        _remove_checkpoints(folder, keep_best=True)
        return results
    # This reads the data, which would take long for many cells that are done.
    settings["length"] = []
    if cell.mode != ZERO_SHOT:
        settings["length"] = schedule(arguments, cell)
        check_tests(arguments, cell)
    if known not in (None, settings):
        raise CellError(changed)
    programs = commands(arguments, cell, settings["length"])
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / SETTINGS, json.dumps(settings, indent=1))
    print(f"{folder.relative_to(arguments.output)}", flush=True)
    is_new, times = not (folder / "last_checkpoint").is_file(), []
    for program in programs:
        begin = time.monotonic()
        call(program, folder / LOG, lock)
        times.append(time.monotonic() - begin)
    table = _read_json(folder / "test" / "result_table.json")["results"]
    results = {**cell._asdict(), "value": _value(table[tested_data(cell.dataset)], arguments.metric)}
    # Of a training that went on after a stop nobody knows it.
    results["seconds"] = times[0] if is_new and cell.mode != ZERO_SHOT else None
    if cell.mode == "prompt" and other_sets(arguments):
        table = {**table, **base_results(arguments, weights_hash, lock)}
    results["old"] = {name: _value(table[name], arguments.metric) for name in arguments.old_sets}
    results["unseen"] = {name: _value(table[name], arguments.metric) for name in arguments.unseen_sets}
    results["table"] = table
    write_text(folder / RESULTS, json.dumps(results, indent=1))
    _remove_checkpoints(folder, arguments.keep_weights)
    return results


def _read_json(path: Path) -> dict | None:
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def _value(table: dict, metric: str) -> float:
    task, _, name = metric.partition("/")
    if name not in table.get(task, {}):
        found = [f"{kind}/{metric_name}" for kind, metrics in table.items() for metric_name in metrics]
        raise CellError(f"--metric: expected a result of the test, one of {', '.join(found[:6])}, found {metric!r}")
    value = table[task][name]
    return finite(math.nan if value is None else value)


def _remove_checkpoints(folder: Path, keep_best: bool) -> None:
    for path in [*folder.glob("*.pth"), folder / "last_checkpoint", folder / BASE_WEIGHTS]:
        if path.name not in ("model_best.pth", KEPT_WEIGHTS) or not keep_best:
            path.unlink(missing_ok=True)


def run_grid(arguments: argparse.Namespace, lock: int) -> list[str]:
    """Run all cells and write the report after each; return one line for each cell that failed."""
    sets = expand_sets(arguments.sets)
    cells = plan_cells(sets, arguments.modes, arguments.shots, arguments.seeds)
    weights_hash = file_sha256(PathManager.get_local_path(arguments.weights))
    head = {"config": arguments.config_file, "weights": arguments.weights, "sha256": weights_hash}
    head |= {"metric": arguments.metric, "options": shlex.join(arguments.opts) or "none"}
    head |= {f"options of {words[0]}": shlex.join(words[1:]) for words in arguments.mode_opts}
    if arguments.max_iter is not None:
        head["length"] = f"{arguments.max_iter} updates, validated every {arguments.eval_period}"
    head["deviation"] = "of a sample, over the seeds " + ", ".join(map(str, arguments.seeds))
    results, failures = [], {}
    for cell in cells:
        try:
            results.append(run_cell(arguments, cell, weights_hash, lock))
        except (InputError, OSError) as error:
            failures[cell.folder(arguments.output)] = describe(error)
            print(f"failed: {cell.folder(arguments.output)}: {describe(error)}", file=sys.stderr, flush=True)
        reasons = {str(folder.relative_to(arguments.output)): reason for folder, reason in failures.items()}
        write_report(arguments.output, results, sets, head, reasons)
    return [f"{folder}: {reason}" for folder, reason in failures.items()]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the grid; end with an error if a cell failed."""
    arguments = parse(argv)
    arguments.output = arguments.output.resolve()
    try:
        config = Path(find_config_file(arguments.config_file)).resolve()
    except (FileNotFoundError, InputError) as error:
        sys.exit(f"run_odinw: --config-file: {error}")
    # Programs run in the folder of the repository.
    arguments.config_file = str(config.relative_to(ROOT) if config.is_relative_to(ROOT) else config)
    if "://" not in arguments.weights:
        arguments.weights = str(Path(arguments.weights).resolve())
        if not Path(arguments.weights).is_file():
            sys.exit(f"run_odinw: --weights: expected a checkpoint, found no file at {arguments.weights}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    # A plain kill of this program ends the process of the cell, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("run_odinw: stopped; the same command goes on from here"))
    try:
        with lock_folder(arguments.output, "--output") as lock:
            add_own_sets(arguments)
            failures = run_grid(arguments, lock)
    except (InputError, OSError) as error:
        sys.exit(f"run_odinw: {error}")
    except KeyboardInterrupt:
        sys.exit("run_odinw: stopped; the same command goes on from here")
    print((arguments.output / "table.md").read_text() if (arguments.output / "table.md").is_file() else "no results")
    if failures:
        sys.exit(f"run_odinw: {len(failures)} cells failed:\n" + "\n".join(failures))


if __name__ == "__main__":
    main()
