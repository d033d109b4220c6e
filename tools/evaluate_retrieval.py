#!/usr/bin/env python
"""Measure region-to-word retrieval across images: how often the name of a region ranks first among all of a dataset.

    python tools/evaluate_retrieval.py --config-file configs/pretrain/glipv2_micro.yaml --dataset stampworld_val \
        MODEL.WEIGHTS output/pretrain/model_final.pth
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, BoxMode
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from glipv2_d2.checkpoint.checkpointer import build_for_results
from glipv2_d2.data import DetectionDatasetMapper
from glipv2_d2.data.image_reading import UnreadableImageError
from glipv2_d2.engine.command_line import build_config, one_line_errors
from glipv2_d2.errors import InputError
from glipv2_d2.modeling.box_regression import scale_boxes_legacy
from glipv2_d2.modeling.meta_arch.glipv2 import GLIPv2
from glipv2_d2.modeling.token_scoring import token_to_phrase_scores
from glipv2_d2.structures import TokenBatch, TokenizedPrompt

TOPS = (1, 5, 10)


class RetrievalResult(NamedTuple):
    """Ranks of the true names of regions.

    Attributes:
        ranks: (K,) int64, from 1. Names with the same score as the true one rank before it.
        num_names: Number of names that compete.
        num_without_anchor: Number of boxes without a matched anchor, which have no rank.
    """

    ranks: Tensor
    num_names: int
    num_without_anchor: int

    def recall_at(self, top: int) -> float:
        """Return the share, in 0..100, of regions whose name is among the ``top`` best; NaN without regions."""
        return 100.0 * (self.ranks <= top).float().mean().item()


@torch.no_grad()
def rank_names(
    model: GLIPv2, samples: Iterable[dict[str, Any]], prompts: list[TokenizedPrompt], space: str = "fused"
) -> RetrievalResult:
    """Rank all names for each annotated region.

    The score of a name for a region is the mean over the anchors that are matched to the box of the region. The prompts
    hold the names of all images, not those of the image alone.

    Args:
        model: The model, in eval mode.
        samples: Model inputs of one image each, with ``gt_boxes`` (M, 4), XYXY in pixels of ``image``, and
            ``gt_category_ids`` (M,).
        prompts: Prompts that hold every name once.
        space: "fused", probabilities of the grounding head, or "contrastive", cosines before fusion.

    Raises:
        InputError: ``space`` is "contrastive" and the model has no contrastive head.
    """
    if space == "contrastive" and model.contrastive_head is None:
        raise InputError("space: expected 'fused' for a model without MODEL.GLIPV2.CONTRASTIVE, found 'contrastive'")
    category_ids = torch.cat([prompt.category_ids for prompt in prompts])
    ranks: list[Tensor] = []
    num_without_anchor = 0
    for sample in samples:
        levels = model.visual_features(model.preprocess_image([sample]))
        matched = model.head.matcher(model.anchor_generator(levels), Boxes(sample["gt_boxes"].to(model.device)))
        scores = _name_scores(model, levels, prompts, space)  # (R, P)
        for row, category_id in enumerate(sample["gt_category_ids"].tolist()):
            region = scores[matched == row].mean(dim=0).cpu()
            true = (category_ids == category_id).nonzero().squeeze(1)
            if region.isnan().any():
                num_without_anchor += 1
                continue
            ranks.append((region >= region[true].max()).sum().reshape(1))
    found = torch.cat(ranks) if ranks else torch.zeros(0, dtype=torch.int64)
    return RetrievalResult(found, len(category_ids), num_without_anchor)


def _name_scores(model: GLIPv2, levels: list[Tensor], prompts: list[TokenizedPrompt], space: str) -> Tensor:
    """Score all names for all anchors of one image, (R, P)."""
    scores = []
    for prompt in prompts:
        language = model.read(TokenBatch.from_prompts([prompt], model.device))
        if space == "fused":
            logits = model.fuse(levels, language).predictions.token_logits
            tokens = torch.cat(logits, dim=1)[0].sigmoid()  # (R, T)
        else:
            assert model.contrastive_head is not None
            regions = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)[0]  # (R, C)
            regions, words = model.contrastive_head(regions, language.embedded[0])
            tokens = regions @ words.T
        scores.append(token_to_phrase_scores(tokens, prompt.phrase_token_map.to(tokens.device)))
    return torch.cat(scores, dim=1)


def annotated_samples(mapper: DetectionDatasetMapper, dataset_dicts: list[dict]) -> Iterator[dict[str, Any]]:
    """Yield model inputs with ``gt_boxes`` (M, 4), XYXY in pixels of the resized image, and ``gt_category_ids`` (M,).

    Crowd regions are left out. An image that cannot be read is named and left out.
    """
    for item in dataset_dicts:
        try:
            sample = mapper.test_image(item)
        except UnreadableImageError as error:
            tqdm.write(f"skipped {error}", file=sys.stderr)
            continue
        annotations = [box for box in item["annotations"] if not box.get("iscrowd", 0)]
        boxes = [BoxMode.convert(box["bbox"], box["bbox_mode"], BoxMode.XYXY_ABS) for box in annotations]
        height, width = sample["image"].shape[1:]
        original = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        sample["gt_boxes"] = scale_boxes_legacy(original, width / item["width"], height / item["height"])
        sample["gt_category_ids"] = torch.tensor([box["category_id"] for box in annotations], dtype=torch.int64)
        yield sample


def evaluate(cfg: CfgNode, dataset: str) -> dict[str, RetrievalResult]:
    """Load the model of a config, and rank the names of a detection dataset in every space of the model."""
    model = build_for_results(cfg)
    if model.by_name is not None:
        raise InputError("MODEL.WEIGHTS: expected one set of weights, found one for own names and one for others")
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
    parser.add_argument("--dataset", required=True, help="a registered detection dataset with boxes")
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
