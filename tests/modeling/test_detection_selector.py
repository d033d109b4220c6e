"""The selection of detections, on predictions made by hand."""

import numpy as np
import pytest
import torch
from conftest import ASSETS
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes
from torch.testing import assert_close

from glipv2_d2.modeling.heads.detection_selector import DetectionSelector
from glipv2_d2.structures import GroundingPredictions, TokenizedPrompt

NEVER = -50_000.0
NAN = float("nan")


def make_prompt(num_phrases, num_tokens=None):
    """Phrase p is spelled by token p alone, and has the category 10 + p."""
    num_tokens = num_tokens or num_phrases
    return TokenizedPrompt(
        input_ids=torch.arange(num_tokens),
        phrase_token_map=torch.eye(num_phrases, num_tokens, dtype=torch.bool),
        category_ids=torch.arange(num_phrases) + 10,
        phrases=tuple("abcdefgh"[:num_phrases]),
    )


def make_selector(**changes):
    settings = {
        "score_thresh": 0.05,
        "topk_candidates": 1000,
        "nms_thresh": 0.6,
        "score_aggregation": "mean",
        "detections_per_image": 100,
    }
    return DetectionSelector(box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)), **settings | changes)


def one_level(boxes, scores, centerness=None):
    """Predictions whose decoded boxes, phrase scores and centerness are given."""
    boxes = torch.as_tensor(boxes, dtype=torch.float32)
    scores = torch.as_tensor(scores, dtype=torch.float32)
    centerness = torch.ones(len(boxes)) if centerness is None else torch.tensor(centerness)
    predictions = GroundingPredictions(
        [scores.logit().clamp(min=NEVER)], [torch.zeros(len(boxes), 4)], [centerness.logit()]
    )
    return predictions, [Boxes(boxes)]


def apart(count):
    """Boxes of 10 x 10 pixels that do not touch, inside an image of 20 x 2000."""
    left = torch.arange(count) * 20.0
    return torch.stack((left, torch.zeros(count), left + 10, torch.full((count,), 10.0)), dim=1)


SIZE = (20, 2000)


def found(result):
    """Left edges and phrases of the detections, in the order of the scores."""
    return [(int(box[0]) // 20, int(phrase)) for box, phrase in zip(result.pred_boxes.tensor, result.phrase_ids)]


def test_threshold_is_strict_and_before_the_centerness():
    # Logits whose sigmoid is exactly 0.5: equal to the threshold, not above it.
    predictions, anchors = one_level(apart(3), [[0.5], [0.75], [0.25]], [1.0, 0.01, 1.0])
    result = make_selector(score_thresh=0.5)(predictions, anchors, SIZE, make_prompt(1))
    assert found(result) == [(1, 0)]
    assert_close(result.scores, torch.tensor([(0.75 * 0.01) ** 0.5]))


def test_scores_are_roots_of_products_in_descending_order_with_category_ids():
    predictions, anchors = one_level(apart(2), [[0.36, 0.04], [0.01, 0.64]], [0.25, 0.49])
    result = make_selector(score_thresh=0.02)(predictions, anchors, SIZE, make_prompt(2))
    assert found(result) == [(1, 1), (0, 0), (0, 1)]
    assert_close(result.scores, torch.tensor([0.56, 0.3, 0.1]), atol=1e-6, rtol=0)
    assert result.pred_classes.tolist() == [11, 10, 11] and result.pred_classes.dtype == torch.int64
    assert result.image_size == SIZE


def test_each_level_passes_on_its_best_by_score_times_centerness():
    first, anchors = one_level(apart(4)[:3], [[0.9], [0.5], [0.4]], [0.1, 0.5, 0.5])  # 0.09, 0.25, 0.2
    second, more = one_level(apart(4)[3:], [[0.1]], [0.1])
    predictions = GroundingPredictions(*(a + b for a, b in zip(first, second)))
    selector = make_selector(topk_candidates=2)
    assert found(selector(predictions, anchors + more, SIZE, make_prompt(1))) == [(1, 0), (2, 0), (3, 0)]


@pytest.mark.parametrize("thresh", [0.3, 0.5, 0.6])
def test_suppression_for_each_phrase_equals_the_official_one(thresh):
    arrays = np.load(ASSETS / "parity" / "units" / "scores_nms.npz")
    labels = torch.from_numpy(arrays["nms.labels"])
    scores = torch.zeros(len(labels), 4)
    scores[torch.arange(len(labels)), labels - 1] = torch.from_numpy(arrays["nms.scores"])
    boxes = torch.from_numpy(arrays["nms.boxes"]) + torch.tensor([0.0, 0.0, 1.0, 1.0])
    predictions, anchors = one_level(boxes, scores)
    selector = make_selector(score_thresh=0.0, nms_thresh=thresh, detections_per_image=0)
    result = selector(predictions, anchors, (300, 300), make_prompt(4))
    expected = torch.from_numpy(arrays[f"nms.keep_{thresh}"])
    expected = expected[torch.from_numpy(arrays["nms.scores"])[expected].argsort(descending=True)]
    assert result.phrase_ids.tolist() == (labels[expected] - 1).tolist()
    assert_close(result.pred_boxes.tensor, boxes[expected], atol=1e-3, rtol=0)


def test_suppression_of_many_phrases_is_as_exact_as_of_one():
    # Two boxes of the last phrase, 5 pixels apart: intersection 15, union 24.9985. The third makes the image wide, so
    # that the suppression moves the last phrase by 8 million pixels, where single precision rounds 24.9985 to 25.
    boxes = torch.tensor([[0.0, 0.0, 20.0, 10.0], [5.0, 0.0, 24.9985, 10.0], [0.0, 0.0, 100_000.0, 9.0]])
    scores = torch.zeros(3, 80)
    scores[:2, 79] = torch.tensor([0.9, 0.8])
    scores[2, 0] = 0.9
    predictions, anchors = one_level(boxes, scores)
    prompt = TokenizedPrompt(torch.arange(80), torch.eye(80, dtype=torch.bool), torch.arange(80), ("x",) * 80)
    result = make_selector(nms_thresh=15 / 24.9985 - 1e-5)(predictions, anchors, (10, 100_000), prompt)
    assert sorted(result.phrase_ids.tolist()) == [0, 79]
    result = make_selector(nms_thresh=15 / 24.9985 + 1e-5)(predictions, anchors, (10, 100_000), prompt)
    assert sorted(result.phrase_ids.tolist()) == [0, 79, 79]


def test_suppression_spans_levels_and_spares_other_phrases():
    box = [[0.0, 0.0, 10.0, 10.0]]
    first, anchors = one_level(box, [[0.9, 0.3]])
    second, more = one_level(box, [[0.8, 0.1]])
    predictions = GroundingPredictions(*(a + b for a, b in zip(first, second)))
    result = make_selector()(predictions, anchors + more, SIZE, make_prompt(2))
    assert found(result) == [(0, 0), (0, 1)]
    assert_close(result.scores.square(), torch.tensor([0.9, 0.3]))


@pytest.mark.parametrize(("limit", "kept"), [(1, 1), (2, 4), (3, 4), (4, 4), (5, 5), (9, 5), (0, 5)])
def test_all_that_tie_with_the_last_detection_stay(limit, kept):
    predictions, anchors = one_level(apart(5), [[0.2], [0.5], [0.5], [0.5], [0.9]])
    result = make_selector(detections_per_image=limit)(predictions, anchors, SIZE, make_prompt(1))
    assert len(result) == kept and found(result)[0] == (4, 0)


def test_boxes_are_decoded_and_clipped_to_first_and_last_pixel():
    predictions, anchors = one_level([[-30.0, 4.0, 50.0, 12.0], [90.0, 4.0, 98.0, 8.0]], [[0.9], [0.8]])
    predictions.box_deltas[0][1] = torch.tensor([50.0, 0.0, 0.0, 0.0])  # 5 widths to the right
    result = make_selector()(predictions, anchors, (10, 40), make_prompt(1))
    assert result.pred_boxes.tensor.tolist() == [[0.0, 4.0, 40.0, 10.0], [39.0, 4.0, 40.0, 8.0]]


@pytest.mark.parametrize("aggregation", ["mean", "max", "power"])
def test_phrase_without_tokens_is_never_detected(aggregation):
    prompt = TokenizedPrompt(torch.arange(2), torch.tensor([[False, False], [True, True]]), torch.arange(2), ("a", "b"))
    predictions, anchors = one_level(apart(2), [[0.9, 0.9], [0.9, 0.9]])
    result = make_selector(score_thresh=0.0, score_aggregation=aggregation)(predictions, anchors, SIZE, prompt)
    assert result.phrase_ids.tolist() == [1, 1]


def test_no_phrases_give_no_detections():
    prompt = TokenizedPrompt(
        torch.arange(2), torch.zeros(0, 2, dtype=torch.bool), torch.zeros(0, dtype=torch.int64), ()
    )
    predictions, anchors = one_level(apart(2), [[0.9, 0.9], [0.9, 0.9]])
    result = make_selector()(predictions, anchors, SIZE, prompt)
    assert len(result) == 0 and result.pred_boxes.tensor.shape == (0, 4) and result.pred_classes.dtype == torch.int64


def test_nothing_above_the_threshold_gives_no_detections():
    predictions, anchors = one_level(apart(2), [[0.01], [0.02]])
    assert len(make_selector()(predictions, anchors, SIZE, make_prompt(1))) == 0


@pytest.mark.parametrize("field", ["token_logits", "box_deltas", "centerness_logits"])
@pytest.mark.parametrize("topk", [1000, 1])
def test_nan_is_never_detected(field, topk):
    predictions, anchors = one_level(apart(3), [[0.9], [0.8], [0.7]])
    getattr(predictions, field)[0][0] = NAN
    result = make_selector(topk_candidates=topk)(predictions, anchors, SIZE, make_prompt(1))
    assert found(result) == [(1, 0), (2, 0)][:topk]


def test_infinite_deltas_are_never_detected():
    predictions, anchors = one_level(apart(2), [[0.9], [0.8]])
    predictions.box_deltas[0][0, 1] = float("inf")
    assert found(make_selector()(predictions, anchors, SIZE, make_prompt(1))) == [(1, 0)]


def test_tokens_of_no_phrase_and_padding_do_not_matter():
    predictions, anchors = one_level(apart(2), [[0.9], [0.8]])
    padded = torch.cat((predictions.token_logits[0], torch.full((2, 3), NAN)), dim=1)  # one real token, two of padding
    result = make_selector()(predictions._replace(token_logits=[padded]), anchors, SIZE, make_prompt(1, num_tokens=2))
    assert found(result) == [(0, 0), (1, 0)]


def test_permuted_phrases_give_the_same_detections_under_new_numbers():
    generator = torch.Generator().manual_seed(0)
    predictions, anchors = one_level(apart(6), torch.rand(6, 4, generator=generator))
    prompt, order = make_prompt(4), [2, 0, 3, 1]
    permuted = TokenizedPrompt(
        prompt.input_ids, prompt.phrase_token_map[order], prompt.category_ids[order], tuple("cadb")
    )
    result = make_selector()(predictions, anchors, SIZE, prompt)
    again = make_selector()(predictions, anchors, SIZE, permuted)
    assert torch.equal(again.scores, result.scores) and torch.equal(again.pred_classes, result.pred_classes)
    assert torch.tensor(order)[again.phrase_ids].tolist() == result.phrase_ids.tolist()


def test_half_precision_predictions_are_scored_in_single_precision():
    predictions, anchors = one_level(apart(3), [[0.9], [0.8], [0.3]], [0.9, 0.7, 0.6])
    half = GroundingPredictions(*([level.half() for level in levels] for levels in predictions))
    single = GroundingPredictions(*([level.float() for level in levels] for levels in half))
    result, expected = (make_selector()(x, anchors, SIZE, make_prompt(1)) for x in (half, single))
    assert result.scores.dtype == torch.float32 and len(result) == 3
    assert torch.equal(result.scores, expected.scores)
    assert torch.equal(result.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_detections_carry_no_gradient():
    predictions, anchors = one_level(apart(2), [[0.9], [0.8]])
    for (level,) in predictions:
        level.requires_grad_()
    result = make_selector()(predictions, anchors, SIZE, make_prompt(1))
    assert not result.scores.requires_grad and not result.pred_boxes.tensor.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score_thresh": -0.1}, r"SCORE_THRESH: expected a number in \[0, 1\], found -0.1"),
        ({"score_aggregation": "median"}, "SCORE_AGGREGATION: expected one of .* found 'median'"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make_selector(**change)
