#!/usr/bin/env python
"""Measure the memory and the time of the contrastive loss, forward and backward, in each of its forms.

    python tools/benchmark_contrastive.py
    python tools/benchmark_contrastive.py --regions 32768 --words 16384 --dim 256 --form chunked --form dense

extra   MiB, the most that was held at a time beyond the vectors of regions and words: their gradients, what the forward
        pass keeps, and temporary buffers. On the CPU: what torch's allocator gave out, by torch's profiler; on CUDA:
        torch.cuda.max_memory_allocated.
s       of the fastest of the timed passes; the pass before them, which warms up and compiles kernels, is not among
        them.

Each form runs in a process of its own. The batch is random: two thirds of the images have prompts of names, the others
sentences. "dense" stores all pairs, several times: at the sizes above about 10 GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from glipv2_d2.engine.command_line import one_line_errors
from glipv2_d2.engine.measurement import Memory, summarize_memory, trace_memory
from glipv2_d2.modeling.losses.contrastive_loss import SharedVectors, contrastive_loss
from glipv2_d2.modeling.losses.region_word_targets import LabelledVectors, label_regions, label_words

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20
FORMS = ("dense", "chunked", "triton")
WORDS_PER_IMAGE = 256
WORDS_PER_PHRASE = 3  # the last of them is the full stop
NUM_CATEGORIES = 365
SENTENCE_EVERY = 3  # images
TEMPERATURE = 0.07

Batch = tuple[SharedVectors, SharedVectors, torch.Tensor, torch.Tensor]


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regions", type=positive, default=32768, metavar="R", help="default: 32768")
    parser.add_argument("--words", type=positive, default=16384, metavar="W", help="default: 16384")
    parser.add_argument("--dim", type=positive, default=256, metavar="D", help="default: 256")
    parser.add_argument(
        "--form", action="append", choices=FORMS, help="may be given several times (default: all that run here)"
    )
    parser.add_argument("--repeat", type=positive, default=1, metavar="N", help="timed passes (default: 1)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", metavar="DEVICE")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers there")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # be the process of one form
    return parser.parse_args(argv)


def positive(text: str) -> int:
    """Read a whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text!r}")
    return int(text)


def make_batch(num_regions: int, num_words: int, dim: int, device: str) -> Batch:
    """Make unit vectors with labels; every region belongs to a phrase of its image."""
    generator = torch.Generator().manual_seed(0)
    word = torch.arange(num_words)
    word_image, place = word // WORDS_PER_IMAGE, word % WORDS_PER_IMAGE
    num_images = int(word_image[-1]) + 1
    phrases_per_image = WORDS_PER_IMAGE // WORDS_PER_PHRASE
    phrase_categories = torch.randint(NUM_CATEGORIES, (num_images, phrases_per_image + 1), generator=generator)
    phrase_categories[::SENTENCE_EVERY] = -1
    word_phrase = place // WORDS_PER_PHRASE
    spells = place % WORDS_PER_PHRASE != WORDS_PER_PHRASE - 1
    word_category = torch.where(spells, phrase_categories[word_image, word_phrase], -1)
    region_image = torch.arange(num_regions) % num_images
    # The last image may have few words: only phrases that all images have are shown.
    shown = max(1, min(phrases_per_image, ((num_words - 1) % WORDS_PER_IMAGE + 1) // WORDS_PER_PHRASE))
    region_phrase = torch.randint(shown, (num_regions,), generator=generator)
    region_category = phrase_categories[region_image, region_phrase]

    def vectors(count: int) -> torch.Tensor:
        values = torch.nn.functional.normalize(torch.randn(count, dim, generator=generator), dim=1)
        return values.to(device)

    def shared(labelled: LabelledVectors) -> SharedVectors:
        labelled.vectors.requires_grad_()
        return SharedVectors(labelled, labelled, 0)

    def phrases(member: torch.Tensor, image: torch.Tensor, phrase: torch.Tensor) -> torch.Tensor:
        return torch.stack((member, image * (phrases_per_image + 1) + phrase)).to(device)

    regions = label_regions(vectors(num_regions), region_image.to(device), region_category.to(device))
    words = label_words(vectors(num_words) / TEMPERATURE, word_image.to(device), word_category.to(device))
    return (
        shared(regions),
        shared(words),
        phrases(torch.arange(num_regions), region_image, region_phrase),
        phrases(word[spells], word_image[spells], word_phrase[spells]),
    )


class LossPass:
    """Forward and backward pass of the loss, cut at its two ends for ``trace_memory``."""

    def __init__(self, batch: Batch, form: str) -> None:
        self.batch, self.form = batch, form

    def run(self, inputs: Any, read: Callable[[], Any]) -> list[tuple[tuple[str, str], Any]]:
        """Run one pass; ``inputs`` is not looked at."""
        vectors = [side.local.vectors for side in self.batch[:2]]
        for tensor in vectors:
            tensor.grad = None
        # The profiler learns how much is held when something is allocated.
        torch.empty(1, device=vectors[0].device)
        begin = read()
        contrastive_loss(*self.batch, self.form).backward()
        return [(("losses", "forward"), begin), (("losses", "end"), read())]


def measure(form: str, batch: Batch, device: torch.device, repeat: int) -> dict[str, float]:
    """Measure one form: MiB beyond the inputs, and seconds."""
    one_pass = LossPass(batch, form)

    def read() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    # The pass that is traced is the one that warms up: its memory is that of any other.
    cuts: list[tuple[tuple[str, str], Memory]] = trace_memory(one_pass, None, device)
    seconds = []
    for _ in range(repeat):
        (_, begin), (_, end) = one_pass.run(None, read)
        seconds.append(end - begin)
    return {"extra_mib": summarize_memory(cuts)[2] / MIB, "seconds": min(seconds)}


def measure_apart(form: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Measure one form in a process of its own."""
    sizes = [f"--{name}={getattr(arguments, name)}" for name in ("regions", "words", "dim", "repeat", "device")]
    command = [sys.executable, str(Path(__file__).resolve()), "--alone", f"--form={form}", *sizes]
    # Started by its path, the process would find the package only where it is installed.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if process.returncode:
        raise SystemExit(process.returncode)  # The process has said why.
    return json.loads(process.stdout)


def make_table(results: dict[str, dict[str, float]], arguments: argparse.Namespace) -> Table:
    """Lay out the numbers of all forms."""
    pairs_mib = arguments.regions * arguments.words * 4 / MIB
    title = f"{arguments.regions} regions, {arguments.words} words, {arguments.dim} numbers each, {arguments.device}"
    table = Table("form", title=f"{title}; one matrix of all pairs: {pairs_mib:.1f} MiB", title_justify="left")
    for heading in ("extra, MiB", "s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for form, row in results.items():
        table.add_row(form, f"{row['extra_mib']:.1f}", f"{row['seconds']:.4f}")
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    arguments = parse_arguments(argv)
    # The library under the profiler reports on itself unless it is told not to.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    device = torch.device(arguments.device)
    forms = arguments.form or [form for form in FORMS if form != "triton" or device.type == "cuda"]
    if arguments.alone:
        with one_line_errors():
            batch = make_batch(arguments.regions, arguments.words, arguments.dim, arguments.device)
            print(json.dumps(measure(forms[0], batch, device, arguments.repeat)))
        return
    # The bar shows how many forms are done: how far one is, only its process knows.
    results = {form: measure_apart(form, arguments) for form in tqdm(forms, desc="forms", unit="form")}
    Console(highlight=False).print(make_table(results, arguments))
    if arguments.json:
        sizes = {name: getattr(arguments, name) for name in ("regions", "words", "dim", "device")}
        facts = {**sizes, "threads": torch.get_num_threads(), "torch": torch.__version__, "forms": results}
        Path(arguments.json).write_text(json.dumps(facts, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
