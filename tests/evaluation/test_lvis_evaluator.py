import copy
import json
from collections import defaultdict

import numpy as np
import pytest
import torch
from detection_cases import (
    HEIGHT,
    WIDTH,
    as_results,
    comparable,
    dataset_of,
    make_annotation,
    make_content,
    make_instances,
    process,
    random_case,
)
from detectron2.data import MetadataCatalog
from lvis import LVIS, LVISEval, LVISResults

from glipv2_d2.data.datasets.value_checks import AnnotationError
from glipv2_d2.evaluation.ap_inputs import DetectionRows
from glipv2_d2.evaluation.lvis_evaluator import LVISEvaluator

TASKS = ("bbox", "segm")
METRICS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"]
PER_IMAGE, PER_CATEGORY = 4, 3


def evaluate(content, detections, folder, tasks=TASKS, category_ids=(1,), **options):
    with dataset_of(content, folder / "annotations.json") as name:
        evaluator = LVISEvaluator(name, tasks, output_folder=str(folder / "out"), **options)
        return process(evaluator, detections, category_ids)


@pytest.fixture
def patched_numpy(monkeypatch):
    """What lvis 0.5.3 expects of numpy."""
    monkeypatch.setattr(np, "float", float, raising=False)


def by_the_package(json_file, results, task, max_dets):
    """AP by the package as it is, in 0..100; it cannot be given no detections."""
    ground_truth = LVIS(str(json_file))
    evaluation = LVISEval(ground_truth, LVISResults(ground_truth, copy.deepcopy(results), max_dets), task)
    evaluation.run()
    values = evaluation.get_results()
    return {name: None if values[name] == -1 else 100.0 * float(values[name]) for name in METRICS}


def best_of_categories(results, limit):
    """The best by the rule of ties: lower image id, then order in the image."""
    groups = defaultdict(list)
    for result in results:
        groups[result["category_id"]].append(result)
    return [
        result
        for group in groups.values()
        for result in sorted(group, key=lambda result: (-result["score"], result["image_id"]))[:limit]
    ]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("block", range(5))
def test_numbers_equal_those_of_the_lvis_package(patched_numpy, tmp_path, task, block):
    compared = 0
    for seed in range(24 * block, 24 * block + 24):
        content, detections, ids = random_case(seed)
        results = as_results(detections, task)
        found = evaluate(
            *(content, detections, tmp_path, (task,), ids),
            detections_per_image=PER_IMAGE if seed % 2 else 300,
            detections_per_category=PER_CATEGORY if seed % 3 else 10_000,
        )
        if not results or not content["annotations"]:
            continue
        json_file = tmp_path / "annotations.json"
        expected = by_the_package(json_file, results, task, PER_IMAGE if seed % 2 else 300)
        assert comparable(found[task]) == expected, seed
        kept = best_of_categories(results, PER_CATEGORY if seed % 3 else 10_000)
        assert comparable(found[f"{task}_fixed"]) == by_the_package(json_file, kept, task, -1), seed
        compared += 1
    assert compared > 20


def two_images(missed_in_first, **known):
    """One object in each of two images, found with 0.9 and 0.7; with 0.8 something else in the first one."""
    box, other = [10, 10, 40, 40], [70, 60, 40, 40]
    content = make_content([make_annotation(1, 1, box), make_annotation(2, 1, box)], (1, 2, 3), **known)
    detections = {1: [(1, 0.9, box)], 2: [(1, 0.7, box)], 3: []}
    detections[1 if missed_in_first else 3].append((1, 0.8, other))
    return content, detections


# Precision is 1 up to a recall of 0.5, the first 51 of 101 places, then 2/3.
ONE_IS_WRONG = 100 * (51 + 50 * 2 / 3) / 101


@pytest.mark.parametrize(
    ("missed_in_first", "known", "expected"),
    [
        (True, {}, ONE_IS_WRONG),  # The category is annotated in the image.
        (True, {"not_exhaustive": [(1, 1)]}, 100.0),
        (False, {"negative": [(3, 1)]}, ONE_IS_WRONG),
        (False, {}, 100.0),  # Nobody looked for the category in that image.
    ],
)
def test_a_wrong_detection_counts_where_the_image_says_so(tmp_path, missed_in_first, known, expected):
    content, detections = two_images(missed_in_first, **known)
    results = evaluate(content, detections, tmp_path)
    assert list(results) == ["bbox", "segm", "bbox_fixed", "segm_fixed"]
    for name in results:
        assert list(results[name]) == METRICS
        assert results[name]["AP"] == pytest.approx(expected)
        assert results[name]["APf"] == pytest.approx(expected)
        # 40 x 40 pixels are medium; nothing else is annotated.
        assert results[name]["APm"] == pytest.approx(expected)
        assert all(np.isnan(results[name][metric]) for metric in ("APs", "APl", "APr", "APc"))


CATEGORIES = ((1, "f"), (2, "c"), (6, "r"))
BOXES = {1: [0, 0, 8, 8], 2: [10, 10, 60, 60], 6: [3, 2, 110, 100]}  # small, medium, large


def one_of_each():
    return make_content([make_annotation(1, key, box) for key, box in BOXES.items()], (1, 2), CATEGORIES)


def test_images_that_no_process_saw_have_no_detections(tmp_path):
    results = evaluate(one_of_each(), {}, tmp_path, category_ids=(1, 2, 6))
    for name in ("bbox", "segm", "bbox_fixed", "segm_fixed"):
        assert results[name] == dict.fromkeys(METRICS, 0.0)


def test_limit_of_an_image_is_of_the_standard_protocol_only(tmp_path):
    content = make_content([make_annotation(1, 1, BOXES[1]), make_annotation(1, 2, BOXES[2])], (1,), CATEGORIES)
    detections = {1: [(1, 0.5, BOXES[1]), (2, 0.6, BOXES[2])]}
    results = evaluate(content, detections, tmp_path, ("bbox",), (1, 2, 6), detections_per_image=1)
    assert [results[name]["AP"] for name in ("bbox", "bbox_fixed")] == pytest.approx([50.0, 100.0])


@pytest.mark.parametrize("order", [(4, 7), (7, 4)])
def test_of_equal_scores_at_the_limit_of_a_category_the_lower_image_id_is_kept(tmp_path, order):
    annotations = [make_annotation(image_id, 1, BOXES[2]) for image_id in (4, 7)]
    wrong = [90, 0, 20, 20]
    found = {7: [(1, 0.9, wrong)], 4: [(1, 0.9, BOXES[2]), (1, 0.9, wrong)]}
    detections = {image_id: found[image_id] for image_id in order}
    content = make_content(annotations, (7, 4))
    results = evaluate(content, detections, tmp_path, ("bbox",), detections_per_category=1)
    # One of two objects is found, without an error: precision 1 at the first 51 of 101 recalls.
    assert results["bbox_fixed"]["AP"] == pytest.approx(100 * 51 / 101)


@pytest.mark.parametrize(("num_wrong", "standard"), [(299, 100 / 300), (300, 0.0)])
def test_limits_are_300_of_an_image_and_10_000_of_a_category(tmp_path, num_wrong, standard):
    with dataset_of(make_content([make_annotation(1, 1, BOXES[2])]), tmp_path / "annotations.json") as name:
        evaluator = LVISEvaluator(name, output_folder=str(tmp_path / "out"), distributed=False)
        wrong = [(1, 0.9, [0, 0, 8, 8])] * num_wrong
        results = process(evaluator, {1: [*wrong, (1, 0.5, BOXES[2])]}, with_masks=False)
        assert results["bbox"]["AP"] == pytest.approx(standard)
        assert results["bbox_fixed"]["AP"] == pytest.approx(100 / (num_wrong + 1))
    rows = DetectionRows.join([])
    many = rows._replace(image_ids=np.arange(10_001), category_ids=np.ones(10_001), scores=np.ones(10_001, np.float32))
    assert evaluator._best("fixed", many).sum() == 10_000


@pytest.mark.parametrize(
    ("boxes", "size", "expected"),
    # Inclusive corners lose a pixel: IoU 15 * 15 / 256 = 0.879 and 31 * 31 / 1024 = 0.938.
    [("exact", 16, 100.0), ("official", 16, 80.0), ("official", 32, 90.0), ("official", 1, 0.0)],
)
def test_boxes_are_written_as_the_official_protocol_does_or_as_they_are(tmp_path, boxes, size, expected):
    box = [10, 10, size, size]
    content = make_content([make_annotation(1, 1, box)])
    result = evaluate(content, {1: [(1, 0.9, box)]}, tmp_path, boxes=boxes)
    assert result["bbox"]["AP"] == pytest.approx(expected)
    # Masks have no such pixel.
    assert result["segm"]["AP"] == pytest.approx(100.0)
    (written,) = json.loads((tmp_path / "out" / "lvis_instances_results.json").read_text())
    assert written["bbox"] == ([10, 10, size - 1, size - 1] if boxes == "official" else box)


def test_the_ids_of_classes_may_be_in_any_order(tmp_path):
    content = make_content([make_annotation(1, 6, BOXES[1])], categories=((6, "f"), (1, "f")))
    assert evaluate(content, {1: [(6, 0.5, BOXES[1])]}, tmp_path, category_ids=(6, 1))["bbox"]["AP"] == pytest.approx(
        100.0
    )


def test_official_sizes_are_never_negative():
    instances = make_instances([(1, 0.5, [10, 10, 0.25, 8])], with_masks=False)
    sample = {"image_id": 3, "height": HEIGHT, "width": WIDTH}
    rows = DetectionRows.from_instances(instances, sample, np.array([1]), None).with_inclusive_sizes()
    assert rows.boxes.tolist() == [[10, 10, 0, 7]]


def test_numpy_stays_as_it_is(tmp_path):
    before = set(vars(np))
    evaluate(one_of_each(), {1: [(1, 0.5, BOXES[1])]}, tmp_path, category_ids=(1, 2, 6))
    assert set(vars(np)) <= before | {"strings", "char"} and not hasattr(np, "float")


def test_detections_are_written_in_the_format_for_results(tmp_path):
    content = make_content([make_annotation(1, 2, BOXES[2])], (1, 2), CATEGORIES)
    evaluate(content, {1: [(2, 0.5, BOXES[2])], 2: [(6, 0.25, BOXES[6])]}, tmp_path, category_ids=(1, 2, 6))
    results = json.loads((tmp_path / "out" / "lvis_instances_results.json").read_text())
    assert [sorted(result) for result in results] == [["bbox", "category_id", "image_id", "score", "segmentation"]] * 2
    assert [(result["image_id"], result["category_id"], result["score"]) for result in results] == [
        (1, 2, 0.5),
        (2, 6, 0.25),
    ]
    assert results[0]["bbox"] == BOXES[2]
    assert results[0]["segmentation"] == make_annotation(1, 2, BOXES[2])["segmentation"]


def test_file_of_more_rows_than_are_written_at_a_time_is_whole(tmp_path):
    one = DetectionRows.from_instances(
        make_instances([(1, 0.5, BOXES[1])]), {"image_id": 3, "height": HEIGHT, "width": WIDTH}, np.array([1]), None
    )
    DetectionRows(*(np.repeat(column, 10_001, axis=0) for column in one)).write(str(tmp_path / "rows.json"))
    results = json.loads((tmp_path / "rows.json").read_text())
    assert len(results) == 10_001 and results[0] == results[-1]
    assert results[0] == {"image_id": 3, "category_id": 1, "score": 0.5, "bbox": BOXES[1]}


def test_a_set_without_annotations_is_written_and_not_evaluated(tmp_path):
    content = make_content([])
    del content["annotations"]
    assert evaluate(content, {1: [(1, 0.5, BOXES[1])]}, tmp_path) == {}
    assert len(json.loads((tmp_path / "out" / "lvis_instances_results.json").read_text())) == 1


def test_category_ids_are_classes_plus_1_without_a_map(tmp_path):
    with dataset_of(one_of_each(), tmp_path / "annotations.json") as name:
        del MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
        evaluator = LVISEvaluator(name, ("bbox",), ("fixed",))
        results = process(evaluator, {1: [(2, 0.5, BOXES[2])]}, category_ids=(1, 2, 6))
    assert list(results) == ["bbox_fixed"]
    assert results["bbox_fixed"]["APc"] == pytest.approx(100.0)


@pytest.mark.parametrize("row", [1, -1])
def test_a_class_that_the_dataset_does_not_have_is_an_error(tmp_path, row):
    instances = make_instances([(1, 0.5, BOXES[1])])
    instances.pred_classes = torch.tensor([row])
    with dataset_of(make_content([make_annotation(1, 1, BOXES[1])]), tmp_path / "annotations.json") as name:
        with pytest.raises(ValueError, match=f"image 1: expected pred_classes in 0..0, .* found {row}"):
            LVISEvaluator(name, TASKS).process(
                [{"image_id": 1, "height": HEIGHT, "width": WIDTH}], [{"instances": instances}]
            )


def test_an_image_that_is_not_annotated_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="image 5: expected an image id of the annotation file, found"):
        evaluate(one_of_each(), {5: [(1, 0.5, BOXES[1])]}, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ("bbox", "keypoints")}, "tasks: expected .* found .*keypoints"),
        ({"tasks": ()}, "tasks: expected one or more of"),
        ({"protocols": ("pool",)}, "TEST.LVIS_PROTOCOLS: expected .* found .*pool"),
        ({"protocols": ()}, "TEST.LVIS_PROTOCOLS: expected one or more of"),
    ],
)
def test_unknown_tasks_and_protocols_are_errors(tmp_path, options, message):
    with dataset_of(one_of_each(), tmp_path / "annotations.json") as name:
        with pytest.raises(ValueError, match=message):
            LVISEvaluator(name, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "images: expected a list, found None"),
        ({"images": "neg_category_ids"}, r"images\[0\]: expected 'neg_category_ids', as in LVIS's format, found none"),
        ({"images": "not_exhaustive_category_ids"}, r"images\[0\]: expected 'not_exhaustive_category_ids'"),
        ({"categories": "frequency"}, r"categories\[0\]: expected 'frequency'"),
        ({"categories": [7]}, r"categories\[0\]: expected an object with an integer as id, found 7"),
        (
            {"categories": [{"id": 1, "name": "cat", "frequency": "x"}]},
            r"categories\[0\].frequency: expected 'r', 'c' or 'f', found 'x'",
        ),
    ],
)
def test_annotations_of_another_format_are_an_error(tmp_path, change, message):
    """A change is the new entries, or the name of a field that the first entry loses."""
    content = one_of_each()
    for kind, value in change.items():
        if isinstance(value, str):
            del content[kind][0][value]
        else:
            content[kind] = value
    with dataset_of(one_of_each(), tmp_path / "annotations.json") as name:
        (tmp_path / "annotations.json").write_text(json.dumps(content))
        with pytest.raises(AnnotationError, match=f"annotations.json: {message}"):
            LVISEvaluator(name)
