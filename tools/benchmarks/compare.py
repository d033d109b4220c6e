"""Compare the time of a detection with GroundingDINO of transformers, with the plain forms, and with what is possible.

    python tools/benchmark.py compare --config-file configs/glip/glip_swin_t_c.yaml --page BENCHMARKS.md
    python tools/benchmark.py compare --config-file configs/glip/glip_swin_t_c.yaml --size 480 640 --num-names 20

For each size and number of names, in one process, the contenders run in turn, round after round, on the same image of
noise and the same tokens, in single precision, without post-processing of masks:

ours            the model of the config, as it runs by default; the prompt is known from the image before.
ours, new text  the same, and the text encoder reads the prompt in the pass.
plain           the same with the structure of the official code: plain fusion, torchvision's deformable convolution,
                detectron2's Swin, torch's products. The prompt is known.
GroundingDINO   transformers' model with a Swin-T and a BERT-base, random weights. It reads its prompt in every pass.
compiled        with --compiler NAME, ours with MODEL.GLIPV2.TEST.COMPILER; the prompt is known. Its first pass takes
                minutes, or less where "inductor" finds in its cache what an earlier run has compiled.
exported        with --onnx FILE, what "glipv2 export" wrote of the same config, by onnxruntime and the numpy code of
                examples/onnx_detect.py; the prompt is known.

first   seconds of the pass before all rounds, in which prompts are read and a compiler runs.
s       of the fastest round. On a machine that others use as well, --clock cpu counts the processor time of this
        process instead, summed over its threads, and of the compilers that it has started and waited for.
limit   GMAC / rate: the time of a pass if it were nothing but matrix products, at the highest rate that products of
        square matrices reach in this run: by torch.mm, and by what the model calls (oneDNN on CPUs with AVX-512). GMAC
        are counted from shapes, without the text encoder.
memory  MiB, the most that torch's allocator held above weights and inputs (not what MKL, oneDNN and onnxruntime get
        elsewhere).

The second table has the parts of a pass of ours, against the higher rate. What they take "beyond the limit" adds up to
what remains to be gained.
"""

from __future__ import annotations

import argparse
import platform
import resource
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare_onnx import load_example
from detectron2.config import CfgNode
from rich.table import Table
from torch import nn
from tqdm import tqdm

from glipv2_d2.errors import InputError
from glipv2_d2.layers.products import linear, plain_forms

from .measurement import (
    MIB,
    MODULES,
    PassCutter,
    clock,
    count_macs,
    load_model,
    make_table,
    noise_image,
    positive,
    sum_segments,
    summarize_memory,
    trace_memory,
)
from .model import make_prompts, set_forms

CONFIG_KEYS = ()
SIZES = ([480, 640], [800, 1333])
NUM_NAMES = (80, 20)
OWN_FORMS, PLAIN_FORMS = ("auto", "auto"), ("plain", "torchvision")
OURS, NEW_TEXT, PLAIN, DINO = "ours", "ours, new text", "plain", "GroundingDINO"
COMPILED, EXPORTED = "compiled", "exported"
RATE_SIDES = (512, 1024, 2048)  # of the square matrices
RATE_PASSES = 10
# Parts of a pass whose prompt is known, and the unit of each number of a row.
PARTS = [module for module in MODULES if module not in ("text encoder", "losses")]

Rows = dict[str, dict[str, float]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this subcommand."""
    several = "may be given several times"
    parser.add_argument(
        "--size",
        nargs=2,
        type=positive,
        action="append",
        metavar=("H", "W"),
        help=f"of the image, {several} (default: 480 640 and 800 1333)",
    )
    parser.add_argument(
        "--num-names",
        type=positive,
        action="append",
        metavar="K",
        help=f"the first K names of COCO or LVIS, {several} (default: 80 and 20)",
    )
    parser.add_argument("--repeat", type=positive, default=5, metavar="N", help="rounds (default: 5)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="(default: wall)")
    parser.add_argument("--without", action="append", choices=(PLAIN, DINO), default=[], help="leave one out")
    parser.add_argument("--compiler", metavar="NAME", help=f"a backend of torch.compile: adds {COMPILED!r}")
    parser.add_argument("--onnx", type=Path, metavar="FILE", help=f"an export of this config: adds {EXPORTED!r}")
    parser.add_argument("--page", metavar="FILE", help="write what was measured there, in Markdown")


def processor_seconds() -> float:
    """Return the processor time of this process, and of those that it has started and waited for."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)


def measure_rates(device: torch.device, read: Callable[[], float]) -> dict[str, float]:
    """Return the highest rate of products of square matrices, in GFLOP/s: by torch, and by the layers of the model."""
    rates = {"torch.mm": 0.0, "glipv2_d2": 0.0}
    for side in RATE_SIDES:
        a, b = torch.randn(2, side, side, device=device)
        for name, run in (("torch.mm", partial(torch.mm, a, b)), ("glipv2_d2", partial(linear, a, b))):
            for _ in range(RATE_PASSES):
                begin = read()
                run()
                rates[name] = max(rates[name], 2 * side**3 / 1e9 / (read() - begin))
    return rates


def build_dino(device: torch.device) -> nn.Module:
    """Build transformers' GroundingDINO with random weights: Swin-T, BERT-base, six layers each way, 900 queries."""
    # Loaded here: the other contenders do not need it.
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    return GroundingDinoForObjectDetection(GroundingDinoConfig()).eval().to(device)


def make_exported(path: Path, inputs: dict[str, Any]) -> Callable[[], Any]:
    """Return a function that runs one pass of an export: the graph, and the choice among its candidates."""
    example = load_example()
    names = [phrase for prompt in inputs["prompts"] for phrase in prompt.phrases]
    detector = example.Detector(path, names, torch.get_num_threads())
    size, divisor = inputs["image"].shape[1:], detector.about["multiple_of"]
    canvas = np.zeros((3, *(-(-side // divisor) * divisor for side in size)), np.float32)
    canvas[:, : size[0], : size[1]] = inputs["image"].numpy()
    image = {"image": canvas, "image_size": np.array(size, np.int64)}

    def run_exported() -> None:
        for _, prompt in detector.prompts:
            example.decode(*detector.session.run(None, image | prompt), detector.about)

    return run_exported


def make_contenders(
    cutter: PassCutter,
    compiled: nn.Module | None,
    dino: nn.Module | None,
    inputs: dict[str, Any],
    without: Sequence[str],
    onnx: Path | None,
) -> dict[str, Callable[[], Any]]:
    """Return for each contender a function that runs one pass."""
    model = cutter.model

    def run_ours(forget: bool = False) -> None:
        if forget:
            cutter.forget_prompts()
        model([inputs])

    def run_plain() -> None:
        set_forms(model, PLAIN_FORMS)
        with plain_forms():
            model([inputs])
        set_forms(model, OWN_FORMS)

    contenders: dict[str, Callable[[], Any]] = {OURS: run_ours, NEW_TEXT: partial(run_ours, forget=True)}
    if PLAIN not in without:
        contenders[PLAIN] = run_plain
    if compiled is not None:
        contenders[COMPILED] = lambda: compiled([inputs])
    if dino is not None:
        ids = inputs["prompts"][0].input_ids.to(model.device)[None]
        image = (inputs["image"].to(model.device).float() / 255)[None]
        contenders[DINO] = lambda: dino(pixel_values=image, input_ids=ids, attention_mask=torch.ones_like(ids))
    if onnx is not None:
        contenders[EXPORTED] = make_exported(onnx, inputs)
    return contenders


def run_in_turn(contenders: dict[str, Callable[[], Any]], read: Callable[[], float], rounds: Sequence[int]) -> Rows:
    """Run all contenders in turn, once and then for each round; return the seconds of the first and the fastest."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in chain([None], rounds):
        for name, run in contenders.items():
            begin = read()
            run()
            seconds[name].append(read() - begin)
    return {name: {"first": times[0], "seconds": min(times[1:])} for name, times in seconds.items()}


def measure_parts(
    cutter: PassCutter, inputs: dict[str, Any], repeat: int, rate: float, read: Callable[[], float]
) -> Rows:
    """Return for each part of a pass of ours its GMAC, the least of its seconds, and what they are beyond the limit."""
    run_pass = partial(cutter.run, [inputs], known_prompts=True)
    macs = count_macs(run_pass)
    passes = [sum_segments(run_pass(read)) for _ in range(repeat)]
    rows: Rows = {}
    for part in PARTS:
        gmac = macs.get((part, "forward"), 0.0) / 1e9
        seconds = min(one.get((part, "forward"), 0.0) for one in passes)
        rows[part] = {"gmac": gmac, "seconds": seconds, "beyond": seconds - 2 * gmac / rate}
    rows["total"] = {column: sum(row[column] for row in rows.values()) for column in rows["other"]}
    return rows


def measure_memory(run: Callable[[], Any], device: torch.device) -> float:
    """Return the peak of a pass in MiB."""

    def run_pass(read: Callable[[], Any]) -> list:
        begin = read()
        run()
        return [(("other", "forward"), begin), (("other", "end"), read())]

    return summarize_memory(trace_memory(run_pass, device))[2] / MIB


def show(case: str, contenders: Rows, parts: Rows, rates: dict[str, float]) -> list[Table]:
    """Lay out the numbers of one size and number of names."""
    ours, gmac = contenders[OURS]["seconds"], parts["total"]["gmac"]
    table = make_table(case, "contender", ["first", "s", "ours takes", "memory, MiB"])
    for name, row in contenders.items():
        memory = f"{row['memory_mib']:.0f}" if "memory_mib" in row else ""
        seconds = f"{row['first']:.3f}", f"{row['seconds']:.3f}"
        table.add_row(name, *seconds, f"{ours / row['seconds']:.2f} of it", memory)
    for name, rate in rates.items():
        limit = 2 * gmac / rate
        table.add_row(f"limit: {gmac:.1f} GMAC by {name}", "", f"{limit:.3f}", f"{ours / limit:.2f} of it", "")
    rate = max(rates.values())
    own_parts = make_table("", "part of ours", ["GMAC", "s", "GFLOP/s", "of the rate", "beyond the limit, s"])
    for part, row in parts.items():
        if part == "total":
            own_parts.add_section()
        speed = 2 * row["gmac"] / row["seconds"] if row["seconds"] else 0.0
        numbers = f"{row['gmac']:.2f}", f"{row['seconds']:.4f}", f"{speed:.0f}", f"{speed / rate:.0%}"
        own_parts.add_row(part, *numbers, f"{row['beyond']:.4f}")
    return [table, own_parts]


def write_page(path: str, facts: dict[str, Any], tables: Sequence[Table], command: str) -> None:
    """Write facts and tables in Markdown."""
    lines = ["# Benchmarks", "", "Made by this command; `--help` says what the columns mean.", ""]
    lines += ["```", *command.splitlines(), "```", ""]
    lines += ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in facts.items())]
    for table in tables:
        if table.title:
            lines += ["", f"## {table.title}"]
        columns = table.columns
        lines += ["", "| " + " | ".join(str(column.header) for column in columns) + " |"]
        lines += ["| --- " + "| ---: " * (len(columns) - 1) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in zip(*(column.cells for column in columns), strict=True)]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def name_machine() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


@torch.no_grad()
def run(arguments: argparse.Namespace, cfg: CfgNode) -> tuple[dict[str, Any], dict[str, Any], list[Table]]:
    """Compare all contenders in every case."""
    import transformers

    if arguments.onnx is not None and not arguments.onnx.is_file():
        raise InputError(f"--onnx: expected a file that glipv2 export wrote, found none at {arguments.onnx}")
    cutter = PassCutter(load_model(cfg).eval())
    device = cutter.model.device
    if arguments.onnx is not None and device.type != "cpu":
        raise InputError(f"--onnx: expected --device cpu, where onnxruntime runs, found {device}")
    compiled = None
    if arguments.compiler:
        compiled_cfg = cfg.clone()
        compiled_cfg.defrost()
        compiled_cfg.MODEL.GLIPV2.TEST.COMPILER = arguments.compiler
        compiled = load_model(compiled_cfg).eval()
    dino = None if DINO in arguments.without else build_dino(device)
    read = clock(device, processor_seconds if arguments.clock == "cpu" else time.perf_counter)
    rates = measure_rates(device, read)
    facts = {
        "machine": name_machine(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "transformers": transformers.__version__,
        "date": date.today().isoformat(),
        **{f"products by {name}, GFLOP/s": round(rate) for name, rate in rates.items()},
        "repeat": arguments.repeat,
        "clock": arguments.clock,
    }
    if arguments.onnx is not None:
        facts["onnxruntime"] = version("onnxruntime")
    results: dict[str, Any] = {"rates": rates}
    tables = []
    rate = max(rates.values())
    for size in arguments.size or SIZES:
        for num_names in arguments.num_names or NUM_NAMES:
            prompts = make_prompts(cfg, None, num_names)
            inputs = noise_image(size, torch.Generator().manual_seed(0)) | {"prompts": prompts}
            case = f"{size[0]} x {size[1]}, {num_names} names ({sum(map(len, prompts))} tokens)"
            contenders = make_contenders(cutter, compiled, dino, inputs, arguments.without, arguments.onnx)
            rows = run_in_turn(contenders, read, tqdm(range(arguments.repeat), desc=case, unit="round", leave=False))
            for name in (name for name in contenders if name != EXPORTED):
                rows[name]["memory_mib"] = measure_memory(contenders[name], device)
            parts = measure_parts(cutter, inputs, arguments.repeat, rate, read)
            results[case] = {"contenders": rows, "parts": parts}
            tables += show(case, rows, parts, rates)
    if arguments.page:
        own = {"torch": torch.__version__, "threads": torch.get_num_threads(), "config": arguments.config_file}
        left_out = "".join(f" --without {name}" for name in arguments.without)
        left_out += f" --compiler {arguments.compiler}" if arguments.compiler else ""
        left_out += f" --onnx {arguments.onnx.name}" if arguments.onnx else ""
        options = f"--repeat {arguments.repeat} --clock {arguments.clock}{left_out} --page {arguments.page}"
        command = f"python tools/benchmark.py compare --config-file {arguments.config_file} \\\n    {options}"
        write_page(arguments.page, own | facts, tables, command)
    return facts, results, tables
