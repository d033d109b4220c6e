import pytest
import torch
from batch_samples import anchor_case, make_shapes
from head_samples import SHAPES, make_anchors, make_class_head, make_instances

from glipv2_d2.modeling.heads.class_head import ClassHead
from glipv2_d2.structures import GroundingPredictions


def make_levels(num_images=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(num_images, 8, *shape, generator=generator) for shape in SHAPES]


def label(head, instances):
    return head.label_anchors(make_anchors(SHAPES), instances, [head.class_prompt()] * len(instances), head.num_classes)


def losses_of(head, predictions, instances):
    mask = torch.ones(len(instances), head.num_classes, dtype=torch.bool)
    return head.losses(*anchor_case(predictions, make_anchors(SHAPES), label(head, instances), mask))


def test_logits_are_a_linear_function_of_each_position():
    head = make_class_head()
    torch.nn.init.normal_(head.cls_logits.weight)
    levels = make_levels()
    predictions = head(levels)
    weight, bias = head.cls_logits.weight[:, :, 0, 0], head.cls_logits.bias
    for level, logits in zip(levels, predictions.token_logits, strict=True):
        height, width = level.shape[2:]
        for row, column in [(0, 0), (1, 2), (height - 1, width - 1)]:
            expected = level[:, :, row, column] @ weight.T + bias
            torch.testing.assert_close(logits[:, row * width + column], expected)
    assert [tuple(deltas.shape) for deltas in predictions.box_deltas] == [(2, 64, 4), (2, 16, 4)]
    assert [tuple(logits.shape) for logits in predictions.centerness_logits] == [(2, 64), (2, 16)]


def test_untrained_anchor_gives_every_class_the_prior_probability():
    head = make_class_head(prior_prob=0.2)
    probabilities = head([torch.zeros(1, 8, *shape) for shape in SHAPES]).token_logits[0].sigmoid()
    torch.testing.assert_close(probabilities, torch.full((1, 64, 3), 0.2))
    assert 0.005 < head.cls_logits.weight.std() < 0.02 and not head.bbox_pred.bias.any()


def test_target_of_an_anchor_is_the_class_of_its_box_alone():
    head = make_class_head()
    targets = label(head, [make_instances([[4, 6, 60, 55]], [2]), make_instances([], [])])
    positive = targets.matched_idxs >= 0
    assert positive[0].any() and not positive[1].any()
    assert targets.token_targets.shape == (2, 80, 3)
    assert targets.token_targets[positive].tolist() == [[False, False, True]] * int(positive.sum())
    assert not targets.token_targets[~positive].any()


def test_class_loss_is_the_focal_loss_over_all_anchors_and_classes_per_positive_anchor():
    head = make_class_head(focal_alpha=0.3, focal_gamma=1.5, class_loss_weight=2.0)
    torch.nn.init.normal_(head.cls_logits.weight)
    instances = [make_instances([[4, 6, 60, 55]], [1]), make_instances([[0, 0, 32, 64]], [0])]
    predictions = head(make_levels())
    losses = losses_of(head, predictions, instances)
    targets = label(head, instances)
    expected, num_positive = 0.0, 0
    probabilities = torch.cat(predictions.token_logits, dim=1).sigmoid()
    for i, image in enumerate(instances):
        for anchor, box in enumerate(targets.matched_idxs[i].tolist()):
            num_positive += box >= 0
            for index in range(3):
                p = probabilities[i, anchor, index]
                if box >= 0 and image.gt_classes[box] == index:
                    expected = expected - 0.3 * (1 - p) ** 1.5 * p.log()
                else:
                    expected = expected - 0.7 * p**1.5 * (1 - p).log()
    torch.testing.assert_close(losses["loss_class"], 2.0 * expected / num_positive, rtol=1e-4, atol=1e-4)
    assert set(losses) == {"loss_class", "loss_box_reg", "loss_centerness"}


def test_detections_have_the_class_of_their_logits_and_its_probability_times_centerness():
    head = make_class_head(test_score_thresh=0.3)
    predictions = GroundingPredictions(
        [torch.full((1, 64, 3), -9.0), torch.full((1, 16, 3), -9.0)],
        [torch.zeros(1, 64, 4), torch.zeros(1, 16, 4)],
        [torch.full((1, 64), 0.0), torch.full((1, 16), 0.0)],
    )
    predictions.token_logits[0][0, 27, 2] = 2.0
    predictions.token_logits[1][0, 5, 1] = 1.0
    # Below the threshold.
    predictions.token_logits[1][0, 6, 0] = -1.0
    (found,) = head.inference(predictions, make_anchors(SHAPES), [(64, 64)], [head.class_prompt()])
    assert found.pred_classes.tolist() == [2, 1]
    # sqrt(sigmoid(2) / 2), sqrt(sigmoid(1) / 2).
    torch.testing.assert_close(found.scores, torch.tensor([0.66363, 0.60459]), rtol=0, atol=1e-4)


def test_config_decides_everything(tiny_cfg):
    tiny_cfg.merge_from_list(
        [
            *(
                "MODEL.GLIPV2.CLASS_HEAD.NUM_CLASSES",
                7,
                "MODEL.GLIPV2.GROUNDING.PRIOR_PROB",
                0.3,
                "TEST.DETECTIONS_PER_IMAGE",
                9,
            ),
            *("MODEL.GLIPV2.GROUNDING.LOSS_WEIGHT", 3.0, "MODEL.GLIPV2.GROUNDING.FOCAL_ALPHA", 0.4),
            *("MODEL.GLIPV2.TEST.SCORE_THRESH", 0.2, "MODEL.GLIPV2.BOX.LEVEL_SCALE", 5.0),
        ]
    )
    head = ClassHead(tiny_cfg, make_shapes(tower_channels=8, strides=(8, 16, 32, 64)))
    assert (head.num_classes, head.naming_loss_weight, head.focal_alpha, len(head.scales)) == (7, 3.0, 0.4, 4)
    assert (head.selector.score_thresh, head.selector.detections_per_image) == (0.2, 9)
    assert {scale.scale.item() for scale in head.scales} == {5.0}
    torch.testing.assert_close(head.cls_logits.bias.sigmoid(), torch.full((7,), 0.3))


def test_no_class_is_refused():
    with pytest.raises(ValueError, match=r"MODEL\.GLIPV2\.CLASS_HEAD\.NUM_CLASSES: expected at least 1, found 0"):
        make_class_head(num_classes=0)
