"""The grounding head against the official implementation: predictions, detections, targets and losses."""

import json

import numpy as np
import pytest
import torch
from batch_samples import anchor_case
from conftest import ASSETS
from detectron2.structures import Boxes
from head_samples import make_anchors, make_head, make_instances, make_prompt
from parity_weights import tensor_for
from torch.testing import assert_close

from glipv2_d2.modeling.losses.box_losses import centerness_targets
from glipv2_d2.structures import GroundingPredictions

TINY = ASSETS / "parity" / "tiny"
LEVELS = ("p3", "p4", "p5", "p6", "p7")
LAST_PIXEL = torch.tensor([0.0, 0.0, 1.0, 1.0])


def load(name):
    with np.load(TINY / name) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def facts(name):
    return json.loads((TINY / name).read_text())


def official_head(**changes):
    head = make_head(32, 48, 5, **changes)
    state_dict = {}
    for name, value in head.named_parameters():
        official = name.replace("text_projection", "dot_product_projection_text")
        state_dict[name] = torch.from_numpy(tensor_for(f"rpn.head.{official}", value.shape, "tiny-24:"))
    head.load_state_dict(state_dict)
    return head


@pytest.fixture(scope="module")
def detection():
    """Head inputs and expected outputs of the detection fixture, and the prompt."""
    info, tower = facts("det.json"), load("det_tower.npz")
    token_map = torch.zeros(6, len(info["tokens"]), dtype=torch.bool)
    for label, tokens in info["label_to_tokens"].items():
        token_map[int(label) - 1, tokens] = True
    features = [tower[f"tower.5.dyconv.visual.{level}"] for level in LEVELS]
    return info, features, tower["tower.4.bert.hidden"], make_prompt(token_map, info["category_ids"])


@pytest.mark.parametrize("num_tokens", [256, 18])
def test_predictions_equal_the_official_ones(detection, num_tokens):
    _, features, text, _ = detection
    expected = load("det_head.npz")
    with torch.no_grad():
        predictions = official_head()(features, text[:, :num_tokens])
    for index, level in enumerate(LEVELS):
        tolerance = {"atol": 3e-4, "rtol": 1e-4}
        logits = expected[f"head.dot.{level}"][..., :num_tokens]
        assert_close(predictions.token_logits[index], logits, **tolerance)
        deltas = expected[f"head.bbox.{level}"].flatten(2).transpose(1, 2)
        assert_close(predictions.box_deltas[index], deltas, **tolerance)
        assert_close(predictions.centerness_logits[index], expected[f"head.centerness.{level}"].flatten(1), **tolerance)


def assert_same_detections(result, boxes, scores, labels):
    """Each detection has its own partner of the same label, box and score in the other set."""
    assert len(result) == len(scores)
    free = set(range(len(scores)))
    for box, score, label in zip(result.pred_boxes.tensor - LAST_PIXEL, result.scores, result.pred_classes):
        same = [
            index
            for index in free
            if labels[index] == label
            and (boxes[index] - box).abs().max() <= 5e-3 + 1e-4 * boxes[index].abs().max()
            and (scores[index] - score).abs() <= 2e-5 + 1e-4 * scores[index]
        ]
        assert same, f"no partner for {box.tolist()} {score:.6f} {label}"
        free.remove(same[0])


@pytest.mark.parametrize("variant", range(6))
def test_detections_equal_the_official_ones(detection, variant):
    info, features, text, prompt = detection
    settings = info["post_processing_variants"][variant]
    expected = load("det_detections.npz")
    head = official_head(
        test_score_thresh=settings["INFERENCE_TH"],
        test_topk_candidates=settings["PRE_NMS_TOP_N"],
        test_nms_thresh=settings["NMS_TH"],
        test_detections_per_image=settings["DETECTIONS_PER_IMG"],
        test_score_aggregation=settings["SCORE_AGG"].lower(),
    )
    anchors = [Boxes(boxes + LAST_PIXEL) for boxes in load("anchors.npz").values()]
    sizes = [tuple(size) for size in info["batch"]["image_sizes_hw"]]
    with torch.no_grad():
        results = head.inference(head(features, text[:, : len(prompt)]), anchors, sizes, [prompt, prompt])
    for index, result in enumerate(results):
        assert result.image_size == sizes[index]
        name = f"{settings['name']}.img{index}"
        assert_same_detections(result, *(expected[f"{name}.{key}"] for key in ("boxes", "scores", "labels")))


@pytest.fixture(scope="module")
def training():
    """Predictions, anchors, instances, prompts and mask of the training fixture, and its arrays."""
    arrays = load("train.npz")
    logits = [arrays[f"head.dot.{level}"] for level in LEVELS]
    deltas = [arrays[f"head.bbox.{level}"].flatten(2).transpose(1, 2) for level in LEVELS]
    centerness = [arrays[f"head.centerness.{level}"].flatten(1) for level in LEVELS]
    anchors = [Boxes(boxes + LAST_PIXEL) for boxes in load("anchors.npz").values()]
    instances, prompts, first_row = [], [], 0
    for index, num_tokens in enumerate((16, 17)):
        boxes = arrays[f"img{index}.boxes"] + LAST_PIXEL
        rows = arrays["positive_map"][first_row : first_row + len(boxes), :num_tokens] > 0
        prompts.append(make_prompt(rows))
        instances.append(make_instances(boxes, range(len(boxes))))
        first_row += len(boxes)
    mask = torch.arange(17) < torch.tensor([[16], [17]])
    return GroundingPredictions(logits, deltas, centerness), anchors, instances, prompts, mask, arrays


def test_assignment_and_targets_equal_the_official_ones(training):
    _, anchors, instances, prompts, _, arrays = training
    head = official_head()
    targets = head.label_anchors(anchors, instances, prompts, num_tokens=256)
    all_anchors = Boxes.cat(anchors).tensor
    for image in range(2):
        positive = (targets.matched_idxs[image] >= 0).nonzero().squeeze(1)
        assert positive.tolist() == arrays[f"img{image}.positive_anchors"].tolist()
        labels = arrays[f"img{image}.box_labels"][targets.matched_idxs[image, positive]]
        assert torch.equal(labels, arrays[f"img{image}.labels"])
        boxes = targets.gt_boxes[image, positive]
        deltas = head.box2box_transform.get_deltas(all_anchors[positive], boxes)
        assert_close(deltas, arrays[f"img{image}.reg_targets"], atol=3e-4, rtol=1e-4)
        centerness = centerness_targets(all_anchors[positive], boxes)
        assert_close(centerness, arrays[f"img{image}.centerness_targets"], atol=1e-4, rtol=1e-4)
        assert torch.equal(targets.token_targets[image, positive], arrays[f"img{image}.token_targets"] > 0)
        negative = (targets.matched_idxs[image] < 0).nonzero().squeeze(1)
        assert targets.token_targets[image, negative].nonzero()[:, 1].tolist() == [255] * len(negative)
        assert torch.equal(targets.gt_boxes[image, negative], torch.zeros(len(negative), 4))


def test_losses_equal_the_official_ones(training):
    predictions, anchors, instances, prompts, mask, _ = training
    head = official_head()
    targets = head.label_anchors(anchors, instances, prompts, num_tokens=17)
    losses = head.losses(*anchor_case(predictions, anchors, targets, mask))
    expected = facts("train.json")["losses"]
    assert set(losses) == {"loss_grounding", "loss_box_reg", "loss_centerness"}
    assert_close(losses["loss_grounding"].item(), expected["loss_dot_product_token"], atol=1e-4, rtol=1e-4)
    assert_close(losses["loss_box_reg"].item(), expected["loss_reg"], atol=1e-4, rtol=1e-4)
    assert_close(losses["loss_centerness"].item(), expected["loss_centerness"], atol=1e-4, rtol=1e-4)


def golden_predictions(rng):
    shapes = [(32, 40), (16, 20), (8, 10), (4, 5), (2, 3)]
    boxes = [rng.standard_normal((2, 4, *shape)).astype(np.float32) for shape in shapes]
    centerness = [rng.standard_normal((2, 1, *shape)).astype(np.float32) for shape in shapes]
    logits = [rng.standard_normal((2, h * w, 256)).astype(np.float32) * 2 - 3 for h, w in shapes]
    return shapes, GroundingPredictions(
        [torch.from_numpy(level) for level in logits],
        [torch.from_numpy(level).flatten(2).transpose(1, 2) for level in boxes],
        [torch.from_numpy(level).flatten(1) for level in centerness],
    )


def test_losses_of_random_predictions_equal_the_official_ones():
    """A second case from another run of the official code, with captions padded to 256 tokens."""
    rng = np.random.RandomState(11)
    shapes, predictions = golden_predictions(rng)
    with np.load(ASSETS / "golden" / "loss.npz") as arrays:
        expected = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    anchors = make_anchors(shapes)
    instances, prompts = [], []
    for image, num_tokens in enumerate((30, 17)):
        boxes = expected[f"gt{image}"] + LAST_PIXEL
        token_map = torch.zeros(len(boxes), num_tokens, dtype=torch.bool)
        for box in range(len(boxes)):
            token_map[box, [3 * box + 1, 3 * box + 2]] = True
        prompts.append(make_prompt(token_map))
        instances.append(make_instances(boxes, range(len(boxes))))
    mask = torch.arange(256) < torch.tensor([[30], [17]])

    head = official_head()
    targets = head.label_anchors(anchors, instances, prompts, num_tokens=256)
    for image in range(2):
        positive = (targets.matched_idxs[image] >= 0).nonzero().squeeze(1)
        assert torch.equal(positive, expected[f"pos{image}"])
        assert torch.equal(targets.matched_idxs[image, positive] + 1, expected[f"poslab{image}"])
        all_anchors = Boxes.cat(anchors).tensor
        deltas = head.box2box_transform.get_deltas(all_anchors[positive], targets.gt_boxes[image, positive])
        assert_close(deltas, expected[f"regt{image}"], atol=1e-4, rtol=1e-4)
    losses = head.losses(*anchor_case(predictions, anchors, targets, mask))
    assert_close(losses["loss_box_reg"], expected["loss_reg"], atol=1e-4, rtol=1e-4)
    assert_close(losses["loss_centerness"], expected["loss_centerness"], atol=1e-4, rtol=1e-4)
    assert_close(losses["loss_grounding"], expected["loss_dot"], atol=1e-4, rtol=1e-4)
