import pytest
import torch
from batch_samples import make_shapes
from detectron2.modeling import build_anchor_generator, build_backbone, build_model
from detectron2.structures import Boxes, Instances
from prompt_samples import make_prompt

from glipv2_d2.errors import InputError
from glipv2_d2.modeling import GLIPv2
from glipv2_d2.modeling.fusion_tower import FusionTower
from glipv2_d2.modeling.heads.grounding_head import GroundingHead
from glipv2_d2.modeling.postprocessing import rescale_instances
from glipv2_d2.modeling.text_encoder import build_text_encoder
from glipv2_d2.structures import DetectionLimits


def make_input(height, width, prompt, seed=0, boxes=None):
    image = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    inputs = {"image": image, "height": height, "width": width, "prompts": [prompt]}
    if boxes is not None:
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        instances.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
        inputs["instances"] = instances
    return inputs


@pytest.fixture
def model(tiny_cfg):
    torch.manual_seed(0)
    tiny_cfg.MODEL.GLIPV2.TEST.SCORE_THRESH = 0.0
    # Untrained logits sit near the prior; a wide prior keeps scores away from ties.
    tiny_cfg.MODEL.GLIPV2.GROUNDING.PRIOR_PROB = 0.3
    return build_model(tiny_cfg)


def test_training_returns_the_three_weighted_losses_and_reaches_every_trainable_parameter(model):
    prompt = make_prompt([1], [3, 4])
    losses = model.train()(
        [make_input(64, 96, prompt, boxes=[[8, 8, 60, 50]]), make_input(64, 64, prompt, 1, [[0, 0, 40, 40]])]
    )
    assert set(losses) == {"loss_grounding", "loss_box_reg", "loss_centerness"}
    assert all(loss.dim() == 0 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    without = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert not without


def test_loss_weights_of_the_config_multiply_the_losses(tiny_cfg):
    inputs = [make_input(64, 64, make_prompt([1]), boxes=[[8, 8, 60, 50]])]
    weights = {"loss_grounding": 0.5, "loss_box_reg": 3.0, "loss_centerness": 0.25}
    results = []
    for changed in (False, True):
        if changed:
            tiny_cfg.MODEL.GLIPV2.GROUNDING.LOSS_WEIGHT = weights["loss_grounding"]
            tiny_cfg.MODEL.GLIPV2.BOX.REG_LOSS_WEIGHT = weights["loss_box_reg"]
            tiny_cfg.MODEL.GLIPV2.BOX.CENTERNESS_LOSS_WEIGHT = weights["loss_centerness"]
        torch.manual_seed(1)
        model = build_model(tiny_cfg).train()
        results.append(model(inputs))
    defaults = {"loss_grounding": 1.0, "loss_box_reg": 2.0, "loss_centerness": 1.0}
    for name, weight in weights.items():
        torch.testing.assert_close(results[1][name], results[0][name] * weight / defaults[name])


def test_images_without_boxes_train_as_pure_negatives(model):
    losses = model.train()([make_input(64, 64, make_prompt([1]), boxes=[])])
    assert losses["loss_grounding"] > 0
    assert losses["loss_box_reg"] == 0 and losses["loss_centerness"] == 0
    sum(losses.values()).backward()
    assert model.head.bias0.grad is not None and model.head.bias0.grad.item() > 0


@torch.no_grad()
def test_result_of_an_image_does_not_depend_on_the_batch(model):
    model.eval()
    inputs = [
        make_input(64, 96, make_prompt([1], [3]), 0),
        make_input(60, 90, make_prompt([1, 2, 3, 4, 5, 6]), 1),
        make_input(96, 64, make_prompt([2]), 2),
    ]
    together = model(inputs)
    for result, alone in zip(together, inputs):
        expected = model([alone])[0]["instances"]
        assert len(expected) > 0
        torch.testing.assert_close(result["instances"].scores, expected.scores, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            result["instances"].pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-3, rtol=1e-4
        )


@torch.no_grad()
def test_chunks_of_names_give_the_detections_of_each_chunk_and_run_the_backbone_once(model):
    model.eval()
    model.tasks["detection"].max_detections = 10_000
    chunks = [make_prompt([1], [3], category_ids=[0, 1]), make_prompt([2, 3], category_ids=[7])]
    inputs = {**make_input(64, 64, chunks[0]), "prompts": chunks}
    calls = []
    handle = model.backbone.register_forward_hook(lambda *_: calls.append(1))
    merged = model([inputs])[0]["instances"]
    handle.remove()
    assert len(calls) == 1
    apart = [model([{**inputs, "prompts": [chunk]}])[0]["instances"] for chunk in chunks]
    assert len(merged) == sum(map(len, apart))
    scores = torch.cat([instances.scores for instances in apart]).sort(descending=True).values
    torch.testing.assert_close(merged.scores, scores)
    assert set(merged.pred_classes.tolist()) == {0, 1, 7}


@torch.no_grad()
def test_detections_of_all_chunks_together_are_limited(model):
    model.eval()
    model.tasks["detection"].max_detections = 5
    inputs = {**make_input(64, 64, None), "prompts": [make_prompt([1]), make_prompt([3])]}
    assert len(model([inputs])[0]["instances"]) == 5


@torch.no_grad()
def test_prompts_of_different_chunk_counts_share_a_batch(model):
    model.eval()
    one = {**make_input(64, 64, None), "prompts": [make_prompt([1])]}
    two = {**make_input(64, 64, None, seed=1), "prompts": [make_prompt([1]), make_prompt([2], category_ids=[5])]}
    results = model([one, two])
    assert set(results[0]["instances"].pred_classes.tolist()) == {0}
    assert set(results[1]["instances"].pred_classes.tolist()) == {0, 5}


def test_an_input_without_prompts_is_answered_with_the_default_vocabulary(model):
    prompt = make_prompt([1])
    model.eval()._default_prompts = lambda: [prompt]
    inputs = make_input(64, 64, prompt)
    with torch.no_grad():
        expected = model([inputs])[0]["instances"]
        del inputs["prompts"]
        actual = model([inputs])[0]["instances"]
        assert torch.equal(actual.scores, expected.scores)
        model._default_prompts = None
        with pytest.raises(ValueError, match="prompts"):
            model([inputs])


def test_boxes_move_to_the_original_image_by_their_corner_pixels():
    instances = Instances((50, 100))
    instances.pred_boxes = Boxes(torch.tensor([[10.0, 20.0, 31.0, 41.0]]))
    instances.scores = torch.tensor([0.5])
    result = rescale_instances(instances, (100, 300))
    # Inclusive corners (10, 20, 30, 40) times (3, 2), and one pixel more to the right and below.
    assert result.pred_boxes.tensor.tolist() == [[30.0, 40.0, 91.0, 81.0]]
    assert result.image_size == (100, 300) and result.scores.tolist() == [0.5]


def test_the_model_builds_from_explicit_arguments_without_a_config(tiny_cfg):
    backbone = build_backbone(tiny_cfg)
    shapes = backbone.output_shape()
    text_encoder = build_text_encoder(tiny_cfg)
    model = GLIPv2(
        backbone=backbone,
        text_encoder=text_encoder,
        tower=FusionTower(
            32, 48, num_blocks=1, channels=32, fusion_embed_dim=64, fusion_num_heads=4, language_num_heads=4
        ),
        head=GroundingHead(tiny_cfg, make_shapes(tower_channels=32, language_dim=48)),
        anchor_generator=build_anchor_generator(tiny_cfg, list(shapes.values())),
        head_in_features=list(shapes),
        pixel_mean=[103.53, 116.28, 123.675],
        pixel_std=[57.375, 57.12, 58.395],
    )
    losses = model.train()([make_input(64, 64, make_prompt([1]), boxes=[[8, 8, 60, 50]])])
    assert all(loss.isfinite() for loss in losses.values())


def test_checkpointed_tower_has_the_same_losses_and_gradients(tiny_cfg):
    tiny_cfg.MODEL.GLIPV2.FUSION.DROPOUT = tiny_cfg.MODEL.TEXT_ENCODER.DROPOUT = 0.0
    tiny_cfg.MODEL.SWIN.DROP_PATH_RATE = tiny_cfg.MODEL.FPN.DROP_BLOCK_PROB = 0.0
    inputs = [make_input(64, 64, make_prompt([1], [2]), boxes=[[8, 8, 60, 50]])]
    gradients = []
    for use_checkpoint in (False, True):
        tiny_cfg.MODEL.GLIPV2.TOWER.USE_CHECKPOINT = use_checkpoint
        torch.manual_seed(0)
        model = build_model(tiny_cfg).train()
        sum(model(inputs).values()).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_a_tower_without_fusion_passes_the_text_through(tiny_cfg):
    tiny_cfg.MODEL.GLIPV2.FUSION.ENABLED = False
    model = build_model(tiny_cfg).train()
    assert all(block.fusion is None and block.language_layer is None for block in model.fusion_tower.blocks)
    losses = model([make_input(64, 64, make_prompt([1]), boxes=[[8, 8, 60, 50]])])
    sum(losses.values()).backward()
    assert model.text_encoder.bert.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def test_a_level_that_the_backbone_lacks_is_an_error(tiny_cfg):
    tiny_cfg.MODEL.GLIPV2.IN_FEATURES = ["p2", "p3"]
    with pytest.raises(ValueError, match=r"IN_FEATURES.*p2"):
        build_model(tiny_cfg)


@torch.no_grad()
def test_detections_of_an_image_and_of_each_prompt_have_their_limits(tiny_cfg):
    tiny_cfg.MODEL.GLIPV2.TEST.SCORE_THRESH = 0.0
    tiny_cfg.MODEL.GLIPV2.GROUNDING.PRIOR_PROB = 0.3
    inputs = make_input(64, 96, make_prompt([1])) | {"prompts": [make_prompt([1]), make_prompt([2], category_ids=[5])]}
    for per_prompt, per_image, number in ((0, 3, 3), (3, 0, 6), (3, 4, 4), (2, 100, 4)):
        torch.manual_seed(0)
        tiny_cfg.MODEL.GLIPV2.TEST.DETECTIONS_PER_PROMPT, tiny_cfg.TEST.DETECTIONS_PER_IMAGE = per_prompt, per_image
        model = build_model(tiny_cfg).eval()
        assert len(model([inputs])[0]["instances"]) == number
    # Those of an input come first; inputs of other limits may stand in one batch.
    limited = [
        inputs,
        *({**inputs, "detection_limits": DetectionLimits(*limits)} for limits in ((3, 0), (0, 3), (1, 100))),
    ]
    assert [len(output["instances"]) for output in model(limited)] == [4, 6, 3, 2]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("TOWER.NUM_BLOCKS", 0, "expected at least 1, found 0"),
        ("TOWER.CHANNELS", 24, "expected a multiple of 16, found 24"),
        ("FUSION.NUM_HEADS", 5, "expected a divisor of embed_dim .*, found 5"),
        ("MATCHER.TOPK", 0, "expected at least 1, found 0"),
        ("TEST.SCORE_THRESH", 2.0, r"expected a number in \[0, 1\], found 2.0"),
        ("TEST.SCORE_AGGREGATION", "median", "expected one of mean, max, power, found 'median'"),
    ],
)
def test_wrong_values_of_the_model_name_their_key(tiny_cfg, key, value, message):
    tiny_cfg.merge_from_list([f"MODEL.GLIPV2.{key}", value])
    with pytest.raises(InputError, match=f"^MODEL.GLIPV2.{key}: {message}"):
        build_model(tiny_cfg)
