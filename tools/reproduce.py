#!/usr/bin/env python
"""Evaluate the released GLIP weights on the data of their published figures, and say whether the figures come out.

    python tools/reproduce.py --list                           # all rows, with their figures
    python tools/reproduce.py --check "glip_t_c/*"             # are the files those that were published?
    python tools/reproduce.py --smoke "*" --num-gpus 0         # every row on 50 images of each dataset, to see it run
    python tools/reproduce.py glip_t_c/coco --num-gpus 8
    python tools/reproduce.py "*" --num-gpus 8

A row is MODEL/SUITE, and a pattern stands for all rows that match. The weights lie in --weights, the datasets where the
environment variable DETECTRON2_DATASETS says (datasets/README.md); a row that lacks a file says which one, and where to
get it. A row is a run of `train_net.py --eval-only` and is done when its result.json is there: the same command goes on
where it was stopped. report.md and report.json in the output folder are written after each row.

A row passes if all figures that were measured with its file come out within their margins, which
tools/published_rows.py gives with their reasons, and if its weights and the number of images are the published ones.
Figures of other weights are shown beside the result.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import functools
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from image_counts import count_images
from published_rows import ADDRESSES, DATA_FILES, MODELS, NUM_IMAGES, ROWS, SUITES, Figure, KnownFile, Model, address_of
from run_odinw import LOG, ROOT, call
from smoke_data import copy_first_images

from glipv2_d2.data.loading import check_is_available
from glipv2_d2.engine.command_line import build_config, describe
from glipv2_d2.errors import InputError
from glipv2_d2.folders import lock_folder
from glipv2_d2.likeness import did_you_mean
from glipv2_d2.tensor_files import file_sha256, write_text

RESULT, SMOKE_IMAGES = "result.json", 50
# A figure has one decimal, so that a result on the edge of the margin is a sum of rounded numbers.
ROUNDING = 1e-6
GOOD = ("pass", "compared", "ran")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="MODEL/SUITE or a pattern such as 'glip_t/*'")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="list the rows, by default all")
    what.add_argument("--check", action="store_true", help="compare sizes, SHA-256 and numbers of images; run nothing")
    what.add_argument("--smoke", action="store_true", help="run on 50 images of each dataset, and compare nothing")
    parser.add_argument("--weights", type=Path, default=ROOT / "weights", help="folder of weights, default: weights")
    parser.add_argument("--num-gpus", type=int, default=1, help="default: 1; 0: the CPU")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "reproduce", help="default: output/reproduce")
    arguments = parser.parse_args(argv)
    patterns = arguments.rows or (["*"] if arguments.list else [])
    if not patterns:
        parser.error("ROW: expected a row or a pattern, found none; --list shows all")
    for pattern in patterns:
        if not fnmatch.filter(ROWS, pattern):
            parser.error(f"ROW: expected one of --list, found {pattern!r}{did_you_mean(pattern, ROWS)}")
    arguments.rows = [name for name in ROWS if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    arguments.weights, arguments.output = arguments.weights.resolve(), arguments.output.resolve()
    return arguments


def model_of(row: str) -> Model:
    """Return the model of a row."""
    return MODELS[row.split("/")[0]]


def datasets_of(row: str) -> tuple[str, ...]:
    """Return the names of the datasets of a row, those of its suite's config or their validation splits."""
    suite = SUITES[row.split("/")[1]]
    names = _tested(suite.config)
    return tuple(f"{name.removesuffix('_test')}_val" for name in names) if suite.is_of_val else names


@functools.cache
def _tested(config: str) -> tuple[str, ...]:
    return tuple(build_config(str(ROOT / config), ["MODEL.DEVICE", "cpu"]).DATASETS.TEST)


def data_root() -> Path:
    """Return the folder of all datasets."""
    return Path(os.path.abspath(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets"))))


def command_of(row: str, arguments: argparse.Namespace, folder: Path) -> list[str]:
    """Return the program of a row."""
    model = model_of(row)
    return [
        *("train_net.py", "--config-file", model.config, "--num-gpus", str(arguments.num_gpus), "--eval-only"),
        *("DATASETS.TEST", str(datasets_of(row)), *SUITES[row.split("/")[1]].options),
        *("MODEL.WEIGHTS", str(arguments.weights / model.file.path), "OUTPUT_DIR", str(folder)),
    ]


def list_rows(rows: Iterable[str]) -> str:
    """Return a table of rows in markdown: weights, the figures that decide, and those of other weights."""
    lines = ["| row | weights | decides | other weights |", "| --- | --- | --- | --- |"]
    for row in rows:
        cells = ["; ".join(_texts(ROWS[row], decides)) or "-" for decides in (True, False)]
        lines.append(f"| `{row}` | `{model_of(row).file.path}` | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def _texts(figures: Iterable[Figure], decides: bool) -> list[str]:
    """Return figures as texts, those of one dataset and source together."""
    groups: dict[tuple, list[Figure]] = {}
    for one in figures:
        if (one.margin is not None) == decides:
            groups.setdefault((one.data, one.source), []).append(one)
    texts = []
    for (data, source), group in groups.items():
        split = f"{data.rpartition('_')[2]} " if data.startswith("flickr30k") else ""
        values = ", ".join(f"{one.metric.rpartition('/')[2]} {one.value}{_margin_text(one)}" for one in group)
        texts.append(f"{split}{values} ({source})")
    return texts


def _margin_text(figure: Figure) -> str:
    return f" ± {figure.margin.points}" if figure.margin else ""


# --- the files of a row


def missing(row: str, weights: Path) -> list[str]:
    """Return what a row lacks, each with where to get it."""
    file = model_of(row).file
    found = []
    if not (weights / file.path).is_file():
        found.append(f"weights: expected {weights / file.path}, found no file; from {file.address}")
    for name in datasets_of(row):
        try:
            check_is_available(name)
        except FileNotFoundError as error:
            found.append(f"{error}; from {address_of(name)}")
    return found


def annotation_files(row: str) -> list[Path]:
    """Return the json files of a row's datasets, and the lists of images of those without json."""
    found = [MetadataCatalog.get(name) for name in datasets_of(row)]
    return [Path(one.get("json_file") or one.image_ids_file) for one in found]


def check_file(path: Path, known: KnownFile) -> tuple[bool, str]:
    """Compare a file with what was published of it.

    Returns:
        Whether nothing differs, and a line for the user. Of a file of which no sum is known it has the measured one.
    """
    size = path.stat().st_size
    if known.size not in (None, size):
        return False, f"{path}: expected {known.size:,} bytes, found {size:,}; get it again from {known.address}"
    found = file_sha256(path)
    if known.sha256 is None:
        return True, f"{path}: {size:,} bytes, SHA-256 {found}; no published sum is known"
    if found != known.sha256:
        return False, f"{path}: expected SHA-256 {known.sha256}, found {found}; get it again from {known.address}"
    return True, f"{path}: {size:,} bytes, the published SHA-256"


def check_images(name: str) -> tuple[bool, str]:
    """Compare the number of images of a dataset with the published one."""
    found, expected = count_images(name), NUM_IMAGES[name]
    if found != expected:
        return False, f"{name}: expected {expected} images that can be used, found {found}"
    return True, f"{name}: {found} images"


def check(arguments: argparse.Namespace) -> bool:
    """Check the files of all rows, each once, and print a line for each; return whether nothing is missing or wrong."""
    is_good = True
    done: set[object] = set()
    for row in arguments.rows:
        lacks = missing(row, arguments.weights)
        new = [line for line in lacks if line not in done]
        lines = new if len(new) == len(lacks) else [*new, f"{row}: {len(lacks) - len(new)} as above"]
        for line in lines:
            print(f"missing: {line}", flush=True)
        done.update(lacks)
        is_good &= not lacks
        file = model_of(row).file
        files = {arguments.weights / file.path: file}
        files |= {path: _known(path) for path in annotation_files(row)}
        for path, known in files.items():
            if path not in done and path.is_file():
                done.add(path)
                is_good &= _say(*check_file(path, known))
        for name in datasets_of(row):
            if name not in done and not any(name in line for line in lacks):
                done.add(name)
                is_good &= _check_readable(name)
    return is_good


def _known(path: Path) -> KnownFile:
    below = Path(os.path.relpath(os.path.abspath(path), data_root())).as_posix()
    return DATA_FILES.get(below) or KnownFile(below, ADDRESSES[below.split("/")[0]])


def _check_readable(name: str) -> bool:
    try:
        return _say(*check_images(name))
    except (InputError, OSError) as error:
        return _say(False, describe(error))


def _say(is_good: bool, line: str) -> bool:
    print(f"{'good' if is_good else 'WRONG'}: {line}", flush=True)
    return is_good


# --- running


def fingerprints(row: str, weights: Path) -> dict[str, list[int]]:
    """Return size and time of the files that a result depends on: a row runs again when one has changed."""
    paths = [weights / model_of(row).file.path, *annotation_files(row)]
    return {str(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in paths}


def run_row(row: str, arguments: argparse.Namespace, lock: int) -> dict[str, Any]:
    """Return the result of a row, from its file or by running it.

    Raises:
        InputError: Its program failed, or its data cannot be used.
        OSError: A file cannot be read or written.
    """
    lacks = missing(row, arguments.weights)
    if lacks:
        return {"row": row, "verdict": "missing", "missing": lacks, "figures": []}
    folder = arguments.output / ("smoke" if arguments.smoke else "full") / row
    settings = {"command": command_of(row, arguments, folder), "files": fingerprints(row, arguments.weights)}
    if not arguments.smoke:
        settings["images"] = {name: count_images(name) for name in datasets_of(row)}
    known = json.loads((folder / RESULT).read_text("utf-8")) if (folder / RESULT).is_file() else {}
    if {key: known.get(key) for key in settings} != settings:
        if known:
            print(f"{row}: its files, images or command have changed since its result", flush=True)
        images = evaluate(row, arguments, folder, settings, lock)
        known = {"date": datetime.date.today().isoformat(), **settings, "images": images}
    # What is published may have been mended since a result, so it is always compared anew.
    table = json.loads((folder / "result_table.json").read_text("utf-8"))
    sums = {"sha256": table["weights"]["MODEL.WEIGHTS"]["sha256"], "published_sha256": model_of(row).file.sha256}
    result = {
        **known,
        "row": row,
        **sums,
        "figures": [compare(one, table, is_smoke=arguments.smoke) for one in ROWS[row]],
    }
    result["verdict"] = verdict(result["figures"], is_published=not differences(result))
    write_text(folder / RESULT, json.dumps(result, indent=1) + "\n")
    return result


def evaluate(
    row: str, arguments: argparse.Namespace, folder: Path, settings: Mapping[str, Any], lock: int
) -> dict[str, int]:
    """Run the program of a row; return the number of images of each dataset."""
    folder.mkdir(parents=True, exist_ok=True)
    root, images = data_root(), settings.get("images")
    if images is None:
        root = arguments.output / "smoke" / "datasets" / row.split("/")[1]
        images = copy_first_images(datasets_of(row), data_root(), root, SMOKE_IMAGES)
    print(f"{row}: python {shlex.join(settings['command'])}", flush=True)
    call(settings["command"], folder / LOG, lock, {"DETECTRON2_DATASETS": str(root)})
    return images


def compare(figure: Figure, table: Mapping[str, Any], *, is_smoke: bool = False) -> dict[str, Any]:
    """Compare a figure with a result_table.json.

    Returns:
        The figure, what was ``measured`` (None if it is not defined) and a ``verdict``: "pass" or "fail" of a figure
        that decides, "compared" of one of other weights, and "ran" if the result is of a few images.
    """
    summary = table["summary"].get(figure.data)
    task, _, metric = figure.metric.rpartition("/")
    values = summary["mean"] if summary else table["results"][figure.data]
    measured = values.get(task, {}).get(metric)
    if is_smoke:
        word = "ran"
    elif figure.margin is None:
        word = "compared"
    else:
        is_near = measured is not None and abs(measured - figure.value) <= figure.margin.points + ROUNDING
        word = "pass" if is_near else "fail"
    return {
        **{"data": figure.data, "metric": figure.metric, "published": figure.value, "source": figure.source},
        **{"measured": measured, "margin": figure.margin and figure.margin._asdict(), "verdict": word},
    }


def verdict(figures: Sequence[Mapping[str, Any]], *, is_published: bool) -> str:
    """Return the verdict of a row: "fail" if one figure fails, otherwise that of its first figure.

    A row that was not measured with the published weights and all images does not pass.
    """
    words = [one["verdict"] for one in figures]
    return "fail" if "fail" in words or (words[0] == "pass" and not is_published) else words[0]


# --- reports


def lines_of(result: Mapping[str, Any]) -> list[str]:
    """Return what the user reads about a row."""
    lines = [f"{result['row']}: {result['verdict']}", *(f"  {line}" for line in result.get("missing", ()))]
    if "reason" in result:
        lines.append(f"  {result['reason']}")
    if result.get("images"):
        lines.append("  images: " + ", ".join(f"{name} {number}" for name, number in result["images"].items()))
    lines += [f"  {note}" for note in notes_of(result)]
    for one in result["figures"]:
        text = f"  {one['data']} {one['metric']}: {_value(one['measured'])} measured"
        if one["verdict"] != "ran":
            text += f", {one['published']} published ({one['source']}): {one['verdict']}"
        if one["verdict"] in ("pass", "fail"):
            text += f", margin {one['margin']['points']}: {one['margin']['reason']}"
        lines.append(text)
    return lines


def notes_of(result: Mapping[str, Any]) -> list[str]:
    """Return what is not as it was published, and a sentence about weights of which no sum is known."""
    notes = differences(result)
    if "sha256" in result and not result["published_sha256"]:
        notes.insert(0, f"weights: SHA-256 {result['sha256']}, no sum is known")
    return notes


def differences(result: Mapping[str, Any]) -> list[str]:
    """Return a sentence about weights that are not the published ones, and on each dataset that lacks images."""
    found, expected = result.get("sha256"), result.get("published_sha256")
    notes = [f"weights: SHA-256 {found}, not the published file: {expected}"] if expected and found != expected else []
    if all(one["verdict"] != "ran" for one in result["figures"]):
        numbers = [(name, number, NUM_IMAGES[name]) for name, number in result.get("images", {}).items()]
        notes += [f"{name}: {number} of {whole} images" for name, number, whole in numbers if number != whole]
    return notes


def write_report(results: Sequence[Mapping[str, Any]], output: Path, *, is_smoke: bool) -> Path:
    """Write the rows so far as json and as markdown, each whole or not at all; return the path of the markdown."""
    path = output / ("smoke_report.md" if is_smoke else "report.md")
    write_text(path.with_suffix(".json"), json.dumps({"rows": results}, indent=1) + "\n")
    title = f"Rehearsal on at most {SMOKE_IMAGES} images of a dataset: nothing is compared"
    head = ["row", "verdict", "data", "metric", "measured", "published", "margin", "source"]
    lines = [f"# {title if is_smoke else 'Published figures'}", "", _line(head), _line(["---"] * len(head))]
    for result in results:
        reason = "; ".join(result.get("missing", [result.get("reason", "")]))
        if not result["figures"]:
            lines.append(_line([result["row"], f"{result['verdict']}: {reason}", *["-"] * 6]))
        for one in result["figures"]:
            points = str(one["margin"]["points"]) if one["margin"] else "other weights"
            numbers = [_value(one["measured"]), str(one["published"]), points]
            lines.append(_line([result["row"], one["verdict"], one["data"], one["metric"], *numbers, one["source"]]))
    notes = [f"- {result['row']}: {note}" for result in results for note in notes_of(result)]
    reasons = {one["margin"]["reason"] for result in results for one in result["figures"] if one["margin"]}
    if reasons and not is_smoke:
        lines += ["", "## Why these margins", "", *(f"- {reason}" for reason in sorted(reasons))]
    lines += ["", "## Weights and images", "", *notes] if notes else []
    write_text(path, "\n".join(lines) + "\n")
    return path


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(' '.join(cell.split()).replace('|', '/') for cell in cells)} |"


def _value(number: float | None) -> str:
    return "undefined" if number is None else f"{number:.2f}"


def run(arguments: argparse.Namespace, lock: int) -> bool:
    """Run all rows; return whether none lacks a file, failed or is too far from its figures."""
    results: list[dict[str, Any]] = []
    for row in arguments.rows:
        try:
            result = run_row(row, arguments, lock)
        except (InputError, OSError) as error:
            result = {"row": row, "verdict": "error", "reason": describe(error), "figures": []}
        results.append(result)
        print("\n".join(lines_of(result)), flush=True)
        path = write_report(results, arguments.output, is_smoke=arguments.smoke)
    print(f"written: {path}", flush=True)
    return all(result["verdict"] in GOOD for result in results)


def main(argv: Sequence[str] | None = None) -> None:
    """List, check or run rows; the exit status is 1 if one is not as it should be."""
    arguments = parse(argv)
    if arguments.list:
        print(list_rows(arguments.rows))
        return
    if arguments.check:
        sys.exit(None if check(arguments) else 1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    stopped = "reproduce: stopped; the same command goes on from here"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(stopped))
    try:
        with lock_folder(arguments.output, "--output") as lock:
            is_good = run(arguments, lock)
    except InputError as error:
        sys.exit(f"reproduce: {error}")
    except KeyboardInterrupt:
        sys.exit(stopped)
    sys.exit(None if is_good else 1)


if __name__ == "__main__":
    main()
