"""The rules that the evaluators of COCO and LVIS share; each is compared with its package in a file of its own."""

import logging
from types import SimpleNamespace

import pytest
import torch
from detection_cases import HEIGHT, WIDTH, box_mask, dataset_of, make_annotation, make_content, make_instances, process

from glipv2_d2.evaluation.coco_evaluator import COCOInstanceEvaluator
from glipv2_d2.evaluation.lvis_evaluator import LVISEvaluator

TASKS = ("bbox", "segm")
AREAS = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
KINDS = {
    "coco": SimpleNamespace(make=COCOInstanceEvaluator, metrics=AREAS, suffixes=("",)),
    "lvis": SimpleNamespace(make=LVISEvaluator, metrics=[*AREAS, "APr", "APc", "APf"], suffixes=("", "_fixed")),
}
IDS = (1, 2, 6)
BOXES = {1: [0, 0, 8, 8], 2: [10, 10, 60, 60], 6: [3, 2, 110, 100]}  # small, medium, large


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture
def evaluate(kind, tmp_path):
    def run(content, detections, tasks=TASKS, category_ids=(1,), with_masks=True):
        for annotation in content["annotations"]:
            annotation.setdefault("iscrowd", 0)
        with dataset_of(content, tmp_path / "annotations.json") as name:
            evaluator = kind.make(name, tasks, output_folder=str(tmp_path / "out"))
            return process(evaluator, detections, category_ids, with_masks)

    return run


def one_of_each():
    categories = ((1, "f"), (2, "c"), (6, "r"))
    return make_content([make_annotation(1, key, box) for key, box in BOXES.items()], (1, 2), categories)


def names_of(kind, tasks):
    return [task + suffix for suffix in kind.suffixes for task in tasks]


@pytest.mark.parametrize(
    ("detections", "expected"),
    [
        ({1: [(key, 0.5, box) for key, box in BOXES.items()], 2: []}, 100.0),
        ({1: [], 2: []}, 0.0),
        ({1: [], 2: [(1, 0.9, BOXES[1])]}, 0.0),
    ],
)
def test_perfect_detections_give_the_maximum_and_nothing_found_gives_zero(kind, evaluate, detections, expected):
    results = evaluate(one_of_each(), detections, category_ids=IDS)
    assert list(results) == names_of(kind, TASKS)
    for scores in results.values():
        assert [scores[name] for name in kind.metrics] == pytest.approx([expected] * len(kind.metrics))


def test_masks_are_judged_by_their_pixels_and_their_area(evaluate):
    # The detected mask is the left three quarters of the annotated one: IoU 0.75, found up to the sixth threshold.
    box = [0, 0, 40, 40]
    results = evaluate(make_content([make_annotation(1, 1, box)]), {1: [(1, 0.9, box, box_mask([0, 0, 30, 40]))]})
    assert results["bbox"]["AP"] == pytest.approx(100.0)
    assert results["segm"]["AP"] == pytest.approx(60.0)
    # 20 x 20 of 40 x 40 pixels: a small mask, which as a wrong detection of small objects would count there only.
    small = [make_annotation(1, 1, box), make_annotation(1, 1, [60, 60, 16, 16])]
    found = {1: [(1, 0.9, box, box_mask([0, 0, 20, 20])), (1, 0.8, [60, 60, 16, 16])]}
    results = evaluate(make_content(small), found)
    assert results["segm"]["APs"] == pytest.approx(50.0)
    assert results["bbox"]["APs"] == pytest.approx(100.0)


def test_an_annotation_with_id_0_can_be_found(evaluate):
    results = evaluate(make_content([make_annotation(1, 1, BOXES[2], id=0)]), {1: [(1, 0.5, BOXES[2])]})
    assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(100.0)


def test_a_mask_that_cannot_be_used_is_named_and_never_found(evaluate, caplog):
    damaged = make_annotation(1, 1, BOXES[2], segmentation={"size": [HEIGHT, WIDTH], "counts": "P"})
    missing = make_annotation(2, 1, BOXES[2])
    del missing["segmentation"]
    content = make_content([damaged, missing, make_annotation(2, 1, BOXES[1])], (1, 2))
    with caplog.at_level(logging.WARNING):
        results = evaluate(content, {1: [(1, 0.9, BOXES[2])], 2: [(1, 0.9, BOXES[1])]})
    assert "(masks that count as not found: 2)" in caplog.text
    assert "annotations[0]" in caplog.text and "annotations[1]" in caplog.text
    # Boxes: 2 of 3 found without an error, 67 of 101 recalls. Masks: after image 1 comes the hit, 1 of 2 and 1 of 3.
    assert results["bbox"]["AP"] == pytest.approx(100 * 67 / 101)
    assert results["segm"]["AP"] == pytest.approx(100 * 34 / 101 / 2)


def test_boxes_alone_are_evaluated_where_no_mask_is_annotated(kind, evaluate, caplog):
    content = one_of_each()
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    with caplog.at_level(logging.WARNING):
        results = evaluate(content, {1: [(1, 0.5, BOXES[1])]}, category_ids=IDS, with_masks=False)
    assert list(results) == names_of(kind, ["bbox"]) and "masks are not evaluated" in caplog.text
    with pytest.raises(ValueError, match="'evaluated': expected a 'segmentation' in annotations"):
        evaluate(content, {}, ("segm",))


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (None, "image 1: expected pred_masks, .* found instances without them"),
        (torch.zeros(1, WIDTH, HEIGHT, dtype=torch.bool), r"shape \(1, 104, 120\), .*shape \(1, 120, 104\)"),
        (torch.zeros(1, HEIGHT, WIDTH), "expected pred_masks of torch.bool .*, found torch.float32"),
    ],
)
def test_detections_without_usable_masks_are_an_error_where_masks_are_evaluated(kind, tmp_path, masks, message):
    instances = make_instances([(1, 0.5, BOXES[1])], with_masks=False)
    if masks is not None:
        instances.pred_masks = masks
    sample = {"image_id": 1, "height": HEIGHT, "width": WIDTH}
    content = make_content([make_annotation(1, 1, BOXES[1], iscrowd=0)])
    with dataset_of(content, tmp_path / "annotations.json") as name:
        evaluator = kind.make(name, TASKS)
        evaluator.reset()
        with pytest.raises(ValueError, match=message):
            evaluator.process([sample], [{"instances": instances}])
        evaluator.process([sample], [{"instances": make_instances([], with_masks=False)}])
