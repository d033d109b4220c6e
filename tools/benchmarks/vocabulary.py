"""Measure the cost of a large vocabulary: one run over all its chunks against one full run for each of them.

    python tools/benchmark.py vocabulary --config-file configs/glip/glip_swin_t_c.yaml --size 320 320
    python tools/benchmark.py vocabulary --config-file configs/demo/glipv2_micro.yaml --size 192 192 --repeat 5

The same model, image of noise and chunks run in five ways, in turn, round after round:

floor        the backbone once and the tower for all chunks, which are known; nothing is predicted.
next image   all chunks in one call; the vocabulary is known from the image before.
first image  all chunks in one call; the vocabulary is read in it.
separate     a call for each chunk, with the backbone, and the chunk is read in it.
official     the same with the plain form of the fusion and prompts filled up to MODEL.TEXT_ENCODER.MAX_TOKENS, as
             the official evaluation computes each chunk.

The last two take most of the time; --without leaves them out.

The time of a way is that of its fastest round, in single precision. On a machine that others use as well, --clock cpu
counts the processor time of this process instead, summed over its threads. Of each chunk
MODEL.GLIPV2.TEST.DETECTIONS_PER_PROMPT (100) detections are kept, without a limit for the image: next, first and
separate have to find equally many, but for rounding. Weights are those of MODEL.WEIGHTS, or random.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from rich.table import Table
from torch import nn
from tqdm import tqdm

from glipv2_d2.modeling.build import choose_device
from glipv2_d2.modeling.tasks.prompt_passes import plan_passes
from glipv2_d2.prompts.tokenizer import PromptTokenizer
from glipv2_d2.structures import TokenizedPrompt

from .measurement import clock, load_model, make_table, noise_image, positive

CONFIG_KEYS = ("TEST.DETECTIONS_PER_IMAGE", "0", "MODEL.GLIPV2.TEST.DETECTIONS_PER_PROMPT", "100")
NAMED_DATASET = "lvis_v1_val"
FULL_RUNS = ("separate", "official")
WAYS = ("floor", "next image", "first image", *FULL_RUNS)

Inputs = list[dict[str, Any]]
Rows = dict[str, dict[str, float]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this subcommand."""
    parser.add_argument("--size", nargs=2, type=positive, default=[320, 320], metavar=("H", "W"), help="of the image")
    parser.add_argument("--num-names", type=positive, default=1203, metavar="N", help="names (default: 1203, of LVIS)")
    parser.add_argument("--chunk-size", type=positive, default=40, metavar="N", help="names of a chunk (default: 40)")
    parser.add_argument("--repeat", type=positive, default=3, metavar="N", help="rounds (default: 3)")
    parser.add_argument("--without", action="append", choices=FULL_RUNS, default=[], help="leave one out")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="(default: wall)")


def make_names(count: int) -> list[str]:
    """Return the first names of LVIS, and where there are not enough the same ones with a number."""
    names = MetadataCatalog.get(NAMED_DATASET).thing_classes
    rounds, rest = divmod(count, len(names))
    numbered = [f"{name} {number}" for number in range(2, rounds + 2) for name in names]
    return [*names, *numbered][: rounds * len(names) + rest]


def fill_up(prompt: TokenizedPrompt, length: int) -> TokenizedPrompt:
    """Give a prompt further tokens that belong to no phrase; they cost as much as padding that is not left out."""
    missing = length - len(prompt)
    return dataclasses.replace(
        prompt,
        input_ids=F.pad(prompt.input_ids, (0, missing)),
        phrase_token_map=F.pad(prompt.phrase_token_map, (0, missing)),
    )


def run_ways(model: nn.Module, inputs: dict[str, Any], prompts: list[TokenizedPrompt], max_tokens: int) -> dict:
    """Return for each way a function that runs it and gives the number of detections."""

    def count(*calls: Inputs) -> int:
        return sum(len(output["instances"]) for call in calls for output in model(call))

    def forget_and_count(*calls: Inputs) -> int:
        found = 0
        for call in calls:
            model.eval()  # forgets the prompts
            found += count(call)
        return found

    def run_official() -> int:
        fusions = [block.fusion for block in model.fusion_tower.blocks if block.fusion is not None]
        forms = [fusion.form for fusion in fusions]
        for fusion in fusions:
            fusion.form = "plain"
        found = forget_and_count(*([inputs | {"prompts": [fill_up(prompt, max_tokens)]}] for prompt in prompts))
        for fusion, form in zip(fusions, forms):
            fusion.form = form
        return found

    def run_floor() -> int:
        features = model.visual_features(model.preprocess_image([inputs]))
        for pairs in plan_passes([prompts], model.tasks["detection"].prompts_per_pass):
            model.fuse(pairs.select(features), model.read_prompts(pairs.prompts))
        return 0

    together = [inputs | {"prompts": prompts}]
    alone = [[inputs | {"prompts": [prompt]}] for prompt in prompts]
    # The next image knows what the first one read.
    return {
        "first image": lambda: forget_and_count(together),
        "next image": lambda: count(together),
        "floor": run_floor,
        "separate": lambda: forget_and_count(*alone),
        "official": run_official,
    }


@torch.no_grad()
def measure(ways: dict[str, Callable[[], int]], repeat: int, read: Callable[[], float]) -> Rows:
    """Run all ways in turn, once to warm up and ``repeat`` times; return seconds and detections of each."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    found: dict[str, int] = {}
    ways["first image"]()
    for _ in tqdm(range(repeat), unit="round", leave=False):
        for way, run_way in ways.items():
            begin = read()
            found[way] = run_way()
            seconds[way].append(read() - begin)
    return {way: {"seconds": min(seconds[way]), "detections": found[way]} for way in WAYS if way in ways}


def run(arguments: argparse.Namespace, cfg: CfgNode) -> tuple[dict[str, Any], Rows, list[Table]]:
    """Measure the ways; the times are shown as they are and relative to the floor and to both kinds of full runs."""
    prompts = PromptTokenizer.from_config(cfg).tokenize_names(
        make_names(arguments.num_names), separator=cfg.INPUT.PROMPT.SEPARATOR, chunk_size=arguments.chunk_size
    )
    inputs = noise_image(arguments.size, torch.Generator().manual_seed(0))
    facts = {
        "size": arguments.size,
        "names": arguments.num_names,
        "chunks": len(prompts),
        "longest": max(len(prompt) for prompt in prompts),
        "prompts a pass": cfg.MODEL.GLIPV2.TEST.PROMPTS_PER_PASS,
        "repeat": arguments.repeat,
        "clock": arguments.clock,
    }
    ways = run_ways(load_model(cfg).eval(), inputs, prompts, cfg.MODEL.TEXT_ENCODER.MAX_TOKENS)
    ways = {way: run_way for way, run_way in ways.items() if way not in arguments.without}
    count = time.process_time if arguments.clock == "cpu" else time.perf_counter
    rows = measure(ways, arguments.repeat, clock(choose_device(cfg.MODEL.DEVICE), count))
    others = [way for way in ("floor", *FULL_RUNS) if way in rows]
    table = make_table("", "run", ["s", "s a chunk", *(f"of {way}" for way in others), "detections"])
    for way, row in rows.items():
        shares = [f"{row['seconds'] / rows[other]['seconds']:.3f}" for other in others]
        per_chunk = f"{row['seconds'] / len(prompts):.4f}"
        table.add_row(way, f"{row['seconds']:.3f}", per_chunk, *shares, str(row["detections"]))
    return facts, rows, [table]
