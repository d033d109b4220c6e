import contextlib
import io

import numpy as np
import pytest
from detection_cases import (
    as_results,
    comparable,
    dataset_of,
    make_annotation,
    make_content,
    process,
    random_case,
)
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

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


def test_what_is_not_there_is_not_a_number_also_if_nothing_is_found(tmp_path):
    content = make_content([make_annotation(1, 1, MEDIUM)], categories=((1, "f"), (2, "f")))
    results = evaluate(content, {1: []}, tmp_path, category_ids=(1, 2))
    assert {name for name, value in results["segm"].items() if np.isnan(value)} == {"APs", "APl", "AP-name 2"}
    assert results["segm"]["AP"] == results["segm"]["AP-name 1"] == 0.0


@pytest.mark.parametrize("field", ["area", "iscrowd", "id"])
def test_fields_that_the_evaluation_needs_are_computed_where_they_lack(tmp_path, field):
    complete, lacking = ({**make_annotation(1, 1, box), "iscrowd": 0, "id": 7} for box in (SMALL, MEDIUM))
    del lacking[field]
    found = {1: [(1, 0.5, MEDIUM), (1, 0.4, SMALL)]}
    results = evaluate(make_content([complete, lacking]), found, tmp_path)
    assert [results["bbox"][key] for key in ("AP", "APs", "APm")] == [pytest.approx(100.0)] * 3


def test_faulty_annotations_are_not_compared_with(tmp_path):
    faulty = [make_annotation(1, 1, MEDIUM, bbox=None), make_annotation(1, 9, SMALL), {"id": 3}]
    results = evaluate(make_content([make_annotation(1, 1, MEDIUM), *faulty]), {1: [(1, 0.5, MEDIUM)]}, tmp_path)
    assert results["bbox"]["AP"] == pytest.approx(100.0)


def test_an_annotation_of_an_unknown_image_is_passed_over(tmp_path):
    elsewhere = {**make_annotation(1, 1, SMALL), "image_id": 77}
    results = evaluate(make_content([make_annotation(1, 1, MEDIUM), elsewhere]), {1: [(1, 0.5, MEDIUM)]}, tmp_path)
    assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(100.0)
