"""After an evaluation: a sheet of the first images of a dataset, what was found in them beside the truth."""

from __future__ import annotations

import io
import json
import logging
import os
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from PIL import Image

from ..data.dataset_mappers.build import mapper_of
from ..data.loading import load_test_dataset
from ..errors import space_errors
from ..evaluation.coco_evaluator import COCOInstanceEvaluator
from ..evaluation.detection_report import find_cut_off
from ..evaluation.lvis_evaluator import LVISEvaluator
from .run_report import NUM_DRAWN, draw_sheet

SHEET_NAME = "sheet.jpg"
# Of JPEG, in 1..95: letters stay sharp.
_QUALITY = 90


def write_sheet(cfg: CfgNode, name: str) -> None:
    """Write the sheet of a dataset that was evaluated beside its detections, ``OUTPUT_DIR/inference/NAME/sheet.jpg``.

    Nothing about it is chosen by hand: the images are those of the lowest ids, and the lowest score that is drawn is
    the one with the highest F1 over all images and names. Of a dataset that has no names or no annotations, a line in
    the log says that there is no sheet.

    Raises:
        OSError: The sheet cannot be written.
    """
    logger = logging.getLogger(__name__)
    dataset = load_test_dataset(cfg, name) if mapper_of(name).has_category_names else None
    if dataset is None or dataset.truth is None or not dataset.truth.get("annotations"):
        logger.info("--sheet: %s has no annotated names, and gets no sheet", name)
        return
    is_lvis = MetadataCatalog.get(name).get("evaluator_type") == "lvis"
    found_file = (LVISEvaluator if is_lvis else COCOInstanceEvaluator).file_name
    folder = os.path.join(cfg.OUTPUT_DIR, "inference", name)
    with open(os.path.join(folder, found_file), encoding="utf-8") as file:
        found = json.load(file)
    cut_off = find_cut_off(dataset.truth, found)
    dicts = sorted(dataset.dicts, key=lambda record: record["image_id"])
    title = (
        f"{name}: the first {min(NUM_DRAWN, len(dicts))} of {len(dicts)} images, annotated on the left, found on the "
        f"right. From score {cut_off.score:.3f} on, the best F1 of all images: precision {cut_off.precision:.2f}, "
        f"recall {cut_off.recall:.2f}."
    )
    path = os.path.join(folder, SHEET_NAME)
    content = io.BytesIO()
    sheet = Image.fromarray(draw_sheet(dicts, dataset.truth, found, cut_off.score, title))
    # Pillow does not say that a disk is full.
    sheet.save(content, "JPEG", quality=_QUALITY)
    with space_errors(path):
        Path(path).write_bytes(content.getvalue())
    logger.info("%s: what was found beside the truth: %s", name, path)
