"""Two classes on two images, small enough to be counted by hand."""

import math

import numpy as np
import pytest

from glipv2_d2.evaluation.detection_report import class_reports, confusion, find_cut_off

CAT, DOG = 1, 2


def truth(*boxes):
    annotations = [
        {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for number, (image, category, box) in enumerate(boxes, 1)
    ]
    categories = [{"id": CAT, "name": "cat"}, {"id": DOG, "name": "dog"}]
    images = [{"id": number, "height": 100, "width": 100, "file_name": f"{number}.png"} for number in (1, 2)]
    return {"images": images, "annotations": annotations, "categories": categories}


def found(*boxes):
    return [
        {"image_id": image, "category_id": category, "bbox": box, "score": score}
        for image, category, box, score in boxes
    ]


A, B, C, FAR = [0, 0, 20, 20], [50, 50, 20, 20], [0, 60, 20, 20], [80, 0, 15, 15]


def test_precision_over_recall_by_hand():
    """Three cats; the detections from the best one on are right, wrong, right, and the third cat is never found."""
    data = truth((1, CAT, A), (1, CAT, B), (2, CAT, A))
    cat, dog = class_reports(data, found((1, CAT, A, 0.9), (1, CAT, FAR, 0.8), (2, CAT, A, 0.7)))
    assert (cat.name, cat.num_boxes, dog.name, dog.num_boxes) == ("cat", 3, "dog", 0)
    # Recall 1/3 with precision 1, recall 2/3 with precision 2/3, and nothing beyond.
    assert cat.precisions[:34] == pytest.approx(np.ones(34))
    assert cat.precisions[34:67] == pytest.approx(np.full(33, 2 / 3))
    assert cat.precisions[67:] == pytest.approx(np.zeros(34))
    assert cat.ap50 == pytest.approx(100 * (34 + 33 * 2 / 3) / 101)
    # The boxes fit exactly, so that all thresholds of IoU give the same.
    assert cat.ap == pytest.approx(cat.ap50)
    assert math.isnan(dog.ap) and math.isnan(dog.ap50) and np.isnan(dog.precisions).all()


def test_a_class_that_is_never_found_has_ap_zero():
    cat, _ = class_reports(truth((1, CAT, A)), [])
    assert (cat.ap, cat.ap50) == (0.0, 0.0)


def test_the_truth_stays_as_it_is():
    data = truth((1, CAT, A))
    before = [dict(one) for one in data["annotations"]]
    class_reports(data, found((1, CAT, A, 0.9)))
    assert data["annotations"] == before


@pytest.mark.parametrize(
    ("detections", "expected"),
    [
        # F1 after one: 2 * 1 / (1 + 2) = 0.67; after three: 2 * 2 / (3 + 2) = 0.8, with precision 2/3 and recall 1.
        ([(1, CAT, A, 0.9), (1, CAT, FAR, 0.8), (1, DOG, B, 0.7)], (0.7, 2 / 3, 1.0)),
        # The second detection of one box is wrong: best is the first alone.
        ([(1, CAT, A, 0.9), (1, CAT, A, 0.8)], (0.9, 1.0, 0.5)),
        # A box of another class does not count.
        ([(1, DOG, A, 0.9)], (0.3, 0.0, 0.0)),
        # Equal scores are cut together: two of three right, F1 0.8.
        ([(1, CAT, A, 0.9), (1, CAT, FAR, 0.9), (1, DOG, B, 0.9)], (0.9, 2 / 3, 1.0)),
        ([], (0.3, 0.0, 0.0)),
    ],
)
def test_cut_off_has_the_highest_f1(detections, expected):
    assert find_cut_off(truth((1, CAT, A), (1, DOG, B)), found(*detections)) == pytest.approx(expected)


def test_detections_on_a_crowd_do_not_count():
    data = truth((1, CAT, A), (1, CAT, [40, 40, 50, 50]))
    data["annotations"][1]["iscrowd"] = 1
    detections = found((1, CAT, A, 0.5), (1, CAT, B, 0.9), (1, CAT, [45, 45, 10, 10], 0.8))
    assert find_cut_off(data, detections) == pytest.approx((0.5, 1.0, 1.0))
    assert confusion(data, detections, 0.0).counts.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("order", [1, -1])
def test_confusions_do_not_depend_on_the_order_of_detections(order):
    """One box is found as both classes, as detectors find it; and two objects are in one box."""
    twice = found((1, DOG, A, 0.4), (1, CAT, A, 0.6))[::order]
    assert confusion(truth((1, CAT, A)), twice, 0.3).counts.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert confusion(truth((1, DOG, A)), twice, 0.3).counts.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
    equal = found((1, DOG, A, 0.6), (1, CAT, A, 0.6))[::order]
    assert confusion(truth((1, CAT, A), (1, DOG, A)), equal, 0.3).counts.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_confusions_by_hand():
    """A cat is found, a dog is taken for a cat, a dog is not found, and a dog is seen where nothing is."""
    data = truth((1, CAT, A), (1, DOG, B), (2, DOG, C))
    detections = found((1, CAT, A, 0.9), (1, CAT, B, 0.6), (1, DOG, FAR, 0.5), (2, DOG, C, 0.1))
    result = confusion(data, detections, 0.3)
    assert result.names == ["cat", "dog"]
    assert result.counts.tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]


def test_the_nearest_detection_takes_a_box():
    """Both overlap the box by more than a half; the farther one is left over, whatever its score."""
    detections = found((1, DOG, [0, 0, 20, 16], 0.9), (1, CAT, A, 0.5))
    assert confusion(truth((1, CAT, A)), detections, 0.3).counts.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
