"""Train a small detector from nothing, evaluate it, and draw what it finds: `make demo`, `make train`, `make words`.

    python tools/make_demo.py            # 24 names; 7 minutes on two cores when it was measured, set-up included
    python tools/make_demo.py --full     # all names; 57 minutes when it was measured
    python tools/make_demo.py --words    # a thousand names more, and an image classifier's words for unseen ones

Every step is a command that is printed before it runs, so that it can be repeated or changed by hand.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import yaml
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

if TYPE_CHECKING:
    from detectron2.structures import Instances

ROOT = Path(__file__).resolve().parents[1]
CONSOLE = Console(highlight=False)
# The held-out splits of each world that are tested, where they were made.
SPLITS = {"stampworld": ("val", "val_24", "val_novel"), "wideworld": ("val_names", "val_looks", "val_source")}


class Run(NamedTuple):
    """What a target makes: a folder in output, by a config, from worlds that scripts make with options, with keys."""

    folder: str
    config: str
    worlds: dict[str, str]
    keys: tuple[str, ...] = ()


RUNS = {
    "demo": Run(
        "demo",
        "configs/demo/glipv2_micro.yaml",
        {"stampworld": "--num-train 2000 --num-val 100 --num-names 24 --num-novel 8"},
        # A moving average over about a tenth of the run.
        ("SOLVER.MAX_ITER", "700", "SOLVER.EMA_DECAY", "0.99"),
    ),
    "full": Run("train", "configs/demo/glipv2_micro.yaml", {"stampworld": "--num-train 8000 --num-val 150"}),
    "words": Run(
        "words",
        "configs/pretrain/glipv2_micro_words.yaml",
        {
            "stampworld": "--num-train 8000 --num-val 150",
            "wideworld": "--num-train 10000 --num-val 150 --num-novel 48 --objects 2 5",
        },
    ),
}


def prepare(world: str, options: list[str], environment: dict[str, str]) -> str:
    """Make the dataset; return the name of the world that was made.

    Where the packages of StampWorld cannot be had, shapes are drawn instead; nothing takes the place of WideWorld.
    """
    command = [sys.executable, f"datasets/prepare_{world}.py", *options]
    CONSOLE.print(f"[bold]$ {shlex.join(command)}[/bold]")
    if subprocess.run(command, env=environment, cwd=ROOT).returncode == 0:
        return world
    if world != "stampworld":
        sys.exit(f"make demo: this step failed: {shlex.join(command)}")
    CONSOLE.print("[yellow]StampWorld could not be made: the demo goes on with ShapeWorld, drawn shapes[/yellow]")
    return prepare("shapeworld", options, environment)


def train(command: list[str], output: Path, environment: dict[str, str], max_iter: int) -> None:
    """Run the training command with its log in a file and a progress bar read from its metrics."""
    CONSOLE.print(f"[bold]$ {shlex.join(command)}[/bold]")
    output.mkdir(parents=True, exist_ok=True)
    # detectron2 appends to the file of an earlier run.
    (output / "metrics.json").unlink(missing_ok=True)
    log = output / "stdout.txt"
    bar = tqdm(total=max_iter, desc="training", unit="step", dynamic_ncols=True, disable=None)
    tenths = 0
    with log.open("w") as stream, bar, contextlib.ExitStack() as stack:
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        while process.poll() is None:
            time.sleep(1.0)
            if records := read_metrics(output):
                bar.n = min(records[-1]["iteration"] + 1, max_iter)
                # A bar in a file would be a line each second.
                if bar.disable and 10 * bar.n // max_iter > tenths:
                    tenths = 10 * bar.n // max_iter
                    CONSOLE.print(f"training: {bar.n} of {max_iter} steps")
                if bar.n == max_iter:
                    bar.set_description("evaluation")
                if "total_loss" in records[-1]:
                    bar.set_postfix(loss=f"{records[-1]['total_loss']:.2f}")
                bar.refresh()
        bar.n = max_iter if process.returncode == 0 else bar.n
    if process.returncode != 0:
        lines = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        sys.exit(f"{lines}\nmake demo: training failed, see {log}")


def read_metrics(output: Path) -> list[dict]:
    """Read detectron2's metrics.json, one JSON object a line; a half-written line is left out."""
    path = output / "metrics.json"
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [record for record in records if "iteration" in record]


def split_results(output: Path, dataset: str) -> dict[str, dict[str, float]]:
    """Collect what the COCO evaluator said of a dataset at the end of training."""
    prefix = f"{dataset}/bbox/"
    last = [record for record in read_metrics(output) if any(key.startswith(prefix) for key in record)][-1]
    names = ("AP", "AP50", "AP75")
    # A model that finds nothing at all has no AP, which the evaluator writes as NaN.
    values = {name: last[prefix + name] for name in names}
    return {"bbox": {name: round(value, 2) if math.isfinite(value) else 0.0 for name, value in values.items()}}


def box_recall(predictions: list[dict], annotation_file: Path, top: int) -> float:
    """Share, 0..100, of objects that one of the best boxes of the image covers with IoU >= 0.5, names left aside."""
    from pycocotools import mask

    truth = json.loads(annotation_file.read_text())
    by_image: dict[int, list[dict]] = {}
    for prediction in predictions:
        by_image.setdefault(prediction["image_id"], []).append(prediction)
    found = total = 0
    for image in truth["images"]:
        boxes = [item["bbox"] for item in truth["annotations"] if item["image_id"] == image["id"]]
        best = sorted(by_image.get(image["id"], []), key=lambda item: -item["score"])[:top]
        total += len(boxes)
        if boxes and best:
            iou = mask.iou(np.array([item["bbox"] for item in best]), np.array(boxes, float), [0] * len(boxes))
            found += int((iou.max(axis=0) >= 0.5).sum())
    return round(100.0 * found / max(total, 1), 2)


def measure(output: Path, dataset: str, annotation_file: Path) -> dict[str, Any]:
    """Collect what is reported of a dataset: AP, recall, and the score with the best F1, where drawn boxes begin."""
    from glipv2_d2.evaluation.detection_report import find_cut_off

    predictions = json.loads((output / "inference" / dataset / "coco_instances_results.json").read_text())
    truth = json.loads(annotation_file.read_text())
    return {
        **split_results(output, dataset),
        "names": len(truth["categories"]),
        **{f"recall{top}": box_recall(predictions, annotation_file, top) for top in (10, 100)},
        "drawn_from": find_cut_off(truth, predictions).score,
    }


def plot_loss(records: list[dict], path: Path) -> None:
    """Draw the losses over the updates."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name in ("total_loss", "loss_grounding", "loss_box_reg", "loss_centerness"):
        points = [(record["iteration"], record[name]) for record in records if name in record]
        axes.plot(*zip(*points), label=name, linewidth=1.2)
    axes.set(xlabel="update", ylabel="loss (median of 20 updates)", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def best_per_object(instances: Instances, score: float) -> Instances:
    """Leave one name to each object, for the drawing: the detector may find several names for one box."""
    from torchvision.ops import nms

    instances = instances[nms(instances.pred_boxes.tensor, instances.scores, 0.5)]
    return instances[instances.scores >= score]


def draw_splits(
    config: Path, weights: Path, data: dict[str, Path], scores: dict[str, float], output: Path, per_split: int
) -> list[Path]:
    """Predict on held-out scenes and on real photographs; save them with the boxes that are found.

    Boxes are drawn from the score of their split on, since names that training has not seen have low scores; those of
    photographs, which are as new to the model, from the lowest of these on.
    """
    from glipv2_d2 import GLIPv2Predictor, get_config
    from glipv2_d2.visualizer import GroundingVisualizer

    cfg = get_config(str(config))
    cfg.merge_from_list(["MODEL.WEIGHTS", str(weights), "MODEL.DEVICE", "cpu"])
    predictor = GLIPv2Predictor(cfg)
    output.mkdir(parents=True, exist_ok=True)
    saved = []

    def draw_image(image_path: Path, names: list[str], stem: str, score: float) -> None:
        image = cv2.imread(str(image_path))
        result = predictor(image, names)
        instances = best_per_object(result["instances"], score)
        drawn = GroundingVisualizer(image[:, :, ::-1]).draw_predictions(instances, result["phrases"])
        cv2.imwrite(str(output / f"{stem}.png"), drawn[:, :, ::-1])
        saved.append(output / f"{stem}.png")

    for split, path in data.items():
        truth = json.loads(path.read_text())
        names = [category["name"] for category in truth["categories"]]
        for image in truth["images"][:per_split]:
            file = path.parents[1] / path.stem / image["file_name"]
            draw_image(file, names, f"{split}_{image['id']}", scores[split])
    annotations, score = next(iter(data.values())).parent, min(scores.values())
    real = annotations / "real.json"
    if real.exists():
        truth = json.loads((annotations / "train.json").read_text())
        seen = [category["name"] for category in truth["categories"]]
        photographs = json.loads(real.read_text())["images"]
        for image in sorted(photographs, key=lambda image: not set(image["names"]) & set(seen))[:2]:
            others = [name for name in seen if name not in image["names"]][:5]
            file, names = real.parents[1] / "real" / image["file_name"], [*image["names"], *others]
            draw_image(file, names, f"real_{image['id']}", score)
    return saved


def num_updates(run: Run) -> int:
    """Read the updates of a run from its keys, otherwise from its config."""
    if "SOLVER.MAX_ITER" in run.keys:
        return int(run.keys[run.keys.index("SOLVER.MAX_ITER") + 1])
    return int(yaml.safe_load((ROOT / run.config).read_text())["SOLVER"]["MAX_ITER"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = parser.add_mutually_exclusive_group()
    for size, what in (
        ("full", "all names and a longer run (make train)"),
        ("words", "WideWorld's names too, and class words (make words)"),
    ):
        sizes.add_argument(f"--{size}", action="store_const", const=size, dest="size", help=what)
    parser.add_argument("--output", type=Path, help="default: output/demo, output/train or output/words")
    parser.add_argument("--world", choices=["stampworld", "shapeworld"], default="stampworld", help="dataset to make")
    parser.add_argument("--max-iter", type=int, help="updates; default: the size's own")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="config keys for train_net.py")
    args = parser.parse_args()
    run = RUNS[args.size or "demo"]
    max_iter = args.max_iter or num_updates(run)
    output = (args.output or ROOT / "output" / run.folder).resolve()
    start, clock = time.time(), {}

    datasets = output / "datasets"
    environment = {**os.environ, "DETECTRON2_DATASETS": str(datasets)}
    made = []
    for world, options in run.worlds.items():
        wanted = args.world if world == "stampworld" else world
        made.append(prepare(wanted, ["--output", str(datasets / world), *options.split()], environment))
    clock["data"] = time.time() - start

    # By name; the first world's are called by the split alone.
    data = {
        split if world == "stampworld" else f"{world}_{split}": datasets / world / "annotations" / f"{split}.json"
        for world in run.worlds
        for split in SPLITS[world]
    }
    data = {split: path for split, path in data.items() if path.exists()}
    tests = {split: f"{path.parents[1].name}_{path.stem}" for split, path in data.items()}
    run_folder = output / "run"
    command = [sys.executable, "train_net.py", "--config-file", run.config, "--num-gpus", "0"]
    command += ["OUTPUT_DIR", str(run_folder), "DATASETS.TEST", str(tuple(tests.values()))]
    command += [*run.keys, *(["SOLVER.MAX_ITER", str(max_iter)] if args.max_iter else [])]
    train(command + args.opts, run_folder, environment, max_iter)
    clock["training and evaluation"] = time.time() - start - sum(clock.values())

    os.environ["DETECTRON2_DATASETS"] = str(datasets)
    weights = run_folder / "model_final.pth"
    metrics: dict[str, Any] = {split: measure(run_folder, tests[split], truth) for split, truth in data.items()}
    scores = {split: metrics[split]["drawn_from"] for split in data}
    drawings = draw_splits(ROOT / run.config, weights, data, scores, output / "drawings", per_split=4)
    records = read_metrics(run_folder)
    plot_loss([record for record in records if "total_loss" in record], output / "loss.png")
    clock["drawings"] = time.time() - start - sum(clock.values())

    metrics |= {"world": ", ".join(made), "updates": max_iter, "seconds": round(time.time() - start, 1)}
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    report(metrics, clock, list(data), output, drawings)


def report(metrics: dict, clock: dict[str, float], splits: list[str], output: Path, drawings: list[Path]) -> None:
    """Print what was done and reached."""
    table = Table(title="box AP (0..100); recall of the best 10 / 100 boxes at IoU 0.5 by any name")
    for column in ("split", "names", "AP", "AP50", "AP75", "recall 10", "recall 100"):
        # 80 columns are enough for the longest split.
        table.add_column(column, justify="left" if column == "split" else "right", no_wrap=True)
    for split in splits:
        row = metrics[split]
        values = [*row["bbox"].values(), row["recall10"], row["recall100"]]
        table.add_row(split, str(row["names"]), *(f"{value:.1f}" for value in values))
    CONSOLE.print(table)
    CONSOLE.print("  ".join(f"{name}: {seconds:.0f} s" for name, seconds in clock.items()))
    CONSOLE.print(f"{len(drawings)} drawings, loss.png and metrics.json in {output}")
    drawn = ", ".join(f"{metrics[split]['drawn_from']:.2f} ({split})" for split in splits)
    CONSOLE.print(f"drawn are boxes from the score with the best F1 of all images on: {drawn}")


if __name__ == "__main__":
    main()
