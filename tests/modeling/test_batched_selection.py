"""Detections of many images chosen together are those of each image by itself."""

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from head_samples import make_anchors
from torch.testing import assert_close

from glipv2_d2.modeling.heads import batched_selection
from glipv2_d2.modeling.heads.batched_selection import find_candidates, select_together
from glipv2_d2.modeling.heads.detection_selector import DetectionSelector
from glipv2_d2.structures import GroundingPredictions, TokenizedPrompt

SHAPES = [(8, 10), (4, 5), (2, 3)]
SIZES = [(64, 80), (50, 71), (64, 60)]


def make_prompt(num_phrases, num_tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    token_map = torch.rand(num_phrases, num_tokens, generator=generator) < 0.4
    categories = torch.arange(num_phrases) + 100 * seed
    return TokenizedPrompt(torch.arange(num_tokens), token_map, categories, ("phrase",) * num_phrases)


PROMPTS = [make_prompt(4, 9, 1), make_prompt(2, 6, 2), make_prompt(0, 3, 3)]


def make_selector(**changes):
    settings = {
        "score_thresh": 0.4,
        "topk_candidates": 60,
        "nms_thresh": 0.6,
        "score_aggregation": "mean",
        "detections_per_image": 10,
    }
    return DetectionSelector(box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)), **settings | changes)


def make_predictions(num_pairs, num_tokens=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = [height * width for height, width in SHAPES]
    return GroundingPredictions(
        [torch.randn(num_pairs, length, num_tokens, generator=generator) for length in lengths],
        [torch.randn(num_pairs, length, 4, generator=generator) for length in lengths],
        [torch.randn(num_pairs, length, generator=generator) for length in lengths],
    )


def assert_same(selector, predictions, limit=None, passes=((0, 1, 2),)):
    anchors = make_anchors(SHAPES)
    found = []
    for rows in passes:
        of_pass = GroundingPredictions(*([level[list(rows)] for level in levels] for levels in predictions))
        sizes, prompts = [SIZES[row] for row in rows], [PROMPTS[row] for row in rows]
        found.append((find_candidates(selector, of_pass, anchors, sizes, prompts), prompts))
    chosen = select_together(selector, found, limit)
    assert [len(one) for one in chosen] == [len(rows) for rows in passes]
    for row, result in zip([row for rows in passes for row in rows], [one for of_pass in chosen for one in of_pass]):
        expected = selector(predictions.of_image(row), anchors, SIZES[row], PROMPTS[row], limit)
        assert result.image_size == expected.image_size == SIZES[row]
        assert (result.scores.diff() <= 0).all() and result.phrase_ids.dtype == result.pred_classes.dtype == torch.int64
        assert_close(sorted_rows(result), sorted_rows(expected), rtol=1e-6, atol=1e-5)
    return chosen


def sorted_rows(instances):
    """Detections as a table, in which those of one score have an order."""
    columns = [instances.scores, instances.phrase_ids, instances.pred_classes]
    rows = torch.cat((torch.stack(columns, dim=1), instances.pred_boxes.tensor), dim=1).tolist()
    return torch.tensor(sorted(rows, key=lambda row: [round(value, 4) for value in row])).reshape(-1, 7)


@pytest.mark.parametrize("aggregation", ["mean", "max", "power"])
@pytest.mark.parametrize("limit", [None, 0, 3])
def test_detections_of_all_pairs_together_are_those_of_each(aggregation, limit):
    chosen = assert_same(make_selector(score_aggregation=aggregation), make_predictions(3), limit)
    assert len(chosen[0][0]) > 2 and len(chosen[0][1]) > 2 and len(chosen[0][2]) == 0


@pytest.mark.parametrize("passes", [((0,), (1,), (2,)), ((2, 0), (1,)), ((1, 2), (0,))])
def test_how_pairs_are_cut_into_passes_does_not_matter(passes):
    assert_same(make_selector(), make_predictions(3), passes=passes)


@pytest.mark.parametrize("field", ["token_logits", "box_deltas", "centerness_logits"])
def test_nan_is_never_detected_and_padding_has_no_effect(field):
    predictions = make_predictions(3)
    getattr(predictions, field)[0][:, ::3] = float("nan")
    # The second prompt has 6 tokens.
    for level in predictions.token_logits:
        level[1, :, 6:] = float("nan")
    assert_same(make_selector(score_thresh=0.0), predictions, 0)


def test_all_that_tie_with_the_last_detection_stay():
    predictions = make_predictions(3)
    for level in (*predictions.token_logits, *predictions.centerness_logits):
        level.zero_()
    selector = make_selector(score_aggregation="max", nms_thresh=1.0, topk_candidates=1000)
    chosen = assert_same(selector, predictions, 5)
    assert len(chosen[0][0]) > 5


@pytest.mark.parametrize(("few", "expected"), [(1, [10, 144, 10, 112]), (2, [20, 20]), (99, [144, 112])])
def test_the_best_candidates_are_suppressed_alone_unless_they_leave_open_which_are_best(monkeypatch, few, expected):
    monkeypatch.setattr(batched_selection, "_CANDIDATES_PER_DETECTION", few)
    sizes, nms = [], batched_selection.batched_nms
    monkeypatch.setattr(batched_selection, "batched_nms", lambda *args: sizes.append(len(args[0])) or nms(*args))
    assert_same(make_selector(score_thresh=0.0), make_predictions(3))
    # 10 detections are wanted of 60 + 60 + 6 x 4 candidates, and of 60 + 20 x 2 + 6 x 2; the last prompt has no phrase.
    assert sizes == [*expected, 0]
