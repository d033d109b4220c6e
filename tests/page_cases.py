"""A small model with every head, for the tests of the page."""

import json
from pathlib import Path

import torch
from conftest import make_tiny_cfg

from glipv2_d2 import GLIPv2Predictor


def make_predictor(folder: Path) -> GLIPv2Predictor:
    """A random model that finds boxes with low scores, answers and describes."""
    answers = folder / "answers.json"
    answers.write_text(json.dumps(["yes", "no", "two"]))
    cfg = make_tiny_cfg()
    # An untrained head gives about 0.01 to everything.
    cfg.merge_from_list(["MODEL.GLIPV2.TEST.SCORE_THRESH", 0.001, "TEST.DETECTIONS_PER_IMAGE", 20])
    cfg.merge_from_list(["MODEL.GLIPV2.VQA.ENABLED", True, "MODEL.GLIPV2.VQA.ANSWERS", str(answers)])
    cfg.merge_from_list(["MODEL.GLIPV2.VQA.GROUNDED", True, "MODEL.GLIPV2.CAPTIONING.ENABLED", True])
    cfg.merge_from_list(["MODEL.GLIPV2.CAPTIONING.GROUNDED", True, "MODEL.MASK_ON", True])
    torch.manual_seed(0)
    return GLIPv2Predictor(cfg)
