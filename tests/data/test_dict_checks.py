"""Dataset dicts of readers outside of the package: every flaw is one line that names the image and the field."""

import math

import pytest
from detectron2.structures import BoxMode

from glipv2_d2.data.datasets.dict_checks import check_dataset_dicts
from glipv2_d2.data.datasets.value_checks import AnnotationError

SIZED = {"file_name": "a.jpg", "height": 48, "width": 64}
BOX = {"bbox": (1, 1, 9, 9), "bbox_mode": BoxMode.XYXY_ABS}
PHRASE = {**BOX, "tokens_positive": ((2, 5),), "score": 0.5}
GOOD = {
    "detection": {**SIZED, "annotations": [{"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}]},
    "grounding": {**SIZED, "caption": "a dog", "annotations": [PHRASE]},
    "pseudo_grounding": {**SIZED, "caption": "a dog", "annotations": [PHRASE]},
    "vqa": {**SIZED, "question": "a dog?", "question_id": 1, "answers": ["yes"], "annotations": [PHRASE]},
    "captioning": {"file_name": "a.jpg", "captions": ["a dog"]},
}
ALSO_GOOD = {
    "detection": [
        {**SIZED, "annotations": []},
        SIZED,
        # Right of the height, but inside.
        {**SIZED, "annotations": [{"bbox": [50, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}]},
    ],
    "grounding": [{**SIZED, "caption": "a dog", "annotations": []}],
    "pseudo_grounding": [],
    "vqa": [
        {"file_name": "b.jpg", "question": "Why?", "question_id": 5, "answers": [{"answer": "x"}]},
        {**SIZED, "question": "a dog?", "question_id": "6", "annotations": [{**BOX, "answer_box": True}]},
    ],
    "captioning": [{"file_name": "b.jpg"}, {"file_name": "c", "caption": "a"}],
}

# Task, fields of the dict, fields of its box, and the message; "-" takes a field away.
SENTENCES = ("grounding", "pseudo_grounding", "vqa")
FLAWS = [
    ("detection", {}, {"bbox": [1, 2, "x", 4]}, "bbox: expected four numbers, found"),
    ("detection", {}, {"bbox": None}, "bbox: expected four numbers, found None"),
    ("detection", {}, {"bbox": [1, 2, math.nan, 4]}, "bbox: expected a finite box .*, found .*nan"),
    ("detection", {}, {"bbox": [1, 2, -1, 4]}, "bbox: expected a finite box with sides >= 0 inside its image, found"),
    ("detection", {}, {"bbox": [70, 2, 3, 4]}, "bbox: expected .*inside its image, found"),
    ("detection", {}, {"bbox": [2, 50, 3, 4]}, "bbox: expected .*inside its image, found"),
    ("detection", {}, {"bbox": [1, 2, 3, 4, 30]}, "bbox: expected four numbers, found"),
    ("detection", {}, {"bbox_mode": BoxMode.XYWHA_ABS}, "bbox_mode: expected XYXY_ABS or XYWH_ABS, found"),
    ("detection", {}, {"category_id": 2}, "category_id: expected an integer from 0 to 1, found 2"),
    ("detection", {}, {"category_id": -1}, "category_id: expected an integer from 0 to 1, found -1"),
    # It would be no row of a list of names.
    ("detection", {}, {"category_id": 1.0}, "category_id: expected an integer from 0 to 1, found 1.0"),
    ("detection", {"width": "-"}, {}, "expected 'width' in every dict"),
    *[
        (task, fields, box, message.format({"vqa": "question"}.get(task, "caption")))
        for task in SENTENCES
        for fields, box, message in [
            ({"width": "-"}, {}, "expected 'width' in every dict"),
            ({}, {"bbox": (1, 1, 9, math.nan)}, "bbox: expected"),
            ({}, {"bbox": (70, 1, 90, 9)}, "bbox: expected"),
            ({}, {"bbox_mode": None}, "bbox_mode: expected .*, found None"),
            ({}, {"tokens_positive": ()}, r"tokens_positive: expected pairs .* inside the {}, found \(\)"),
            ({}, {"tokens_positive": None}, "tokens_positive: expected pairs .* inside the {}, found None"),
            ({}, {"tokens_positive": ((2, 7),)}, "tokens_positive: expected pairs .* inside the {}, found .*2, 7"),
            ({}, {"tokens_positive": ((2, 5), (3, 3))}, "tokens_positive: expected"),
            ({}, {"tokens_positive": ((-1, 5),)}, "tokens_positive: expected"),
            ({}, {"tokens_positive": ((2,),)}, "tokens_positive: expected"),
            ({}, {"score": 1.01}, r"score: expected a number in \[0, 1\], found 1.01"),
            ({}, {"score": -0.1}, r"score: expected a number in \[0, 1\], found -0.1"),
            ({}, {"score": math.nan}, r"score: expected a number in \[0, 1\], found nan"),
        ]
    ],
    ("grounding", {"caption": " "}, {}, "a.jpg: caption: expected some words, found ' '"),
    ("grounding", {"caption": "-"}, {}, "expected 'caption' in every dict"),
    ("vqa", {"question": " "}, {}, "a.jpg: question: expected some words, found ' '"),
    ("vqa", {"question": "-"}, {}, "expected 'question' in every dict"),
    ("vqa", {"question_id": "-"}, {}, "expected 'question_id' in every dict"),
    ("vqa", {"question_id": 1}, {}, "question_id: expected an id that no other question has, found 1"),
    ("vqa", {"question_id": [1]}, {}, r"question_id: expected a number or a string, found \[1\]"),
    ("vqa", {"answers": []}, {}, r"answers: expected a list of answers, found \[\]"),
    ("vqa", {"answers": [{"answer": ""}]}, {}, "answers: expected a list of answers, found"),
    ("vqa", {"answers": "yes"}, {}, "answers: expected a list of answers, found 'yes'"),
    ("vqa", {}, {"tokens_positive": (), "answer_box": True}, r"tokens_positive: expected .*found \(\)"),
    ("captioning", {"file_name": "-"}, {}, "expected 'file_name' in every dict"),
    ("captioning", {"captions": []}, {}, r"a.jpg: captions: expected a list of captions, found \[\]"),
    ("captioning", {"captions": "a dog"}, {}, "captions: expected a list of captions, found 'a dog'"),
    ("captioning", {"captions": ["a", " "]}, {}, "captions: expected a list of captions, found"),
    ("captioning", {"caption": " "}, {}, "caption: expected some words, found ' '"),
    ("captioning", {**SIZED, "annotations": [PHRASE]}, {}, "caption: expected some words, found None"),
]


@pytest.mark.parametrize(("task", "fields", "box", "message"), FLAWS)
def test_a_flaw_is_named(task, fields, box, message):
    good = GOOD[task]
    check_dataset_dicts("mine", [good, *ALSO_GOOD[task]], 2, task=task)
    record = {**good, "question_id": 2, **fields} if task == "vqa" else {**good, **fields}
    record = {key: value for key, value in record.items() if not (isinstance(value, str) and value == "-")}
    if box:
        record["annotations"] = [{**good["annotations"][0], **box}]
    with pytest.raises(AnnotationError, match=f"dataset 'mine': .*{message}") as raised:
        check_dataset_dicts("mine", [good, record], 2, task=task)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("task", GOOD)
def test_no_dicts_pass_the_check(task):
    assert check_dataset_dicts("mine", [], task=task) is None
