#!/usr/bin/env python
"""Train detectron2's RetinaNet or FCOS as `glipv2 train` has trained: the same data, backbone, updates and image sizes.

    python tools/closed_vocabulary.py --detector fcos --run output/mine --output output/mine_fcos

--run is the folder of a run of `glipv2 train`. Its config.yaml decides everything but the detector on the pyramid: four
convolutions with group normalization for classes and for boxes, as wide as the pyramid. Backbone and pyramid start from
the weights that the run started from, where there were some; the rest is new. results.json has the form of that of the
run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import dense_detector
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead
from torch import nn

from glipv2_d2.engine.command_line import one_line_errors
from glipv2_d2.engine.own_run import clear_output
from glipv2_d2.engine.run_report import write_results
from glipv2_d2.engine.runs import start_run
from glipv2_d2.engine.trainer import GLIPv2Trainer
from glipv2_d2.modeling.build import choose_device
from glipv2_d2.tensor_files import read_checkpoint, unwrap_weights

# Anchors of RetinaNet (arXiv 1708.02002): three scales and three shapes at each place.
_SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
_RATIOS = [0.5, 1.0, 2.0]
_NUM_CONVOLUTIONS = 4


class NumberedClasses(dense_detector.DenseDetector):
    """A detector of detectron2 that reads the samples of this package: classes by their numbers, not by a prompt."""

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> Any:
        """Run N images; see ``DenseDetector``."""
        if self.training:
            batched_inputs = [{**one, "instances": _numbered(one["instances"])} for one in batched_inputs]
        return super().forward(batched_inputs)


class NumberedRetinaNet(NumberedClasses, RetinaNet):
    """RetinaNet on the samples of this package."""


class NumberedFCOS(NumberedClasses, FCOS):
    """FCOS on the samples of this package."""


class ClosedVocabularyTrainer(GLIPv2Trainer):
    """The trainer of the package for one of the two; ``detector`` says for which."""

    detector = "retinanet"

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        detector = build_detector(cls.detector, cfg)
        if cfg.MODEL.WEIGHTS:
            load_backbone(detector.backbone, cfg.MODEL.WEIGHTS)
        return detector


class FCOSTrainer(ClosedVocabularyTrainer):
    """The trainer of FCOS."""

    detector = "fcos"


TRAINERS = {one.detector: one for one in (ClosedVocabularyTrainer, FCOSTrainer)}


def build_detector(name: str, cfg: CfgNode) -> nn.Module:
    """Build "retinanet" or "fcos" on the backbone of a config, for the classes of its training data."""
    backbone = build_backbone(cfg)
    levels = list(cfg.MODEL.GLIPV2.IN_FEATURES)
    shapes = [backbone.output_shape()[level] for level in levels]
    num_classes = len(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes)
    head = {
        "input_shape": shapes,
        "num_classes": num_classes,
        "conv_dims": [shapes[0].channels] * _NUM_CONVOLUTIONS,
        "norm": "GN",
    }
    shared = {
        "backbone": backbone,
        "head_in_features": levels,
        "num_classes": num_classes,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
        "test_score_thresh": cfg.MODEL.GLIPV2.TEST.SCORE_THRESH,
        "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
    }
    if name == "fcos":
        return NumberedFCOS(head=FCOSHead(**head), **shared).to(choose_device(cfg.MODEL.DEVICE))
    sizes = [[side * scale for scale in _SCALES] for (side,) in cfg.MODEL.ANCHOR_GENERATOR.SIZES]
    anchors = DefaultAnchorGenerator(
        sizes=sizes, aspect_ratios=[_RATIOS], strides=[shape.stride for shape in shapes], offset=0.5
    )
    return NumberedRetinaNet(
        head=RetinaNetHead(num_anchors=len(_SCALES) * len(_RATIOS), **head),
        anchor_generator=anchors,
        box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        anchor_matcher=Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True),
        **shared,
    ).to(choose_device(cfg.MODEL.DEVICE))


def load_backbone(backbone: nn.Module, path: str) -> None:
    """Load backbone and pyramid from weights of this package; the rest of the file is that of another detector.

    Raises:
        CheckpointError: The file cannot be read.
        RuntimeError: It lacks weights of this backbone, or has them in another shape.
    """
    content, _ = read_checkpoint(path)
    prefix = "backbone."
    tensors = unwrap_weights(content, path)
    backbone.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})


def _numbered(instances: Any) -> Any:
    """Return instances whose ``gt_classes`` are the numbers of the classes, not rows of the prompt."""
    numbered = type(instances)(instances.image_size, gt_boxes=instances.gt_boxes)
    numbered.gt_classes = instances.gt_category_ids
    return numbered


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", required=True, choices=TRAINERS)
    parser.add_argument("--run", required=True, type=Path, help="folder of a run of glipv2 train")
    parser.add_argument("--output", required=True, type=Path, help="folder of this run")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="config keys")
    arguments = parser.parse_args(argv)
    if arguments.output.resolve() == arguments.run.resolve():
        parser.error(f"--output: expected another folder than that of --run, found {arguments.output}")
    begin = time.time()
    arguments.config_file, arguments.eval_only, arguments.num_gpus = str(arguments.run / "config.yaml"), False, 1
    arguments.opts = ["OUTPUT_DIR", str(arguments.output), *arguments.opts]
    with one_line_errors():
        # Evaluations of a run that was stopped here are none of this one.
        clear_output(arguments.output)
        trainer = TRAINERS[arguments.detector](start_run(arguments))
        trainer.train()
        # The best of the evaluations, as in the run: the weights were kept there.
        results = {"bbox": best_results(arguments.output / "metrics.json")}
        weights = str(arguments.output / "model_best.pth")
        write_results(arguments.output / "results.json", results, (time.time() - begin) / 60, weights)


def best_results(metrics: Path) -> dict[str, float]:
    """Return the results of the evaluation with the highest AP of a metrics.json."""
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    measured = [record for record in records if "bbox/AP" in record]
    best = max(measured, key=lambda record: record["bbox/AP"])
    return {key.removeprefix("bbox/"): value for key, value in best.items() if key.startswith("bbox/")}


if __name__ == "__main__":
    sys.exit(main())
