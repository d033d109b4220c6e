"""Measure how long the encoding of predicted masks keeps a model waiting at an evaluation.

    python tools/benchmark.py encoding
    python tools/benchmark.py encoding --masks 300 --size 800 1333 --repeat 5

own     CPU time of the thread that runs the model, ms for an image, of the fastest pass.
lock    of it or beside it, CPU time in which no other Python code can run, since pycocotools is at work.
all     CPU time of all threads.

"whole masks" copies every mask as a whole into columns, "in the way" only the part that is not empty, as the package
does without DATALOADER.NUM_WORKERS; "beside" hands the masks to a thread, as it does with one. Masks are ellipses with
uneven borders, from 20 pixels to two thirds of the image wide and high. The forms take turns; different codes end the
run.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from pycocotools import mask as mask_utils
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from glipv2_d2.errors import InputError
from glipv2_d2.evaluation.mask_encoding import MaskEncoder

from .measurement import make_table, positive

CONFIG_KEYS = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this subcommand."""
    parser.add_argument("--masks", type=positive, default=100, metavar="K", help="of an image, default: 100")
    parser.add_argument("--size", type=positive, nargs=2, default=[480, 640], metavar=("H", "W"), help="480 640")
    parser.add_argument("--repeat", type=positive, default=5, metavar="N", help="timed passes (default: 5)")


def make_masks(number: int, height: int, width: int) -> Tensor:
    """Draw (number, height, width) bool masks."""
    draw = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    waves = 0.1 * np.sin(x / 3) * np.sin(y / 4)
    masks = np.zeros((number, height, width), dtype=bool)
    for mask in masks:
        radii = draw.uniform(10, width / 3), draw.uniform(10, height / 3)
        mask[:] = ((x - draw.uniform(0, width)) / radii[0]) ** 2 + (
            (y - draw.uniform(0, height)) / radii[1]
        ) ** 2 + waves < 1
    return torch.from_numpy(masks)


def encode_whole(masks: Tensor, counts: np.ndarray, image_id: Any) -> None:
    """Encode masks one after the other, each as a whole."""
    counts[:] = [mask_utils.encode(np.asfortranarray(one))["counts"] for one in masks.numpy().view(np.uint8)]


def run(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, dict[str, float]], list[Table]]:
    """Measure the three forms."""
    masks = make_masks(arguments.masks, *arguments.size)
    in_columns = [np.asfortranarray(one) for one in masks.numpy().view(np.uint8)]
    in_the_way, beside = MaskEncoder(), MaskEncoder(1)
    forms = {"whole masks": encode_whole, "in the way": in_the_way.encode, "beside": beside.encode}
    results = {form: {"own": float("inf"), "lock": float("inf"), "all": float("inf")} for form in forms}
    for _ in tqdm(range(arguments.repeat), desc="passes", unit="pass"):
        found = []
        for form, encode in forms.items():
            counts = np.full(len(masks), None, dtype=object)
            begin, begin_all = time.thread_time(), time.process_time()
            encode(masks, counts, 0)
            own = time.thread_time() - begin
            beside.finish()
            seconds = {"own": own, "all": time.process_time() - begin_all}
            begin = time.thread_time()
            for one in in_columns:
                mask_utils.encode(one)
            seconds["lock"] = time.thread_time() - begin
            results[form] = {key: min(value, 1000 * seconds[key]) for key, value in results[form].items()}
            found.append(counts.tolist())
        if not found[0] == found[1] == found[2]:
            raise InputError("forms: expected equal run lengths, found different ones")
    height, width = arguments.size
    table = make_table(f"{arguments.masks} masks of {height} x {width}", "form", ["own, ms", "lock, ms", "all, ms"])
    for form, row in results.items():
        table.add_row(form, *(f"{value:.1f}" for value in row.values()))
    return {"masks": arguments.masks, "size": arguments.size}, results, [table]
