import copy

import pytest
import torch
from detectron2.structures import Boxes, Instances

from glipv2_d2.modeling import DyHead, GLIPv2, build_model
from glipv2_d2.structures import TokenBatch, TokenizedPrompt

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def make_prompt(num_names):
    """A prompt of that many names, of one token each, between two others."""
    token_map = torch.zeros(num_names, num_names + 2, dtype=torch.bool)
    token_map[torch.arange(num_names), torch.arange(num_names) + 1] = True
    ids = torch.arange(num_names)
    return TokenizedPrompt(torch.arange(num_names + 2), token_map, ids, tuple(f"name {i}" for i in range(num_names)))


def make_input(size=(64, 80), boxes=(), rows=(), category_ids=(), **more):
    generator = torch.Generator().manual_seed(size[0] * 1000 + size[1])
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(rows, dtype=torch.int64)
    instances.gt_category_ids = torch.tensor(category_ids, dtype=torch.int64)
    image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
    return {"image": image, "height": size[0] * 2, "width": size[1] * 2, "instances": instances, **more}


@pytest.fixture
def dyhead_cfg(tiny_cfg):
    options = [
        "MODEL.META_ARCHITECTURE",
        "DyHead",
        "MODEL.GLIPV2.CLASS_HEAD.NUM_CLASSES",
        5,
        "MODEL.SWIN.DROP_PATH_RATE",
        0.0,
    ]
    tiny_cfg.merge_from_list([*options, "MODEL.FPN.DROP_BLOCK_PROB", 0.0])
    return tiny_cfg


def build(cfg):
    torch.manual_seed(0)
    return build_model(cfg)


def test_model_has_the_image_side_of_the_detector_without_fusion_under_the_same_names(dyhead_cfg):
    dyhead = build(dyhead_cfg)
    assert isinstance(dyhead, DyHead)
    dyhead_cfg.MODEL.META_ARCHITECTURE, dyhead_cfg.MODEL.GLIPV2.FUSION.ENABLED = "GLIPv2", False
    glip = build(dyhead_cfg)
    assert isinstance(glip, GLIPv2)
    ours = {name: tuple(tensor.shape) for name, tensor in dyhead.state_dict().items()}
    others = {name: tuple(tensor.shape) for name, tensor in glip.state_dict().items()}
    of_text = ("text_encoder.", "head.text_projection.", "head.log_scale", "head.bias_lang", "head.bias0")
    expected = {name: shape for name, shape in others.items() if not name.startswith(of_text)}
    assert ours == {**expected, "head.cls_logits.weight": (5, 32, 1, 1), "head.cls_logits.bias": (5,)}


def test_class_with_the_weights_of_a_token_scores_as_the_token_does(dyhead_cfg):
    # With the text of all prompts fixed, a model without fusion is linear in the same features.
    dyhead_cfg.MODEL.GLIPV2.TEST.SCORE_THRESH = 0.0
    dyhead = build(dyhead_cfg).eval()
    dyhead_cfg.MODEL.META_ARCHITECTURE, dyhead_cfg.MODEL.GLIPV2.FUSION.ENABLED = "GLIPv2", False
    glip = build(dyhead_cfg).eval()
    dyhead.load_state_dict(glip.state_dict(), strict=False)
    inputs, prompt = make_input(), make_prompt(5)
    with torch.no_grad():
        glip.head.bias0.fill_(-1.0)
        glip.head.text_projection.weight.mul_(20)
        text = glip.text_encoder(TokenBatch.from_prompts([prompt])).embedded
        weights, biases = glip.head._project_text(text)
        dyhead.head.cls_logits.weight.copy_(weights[0].T[1:6, :, None, None])
        dyhead.head.cls_logits.bias.copy_(biases[0, 1:6])
        expected = glip([{**inputs, "prompts": [prompt]}])[0]["instances"]
        found = dyhead([{**inputs, "prompts": [prompt]}])[0]["instances"]
    assert len(expected) > 20 and len(set(expected.pred_classes.tolist())) > 1
    assert found.image_size == expected.image_size == (128, 160)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=1e-3)
    assert torch.equal(found.pred_classes, expected.pred_classes)


def test_losses_read_the_category_of_a_box_whatever_its_row_in_the_prompt(dyhead_cfg):
    model = build(dyhead_cfg).train()
    torch.nn.init.normal_(model.head.cls_logits.weight)

    def losses(row, category):
        with torch.no_grad():
            return model([make_input((64, 64), [[4, 6, 60, 55]], [row], [category], prompts=[make_prompt(2)])])

    one = losses(0, 4)
    assert set(one) == {"loss_class", "loss_box_reg", "loss_centerness"} and one["loss_box_reg"] > 0
    assert losses(1, 4) == one
    other = losses(0, 3)
    assert other["loss_class"] != one["loss_class"] and other["loss_box_reg"] == one["loss_box_reg"]


def test_losses_reach_every_parameter(dyhead_cfg):
    dyhead_cfg.MODEL.GLIPV2.IN_FEATURES = ["p3", "p4", "p5"]
    dyhead_cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64]]
    model = build(dyhead_cfg).train()
    boxes = [[0, 0, 16, 16], [16, 16, 48, 48], [0, 0, 64, 64]]
    sum(model([make_input((64, 64), boxes, [0, 0, 0], [0, 1, 2])]).values()).backward()
    idle = [name for name, one in model.named_parameters() if one.grad is None or not one.grad.isfinite().all()]
    assert idle == []


def test_batch_without_boxes_has_finite_losses(dyhead_cfg):
    losses = build(dyhead_cfg).train()([make_input(), make_input()])
    assert losses["loss_box_reg"] == losses["loss_centerness"] == 0 and 0 < losses["loss_class"] < float("inf")


def test_images_score_alone_as_they_do_in_a_batch_of_several_sizes(dyhead_cfg):
    dyhead_cfg.MODEL.GLIPV2.TEST.SCORE_THRESH = 0.0
    model = build(dyhead_cfg).eval()
    inputs = [make_input((64, 80)), make_input((96, 64))]
    with torch.no_grad():
        together = model(inputs)
        for one, output in zip(inputs, together, strict=True):
            alone = model([one])[0]["instances"]
            assert len(alone) and torch.equal(alone.scores, output["instances"].scores)
            assert alone.image_size == (one["height"], one["width"])


def test_detections_without_an_original_size_stay_in_the_pixels_of_the_image(dyhead_cfg):
    inputs = make_input((64, 80))
    del inputs["height"], inputs["width"]
    assert build(dyhead_cfg).eval()([inputs])[0]["instances"].image_size == (64, 80)


def test_names_may_come_in_several_prompts_but_have_to_be_all(dyhead_cfg):
    model = build(dyhead_cfg).eval()
    model([make_input(prompts=[make_prompt(3), make_prompt(2)])])
    with pytest.raises(
        ValueError, match=r"prompts: expected the names of all 5 classes .*NUM_CLASSES\), found 4 names"
    ):
        model([make_input(prompts=[make_prompt(4)])])


@pytest.mark.parametrize("category", [-1, 5])
def test_box_of_another_category_is_refused(dyhead_cfg, category):
    model = build(dyhead_cfg).train()
    inputs = make_input(boxes=[[4, 6, 60, 55]] * 2, rows=[0, 0], category_ids=[4, category])
    with pytest.raises(ValueError, match=rf"gt_category_ids: expected 0 to 4 .*NUM_CLASSES 5\), found {category}"):
        model([inputs])


def test_only_detection_is_asked_of_it(dyhead_cfg):
    model = build(dyhead_cfg).eval()
    with pytest.raises(ValueError, match=r"task: expected 'detection' .* found \['detection', 'vqa'\]"):
        model([make_input(), make_input(task="vqa")])
    inputs = make_input()
    del inputs["instances"]
    with pytest.raises(ValueError, match="instances: expected them"):
        model.train()([inputs])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.MASK_ON", True, r"MODEL\.MASK_ON: expected False"),
        ("MODEL.GLIPV2.CONTRASTIVE.ENABLED", True, r"CONTRASTIVE\.ENABLED: expected False"),
        ("MODEL.GLIPV2.MLM.ENABLED", True, r"MLM\.ENABLED: expected False"),
        ("MODEL.GLIPV2.PHRASE_CENTER.ENABLED", True, r"PHRASE_CENTER\.ENABLED: expected False"),
        ("MODEL.GLIPV2.FUSION.POSITIONS", True, r"FUSION\.POSITIONS: expected False"),
        ("MODEL.GLIPV2.TEST.SHORTLIST", 40, r"TEST\.SHORTLIST: expected 0 for .* found 40"),
        ("MODEL.GLIPV2.VQA.ENABLED", True, r"VQA\.ENABLED: expected False"),
        ("MODEL.GLIPV2.CAPTIONING.ENABLED", True, r"CAPTIONING\.ENABLED: expected False"),
        ("MODEL.GLIPV2.TUNING.MODE", "prompt", r"TUNING.MODE: expected 'full' .*found 'prompt'"),
        ("MODEL.GLIPV2.IN_FEATURES", ["p3", "p9"], r"IN_FEATURES: expected some of the levels .* found \['p9'\]"),
    ],
)
def test_what_needs_text_is_refused(dyhead_cfg, key, value, message):
    dyhead_cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=message):
        build(dyhead_cfg)


def test_a_copy_gives_the_same_detections(dyhead_cfg):
    dyhead_cfg.MODEL.GLIPV2.TEST.SCORE_THRESH = 0.0
    model = build(dyhead_cfg).eval()
    copied = copy.deepcopy(model)([make_input()])[0]["instances"]
    assert torch.equal(model([make_input()])[0]["instances"].scores, copied.scores)
