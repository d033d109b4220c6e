"""The losses of pre-training in the whole model: which are there, and what they reach."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from glipv2_d2.modeling import build_model
from glipv2_d2.structures import TokenizedPrompt


def make_input(seed, boxes, category_ids=(7, 8), masked=True):
    """An image of noise and a prompt of two names, "a" at token 1 and "b" at tokens 3 and 4."""
    token_map = torch.tensor([[0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0]], dtype=torch.bool)
    labels = torch.tensor([-100, 1001, -100, -100, 1004, -100]) if masked else None
    prompt = TokenizedPrompt(torch.arange(1000, 1006), token_map, torch.tensor(category_ids), ("a", "b"), labels)
    instances = Instances((64, 64))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.arange(len(boxes)) % 2
    instances.gt_category_ids = torch.tensor(category_ids)[instances.gt_classes]
    image = torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return {"image": image, "prompts": [prompt], "instances": instances}


def make_model(cfg, **options):
    for key, value in options.items():
        cfg.merge_from_list([f"MODEL.GLIPV2.{key.replace('__', '.')}", value])
    torch.manual_seed(0)
    return build_model(cfg).train()


BATCH = [make_input(0, [[8, 8, 60, 50], [0, 0, 30, 40]]), make_input(1, [[4, 4, 40, 60]])]


@pytest.mark.parametrize(
    "switched_on", [("CONTRASTIVE", "MLM", "PHRASE_CENTER"), ("CONTRASTIVE",), ("MLM",), ("PHRASE_CENTER",), ()]
)
def test_each_loss_of_pretraining_has_its_switch_and_reaches_every_parameter(tiny_cfg, switched_on):
    model = make_model(tiny_cfg, FUSION__POSITIONS=True, **{f"{part}__ENABLED": True for part in switched_on})
    losses = model(BATCH)
    extra = {f"loss_{part.lower()}" for part in switched_on}
    assert set(losses) == {"loss_grounding", "loss_box_reg", "loss_centerness"} | extra
    assert all(loss.dim() == 0 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    trainable = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    assert not [name for name, parameter in trainable if parameter.grad is None]


def test_contrast_sees_the_features_before_fusion_only(tiny_cfg):
    model = make_model(tiny_cfg, CONTRASTIVE__ENABLED=True)
    model(BATCH)["loss_contrastive"].backward()
    reached = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {"backbone", "text_encoder", "contrastive_head"}


def test_masked_tokens_are_restored_from_the_fused_text(tiny_cfg):
    model = make_model(tiny_cfg, MLM__ENABLED=True)
    model(BATCH)["loss_mlm"].backward()
    reached = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {"backbone", "text_encoder", "fusion_tower", "mlm_head"} <= reached and "head" not in reached


@pytest.mark.parametrize("key", ["PHRASE_CENTER.ENABLED", "FUSION.POSITIONS"])
def test_text_that_reads_no_image_cannot_be_asked_for_places(tiny_cfg, key):
    tiny_cfg.MODEL.GLIPV2.FUSION.ENABLED = False
    with pytest.raises(ValueError, match=rf"MODEL.GLIPV2.{key}: expected False where MODEL.GLIPV2.FUSION.ENABLED is"):
        make_model(tiny_cfg, **{key.replace(".", "__"): True})


def test_phrases_are_found_in_the_fused_text_in_the_frame_of_the_padded_images(tiny_cfg):
    model = make_model(tiny_cfg, PHRASE_CENTER__ENABLED=True)
    seen, head = [], model.phrase_center_head
    head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    wide = {**make_input(1, [[4, 4, 40, 60]]), "image": torch.zeros(3, 64, 120, dtype=torch.uint8)}
    torch.manual_seed(1)
    loss = model([BATCH[0], wide])["loss_phrase_center"]
    loss.backward()
    reached = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {"backbone", "text_encoder", "fusion_tower", "phrase_center_head"} <= reached and "head" not in reached
    # Two phrases of the first image, one of the second; 120 pixels are padded to 128.
    centres = torch.tensor([[34, 29], [15, 20], [22, 32]]) / 64 - 1
    expected = torch.nn.functional.smooth_l1_loss(head(seen[0]), centres, beta=0.2)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("boxes, masked", [([], True), ([], False), ([[4, 4, 40, 60]], False)])
def test_batch_with_nothing_to_contrast_or_restore_has_finite_losses(tiny_cfg, boxes, masked):
    model = make_model(tiny_cfg, CONTRASTIVE__ENABLED=True, MLM__ENABLED=True)
    losses = model([make_input(0, boxes, masked=masked)])
    assert losses["loss_contrastive"].item() == 0 or boxes
    assert losses["loss_mlm"].item() == 0 or masked
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "key, gone",
    [
        ("GROUNDING__LOSS_WEIGHT", "loss_grounding"),
        ("BOX__REG_LOSS_WEIGHT", "loss_box_reg"),
        ("BOX__CENTERNESS_LOSS_WEIGHT", "loss_centerness"),
    ],
)
def test_loss_whose_weight_is_zero_is_absent(tiny_cfg, key, gone):
    losses = make_model(tiny_cfg, **{key: 0.0})(BATCH)
    assert set(losses) == {"loss_grounding", "loss_box_reg", "loss_centerness"} - {gone}


def test_boxes_are_found_without_the_heads_of_pretraining(tiny_cfg):
    with_heads = make_model(tiny_cfg, CONTRASTIVE__ENABLED=True, MLM__ENABLED=True, TEST__SCORE_THRESH=0.0).eval()
    without = make_model(tiny_cfg, CONTRASTIVE__ENABLED=False, MLM__ENABLED=False).eval()
    state = {name: value for name, value in with_heads.state_dict().items() if name in without.state_dict()}
    without.load_state_dict(state)
    inputs = [{key: value for key, value in BATCH[0].items() if key != "instances"}]
    with torch.no_grad():
        first, second = (model(inputs)[0]["instances"] for model in (with_heads, without))
    assert torch.equal(first.scores, second.scores) and len(first)
