"""What a run on one's own boxes leaves: results.json, a table of classes, curves, confusions, and drawings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from ..colored_text import draw_words
from ..data.datasets.skip_report import with_progress
from ..data.image_reading import UnreadableImageError, read_image
from ..errors import space_errors
from ..evaluation.ap_engine import COCO_LIMIT
from ..evaluation.detection_report import (
    ClassReport,
    Confusion,
    CutOff,
    class_reports,
    confusion,
    find_cut_off,
)
from ..fonts import legible
from ..sheets import join_tiles
from ..tensor_files import write_text
from ..visualizer import GroundingVisualizer, text_font

# Images that are drawn.
NUM_DRAWN = 12
# Curves of more classes than this cannot be told apart: only their mean is drawn in colour.
MAX_CURVES = 10
# Letters of a name on a figure: of a longer one, which would leave no space for the figure, the middle is left out.
_LONGEST_LABEL, _LABEL_BEGIN, _LABEL_END = 40, 22, 14
# Points of a row of the confusion matrix, below which numbers would cover each other.
_NUMBERED_ROW = 10
# A drawing shows its image with this length of the long side, in pixels.
_DRAWN_SIDE = 640
# The same on a sheet of many, and how many of them stand in a row.
_SHEET_SIDE, _SHEET_COLUMNS = 480, 2


def write_report(
    folder: Path,
    truth: Mapping[str, Any],
    image_root: Path,
    detections: Sequence[Mapping[str, Any]],
    limit: int = COCO_LIMIT,
) -> tuple[list[str], CutOff]:
    """Write the pictures of a run, and return its table in lines and the score to cut at.

    The files are ``classes.md``, ``precision_recall.png``, ``confusion.png``, and ``val_01.png`` and so on, where each
    image stands with the boxes that a person drew on the left and those that were found on the right.

    Args:
        folder: Made if it is not there.
        truth: The validation data in COCO's format.
        image_root: Folder of its images.
        detections: In COCO's format of results.
        limit: Detections of an image that are kept; AP counts so many of each class, at least COCO's 100.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reports = class_reports(truth, detections, max(COCO_LIMIT, limit))
    cut_off = find_cut_off(truth, detections)
    table = class_table(reports)
    write_text(str(folder / "classes.md"), "\n".join(table) + "\n")
    plot_precision_recall(reports, folder / "precision_recall.png")
    plot_confusion(confusion(truth, detections, cut_off.score), folder / "confusion.png")
    draw_images(folder, truth, image_root, detections, cut_off.score)
    return table, cut_off


def write_results(path: Path, results: Mapping[str, Mapping[str, float]], minutes: float, weights: str) -> None:
    """Write ``{"val": {"bbox": {"AP": .., ..}}, "minutes": .., "weights": ..}``; NaN becomes null."""
    val = {
        task: {name: None if math.isnan(value) else round(float(value), 4) for name, value in metrics.items()}
        for task, metrics in results.items()
    }
    content = {"val": val, "minutes": round(minutes, 2), "weights": weights}
    write_text(str(path), json.dumps(content, indent=2, allow_nan=False) + "\n")


def class_table(reports: Sequence[ClassReport]) -> list[str]:
    """Return a table in markdown with a row for each class and one for their mean, classes without boxes left out."""
    # A bar would end the cell.
    names = [report.name.replace("|", "\\|") for report in reports]
    width = max(5, *map(len, names))
    lines = [f"| {'class':<{width}} | boxes |    AP |  AP50 |", f"| {'-' * width} | ----: | ----: | ----: |"]
    measured = [report for report in reports if report.num_boxes]
    rows = [(name, one.num_boxes, one.ap, one.ap50) for name, one in zip(names, reports, strict=True)]
    if len(measured) > 1:
        ap, ap50 = (float(np.mean(column)) for column in zip(*((one.ap, one.ap50) for one in measured), strict=True))
        rows.append(("mean", sum(report.num_boxes for report in measured), ap, ap50))
    for name, boxes, *values in rows:
        cells = " | ".join("    -" if math.isnan(value) else f"{value:5.1f}" for value in values)
        lines.append(f"| {name:<{width}} | {boxes:5d} | {cells} |")
    return lines


def plot_precision_recall(reports: Sequence[ClassReport], path: Path) -> None:
    """Draw precision over recall at IoU 0.5 for each class, and the mean of the classes."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    recall = np.linspace(0, 1, 101)
    measured = [report for report in reports if report.num_boxes]
    names, families = _labels([report.name for report in measured])
    for name, report in zip(names, measured, strict=True):
        (line,) = axes.plot(recall, report.precisions, linewidth=1.2)
        if len(measured) <= MAX_CURVES:
            # A label that begins with "_" would be left out.
            line.set_label(f"{report.ap50:.1f} {name}")
        else:
            line.set_color("0.8")
    if len(measured) > 1:
        mean = np.mean([report.precisions for report in measured], axis=0)
        axes.plot(recall, mean, "k", linewidth=2.5, label=f"{100 * mean.mean():.1f} all classes")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title="IoU 0.5; AP50 before the names")
    axes.grid(alpha=0.3)
    if measured:
        for text in axes.legend(loc="best").get_texts():
            text.set(parse_math=False, fontfamily=families)
    with space_errors(path):
        figure.savefig(path, dpi=120)


def plot_confusion(found: Confusion, path: Path) -> None:
    """Draw the confusion matrix: rows are annotated boxes, columns are found ones, colours are shares of a row.

    Numbers stand in it as long as they fit.
    """
    side = min(24.0, 3.5 + 0.45 * len(found.counts))
    row_points = 0.7 * 72 * side / len(found.counts)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = found.counts / np.maximum(1, found.counts.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap=matplotlib.colormaps["Blues"], vmin=0, vmax=1)
    for row, column in np.argwhere(found.counts * (row_points >= _NUMBERED_ROW)):
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(found.counts[row, column]), ha="center", va="center", color=color, fontsize=8)
    ticks, (names, families) = range(len(found.counts)), _labels(found.names)
    # In names of classes "$" is a letter.
    style: dict[str, Any] = {"parse_math": False, "fontfamily": families, "fontsize": min(10.0, row_points)}
    axes.set_xticks(ticks, [*names, "not found"], rotation=90, **style)
    axes.set_yticks(ticks, [*names, "nothing there"], **style)
    axes.set(xlabel="found", ylabel="annotated", title=f"IoU 0.5, score from {found.score:.2f} on")
    with space_errors(path):
        figure.savefig(path, dpi=120)


def _labels(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return names as they are written on a figure, and the families of fonts that have their letters."""
    short = [
        name if len(name) <= _LONGEST_LABEL else f"{name[:_LABEL_BEGIN]} ... {name[-_LABEL_END:]}" for name in names
    ]
    first = text_font((0, 0))
    drawn = [legible(name, first) for name in short]
    known = {entry.fname: entry.name for entry in font_manager.fontManager.ttflist}
    families = dict.fromkeys(known.get(str(font.path), "DejaVu Sans") for font in (first, *(font for _, font in drawn)))
    return [text for text, _ in drawn], list(families)


def draw_images(
    folder: Path,
    truth: Mapping[str, Any],
    image_root: Path,
    detections: Sequence[Mapping[str, Any]],
    score: float,
) -> list[Path]:
    """Draw images evenly spread over the validation data, beside each the detections from a score on.

    A line above each side says which it is.
    """
    for old in folder.glob("val_[0-9][0-9].png"):
        old.unlink()
    images = truth["images"]
    chosen = [images[k * len(images) // min(NUM_DRAWN, len(images))] for k in range(min(NUM_DRAWN, len(images)))]
    written: list[Path] = []
    for image in with_progress(chosen, "drawing validation images"):
        try:
            pixels = read_image({"file_name": str(image_root / image["file_name"])}, "RGB")
        except UnreadableImageError:
            continue
        sides = _sides(image["id"], truth, detections, score)
        path = folder / f"val_{len(written) + 1:02d}.png"
        with space_errors(path):
            Image.fromarray(_beside(pixels, truth, sides, _DRAWN_SIDE)).save(path)
        written.append(path)
    return written


def draw_sheet(
    dicts: Sequence[Mapping[str, Any]],
    truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    score: float,
    title: str,
) -> np.ndarray:
    """Draw the first images of a dataset on one sheet, beside each the detections from a score on.

    Args:
        dicts: Dataset dicts; the first ``NUM_DRAWN`` are drawn. In place of an image that cannot be read its name
            stands.
        truth: The data in COCO's format.
        detections: In COCO's format of results.
        score: Lowest score that is drawn.
        title: Text above all.

    Returns:
        (H, W, 3) uint8 in RGB order.
    """
    tiles = []
    for record in dicts[:NUM_DRAWN]:
        try:
            pixels = read_image(dict(record), "RGB")
        except UnreadableImageError:
            name = f"{Path(record['file_name']).name} cannot be read"
            tiles.append(draw_words([(name, None)], text_font((_SHEET_SIDE, 0)), 2 * _SHEET_SIDE))
        else:
            sides = _sides(record["image_id"], truth, detections, score)
            tiles.append(_beside(pixels, truth, sides, _SHEET_SIDE, most=_SHEET_SIDE))
    return join_tiles(tiles, _SHEET_COLUMNS, title)


def _sides(
    image_id: int, truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], score: float
) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Return the headings of both sides of an image and their boxes: annotated, and found from a score on."""
    boxes = [box for box in truth["annotations"] if box["image_id"] == image_id]
    found = [one for one in detections if one["image_id"] == image_id and one["score"] >= score]
    return [("annotated", boxes), (f"found, score from {score:.2f} on", found)]


def _beside(
    pixels: np.ndarray,
    truth: Mapping[str, Any],
    sides: Sequence[tuple[str, list[Mapping[str, Any]]]],
    least: int,
    most: int | None = None,
) -> np.ndarray:
    """Draw an image once for each of two headings, with its boxes, side by side.

    Its long side has at least ``least`` and at most ``most`` pixels.
    """
    names = [category["name"] for category in truth["categories"]]
    rows = {category["id"]: row for row, category in enumerate(truth["categories"])}
    drawings = []
    for heading, boxes in sides:
        visualizer = GroundingVisualizer(pixels, least, max_long_side=most)
        drawing = visualizer.draw_predictions(_instances(boxes, rows, pixels.shape[:2]), names)
        height, width = drawing.shape[:2]
        # One word is never wrapped: both headings have the same height.
        drawings.append(np.concatenate([draw_words([(heading, None)], text_font((width, height)), width), drawing]))
    border = np.full((drawings[0].shape[0], 8, 3), 255, np.uint8)
    return np.concatenate([drawings[0], border, drawings[1]], axis=1)


def _instances(boxes: Sequence[Mapping[str, Any]], rows: Mapping[int, int], size: tuple[int, int]) -> Instances:
    instances = Instances(size)
    corners = [[x, y, x + width, y + height] for x, y, width, height in (box["bbox"] for box in boxes)]
    instances.pred_boxes = Boxes(torch.tensor(corners, dtype=torch.float32).reshape(-1, 4))
    if all("score" in box for box in boxes):
        instances.scores = torch.tensor([box["score"] for box in boxes], dtype=torch.float32)
    instances.pred_classes = torch.tensor([rows[box["category_id"]] for box in boxes], dtype=torch.int64)
    return instances
