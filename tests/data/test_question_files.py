import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glipv2_d2.data.datasets.caption_files import SkippedCaption
from glipv2_d2.data.datasets.question_files import QuestionSample, open_questions


def write_jsonl(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def write_json(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def read_all(questions):
    return [entry for piece in range(len(questions)) for entry in questions.read(piece)]


GOOD = {"filename": "a.jpg", "question": "What is it?", "answer": "a dog"}


# --- jsonl


@pytest.mark.parametrize("given_id, question_id", [({}, 2), ({"question_id": 77}, 77)])
def test_a_line_is_a_question_whose_id_is_by_default_the_number_of_the_line(tmp_path, given_id, question_id):
    questions = open_questions(write_jsonl(tmp_path / "q.jsonl", GOOD, {**GOOD, **given_id}), None, None, 10)
    assert questions.holds_images is False and questions.num_lines == 2
    expected = QuestionSample("line 2: 'a.jpg'", "000000001", "a.jpg", question_id, "What is it?", "a dog", None)
    assert read_all(questions)[1] == expected


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"filename": None}, "no filename"),
        ({"filename": "../a.jpg"}, "filename that leaves the image folder"),
        ({"question": None}, "no question"),
        ({"question": " \n"}, "no question"),
        ({"question": "x" * 10_001}, "question of more than 10000 characters"),
        ({"question": "x\ud800"}, "question or filename that is not valid text"),
        ({"answer": None}, "no answer"),
        ({"answer": ""}, "no answer"),
        ({"answer": "\udfff"}, "answer or filename that is not valid text"),
        ({"question_id": "7a"}, "question_id that is not an integer"),
        ({"question_id": True}, "question_id that is not an integer"),
        ("{", "line that is not a JSON object"),
    ],
)
def test_bad_lines_are_skipped_with_a_reason_and_their_number(tmp_path, change, reason):
    bad = change if isinstance(change, str) else {**GOOD, **change}
    first, skipped, last = read_all(open_questions(write_jsonl(tmp_path / "q.jsonl", GOOD, bad, GOOD), None, None, 10))
    assert first.answer == last.answer == "a dog"
    assert skipped.reason == reason and skipped.name.startswith("line 2")


@given(st.dictionaries(st.sampled_from([*GOOD, "question_id"]), st.none() | st.integers() | st.text(max_size=5)))
def test_every_line_is_a_sample_or_skipped(tmp_path_factory, change):
    path = write_jsonl(tmp_path_factory.mktemp("lines") / "q.jsonl", {**GOOD, **change})
    (entry,) = read_all(open_questions(path, None, None, 1))
    if isinstance(entry, QuestionSample):
        assert entry.question.strip() and entry.answer.strip() and type(entry.question_id) is int
    else:
        assert isinstance(entry, SkippedCaption) and entry.reason


# --- the files of VQAv2


def vqa_files(folder, questions, annotations, **more):
    return (
        write_json(folder / "questions.json", {"data_subtype": "train2014", "questions": questions, **more}),
        write_json(folder / "annotations.json", {"annotations": annotations}),
    )


def question(number, **change):
    return {"question_id": 100 + number, "image_id": number, "question": f"What is {number}?", **change}


def annotation(number, **change):
    return {"question_id": 100 + number, "image_id": number, "multiple_choice_answer": f"dog {number}", **change}


def test_questions_meet_their_answers_by_id_and_images_have_the_names_of_coco(tmp_path):
    files = vqa_files(tmp_path, [question(1), question(2), question(3)], [annotation(3), annotation(2), annotation(1)])
    questions = open_questions(*files, None, 2)
    assert len(questions) == 2 and questions.num_lines == 3 and questions.files == list(files)
    assert list(questions.read(1)) == [
        QuestionSample(
            "questions[2]",
            "000000002",
            "COCO_train2014_000000000003.jpg",
            103,
            "What is 3?",
            "dog 3",
            None,
        )
    ]
    assert [sample.answer for sample in questions.read(0)] == ["dog 1", "dog 2"]


def test_images_can_be_listed_in_a_file(tmp_path):
    files = vqa_files(tmp_path, [question(1), question(2)], [annotation(1), annotation(2)], data_subtype=None)
    images = [{"id": 1, "file_name": "b/one.png", "height": 4, "width": 5}]
    images_file = write_json(tmp_path / "images.json", {"images": images})
    questions = open_questions(*files, images_file, 2)
    sample, skipped = read_all(questions)
    assert sample.file_name == "b/one.png" and questions.files == [*files, images_file]
    assert skipped == SkippedCaption("questions[1]", "unknown image_ids")


@pytest.mark.parametrize("subtype", [None, 3, " ", "/../../train", "\ud800"])
def test_a_split_that_is_no_name_is_refused(tmp_path, subtype):
    files = vqa_files(tmp_path, [question(1)], [annotation(1)], data_subtype=subtype)
    with pytest.raises(
        ValueError, match="questions.json: data_subtype: expected the split of the images, or an images_file, found"
    ):
        open_questions(*files, None, 2)


@pytest.mark.parametrize(
    "entry, reason",
    [
        (7, "malformed entries"),
        (question(1, question_id="1a"), "malformed ids"),
        (question(1, image_id=None), "malformed ids"),
        (question(1, question=" "), "no question"),
        (question(4), "no answer"),
        (question(5), "no answer"),
    ],
)
def test_bad_questions_are_skipped_with_a_reason_and_their_number(tmp_path, entry, reason):
    annotations = [annotation(1), annotation(5, multiple_choice_answer=None), 7, annotation(6, question_id=[1])]
    files = vqa_files(tmp_path, [question(1), entry], annotations)
    good, skipped = read_all(open_questions(*files, None, 10))
    assert good.answer == "dog 1" and skipped == SkippedCaption("questions[1]", reason)


@pytest.mark.parametrize(
    "questions, annotations, message",
    [
        ([], [annotation(1)], r"questions.json: questions: expected .*at least one, found \[\]"),
        ({}, [annotation(1)], r"questions\.json: questions: expected .*a list.*found \{\}"),
        ([question(1)], None, r"annotations\.json: annotations: expected .*a list.*found None"),
    ],
)
def test_files_that_hold_nothing_are_errors(tmp_path, questions, annotations, message):
    with pytest.raises(ValueError, match=message):
        open_questions(*vqa_files(tmp_path, questions, annotations), None, 2)


def test_files_that_do_not_fit_together_are_errors(tmp_path):
    questions, annotations = vqa_files(tmp_path, [question(1)], [annotation(1)])
    lines = write_jsonl(tmp_path / "q.jsonl", GOOD)
    with pytest.raises(ValueError, match="--annotations: expected the file with the answers to the questions"):
        open_questions(questions, None, None, 2)
    with pytest.raises(ValueError, match="--images-file: expected none with jsonl"):
        open_questions(lines, None, questions, 2)
    missing = "missing.json"
    for files in ((missing, annotations, None), (questions, missing, None), (questions, annotations, missing)):
        with pytest.raises(FileNotFoundError, match="questions: there is no file missing.json"):
            open_questions(*files, 2)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="expected lines with a filename, a question and an answer, found none"):
        open_questions(str(tmp_path / "empty.jsonl"), None, None, 2)
