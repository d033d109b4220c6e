#!/usr/bin/env python
"""Compare ways to train on sets of one's own images and boxes: a table of sets, numbers of shots and methods.

    python tools/compare_own_sets.py --data real/raccoon real/bccd real/face_mask
    python tools/compare_own_sets.py --data real/* --weights output/demo/run/model_final.pth --jobs 2 \\
        --methods zero_shot prompt linear_probe lora full retinanet fcos --updates 300 \\
        --shots all 1 3 5 10 --few-shot-methods prompt linear_probe lora full --few-shot-updates 75

Each cell is a run of `glipv2 train` with the settings that it chooses, "full", or with a smaller part of the model
trained; "retinanet" and "fcos" train the detectors of detectron2 on the same backbone, with the updates and image sizes
of "full" (tools/closed_vocabulary.py). A cell is done when its results.json is there: the same command goes on where it
was stopped, and one with other data, weights or keys fails in the cells that are done. The output folder gets table.md,
with AP, AP50 and minutes of every cell, and table.json, the same in numbers, from which table.md is made.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from glipv2_d2.data.own_sets.find import set_name
from glipv2_d2.engine.own_run import find_start, plan_run
from glipv2_d2.engine.run_report import write_results
from glipv2_d2.errors import InputError, one_line
from glipv2_d2.tensor_files import file_sha256, write_text

ROOT = Path(__file__).resolve().parents[1]
ZERO_SHOT, BASELINES, TUNED = "zero_shot", ("retinanet", "fcos"), ("prompt", "linear_probe", "lora")
METHODS = (ZERO_SHOT, *TUNED, "full", *BASELINES)
ALL_DATA = "all"
RESULTS, SETTINGS, LOG = "results.json", "cell.json", "process.log"
# Beside the mode. The prompt is the same for every image, as prompt tuning needs it; its rates are those of run_odinw.
MODE_KEYS = {
    "prompt": ("INPUT.PROMPT.SHUFFLE", "False", "SOLVER.BASE_LR", "0.05", "SOLVER.WEIGHT_DECAY", "0.25"),
}


class Cell(NamedTuple):
    """A cell of the table."""

    data: Path
    method: str
    shots: str

    def folder(self, output: Path) -> Path:
        """Return the folder of this cell."""
        shots = [] if self.method == ZERO_SHOT else [self.shots]
        return output.joinpath(self.name, *shots, self.method)

    @property
    def name(self) -> str:
        """The name of the set."""
        return set_name(str(self.data))


def cells_of(arguments: argparse.Namespace) -> list[Cell]:
    """Return the cells in the order in which they run: a baseline after the run that it is like."""
    few = arguments.few_shot_methods or arguments.methods
    return [
        Cell(Path(os.path.abspath(data)), method, shots)
        for data in arguments.data
        for shots in arguments.shots
        for method in METHODS
        if method in (arguments.methods if shots == ALL_DATA else few)
        and (method != ZERO_SHOT or shots == arguments.shots[0])
    ]


def keys_of(cell: Cell, arguments: argparse.Namespace) -> list[str]:
    """Return the config keys that the command line changes for a cell: updates, one evaluation at their end, --opts."""
    updates = arguments.updates if cell.shots == ALL_DATA else arguments.few_shot_updates
    periods = ("SOLVER.MAX_ITER", "TEST.EVAL_PERIOD", "SOLVER.CHECKPOINT_PERIOD") if updates else ()
    return [*(word for key in periods for word in (key, str(updates))), *arguments.opts]


def command_of(cell: Cell, output: Path, weights: str, keys: Sequence[str] = ()) -> list[str]:
    """Return the command of a cell that is not done, with changed config keys."""
    folder = cell.folder(output)
    if cell.method in BASELINES:
        run = cell._replace(method="full").folder(output)
        script = str(ROOT / "tools" / "closed_vocabulary.py")
        words = [script, "--detector", cell.method, "--run", str(run), "--output", str(folder)]
        return [sys.executable, *words, *(["--opts", *keys] if keys else [])]
    program = [sys.executable, "-m", "glipv2_d2"]
    if cell.method == ZERO_SHOT:
        # The images and sizes that a training of these data is validated with.
        plan = plan_run(str(cell.data), folder, find_start(weights, "", ROOT), options=keys)
        return [*program, "eval", "--config-file", plan.config_file, "--num-gpus", "0", *plan.options]
    if (folder / "last_checkpoint").is_file():
        return [*program, "train", "--output", str(folder), "--resume"]
    words = ["train", "--data", str(cell.data), "--output", str(folder), "--overwrite"]
    words += ["--weights", weights] if weights else []
    if cell.shots != ALL_DATA:
        words += ["DATASETS.FEW_SHOT.SHOTS", cell.shots, "DATASETS.FEW_SHOT.ALLOW_FEWER", "True"]
    if cell.method in TUNED:
        words += ["MODEL.GLIPV2.TUNING.MODE", cell.method, *MODE_KEYS.get(cell.method, ())]
    return [*program, *words, *keys]


def run_cell(
    cell: Cell, output: Path, weights: str, keys: Sequence[str] = (), variables: Mapping[str, str] | None = None
) -> str:
    """Run a cell unless it is done, with changed config keys and variables; return "" or why it failed."""
    folder = cell.folder(output)
    path = folder / SETTINGS
    try:
        settings = {"data": str(cell.data), "weights_sha256": weights and file_sha256(weights), "keys": list(keys)}
        is_changed = path.is_file() and json.loads(path.read_text("utf-8")) != settings
        if (folder / RESULTS).is_file():
            changed = f"{path}: expected the options of this run, found others; remove the folder or change --output"
            return changed if is_changed else ""
        if is_changed:
            # What was begun with other options cannot go on with these.
            (folder / "last_checkpoint").unlink(missing_ok=True)
        command = command_of(cell, output, weights, keys)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(settings, indent=1) + "\n")
    except (InputError, OSError) as error:
        return one_line(error)
    begin = time.time()
    sys.stdout.write(f"$ {shlex.join(command)}\n")
    sys.stdout.flush()
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, **(variables or {})}
    with (folder / LOG).open("a") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    if done.returncode:
        lines = (folder / LOG).read_text(errors="replace").strip().splitlines()
        return f"exit status {done.returncode}: {lines[-1] if lines else 'no output'}"
    if cell.method == ZERO_SHOT:
        table = json.loads((folder / "result_table.json").read_text())
        (results,) = table["results"].values()
        results = {task: {k: math.nan if v is None else v for k, v in one.items()} for task, one in results.items()}
        write_results(folder / RESULTS, results, (time.time() - begin) / 60, weights)
    return ""


def record_of(cell: Cell, output: Path, failure: str = "") -> dict[str, Any]:
    """Return what is known of a cell: where it stands, and its scores and minutes, why it failed, or nothing more."""
    record: dict[str, Any] = {"set": cell.name, "shots": cell.shots, "method": cell.method}
    path = cell.folder(output) / RESULTS
    if failure or not path.is_file():
        return {**record, "failed": failure} if failure else record
    content = json.loads(path.read_text())
    box = content["val"]["bbox"]
    return {**record, "AP": box["AP"], "AP50": box["AP50"], "minutes": content["minutes"]}


def table_of(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the table in markdown: AP / AP50 and minutes, "-" for a cell that is not done; then what it says."""
    methods = list(dict.fromkeys(record["method"] for record in records))
    lines = [f"| set | shots | {' | '.join(methods)} |", f"| --- | --- |{' ---: |' * len(methods)}"]
    by_place = {(record["set"], record["shots"], record["method"]): record for record in records}
    for name, shots in dict.fromkeys((record["set"], record["shots"]) for record in records):
        texts = [_cell_text(by_place.get((name, shots, method), {})) for method in methods]
        lines.append(f"| {name} | {shots} | {' | '.join(texts)} |")
    failures = [one for one in records if "failed" in one]
    ahead = [line for shots in dict.fromkeys(one["shots"] for one in records) for line in _ahead(by_place, shots)]
    notes = [*ahead, *(f"{one['set']} {one['shots']} {one['method']}: {one['failed']}" for one in failures)]
    return "\n".join([*lines, "", *notes]).strip() + "\n"


def _cell_text(record: Mapping[str, Any]) -> str:
    if "minutes" not in record:
        return "failed" if "failed" in record else "-"
    scores = " / ".join("-" if record[key] is None else f"{record[key]:.1f}" for key in ("AP", "AP50"))
    return f"{scores} ({record['minutes']:.1f} min)"


def _ahead(by_place: Mapping[tuple[str, str, str], Mapping[str, Any]], shots: str) -> list[str]:
    """Say on how many sets "full" is ahead of all baselines, of those where all are done."""
    names = dict.fromkeys(name for name, number, _ in by_place if number == shots)
    rows = [[by_place.get((name, shots, method), {}) for method in ("full", *BASELINES)] for name in names]
    rows = [row for row in rows if all("minutes" in one for one in row)]
    if not rows:
        return []
    # A class without boxes leaves no AP.
    counts = {
        key: sum((full[key] or 0) > max(one[key] or 0 for one in others) for full, *others in rows)
        for key in ("AP", "AP50")
    }
    parts = ", ".join(f"{count} in {key}" for key, count in counts.items())
    return [f"Shots {shots}: full is ahead of {' and '.join(BASELINES)} on {parts}, of {len(rows)} sets."]


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="folders or files, one for each set")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["full", *BASELINES])
    parser.add_argument("--shots", nargs="+", default=[ALL_DATA], help="images of each class, or all; default: all")
    parser.add_argument("--few-shot-methods", nargs="+", choices=METHODS, help="of few shots; default: --methods")
    for option, cells in (("--updates", "cells with all images"), ("--few-shot-updates", "the others")):
        text = f"of {cells}, evaluated once, at the end; default: those of glipv2 train"
        parser.add_argument(option, type=int, default=0, metavar="N", help=text)
    parser.add_argument("--weights", default="", help="start from these; default: from the pretrained encoders")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "own_sets", help="default: output/own_sets")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the CPU cores; default: 1")
    parser.add_argument("--remove-weights", action="store_true", help="keep of a cell that is done its results alone")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs for every cell; last")
    arguments = parser.parse_args(argv)
    for methods in (arguments.methods, arguments.few_shot_methods or []):
        needing = [method for method in methods if method in (ZERO_SHOT, *TUNED)]
        if needing and not arguments.weights:
            parser.error(f"--methods: expected --weights for {', '.join(needing)}, found none")
        if set(methods) & set(BASELINES) and "full" not in methods:
            parser.error("--methods: expected 'full' beside a baseline, which takes its settings, found none")
    names = [Cell(Path(os.path.abspath(data)), ZERO_SHOT, ALL_DATA).name for data in arguments.data]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        parser.error(f"--data: expected sets of different names, found {twice[0]!r} twice; rename a folder")
    for shots in arguments.shots:
        if shots != ALL_DATA and not (shots.isdigit() and int(shots) > 0):
            parser.error(f"--shots: expected numbers above 0, or {ALL_DATA}, found {shots!r}")
    if arguments.jobs < 1:
        parser.error(f"--jobs: expected a number above 0, found {arguments.jobs}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return how many cells failed, at most 1."""
    arguments = parse_arguments(argv)
    output, weights = arguments.output.resolve(), arguments.weights and os.path.abspath(arguments.weights)
    cells, failures, lock, stopped = cells_of(arguments), {}, threading.Lock(), threading.Event()
    output.mkdir(parents=True, exist_ok=True)
    # A job of a cluster may use few cores of a machine; macOS leaves all to everyone.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = str(max(1, cores // arguments.jobs))
    variables = {} if arguments.jobs == 1 else {"OMP_NUM_THREADS": threads}

    def run(group: Iterable[Cell]) -> None:
        for cell in group:
            if stopped.is_set():
                return
            reason = run_cell(cell, output, weights, keys_of(cell, arguments), variables)
            if not reason and arguments.remove_weights:
                for path in cell.folder(output).glob("*.pth"):
                    path.unlink()
            with lock:
                if reason:
                    failures[cell] = reason
                records = [record_of(one, output, failures.get(one, "")) for one in cells]
                write_text(str(output / "table.json"), "[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n")
                write_text(str(output / "table.md"), table_of(records))

    # A baseline needs the run that it is like: the cells of a set and a number of shots run one after the other.
    groups = [list(group) for _, group in groupby(cells, lambda cell: (cell.data, cell.shots))]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        try:
            list(pool.map(run, groups))
        except KeyboardInterrupt:
            # The runs have had it too; nothing more is started.
            stopped.set()
            sys.stderr.write("stopped: the same command goes on from here\n")
            return 130
    sys.stdout.write((output / "table.md").read_text())
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
