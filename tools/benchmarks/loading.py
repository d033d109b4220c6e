"""Measure how many training images a second one process makes ready, and on what it spends its time.

    python tools/benchmark.py loading --config-file configs/demo/glipv2_micro.yaml
    python tools/benchmark.py loading --config-file output/mine/config.yaml --opts INPUT.REDUCED_DECODING True

No worker runs, and the clock counts the processor time of this process: a training on one core loses this time, one
with DATALOADER.NUM_WORKERS N on idle cores is fed N times as fast.

reading     files, and decoding to pixels
augmenting  cuts, resizing, flips and colour
rest        prompt, tokens, boxes, and putting batches together
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import pstats
import time
from typing import Any

from detectron2.config import CfgNode
from detectron2.data.transforms import AugmentationList
from rich.table import Table

from glipv2_d2.data.build import build_train_loader
from glipv2_d2.data.image_reading import read_image

from .measurement import make_table, positive

CONFIG_KEYS = ("DATALOADER.NUM_WORKERS", "0")
WARM_UP_BATCHES = 5
# What is measured inside of the loader.
PARTS = {"reading": read_image, "augmenting": AugmentationList.__call__}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this subcommand."""
    parser.add_argument("--batches", type=positive, default=50, metavar="N", help="batches of each pass (default: 50)")


def run(arguments: argparse.Namespace, cfg: CfgNode) -> tuple[dict[str, Any], dict[str, Any], list[Table]]:
    """Count images and time, then once more under a profiler, whose own time is left out of the first count."""
    batches = iter(build_train_loader(cfg))
    for _ in itertools.islice(batches, WARM_UP_BATCHES):
        pass
    begin = time.process_time()
    num_images = sum(len(batch) for batch in itertools.islice(batches, arguments.batches))
    seconds = (time.process_time() - begin) / num_images
    profiler = cProfile.Profile(time.process_time)
    profiler.runcall(list, itertools.islice(batches, arguments.batches))
    stats = pstats.Stats(profiler)
    whole: float = stats.total_tt
    shares = {name: _time_within(stats, function) / whole for name, function in PARTS.items()}
    shares["rest"] = 1 - sum(shares.values())
    table = make_table(f"{1 / seconds:.0f} images a second", "part", ["ms", "share"])
    for name, share in shares.items():
        table.add_row(name, f"{1000 * seconds * share:.2f}", f"{share:.0%}")
    return {"batches": arguments.batches, "images": num_images}, {"images_per_s": 1 / seconds, **shares}, [table]


def _time_within(stats: pstats.Stats, function: Any) -> float:
    """Return the time within a function and what it calls."""
    code = function.__code__
    key = code.co_filename, code.co_firstlineno, code.co_name
    return stats.stats[key][3]
