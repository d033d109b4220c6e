import math

import pytest
from check_cases import DOG, by_kind, check, encoded
from hypothesis import given
from hypothesis import strategies as st

from glipv2_d2.data_check.boxes import box_kind, needed_input_size
from glipv2_d2.data_check.facts import BoxFacts, DataFacts, ImageFacts, input_scale

NAMES = ("dog", "cat")


def facts(*sides, size=(480, 640), input_size=(192, 256)):
    """A set of one image with square boxes of some sides."""
    boxes = tuple(BoxFacts("dog", (0, 0, side, side)) for side in sides)
    return DataFacts("mine", [ImageFacts("train", "a", "a", size, boxes)], ["dog"], {}, input_size, [3])


@pytest.mark.parametrize(
    ("corners", "kind"),
    [
        ((0, 0, 64, 48), ""),
        ((-1, 0, 64, 48), "reaching out"),
        ((0, 0, 64, 48.5), "reaching out"),
        ((0, 0, 0, 9), "without area"),
        ((9, 9, 4, 20), "without area"),
        ((70, 0, 80, 9), "outside"),
        ((-9, -9, 0, 5), "outside"),
        ((0, 0, math.nan, 9), "faulty"),
        ((0, 0, math.inf, 9), "faulty"),
    ],
)
def test_kinds_of_boxes(corners, kind):
    assert box_kind(corners, (48, 64)) == kind


@given(st.tuples(*[st.integers(-5, 70)] * 4))
def test_the_kind_of_a_box_is_that_of_its_pixels(corners):
    left, top, right, bottom = corners
    pixels = {(x, y) for x in range(left, right) for y in range(top, bottom)}
    inside = {(x, y) for x, y in pixels if 0 <= x < 64 and 0 <= y < 48}
    expected = "without area" if not pixels else "outside" if not inside else "reaching out" * (inside != pixels)
    assert box_kind(corners, (48, 64)) == expected


@pytest.mark.parametrize(
    ("box", "kind", "severity"),
    [
        (("dog", 8, 8, 8, 40), "boxes without area", "warning"),
        (("dog", 70, 0, 80, 9), "boxes outside", "warning"),
        (("dog", 30, 30, 80, 48), "boxes reaching out", "note"),
        (("dog", 0, 0, math.nan, 9), "boxes faulty", "warning"),
        (DOG, "boxes twice", "warning"),
        (("cat", *DOG[1:]), "boxes of two classes", "note"),
        (("cat", 0, 0, 30, 30, "crowd"), "crowd boxes", "note"),
    ],
)
def test_each_kind_of_box_is_named_with_its_image(tmp_path, box, kind, severity):
    images = {f"{k}.jpg": (encoded(k), [DOG, ("cat", 1, 1, 20, 20)]) for k in range(5)}
    images["x.jpg"] = (encoded(9), [DOG, box])
    found = by_kind(check(tmp_path, {"train": images}, NAMES))
    assert (found[kind].severity, found[kind].number) == (severity, 1)
    assert found[kind].cases[0].startswith(f"train/x.jpg: {box[0]} [")
    assert set(found) <= {kind, "tiny boxes"}


def test_relative_coordinates_are_a_stop(tmp_path):
    boxes = [("dog", 0.1, 0.2, 0.6, 0.9)]
    findings = check(tmp_path, {"train": {f"{k}.jpg": (encoded(k), boxes) for k in range(5)}})
    (stop,) = findings.stops
    assert stop.kind == "relative boxes" and "parts of the image from 0 to 1" in stop.text and stop.number == 5
    assert "width and height" in stop.advice


def test_coordinates_in_per_cent_are_a_warning(tmp_path):
    images = {f"{k}.jpg": (encoded(k, (320, 310)), [("dog", 5 * k, 10, 60, 95)], 320, 310) for k in range(10)}
    images |= {f"{k}b.jpg": (encoded(k + 10, (320, 310)), [("dog", 3, 10, 99, 95)], 320, 310) for k in range(10)}
    one = by_kind(check(tmp_path, {"train": images}))["relative boxes"]
    assert one.severity == "warning" and "per cent" in one.text


def test_one_box_of_a_pixel_is_not_taken_for_relative_coordinates(tmp_path):
    images = {f"{k}.jpg": (encoded(k), [DOG]) for k in range(5)} | {"x.jpg": (encoded(9), [("dog", 0, 0, 1, 1)])}
    assert set(by_kind(check(tmp_path, {"train": images}))) == {"tiny boxes"}


def test_tiny_is_judged_at_the_size_that_the_model_sees():
    # 480 x 640 pixels become 192 x 256: 20 become 8, 19 become 7.6.
    assert input_scale((480, 640), (192, 256)) == 0.4
    assert facts(20, 19).short_sides().tolist() == pytest.approx([8, 7.6])
    assert input_scale((640, 480), (192, 256)) == 0.4
    # The longer side is the limit: 200 x 1000 become 51 x 255.
    assert input_scale((200, 1000), (192, 256)) == pytest.approx(51 / 200)


def test_the_share_of_tiny_boxes_and_the_size_they_need(tmp_path):
    boxes = [("dog", 0, 0, 10, 10), ("dog", 20, 20, 200, 200), ("dog", 30, 300, 200, 420), ("dog", 40, 40, 90, 90)]
    images = {f"{k}.jpg": (encoded(k, (640, 480)), boxes, 640, 480) for k in range(2)}
    one = by_kind(check(tmp_path, {"train": images}))["tiny boxes"]
    assert one.text == "2 of 8 boxes (25 %) are under 8 pixels at input size 192"
    # 10 of 480 pixels are 8 of 384.
    assert one.advice == "at INPUT.MIN_SIZE_TEST 384 nine of ten boxes are large enough"
    assert one.cases == ("train/0.jpg: dog 4.0 pixels", "train/1.jpg: dog 4.0 pixels")


@pytest.mark.parametrize(
    ("sides", "expected"), [([20] * 10, 192), ([10] * 10, 384), ([10] + [20] * 99, 192), ([1] * 10, 480), ([], 0)]
)
def test_needed_input_size(sides, expected):
    assert needed_input_size(facts(*sides)) == expected


def test_few_tiny_boxes_are_a_note(tmp_path):
    images = {f"{k}.jpg": (encoded(k), [DOG, ("dog", 2, 2, 30, 30)]) for k in range(10)}
    images["x.jpg"] = (encoded(99), [("dog", 0, 0, 1, 1)])
    one = by_kind(check(tmp_path, {"train": images}))["tiny boxes"]
    assert (one.severity, one.advice, one.number) == ("note", "", 1)


def test_more_boxes_than_detections_are_named(tmp_path):
    boxes = [("dog", x, y, x + 4, y + 4) for x in range(12) for y in range(9)]
    one = by_kind(check(tmp_path, {"train": {"a.jpg": (encoded(1), boxes)}}))["many boxes"]
    assert "100 detections" in one.text and one.advice == "set TEST.DETECTIONS_PER_IMAGE 108"
    assert one.cases == ("train/a.jpg: 108",)


def test_a_set_without_boxes_is_a_stop(tmp_path):
    findings = check(tmp_path, {"train": {"a.jpg": (encoded(1), [])}})
    assert [one.kind for one in findings.stops] == ["no boxes"] and "annotations" in findings.lines()[2]


# --- classes


def test_classes_are_compared_between_splits(tmp_path):
    names = ("both", "train only", "val only", "none", "rare")
    boxes = [(name, 8, 8, 40, 40 + k) for k, name in enumerate(names[:2])]
    train = {f"{k}.jpg": (encoded(k), boxes) for k in range(5)} | {"r.jpg": (encoded(7), [("rare", 1, 1, 30, 30)])}
    val = {"v.jpg": (encoded(8), [("both", 1, 1, 30, 30), ("val only", 2, 2, 30, 31), ("rare", 3, 3, 30, 32)])}
    found = by_kind(check(tmp_path, {"train": train, "val": val}, names))
    assert {kind: one.cases for kind, one in found.items()} == {
        "classes without boxes": ("none",),
        "classes not trained": ("val only (1)",),
        "rare classes": ("rare (1)",),
        "classes not in val": ("train only (5)",),
    }


def test_a_set_without_training_images_is_a_stop(tmp_path):
    findings = check(tmp_path, {"test": {"a.jpg": (encoded(1), [DOG])}})
    assert [one.kind for one in findings.stops] == ["no training images"]


def test_validation_images_train_where_there_are_test_images_to_validate_with(tmp_path):
    images = {"a.jpg": (encoded(1), [DOG])}, {"b.jpg": (encoded(2), [("cat", 1, 1, 30, 30)])}
    findings = check(tmp_path, dict(zip(("val", "test"), images, strict=True)), ("dog", "cat"))
    found = by_kind(findings)
    assert not findings.stops and found["no training images"].severity == "warning"
    assert found["classes not trained"].cases == ("cat (1)",) and found["classes not in val"].cases == ("dog (1)",)


@pytest.mark.parametrize(("empty", "severity"), [(1, "note"), (7, "warning")])
def test_images_without_boxes_are_counted(tmp_path, empty, severity):
    images = {f"{k}.jpg": (encoded(k), [DOG]) for k in range(5)}
    images |= {f"e{k}.jpg": (encoded(20 + k), []) for k in range(empty)}
    one = by_kind(check(tmp_path, {"train": images}))["images without boxes"]
    assert (one.severity, one.number) == (severity, empty) and one.text.startswith(f"{empty} of {5 + empty} images ha")
