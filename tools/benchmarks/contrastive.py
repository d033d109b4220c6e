"""Measure memory and time of the contrastive loss, forward and backward, in each of its forms.

    python tools/benchmark.py contrastive
    python tools/benchmark.py contrastive --regions 32768 --words 16384 --dim 256 --form chunked --form dense

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
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from glipv2_d2.errors import InputError
from glipv2_d2.modeling.losses.contrastive_loss import SharedVectors, contrastive_loss
from glipv2_d2.modeling.losses.region_word_targets import LabelledVectors, label_regions, label_words

from .measurement import MIB, Cuts, fastest_pass, make_table, positive, summarize_memory, touch, trace_memory

CONFIG_KEYS = None
FORMS = ("dense", "chunked", "triton")
WORDS_PER_IMAGE = 256
WORDS_PER_PHRASE = 3  # the last of them is the full stop
NUM_CATEGORIES = 365
SENTENCE_EVERY = 3  # images
TEMPERATURE = 0.07

Batch = tuple[SharedVectors, SharedVectors, Tensor, Tensor]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this subcommand."""
    parser.add_argument("--regions", type=positive, default=32768, metavar="R", help="default: 32768")
    parser.add_argument("--words", type=positive, default=16384, metavar="W", help="default: 16384")
    parser.add_argument("--dim", type=positive, default=256, metavar="D", help="default: 256")
    parser.add_argument(
        "--form", action="append", choices=FORMS, help="may be given several times (default: all that run here)"
    )
    parser.add_argument("--repeat", type=positive, default=1, metavar="N", help="timed passes (default: 1)")


def make_batch(num_regions: int, num_words: int, dim: int, device: str) -> Batch:
    """Make unit vectors with labels; every region belongs to a phrase of its image."""
    generator = torch.Generator().manual_seed(0)
    word = torch.arange(num_words)
    word_image, position = word // WORDS_PER_IMAGE, word % WORDS_PER_IMAGE
    num_images = int(word_image[-1]) + 1
    phrases_per_image = WORDS_PER_IMAGE // WORDS_PER_PHRASE
    phrase_categories = torch.randint(NUM_CATEGORIES, (num_images, phrases_per_image + 1), generator=generator)
    phrase_categories[::SENTENCE_EVERY] = -1
    word_phrase = position // WORDS_PER_PHRASE
    spells = position % WORDS_PER_PHRASE != WORDS_PER_PHRASE - 1
    word_category = torch.where(spells, phrase_categories[word_image, word_phrase], -1)
    region_image = torch.arange(num_regions) % num_images
    # The last image may have few words: only phrases that all images have are shown.
    shown = max(1, min(phrases_per_image, ((num_words - 1) % WORDS_PER_IMAGE + 1) // WORDS_PER_PHRASE))
    region_phrase = torch.randint(shown, (num_regions,), generator=generator)
    region_category = phrase_categories[region_image, region_phrase]

    def vectors(count: int) -> Tensor:
        values = torch.nn.functional.normalize(torch.randn(count, dim, generator=generator), dim=1)
        return values.to(device)

    def shared(labelled: LabelledVectors) -> SharedVectors:
        labelled.vectors.requires_grad_()
        return SharedVectors(labelled, labelled, 0)

    def phrases(member: Tensor, image: Tensor, phrase: Tensor) -> Tensor:
        return torch.stack((member, image * (phrases_per_image + 1) + phrase)).to(device)

    regions = label_regions(vectors(num_regions), region_image.to(device), region_category.to(device))
    words = label_words(vectors(num_words) / TEMPERATURE, word_image.to(device), word_category.to(device))
    return (
        shared(regions),
        shared(words),
        phrases(torch.arange(num_regions), region_image, region_phrase),
        phrases(word[spells], word_image[spells], word_phrase[spells]),
    )


def measure(form: str, sizes: tuple[int, int, int], device: str, repeat: int) -> dict[str, float]:
    """Measure one form: MiB beyond the inputs, and seconds.

    Args:
        sizes: Regions, words, and numbers of a vector.
    """
    batch = make_batch(*sizes, device)
    vectors = [side.local.vectors for side in batch[:2]]

    def run_pass(read: Callable[[], Any]) -> Cuts:
        for tensor in vectors:
            tensor.grad = None
        touch(vectors[0].device)
        begin = read()
        contrastive_loss(*batch, form).backward()
        return [(("losses", "forward"), begin), (("losses", "end"), read())]

    # The pass that is traced is the one that warms up: its memory is that of any other.
    cuts = trace_memory(run_pass, vectors[0].device)
    return {"extra_mib": summarize_memory(cuts)[2] / MIB, "seconds": fastest_pass(run_pass, vectors[0].device, repeat)}


def measure_apart(form: str, *details: Any) -> dict[str, float]:
    """Call ``measure`` in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(measure, form, *details).result()
        except BrokenProcessPool:
            raise InputError(
                f"--form {form}: expected its numbers, found that its process was killed; if the memory is too small "
                "for these sizes, choose smaller --regions and --words"
            ) from None


def run(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, dict[str, float]], list[Table]]:
    """Measure all forms."""
    sizes = (arguments.regions, arguments.words, arguments.dim)
    on_gpu = torch.device(arguments.device).type == "cuda"
    forms = arguments.form or [form for form in FORMS if form != "triton" or on_gpu]
    if "triton" in forms and not on_gpu:
        raise InputError(f"--form triton: expected --device cuda, found {arguments.device}")
    # The bar shows how many forms are done: how far one is, only its process knows.
    progress = tqdm(forms, desc="forms", unit="form")
    results = {form: measure_apart(form, sizes, arguments.device, arguments.repeat) for form in progress}
    pairs_mib = arguments.regions * arguments.words * 4 / MIB
    title = f"{arguments.regions} regions, {arguments.words} words, {arguments.dim} numbers each"
    table = make_table(f"{title}; one matrix of all pairs: {pairs_mib:.1f} MiB", "form", ["extra, MiB", "s"])
    for form, row in results.items():
        table.add_row(form, f"{row['extra_mib']:.1f}", f"{row['seconds']:.4f}")
    return dict(zip(("regions", "words", "dim"), sizes)), results, [table]
