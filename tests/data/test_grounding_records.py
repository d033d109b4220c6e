"""Values and records from files that are not trusted."""

import pytest
from detectron2.structures import BoxMode
from hypothesis import given, settings
from hypothesis import strategies as st

from glipv2_d2.data.datasets.grounding_records import grounding_annotation, read_odvg_grounding
from glipv2_d2.data.datasets.value_checks import (
    EntryError,
    OmittedEntry,
    as_integer,
    as_number,
    read_box,
    read_image_size,
    read_spans,
    read_text,
)

CAPTION = "a dog and a red dog"


def record(*regions, caption=CAPTION, **fields) -> dict:
    return {"height": 48, "width": 64, "grounding": {"caption": caption, "regions": list(regions)}, **fields}


def region(**fields) -> dict:
    return {"bbox": [4, 6, 24, 16], "phrase": "dog", **fields}


@pytest.mark.parametrize(
    ("value", "has_sides", "expected"),
    [
        ([4, 6, 24, 16], False, (4, 6, 24, 16)),
        ([4, 6, 24, 16], True, (4, 6, 28, 22)),
        ([-5, -2.5, 100, 50], False, (0, 0, 64, 48)),
        ([60, 40, 60, 40], True, (60, 40, 64, 48)),
        ((4, 6, 5.01, 7.01), False, (4, 6, 5.01, 7.01)),
    ],
)
def test_boxes_are_cut_to_the_image(value, has_sides, expected):
    assert read_box(value, 48, 64, has_sides=has_sides) == expected


@pytest.mark.parametrize("value", [[4, 6, 5, 16], [4, 6, 24, 7], [63, 6, 90, 16], [4, 47, 24, 90]])
def test_a_box_of_one_pixel_is_too_little(value):
    with pytest.raises(OmittedEntry, match="with at most 1 pixel of it inside"):
        read_box(value, 48, 64)


@pytest.mark.parametrize(
    ("value", "expected"),
    [([[2, 5]], ((2, 5),)), ([[2, 5], [12, 19]], ((2, 5), (12, 19))), ([[0, 19]], ((0, 19),)), ([[1, 3]], ((1, 3),))],
)
def test_ranges_are_kept(value, expected):
    assert read_spans(value, CAPTION) == expected


@pytest.mark.parametrize(
    "value",
    [
        *(None, [], {}, "2-5", [2, 5], [[2]], [[2, 5, 7]], [[2.5, 5]], [[True, 5]], [["2", "x"]]),
        *([[5, 2]], [[5, 5]], [[-1, 5]], [[2, 20]], [[2, 5], [0, 99]], [[1, 2]], [[2, 10**400]], [[2, 5], None]),
    ],
)
def test_ranges_outside_the_caption_or_malformed_are_named(value):
    with pytest.raises(EntryError, match="tokens_positive: expected .*found") as raised:
        read_spans(value, CAPTION)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


@pytest.mark.parametrize("text", ["a dog", " ", "\x00\x07 dog", "كلب أحمر", "\u202egod a", "x" * 10_000])
def test_texts_are_taken_as_they_are_unless_blank(text):
    if text.strip():
        assert read_text({"caption": text}, "caption") == text
    else:
        with pytest.raises(EntryError, match="caption: expected a string .*found ' '"):
            read_text({"caption": text}, "caption")


@pytest.mark.parametrize("text", [None, 7, "", "\n\t", "half a \ud83d character", ["a dog"]])
def test_what_is_no_text_is_named(text):
    with pytest.raises(EntryError, match="caption: expected a string that is not empty, found"):
        read_text({"caption": text}, "caption")


def test_control_characters_cannot_break_a_message():
    with pytest.raises(EntryError) as raised:
        read_odvg_grounding(record(caption="\x1b[31m\n\u202e" + "\ud800"))
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("fields", [{"h": 4}, {"h": 0, "w": 4}, {"h": 4, "w": 4.5}, {"h": True, "w": 4}, {"h": "4"}])
def test_sizes_are_positive_integers(fields):
    assert read_image_size({"h": 4, "w": 5}, "h", "w") == [4, 5]
    with pytest.raises(EntryError, match="[hw]: expected a positive integer, found"):
        read_image_size(fields, "h", "w")


def test_an_annotation_has_a_score_only_if_given():
    assert grounding_annotation((1, 2, 3, 4), ((2, 5),)) == {
        "bbox": (1, 2, 3, 4),
        "bbox_mode": BoxMode.XYXY_ABS,
        "tokens_positive": ((2, 5),),
    }
    assert grounding_annotation((1, 2, 3, 4), ((2, 5),), 1)["score"] == 1.0
    assert grounding_annotation((1, 2, 3, 4), ((2, 5),), 0)["score"] == 0.0


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan"), "one", True, [0.5]])
def test_scores_are_in_the_unit_interval(score):
    with pytest.raises(EntryError, match="score: expected a number in"):
        grounding_annotation((1, 2, 3, 4), ((2, 5),), score)


def test_a_record_gives_caption_size_and_boxes():
    entries, left_out = read_odvg_grounding(record(region(tokens_positive=[[2, 5]], score=0.25), teacher="x"))
    assert left_out == []
    assert entries == {
        "height": 48,
        "width": 64,
        "caption": CAPTION,
        "annotations": [
            {
                "bbox": (4, 6, 24, 16),
                "bbox_mode": BoxMode.XYXY_ABS,
                "tokens_positive": ((2, 5),),
                "score": 0.25,
            }
        ],
    }


@pytest.mark.parametrize(
    ("phrase", "spans"),
    [
        ("dog", ((2, 5), (16, 19))),
        ("red dog", ((12, 19),)),
        ("A DOG", ((0, 5),)),
        (["red dog", "a dog"], ((0, 5), (12, 19))),
        (["dog", "dog"], ((2, 5), (16, 19))),
    ],
)
def test_a_phrase_without_ranges_is_searched_in_the_caption(phrase, spans):
    (annotation,) = read_odvg_grounding(record(region(phrase=phrase)))[0]["annotations"]
    assert annotation["tokens_positive"] == spans
    assert "score" not in annotation


def test_a_region_can_have_several_boxes_and_scores():
    boxes = [[4, 6, 24, 16], [1, 1, 9, 9]]
    both = read_odvg_grounding(record(region(bbox=boxes, score=[0.5, 0.75])))[0]["annotations"]
    assert [(item["bbox"], item["score"]) for item in both] == [((4, 6, 24, 16), 0.5), ((1, 1, 9, 9), 0.75)]
    one_score = read_odvg_grounding(record(region(bbox=boxes, score=0.5)))[0]["annotations"]
    assert [item["score"] for item in one_score] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (7, "expected an object, found 7"),
        (region(bbox=None), "bbox: expected .*found None"),
        (region(bbox=[]), r"bbox: expected .*found \[\]"),
        (region(bbox=[1, 2, 3, float("nan")]), "bbox: expected .*nan"),
        (region(bbox=[[1, 2, 3, float("nan")]]), "bbox: expected .*nan"),
        (region(bbox=[1, 2, 2, 9]), "1 pixel"),
        (region(phrase="cat"), "phrase: expected .*words of the caption.*found 'cat'"),
        (region(phrase=None), "phrase: expected .*found None"),
        (region(phrase=[]), r"phrase: expected .*found \[\]"),
        (region(phrase=["dog", 3]), "phrase: expected .*found 3"),
        (region(tokens_positive=[[2, 99]]), "tokens_positive: .*19 characters"),
        (region(tokens_positive=[]), "tokens_positive: expected"),
        (region(score=1.5), r"score: expected .*found 1\.5"),
        (region(score=[0.5, 0.5]), "score: expected one number or 1"),
    ],
)
def test_a_bad_region_is_left_out_alone(bad, reason):
    entries, left_out = read_odvg_grounding(record(bad, region(phrase="red dog")))
    assert [item["tokens_positive"] for item in entries["annotations"]] == [((12, 19),)]
    assert len(left_out) == 1
    with pytest.raises(EntryError, match=reason):
        raise left_out[0]


def test_one_bad_box_of_a_region_leaves_the_others():
    entries, left_out = read_odvg_grounding(record(region(bbox=[[4, 6, 24, 16], None, [1, 1, 9, 9]])))
    assert [item["bbox"] for item in entries["annotations"]] == [(4, 6, 24, 16), (1, 1, 9, 9)]
    assert [str(error) for error in left_out] == ["bbox: expected four finite numbers, found None"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "found None"),
        ([], r"found \[\]"),
        ({}, "grounding: expected .*found None"),
        (record(caption=3), "caption: expected .*found 3"),
        (record(height=0), "height: expected .*found 0"),
        ({**record(), "grounding": {"caption": CAPTION}}, "regions: expected .*found None"),
        ({**record(), "grounding": [CAPTION]}, "grounding: expected"),
    ],
)
def test_records_of_another_form_are_named(content, reason):
    with pytest.raises(EntryError, match=reason):
        read_odvg_grounding(content)


def test_no_regions_give_no_annotations():
    assert read_odvg_grounding(record())[0]["annotations"] == []


values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 70) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.sampled_from(["bbox", "phrase", "score", "tokens_positive"]), inner, max_size=4)
    ),
    max_leaves=12,
)
regions = st.fixed_dictionaries(
    {"bbox": st.lists(st.integers(-10, 80), min_size=4, max_size=4) | values},
    optional={
        "phrase": st.sampled_from(["dog", "a dog", ["dog", "red"]]) | values,
        "tokens_positive": st.lists(st.lists(st.integers(-2, 22), min_size=2, max_size=2), max_size=3) | values,
        "score": st.floats() | values,
    },
)


@settings(max_examples=200)
@given(st.lists(regions | values, max_size=4))
def test_whatever_the_regions_hold_only_proper_boxes_come_out(bad_regions):
    entries, left_out = read_odvg_grounding(record(*bad_regions))
    for item in entries["annotations"]:
        left, top, right, bottom = item["bbox"]
        assert 0 <= left < right - 1 <= 63 and 0 <= top < bottom - 1 <= 47
        assert 0 <= item.get("score", 0) <= 1
        assert item["tokens_positive"]
        assert all(0 <= begin < end <= len(CAPTION) for begin, end in item["tokens_positive"])
    assert all(str(error).isprintable() and len(str(error)) < 600 for error in left_out)
    # Nothing vanishes without a word.
    assert len(bad_regions) <= len(entries["annotations"]) + len(left_out)


@pytest.mark.parametrize(
    ("value", "number", "integer"),
    [
        *((7, 7, 7), (-0.5, -0.5, None), (3.0, 3, 3), ("7", 7, 7), (" -2.5e1 ", -25, -25), (".5", 0.5, None)),
        *((2**53 + 1, None, 2**53 + 1), (str(2**62 + 1), None, 2**62 + 1), (2**63, None, None), ("9" * 30, None, None)),
        *(("", None, None), ("1_000", None, None), ("nan", None, None), ("1,5", None, None), ("0x1", None, None)),
        *((True, None, None), (None, None, None), ([1], None, None), (float("inf"), None, None), ("٣", None, None)),
    ],
)
def test_numbers_may_be_text(value, number, integer):
    assert as_number(value) == number and as_integer(value) == integer
