"""Readers of questions: the official files of VQA, json in COCO's format, and json lines."""

import json
import logging
import re

import pytest
from damaged_json import assert_fit_or_one_line, damaged
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glipv2_d2.data import register_vqa, register_vqa_json, register_vqa_jsonl
from glipv2_d2.data.datasets.questions import PhraseMentions, load_vqa, load_vqa_json, load_vqa_jsonl
from glipv2_d2.data.datasets.value_checks import AnnotationError
from glipv2_d2.data.loading import load_dataset, load_training_dicts

pytestmark = pytest.mark.usefixtures("images_exist")

XYXY = BoxMode.XYXY_ABS

# --- json in COCO's format


def image(image_id=1, questions=(), **fields) -> dict:
    own = {"id": image_id, "file_name": f"{image_id}.png", "height": 48, "width": 64, "questions": list(questions)}
    return {**own, **fields}


def question(question_id, text="Is there a red dog?", answer="yes", **fields) -> dict:
    return {"question_id": question_id, "question": text, "answer": answer, **fields}


def box(phrase, bbox=(4, 6, 20, 10), image_id=1, **fields) -> dict:
    return {"image_id": image_id, "phrase": phrase, "bbox": list(bbox), **fields}


@pytest.fixture
def load_json(tmp_path, new_name):
    """A function that registers a json of these images and annotations and loads it."""

    def write_and_load(images, annotations=None):
        content = {"images": images} if annotations is None else {"images": images, "annotations": annotations}
        (tmp_path / "a.json").write_text(json.dumps(content))
        register_vqa_json(new_name, tmp_path / "a.json", tmp_path)
        return load_dataset(new_name)

    return write_and_load


def test_every_question_is_a_dict_with_the_boxes_that_it_mentions(load_json, new_name, tmp_path):
    questions = [
        question(7, "Is the red dog left of the CAT?", "no", type="spatial"),
        question(8, "How many dogs are there?", "2"),
    ]
    found = load_json([image(1, questions)], [box("red dog"), box("cat", (30, 8, 10, 9)), box("cat", (1, 1, 5, 5))])
    assert found[0] == {
        "file_name": str(tmp_path / "1.png"),
        "height": 48,
        "width": 64,
        "image_id": 1,
        "question": "Is the red dog left of the CAT?",
        "question_id": 7,
        "answers": ["no"],
        "answer_type": "spatial",
        "annotations": [
            {"bbox": (4, 6, 24, 16), "bbox_mode": XYXY, "tokens_positive": ((7, 14),)},
            {"bbox": (30, 8, 40, 17), "bbox_mode": XYXY, "tokens_positive": ((27, 30),)},
            {"bbox": (1, 1, 6, 6), "bbox_mode": XYXY, "tokens_positive": ((27, 30),)},
        ],
    }
    assert found[1]["annotations"] == [] and "answer_type" not in found[1]
    metadata = MetadataCatalog.get(new_name)
    assert (metadata.task, metadata.evaluator_type) == ("vqa", "vqa")


def test_the_boxes_of_the_answer_ground_the_answer_and_its_mention(load_json):
    questions = [question(1, "Which is higher, the cat or the dog?", "Dog"), question(2, "What is it?", "cat")]
    first, second = load_json([image(1, questions)], [box("dog"), box("cat", (30, 8, 10, 9))])
    assert [(item.get("tokens_positive"), item.get("answer_box")) for item in first["annotations"]] == [
        (((32, 35),), True),
        (((21, 24),), None),
    ]
    (only,) = second["annotations"]
    assert only == {"bbox": (30, 8, 40, 17), "bbox_mode": XYXY, "answer_box": True}


def test_a_phrase_inside_a_longer_known_one_is_not_mentioned(load_json):
    questions = [question(1, "Is there a mandarin orange?"), question(2, "An orange, and a mandarin orange?")]
    images = [image(1, questions), image(2)]
    # Nothing in the first image is a mandarin orange.
    first, second = load_json(images, [box("orange"), box("mandarin orange", image_id=2)])
    assert first["annotations"] == []
    assert [item["tokens_positive"] for item in second["annotations"]] == [((3, 9),)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The dog, the Dogs and a hot dog.", {"dog": [(4, 7)], "hot dog": [(24, 31)]}),
        ("dog dog", {"dog": [(0, 3), (4, 7)]}),
        ("a dog_house", {}),
        ("c++ and a (cat)", {"c++": [(0, 3)]}),
        ("", {}),
    ],
)
def test_phrases_are_found_as_whole_words(text, expected):
    assert PhraseMentions(["dog", "hot dog", "c++"])(text) == expected
    assert PhraseMentions([])(text) == {}


def test_questions_need_no_boxes_and_may_have_several_answers(load_json):
    several = {"question_id": 1, "question": "Why?", "answers": [{"answer": "x"}, "y"]}
    unanswered = {"question_id": 2, "question": "How?"}
    first, second = load_json([image(1, [several, unanswered])])
    assert first["answers"] == ["x", "y"] and "annotations" not in first
    assert "answers" not in second


BAD_QUESTIONS = {
    "no object": (7, "expected an object, found 7"),
    "no id": ({"question": "Why?", "answer": "x"}, "question_id: expected an integer, found None"),
    "blank": (question(2, " \n"), r"question: expected .*a string.*found ' \\n'"),
    "blank answer": (question(2, answer=" "), "answer: expected .*a string.*found ' '"),
    "no answers": ({"question_id": 2, "question": "Why?", "answers": []}, r"answers: expected .*a list.*found \[\]"),
}


@pytest.mark.parametrize("bad, reason", BAD_QUESTIONS.values(), ids=BAD_QUESTIONS)
def test_bad_questions_are_left_out_counted_and_named(load_json, caplog, bad, reason):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (record,) = load_json([image(1, [bad, question(1)])])
    assert record["question_id"] == 1
    assert "left out questions (" in caplog.text and "; images (id 1).questions[0]: " in caplog.text
    assert re.search(reason, caplog.text)


def test_equal_ids_and_nothing_to_ask_are_errors(load_json, tmp_path, new_name):
    with pytest.raises(
        AnnotationError, match=r"images \(id 2\).questions\[0\]: question_id: expected .*an id that no.*found 1"
    ):
        load_json([image(1, [question(1)]), image(2, [question(1)])])
    (tmp_path / "a.json").write_text(json.dumps({"images": [image()]}))
    with pytest.raises(AnnotationError, match="expected questions.*, found nothing to use"):
        load_dataset(new_name)


# --- the official files

QUESTIONS = {
    "data_subtype": "val2014",
    "questions": [
        {"image_id": 42, "question": "What is this?", "question_id": 42000},
        {"image_id": 73, "question": "Is it raining?", "question_id": 73000},
    ],
}
ANNOTATIONS = {
    "annotations": [
        {
            "question_id": item["question_id"],
            "image_id": item["image_id"],
            "answer_type": kind,
            "multiple_choice_answer": answer,
            "answers": [{"answer": answer, "answer_id": i, "answer_confidence": "yes"} for i in range(10)],
        }
        for item, kind, answer in zip(QUESTIONS["questions"], ("other", "yes/no"), ("a dog", "no"))
    ]
}
IMAGES = {"images": [{"id": i, "file_name": f"{i}.jpg", "height": 48, "width": 64} for i in (42, 73)]}
BOX_LINE = {
    "question_id": 42000,
    "filename": "42.jpg",
    "height": 40,
    "width": 60,
    "question": "What is this?",
    "answer": "a dog",
    "regions": [
        {"bbox": [1, 2, 30, 20], "tokens_positive": [[8, 12]], "answer_box": True, "score": 0.75},
        {"bbox": [5, 5, 9, 9], "answer_box": True, "phrase": "dog"},
        {"bbox": [5, 5, 9, 9], "tokens_positive": [[8, 12]]},
    ],
}


@pytest.fixture
def load(tmp_path, new_name):
    """A function that registers the official files, with changes, and loads them."""

    def write_and_load(questions=QUESTIONS, annotations=ANNOTATIONS, images=None, boxes=None, ids=None, **options):
        files = {}
        for field, content in (("questions", questions), ("annotations", annotations), ("images", images)):
            files[f"{field}_file"] = None if content is None else tmp_path / f"{field}.json"
            if content is not None:
                files[f"{field}_file"].write_text(json.dumps(content))
        if ids is not None:
            files["image_ids_file"] = tmp_path / "ids.json"
            files["image_ids_file"].write_text(json.dumps(ids))
        if boxes is not None:
            files["boxes_file"] = tmp_path / "boxes.jsonl"
            files["boxes_file"].write_text("\n".join(map(json.dumps, boxes)))
        DatasetCatalog.pop(new_name, None)
        register_vqa(new_name, files.pop("questions_file"), files.pop("annotations_file"), tmp_path, **files, **options)
        return load_dataset(new_name)

    return write_and_load


def test_questions_meet_their_answers_by_id(load, tmp_path):
    first, second = load(annotations={"annotations": ANNOTATIONS["annotations"][::-1]})
    assert first == {
        "file_name": str(tmp_path / "COCO_val2014_000000000042.jpg"),
        "image_id": 42,
        "question": "What is this?",
        "question_id": 42000,
        "answers": ["a dog"] * 10,
        "answer_type": "other",
    }
    assert (second["answers"], second["answer_type"]) == (["no"] * 10, "yes/no")


def test_a_file_of_images_brings_paths_and_sizes(load, tmp_path):
    records = load(images=IMAGES)
    assert [record["file_name"] for record in records] == [str(tmp_path / "42.jpg"), str(tmp_path / "73.jpg")]
    assert [(record["height"], record["width"]) for record in records] == [(48, 64)] * 2


def test_a_test_set_has_no_answers_and_images_of_2015(load, tmp_path):
    records = load({**QUESTIONS, "data_subtype": "test-dev2015"}, None)
    assert records[0]["file_name"] == str(tmp_path / "COCO_test2015_000000000042.jpg")
    assert not any("answers" in record for record in records)


@pytest.mark.parametrize("leave_out, expected", [(False, [73000]), (True, [42000])])
def test_images_of_a_list_are_taken_or_left_out(load, leave_out, expected):
    records = load(ids=[73, 5], leave_out_ids=leave_out)
    assert [record["question_id"] for record in records] == expected


def test_pseudo_boxes_meet_their_questions(load, new_name):
    other = {**BOX_LINE, "question_id": 5}
    first, second = load(boxes=[other, BOX_LINE])
    assert (first["height"], first["width"]) == (40, 60)
    assert first["annotations"] == [
        {"bbox": (1, 2, 30, 20), "bbox_mode": XYXY, "tokens_positive": ((8, 12),), "answer_box": True, "score": 0.75},
        {"bbox": (5, 5, 9, 9), "bbox_mode": XYXY, "answer_box": True},
        {"bbox": (5, 5, 9, 9), "bbox_mode": XYXY, "tokens_positive": ((8, 12),)},
    ]
    assert second["annotations"] == []
    assert [record["question_id"] for record in load_training_dicts(new_name, True)] == [42000, 73000]


BAD_LINES = {
    "other text": (
        {**BOX_LINE, "question": "What?"},
        "lines",
        r"question: expected .*'What is this\?'.*found 'What\?'",
    ),
    "no id": ({**BOX_LINE, "question_id": None}, "lines", "question_id: expected .*found None"),
    "no object": (7, "lines", "expected an object.*, found 7"),
    "no regions": ({**BOX_LINE, "regions": 1}, "lines", "regions: expected .*a list.*found 1"),
    "no size": ({**BOX_LINE, "height": 0}, "lines", "height: expected .*found 0"),
    "no region": ({**BOX_LINE, "regions": [None]}, "boxes", "expected an object, found None"),
    "past the question": (
        {**BOX_LINE, "regions": [{"bbox": [1, 1, 9, 9], "tokens_positive": [[8, 15]]}]},
        *("boxes", r"tokens_positive: expected .*found \[\[8, 15\]\]"),
    ),
    "of nothing": ({**BOX_LINE, "regions": [{"bbox": [1, 1, 9, 9]}]}, "boxes", "tokens_positive: expected .*None"),
    "answer_box": (
        {**BOX_LINE, "regions": [{"bbox": [1, 1, 9, 9], "answer_box": 1}]},
        "boxes",
        "answer_box: expected .*found 1",
    ),
    "score": (
        {**BOX_LINE, "regions": [{"bbox": [1, 1, 9, 9], "answer_box": True, "score": 2}]},
        "boxes",
        r"score: expected .*a number in \[0, 1\].*found 2",
    ),
}


@pytest.mark.parametrize("line, kind, reason", BAD_LINES.values(), ids=BAD_LINES)
def test_bad_lines_of_boxes_are_left_out_counted_and_named(load, caplog, line, kind, reason):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        first, _ = load(boxes=[line])
    assert first["annotations"] == []
    assert (
        f"left out {kind} (" in caplog.text
        and "boxes.jsonl: line 1: " in caplog.text
        and re.search(reason, caplog.text)
    )


BAD_ENTRIES = {
    "blank": ({"image_id": 42, "question": " ", "question_id": 42000}, "question: expected .*found ' '"),
    "no image": ({"image_id": "one", "question": "Why?", "question_id": 1}, "image_id: expected .*found 'one'"),
    "no id": ({"image_id": 1, "question": "Why?"}, "question_id: expected .*found None"),
    "no object": ([], r"found \[\]"),
    "no answers": ({"image_id": 42, "question": "Why?", "question_id": 1}, "that stands in the annotations"),
    "image": ({"image_id": 1, "question": "Why?", "question_id": 42000}, "an id that stands in the images_file"),
}


@pytest.mark.parametrize("bad, reason", BAD_ENTRIES.values(), ids=BAD_ENTRIES)
def test_questions_that_cannot_be_used_are_left_out(load, caplog, bad, reason):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (record,) = load({**QUESTIONS, "questions": [bad, QUESTIONS["questions"][1]]}, images=IMAGES)
    assert record["question_id"] == 73000
    assert (
        "left out questions (" in caplog.text and "; questions[0]: " in caplog.text and re.search(reason, caplog.text)
    )


def test_an_annotation_without_answers_leaves_its_question_out(load, caplog):
    annotations = [ANNOTATIONS["annotations"][0], {"question_id": 73000}]
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (record,) = load(annotations={"annotations": annotations})
    assert record["question_id"] == 42000 and "answers of question 73000: expected a list, found None" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"questions": {"questions": []}},
            "data_subtype: expected the split of the images, or an images_file, found None",
        ),
        ({"questions": {**QUESTIONS, "questions": 1}}, r"questions\.json: questions: expected .*a list.*found 1"),
        ({"annotations": {}}, r"annotations\.json: annotations: expected .*a list.*found None"),
        ({"images": {}}, r"images\.json: images: expected .*a list.*found None"),
        (
            {"images": {"images": [{"id": 1}]}},
            r"images.json: expected images, .*images\[0\] \(id 1\): file_name: expected .*found None",
        ),
        ({"images": {"images": [1]}}, r"images.json: expected images, .*images\[0\]: expected an object, found 1"),
        ({"ids": ["x"]}, r"ids.json: expected ids of images, found \[None\]"),
        ({"ids": {}}, "ids.json: expected a list, found {}"),
        ({"ids": []}, "expected questions.*, found nothing to use"),
        (
            {
                "questions": {
                    **QUESTIONS,
                    "questions": [QUESTIONS["questions"][0], {**QUESTIONS["questions"][0], "question": "Why?"}],
                }
            },
            r"questions\[1\]: question_id: expected .*an id that no other question has.*found 42000",
        ),
    ],
)
def test_other_files_are_named_in_one_line(load, options, message):
    with pytest.raises(AnnotationError, match=message) as raised:
        load(**options)
    assert "\n" not in str(raised.value)


# --- json lines


@pytest.fixture
def load_lines(tmp_path, new_name):
    """A function that registers json lines and loads them."""

    def write_and_load(*lines):
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (tmp_path / "a.jsonl").write_text("\n".join(texts))
        register_vqa_jsonl(new_name, tmp_path / "a.jsonl", tmp_path)
        return load_dataset(new_name)

    return write_and_load


def test_lines_are_questions_with_or_without_boxes(load_lines, tmp_path):
    plain = {"filename": "b.jpg", "question": "Why?", "answers": ["x", "y"], "answer_type": "other"}
    first, second = load_lines(BOX_LINE, "", plain)
    assert (first["file_name"], first["image_id"], first["question_id"]) == (str(tmp_path / "42.jpg"), "42.jpg", 42000)
    assert first["answers"] == ["a dog"] and len(first["annotations"]) == 3
    assert second == {
        "file_name": str(tmp_path / "b.jpg"),
        "image_id": "b.jpg",
        "question": "Why?",
        "question_id": 3,
        "answers": ["x", "y"],
        "answer_type": "other",
        "annotations": [],
    }


def test_lines_without_any_regions_are_a_plain_dataset(load_lines):
    (record,) = load_lines({"filename": "b.jpg", "question": "Why?", "height": 4, "width": 6})
    assert "annotations" not in record and "answers" not in record and (record["height"], record["width"]) == (4, 6)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 1: expected json, found Expecting"),
        ("[1]", r"line 1: expected an object, found \[1\]"),
        ({"question": "Why?"}, "filename: expected .*found None"),
        ({"filename": "../b.jpg", "question": "Why?"}, "a path inside the folder"),
        (
            {"filename": "b.jpg", "question": "Why?", "question_id": "7a"},
            "question_id: expected .*an integer.*found '7a'",
        ),
        ({"filename": "b.jpg", "question": "Why?", "answer": None}, "answer: expected .*found None"),
        ({"filename": "b.jpg", "question": "Why?", "height": 4}, "width: expected .*found None"),
        ({"filename": "b.jpg", "question": "Why?", "regions": []}, "height: expected .*found None"),
    ],
)
def test_bad_lines_are_left_out_counted_and_named(load_lines, caplog, line, reason):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (record,) = load_lines(line, {"filename": "b.jpg", "question": "Why?"})
    assert record["question_id"] == 2
    assert "left out lines (" in caplog.text and "; line 1: " in caplog.text and re.search(reason, caplog.text)


def test_bad_boxes_of_lines_are_left_out(load_lines, caplog):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (record,) = load_lines({**BOX_LINE, "regions": [None]})
    assert (
        record["annotations"] == []
        and "left out boxes (malformed entries: 1); line 1: expected an object, found None" in caplog.text
    )


def test_two_lines_with_one_id_are_an_error(load_lines):
    with pytest.raises(
        AnnotationError, match="line 2: question_id: expected an id that no other question has, found 42000"
    ):
        load_lines(BOX_LINE, {**BOX_LINE, "question": f"{BOX_LINE['question']}?"})


# --- what all have in common


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(data=st.data())
def test_any_damage_is_left_out_or_a_one_line_error(tmp_path, data):
    """Replace or remove one random value of good files; what comes out is always fit for training."""
    scenes = {
        "images": [image(1, [question(1), question(2, answer="red dog")]), image(2, [question(3)])],
        "annotations": [box("red dog"), box("cat")],
    }
    kind = data.draw(st.sampled_from(["scenes", "official", "lines"]))
    files = {"scenes": scenes} if kind == "scenes" else {"lines": [BOX_LINE, {**BOX_LINE, "question_id": 4}]}
    if kind == "official":
        files |= {"questions": QUESTIONS, "annotations": ANNOTATIONS, "images": IMAGES, "ids": [42, 73]}
    for field, content in damaged(data, files).items():
        lines = content if field == "lines" and isinstance(content, list) else [content]
        (tmp_path / field).write_text("\n".join(map(json.dumps, lines)))
    name, paths = f"{tmp_path.name}_damaged", {field: str(tmp_path / field) for field in files}

    def load():
        if kind == "scenes":
            return load_vqa_json(paths["scenes"], str(tmp_path), name)
        if kind == "lines":
            return load_vqa_jsonl(paths["lines"], str(tmp_path), name)
        sources = [paths[field] for field in ("questions", "annotations")]
        return load_vqa(*sources, str(tmp_path), *(paths[field] for field in ("images", "lines", "ids")), False, name)

    assert_fit_or_one_line(load, tmp_path, name, "vqa")


def test_questions_without_answers_cannot_train(load, new_name):
    load(annotations=None)
    with pytest.raises(ValueError, match="expected a dataset to train on, found images without 'answers'"):
        load_training_dicts(new_name, filter_empty=True)
