#!/usr/bin/env python
"""Measure what a large vocabulary costs: one run over all its chunks against one full run for each of them.

    python tools/benchmark_vocabulary.py --config-file configs/glip/glip_swin_t_c.yaml --size 320 320
    python tools/benchmark_vocabulary.py --config-file configs/demo/glipv2_micro.yaml --size 192 192 --repeat 5

The same model, image of noise and chunks run in four ways, in turn, round after round:

next image   all chunks in one call; the vocabulary is known from the image before.
first image  all chunks in one call; the vocabulary is read in it.
separate     a call for each chunk, with the backbone, and the chunk is read in it.
official     the same with the plain form of the fusion and prompts filled up to MODEL.TEXT_ENCODER.MAX_TOKENS: what the
             official evaluation computes for each chunk.

The time of a way is that of its fastest round, in single precision. On a machine that others use as well, --clock cpu
counts the processor time of this process instead, summed over its threads. Detections are kept as the official
evaluation of LVIS does, up to MODEL.GLIPV2.TEST.DETECTIONS_PER_PROMPT (100) of each chunk; the first three ways have to
find equally many, but for rounding. Weights are those of MODEL.WEIGHTS, or random.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from rich.console import Console
from rich.table import Table
from torch import nn
from tqdm import tqdm

from glipv2_d2.checkpoint.checkpointer import GLIPv2Checkpointer
from glipv2_d2.engine.command_line import build_config, one_line_errors
from glipv2_d2.prompts.tokenizer import PromptTokenizer
from glipv2_d2.structures import TokenizedPrompt

NAMED_DATASET = "lvis_v1_val"
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
WAYS = ("next image", "first image", "separate", "official")

Inputs = list[dict[str, Any]]


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--size", nargs=2, type=positive, default=[320, 320], metavar=("H", "W"), help="of the image")
    parser.add_argument("--num-names", type=positive, default=1203, metavar="N", help="names (default: 1203, of LVIS)")
    parser.add_argument("--chunk-size", type=positive, default=40, metavar="N", help="names of a chunk (default: 40)")
    parser.add_argument("--repeat", type=positive, default=3, metavar="N", help="rounds (default: 3)")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="(default: wall)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", metavar="DEVICE")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers there")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys; last")
    return parser.parse_args(argv)


def positive(text: str) -> int:
    """Read a whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text!r}")
    return int(text)


def make_names(count: int) -> list[str]:
    """Return the first names of LVIS, and where there are not enough the same ones with a number."""
    names = MetadataCatalog.get(NAMED_DATASET).thing_classes
    rounds, rest = divmod(count, len(names))
    numbered = [f"{name} {number}" for number in range(2, rounds + 2) for name in names]
    return [*names, *numbered][: rounds * len(names) + rest]


def load_model(cfg: CfgNode) -> nn.Module:
    """Build the model with the weights of the config."""
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    GLIPv2Checkpointer(model).load(cfg.MODEL.WEIGHTS)
    return model


def fill_up(prompt: TokenizedPrompt, length: int) -> TokenizedPrompt:
    """Give a prompt further tokens that belong to no phrase; they cost what padding costs that is not left out."""
    missing = length - len(prompt)
    return dataclasses.replace(
        prompt,
        input_ids=F.pad(prompt.input_ids, (0, missing)),
        phrase_token_map=F.pad(prompt.phrase_token_map, (0, missing)),
    )


def run_ways(model: nn.Module, inputs: dict[str, Any], prompts: list[TokenizedPrompt], max_tokens: int) -> dict:
    """Return for each way what runs it and gives the number of detections."""

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

    together = [inputs | {"prompts": prompts}]
    alone = [[inputs | {"prompts": [prompt]}] for prompt in prompts]
    # What the first image reads, the next one knows.
    return {
        "first image": lambda: forget_and_count(together),
        "next image": lambda: count(together),
        "separate": lambda: forget_and_count(*alone),
        "official": run_official,
    }


@torch.no_grad()
def measure(
    ways: dict[str, Callable[[], int]], repeat: int, device: torch.device, clock: Callable[[], float]
) -> dict[str, dict[str, float]]:
    """Run all ways in turn, once to warm up and ``repeat`` times; return seconds and detections of each."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    found: dict[str, int] = {}
    ways["first image"]()
    for _ in tqdm(range(repeat), unit="round", leave=False):
        for way, run in ways.items():
            begin = clock()
            found[way] = run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[way].append(clock() - begin)
    return {way: {"seconds": min(seconds[way]), "detections": found[way]} for way in WAYS}


def make_table(rows: dict[str, dict[str, float]], num_chunks: int) -> Table:
    """Lay out the times, as they are and relative to both kinds of full runs."""
    table = Table("run")
    for heading in ("s", "s a chunk", "of separate", "of official", "detections"):
        table.add_column(heading, justify="right", no_wrap=True)
    for way, row in rows.items():
        shares = [f"{row['seconds'] / rows[other]['seconds']:.3f}" for other in ("separate", "official")]
        table.add_row(
            way, f"{row['seconds']:.3f}", f"{row['seconds'] / num_chunks:.4f}", *shares, str(row["detections"])
        )
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    arguments = parse_arguments(argv)
    console = Console(highlight=False)
    with one_line_errors(arguments.traceback):
        options = ["MODEL.DEVICE", arguments.device, "TEST.DETECTIONS_PER_IMAGE", "0"]
        options += ["MODEL.GLIPV2.TEST.DETECTIONS_PER_PROMPT", "100", *arguments.opts]
        cfg = build_config(arguments.config_file, options)
        prompts = PromptTokenizer.from_config(cfg).tokenize_names(
            make_names(arguments.num_names), separator=cfg.INPUT.PROMPT.SEPARATOR, chunk_size=arguments.chunk_size
        )
        height, width = arguments.size
        image = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        model = load_model(cfg)
        inputs = {"image": image, "height": height, "width": width}
        facts = {
            "config": arguments.config_file,
            "size": arguments.size,
            "names": arguments.num_names,
            "chunks": len(prompts),
            "longest": max(len(prompt) for prompt in prompts),
            "prompts a pass": cfg.MODEL.GLIPV2.TEST.PROMPTS_PER_PASS,
            "repeat": arguments.repeat,
            "clock": arguments.clock,
            "device": torch.cuda.get_device_name(cfg.MODEL.DEVICE) if "cuda" in cfg.MODEL.DEVICE else cfg.MODEL.DEVICE,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        console.print("  ".join(f"{key}: {value}" for key, value in facts.items()), markup=False)
        ways = run_ways(model, inputs, prompts, cfg.MODEL.TEXT_ENCODER.MAX_TOKENS)
        rows = measure(ways, arguments.repeat, torch.device(cfg.MODEL.DEVICE), CLOCKS[arguments.clock])
        console.print(make_table(rows, len(prompts)))
        if arguments.json:
            Path(arguments.json).write_text(json.dumps({**facts, "runs": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
