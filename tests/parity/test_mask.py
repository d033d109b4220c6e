"""The mask head against numbers of the official implementation: one image, eight proposals, five boxes with polygons.

The official boxes are inclusive: 1 is added to right and bottom. Of its four variants, the one of plain convolutions is
left out: what it shares with the others is the same, and this package has no such head.
"""

import json

import numpy as np
import pytest
import torch
from batch_samples import mask_case
from conftest import ASSETS
from detectron2.structures import Boxes, Instances, PolygonMasks
from parity_weights import TINY_SALT, tensor_for
from torch.testing import assert_close

from glipv2_d2.modeling.heads.mask_head import HourglassMaskHead
from glipv2_d2.modeling.heads.mask_targets import crop_masks, match_proposals
from glipv2_d2.structures import TokenizedPrompt

VARIANTS = ["hourglass", "hourglass_gn", "hourglass_vl"]
OFFICIAL = "roi_heads.mask."
# Parts of the head by their official names.
PREDICTOR = {
    "deconv": "conv5_mask",
    "text_projection": "dot_product_projection_text",
    "log_scale": "log_scale",
    "bias_lang": "bias_lang",
}
IMAGE_SIZE = (208, 277)
NUM_TOKENS = 16


def load(variant):
    folder = ASSETS / "parity" / "v2"
    with np.load(folder / f"mask_{variant}.npz") as arrays:
        arrays = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    return json.loads((folder / f"mask_{variant}.json").read_text()), arrays


def official_name(name, facts):
    """The official name of a parameter."""
    part, _, rest = name.partition(".")
    if part in PREDICTOR:
        return f"{OFFICIAL}predictor.{PREDICTOR[part]}" + (f".{rest}" if rest else "")
    number, _, rest = rest.partition(".")
    name = f"{OFFICIAL}feature_extractor.mask_hg{int(number) + 1}.{rest}"
    unit, conv, *last = name.rsplit(".", 2) if ".norm." not in name else name.rsplit(".", 3)
    if last[0] == "norm":
        return f"{unit}.{conv}.1.{last[1]}"
    with_norm = f"{unit}.{conv}.0.{last[0]}"
    return with_norm if with_norm in facts["parameters"] else name


def make_head(facts):
    head = HourglassMaskHead(
        channels=32,
        language_dim=48,
        strides=[8, 16, 32, 64, 128],
        hourglass_depth=facts["hg_scale"],
        num_hourglasses=2,
        conv_dim=32,
        num_groups=16 if facts["use_gn"] else 0,
        pooler_resolution=14,
        pooler_sampling_ratio=2,
    )
    state = {}
    for name, parameter in head.named_parameters():
        official = official_name(name, facts)
        # Two variants have another predictor.
        if official in facts["parameters"]:
            assert tuple(facts["parameters"][official]) == tuple(parameter.shape), name
            state[name] = torch.from_numpy(tensor_for(official, tuple(parameter.shape), TINY_SALT))
    extractor = {name for name in facts["parameters"] if "feature_extractor" in name}
    assert extractor <= {official_name(name, facts) for name in state}
    head.load_state_dict(state, strict=False)
    return head, set(state)


def levels_of(arrays):
    return [arrays[f"fpn.p{level}"] for level in range(3, 8)]


def half_open(boxes):
    return torch.as_tensor(boxes, dtype=torch.float32) + torch.tensor([0.0, 0.0, 1.0, 1.0])


def make_prompt(facts):
    """The labels are the rows of the prompt, each one higher."""
    token_map = torch.zeros(len(facts["label_to_tokens"]), NUM_TOKENS, dtype=torch.bool)
    for label, tokens in facts["label_to_tokens"].items():
        token_map[int(label) - 1, tokens] = True
    ids = torch.zeros(NUM_TOKENS, dtype=torch.int64)
    return TokenizedPrompt(ids, token_map, torch.arange(len(token_map)), ("",) * len(token_map))


def make_instances(facts, arrays):
    """The annotated boxes; the first proposals lie on them, one on each, and have their labels."""
    instances = Instances(IMAGE_SIZE)
    instances.gt_boxes = Boxes(half_open(facts["ground_truth_boxes"]))
    instances.gt_classes = arrays["proposal_labels"][: len(instances.gt_boxes)] - 1
    instances.gt_masks = PolygonMasks(facts["polygons"])
    instances.gt_has_mask = torch.ones(len(instances.gt_boxes), dtype=torch.bool)
    return instances


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_pooled_and_extracted_features_are_the_official_ones(variant):
    facts, arrays = load(variant)
    head, _ = make_head(facts)
    boxes = [half_open(arrays["proposals"])]
    assert head.pooler.assign_levels(boxes).tolist() == arrays["level_of_proposal"].tolist()
    pooled = head.pooler(levels_of(arrays), boxes)
    assert_close(pooled, arrays["pooled"], atol=1e-4, rtol=1e-4)
    assert_close(head.extract(pooled), arrays["features"], atol=3e-4, rtol=1e-4)


@torch.no_grad()
def test_maps_of_all_tokens_are_the_official_ones():
    facts, arrays = load("hourglass_vl")
    head, loaded = make_head(facts)
    assert loaded == dict(head.named_parameters()).keys()
    # Each proposal once for every token.
    boxes = half_open(arrays["proposals"]).repeat_interleave(NUM_TOKENS, dim=0)
    tokens = torch.eye(NUM_TOKENS, dtype=torch.bool).repeat(len(arrays["proposals"]), 1)
    logits = head(levels_of(arrays), [boxes], arrays["text_hidden"], [tokens])
    assert_close(logits.view_as(arrays["mask_logits"]), arrays["mask_logits"], atol=3e-4, rtol=1e-4)


def test_masks_of_detections_are_the_official_ones():
    facts, arrays = load("hourglass_vl")
    head, _ = make_head(facts)
    detections = Instances(IMAGE_SIZE)
    detections.pred_boxes = Boxes(half_open(arrays["proposals"]))
    detections.phrase_ids = arrays["proposal_labels"] - 1
    (masks,) = head.inference(levels_of(arrays), arrays["text_hidden"], [detections], [make_prompt(facts)])
    assert_close(masks, arrays["mask_prob_of_label"][:, 0], atol=3e-4, rtol=1e-4)


def test_matches_and_targets_are_the_official_ones():
    facts, arrays = load("hourglass_vl")
    instances = make_instances(facts, arrays)
    proposals = Boxes(half_open(arrays["proposals"]))
    regions = match_proposals(proposals, instances, instances.gt_has_mask, 100)
    num_boxes = len(instances)
    matched = arrays["matched"].bool()
    assert_close(regions.boxes[:-num_boxes], proposals.tensor[matched])
    assert_close(regions.boxes[-num_boxes:], instances.gt_boxes.tensor)
    targets = crop_masks(instances.gt_masks, regions, 28)
    assert_close(targets[:-num_boxes], arrays["mask_targets_of_matched"])


def test_loss_is_the_official_one():
    # The official number is of the proposals alone, without the annotated boxes. Here the proposals that match are
    # given as annotated boxes, with the masks and phrases that they match.
    facts, arrays = load("hourglass_vl")
    head, _ = make_head(facts)
    instances, prompt = make_instances(facts, arrays), make_prompt(facts)
    proposals = Boxes(half_open(arrays["proposals"]))
    regions = match_proposals(proposals, instances, instances.gt_has_mask, 100)
    kept = regions.matched_idxs[: int(arrays["matched"].sum())]
    annotated = Instances(IMAGE_SIZE)
    annotated.gt_boxes = Boxes(regions.boxes[: len(kept)])
    annotated.gt_classes = instances.gt_classes[kept]
    annotated.gt_masks = instances.gt_masks[kept]
    annotated.gt_has_mask = torch.ones(len(kept), dtype=torch.bool)
    nothing = Boxes(torch.zeros(0, 4))
    losses = head.losses(*mask_case(levels_of(arrays), arrays["text_hidden"], [nothing], [annotated], [prompt]))
    assert_close(losses["loss_mask"].item(), facts["loss"], atol=1e-4, rtol=1e-4)
