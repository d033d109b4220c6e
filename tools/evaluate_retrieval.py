#!/usr/bin/env python
"""Measure region-to-word retrieval across images: how often the name of a region ranks first among all of a data set.

    python tools/evaluate_retrieval.py --config-file configs/pretrain/glipv2_micro.yaml --dataset stampworld_val \
        MODEL.WEIGHTS output/pretrain/model_final.pth
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from glipv2_d2 import GLIPv2Trainer
from glipv2_d2.checkpoint.checkpointer import load_for_results
from glipv2_d2.data import DetectionDatasetMapper
from glipv2_d2.engine.command_line import build_config, one_line_errors
from glipv2_d2.errors import InputError
from glipv2_d2.evaluation.retrieval import RetrievalResult, rank_names
from glipv2_d2.modeling.box_regression import scale_boxes_legacy

TOPS = (1, 5, 10)


def annotated_samples(mapper: DetectionDatasetMapper, dataset_dicts: list[dict]) -> Iterator[dict[str, Any]]:
    """Yield model inputs with ``gt_boxes`` (M, 4), XYXY in pixels of the resized image, and ``gt_category_ids`` (M,).

    Crowd regions are left out.
    """
    for item in dataset_dicts:
        sample = mapper.test_image(item)
        annotations = [box for box in item["annotations"] if not box.get("iscrowd", 0)]
        boxes = [BoxMode.convert(box["bbox"], box["bbox_mode"], BoxMode.XYXY_ABS) for box in annotations]
        height, width = sample["image"].shape[1:]
        original = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        sample["gt_boxes"] = scale_boxes_legacy(original, width / item["width"], height / item["height"])
        sample["gt_category_ids"] = torch.tensor([box["category_id"] for box in annotations], dtype=torch.int64)
        yield sample


def evaluate(cfg: CfgNode, dataset: str) -> dict[str, RetrievalResult]:
    """Load the model of a config, and rank the names of a detection data set in every space of the model."""
    model = GLIPv2Trainer.build_model(cfg).eval()
    load_for_results(model, cfg)
    mapper = DetectionDatasetMapper(cfg, is_train=False, dataset_names=(dataset,))
    dataset_dicts = DatasetCatalog.get(dataset)
    results = {}
    for space in ("fused", "contrastive") if model.contrastive_head is not None else ("fused",):
        bar = tqdm(annotated_samples(mapper, dataset_dicts), total=len(dataset_dicts), desc=space, unit="image")
        results[space] = rank_names(model, bar, mapper.test_prompts({}), space)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--dataset", required=True, help="a registered detection data set with boxes")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the config")
    arguments = parser.parse_args(argv)
    with one_line_errors():
        results = evaluate(build_config(arguments.config_file, arguments.opts), arguments.dataset)
        if not len(results["fused"].ranks):
            raise InputError(f"--dataset: expected boxes with matched anchors, found none in {arguments.dataset}")
    table = Table(title=f"region-to-word retrieval, {arguments.dataset}")
    for title in ("space", "regions", "names", *(f"recall@{top}" for top in TOPS), "boxes without an anchor"):
        table.add_column(title, justify="right")
    summary = {}
    for space, result in results.items():
        recalls = {f"recall@{top}": round(result.recall_at(top), 2) for top in TOPS}
        summary[space] = {"regions": len(result.ranks), "names": result.num_names, **recalls}
        cells = [len(result.ranks), result.num_names, *recalls.values(), result.num_without_anchor]
        table.add_row(space, *(str(cell) for cell in cells))
    Console().print(table)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
