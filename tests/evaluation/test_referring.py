import json
import logging

import numpy as np
import pytest
import torch
from detection_cases import HEIGHT, WIDTH, box_mask, make_instances, process, run_lengths
from detectron2.structures import BoxMode
from pycocotools import mask as mask_utils

from glipv2_d2.evaluation.referring import ReferringEvaluator

LEFT, RIGHT, TOP = [0, 0, 40, 40], [60, 0, 40, 40], [0, 0, 40, 20]


def pair(image_id, *boxes, masks=None):
    """Dataset dict of one phrase that refers to boxes, with their masks as run lengths, polygons or not at all."""
    annotations = [{"bbox": list(box), "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0} for box in boxes]
    for annotation, mask in zip(annotations, [run_lengths(box_mask(box)) for box in boxes] if masks is None else masks):
        if mask is not None:
            annotation["segmentation"] = mask
    return {"image_id": image_id, "height": HEIGHT, "width": WIDTH, "annotations": annotations}


def evaluate(pairs, detections, protocol="phrasecut", **options):
    """Scores of detections, by image id: (score, box) or (score, box, mask)."""
    found = {key: [(1, *item) for item in items] for key, items in detections.items()}
    results = process(ReferringEvaluator("said", pairs, protocol, **options), found)
    assert list(results) == ["referring"]
    return results["referring"]


def test_phrasecut_scores_counted_by_hand():
    pairs = [pair(1, LEFT, RIGHT), pair(2, LEFT), pair(3, LEFT), pair(4, LEFT)]
    detections = {
        1: [(0.9, LEFT), (0.6, RIGHT)],  # 3200 of 3200
        2: [(0.9, TOP)],  # 800 of 1600: an IoU of 0.5
        3: [(0.9, RIGHT), (0.2, LEFT)],  # 0 of 3200
        4: [(0.1, LEFT, box_mask([0, 0, 40, 30]))],  # 1200 of 1600
    }
    expected = {
        "mIoU": 100 * (1 + 0.5 + 0 + 0.75) / 4,
        "cIoU": 100 * (3200 + 800 + 0 + 1200) / (3200 + 1600 + 3200 + 1600),
        "Pr@0.5": 75.0,
        "Pr@0.7": 50.0,
        "Pr@0.9": 25.0,
    }
    assert evaluate(pairs, detections) == pytest.approx(expected)


def test_threshold_of_scores_decides_what_belongs_to_the_mask():
    pairs, detections = [pair(1, LEFT)], {1: [(0.9, LEFT), (0.6, RIGHT)]}
    assert evaluate(pairs, detections, score_thresh=0.6)["mIoU"] == pytest.approx(50.0)
    assert evaluate(pairs, detections, score_thresh=0.7)["mIoU"] == pytest.approx(100.0)


def test_refcoco_scores_counted_by_hand():
    pairs = [pair(1, LEFT), pair(2, LEFT), pair(3, LEFT)]
    detections = {
        1: [(0.6, RIGHT), (0.9, LEFT)],  # Only the best counts, although both are sure: 1600 of 1600.
        2: [(0.3, TOP)],  # 800 of 1600, and a box with an IoU of 0.5.
        3: [(0.9, [0, 0, 19, 40])],  # 760 of 1600; the box has less than 0.5.
    }
    expected = {
        "mIoU": 100 * (1 + 0.5 + 0.475) / 3,
        "oIoU": 100 * (1600 + 800 + 760) / 4800,
        "acc@0.5": 200 / 3,
    }
    assert evaluate(pairs, detections, "refcoco") == pytest.approx(expected)


def test_box_is_right_if_it_fits_any_of_several():
    assert evaluate([pair(1, LEFT, RIGHT)], {1: [(0.9, RIGHT)]}, "refcoco")["acc@0.5"] == 100.0


def test_without_masks_only_boxes_are_scored():
    detections = {1: [(1, 0.9, LEFT)], 2: [(1, 0.9, RIGHT)]}
    evaluator = ReferringEvaluator("said", [pair(1, LEFT), pair(2, LEFT)], "refcoco", with_masks=False)
    assert process(evaluator, detections, with_masks=False) == {"referring": {"acc@0.5": 50.0}}


@pytest.mark.parametrize("protocol", ["phrasecut", "refcoco"])
@pytest.mark.parametrize(("found", "expected"), [(True, 100.0), (False, 0.0)])
def test_perfect_predictions_give_the_maximum_and_none_zero(protocol, found, expected):
    polygon = [[0, 0, 40, 0, 40, 40, 0, 40]]
    pairs = [pair(1, LEFT, masks=[polygon]), pair(2, RIGHT)]
    detections = {1: [(0.9, LEFT)], 2: [(0.7, RIGHT)]} if found else {1: [], 2: []}
    scores = evaluate(pairs, detections, protocol)
    assert scores == dict.fromkeys(scores, expected) and len(scores) == (5 if protocol == "phrasecut" else 3)


def test_polygons_of_all_annotations_are_one_mask():
    halves = [[[0, 0, 20, 0, 20, 40, 0, 40]], [[20, 0, 40, 0, 40, 40, 20, 40], [60, 0, 100, 0, 100, 40, 60, 40]]]
    pairs = [pair(1, [0, 0, 20, 40], [20, 0, 80, 40], masks=halves)]
    assert evaluate(pairs, {1: [(0.9, LEFT), (0.9, RIGHT)]})["mIoU"] == pytest.approx(100.0)


def test_a_phrase_without_annotated_mask_is_left_out_of_the_scores_of_masks(caplog):
    empty = run_lengths(torch.zeros(HEIGHT, WIDTH, dtype=torch.bool))
    pairs = [pair(1, LEFT), pair(2, LEFT, masks=[None]), pair(3, LEFT, masks=[empty])]
    detections = {key: [(0.9, LEFT)] for key in (1, 2)} | {3: [(0.9, RIGHT)]}
    with caplog.at_level(logging.WARNING):
        scores = evaluate(pairs, detections, "refcoco")
    assert scores == {"mIoU": 100.0, "oIoU": 100.0, "acc@0.5": pytest.approx(200 / 3)}
    assert "left 2 of 3 phrases out" in caplog.text
    assert np.isnan(evaluate(pairs[1:2], {2: [(0.9, LEFT)]})["mIoU"])


def test_predictions_are_written_by_image_id(tmp_path):
    pairs = [pair(1, LEFT), pair(2, LEFT)]
    evaluate(pairs, {2: [(0.25, TOP), (0.75, LEFT)], 1: []}, output_folder=str(tmp_path / "out"))
    first, second = json.loads((tmp_path / "out" / "referring_results.json").read_text())
    assert first == {"image_id": 1, "segmentation": run_lengths(torch.zeros(HEIGHT, WIDTH, dtype=torch.bool))}
    assert (second["image_id"], second["bbox"], second["score"]) == (2, LEFT, 0.75)
    assert mask_utils.area(second["segmentation"]) == 1600


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "flickr"}, "dataset 'said': expected the protocol 'phrasecut' or 'refcoco', found 'flickr'"),
        ({"protocol": "phrasecut", "with_masks": False}, "dataset 'said': .*expected MODEL.MASK_ON"),
    ],
)
def test_what_cannot_be_measured_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        ReferringEvaluator("said", [], **options)


def test_predictions_that_cannot_be_measured_are_an_error():
    evaluator = ReferringEvaluator("said", [pair(1, LEFT)], "phrasecut")
    with pytest.raises(ValueError, match="image 1: expected pred_masks, .* found instances without them"):
        process(evaluator, {1: [(1, 0.9, LEFT)]}, with_masks=False)
    instances = make_instances([(1, 0.9, LEFT)], with_masks=False)
    instances.pred_masks = torch.zeros(1, HEIGHT, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match="expected pred_masks of torch.bool and shape"):
        evaluator.process([{"image_id": 1}], [{"instances": instances}])
