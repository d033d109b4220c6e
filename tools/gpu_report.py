#!/usr/bin/env python
"""Say in one report what this machine's GPU does with the project: is it right, how fast is it, how much memory.

    python tools/gpu_report.py --output output/gpu_report
    python tools/gpu_report.py --output output/try --device cpu --config-file CONFIG --sizes 64x96 --names 3 --batches 1

Parts, each in a process of its own: the machine with its rates, the tests marked ``gpu``, kernels and models against
the CPU, the contrastive loss, latency and throughput (eager), training, host syncs, the kernels that take most time,
and latency and throughput (compiled). All share --minutes: a part has a share of what is left, and what it does not
use is left for the next ones. A part that is slower ends there, with the rows it has. What fails is a row of its own.

gpu_report.json and gpu_report.md are renewed after every part, so a run that is stopped loses one part at most.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).resolve().parent
# Name: its share of the time against that of the others, and its heading. The last one can use all that is left: nobody
# knows how long a compiler takes.
PARTS = {
    "machine": (2, "Machine"),
    "tests": (4, "Tests marked gpu"),
    "equality": (3, "Against the CPU in float32"),
    "contrastive": (1, "Contrastive loss, forward and backward"),
    "eager": (5, "Latency and throughput, eager"),
    "training": (4, "Training steps in bfloat16"),
    "syncs": (1, "Host syncs"),
    "kernels": (2, "Kernels that take most time, bfloat16"),
    "compiled": (8, "Latency and throughput, compiled"),
}
LAST_LINES = 5  # of what a part that fails says
SECONDS_TO_END = 3  # from the request to end until a process is ended

Row = dict[str, Any]


def size(text: str) -> tuple[int, int]:
    """Read HEIGHTxWIDTH."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH, found {text!r}")
    return int(match[1]), int(match[2])


def positive(text: str) -> int:
    """Read a whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text!r}")
    return int(text)


def minutes(text: str) -> float:
    """Read a number above 0."""
    if not re.fullmatch(r"\d+(\.\d+)?", text) or float(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text!r}")
    return float(text)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the report")
    parser.add_argument("--device", default="cuda", metavar="DEVICE", help="(default: cuda; cpu rehearses the report)")
    parser.add_argument("--minutes", type=minutes, default=9.0, metavar="M", help="for all parts (default: 9)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--config-file", default="glip_swin_t_c", metavar="FILE", help="model of the latencies")
    parser.add_argument("--train-config-file", default="glipv2_swin_t", metavar="FILE", help="model that trains")
    parser.add_argument("--sizes", nargs="+", type=size, default=[(800, 1333), (480, 640)], metavar="HxW")
    parser.add_argument("--names", nargs="+", type=positive, default=[80, 20, 1203], metavar="N")
    parser.add_argument("--batches", nargs="+", type=positive, default=[1, 16], metavar="N")
    parser.add_argument("--train-batch", type=positive, default=4, metavar="N", help="images of a step (default: 4)")
    parser.add_argument("--compiler", default="inductor", metavar="NAME", help="backend of torch.compile")
    return parser.parse_args(argv)


def run_part(name: str, arguments: argparse.Namespace, limit: float) -> list[Row]:
    """Run a part for at most ``limit`` seconds; return its rows. What goes wrong with the whole is the last."""
    folder = Path(arguments.output) / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    rows_file, said_file = folder / f"{name}.jsonl", folder / f"{name}.txt"
    rows_file.write_text("")
    command = [sys.executable, "-m", "benchmarks.gpu_parts", name, str(rows_file), json.dumps(vars(arguments))]
    paths = [str(TOOLS), str(TOOLS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with said_file.open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment, start_new_session=True)
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            end_process(process)
    rows = [json.loads(line) for line in rows_file.read_text().splitlines() if line.endswith("}")]
    if status is None:
        rows.append({"case": "the rest", "failed": f"ended after {limit:.0f} s, its share of the time"})
    elif status != 0:
        last = " | ".join(said_file.read_text(errors="replace").splitlines()[-LAST_LINES:])
        rows.append({"case": "the rest", "failed": f"exit status {status}: {last}"})
    return rows


def end_process(process: subprocess.Popen) -> None:
    """End a process together with those that it started."""
    for request in (signal.SIGTERM, signal.SIGKILL):
        # Its children can outlive it; without any of them there is nobody to ask.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, request)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_END)


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write the report as json and as a page."""
    (folder / "gpu_report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    lines = ["# GPU report", "", f"`{report['command']}`, {report['started']}.", ""]
    for part in report["parts"].values():
        lines += [f"## {part['title']}", "", f"{part['seconds']:.0f} s of at most {part['limit']:.0f} s.", ""]
        lines += [*make_table(part["rows"]), ""]
    (folder / "gpu_report.md").write_text("\n".join(lines), encoding="utf-8")


def make_table(rows: list[Row]) -> list[str]:
    """Lay out rows that need not have the same columns; "failed" is the last one."""
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "failed"))
    columns += ["failed"] if any("failed" in row for row in rows) else []
    lines = [columns, ["---"] * len(columns), *([show(row.get(key, "")) for key in columns] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def show(value: Any) -> str:
    """Write a value into a cell of a table."""
    text = (
        f"{value:.4g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:.0f}"
        if isinstance(value, float)
        else str(value)
    )
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the parts one after the other."""
    arguments = parse_arguments(argv)
    folder = Path(arguments.output)
    end = time.monotonic() + arguments.minutes * 60
    command = " ".join(["python", "tools/gpu_report.py", *(sys.argv[1:] if argv is None else argv)])
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    report: dict[str, Any] = {"command": command, "started": started, "parts": {}}
    names = [name for name in PARTS if name in arguments.parts]
    for index, name in enumerate(names):
        begin = time.monotonic()
        share, title = PARTS[name]
        limit = max(0.0, end - begin - SECONDS_TO_END) * share / sum(PARTS[other][0] for other in names[index:])
        rows = run_part(name, arguments, limit)
        seconds = time.monotonic() - begin
        report["parts"][name] = {"title": title, "seconds": seconds, "limit": limit, "rows": rows}
        write_report(folder, report)
        failed = [row for row in rows if "failed" in row]
        print(f"{title}: {len(rows)} rows, {len(failed)} failed, {seconds:.0f} s", flush=True)
    print(f"report: {folder / 'gpu_report.md'}")


if __name__ == "__main__":
    main()
