"""The fast engine of AP gives the arrays of the official packages bit for bit, and without it they take its place."""

import copy
import logging
import sys

import numpy as np
import pytest
import torch
from detection_cases import dataset_of, make_annotation, make_content, process, random_case, run_lengths
from hypothesis import given, settings
from hypothesis import strategies as st

from glipv2_d2.errors import InputError
from glipv2_d2.evaluation import ap_engine
from glipv2_d2.evaluation.ap_engine import average_precisions, mean_precision, precisions
from glipv2_d2.evaluation.ap_inputs import DetectionRows
from glipv2_d2.evaluation.coco_evaluator import COCOInstanceEvaluator
from glipv2_d2.evaluation.lvis_evaluator import LVISEvaluator
from glipv2_d2.evaluation.mask_encoding import encode_masks

TASKS = ("bbox", "segm")
RULES = ("coco", "lvis")
HEIGHT, WIDTH = 12, 16
BOX, FAR = [10.0, 10.0, 40.0, 40.0], [70.0, 60.0, 8.0, 8.0]

# Also 0, in any order, and more than a double holds.
IDS = st.lists(st.integers(0, 9) | st.integers(2**53, 2**53 + 3), min_size=1, max_size=3, unique=True)
# Sides at the limits of small and medium areas, zero, negative ones, and any other.
SIDES = st.sampled_from([0.0, -1.0, 4.0, 6.0, 32.0, 96.0, 288.0]) | st.floats(0, 200, width=32)
CORNERS = st.sampled_from([0.0, 2.0, -3.0]) | st.floats(-5, 40, width=32)
BOXES = st.tuples(CORNERS, CORNERS, SIDES, SIDES).map(list)
# Often equal, both zeros, and neighbours.
SCORES = st.sampled_from([0.0, -0.0, 0.5, 0.5 + 2.0**-24, 1.0]) | st.floats(0, 1, width=32)
AREAS = st.none() | st.sampled_from([0.0, 1024.0, 9216.0, 1e10])
POLYGONS = st.lists(st.lists(st.floats(-3, 18, width=32), min_size=6, max_size=6), min_size=1, max_size=2)


def rectangle(values):
    top, left, height, width = values
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    return mask


MASKS = st.tuples(st.integers(0, 10), st.integers(0, 14), st.integers(0, 12), st.integers(0, 16)).map(rectangle)


def rows_of(found):
    """Rows of detections, each image id, category id, score, box and, for masks, a tensor."""
    columns = DetectionRows.from_results(
        [{"image_id": one[0], "category_id": one[1], "score": one[2], "bbox": one[3]} for one in found]
    )
    counts = np.full(len(found), None, dtype=object)
    for row, one in enumerate(found):
        counts[row] = encode_masks(one[4][None])[0] if len(one) > 4 else None
    sizes = np.tile(np.array([[HEIGHT, WIDTH]], dtype=np.int32), (len(found), 1))
    return columns._replace(image_sizes=sizes, counts=counts)


@st.composite
def cases(draw):
    """A truth in LVIS's format with crowd regions, and detections; boxes, masks and scores are often equal."""
    image_ids, category_ids = draw(IDS), draw(IDS)
    image, category = st.sampled_from(image_ids), st.sampled_from(category_ids)
    box = st.sampled_from(draw(st.lists(BOXES, min_size=1, max_size=4))) | BOXES
    mask = st.sampled_from(draw(st.lists(MASKS, min_size=1, max_size=3)))
    segmentation = mask.map(run_lengths) | POLYGONS
    annotation = st.tuples(image, category, box, AREAS, st.booleans(), segmentation)
    some = st.lists(category, max_size=2, unique=True)
    truth = {
        "images": [
            {
                **{"id": one, "height": HEIGHT, "width": WIDTH},
                **{"neg_category_ids": draw(some), "not_exhaustive_category_ids": draw(some)},
            }
            for one in image_ids
        ],
        "categories": [{"id": one, "name": str(one), "frequency": "f"} for one in category_ids],
        "annotations": [
            {
                **{"id": 7, "image_id": image_id, "category_id": category_id, "bbox": one, "iscrowd": int(crowd)},
                **{"area": one[2] * one[3] if area is None else area, "segmentation": shape},
            }
            for image_id, category_id, one, area, crowd, shape in draw(st.lists(annotation, max_size=8))
        ],
    }
    return truth, rows_of(draw(st.lists(st.tuples(image, category, SCORES, box, mask), max_size=12)))


def known_to_lvis(truth, rows):
    """Detections of categories that LVIS judges in their image, as its evaluator selects them."""
    pairs = {(one["image_id"], one["category_id"]) for one in truth["annotations"]}
    pairs |= {(image["id"], one) for image in truth["images"] for one in image["neg_category_ids"]}
    found = zip(rows.image_ids.tolist(), rows.category_ids.tolist())
    return rows.select(np.array([pair in pairs for pair in found], dtype=bool))


def assert_engines_agree(truth, rows, task, rules, **more):
    # Without it both would be the reference.
    pytest.importorskip("hotcoco")
    rows = known_to_lvis(truth, rows) if rules == "lvis" else rows
    before = copy.deepcopy(truth)
    fast = precisions(truth, rows, task, rules=rules, **more)
    reference = precisions(truth, rows, task, rules=rules, engine="reference", **more)
    assert fast.shape == reference.shape == (10, 101, len(truth["categories"]), 4)
    assert fast.dtype == reference.dtype and np.array_equal(fast, reference)
    assert truth == before
    return fast


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("task", TASKS)
@given(case=cases())
@settings(max_examples=12)
def test_engines_agree_bit_for_bit(task, rules, case):
    assert_engines_agree(*case, task, rules)


@pytest.mark.slow
@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("task", TASKS)
@given(case=cases())
@settings(max_examples=300)
def test_engines_agree_bit_for_bit_on_many(task, rules, case):
    assert_engines_agree(*case, task, rules)


@pytest.mark.parametrize(
    ("rules", "counted", "more"), [("coco", 100, {}), ("coco", 300, {"limit": 300}), ("lvis", 100_000, {})]
)
@pytest.mark.parametrize("before", [99, 100, 299, 300])
def test_the_limit_of_an_image_and_category_is_100_for_coco_and_none_for_lvis(rules, counted, more, before):
    truth = make_content([make_annotation(1, 1, [10, 10, 40, 40], iscrowd=0)])
    rows = rows_of([(1, 1, 0.9, FAR)] * before + [(1, 1, 0.5, BOX)])
    precision = assert_engines_agree(truth, rows, "bbox", rules, **more)
    expected = 100 / (before + 1) if before < counted else 0.0
    assert average_precisions(precision)["AP"] == pytest.approx(expected)


@pytest.mark.parametrize("rules", RULES)
def test_what_is_not_in_the_truth_is_passed_over(rules):
    truth = make_content([make_annotation(image_id, 1, [10, 10, 40, 40], iscrowd=0) for image_id in (1, 9)])
    found = [(1, 1, 0.5, BOX), (2, 1, 0.9, FAR), (0, 1, 0.9, FAR), (1, 8, 0.9, BOX)]
    columns = [rows_of(found), rows_of(found[:1])]
    for engine in ("auto", "reference"):
        both = [precisions(truth, rows, "bbox", rules=rules, engine=engine) for rows in columns]
        assert np.array_equal(*both) and average_precisions(both[0])["AP"] == pytest.approx(100.0)


@pytest.mark.parametrize("found", [(0.9, [0.0, 0.0, float("inf"), 4.0]), (float("nan"), BOX)])
def test_values_that_are_not_finite_go_to_the_reference(monkeypatch, found):
    monkeypatch.setattr(ap_engine, "_by_hotcoco", lambda *_: pytest.fail("the fast engine"))
    truth = make_content([make_annotation(1, 1, [10, 10, 40, 40], iscrowd=0)])
    assert precisions(truth, rows_of([(1, 1, *found), (1, 1, 0.5, FAR)]), "bbox").shape == (10, 101, 1, 4)


def test_means_leave_out_what_is_not_annotated():
    precision = np.full((10, 101, 2, 4), -1.0)
    precision[:, :, 0, 0] = np.linspace(1, 0, 10)[:, None]
    found = average_precisions(precision)
    assert found["AP"] == pytest.approx(50.0)
    assert (found["AP50"], found["AP75"]) == (pytest.approx(100.0), pytest.approx(100 * 4 / 9))
    assert all(np.isnan(found[name]) for name in ("APs", "APm", "APl"))
    assert np.isnan(mean_precision(precision[:, :, 1, 0]))


def all_results(folder, **options):
    content, detections, ids = random_case(7)
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 0
    with dataset_of(content, folder / "annotations.json") as name:
        evaluators = (COCOInstanceEvaluator(name, TASKS, **options), LVISEvaluator(name, TASKS, **options))
        return repr([process(evaluator, detections, ids) for evaluator in evaluators])


@pytest.fixture
def forget_engine():
    ap_engine._fast_engine.cache_clear()
    yield
    ap_engine._fast_engine.cache_clear()


def test_without_the_fast_engine_one_line_says_so_and_the_results_are_the_same(
    forget_engine, monkeypatch, tmp_path, caplog
):
    expected = all_results(tmp_path)
    ap_engine._fast_engine.cache_clear()
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    with caplog.at_level(logging.INFO):
        assert all_results(tmp_path) == expected
    (record,) = [record for record in caplog.records if "hotcoco" in record.getMessage()]
    assert "\n" not in record.getMessage() and "pip install hotcoco" in record.getMessage()


def test_the_reference_does_without_the_fast_engine_and_says_nothing(forget_engine, monkeypatch, tmp_path, caplog):
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    with caplog.at_level(logging.INFO):
        assert all_results(tmp_path, engine="reference")
    assert "hotcoco" not in caplog.text


def test_another_engine_is_an_error(tmp_path):
    with pytest.raises(InputError, match="TEST.EVALUATION_ENGINE: expected one of .* found 'fast'"):
        all_results(tmp_path, engine="fast")
