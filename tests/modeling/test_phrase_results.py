import pytest
import torch
from detection_cases import HEIGHT, WIDTH, box_mask, make_instances

from glipv2_d2.modeling.phrase_results import phrase_boxes, referred_mask, tokens_of_span

LEFT, RIGHT, FAR = [0.0, 0.0, 40.0, 40.0], [60.0, 0.0, 100.0, 40.0], [0.0, 60.0, 30.0, 100.0]
LEFT_XYWH, RIGHT_XYWH = [0, 0, 40, 40], [60, 0, 40, 40]


def test_boxes_of_a_phrase_are_ranked_by_their_mean_score():
    boxes = torch.tensor([[LEFT, RIGHT], [FAR, LEFT]])
    scores = torch.tensor([[0.6, 0.5], [0.7, 0.2]])
    found, means = phrase_boxes(boxes, scores)
    # Left: (0.6 + 0.2) / 2; far: 0.7 / 2; right: 0.5 / 2.
    assert found.tolist() == [LEFT, FAR, RIGHT]
    assert means.tolist() == pytest.approx([0.4, 0.35, 0.25])


def test_tokens_that_chose_neighbouring_boxes_of_a_thing_agree():
    # One pixel apart: the IoU is 39 / 41. Of both boxes of the thing the first by its coordinates stays.
    beside = [1.0, 0.0, 41.0, 40.0]
    boxes, scores = phrase_boxes(torch.tensor([[LEFT], [beside]]), torch.tensor([[0.9], [0.7]]))
    assert boxes.tolist() == [LEFT] and scores.tolist() == pytest.approx([0.8])


@pytest.mark.parametrize(
    ("right", "expected"),
    [
        # An IoU of 60 / 100 is enough: both have the mean of 0.8 and 0.6.
        (60.0, [0.7, 0.7, 0.1]),
        (59.0, [0.4, 0.3, 0.1]),
    ],
)
def test_tokens_agree_from_the_overlap_of_the_suppression_on(right, expected):
    # The box FAR is of one token alone; RIGHT has the score 0 and is none.
    token_boxes = torch.tensor([[[0.0, 0.0, 100.0, 10.0], FAR], [[0.0, 0.0, right, 10.0], RIGHT]])
    boxes, scores = phrase_boxes(token_boxes, torch.tensor([[0.8, 0.2], [0.6, 0.0]]))
    assert scores.tolist() == pytest.approx(expected)
    assert boxes.tolist()[2] == FAR and sorted(box[2] for box in boxes.tolist()[:2]) == [right, 100.0]


def test_a_token_counts_for_a_box_by_the_one_that_overlaps_it_most():
    # Both boxes of the second token overlap that of the first, with an IoU of 0.8 and of 0.9.
    first, wide, near = [0.0, 0.0, 100.0, 10.0], [0.0, 0.0, 80.0, 10.0], [0.0, 0.0, 90.0, 10.0]
    boxes, scores = phrase_boxes(torch.tensor([[first, FAR], [wide, near]]), torch.tensor([[0.9, 0.0], [0.8, 0.5]]))
    # Wide: (0.9 + 0.8) / 2; first and near: (0.9 + 0.5) / 2.
    assert boxes.tolist() == [wide] and scores.tolist() == pytest.approx([0.85])


def test_places_without_a_box_are_no_boxes():
    nothing = [0.0, 0.0, 0.0, 0.0]
    boxes, scores = phrase_boxes(torch.tensor([[LEFT, nothing], [nothing, nothing]]), torch.tensor([[0.5, 0], [0, 0]]))
    assert boxes.tolist() == [LEFT] and scores.tolist() == [0.25]
    # A box with the score 0 does not stand for what another token has there.
    boxes, scores = phrase_boxes(torch.tensor([[LEFT], [[0.0, 0.0, 40.0, 39.0]]]), torch.tensor([[0.5], [0.0]]))
    assert boxes.tolist() == [LEFT] and scores.tolist() == [0.25]
    boxes, scores = phrase_boxes(torch.tensor([[nothing]]), torch.tensor([[0.0]]))
    assert boxes.shape == (0, 4) and scores.shape == (0,)


def test_a_box_that_a_token_has_twice_counts_by_its_higher_score():
    boxes, scores = phrase_boxes(torch.tensor([[LEFT, RIGHT, LEFT]]), torch.tensor([[0.3, 0.4, 0.2]]))
    assert boxes.tolist() == [RIGHT, LEFT] and scores.tolist() == pytest.approx([0.4, 0.3])


def test_equally_good_boxes_are_sorted_by_coordinates():
    boxes, _ = phrase_boxes(torch.tensor([[RIGHT, FAR, LEFT]]), torch.full((1, 3), 0.5))
    assert boxes.tolist() == [LEFT, FAR, RIGHT]


def test_tokens_of_a_span_are_those_that_share_a_character():
    spans = [None, (0, 1), (2, 5), (5, 7), (8, 11), None]
    assert tokens_of_span(spans, (2, 7)) == [2, 3]
    assert tokens_of_span(spans, (4, 9)) == [2, 3, 4]
    assert tokens_of_span(spans, (7, 8)) == []


@pytest.mark.parametrize(
    ("detections", "expected"),
    [
        (
            [(1, 0.9, LEFT_XYWH), (1, 0.5, RIGHT_XYWH), (1, 0.49, [0, 60, 9, 9])],
            box_mask(LEFT_XYWH) | box_mask(RIGHT_XYWH),
        ),
        ([(1, 0.3, LEFT_XYWH), (1, 0.4, RIGHT_XYWH)], box_mask(RIGHT_XYWH)),  # None passes: the best.
        ([(1, 0.4, RIGHT_XYWH), (1, 0.4, LEFT_XYWH)], box_mask(RIGHT_XYWH)),  # The first of the best.
        ([], torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)),
    ],
)
def test_phrase_refers_to_all_that_is_sure_or_to_the_best(detections, expected):
    instances = make_instances(detections)
    mask = referred_mask(instances, 0.5)
    assert mask.dtype == torch.bool and torch.equal(mask, expected)
    assert torch.equal(instances.scores, make_instances(detections).scores)
