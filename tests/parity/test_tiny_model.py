"""The whole model against numbers of the official implementation: a tiny GLIP-T, weights made by rule.

The fixtures in ``assets/parity/tiny`` hold, for weights that anyone can re-create from names and shapes, what the
official code computes from pixels to losses and gradients. Tolerances are ten times that code's own rounding noise.
"""

import json

import cv2
import numpy as np
import pytest
import torch
from conftest import ASSETS, load_config
from detectron2.structures import Boxes, Instances
from official_names import to_official
from parity_weights import official_state_dict, tensor_for

from glipv2_d2 import PromptTokenizer, convert_glip_state_dict
from glipv2_d2.data.transforms import ResizeShortestEdgeLegacy
from glipv2_d2.modeling import build_model
from glipv2_d2.prompts.builder import prompt_from_caption, prompt_from_names
from glipv2_d2.structures import TokenBatch

TINY = ASSETS / "parity" / "tiny"
LEVELS = ("p3", "p4", "p5", "p6", "p7")


def load(name):
    path = TINY / name
    return json.loads(path.read_text()) if path.suffix == ".json" else np.load(path)


def parity_cfg():
    cfg = load_config("glip/glip_swin_t_c.yaml")
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.SWIN.DROP_PATH_RATE", 0.0),
            *("MODEL.SWIN.EMBED_DIM", 24, "MODEL.SWIN.DEPTHS", [2, 2, 2, 2], "MODEL.SWIN.NUM_HEADS", [2, 4, 8, 16]),
            *("MODEL.FPN.OUT_CHANNELS", 32, "MODEL.FPN.DROP_BLOCK_PROB", 0.0),
            *("MODEL.GLIPV2.TOWER.CHANNELS", 32, "MODEL.GLIPV2.TOWER.NUM_BLOCKS", 2),
            *("MODEL.GLIPV2.FUSION.DROPOUT", 0.0, "MODEL.TEXT_ENCODER.DROPOUT", 0.0),
            *("MODEL.TEXT_ENCODER.HIDDEN_SIZE", 48, "MODEL.TEXT_ENCODER.NUM_LAYERS", 2),
            *("MODEL.TEXT_ENCODER.NUM_HEADS", 4, "MODEL.TEXT_ENCODER.INTERMEDIATE_SIZE", 192),
            *("INPUT.MIN_SIZE_TEST", 208, "INPUT.MAX_SIZE_TEST", 288),
        ]
    )
    return cfg


@pytest.fixture(scope="module")
def model():
    model = build_model(parity_cfg())
    state_dict, report = convert_glip_state_dict(official_state_dict(TINY / "weights.json", "tiny-24:"))
    missing, unexpected = model.load_state_dict(state_dict, strict=False)
    assert not unexpected and all(name.endswith("relative_position_index") for name in missing)
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer():
    return PromptTokenizer()


def network_inputs():
    """Both images resized by the product's own augmentation, BGR."""
    inputs = []
    for index in range(2):
        image = cv2.imread(str(TINY / f"img{index}.png"))
        transform = ResizeShortestEdgeLegacy([208], 288, "choice").get_transform(image)
        resized = transform.apply_image(image)
        inputs.append(
            {
                "image": torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1))),
                "height": image.shape[0],
                "width": image.shape[1],
            }
        )
    return inputs


def close(actual, expected, atol):
    torch.testing.assert_close(actual, torch.as_tensor(expected), atol=atol, rtol=1e-4)


def per_level_close(actual, arrays, key, atol, tokens=None):
    for tensor, level in zip(actual, LEVELS):
        expected = torch.from_numpy(arrays[f"{key}.{level}"])
        if expected.dim() == 4:  # (N, K, H, W) as (N, H*W, K)
            expected = expected.flatten(2).transpose(1, 2)
        expected = expected.squeeze(-1) if tensor.dim() == 2 else expected
        close(tensor, expected if tokens is None else expected[..., :tokens], atol)


def test_pixels_and_network_input_equal_the_official_ones(model):
    arrays = load("preprocessed.npz")
    for index, inputs in enumerate(network_inputs()):
        expected = cv2.imread(str(TINY / f"img{index}_resized.png")).transpose(2, 0, 1)
        assert np.array_equal(inputs["image"].numpy(), expected)
        normalized = model.preprocess_image([inputs]).tensor[0]
        height, width = inputs["image"].shape[1:]
        close(normalized[:, :height, :width], arrays[f"img{index}"], 1e-5)
        assert normalized[:, height:].abs().sum() == 0 and normalized[:, :, width:].abs().sum() == 0


@torch.no_grad()
@pytest.mark.parametrize("form", ["plain", "folded"])
def test_detection_prompt_gives_the_official_features_logits_and_boxes(model, tokenizer, form):
    facts, head = load("det.json"), load("det_head.npz")
    prompt = tokenizer(prompt_from_names(facts["class_names"], facts["category_ids"]))
    for label, expected in facts["label_to_tokens"].items():
        row = facts["category_ids"].index(int(label))
        assert prompt.phrase_token_map[row].nonzero().flatten().tolist() == expected
    for block in model.fusion_tower.blocks:
        block.fusion.form = form
    images = model.preprocess_image(network_inputs())
    assert list(images.tensor.shape) == facts["batch"]["padded_shape"]
    features = model.visual_features(images)
    backbone = load("det_backbone.npz")
    for tensor, level in zip(features, LEVELS):
        close(tensor, backbone[f"fpn.{level}"], 1e-4)
    language = model.text_encoder(TokenBatch.from_prompts([prompt, prompt]))
    expected_hidden = load("det_language.npz")["hidden"][:, : len(prompt)]
    close(language.hidden[:1], expected_hidden, 2e-5)
    predictions = model.fuse(features, language).predictions
    per_level_close(predictions.token_logits, head, "head.dot", 3e-4, tokens=len(prompt))
    per_level_close(predictions.box_deltas, head, "head.bbox", 3e-4)
    per_level_close(predictions.centerness_logits, head, "head.centerness", 3e-4)
    anchors = model.anchor_generator(features)
    results = model.head.inference(predictions, anchors, images.image_sizes, [prompt, prompt])
    detections = load("det_detections.npz")
    for index, instances in enumerate(results):
        assert_same_detections(
            instances.pred_boxes.tensor,
            instances.scores,
            instances.pred_classes,
            *(detections[f"base.img{index}.{name}"] for name in ("boxes", "scores", "labels")),
        )


def assert_same_detections(boxes, scores, classes, expected_boxes, expected_scores, expected_classes):
    """Same set: every expected detection has its own partner with equal label, score and box."""
    assert len(boxes) == len(expected_boxes)
    expected_boxes = torch.from_numpy(expected_boxes.copy())
    expected_boxes[:, 2:] += 1  # inclusive corners to half-open boxes
    free = torch.ones(len(boxes), dtype=torch.bool)
    for box, score, label in zip(expected_boxes, expected_scores, expected_classes):
        same = free & (classes == int(label)) & ((boxes - box).abs().amax(1) < 5e-3) & ((scores - score).abs() < 2e-5)
        assert same.any(), (box, score, label)
        free[same.nonzero()[0]] = False


@torch.no_grad()
@pytest.mark.parametrize("index", [0, 1])
def test_grounding_caption_gives_the_official_boxes_in_original_pixels(model, tokenizer, index):
    facts, arrays = load("ground.json")[index], load(f"ground{index}.npz")
    prompt = tokenizer(prompt_from_caption(facts["caption"], facts["tokens_positive"]))
    assert prompt.input_ids.tolist() == arrays["input_ids"][0].tolist()
    for label, expected in facts["label_to_tokens"].items():
        assert prompt.phrase_token_map[int(label) - 1].nonzero().flatten().tolist() == expected
    instances = model([{**network_inputs()[index], "prompts": [prompt]}])[0]["instances"]
    boxes, scores = instances.pred_boxes.tensor, instances.scores
    expected = (arrays[f"det.{name}"] for name in ("boxes_original_size", "scores", "labels"))
    assert_same_detections(boxes, scores, instances.pred_classes + 1, *expected)


@torch.no_grad()
def test_an_image_gives_the_same_boxes_alone_in_a_batch_and_beside_other_prompts(model, tokenizer):
    prompts = [
        tokenizer(prompt_from_names(names)) for names in (["person", "traffic light"], ["a", "b", "wooden fence"])
    ]
    inputs = [{**image, "prompts": [prompt]} for image, prompt in zip(network_inputs(), prompts)]
    twin = {**inputs[0], "prompts": [prompts[1]]}
    batch = model([inputs[0], inputs[1], twin])
    for row, alone in enumerate([inputs[0], inputs[1], twin]):
        expected, actual = model([alone])[0]["instances"], batch[row]["instances"]
        torch.testing.assert_close(actual.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-3, rtol=1e-5)
        torch.testing.assert_close(actual.scores, expected.scores, atol=1e-5, rtol=1e-4)
        assert torch.equal(actual.pred_classes, expected.pred_classes)


def training_inputs(tokenizer):
    facts, arrays = load("train.json"), load("train.npz")
    inputs = network_inputs()
    for index, (caption, spans) in enumerate(zip(facts["captions"], facts["tokens_positive"])):
        prompt = tokenizer(prompt_from_caption(caption, spans))
        assert prompt.input_ids.tolist() == arrays[f"img{index}.input_ids"].tolist()
        instances = Instances(inputs[index]["image"].shape[1:])
        boxes = torch.from_numpy(arrays[f"img{index}.boxes"].copy())
        boxes[:, 2:] += 1
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.arange(len(boxes))
        inputs[index] |= {"prompts": [prompt], "instances": instances}
    return inputs


def test_one_training_step_has_the_official_losses_and_gradients(model, tokenizer):
    facts, expected_gradients = load("train.json")["losses"], load("train_gradients.json")
    model.train()
    model.zero_grad()
    losses = model(training_inputs(tokenizer))
    close(losses["loss_box_reg"].detach(), facts["loss_reg"], 1e-4)
    close(losses["loss_centerness"].detach(), facts["loss_centerness"], 1e-4)
    close(losses["loss_grounding"].detach(), facts["loss_dot_product_token"], 1e-4)
    sum(losses.values()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.eval()
    official = to_official(gradients)
    compared = 0
    for name, expected in expected_gradients.items():
        if name not in official:
            assert expected is None or expected.get("l2", 0.0) == 0.0 or "cls_logits" in name, name
            continue
        gradient = official[name].double()
        tolerance = 1e-3 * expected["l2"] + 1e-6
        assert abs(gradient.norm().item() - expected["l2"]) <= tolerance, name
        probe = torch.from_numpy(tensor_for("probe." + name, tuple(gradient.shape), "")).double()
        assert abs((gradient * probe).sum().item() - expected["probe"]) <= tolerance, name
        compared += 1
    assert compared > 200
