import contextlib
import io
import json
import logging

import numpy as np
import pytest
import torch
from detection_cases import (
    HEIGHT,
    WIDTH,
    as_results,
    box_mask,
    comparable,
    dataset_of,
    make_annotation,
    make_content,
    make_instances,
    process,
    random_case,
)
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from glipv2_d2.data.datasets.value_checks import AnnotationError
from glipv2_d2.evaluation.coco_evaluator import COCOInstanceEvaluator

TASKS = ("bbox", "segm")
METRICS = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
SMALL, MEDIUM, LARGE = [0, 0, 8, 8], [10, 10, 60, 60], [3, 2, 110, 100]


def evaluate(content, detections, folder, tasks=TASKS, category_ids=(1,), with_masks=True):
    for annotation in content["annotations"]:
        annotation.setdefault("iscrowd", 0)
    with dataset_of(content, folder / "annotations.json") as name:
        evaluator = COCOInstanceEvaluator(name, tasks, str(folder / "out"))
        return process(evaluator, detections, category_ids, with_masks)


def by_the_package(json_file, results, task):
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO(str(json_file))
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(results), task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: None if value == -1 else 100.0 * float(value) for name, value in zip(METRICS, evaluation.stats)}


@pytest.mark.parametrize("block", range(5))
def test_numbers_equal_those_of_pycocotools(tmp_path, block):
    compared = 0
    for seed in range(1000 + 22 * block, 1022 + 22 * block):
        content, detections, ids = random_case(seed, crowds=True)
        if not any(detections.values()) or not content["annotations"]:
            continue
        found = evaluate(content, detections, tmp_path, category_ids=ids)
        for task in TASKS:
            expected = by_the_package(tmp_path / "annotations.json", as_results(detections, task), task)
            assert {name: comparable(found[task])[name] for name in METRICS} == expected, (seed, task)
            compared += 1
    assert compared >= 40


def one_of_each():
    places = ((1, SMALL), (1, MEDIUM), (2, LARGE))
    return make_content([make_annotation(image_id, 1, box, iscrowd=0) for image_id, box in places], (1, 2))


def test_perfect_detections_give_the_maximum(tmp_path):
    detections = {1: [(1, 0.5, SMALL), (1, 0.5, MEDIUM)], 2: [(1, 0.5, LARGE)]}
    results = evaluate(one_of_each(), detections, tmp_path)
    assert list(results) == ["bbox", "segm"]
    for task in TASKS:
        assert results[task] == dict.fromkeys(METRICS, pytest.approx(100.0))


@pytest.mark.parametrize("detections", [{1: [], 2: []}, {1: [], 2: [(1, 0.9, SMALL)]}])
def test_nothing_found_gives_zero(tmp_path, detections):
    results = evaluate(one_of_each(), detections, tmp_path)
    for task in TASKS:
        assert results[task] == dict.fromkeys(METRICS, 0.0)


def test_what_is_not_there_is_not_a_number_also_if_nothing_is_found(tmp_path):
    content = make_content([make_annotation(1, 1, MEDIUM)], categories=((1, "f"), (2, "f")))
    results = evaluate(content, {1: []}, tmp_path, category_ids=(1, 2))
    assert {name for name, value in results["segm"].items() if np.isnan(value)} == {"APs", "APl", "AP-name 2"}
    assert results["segm"]["AP"] == results["segm"]["AP-name 1"] == 0.0


def test_masks_are_judged_by_their_pixels(tmp_path):
    # The detected mask is the left three quarters of the annotated one: IoU 0.75, found up to the sixth threshold.
    content = make_content([make_annotation(1, 1, [0, 0, 40, 40])])
    results = evaluate(content, {1: [(1, 0.9, [0, 0, 40, 40], box_mask([0, 0, 30, 40]))]}, tmp_path)
    assert results["bbox"]["AP"] == pytest.approx(100.0)
    assert results["segm"]["AP"] == pytest.approx(60.0)
    written = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert written[0]["segmentation"]["size"] == [HEIGHT, WIDTH]


def test_an_annotation_with_id_0_can_be_found(tmp_path):
    content = make_content([make_annotation(1, 1, MEDIUM, id=0)])
    results = evaluate(content, {1: [(1, 0.5, MEDIUM)]}, tmp_path)
    assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(100.0)


@pytest.mark.parametrize("field", ["area", "iscrowd"])
def test_annotations_that_cannot_be_evaluated_are_an_error_before_any_image_is_run(tmp_path, field):
    complete, lacking = ({**make_annotation(1, 1, box), "iscrowd": 0} for box in (SMALL, MEDIUM))
    del lacking[field]
    with dataset_of(make_content([complete, lacking]), tmp_path / "annotations.json") as name:
        with pytest.raises(
            AnnotationError,
            match=rf"annotations.json: annotations\[1\]: expected '{field}', as in COCO's format, found none",
        ):
            COCOInstanceEvaluator(name, TASKS)


def test_an_annotation_of_an_unknown_image_is_passed_over(tmp_path):
    elsewhere = {**make_annotation(1, 1, SMALL), "image_id": 77}
    results = evaluate(make_content([make_annotation(1, 1, MEDIUM), elsewhere]), {1: [(1, 0.5, MEDIUM)]}, tmp_path)
    assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(100.0)


def test_a_mask_that_cannot_be_used_is_named_and_never_found(tmp_path, caplog):
    damaged = make_annotation(1, 1, MEDIUM, segmentation={"size": [HEIGHT, WIDTH], "counts": "P"})
    content = make_content([damaged, make_annotation(1, 1, SMALL)])
    with caplog.at_level(logging.WARNING):
        results = evaluate(content, {1: [(1, 0.9, SMALL), (1, 0.8, MEDIUM)]}, tmp_path)
    assert "1 masks" in caplog.text and "annotations[0]" in caplog.text
    assert results["bbox"]["AP"] == pytest.approx(100.0)
    # One of two masks is found: precision 1 at the first 51 of 101 recalls.
    assert results["segm"]["AP"] == pytest.approx(100 * 51 / 101)


def test_boxes_alone_are_evaluated_where_no_mask_is_annotated(tmp_path, caplog):
    content = one_of_each()
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    with caplog.at_level(logging.WARNING):
        results = evaluate(content, {1: [(1, 0.5, SMALL)]}, tmp_path, with_masks=False)
    assert list(results) == ["bbox"] and "masks are not evaluated" in caplog.text


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (None, "image 1: expected pred_masks, .* found instances without them"),
        (torch.zeros(1, WIDTH, HEIGHT, dtype=torch.bool), "expected pred_masks of torch.bool and shape"),
    ],
)
def test_detections_without_usable_masks_are_an_error_where_masks_are_evaluated(tmp_path, masks, message):
    instances = make_instances([(1, 0.5, SMALL)], with_masks=False)
    if masks is not None:
        instances.pred_masks = masks
    sample = {"image_id": 1, "height": HEIGHT, "width": WIDTH}
    with dataset_of(one_of_each(), tmp_path / "annotations.json") as name:
        evaluator = COCOInstanceEvaluator(name, TASKS)
        evaluator.reset()
        with pytest.raises(ValueError, match=message):
            evaluator.process([sample], [{"instances": instances}])
        evaluator.process([sample], [{"instances": make_instances([], with_masks=False)}])
