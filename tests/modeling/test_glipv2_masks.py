"""The mask head inside the model: its loss, its masks, and training it alone."""

import pytest
import torch
from detectron2.structures import Boxes, Instances
from mask_samples import BOX_LOSSES, BOXES, PROMPT, build, make_input
from prompt_samples import make_prompt

from glipv2_d2.modeling import build_model
from glipv2_d2.modeling.postprocessing import finish_instances
from glipv2_d2.modeling.tuning import TuningSettings, apply_tuning


@pytest.fixture
def mask_cfg(tiny_cfg):
    tiny_cfg.MODEL.MASK_ON = True
    tiny_cfg.MODEL.GLIPV2.MASK_HEAD.CONV_DIM = 16
    tiny_cfg.MODEL.GLIPV2.TEST.SCORE_THRESH = 0.0
    tiny_cfg.MODEL.GLIPV2.GROUNDING.PRIOR_PROB = 0.3
    return tiny_cfg


@pytest.mark.parametrize("features", ["fpn", "fused"])
def test_a_model_with_a_mask_head_trains_boxes_and_masks_together(mask_cfg, features):
    mask_cfg.MODEL.GLIPV2.MASK_HEAD.FEATURES = features
    model = build(mask_cfg).train()
    losses = model([make_input(PROMPT, BOXES), make_input(PROMPT, BOXES[:1], seed=1)])
    assert set(losses) == BOX_LOSSES | {"loss_mask"}
    sum(losses.values()).backward()
    without = [name for name, one in model.named_parameters() if one.requires_grad and one.grad is None]
    assert not without


def test_images_without_masks_train_boxes_only(mask_cfg):
    model = build(mask_cfg).train()
    losses = model([make_input(PROMPT, BOXES, has_mask=[False, False]), make_input(PROMPT, [])])
    assert losses["loss_mask"] == 0 and losses["loss_grounding"] > 0
    sum(losses.values()).backward()
    # Zero, but there: processes wait for each other's gradients.
    assert all(parameter.grad is not None for parameter in model.mask_head.parameters())


def test_the_mask_head_alone_has_one_loss_and_moves_nothing_else(mask_cfg):
    mask_cfg.MODEL.GLIPV2.CONTRASTIVE.ENABLED = True
    model = build(mask_cfg, **{"TUNING.MODE": "mask_head"}).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = [one for one in model.parameters() if one.requires_grad]
    assert {id(one) for one in trained} == {id(one) for one in model.mask_head.parameters()}
    optimizer = torch.optim.AdamW(trained, lr=0.1)
    for seed in range(2):
        losses = model([make_input(PROMPT, BOXES, seed=seed)])
        assert set(losses) == {"loss_mask"} and losses["loss_mask"] > 0
        losses["loss_mask"].backward()
        optimizer.step()
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith("mask_head.") for name in moved)


def test_what_is_fixed_stays_in_eval_mode(mask_cfg):
    model = build(mask_cfg, **{"TUNING.MODE": "mask_head"}).eval().train()
    assert model.training and all(module.training for module in model.mask_head.modules())
    others = [module for name, child in model.named_children() if name != "mask_head" for module in child.modules()]
    assert not any(module.training for module in others)


def test_a_batch_with_the_fixed_detector_repeats_in_spite_of_its_dropout(mask_cfg):
    mask_cfg.MODEL.TEXT_ENCODER.DROPOUT = mask_cfg.MODEL.GLIPV2.FUSION.DROPOUT = 0.5
    model = build(mask_cfg, **{"TUNING.MODE": "mask_head"}).train()
    first, second = (model([make_input(PROMPT, BOXES)])["loss_mask"] for _ in range(2))
    assert first == second


def test_training_the_mask_head_of_a_model_without_one_is_an_error(tiny_cfg):
    tiny_cfg.MODEL.GLIPV2.TUNING.MODE = "mask_head"
    with pytest.raises(ValueError, match="MODEL.MASK_ON True"):
        build_model(tiny_cfg)


def test_an_unknown_tuning_or_source_of_features_is_an_error(mask_cfg):
    with pytest.raises(ValueError, match="TUNING.MODE: expected one of .*'half'"):
        apply_tuning(torch.nn.Module(), TuningSettings("half"))
    mask_cfg.MODEL.GLIPV2.MASK_HEAD.FEATURES = "swin"
    with pytest.raises(ValueError, match="MASK_HEAD.FEATURES: expected one of .*'swin'"):
        build_model(mask_cfg)


@torch.no_grad()
def test_masks_have_the_size_of_the_original_image_and_leave_the_boxes_as_they_are(mask_cfg):
    model = build(mask_cfg).eval()
    inputs = make_input(PROMPT, BOXES) | {"height": 128, "width": 192}
    found = model([inputs])[0]["instances"]
    assert len(found) > 0
    assert found.pred_masks.shape == (len(found), 128, 192) and found.pred_masks.dtype == torch.bool
    mask_head, model.mask_head = model.mask_head, None
    without = model([inputs])[0]["instances"]
    model.mask_head = mask_head
    assert not without.has("pred_masks")
    assert torch.equal(found.scores, without.scores)
    assert torch.equal(found.pred_boxes.tensor, without.pred_boxes.tensor)
    assert set(found.get_fields()) == set(without.get_fields()) | {"pred_masks"}


@torch.no_grad()
def test_the_config_says_from_which_probability_on_a_pixel_belongs_to_a_mask(mask_cfg):
    pixels = []
    for threshold in (0.01, 0.5, 1.0):
        mask_cfg.MODEL.GLIPV2.TEST.MASK_THRESH = threshold
        pixels.append(int(build(mask_cfg).eval()([make_input(PROMPT, BOXES)])[0]["instances"].pred_masks.sum()))
    assert pixels[0] > pixels[1] > pixels[2] == 0


@torch.no_grad()
@pytest.mark.parametrize("features", ["fpn", "fused"])
def test_chunks_of_names_have_the_masks_of_each_chunk_alone(mask_cfg, features):
    mask_cfg.MODEL.GLIPV2.MASK_HEAD.FEATURES = features
    model = build(mask_cfg).eval()
    model.tasks["detection"].max_detections = 10_000
    chunks = [make_prompt([1], [3], category_ids=[0, 1]), make_prompt([2, 3], category_ids=[7])]
    image = make_input(PROMPT, BOXES)
    together = model([image | {"prompts": chunks}])[0]["instances"]
    alone = [model([image | {"prompts": [chunk]}])[0]["instances"] for chunk in chunks]
    assert len(together) == sum(map(len, alone))
    for instances, ids in zip(alone, ({0, 1}, {7})):
        rows = torch.tensor([category in ids for category in together.pred_classes.tolist()])
        assert torch.equal(together.pred_masks[rows], instances.pred_masks)
        assert instances.pred_masks.any()


@torch.no_grad()
def test_masks_of_an_image_do_not_depend_on_the_batch(mask_cfg):
    model = build(mask_cfg).eval()
    inputs = [make_input(PROMPT, BOXES), make_input(make_prompt([1, 2, 3, 4, 5, 6]), BOXES, seed=1)]
    # An image with two chunks beside one with a single chunk.
    inputs[0]["prompts"] = [PROMPT, make_prompt([2], category_ids=[5])]
    for result, one in zip(model(inputs), inputs):
        expected = model([one])[0]["instances"]
        assert len(expected) == len(result["instances"])
        agreement = (result["instances"].pred_masks == expected.pred_masks).float().mean()
        assert agreement > 0.999


@torch.no_grad()
def test_an_image_in_which_nothing_is_found_has_no_masks(mask_cfg):
    mask_cfg.MODEL.GLIPV2.TEST.SCORE_THRESH = 1.0
    model = build(mask_cfg).eval()
    found = model([make_input(PROMPT, BOXES)])[0]["instances"]
    assert found.pred_masks.shape == (0, 64, 96)


def test_a_mask_is_pasted_into_its_rescaled_box():
    instances = Instances((50, 100))
    instances.pred_boxes = Boxes(torch.tensor([[10.0, 10.0, 30.0, 30.0]]))
    instances.mask_probabilities = torch.ones(1, 28, 28)
    result, nothing = (
        finish_instances([instances], [(100, 200)], torch.device("cpu"), threshold)[0] for threshold in (0.5, 1.1)
    )
    assert not result.has("mask_probabilities")
    rows, columns = result.pred_masks[0].nonzero().unbind(1)
    # First and last pixel of the box, 10 and 29, scaled: 20 and 58.
    assert (int(columns.min()), int(rows.min())) == (20, 20)
    assert int(columns.max()) == int(rows.max()) and int(rows.max()) in (57, 58)
    assert nothing.pred_masks.shape == (1, 100, 200) and not nothing.pred_masks.any()
