"""Replay by self-distillation: the divergences by hand and by loops, and what a training step makes of them."""

import math

import pytest
import torch
from batch_samples import anchor_case
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, ImageList, Instances
from head_samples import make_head, make_instances, make_prompt, small_batch
from pretended_device import pretended_device

from glipv2_d2.engine.keep import frozen_copy
from glipv2_d2.modeling import build_model
from glipv2_d2.modeling.keeping import (
    CONFIDENT,
    Keeping,
    KeepWeights,
    agreement,
    bernoulli_divergence,
    boxes_divergence,
    is_fixed,
    names_divergence,
    predictions_of,
)
from glipv2_d2.modeling.losses.box_losses import giou_loss_legacy
from glipv2_d2.structures import KEPT_NAME, GroundingPredictions, TokenBatch

ANCHORS = torch.tensor([[0.0, 0, 16, 16], [8, 8, 40, 40], [20, 4, 52, 30]])
TRANSFORM = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))


def logit(probability):
    return math.log(probability / (1 - probability))


@pytest.mark.parametrize(
    ("score", "base", "expected"),
    # 0.75 log(0.75 / 0.5) + 0.25 log(0.25 / 0.5)
    [(0.5, 0.75, 0.75 * math.log(1.5) + 0.25 * math.log(0.5)), (0.3, 0.3, 0.0), (0.9, 0.1, 0.8 * math.log(9))],
)
def test_divergence_is_that_of_yes_or_no(score, base, expected):
    found = bernoulli_divergence(torch.tensor(logit(score)), torch.tensor(logit(base)))
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_divergence_is_finite_where_a_probability_rounds_to_one():
    found = bernoulli_divergence(torch.tensor([50_000.0, -50_000.0]), torch.tensor([-50_000.0, -50_000.0]))
    assert found.tolist() == [50_000.0, 0.0]


def predictions(seed):
    generator = torch.Generator().manual_seed(seed)
    return GroundingPredictions(
        [torch.randn(2, 2, 4, generator=generator), torch.randn(2, 1, 4, generator=generator)],
        [torch.randn(2, 2, 4, generator=generator), torch.randn(2, 1, 4, generator=generator)],
        [torch.randn(2, 2, generator=generator), torch.randn(2, 1, generator=generator)],
    )


KEPT = torch.tensor([[False, True, True, False], [False, False, False, True]])


def test_names_divergence_is_the_sum_over_anchors_and_kept_tokens():
    own, base = predictions(0), predictions(1)
    total, mass, confidence = names_divergence(own.token_logits, base.token_logits, KEPT)
    p, q = (torch.cat(one.token_logits, dim=1).double().sigmoid() for one in (base, own))
    expected, expected_mass, best = 0.0, 0.0, torch.zeros(2, 3)
    for image in range(2):
        for anchor in range(3):
            for token in KEPT[image].nonzero().flatten().tolist():
                yes, found = p[image, anchor, token].item(), q[image, anchor, token].item()
                expected += yes * math.log(yes / found) + (1 - yes) * math.log((1 - yes) / (1 - found))
                expected_mass += yes
                best[image, anchor] = max(best[image, anchor].item(), yes)
    assert total.item() == pytest.approx(expected, rel=1e-5) and mass.item() == pytest.approx(expected_mass, rel=1e-5)
    torch.testing.assert_close(confidence, best)


def test_boxes_divergence_is_the_weighted_sum_over_anchors():
    own, base = predictions(0), predictions(1)
    weights = torch.tensor([[0.0, 0.5, 1.0], [0.25, 0.0, 0.0]])
    found = boxes_divergence(own, base, ANCHORS, weights, TRANSFORM)
    expected = 0.0
    for image in range(2):
        deltas, base_deltas = (torch.cat(one.box_deltas, dim=1)[image] for one in (own, base))
        rating, base_rating = (torch.cat(one.centerness_logits, dim=1)[image] for one in (own, base))
        for anchor in range(3):
            boxes = (
                TRANSFORM.apply_deltas(one[anchor : anchor + 1], ANCHORS[anchor : anchor + 1])
                for one in (deltas, base_deltas)
            )
            away = giou_loss_legacy(*boxes).item()
            away += bernoulli_divergence(rating[anchor], base_rating[anchor]).item()
            expected += weights[image, anchor].item() * away
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert boxes_divergence(base, base, ANCHORS, weights, TRANSFORM).item() == pytest.approx(0.0, abs=1e-5)


def test_agreement_is_the_smaller_over_the_larger():
    base = [torch.tensor([[[logit(0.5), logit(0.2), 9.0]]])]
    own = [torch.tensor([[[logit(0.1), logit(0.4), -9.0]]])]
    least, most = agreement(own, base, torch.tensor([[True, True, False]]))
    assert (least.item(), most.item()) == (pytest.approx(0.1 + 0.2, abs=1e-6), pytest.approx(0.5 + 0.4, abs=1e-6))


def test_names_that_nobody_annotated_are_no_targets_of_the_boxes():
    """A kept token beside others changes neither their loss nor gets a gradient of it."""
    head = make_head()
    instances = [make_instances([[8, 8, 40, 40]], [0])]
    own = [[0, 1, 1, 0, 0]]
    results = []
    for phrases, categories in ((own, [0]), ([*own, [0, 0, 0, 1, 0]], [0, KEPT_NAME])):
        prompt = make_prompt(phrases, categories)
        found, anchors, targets, mask = small_batch(head, instances, [prompt])
        logits = [level.detach().requires_grad_() for level in found.token_logits]
        fused, batch = anchor_case(found._replace(token_logits=logits), anchors, targets, mask)
        if len(phrases) > 1:
            batch = batch._replace(kept=torch.tensor([[False, False, False, True, False]]))
        else:
            batch = batch._replace(tokens=batch.tokens._replace(mask=torch.tensor([[True, True, True, False, True]])))
        loss = head.losses(fused, batch)["loss_grounding"]
        loss.backward()
        results.append((loss.item(), logits[0].grad))
    assert results[0][0] == results[1][0] and torch.equal(results[0][1], results[1][1])
    assert not results[1][1][..., 3].any() and results[1][1][..., 1].any()


@pytest.fixture
def model(tiny_cfg):
    torch.manual_seed(0)
    tiny_cfg.MODEL.GLIPV2.GROUNDING.PRIOR_PROB = 0.4
    # Without randomness in training, so that equal models are equal there.
    tiny_cfg.merge_from_list(["MODEL.FPN.DROP_BLOCK_PROB", 0.0, "MODEL.SWIN.DROP_PATH_RATE", 0.0])
    tiny_cfg.merge_from_list(["MODEL.TEXT_ENCODER.DROPOUT", 0.0, "MODEL.GLIPV2.FUSION.DROPOUT", 0.0])
    return build_model(tiny_cfg).train()


def make_input(seed, *categories):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, 64, 64), generator=generator, dtype=torch.uint8)
    token_map = torch.zeros(len(categories), 2 + len(categories), dtype=torch.bool)
    token_map[range(len(categories)), range(1, 1 + len(categories))] = True
    instances = Instances((64, 64), gt_boxes=Boxes(torch.tensor([[8.0, 8, 60, 50]])), gt_classes=torch.tensor([0]))
    prompt = make_prompt(token_map, list(categories))
    return {"image": image, "height": 64, "width": 64, "prompts": [prompt], "instances": instances}


INPUTS = [make_input(0, 0, KEPT_NAME, KEPT_NAME), make_input(1, 0, 1)]


def shift(model):
    """Change what the model says of names and boxes."""
    with torch.no_grad():
        model.head.bias0 += 0.7
        model.head.bbox_pred.bias += 0.3


def test_a_model_equal_to_its_base_loses_nothing_and_a_changed_one_is_pulled_back(model):
    model.keeping = Keeping(frozen_copy(model), KeepWeights(2.0, 3.0))
    losses = model(INPUTS)
    assert losses["loss_keep_names"].item() == pytest.approx(0.0, abs=1e-5)
    assert losses["loss_keep_boxes"].item() == pytest.approx(0.0, abs=1e-4)
    shift(model)
    losses = model(INPUTS)
    (losses["loss_keep_names"] + losses["loss_keep_boxes"]).backward()
    assert losses["loss_keep_names"] > 0.01 and losses["loss_keep_boxes"] > 0.01
    assert model.head.bias0.grad > 0 and all(grad > 0 for grad in model.head.bbox_pred.bias.grad[2:])
    assert all(parameter.grad is None for parameter in model.keeping.base.parameters())
    single = model.keeping
    model.keeping = Keeping(single.base, KeepWeights(1.0, 0.0))
    assert "loss_keep_boxes" not in model(INPUTS)
    torch.testing.assert_close(model(INPUTS)["loss_keep_names"] * 2, losses["loss_keep_names"])


def test_only_images_with_other_names_are_compared_and_only_free_anchors_of_them(model, monkeypatch):
    model.keeping = Keeping(frozen_copy(model), KeepWeights())
    shift(model)
    seen = []

    def record(own, base, anchors, weights, transform):
        seen.append(weights)
        return weights.sum() * 0.0

    monkeypatch.setattr("glipv2_d2.modeling.keeping.boxes_divergence", record)
    model(INPUTS)
    (weights,) = seen
    batch = model.train_batch(INPUTS, "detection", True)
    fused = model.fuse_batch(batch, model.tasks["detection"].reading)
    free = fused.targets(batch).matched_idxs[:1] < 0
    assert weights.shape == free.shape and 0 < (weights > 0).sum() <= free.sum()
    assert not weights[~free].any() and (weights[weights > 0] >= CONFIDENT).all()


def test_losses_are_the_divergences_over_what_the_base_says_on_all_ranks(model, monkeypatch):
    base = frozen_copy(model)
    model.keeping = Keeping(base, KeepWeights(2.0, 3.0))
    shift(model)
    losses = model(INPUTS)
    batch, reading = model.train_batch(INPUTS, "detection", True), model.tasks["detection"].reading
    fused = model.fuse_batch(batch, reading)
    # Of the two images the first alone has other names.
    own = GroundingPredictions(*([level[:1] for level in levels] for levels in fused.predictions))
    images = ImageList(batch.images.tensor[:1], batch.images.image_sizes[:1])
    said = predictions_of(base, images, TokenBatch(batch.tokens.input_ids[:1], batch.tokens.mask[:1]), reading)
    scores = torch.cat(said.token_logits, dim=1)[0, :, batch.kept[0]].sigmoid()
    free = fused.targets(batch).matched_idxs[0] < 0
    best = scores.amax(dim=1)
    weights = best.where(free & (best >= CONFIDENT), 0.0)
    names, _, _ = names_divergence(own.token_logits, said.token_logits, batch.kept[:1])
    places, transform = Boxes.cat(fused.anchors).tensor, model.head.box2box_transform
    boxes = boxes_divergence(own, said, places, weights[None], transform)
    assert scores.sum() > 1 and weights.sum() > 1
    torch.testing.assert_close(losses["loss_keep_names"], 2 * names / scores.sum())
    torch.testing.assert_close(losses["loss_keep_boxes"], 3 * boxes / weights.sum())
    with monkeypatch.context() as patches:
        # As if the base said twice as much on average over the ranks.
        patches.setattr("glipv2_d2.modeling.keeping.reduce_mean", lambda one: 2 * one)
        halves = model(INPUTS)
    for name in ("loss_keep_names", "loss_keep_boxes"):
        torch.testing.assert_close(2 * halves[name], losses[name])
    # A base that says nothing divides by 1.
    with torch.no_grad():
        base.head.bias0 -= 30
    losses = model(INPUTS)
    said = predictions_of(base, images, TokenBatch(batch.tokens.input_ids[:1], batch.tokens.mask[:1]), reading)
    names, mass, _ = names_divergence(own.token_logits, said.token_logits, batch.kept[:1])
    assert mass < 1 and losses["loss_keep_boxes"] == 0
    torch.testing.assert_close(losses["loss_keep_names"], 2 * names)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_to_compare_with_the_base_nobody_waits_for_a_device(model):
    model.keeping = Keeping(frozen_copy(model), KeepWeights())
    shift(model)
    expected = model(INPUTS)
    with pretended_device() as traffic:
        model.to("cuda")
        model.keeping.base.to("cuda")
        model(INPUTS)
        traffic.clear()
        found = model(INPUTS)
    # For the number of positive anchors.
    assert traffic.waits.total() == 1 and not traffic.mixed and not traffic.unpinned, traffic
    for name in ("loss_keep_names", "loss_keep_boxes"):
        torch.testing.assert_close(found[name].numbers, expected[name], rtol=1e-4, atol=1e-4)


def test_a_batch_without_other_names_has_losses_of_zero(model):
    model.keeping = Keeping(frozen_copy(model), KeepWeights())
    losses = model([INPUTS[1]])
    assert losses["loss_keep_names"] == 0 and losses["loss_keep_boxes"] == 0
    sum(losses.values()).backward()


def test_the_base_is_no_part_of_the_model(model):
    names, parameters = list(model.state_dict()), [name for name, _ in model.named_parameters()]
    model.keeping = Keeping(frozen_copy(model), KeepWeights())
    assert list(model.state_dict()) == names and [name for name, _ in model.named_parameters()] == parameters
    model.train()
    assert not any(part.training for part in model.keeping.base.modules())


def test_the_base_of_low_rank_updates_is_a_copy_and_weights_that_never_change_are_shared(tiny_cfg):
    tiny_cfg.merge_from_list(["MODEL.GLIPV2.TUNING.MODE", "lora", "MODEL.GLIPV2.TUNING.LORA.RANK", 2])
    model = build_model(tiny_cfg)
    layer = model.get_submodule("fusion_tower.blocks.0.fusion.attention.visual_proj")
    with torch.no_grad():
        layer.lora.up += 1
    before = layer._parameters["weight"].clone()
    base = frozen_copy(model)
    assert torch.equal(layer._parameters["weight"], before)
    torch.testing.assert_close(
        base.get_submodule("fusion_tower.blocks.0.fusion.attention.visual_proj").weight, layer.weight
    )
    assert "lora" not in " ".join(base.state_dict())
    assert base.head.bbox_pred.weight.data_ptr() == model.head.bbox_pred.weight.data_ptr()


@pytest.mark.parametrize("frozen", [True, False])
def test_what_never_changes_is_computed_once_for_both_and_gives_the_same(tiny_cfg, monkeypatch, frozen):
    if frozen:
        tiny_cfg.merge_from_list(["MODEL.GLIPV2.TUNING.MODE", "linear_probe"])
    torch.manual_seed(0)
    model = build_model(tiny_cfg).train()
    model.keeping = Keeping(frozen_copy(model), KeepWeights())
    calls = []
    visual_features = model.keeping.base.visual_features
    monkeypatch.setattr(
        model.keeping.base, "visual_features", lambda images: calls.append(images) or visual_features(images)
    )
    shift(model)
    torch.manual_seed(1)
    shared = model(INPUTS)
    assert len(calls) == (not frozen) and is_fixed(model.text_encoder) is frozen
    monkeypatch.setattr("glipv2_d2.modeling.keeping.is_fixed", lambda part: False)
    torch.manual_seed(1)
    own = model(INPUTS)
    assert len(calls) == 1 + (not frozen)
    for name in ("loss_keep_names", "loss_keep_boxes"):
        torch.testing.assert_close(shared[name], own[name], rtol=1e-4, atol=1e-5)
