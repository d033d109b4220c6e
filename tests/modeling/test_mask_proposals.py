"""The boxes that the detector proposes for the training of masks."""

import torch
from batch_samples import make_batch, make_fused
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from head_samples import make_head, make_prompt, small_batch
from torch.testing import assert_close

from glipv2_d2.modeling.heads.detection_selector import DetectionSelector
from glipv2_d2.modeling.heads.mask_proposals import select_proposals
from glipv2_d2.structures import GroundingPredictions

SIZE = (20, 200_000)


def make_selector(**changes):
    settings = {
        "score_thresh": 0.9,
        "topk_candidates": 1,
        "nms_thresh": 0.6,
        "score_aggregation": "mean",
        "detections_per_image": 1,
    }
    return DetectionSelector(box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)), **settings | changes)


def one_level(scores):
    """Predictions of N images with the given (N, R, T) token scores at boxes of 10 x 10 pixels that do not touch."""
    scores = torch.as_tensor(scores, dtype=torch.float32)
    num_images, count, _ = scores.shape
    left = torch.arange(count) * 20.0
    anchors = torch.stack((left, torch.zeros(count), left + 10, torch.full((count,), 10.0)), dim=1)
    certain = torch.full((num_images, count), 50.0)
    return GroundingPredictions([scores.logit()], [torch.zeros(num_images, count, 4)], [certain]), [Boxes(anchors)]


def make_instances(classes, has_mask=None):
    instances = Instances(SIZE)
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    instances.gt_has_mask = torch.tensor(has_mask if has_mask is not None else [True] * len(classes), dtype=torch.bool)
    return instances


def places(boxes):
    """The anchors that boxes are."""
    return (boxes.tensor[:, 0] / 20).tolist()


TWO = make_prompt([[1, 0], [0, 1]])


def test_proposals_are_those_of_phrases_with_a_mask_best_first():
    predictions, anchors = one_level([[[0.3, 0.7], [0.6, 0.8], [0.01, 0.9]]])

    def propose(*arguments):
        (boxes,) = select_proposals(predictions, anchors, [SIZE], [TWO], [make_instances(*arguments)], make_selector())
        return places(boxes)

    assert propose([0, 0]) == [1, 0, 2]
    assert propose([1]) == [2, 1, 0]
    # A phrase with a mask on one of its boxes, and one without.
    assert propose([1, 0, 0], [False, False, True]) == [1, 0, 2]
    assert propose([0, 1], [False, False]) == []
    assert propose([]) == []


def test_a_box_may_be_proposed_for_each_phrase():
    predictions, anchors = one_level([[[0.3, 0.7], [0.6, 0.8]]])
    (boxes,) = select_proposals(predictions, anchors, [SIZE], [TWO], [make_instances([1, 0])], make_selector())
    assert places(boxes) == [1, 0, 1, 0]


def test_numbers_are_those_of_training():
    scores = torch.linspace(0.001, 0.999, 4000)[None, :, None]
    predictions, anchors = one_level(scores)
    prompt, instances = make_prompt([[1]]), make_instances([0])
    (boxes,) = select_proposals(predictions, anchors, [SIZE], [prompt], [instances], make_selector())
    assert places(boxes) == list(range(3999, 2999, -1))
    # Overlapping boxes are suppressed as at test time: 3000 candidates, and 2 of 3000 places.
    at_two_places = [Boxes(anchors[0].tensor[torch.arange(4000) % 2])]
    (boxes,) = select_proposals(predictions, at_two_places, [SIZE], [prompt], [instances], make_selector())
    assert places(boxes) == [1, 0]


def test_images_are_selected_alone():
    predictions, anchors = one_level([[[0.3, 0.7], [0.6, 0.8]], [[0.2, 0.4], [0.1, 0.5]]])
    both = select_proposals(
        predictions, anchors, [SIZE, (20, 15)], [TWO, TWO], [make_instances([0]), make_instances([0])], make_selector()
    )
    assert places(both[0]) == [1, 0]
    # The second image ends before the second anchor, which is cut to its last column.
    assert both[1].tensor.tolist() == [[0, 0, 10, 10], [14, 0, 15, 10]]


def test_grounding_head_proposes_with_its_own_selection():
    head = make_head()
    prompt = make_prompt([[0, 1, 1, 0, 0], [0, 0, 0, 1, 0]])
    instances = make_instances([0])
    instances.gt_boxes = Boxes(torch.tensor([[4.0, 4.0, 40.0, 40.0]]))
    predictions, anchors, _, _ = small_batch(head, [instances], [prompt])
    (boxes,) = head.proposals(make_fused(predictions=predictions, anchors=anchors), make_batch([prompt], [instances]))
    assert len(boxes) > 1 and not boxes.tensor.requires_grad
    (expected,) = select_proposals(predictions, anchors, [(64, 64)], [prompt], [instances], head.selector)
    assert_close(boxes.tensor, expected.tensor)
