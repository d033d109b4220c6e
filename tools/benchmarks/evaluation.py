"""Measure the time of AP: the fast engine against the official packages, on random boxes.

    python tools/benchmark.py evaluation
    python tools/benchmark.py evaluation --images 5000 --boxes 100 --repeat 2

s       CPU time of the fastest pass, from arrays of detections to precisions, of boxes by the rules of COCO.

An image has 7 annotated boxes of 80 classes in the mean, 2 % of them crowd regions. Half of the detections lie near an
annotated box. The engines take turns; different precisions end the run.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from rich.table import Table
from tqdm import tqdm

from glipv2_d2.data.datasets.coco import Truth
from glipv2_d2.errors import InputError
from glipv2_d2.evaluation.ap_engine import ENGINES, precisions
from glipv2_d2.evaluation.ap_inputs import DetectionRows

from .measurement import make_table, positive

CONFIG_KEYS = None
NUM_CLASSES = 80
BOXES_OF_AN_IMAGE = 7
CROWD_SHARE = 0.02
HEIGHT, WIDTH = 480, 640


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this subcommand."""
    parser.add_argument("--images", type=positive, default=5000, metavar="N", help="default: 5000")
    parser.add_argument("--boxes", type=positive, default=100, metavar="K", help="detections of an image, default: 100")
    parser.add_argument("--repeat", type=positive, default=1, metavar="N", help="timed passes (default: 1)")


def make_boxes(draw: np.random.Generator, number: int) -> np.ndarray:
    """Draw (number, 4) boxes, XYWH, from 7 to 220 pixels wide and high."""
    corners = draw.uniform(0, (WIDTH - 240, HEIGHT - 240), (number, 2))
    return np.concatenate((corners, np.exp(draw.uniform(2, 5.4, (number, 2)))), axis=1)


def make_case(num_images: int, num_boxes: int) -> tuple[Truth, DetectionRows]:
    """Draw annotations and detections."""
    draw = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    parts = []
    for image_id in range(1, num_images + 1):
        boxes = make_boxes(draw, 1 + draw.poisson(BOXES_OF_AN_IMAGE - 1))
        classes = draw.integers(1, NUM_CLASSES + 1, len(boxes))
        crowds = draw.random(len(boxes)) < CROWD_SHARE
        for box, category_id, crowd in zip(boxes.tolist(), classes.tolist(), crowds.tolist(), strict=True):
            one = {"image_id": image_id, "category_id": category_id, "bbox": box, "iscrowd": int(crowd)}
            annotations.append({**one, "area": box[2] * box[3]})
        source, is_near = draw.integers(0, len(boxes), num_boxes), draw.random(num_boxes) < 0.5
        near = boxes[source] + draw.normal(0, 4, (num_boxes, 4))
        near[:, 2:] = near[:, 2:].clip(min=1)
        found = np.where(is_near[:, None], near, make_boxes(draw, num_boxes))
        parts.append(
            DetectionRows(
                image_ids=np.full(num_boxes, image_id),
                image_sizes=np.full((num_boxes, 2), (HEIGHT, WIDTH), dtype=np.int32),
                category_ids=np.where(is_near, classes[source], draw.integers(1, NUM_CLASSES + 1, num_boxes)),
                scores=draw.random(num_boxes).astype(np.float32).round(3),
                boxes=found.astype(np.float32),
                counts=np.full(num_boxes, None, dtype=object),
            )
        )
    images = [{"id": number, "height": HEIGHT, "width": WIDTH} for number in range(1, num_images + 1)]
    categories = [{"id": number, "name": str(number)} for number in range(1, NUM_CLASSES + 1)]
    return {"images": images, "categories": categories, "annotations": annotations}, DetectionRows.join(parts)


def run(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, dict[str, float]], list[Table]]:
    """Measure both engines, and the second as a multiple of the first."""
    truth, rows = make_case(arguments.images, arguments.boxes)
    seconds = dict.fromkeys(ENGINES, float("inf"))
    for _ in tqdm(range(arguments.repeat), desc="passes", unit="pass"):
        found = {}
        for engine in ENGINES:
            begin = time.process_time()
            found[engine] = precisions(truth, rows, "bbox", engine=engine)
            seconds[engine] = min(seconds[engine], time.process_time() - begin)
        if not np.array_equal(*found.values()):
            raise InputError("engines: expected equal precisions, found different ones")
    table = make_table(f"{arguments.images} x {arguments.boxes} boxes", "engine", ["s"])
    for engine in ENGINES:
        table.add_row(engine, f"{seconds[engine]:.3f}")
    first, second = seconds.values()
    table.add_row("multiple", f"{second / first:.1f}")
    facts = {"images": arguments.images, "boxes": arguments.boxes}
    return facts, {engine: {"seconds": value} for engine, value in seconds.items()}, [table]
