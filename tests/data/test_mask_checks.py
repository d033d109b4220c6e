import copy
import logging
import math

import numpy as np
import pytest
from detectron2.structures import BoxMode
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_util

from glipv2_d2.data.datasets import mask_checks
from glipv2_d2.data.datasets.mask_checks import decode_counts, keep_usable_masks, leave_out_masks, read_segmentation
from glipv2_d2.data.datasets.value_checks import EntryError

HEIGHT, WIDTH = 6, 8
TRIANGLE = [1, 1, 5.5, 1, 1, 5]
SQUARE = [2, 2, 6, 2, 6, 5, 2, 5]


def runs_of(bitmap: np.ndarray) -> list[int]:
    """Lengths of runs of 0 and 1 in turn, down the columns, counted pixel by pixel."""
    runs, value = [0], 0
    for pixel in bitmap.T.reshape(-1).tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


def bitmap_of(runs: list[int], height: int, width: int) -> np.ndarray:
    pixels = [row % 2 for row, run in enumerate(runs) for _ in range(run)]
    return np.array(pixels, dtype=np.uint8).reshape(width, height).T


def random_bitmap(height: int, width: int, seed: int, share: float) -> np.ndarray:
    return np.asfortranarray(np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)


bitmaps = st.builds(
    random_bitmap,
    st.integers(1, 12),
    st.integers(1, 40),
    seed=st.integers(0, 10**6),
    share=st.sampled_from([0, 0.02, 0.5, 0.9, 1]),
)


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("0", [0]),
        ("324", [3, 2, 4]),
        # 29 = -3 in five bits, added to the number two before.
        ("354M", [3, 5, 4, 2]),
        # 16 needs the bit of the sign, so a second character: 16 + 32 that it goes on, then 0.
        ("`0", [16]),
        # 100 = 4 + 3 * 32.
        ("T3", [100]),
        # The first, second and third number are no differences; the fourth and fifth are.
        ("11111", [1, 1, 1, 2, 2]),
        ("M", [-3]),
    ],
)
def test_compressed_counts_by_hand(text, counts):
    assert decode_counts(text.encode()).tolist() == counts


@settings(max_examples=200)
@given(bitmap=bitmaps)
def test_counts_of_pycocotools_decode_to_the_runs_of_the_mask(bitmap):
    assert decode_counts(mask_util.encode(bitmap)["counts"]).tolist() == runs_of(bitmap)


@settings(max_examples=100)
@given(runs=st.lists(st.integers(0, 2**24) | st.integers(0, 40), min_size=1, max_size=20))
def test_counts_of_long_runs_decode(runs):
    compressed = mask_util.frPyObjects({"size": [1, sum(runs)], "counts": runs}, 1, sum(runs))
    assert decode_counts(compressed["counts"]).tolist() == runs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "expected characters"),
        (b"1/", "expected characters from '0' to 'o'"),
        (b"1p", "expected characters"),
        (b"1\x00", "expected characters"),
        (b"1\xff", "expected characters"),
        (b"P", "expected a last number that is complete"),
        (b"1oo", "expected a last number that is complete"),
        (b"PPPPPP0", "expected numbers of at most 6 characters"),
    ],
)
def test_text_that_is_no_code_is_named(text, message):
    with pytest.raises(EntryError, match=message):
        decode_counts(text)


def test_six_characters_are_the_longest_number():
    assert decode_counts(b"PPPPP0").tolist() == [0]
    assert decode_counts(b"PPPPP1").tolist() == [2**25]


def test_polygons_stay_as_they_are():
    value = [TRIANGLE, SQUARE]
    assert read_segmentation(value, HEIGHT, WIDTH) == [TRIANGLE, SQUARE]
    # Over the border by up to the size of the image.
    assert read_segmentation([[-8, -6, 16, -6, 16, 12]], HEIGHT, WIDTH) == [[-8, -6, 16, -6, 16, 12]]


@settings(max_examples=100)
@given(bitmap=bitmaps, form=st.sampled_from(["str", "bytes", "list"]))
def test_a_mask_survives_in_each_form_of_rle(bitmap, form):
    height, width = bitmap.shape
    compressed = mask_util.encode(bitmap)["counts"]
    counts = {"str": compressed.decode(), "bytes": compressed, "list": runs_of(bitmap)}[form]
    value = {"size": [height, width], "counts": counts}
    before = copy.deepcopy(value)
    if not bitmap.any():
        with pytest.raises(EntryError, match="expected a mask that is not empty"):
            read_segmentation(value, height, width)
        return
    rle = read_segmentation(value, height, width)
    assert rle == {"size": [height, width], "counts": compressed.decode()} and value == before
    assert np.array_equal(mask_util.decode(rle), bitmap)


@pytest.mark.parametrize("runs", [[0, 2, 0, 4], [1, 0, 2, 3], [1, 5, 0], [0, 0, 3, 3], [3, 1, 0, 0, 2]])
def test_empty_runs_are_taken_out(runs):
    rle = read_segmentation({"size": [2, 3], "counts": runs}, 2, 3)
    assert np.array_equal(mask_util.decode(rle), bitmap_of(runs, 2, 3))
    assert 0 not in decode_counts(rle["counts"].encode())[1:]


# Line by line: no area in the image, so nothing is lost by leaving them out.
NO_EFFECT = {
    "no points": [],
    "two points": [1, 1, 4, 4],
    "left": [-4, 1, 0, 1, -2, 4],
    "right": [8, 1, 12, 1, 9, 4],
    "above": [1, -4, 5, -4, 3, 0],
    "below": [1, 6, 5, 6, 3, 9],
    "one point three times": [3, 3, 3, 3, 3, 3],
    "horizontal line": [1, 3, 5, 3, 7, 3],
    "slanted line": [0, 0, 0.1, 0.2, 0.3, 0.6],
}


@pytest.mark.parametrize("polygon", NO_EFFECT.values(), ids=NO_EFFECT)
def test_polygons_without_effect_are_left_out_and_never_alone(polygon):
    assert read_segmentation([polygon, SQUARE, polygon], HEIGHT, WIDTH) == [SQUARE]
    with pytest.raises(EntryError, match="^polygon: expected at least 3 points .*(points|lies outside|has no area)$"):
        read_segmentation([polygon, polygon], HEIGHT, WIDTH)


def test_an_outline_that_crosses_itself_has_area():
    # Its two halves have opposite signs, so that the signed area is 0.
    bow = [1, 1, 5, 5, 5, 1, 1, 5]
    assert read_segmentation([bow], HEIGHT, WIDTH) == [bow]


def rle(counts, size=(HEIGHT, WIDTH)) -> dict:
    return {"size": list(size), "counts": counts}


BAD = {
    "nothing": (None, "segmentation: expected .*a list of polygons, or an object with counts.*found None"),
    "text": ("polygon", "segmentation: expected .*a list of polygons.*found 'polygon'"),
    "no polygon": ([], r"segmentation: expected .*a list of polygons.*found \[\]"),
    "flat": ([1, 2, 3, 4, 5, 6], "expected a list of polygons"),
    "polygon of None": ([[None] * 6], "polygon: expected .*finite numbers.*found .*None.*"),
    "polygon of text": ([["one"] * 6], "expected finite numbers"),
    "polygon of true": ([[True] * 6], "expected finite numbers"),
    "points as pairs": ([[[1, 1], [5, 1], [1, 5]]], "expected finite numbers"),
    "ragged": ([[[1, 1], [5], [1, 5]]], "expected finite numbers"),
    "nan": ([[1, 1, 5, math.nan, 1, 5]], "polygon: expected .*finite numbers.*found .*nan.*"),
    "infinity": ([[1, 1, 5, math.inf, 1, 5]], "expected finite numbers"),
    "huge": ([[1, 1, 5, 10**400, 1, 5]], "expected finite numbers"),
    "odd": ([SQUARE, [1, 1, 5, 1, 1, 5, 3]], "polygon: expected x and y of each point, found"),
    "far left": (
        [[-8.1, 1, 5, 1, 1, 5]],
        r"expected .* an image of 8 x 6 pixels, found one from \(-8.1, 1\) to \(5, 5\)",
    ),
    "far below": ([[1, 1, 5, 1, 1, 12.1]], r"expected at most the size .*to \(5, 12.1\)"),
    "far above": ([[1, 1, 5, 1, 1, -6.1]], r"from \(1, -6.1\)"),
    "far right": ([[1, 1, 16.1, 1, 1, 5]], r"to \(16.1, 5\)"),
    "too many points": ([SQUARE * 1250, SQUARE * 1251], "expected at most 10000 points, found 10004"),
    "no counts": ({"size": [HEIGHT, WIDTH]}, "counts: expected .*a string or a list.*found None"),
    "number as counts": (rle(7), "counts: expected .*a string or a list.*found 7"),
    "no size": ({"counts": [10, 38]}, r"size of segmentation: expected \[6, 8\], that of its image, found None"),
    "size turned": (rle([10, 38], (WIDTH, HEIGHT)), r"expected \[6, 8\], that of its image, found \[8, 6\]"),
    "size of three": (rle([10, 38], (HEIGHT, WIDTH, 1)), "expected .* that of its image"),
    "size of floats": (rle([10, 38], (6.0, 8.0)), "expected .* that of its image"),
    "text as size": ({"size": "68", "counts": [10, 38]}, "expected .* that of its image"),
    "floats": (rle([10.0, 38.0]), "counts: expected .*integers.*found .*"),
    "runs of true": (rle([47, True]), "expected integers"),
    "lists": (rle([[10], [38]]), "expected integers"),
    "huge run": (rle([10, 10**400]), "expected integers"),
    "negative run": (rle([10, -2, 40]), "expected runs that add up to 6 x 8 pixels"),
    "too short": (rle([10, 37]), "expected runs that add up"),
    "too long": (rle([10, 39]), "expected runs that add up"),
    "overflow": (rle([2**52] * 4096 + [10, 38]), "expected runs that add up"),
    "no runs": (rle([]), "expected runs that add up"),
    "empty mask": (rle([48]), r"counts: expected .*a mask that is not empty.*found \[48\]"),
    "empty mask with an empty run": (rle([40, 0, 8]), "expected a mask that is not empty"),
    "empty text": (rle(""), "counts: expected .*characters.*found b''"),
    # With "?" in place of the first letter these would be runs of 15 and 33.
    "other letters": (rle("\u00e9Q1"), "expected characters from '0' to 'o'"),
    "half a character": (rle("\ud800Q1"), "expected characters from '0' to 'o'"),
    "text too short": (rle("10"), "counts: expected .*runs that add up.*found '10'"),
    "bytes cut": (rle(b"oo"), "expected a last number that is complete"),
}


@pytest.mark.parametrize(("value", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_used_is_named_before_native_code_sees_it(value, message, monkeypatch):
    monkeypatch.setattr(mask_checks, "mask_util", None)
    with pytest.raises(EntryError, match=message) as raised:
        read_segmentation(value, HEIGHT, WIDTH)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


def test_the_limits_themselves_are_allowed():
    spiral = [coordinate for i in range(10_000) for coordinate in (i % 5, i % 4)]
    assert read_segmentation([spiral], 60, 80) == [spiral]
    rows = [[x, y, x + 1, y, x, y + 1] for x in range(5) for y in range(5)]
    assert read_segmentation(rows, HEIGHT, WIDTH) == rows


def test_an_image_too_large_for_the_runs_of_pycocotools_has_no_rle():
    side = 2**15
    value = {"size": [side, 2**14], "counts": [0, side * 2**14]}
    with pytest.raises(EntryError, match="expected less than 536870912 pixels"):
        read_segmentation(value, side, 2**14)
    value = {"size": [side, 2**14 - 1], "counts": [0, side * (2**14 - 1)]}
    text = read_segmentation(value, side, 2**14 - 1)["counts"]
    assert decode_counts(text.encode()).tolist() == value["counts"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 60) | st.integers() | st.floats() | st.text(max_size=6) | st.binary(),
    lambda values: (
        st.lists(values, max_size=8) | st.dictionaries(st.sampled_from(["size", "counts", "x"]), values, max_size=3)
    ),
    max_leaves=30,
)
garbage = (
    json_values
    | st.lists(st.lists(st.floats() | st.integers(-20, 20), max_size=9), max_size=3)
    | st.fixed_dictionaries(
        {
            "size": st.just([HEIGHT, WIDTH]),
            "counts": st.text(alphabet=[chr(code) for code in range(46, 114)], max_size=12)
            | st.binary(max_size=8)
            | st.lists(st.integers(-2, 30), max_size=6),
        }
    )
)


class CarefulNativeCode:
    """pycocotools, of which every call is checked to be about a mask of the image, run by run."""

    def check(self, rle):
        runs = rle["counts"] if isinstance(rle["counts"], list) else decode_counts(_as_bytes(rle["counts"])).tolist()
        assert rle["size"] == [HEIGHT, WIDTH] and sum(runs) == HEIGHT * WIDTH and min(runs) >= 0
        return rle

    def frPyObjects(self, rle, height, width):
        assert (height, width) == (HEIGHT, WIDTH)
        return mask_util.frPyObjects(self.check(rle), height, width)

    def decode(self, rle):
        return mask_util.decode(self.check(rle))

    def encode(self, bitmap):
        assert bitmap.shape == (HEIGHT, WIDTH) and bitmap.dtype == np.uint8 and bitmap.flags.f_contiguous
        return mask_util.encode(bitmap)


def _as_bytes(text: str | bytes) -> bytes:
    return text.encode("ascii") if isinstance(text, str) else text


@settings(max_examples=400)
@given(value=garbage)
def test_any_garbage_is_an_error_of_one_line_or_a_proper_mask(value):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mask_checks, "mask_util", CarefulNativeCode())
        try:
            result = read_segmentation(value, HEIGHT, WIDTH)
        except EntryError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
            return
    if isinstance(result, dict):
        assert isinstance(value, dict) and mask_util.decode(result).shape == (HEIGHT, WIDTH)
        assert mask_util.area(result) > 0
    else:
        assert result and all(polygon in value for polygon in result)
        merged = mask_util.merge(mask_util.frPyObjects(result, HEIGHT, WIDTH))
        assert mask_util.decode(merged).shape == (HEIGHT, WIDTH)


@settings(max_examples=200)
@given(bitmap=bitmaps.filter(lambda bitmap: bitmap.any()), data=st.data())
def test_one_wrong_character_never_reaches_pycocotools_as_another_size(bitmap, data):
    height, width = bitmap.shape
    text = bytearray(mask_util.encode(bitmap)["counts"])
    text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    try:
        result = read_segmentation({"size": [height, width], "counts": bytes(text)}, height, width)
    except EntryError:
        return
    assert sum(decode_counts(result["counts"].encode())) == height * width


def box(**fields) -> dict:
    return {"bbox": [1, 1, 6, 5], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, **fields}


def record(*annotations: dict, name: str = "a.png") -> dict:
    return {"file_name": name, "height": HEIGHT, "width": WIDTH, "annotations": list(annotations)}


def test_unusable_masks_go_and_their_boxes_stay(caplog):
    good = [box(segmentation=[TRIANGLE]), box(segmentation=rle([10, 38])), box()]
    bad = [box(segmentation=[[1, 2, 3]]), box(segmentation=rle([48])), box(segmentation=None), box(segmentation=[])]
    records = [record(good[0], bad[0], good[1]), record(bad[1], bad[2], bad[3], good[2], name="b.png")]
    before = copy.deepcopy(records)
    with caplog.at_level(logging.INFO, "glipv2_d2"):
        kept = keep_usable_masks("mine", records)
    assert records == before
    compressed = mask_util.frPyObjects(rle([10, 38]), HEIGHT, WIDTH)["counts"].decode()
    assert kept == [
        record(box(segmentation=[TRIANGLE]), box(), box(segmentation=rle(compressed))),
        record(box(), box(), box(), box(), name="b.png"),
    ]
    warnings = [item.getMessage() for item in caplog.records if item.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith(
        "masks of dataset 'mine': left out masks (malformed masks: 4); a.png: box 1: polygon: "
    )
    assert "b.png: box 0: counts: expected a mask that is not empty, found [48]" in warnings[0]
    assert "dataset 'mine': 2 of 7 boxes have a mask" in caplog.text


def test_parts_of_masks_are_counted_too(caplog):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (kept,) = keep_usable_masks("mine", [record(box(segmentation=[[1, 1, 4, 4], TRIANGLE, [9, 1, 9, 4, 12, 4]]))])
    assert kept["annotations"] == [box(segmentation=[TRIANGLE])]
    assert "left out parts of masks (polygons without area: 1); a.png: box 0: expected at least 3 points" in caplog.text


def test_a_mask_of_a_hundred_thousand_vertices_costs_its_image_nothing_else(caplog):
    angles = np.linspace(0, 2 * np.pi, 100_000)
    circle = np.stack([4 + 2 * np.cos(angles), 3 + 2 * np.sin(angles)], axis=1).reshape(-1).tolist()
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (kept,) = keep_usable_masks("mine", [record(box(segmentation=[circle]), box(segmentation=[SQUARE]))])
    assert kept["annotations"] == [box(), box(segmentation=[SQUARE])]
    assert (
        "left out masks (malformed masks: 1); a.png: box 0: segmentation: expected at most 10000 points, found 100000"
        in caplog.text
    )


def test_datasets_without_masks_pass_without_a_warning(caplog):
    records = [record(box()), record(), {"file_name": "c.png", "height": 4, "width": 4}]
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        assert keep_usable_masks("mine", records) == records
        assert keep_usable_masks("mine", []) == []
    assert not caplog.records


def test_all_masks_can_be_left_out():
    records = [record(box(segmentation=[TRIANGLE]), box()), record(box()), {"file_name": "c.png"}]
    before = copy.deepcopy(records)
    assert leave_out_masks(records) == [record(box(), box()), record(box()), {"file_name": "c.png"}]
    assert records == before
