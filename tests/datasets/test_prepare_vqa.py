import json
from collections import Counter

import prepare_vqa
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from prepare_vqa import count_answers, draw_images, frequent_answers, main

from glipv2_d2.data import register_vqa_jsonl
from glipv2_d2.prompts.answers import AnswerVocabulary


def annotations(*answers, first_image=1) -> dict:
    numbered = enumerate(answers, first_image)
    return {"annotations": [{"question_id": i, "image_id": i, "multiple_choice_answer": one} for i, one in numbered]}


def scenes(*questions) -> dict:
    return {"images": [{"id": 1, "questions": list(questions)}, {"id": 2}], "annotations": []}


def test_answers_are_counted_in_their_normal_form():
    contents = {"a": annotations("Yes", "yes.", "two", " "), "b": annotations("2", "a red bus")}
    assert count_answers(contents) == {"yes": 2, "2": 2, "red bus": 1, "": 1}


def test_letters_of_a_multiple_choice_are_all_counted():
    several = {"answers": ["B", "A", "a"]}
    assert count_answers({"a": scenes(several, {"answer": "A"})}) == {"a": 2}
    assert count_answers({"a": annotations("A", "B", "C", "D", "the")}) == {"a": 1, "b": 1, "c": 1, "d": 1, "the": 1}


def test_questions_of_images_count_by_their_most_common_answer():
    several = {"answers": [{"answer": "x"}, "No", {"answer": "no."}]}
    assert count_answers({"a": scenes({"answer": "2"}, several, {"answers": ["u", "w"]})}) == {"2": 1, "no": 1, "u": 1}


def test_frequent_answers_come_first_and_equally_frequent_ones_by_alphabet():
    counts = Counter({"b": 9, "a": 9, "c": 30, "d": 8})
    assert frequent_answers(counts, 9) == ["c", "a", "b"] and frequent_answers(counts, 8)[-1] == "d"
    with pytest.raises(ValueError, match="--min-occurrences: expected at most 30.*found 31"):
        frequent_answers(counts, 31)


def write(folder, name, content):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))


def test_vqav2_gets_its_answers_and_its_dev_split(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(prepare_vqa, "NUM_DEV_IMAGES", 5)
    folder = tmp_path / "vqav2"
    write(folder, "v2_mscoco_train2014_annotations.json", annotations(*["yes"] * 6, *["no"] * 8))
    write(folder, "v2_mscoco_val2014_annotations.json", annotations(*["yes"] * 3, *["blue"] * 9, first_image=100))
    main([])
    vocabulary = AnswerVocabulary.from_file(str(folder / "answers.json"))
    assert vocabulary.answers == ("blue", "yes") and vocabulary.frequencies == (0.5, 0.5)
    image_ids = json.loads((folder / "dev2k_images.json").read_text())
    assert len(set(image_ids)) == 5 and image_ids == sorted(image_ids) and set(image_ids) <= set(range(100, 112))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("answers.json: 2 of 3 answers, of 18 of 26 questions")
    assert lines[1].endswith("dev2k_images.json: 5 images")
    main(["--seed", "1"])
    assert json.loads((folder / "dev2k_images.json").read_text()) != image_ids
    main([])
    assert json.loads((folder / "dev2k_images.json").read_text()) == image_ids


def test_other_annotations_give_a_list_of_answers_alone(tmp_path):
    write(tmp_path, "a.json", scenes({"answer": "2"}, {"answer": "3"}))
    arguments = ["--annotations", str(tmp_path / "a.json"), "--output", str(tmp_path / "answers.json")]
    main([*arguments, "--min-occurrences", "1"])
    assert json.loads((tmp_path / "answers.json").read_text()) == {"2": 1, "3": 1}
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "answers.json"}
    with pytest.raises(SystemExit, match="error: --min-occurrences: expected at most 1.*found 9"):
        main(arguments)


def test_questions_with_a_blank_answer_are_left_out_and_counted(tmp_path, capsys):
    write(tmp_path, "a.json", scenes({"answer": "A"}, {"answer": " "}, {"answers": ["", "", "x"]}))
    arguments = ["--annotations", str(tmp_path / "a.json"), "--output", str(tmp_path / "answers.json")]
    main([*arguments, "--min-occurrences", "1"])
    assert json.loads((tmp_path / "answers.json").read_text()) == {"a": 1}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("answers.json: 1 of 1 answer, of 1 of 1 question")
    assert lines[1:] == ["left out: 2 questions with a blank answer"]
    write(tmp_path, "a.json", scenes({"answer": ""}))
    with pytest.raises(SystemExit, match="a.json: expected questions with answers, found none"):
        main(arguments)


LINES = [
    {"filename": "1.jpg", "question": "What is it?", "answer": "A"},
    {"filename": "1.jpg", "question": "And now?", "answers": ["b", {"answer": "B."}, "a"]},
    {"filename": "2.jpg", "question": "What is left?", "answer": "The Dog", "question_id": 70},
    {"filename": "2.jpg", "question": "Which?", "answer": "a"},
]


def write_lines(file, lines):
    file.write_text("\n".join("" if line is None else json.dumps(line) for line in lines))


def test_json_lines_of_ones_own_questions_give_the_list_that_scores_them(tmp_path):
    write_lines(tmp_path / "q.jsonl", [*LINES[:2], None, *LINES[2:]])
    output = tmp_path / "answers.json"
    main(["--annotations", str(tmp_path / "q.jsonl"), "--output", str(output), "--min-occurrences", "1"])
    assert json.loads(output.read_text()) == {"a": 2, "b": 1, "dog": 1}
    register_vqa_jsonl("prepared_questions", tmp_path / "q.jsonl", tmp_path)
    try:
        dataset_dicts = DatasetCatalog.get("prepared_questions")
    finally:
        DatasetCatalog.remove("prepared_questions")
        MetadataCatalog.remove("prepared_questions")
    vocabulary = AnswerVocabulary.from_file(str(output))
    assert vocabulary.answers == ("a", "b", "dog") and vocabulary.frequencies == (0.5, 0.25, 0.25)
    assert [vocabulary.soft_scores(item["answers"]).tolist() for item in dataset_dicts] == [
        [1.0, 0.0, 0.0],
        [1.0, 1.0, 0.0],
        [0.0, 0.0, 1.0],
        [1.0, 0.0, 0.0],
    ]


BAD_LINES = {
    "no json": ("{", "a.jsonl: line 3: expected json, found none .Expecting "),
    "no text": ("\udce9", "a.jsonl: line 3: expected json, found none"),
    "nested": ("[" * 100_000, "a.jsonl: line 3: expected json, found none"),
    "list": ("[]", r"a.jsonl: line 3: expected an object.*found \[\]"),
    "no answer": ("{}", "a.jsonl: line 3: answers: expected a list of answers.*found None"),
    "number": ('{"answer": 1}', "a.jsonl: line 3: answer: expected a string.*found 1"),
    "answers": ('{"answers": ["x", 1]}', "a.jsonl: line 3: answers: expected a string.*found 1"),
}


@pytest.mark.parametrize("text, message", BAD_LINES.values(), ids=BAD_LINES)
def test_what_is_no_question_is_named_with_its_line(tmp_path, text, message):
    (tmp_path / "a.jsonl").write_bytes(b'{"answer": "x"}\n\n' + text.encode("utf-8", "surrogateescape"))
    with pytest.raises(SystemExit, match=f"error: .*{message}") as raised:
        main(["--annotations", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "out.json")])
    assert "\n" not in str(raised.value) and not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--annotations", "a.json"], "--annotations needs --output"),
        (["--min-occurrences", "0"], "--min-occurrences: expected at least 1, found 0"),
    ],
)
def test_arguments_that_cannot_be_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


BAD = {
    "no json": ("{", "a.json: expected a json file, found another .Expecting "),
    "list": ("[]", r"a.json: expected an object.*found \[\]"),
    "no annotations": ("{}", "a.json: annotations: expected a list.*found None"),
    "no object": ('{"annotations": [7]}', r"annotations\[0\]: expected an object.*found 7"),
    "no answer": ('{"annotations": [{}]}', r"annotations\[0\].multiple_choice_answer: expected a string.*found None"),
    "nothing": ('{"annotations": []}', "expected questions with answers, found none"),
    "questions": ('{"images": [{"questions": 1}]}', r"images\[0\].questions: expected a list.*found 1"),
    "question": ('{"images": [{"questions": [1]}]}', r"images\[0\].questions\[0\]: expected an object.*found 1"),
    "answers": (
        '{"images": [{"questions": [{"answers": []}]}]}',
        r"questions\[0\].answers: expected a list of",
    ),
    "texts": ('{"images": [{"questions": [{"answers": [1]}]}]}', r"questions\[0\].answers: expected a string.*found 1"),
}


@pytest.mark.parametrize("text, message", BAD.values(), ids=BAD)
def test_what_is_no_annotation_is_one_line(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(SystemExit, match=f"error: .*{message}") as raised:
        main(["--annotations", str(tmp_path / "a.json"), "--output", str(tmp_path / "out.json")])
    assert "\n" not in str(raised.value) and not (tmp_path / "out.json").exists()


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match="error: .*v2_mscoco_train2014_annotations.json"):
        main([str(tmp_path)])


def test_too_few_images_and_ids_that_are_none_are_named():
    with pytest.raises(ValueError, match="x: expected at least 2000 images, found 1"):
        draw_images(annotations("yes"), "x", 0)
    with pytest.raises(ValueError, match=r"x: annotations\[0\].image_id: expected an integer.*found '1'"):
        draw_images({"annotations": [{"image_id": "1"}]}, "x", 0)
