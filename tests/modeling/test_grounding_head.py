"""The grounding head: its formula, its targets and losses on small cases, and its invariants."""

import math

import pytest
import torch
from batch_samples import anchor_case, make_shapes
from detectron2.config import get_cfg
from detectron2.structures import Boxes
from head_samples import SHAPES, TOKEN_MAP, make_anchors, make_head, make_instances, make_prompt, small_batch
from torch.testing import assert_close

from glipv2_d2.config import add_glipv2_config
from glipv2_d2.modeling.heads.grounding_head import GroundingHead
from glipv2_d2.structures import GroundingPredictions

OFFICIAL_NAMES = {
    "bbox_pred.weight": (4, 32, 1, 1),
    "bbox_pred.bias": (4,),
    "centerness.weight": (1, 32, 1, 1),
    "centerness.bias": (1,),
    **{f"scales.{level}.scale": (1,) for level in range(5)},
    "text_projection.weight": (32, 48),
    "text_projection.bias": (32,),
    "log_scale": (1,),
    "bias_lang": (48,),
    "bias0": (1,),
}


# ---- predictions: formula, initial state, precision


def test_logit_is_the_scaled_dot_product_plus_the_token_bias():
    # Text (3, 4) has the norm 5: e = (0.6, 0.8). Token vector W (e / 2) + b = (0.3, 0.8) + (0.1, 0) = (0.4, 0.8).
    # Token bias 0.6 * 1 + 0.8 * 2 - 0.5 = 1.7. Region (10, 5): product 8, divided by e^log 2 = 2: 4 + 1.7.
    head = make_head(channels=2, language_dim=2, num_levels=1)
    with torch.no_grad():
        head.text_projection.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        head.text_projection.bias.copy_(torch.tensor([0.1, 0.0]))
        head.bias_lang.copy_(torch.tensor([1.0, 2.0]))
        head.bias0.fill_(-0.5)
        head.log_scale.fill_(math.log(2))
        predictions = head([torch.tensor([10.0, 5.0]).view(1, 2, 1, 1)], torch.tensor([[[3.0, 4.0]]]))
    assert_close(predictions.token_logits[0], torch.tensor([[[5.7]]]))


def test_positions_are_row_major_and_each_level_has_its_scale():
    head = make_head(channels=1, num_levels=2)
    features = [torch.arange(6.0).view(1, 1, 2, 3), torch.ones(1, 1, 1, 1)]
    with torch.no_grad():
        head.bbox_pred.weight.copy_(torch.arange(1.0, 5).view(4, 1, 1, 1))
        head.centerness.weight.fill_(1)
        head.scales[1].scale.fill_(7)
        predictions = head(features, torch.rand(1, 3, 6))
    assert predictions.box_deltas[0][0, 4].tolist() == [4.0, 8.0, 12.0, 16.0]
    assert predictions.box_deltas[1][0, 0].tolist() == [7.0, 14.0, 21.0, 28.0]
    assert predictions.centerness_logits[0].tolist() == [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]]


def test_untrained_head_gives_each_token_the_prior():
    head = make_head(prior_prob=0.2, log_scale=-1.0, level_scale=5.0)
    features = [torch.zeros(1, 8, 2, 2), torch.zeros(1, 8, 1, 1)]
    scores = head(features, torch.rand(1, 3, 6)).token_logits[0].sigmoid()
    assert_close(scores, torch.full((1, 4, 3), 0.2))
    assert head.log_scale.tolist() == [-1.0] and [scale.scale.tolist() for scale in head.scales] == [[5.0], [5.0]]
    for conv in (head.bbox_pred, head.centerness):
        assert torch.equal(conv.bias, torch.zeros_like(conv.bias)) and 0 < conv.weight.std() < 0.03


def test_parameters_have_the_agreed_names_and_shapes():
    assert {name: tuple(value.shape) for name, value in make_head(32, 48, 5).named_parameters()} == OFFICIAL_NAMES


def test_logits_are_clamped_to_the_range_of_half_precision():
    head = make_head(num_levels=1)
    sign = torch.tensor([1.0, -1.0]).repeat_interleave(8).view(2, 8, 1, 1)
    with torch.no_grad():
        head.text_projection.weight.zero_()
        head.text_projection.bias.fill_(1)
        logits = head([sign * 1e6], torch.rand(2, 3, 6)).token_logits[0]
    assert logits.flatten().tolist() == [50_000.0] * 3 + [-50_000.0] * 3


def test_text_of_zeros_in_half_precision_has_finite_logits():
    # 1e-12, the least norm to divide by, is 0 in half precision.
    predictions = make_head(num_levels=1)([torch.rand(1, 8, 2, 2)], torch.zeros(1, 3, 6, dtype=torch.float16))
    assert predictions.token_logits[0].isfinite().all()


def test_head_runs_in_the_precision_of_its_parameters():
    predictions = make_head(num_levels=1).double()([torch.rand(1, 8, 2, 2).double()], torch.rand(1, 3, 6).double())
    assert [level.dtype for levels in predictions for level in levels] == [torch.float64] * 3


def test_other_number_of_levels_is_refused():
    with pytest.raises(ValueError, match="zip"):
        make_head(num_levels=2)([torch.rand(1, 8, 2, 2)], torch.rand(1, 3, 6))


@pytest.mark.parametrize("prior_prob", [0.0, 1.0])
def test_prior_out_of_range_is_refused(prior_prob):
    with pytest.raises(ValueError, match=rf"PRIOR_PROB: expected a number in \(0, 1\), found {prior_prob}"):
        make_head(prior_prob=prior_prob)


def test_config_decides_every_argument():
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.merge_from_list(
        [
            *("MODEL.GLIPV2.TEST.DETECTIONS_PER_PROMPT", 13, "MODEL.GLIPV2.MATCHER.TOPK", 5),
            *("MODEL.GLIPV2.GROUNDING.PRIOR_PROB", 0.5, "MODEL.GLIPV2.GROUNDING.LOG_SCALE", -1.0),
            *("MODEL.GLIPV2.BOX.LEVEL_SCALE", 6.0, "MODEL.TEXT_ENCODER.MAX_TOKENS", 77),
            *("MODEL.GLIPV2.GROUNDING.FOCAL_ALPHA", 0.1, "MODEL.GLIPV2.GROUNDING.FOCAL_GAMMA", 1.5),
            *("MODEL.GLIPV2.GROUNDING.LOSS_WEIGHT", 7.0, "MODEL.GLIPV2.BOX.REG_LOSS_WEIGHT", 8.0),
            *("MODEL.GLIPV2.BOX.CENTERNESS_LOSS_WEIGHT", 9.0, "MODEL.GLIPV2.TEST.SCORE_THRESH", 0.3),
            *("MODEL.GLIPV2.TEST.TOPK_CANDIDATES", 11, "MODEL.GLIPV2.TEST.NMS_THRESH", 0.4),
            *("MODEL.GLIPV2.TEST.SCORE_AGGREGATION", "max", "TEST.DETECTIONS_PER_IMAGE", 12),
        ]
    )
    head = GroundingHead(cfg, make_shapes(tower_channels=4, language_dim=3, strides=(8, 16)))
    selector = head.selector
    assert head.box2box_transform.weights == selector.box2box_transform.weights == (10.0, 10.0, 5.0, 5.0)
    assert (head.matcher.topk, head.no_object_token, len(head.scales)) == (5, 76, 2)
    assert (head.bias0.item(), head.log_scale.item(), head.scales[0].scale.item()) == (0.0, -1.0, 6.0)
    assert (head.focal_alpha, head.focal_gamma, head.naming_loss_weight) == (0.1, 1.5, 7.0)
    assert (head.box_reg_loss_weight, head.centerness_loss_weight) == (8.0, 9.0)
    assert (selector.score_thresh, selector.topk_candidates, selector.nms_thresh) == (0.3, 11, 0.4)
    assert (selector.score_aggregation, selector.detections_per_image) == ("max", 13)


# ---- targets and losses of small cases


def test_boxes_train_the_tokens_of_their_phrase_and_the_rest_none():
    head = make_head()
    instances = [make_instances([[2, 3, 50, 47], [1, 5, 63, 60]], [1, 0]), make_instances([[4, 6, 60, 55]], [0])]
    prompts = [make_prompt(TOKEN_MAP), make_prompt([[1, 0, 1]])]
    targets = head.label_anchors(make_anchors(SHAPES), instances, prompts, num_tokens=5)
    assert targets.token_targets.shape == (2, 80, 5) and targets.token_targets.dtype == torch.bool
    expected = {(0, 0): TOKEN_MAP[1], (0, 1): TOKEN_MAP[0], (1, 0): [1, 0, 1, 0, 0]}
    seen = set()
    for image, row in enumerate(targets.matched_idxs.tolist()):
        for anchor, box in enumerate(row):
            seen.add((image, box))
            tokens = expected.get((image, box), [0] * 5)
            assert targets.token_targets[image, anchor].int().tolist() == tokens
            corners = instances[image].gt_boxes.tensor[box].tolist() if box >= 0 else [0.0] * 4
            assert targets.gt_boxes[image, anchor].tolist() == corners
    assert seen == {(0, -1), (0, 0), (0, 1), (1, -1), (1, 0)}


def test_image_without_boxes_has_only_negatives():
    head = make_head()
    instances = [make_instances([], []), make_instances([[4, 6, 60, 55]], [0])]
    targets = head.label_anchors(make_anchors(SHAPES), instances, [make_prompt(TOKEN_MAP)] * 2, num_tokens=5)
    assert targets.matched_idxs[0].tolist() == [-1] * 80 and not targets.token_targets[0].any()
    assert (targets.matched_idxs[1] >= 0).any() and targets.token_targets[1].any()


@pytest.mark.parametrize(("no_object_token", "column"), [(4, 4), (5, None), (None, None)])
def test_unmatched_anchors_have_the_no_object_token_if_the_prompt_reaches_it(no_object_token, column):
    head = make_head(no_object_token=no_object_token)
    instances = [make_instances([[4, 6, 60, 55]], [1])]
    targets = head.label_anchors(make_anchors(SHAPES), instances, [make_prompt(TOKEN_MAP)], num_tokens=5)
    negative = targets.token_targets[targets.matched_idxs < 0]
    assert torch.equal(negative.any(dim=0), torch.tensor([index == column for index in range(5)]))
    assert targets.token_targets[targets.matched_idxs >= 0].all(dim=0).tolist() == [False, False, False, True, False]


def test_batch_without_boxes_has_finite_losses_that_reach_every_parameter():
    head = make_head()
    losses = head.losses(*anchor_case(*small_batch(head, [make_instances([], [])] * 2, [make_prompt(TOKEN_MAP)] * 2)))
    assert losses["loss_box_reg"].item() == 0 and losses["loss_centerness"].item() == 0
    assert 0 < losses["loss_grounding"].item() < float("inf")
    sum(losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert head.bias0.grad.abs() > 0 and head.text_projection.weight.grad.abs().sum() > 0


def test_losses_reach_every_parameter():
    head = make_head()
    # A box of the size of the anchors of either level, so that each level has positives.
    instances = [make_instances([[0, 0, 64, 64]], [0]), make_instances([[-32, -32, 96, 96]], [1])]
    losses = head.losses(*anchor_case(*small_batch(head, instances, [make_prompt(TOKEN_MAP)] * 2)))
    for name, reached in {
        "loss_grounding": {"text_projection.weight", "text_projection.bias", "log_scale", "bias_lang", "bias0"},
        "loss_box_reg": {"bbox_pred.weight", "bbox_pred.bias", "scales.0.scale", "scales.1.scale"},
        "loss_centerness": {"centerness.weight", "centerness.bias"},
    }.items():
        grads = torch.autograd.grad(losses[name], list(head.parameters()), retain_graph=True, allow_unused=True)
        moved = {key for (key, _), grad in zip(head.named_parameters(), grads) if grad is not None and grad.any()}
        assert moved == reached


def test_losses_carry_their_weights():
    plain = make_head(grounding_loss_weight=1.0, box_reg_loss_weight=1.0, centerness_loss_weight=1.0)
    heavy = make_head(grounding_loss_weight=2.0, box_reg_loss_weight=3.0, centerness_loss_weight=4.0)
    heavy.load_state_dict(plain.state_dict())
    instances, prompts = [make_instances([[4, 6, 60, 55]], [0])], [make_prompt(TOKEN_MAP)]
    one, other = (head.losses(*anchor_case(*small_batch(head, instances, prompts))) for head in (plain, heavy))
    for name, weight in {"loss_grounding": 2, "loss_box_reg": 3, "loss_centerness": 4}.items():
        assert one[name] > 0
        assert_close(other[name], weight * one[name])


def test_padding_of_the_prompt_changes_no_loss():
    head = make_head()
    instances, prompts = [make_instances([[4, 6, 60, 55]], [1])], [make_prompt(TOKEN_MAP)]
    predictions, anchors, targets, mask = small_batch(head, instances, prompts)
    expected = head.losses(*anchor_case(predictions, anchors, targets, mask))
    padded = [torch.cat((level, torch.full((*level.shape[:2], 3), 9.0)), dim=2) for level in predictions.token_logits]
    targets = head.label_anchors(anchors, instances, prompts, num_tokens=8)
    mask = torch.cat((mask, torch.zeros(1, 3, dtype=torch.bool)), dim=1)
    losses = head.losses(*anchor_case(predictions._replace(token_logits=padded), anchors, targets, mask))
    assert {name: loss.item() for name, loss in losses.items()} == {k: loss.item() for k, loss in expected.items()}


def test_perfect_boxes_have_no_box_loss():
    head = make_head()
    instances, prompts = [make_instances([[4, 6, 60, 55]], [1])], [make_prompt(TOKEN_MAP)]
    predictions, anchors, targets, mask = small_batch(head, instances, prompts)
    all_anchors = Boxes.cat(anchors).tensor
    boxes = torch.tensor([[4.0, 6.0, 60.0, 55.0]]).expand(len(all_anchors), 4)
    deltas = head.box2box_transform.get_deltas(all_anchors, boxes)[None].split([64, 16], dim=1)
    losses = head.losses(*anchor_case(predictions._replace(box_deltas=list(deltas)), anchors, targets, mask))
    assert_close(losses["loss_box_reg"], torch.tensor(0.0), atol=1e-5, rtol=0)


def test_losses_are_in_single_precision_under_and_after_autocast():
    head = make_head()
    instances, prompts = [make_instances([[4, 6, 60, 55]], [1])], [make_prompt(TOKEN_MAP)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predictions, anchors, targets, mask = small_batch(head, instances, prompts)
        under = head.losses(*anchor_case(predictions, anchors, targets, mask))
    assert predictions.token_logits[0].dtype == predictions.centerness_logits[0].dtype == torch.bfloat16
    after = head.losses(*anchor_case(predictions, anchors, targets, mask))
    single = GroundingPredictions(*([level.float() for level in levels] for levels in predictions))
    for name, expected in head.losses(*anchor_case(single, anchors, targets, mask)).items():
        assert under[name].dtype == after[name].dtype == torch.float32
        assert torch.equal(under[name], expected) and torch.equal(after[name], expected)


def test_box_beyond_the_reach_of_its_anchor_asks_for_no_more_than_the_reach():
    # Sizes are decoded to at most 1000 / 16 times those of the anchor: 500 of the 600 pixels here.
    head = make_head(num_levels=1)
    anchors, prompts = [Boxes(torch.tensor([[296.0, 296.0, 304.0, 304.0]]))], [make_prompt([[1]])]
    targets = head.label_anchors(anchors, [make_instances([[0, 0, 600, 600]], [0])], prompts, num_tokens=1)
    deltas = torch.tensor([[[0.0, 0.0, 99.0, 99.0]]])
    predictions = GroundingPredictions([torch.zeros(1, 1, 1)], [deltas], [torch.zeros(1, 1)])
    losses = head.losses(*anchor_case(predictions, anchors, targets, torch.ones(1, 1, dtype=torch.bool)))
    assert targets.matched_idxs.tolist() == [[0]]
    assert_close(losses["loss_box_reg"], torch.tensor(0.0), atol=1e-6, rtol=0)


# ---- inference


def test_image_scores_alone_as_it_does_beside_other_prompts():
    head = make_head(test_score_thresh=0.0, prior_prob=0.3)
    generator = torch.Generator().manual_seed(4)
    features = [torch.randn(3, 8, *shape, generator=generator) for shape in SHAPES]
    text = torch.randn(3, 5, 6, generator=generator)
    prompts = [make_prompt(TOKEN_MAP), make_prompt([[1, 0, 1]], [7]), make_prompt([[0, 1], [1, 0], [1, 1]])]
    anchors, sizes = make_anchors(SHAPES), [(64, 64), (60, 50), (33, 64)]
    with torch.no_grad():
        together = head.inference(head(features, text), anchors, sizes, prompts)
        for index, prompt in enumerate(prompts):
            one = slice(index, index + 1)
            predictions = head([level[one] for level in features], text[one, : len(prompt)])
            (alone,) = head.inference(predictions, anchors, sizes[one], [prompt])
            assert len(alone) > 5 and alone.image_size == sizes[index]
            assert_close(together[index].scores, alone.scores, atol=1e-6, rtol=0)
            assert_close(together[index].pred_boxes.tensor, alone.pred_boxes.tensor, atol=1e-4, rtol=0)
            assert torch.equal(together[index].pred_classes, alone.pred_classes)
            assert torch.equal(alone.pred_classes, prompt.category_ids[alone.phrase_ids])


# ---- GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_gives_the_losses_gradients_and_detections_of_the_cpu():
    instances = [make_instances([[4, 6, 60, 55], [20, 1, 63, 50]], [0, 1]), make_instances([], [])]
    prompts = [make_prompt(TOKEN_MAP), make_prompt([[1, 0, 1]])]
    outcomes = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        head = make_head(prior_prob=0.3)
        predictions, anchors, targets, mask = small_batch(head, instances, prompts)
        head.to(device)
        predictions = GroundingPredictions(*([x.detach().to(device).requires_grad_() for x in y] for y in predictions))
        anchors = [boxes.to(device) for boxes in anchors]
        targets = head.label_anchors(anchors, [image.to(device) for image in instances], prompts, 5)
        losses = head.losses(*anchor_case(predictions, anchors, targets, mask.to(device)))
        grads = torch.autograd.grad(sum(losses.values()), sum(predictions, start=[]))
        detections = head.inference(predictions, anchors, [(64, 64)] * 2, prompts)
        tensors = [x for result in detections for x in (result.pred_boxes.tensor, result.scores, result.pred_classes)]
        outcomes.append([x.cpu() for x in (*losses.values(), *grads, *targets, *tensors)])
    for ours, expected in zip(*outcomes, strict=True):
        assert_close(ours, expected, atol=1e-5, rtol=1e-4)
