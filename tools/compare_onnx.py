#!/usr/bin/env python
"""Compare an export to ONNX with the model that it was made of, on photographs: boxes, scores, time, AP.

    python tools/compare_onnx.py --config-file FILE --onnx mine.onnx --images FOLDER --names "dog,cat" \\
        --short-sides 256 320 MODEL.WEIGHTS FILE
    python tools/compare_onnx.py --config-file FILE --onnx mine.onnx --images FOLDER --annotations val.json ...

Each photograph goes through both in turn, on one thread; times are its CPU seconds. The detections of one side look for
their equals among those of the other, but for the last ones, which a limit may part. With --annotations, a COCO file,
the names are those of its categories, and AP and AP50 of both are printed. examples/onnx_detect.py runs the export.
Several exports of the model, such as one in int8, are compared one after the other.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from glipv2_d2 import GLIPv2Predictor
from glipv2_d2.data.image_reading import IMAGE_SUFFIXES
from glipv2_d2.engine.command_line import build_config, one_line_errors
from glipv2_d2.errors import InputError
from glipv2_d2.program.config_arguments import (
    add_config_arguments,
    add_folder_argument,
    config_keys,
    find_config,
    split_names,
)

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "onnx_detect.py"


class Found(NamedTuple):
    """Detections of an image: boxes (K, 4), scores (K,), rows of names (K,)."""

    boxes: np.ndarray
    scores: np.ndarray
    rows: np.ndarray


class Difference(NamedTuple):
    """How far detections are from their equals.

    Attributes:
        pixels: Largest difference of an edge.
        score: Largest difference of a score.
        lost: Detections that have no equal at all: of their name, within a pixel and 0.01.
        compared: Detections that were looked at.
    """

    pixels: float = 0.0
    score: float = 0.0
    lost: int = 0
    compared: int = 0

    def with_other(self, other: Difference) -> Difference:
        """Join with those of other images."""
        sums = self.lost + other.lost, self.compared + other.compared
        return Difference(max(self.pixels, other.pixels), max(self.score, other.score), *sums)


def differences(found: Found, expected: Found, margin: float = 1e-3) -> Difference:
    """Compare the detections of an image that are above the last of both by ``margin``, in both directions."""
    total = Difference()
    last = max((side.scores.min() for side in (found, expected) if len(side.scores)), default=0.0)
    for one, other in ((found, expected), (expected, found)):
        for box, score, row in zip(*one):
            if score < last + margin:
                continue
            pixels = np.abs(other.boxes - box).max(axis=1, initial=0.0)
            scores = np.abs(other.scores - score)
            (equals,) = np.nonzero((other.rows == row) & (pixels < 1) & (scores < 0.01))
            if not len(equals):
                total = total.with_other(Difference(lost=1, compared=1))
                continue
            best = equals[np.argmin(pixels[equals] + 100 * scores[equals])]
            total = total.with_other(Difference(float(pixels[best]), float(scores[best]), 0, 1))
    return total


def load_example() -> Any:
    """Import ``examples/onnx_detect.py``."""
    spec = importlib.util.spec_from_file_location("onnx_detect", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def results_of(found: Found, image_id: int, category_ids: list[int]) -> list[dict[str, Any]]:
    """Return detections of an image as COCO writes results."""
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[row],
            "bbox": [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])],
            "score": float(score),
        }
        for box, score, row in zip(*found)
    ]


def average_precision(truth: COCO, results: list[dict[str, Any]], image_ids: list[int]) -> tuple[float, float]:
    """Return AP and AP50 in percent over the images."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * float(evaluation.stats[0]), 100 * float(evaluation.stats[1])


class Comparison:
    """Both sides for some names, and what was measured so far.

    Args:
        predictor: The model.
        detector: The export, with the same names.
    """

    def __init__(self, predictor: GLIPv2Predictor, detector: Any) -> None:
        self.predictor = predictor
        self.detector = detector
        self.difference = Difference()
        self.seconds: list[list[float]] = [[], []]

    def __call__(self, path: Path) -> tuple[Found, Found]:
        """Run an image through the model and the export; return what they found."""
        with Image.open(path) as file:
            image = file.convert("RGB")
        begin = time.process_time()
        instances = self.predictor(image, self.detector.names)["instances"]
        middle = time.process_time()
        found = Found(*self.detector(image))
        self.seconds[0].append(middle - begin)
        self.seconds[1].append(time.process_time() - middle)
        boxes, scores, rows = instances.pred_boxes.tensor, instances.scores, instances.pred_classes
        expected = Found(boxes.numpy(), scores.numpy(), rows.numpy())
        self.difference = self.difference.with_other(differences(found, expected))
        return expected, found

    def line(self, side: int) -> str:
        """Return a row of the table; the first image of both is left out of the times."""
        model, export = (float(np.median(times[1:] or times)) for times in self.seconds)
        pixels, score, lost, compared = self.difference
        return (
            f"| {side} | {len(self.detector.names)} | {len(self.seconds[0])} | {compared // 2} | {lost} "
            f"| {pixels:.4f} | {score:.1e} | {model:.3f} | {export:.3f} | {export / model:.2f} |"
        )


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onnx", type=Path, required=True, nargs="+", metavar="FILE", help="the exports, FILE.onnx")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="photographs")
    parser.add_argument(
        "--names", action="append", default=[], metavar="A,B,C", help="names; may be given several times"
    )
    parser.add_argument("--short-sides", nargs="+", type=int, default=[], metavar="N", help="default: as exported")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="images, evenly spread; 0: all")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="COCO file of the images, for the AP")
    add_folder_argument(parser)
    add_config_arguments(parser)
    return parser.parse_args()


def main() -> None:
    """Compare each export."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    truth, ids = None, {}
    if arguments.annotations is not None:
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(arguments.annotations))
        ids = {arguments.images / image["file_name"]: image["id"] for image in truth.dataset["images"]}
        paths = list(ids)
        arguments.names = [[category["name"] for category in truth.dataset["categories"]]]
    else:
        paths = sorted(path for path in arguments.images.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        arguments.names = [split_names(names) for names in arguments.names] or [[]]
    if not paths:
        raise InputError(f"--images: expected photographs in {arguments.images}, found none")
    if arguments.limit:
        paths = paths[:: -(-len(paths) // arguments.limit)]
    for onnx in arguments.onnx:
        compare(arguments, onnx, paths, truth, ids)


def compare(arguments: argparse.Namespace, onnx: Path, paths: list[Path], truth: COCO | None, ids: dict) -> None:
    """Print a row for each size and list of names, and what the annotations say of an export."""
    example = load_example()
    about = example.Detector(onnx, ["thing"]).about
    print(f"{onnx.name}: {onnx.stat().st_size / 1e6:.1f} MB")
    print("| short side | names | images | detections | without equal | pixels | score | model, s | ONNX, s | ratio |")
    print("| --- " * 10 + "|")
    for side in arguments.short_sides or [about["resize"]["shortest"]]:
        longest = round(side * about["resize"]["longest"] / about["resize"]["shortest"])
        keys = ["INPUT.MIN_SIZE_TEST", str(side), "INPUT.MAX_SIZE_TEST", str(longest), "MODEL.DEVICE", "cpu"]
        # An exported detector sees one size.
        keys += ["TEST.AUG.ENABLED", "False"]
        cfg = build_config(find_config(arguments), [*config_keys(arguments), *keys], for_results=True)
        predictor = GLIPv2Predictor(cfg)
        for names in arguments.names:
            detector = example.Detector(onnx, names, threads=1)
            detector.about["resize"] = {"shortest": side, "longest": longest}
            comparison = Comparison(predictor, detector)
            found = [comparison(path) for path in paths]
            print(comparison.line(side), flush=True)
            if truth is not None:
                category_ids = [category["id"] for category in truth.dataset["categories"]]
                chosen = [ids[path] for path in paths]
                for name, sides in zip(("model", "ONNX"), zip(*found)):
                    pairs = zip(sides, chosen)
                    results = [line for one, number in pairs for line in results_of(one, number, category_ids)]
                    ap, ap50 = average_precision(truth, results, chosen)
                    print(f"{name}: AP {ap:.2f}, AP50 {ap50:.2f}", flush=True)


if __name__ == "__main__":
    with one_line_errors():
        main()
