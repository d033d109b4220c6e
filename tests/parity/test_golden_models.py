"""The three released architectures at full size against numbers of the official implementation (slow).

Weights follow a rule on the official names, so no checkpoint is needed. The recorded arrays are not part of the
repository: point GLIPV2_PARITY_DIR to a folder that has ``reference/golden``.
"""

import os
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ASSETS, load_config

from glipv2_d2 import convert_glip_state_dict
from glipv2_d2.modeling import build_model
from glipv2_d2.structures import TokenBatch, TokenizedPrompt

GOLDEN = Path(os.environ.get("GLIPV2_PARITY_DIR", ASSETS.parents[2] / "shared")) / "reference" / "golden"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not GOLDEN.is_dir(), reason="GLIPV2_PARITY_DIR: no folder reference/golden"),
]
CONFIGS = {"T": "glip_swin_t_c", "A": "glip_swin_t_a", "L": "glip_swin_l"}
LABEL_MAP = {1: [1, 2], 2: [4], 3: [6, 7, 8], 4: [10], 5: [12, 13]}
LENGTHS = (37, 20)
IMAGE_SIZES = [(250, 300), (256, 320)]
LEVELS = ("p3", "p4", "p5", "p6", "p7")


def weight_by_rule(key, shape):
    """The value of one parameter, a function of its official name."""
    n = np.random.RandomState(zlib.crc32(key.encode("ascii"))).standard_normal(shape).astype(np.float32)
    last, parent = key.rsplit(".", 2)[-1], (["", *key.split(".")])[-2]
    if key.endswith("log_scale"):
        return np.full(shape, 0.3, np.float32)
    if key.endswith("bias0"):
        return np.full(shape, -1.0, np.float32)
    if key.endswith("bias_lang"):
        return n
    if last in ("gamma_v", "gamma_l"):
        return 0.2 + np.float32(0.05) * n
    if last == "scale" or (last == "weight" and ("norm" in parent.lower() or parent == "bn")):
        return 1 + np.float32(0.1) * n
    if last == "relative_position_bias_table":
        return np.float32(0.2) * n
    if last == "bias":
        return n if parent == "offset" else np.float32(0.05) * n
    if "embeddings" in key:
        return np.float32(0.05) * n
    s = 1.0 / float(np.sqrt(np.prod(shape[1:])))
    s *= {"offset": 0.3, "dot_product_projection_text": 6, "bbox_pred": 2}.get(parent, 1)
    return n * np.float32(s)


def build(letter):
    cfg = load_config(f"glip/{CONFIGS[letter]}.yaml")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    model = build_model(cfg).eval()
    state_dict = {}
    for line in (GOLDEN / f"state_dict_{letter}.tsv").read_text().splitlines():
        key, shape, _, kind = line.split("\t")
        shape = tuple(int(side) for side in re.findall(r"\d+", shape))
        if kind == "P":
            state_dict[key] = torch.from_numpy(np.asarray(weight_by_rule(key, shape), np.float32))
    converted, _ = convert_glip_state_dict(state_dict)
    missing, unexpected = model.load_state_dict(converted, strict=False)
    assert not unexpected
    assert all(name.endswith("relative_position_index") for name in missing), missing
    return model


def golden_inputs():
    rng = np.random.RandomState(7)
    images = torch.from_numpy(rng.standard_normal((2, 3, 256, 320)).astype(np.float32))
    ids = torch.from_numpy(rng.randint(1000, 30000, (2, 256)))
    phrase_token_map = torch.zeros(5, max(LENGTHS), dtype=torch.bool)
    for label, tokens in LABEL_MAP.items():
        phrase_token_map[label - 1, tokens] = True
    phrases = tuple(str(label) for label in LABEL_MAP)
    prompts = [
        TokenizedPrompt(ids[row, :length], phrase_token_map[:, :length], torch.tensor(list(LABEL_MAP)), phrases)
        for row, length in enumerate(LENGTHS)
    ]
    return images, prompts


@torch.no_grad()
@pytest.mark.parametrize("letter", ["T", "A", "L"])
def test_full_size_model_reproduces_the_official_numbers(letter):
    golden = np.load(GOLDEN / f"glip_{letter}.npz")
    model = build(letter)
    images, prompts = golden_inputs()
    language = model.text_encoder(TokenBatch.from_prompts(prompts))
    valid = LENGTHS[0]
    close(language.hidden[0, :valid], golden["lang_hidden_img0_tok0_40"][:valid], 2e-5)
    features = [model.backbone(images)[level] for level in LEVELS]
    for tensor, level in zip(features, LEVELS):
        if f"{level}_fpn" in golden:
            close(tensor, golden[f"{level}_fpn"], 1e-4)
        close(torch.stack([tensor.mean(), tensor.std()]), golden[f"{level}_fpn_mean_std"].reshape(-1)[:2], 1e-4)
    fused, fused_language = model.fusion_tower(features, language)
    if model.fusion_tower.fuses_text:
        close(fused_language.hidden[0, :valid], golden["fused_hidden_img0_tok0_40"][:valid], 3e-4)
    predictions = model.fuse(features, language).predictions
    for index, level in enumerate(LEVELS):
        step = 7 if level in ("p3", "p4") else 1
        logits = predictions.token_logits[index][:, ::step]
        for row, length in enumerate(LENGTHS):
            close(logits[row, :, :length], golden[f"{level}_logits_tok0_40"][row, :, :length], 3e-4)
        height, width = features[index].shape[-2:]
        boxes = predictions.box_deltas[index].transpose(1, 2).reshape(2, 4, height, width)
        if level == "p3":
            boxes = boxes[:, :, ::3, ::3]
        close(boxes, golden[f"{level}_bbox"], 3e-4)
        centerness = predictions.centerness_logits[index].reshape(2, height, width)
        close(centerness, golden[f"{level}_ctr"].reshape(2, height, width), 3e-4)
    results = model.head.inference(predictions, model.anchor_generator(features), IMAGE_SIZES, prompts)
    for row, instances in enumerate(results):
        assert_same_detections(instances, *(golden[f"det{row}_{name}"] for name in ("boxes", "scores", "labels")))


def close(actual, expected, atol):
    torch.testing.assert_close(actual, torch.as_tensor(expected), atol=atol, rtol=1e-4)


def assert_same_detections(instances, boxes, scores, labels):
    assert len(instances) == len(boxes)
    boxes = torch.from_numpy(boxes.copy())
    boxes[:, 2:] += 1
    free = torch.ones(len(boxes), dtype=torch.bool)
    for box, score, label in zip(boxes, scores, labels):
        distance = (instances.pred_boxes.tensor - box).abs().amax(1)
        same = free & (instances.pred_classes == int(label)) & (distance < 5e-3)
        same &= (instances.scores - score).abs() < 2e-5
        assert same.any(), (box, score, label)
        free[same.nonzero()[0]] = False
