"""The parts of tools/gpu_report.py: python -m benchmarks.gpu_parts PART ROWS_FILE SETTINGS.

SETTINGS are the arguments of tools/gpu_report.py as json. Every row goes to the file at once, as a line of json: a part
that is ended loses none.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from glipv2_d2 import GLIPv2Trainer
from glipv2_d2.engine.command_line import build_config
from glipv2_d2.modeling.losses.masked_logsumexp import ignored_pairs, masked_logsumexp

from . import contrastive
from .measurement import MIB, Cuts, clock, load_model, summarize_memory, trace_memory
from .model import make_inputs, make_model, make_prompts

ROOT = Path(__file__).resolve().parents[2]
Row = dict[str, Any]
Write = Callable[[Row], None]

OFFICIAL_FORMS, OWN_FORMS = ("plain", "torchvision"), ("auto", "auto")
# Images a second that a GPU of the class of H100 should reach: how, size, names, batch.
GOALS = {
    ("eager", (800, 1333), 80, 1): 40,
    ("compiled", (800, 1333), 80, 1): 100,
    ("compiled", (800, 1333), 80, 16): 250,
    ("eager", (800, 1333), 1203, 1): 5,
}
CHECKPOINT_KEYS = (
    "MODEL.SWIN.USE_CHECKPOINT",
    "MODEL.TEXT_ENCODER.USE_CHECKPOINT",
    "MODEL.GLIPV2.TOWER.USE_CHECKPOINT",
)
SECONDS_OF_A_CASE = 2.0
PASSES = (3, 50)  # at least and at most
WARMUP_PASSES = 2
NUM_KERNELS = 20  # of a profile
# Vectors of the contrastive loss: regions, words, numbers; to compare, and to measure.
COMPARED_VECTORS = (600, 500, 256)
MEASURED_VECTORS = (32768, 16384, 256)
# The largest difference from the CPU in float32, relative to the largest number.
CONTRASTIVE_LIMIT, SCORES_LIMIT, LOSSES_LIMIT, GRADIENTS_LIMIT = 1e-5, 1e-3, 1e-3, 2e-2


class Settings(argparse.Namespace):
    """The arguments of tools/gpu_report.py, with sizes as tuples."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.sizes = [tuple(size) for size in self.sizes]
        self.place = torch.device(self.device)

    def config(self, file: str, *opts: Any) -> CfgNode:
        """Read a config; weights are random, and every box counts, so that there is something to choose from."""
        keys = ["MODEL.DEVICE", self.device, "MODEL.WEIGHTS", "random", "MODEL.GLIPV2.TEST.SCORE_THRESH", "0.0"]
        return build_config(file, [*keys, *map(str, opts)])

    def training(self, batch: int, size: tuple[int, int], forms: tuple[str, str], *opts: Any) -> tuple[nn.Module, list]:
        """Make a model that trains, and a batch that all of its losses can use."""
        cfg = self.config(self.train_config_file, *opts)
        names = min(min(self.names), cfg.MODEL.GLIPV2.TEST.PROMPT_CHUNK_SIZE or 20)
        (prompt,) = make_prompts(cfg, None, names)
        labels = torch.full_like(prompt.input_ids, -100)
        labels[1] = prompt.input_ids[1]
        inputs = make_inputs([dataclasses.replace(prompt, mlm_labels=labels)], size, batch)
        for one in inputs:
            one["instances"].gt_category_ids = prompt.category_ids[one["instances"].gt_classes]
        return make_model(cfg, forms, True), inputs


@contextmanager
def failure_is_a_row(write: Write, case: Row) -> Iterator[None]:
    """Write what goes wrong inside, and go on; memory that a failed case held is free again."""
    try:
        yield
    except Exception as error:  # whatever it is, the other cases can be measured
        traceback.print_exc()
        write({**case, "failed": f"{type(error).__name__}: {error}"[:300]})
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def machine(settings: Settings, write: Write) -> None:
    """Write versions, and the rates of matrix products and copies."""
    facts = {"torch": torch.__version__, "python": sys.version.split()[0], "device": settings.device}
    if settings.place.type == "cuda":
        properties = torch.cuda.get_device_properties(settings.place)
        facts |= {"CUDA": torch.version.cuda, "GPU": properties.name, "MiB": properties.total_memory // MIB}
        facts |= {"compute capability": f"{properties.major}.{properties.minor}"}
    for case, value in facts.items():
        write({"case": case, "value": value})
    edge = 8192 if settings.place.type == "cuda" else 512
    for name, dtype, tf32 in (
        ("float32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bfloat16", torch.bfloat16, False),
        ("float16", torch.float16, False),
    ):
        with failure_is_a_row(write, {"case": f"matrix product, {name}"}):
            torch.backends.cuda.matmul.allow_tf32 = tf32
            one = torch.randn(edge, edge, device=settings.place, dtype=dtype)
            milliseconds = time_passes(lambda one=one: one @ one, settings.place)["ms"]
            write({"case": f"matrix product, {name}", "value": f"{2 * edge**3 / milliseconds / 1e9:.1f} TFLOP/s"})
    numbers = torch.randn(edge, edge, device=settings.place)
    milliseconds = time_passes(numbers.clone, settings.place)["ms"]
    write({"case": "copy", "value": f"{2 * 4 * edge**2 / milliseconds / 1e6:.0f} GB/s"})


class TestRows:
    """A plugin of pytest that writes a row for each test."""

    __test__ = False

    def __init__(self, write: Write) -> None:
        self.write = write

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write the outcome of a test, or of its preparation where that failed or skipped it."""
        if report.when == "call" or not report.passed:
            row = {"case": report.nodeid.split("/")[-1], "outcome": report.outcome, "s": round(report.duration, 2)}
            if report.skipped:
                row["reason"] = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
            self.write(row | ({"failed": report.longreprtext[-300:]} if report.failed else {}))


def tests(settings: Settings, write: Write) -> None:
    """Run the tests marked ``gpu``, from the files that hold one."""
    files = [file for file in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in file.read_text("utf-8")]
    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider", f"--rootdir={ROOT}", f"--confcutdir={ROOT}"]
    status = pytest.main([*options, *map(str, files)], plugins=[TestRows(write)])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        write(
            {"case": "pytest", "failed": f"ended with {status.name if isinstance(status, pytest.ExitCode) else status}"}
        )


def equality(settings: Settings, write: Write) -> None:
    """Compare the contrastive loss in each form, detections and a training step with the same on the CPU."""
    # Products and convolutions in float32, not in shorter numbers.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for form in ("chunked", "triton"):
        case = {"case": f"contrastive loss, {form}"}
        with failure_is_a_row(write, case):
            write(case | judge(contrastive_difference(form, settings.place), CONTRASTIVE_LIMIT))
    size = min(settings.sizes)
    for forms in (OWN_FORMS, OFFICIAL_FORMS):
        case = {"case": f"detections, {'/'.join(forms)}"}
        with failure_is_a_row(write, case):
            here, there = (detection_scores(settings, place, size, forms) for place in ("cpu", settings.device))
            write(case | judge(largest_difference(there, here), SCORES_LIMIT))
        case = {"case": f"training, {'/'.join(forms)}"}
        with failure_is_a_row(write, case):
            here, there = (losses_and_norms(settings, place, size, forms) for place in ("cpu", settings.device))
            for what, limit, one, other in zip(("losses", "gradients"), (LOSSES_LIMIT, GRADIENTS_LIMIT), there, here):
                write({"case": f"{case['case']}: {what}"} | judge(largest_difference(one, other), limit))


def judge(difference: float, limit: float) -> Row:
    """Make the columns of a comparison; a difference above the limit has failed, and so has NaN."""
    row: Row = {"difference": difference, "limit": limit}
    return row if difference <= limit else row | {"failed": "above the limit"}


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference of numbers of one shape, relative to the largest number."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def contrastive_difference(form: str, place: torch.device) -> float:
    """Compare log-sum-exps and their gradients with the formula as it is written, in double precision."""
    generator = torch.Generator().manual_seed(0)
    num_rows, num_columns, dim = COMPARED_VECTORS
    vectors = [torch.randn(count, dim, generator=generator) / dim**0.25 for count in (num_rows, num_columns)]
    groups = [torch.randint(-1, 3, (count,), generator=generator) for count in (num_rows, num_columns)]
    grad = torch.randn(num_rows, generator=generator)

    def formula(rows: Tensor, columns: Tensor, *groups: Tensor) -> Tensor:
        return (rows @ columns.T).masked_fill(ignored_pairs(*groups), -torch.inf).logsumexp(dim=1)

    def value_and_gradients(function: Callable[..., Tensor], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        leaves = [side.to(device, dtype, copy=True).requires_grad_() for side in vectors]
        value = function(*leaves, *(group.to(device) for group in groups))
        value.backward(grad.to(device, dtype))
        return [one.detach().cpu().double() for one in (value, *(leaf.grad for leaf in leaves))]

    found = value_and_gradients(lambda *problem: masked_logsumexp(*problem, form), place, torch.float32)
    expected = value_and_gradients(formula, torch.device("cpu"), torch.float64)
    return max(map(largest_difference, found, expected))


def detection_scores(settings: Settings, device: str, size: tuple[int, int], forms: tuple[str, str]) -> Tensor:
    """Return the scores of the detections in one image, from high to low."""
    cfg = settings.config(settings.config_file)
    inputs = make_inputs(make_prompts(cfg, None, min(settings.names)), size, 1)
    model = make_model(cfg, forms, False).to(device)
    with torch.no_grad():
        return model(inputs)[0]["instances"].scores.cpu().sort(descending=True).values


def losses_and_norms(
    settings: Settings, device: str, size: tuple[int, int], forms: tuple[str, str]
) -> tuple[Tensor, Tensor]:
    """Return the losses of a batch, and the norm of each parameter's gradient, without random layers."""
    model, inputs = settings.training(2, size, forms)
    model.to(device).eval()
    model.training = True  # losses; the layers below stay as they are
    losses = model(inputs)
    sum(losses.values()).backward()
    norms = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
    return torch.stack([*losses.values()]).detach().cpu(), torch.stack(norms).cpu()


def contrastive_loss(settings: Settings, write: Write) -> None:
    """Measure the contrastive loss in each form."""
    small = settings.place.type != "cuda"
    sizes = tuple(count // 64 if small else count for count in MEASURED_VECTORS)
    for form in ("triton", "chunked", "dense"):
        case = {"case": f"{form}, {sizes[0]} regions, {sizes[1]} words"}
        with failure_is_a_row(write, case):
            found = contrastive.measure(form, sizes, settings.device, 3)
            write({**case, "ms": found["seconds"] * 1e3, "MiB": found["extra_mib"]})


def eager(settings: Settings, write: Write) -> None:
    """Measure passes without a compiler."""
    measure_passes(settings, write, "eager")


def compiled(settings: Settings, write: Write) -> None:
    """Measure passes with backbone and tower compiled for each shape."""
    measure_passes(settings, write, "compiled")


def measure_passes(settings: Settings, write: Write, how: str) -> None:
    """Measure all sizes, numbers of names and batches under bfloat16, and the first of them in float32 as well."""
    cfg = settings.config(
        settings.config_file, "MODEL.GLIPV2.TEST.COMPILER", settings.compiler if how == "compiled" else ""
    )
    model = load_model(cfg).eval()
    cases = [(torch.bfloat16, *case) for case in product(settings.sizes, settings.names, settings.batches)]
    cases.insert(1, (torch.float32, *cases[0][1:]))
    for dtype, size, names, batch in cases:
        name = f"{size[0]}x{size[1]}, {names} names, batch {batch}, {str(dtype).removeprefix('torch.')}"
        with failure_is_a_row(write, {"case": name}), torch.no_grad(), autocast(settings.place, dtype):
            if how == "compiled":
                # A model compiles a few sizes only.
                torch.compiler.reset()
                model = load_model(cfg).eval()
            inputs = make_inputs(make_prompts(cfg, None, names), size, batch)
            found = time_passes(lambda model=model, inputs=inputs: model(inputs), settings.place)
            rate = {"images/s": batch / found["ms"] * 1e3}
            if dtype == torch.bfloat16 and (how, size, names, batch) in GOALS:
                rate["goal"] = GOALS[how, size, names, batch]
            write({"case": name, **rate, **found})


def training(settings: Settings, write: Write) -> None:
    """Measure training steps: with gradient checkpointing and without, and in the official form."""
    variants = {
        "own forms": (OWN_FORMS, "False"),
        "own forms, checkpointing": (OWN_FORMS, "True"),
        "official forms": (OFFICIAL_FORMS, "False"),
    }
    for name, (forms, checkpointing) in variants.items():
        with failure_is_a_row(write, {"case": name}):
            opts = [word for key in CHECKPOINT_KEYS for word in (key, checkpointing)]
            model, inputs = settings.training(settings.train_batch, settings.sizes[0], forms, *opts)
            step = make_step(model, settings, inputs)
            found = time_passes(step, settings.place)

            def run_pass(read: Callable[[], Any], step: Callable[[], None] = step) -> Cuts:
                begin = read()
                step()
                return [(("other", "forward"), begin), (("other", "end"), read())]

            peak = summarize_memory(trace_memory(run_pass, settings.place))[2] / MIB
            rate = settings.train_batch / found["ms"] * 1e3
            write({"case": name, "images/s": rate, **found, "peak above weights, MiB": peak})
            del model, step, run_pass


def make_step(model: nn.Module, settings: Settings, inputs: list[Row]) -> Callable[[], None]:
    """Return what makes one update under bfloat16."""
    optimizer = GLIPv2Trainer.build_optimizer(settings.config(settings.train_config_file), model)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(settings.place, torch.bfloat16):
            total = sum(model(inputs).values())
        total.backward()
        optimizer.step()

    return step


def make_calls(settings: Settings) -> dict[str, Callable[[], Any]]:
    """Return a pass and a training step, both under bfloat16."""
    cfg = settings.config(settings.config_file)
    model, inputs = (
        load_model(cfg).eval(),
        make_inputs(make_prompts(cfg, None, min(settings.names)), settings.sizes[0], 2),
    )

    def detect() -> None:
        with torch.no_grad(), autocast(settings.place, torch.bfloat16):
            model(inputs)

    trained, batch = settings.training(2, settings.sizes[0], OWN_FORMS)
    return {"pass": detect, "training step": make_step(trained, settings, batch)}


def syncs(settings: Settings, write: Write) -> None:
    """Count how often the host waits for the GPU in a pass and in a training step of two images, by place."""
    if settings.place.type != "cuda":
        write({"case": "host syncs", "skipped": "only a GPU is waited for"})
        return
    for name, call in make_calls(settings).items():
        with failure_is_a_row(write, {"case": name}):
            call()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    call()
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            places = Counter(
                f"{Path(one.filename).name}:{one.lineno}" for one in caught if "synchroniz" in str(one.message)
            )
            write({"case": name, "place": "all", "syncs": places.total()})
            for place, count in places.most_common():
                write({"case": name, "place": place, "syncs": count})


def kernels(settings: Settings, write: Write) -> None:
    """Write what takes most time in a pass and in a training step of two images."""
    gpu = settings.place.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    for name, call in make_calls(settings).items():
        with failure_is_a_row(write, {"case": name}):
            call()
            with profile(activities=activities) as profiler:
                call()
                clock(settings.place)()
            spent = [
                (event.self_device_time_total if gpu else event.self_cpu_time_total, event)
                for event in profiler.key_averages()
            ]
            whole = sum(time_ for time_, _ in spent)
            for time_, event in sorted(spent, key=lambda one: one[0], reverse=True)[:NUM_KERNELS]:
                row = {"case": name, "kernel": event.key[:90], "ms": time_ / 1e3, "calls": event.count}
                write(row | {"share": f"{time_ / whole:.1%}"})


def autocast(place: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the autocast to a type; float32 is none."""
    lower = dtype != torch.float32
    return torch.autocast(place.type, dtype=dtype if lower else torch.bfloat16, enabled=lower)


def time_passes(run: Callable[[], Any], place: torch.device) -> Row:
    """Time passes for some seconds: median and fastest in milliseconds, and the first one, which may compile."""
    read = clock(place)

    def once() -> float:
        begin = read()
        run()
        return (read() - begin) * 1e3

    first = once()
    for _ in range(WARMUP_PASSES - 1):
        once()
    begin, passes = time.perf_counter(), []
    while len(passes) < PASSES[0] or (time.perf_counter() - begin < SECONDS_OF_A_CASE and len(passes) < PASSES[1]):
        passes.append(once())
    found = {"ms": statistics.median(passes), "fastest, ms": min(passes), "first, ms": first, "passes": len(passes)}
    return found


PARTS: dict[str, Callable[[Settings, Write], None]] = {
    "machine": machine,
    "tests": tests,
    "equality": equality,
    "contrastive": contrastive_loss,
    "eager": eager,
    "training": training,
    "syncs": syncs,
    "kernels": kernels,
    "compiled": compiled,
}


def main(name: str, rows_file: str, settings: str) -> None:
    """Run one part."""
    with open(rows_file, "a", encoding="utf-8") as file:

        def write(row: Row) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        with failure_is_a_row(write, {"case": "the rest"}):
            PARTS[name](Settings(**json.loads(settings)), write)


if __name__ == "__main__":
    main(*sys.argv[1:])
