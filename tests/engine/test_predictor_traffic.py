"""What a GPU would wait for when a predictor is asked; see ``pretended_device``."""

import json

import numpy as np
import pytest
import torch
from pretended_device import pretended_device

from glipv2_d2 import GLIPv2Predictor

IMAGES = [np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8) for seed in range(3)]
NAMES = ["dog", "cat"]
# What is asked, and the moments at which the CPU waits: twice for the boxes, and where results leave the device.
QUESTIONS = {
    "one image": (lambda predictor: predictor(IMAGES[0], NAMES), 2),
    # Once for each image, for what passes the threshold.
    "a batch": (lambda predictor: list(predictor.stream(IMAGES, NAMES, batch_size=3, threshold=0.1)), 5),
    "a mask": (lambda predictor: predictor.refer(IMAGES[0], "a dog"), 4),
    "an answer": (lambda predictor: predictor.answer(IMAGES[0], "is there a dog?"), 3),
    # Once more for the text.
    "a caption": (lambda predictor: predictor.caption(IMAGES[0]), 3),
    # For each of 2 sizes, mirrored and not: boxes, scores, classes, phrases and masks.
    "several sizes": (lambda predictor: predictor(IMAGES[0], NAMES), 4 * (2 + 5)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", QUESTIONS)
def test_a_predictor_waits_for_the_model_and_where_results_leave_the_device(tiny_cfg, tmp_path, name):
    (tmp_path / "answers.json").write_text(json.dumps(["yes", "no"]))
    model = tiny_cfg.MODEL.GLIPV2
    model.VQA.ENABLED = model.CAPTIONING.ENABLED = model.CAPTIONING.GROUNDED = tiny_cfg.MODEL.MASK_ON = True
    model.VQA.ANSWERS = str(tmp_path / "answers.json")
    model.CAPTIONING.MAX_LENGTH, model.MASK_HEAD.CONV_DIM = 6, 16
    model.TEST.SCORE_THRESH, model.GROUNDING.PRIOR_PROB = 0.0, 0.3
    tiny_cfg.TEST.AUG.ENABLED, tiny_cfg.TEST.AUG.MIN_SIZES = name == "several sizes", (64, 96)
    torch.manual_seed(0)
    predictor = GLIPv2Predictor(tiny_cfg)
    ask, waits = QUESTIONS[name]
    with pretended_device() as traffic:
        predictor.model.to("cuda")
        ask(predictor)
        traffic.clear()
        ask(predictor)
        assert not traffic.mixed and not traffic.unpinned and traffic.waits.total() <= waits, traffic
