import json
import logging

import pytest
import torch

from glipv2_d2.evaluation.vqa import VQAEvaluator, answer_accuracy, normalized_accuracy

VOCABULARY = ["yes", "no", "2", "dog", "t shirt"]


def slow_accuracy(answer, references):
    """Over all nine that are left when one is left out, as the paper writes it."""
    subsets = [references[:row] + references[row + 1 :] for row in range(len(references))]
    return sum(min(1.0, subset.count(answer) / 3) for subset in subsets) / len(subsets)


def question(question_id, answers, image_id=7, **more):
    return {"question_id": question_id, "image_id": image_id, "question": "what?", "answers": answers, **more}


def scores_for(answer):
    scores = torch.full((len(VOCABULARY),), 0.1)
    scores[VOCABULARY.index(answer)] = 0.75
    return {"answer_scores": scores}


def evaluate(questions, answers, **options):
    evaluator = VQAEvaluator("asked", questions, VOCABULARY, **options)
    evaluator.reset()
    for question_id, answer in answers:
        evaluator.process([{"question_id": question_id}], [scores_for(answer)])
    return evaluator.evaluate()


@pytest.mark.parametrize(
    ("matches", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (5, 1.0), (9, 1.0), (10, 1.0)]
)
def test_accuracy_by_the_number_of_ten_people_who_agree(matches, expected):
    references = ["yes"] * matches + ["no"] * (10 - matches)
    assert answer_accuracy("yes", references) == pytest.approx(expected)
    assert answer_accuracy("yes", references) == pytest.approx(slow_accuracy("yes", references))


@pytest.mark.parametrize(
    ("references", "expected"),
    [
        (["dog"], 1.0),
        (["cat"], 0.0),
        (["cat", "dog"], 1.0),
        (["dog", "cat", "cow"], 1.0),
        (["dog"] * 4, 1.0),
        # Of four, one agrees: alone it is left out once, and 1/3 three times.
        (["dog", "cat", "cow", "cow"], 0.25),
    ],
)
def test_accuracy_with_fewer_people(references, expected):
    assert answer_accuracy("dog", references) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("The Dog.", ["a dog"] * 10, 1.0),
        ("two", ["2", "two", "Two.", "3"] + ["four"] * 6, 0.9),
        ("T-shirt", ["t shirt", "t-shirt", "tshirt"] + ["coat"] * 7, 0.6),
        ("dont know", ["don't know"] * 4 + ["no"] * 6, 1.0),
        ("none", ["0"] * 10, 1.0),
        ("1,000", ["1000"] * 10, 1.0),
        ("yes", ["yes!"] * 1 + ["no"] * 9, 0.3),
    ],
)
def test_answers_are_normalized_on_both_sides(answer, references, expected):
    assert normalized_accuracy(answer, references) == pytest.approx(expected)
    # The official code normalizes nothing where all references agree.
    assert answer_accuracy(answer, references) == pytest.approx(0.0 if len(set(references)) == 1 else expected)


@pytest.mark.parametrize(
    ("answer", "references", "official", "normalized"),
    [
        ("t shirt", ["t-shirt"] * 10, 0.0, 1.0),
        ("t-shirt", ["t-shirt"] * 10, 1.0, 1.0),
        ("none", ["0"] * 10, 0.0, 1.0),
        # White space at the ends and line breaks are taken away before the references are compared.
        (" t-shirt", ["t-shirt", "t-shirt\n", "\tt-shirt"] + ["t-shirt"] * 7, 1.0, 1.0),
        ("t shirt", ["t-shirt"] * 9 + ["T-shirt"], 1.0, 1.0),
        ("red car", ["red\ncar"] * 10, 1.0, 1.0),
        ("Yes", ["yes"] * 10, 0.0, 1.0),
    ],
)
def test_where_all_references_agree_the_official_accuracy_asks_for_their_spelling(
    answer, references, official, normalized
):
    assert answer_accuracy(answer, references) == official
    assert normalized_accuracy(answer, references) == normalized


def test_an_answer_needs_references():
    for accuracy in answer_accuracy, normalized_accuracy:
        with pytest.raises(ValueError, match="references: expected at least one answer, found none"):
            accuracy("yes", [])


def test_scores_counted_by_hand(caplog):
    questions = [
        question(1, [{"answer": "yes"}] * 10, answer_type="yes/no"),
        question(2, ["no"] * 9 + ["yes"], answer_type="yes/no"),
        question(3, ["two"] * 2 + ["3"] * 8, answer_type="number"),
        question(4, ["cat"] * 10),  # Not in the vocabulary.
        question(5, []),  # Not judged.
        question(6, ["t-shirt"] * 10),  # The vocabulary spells it in another way.
    ]
    with caplog.at_level(logging.INFO):
        results = evaluate(questions, [(1, "yes"), (2, "yes"), (3, "2"), (4, "dog"), (5, "dog"), (6, "t shirt")])
    expected = {
        "accuracy": 100 * (1.0 + 0.3 + 0.6 + 0.0 + 0.0) / 5,
        "accuracy_normalized": 100 * (1.0 + 0.3 + 0.6 + 0.0 + 1.0) / 5,
        "upper_bound": 100 * (1.0 + 1.0 + 0.6 + 0.0 + 0.0) / 5,
        "accuracy_number": 60.0,
        "accuracy_yes/no": 65.0,
    }
    assert list(results) == ["vqa"] and results["vqa"] == pytest.approx(expected)
    assert "2 of 5 questions have no answer in the vocabulary" in caplog.text


@pytest.mark.parametrize(("answer", "expected"), [("dog", 100.0), ("no", 0.0)])
def test_all_right_and_all_wrong(answer, expected):
    assert evaluate([question(1, ["dog"])], [(1, answer)])["vqa"] == {
        "accuracy": expected,
        "accuracy_normalized": expected,
        "upper_bound": 100.0,
    }


def test_first_of_equally_good_answers_is_given(tmp_path):
    evaluator = VQAEvaluator("asked", [question(1, ["no"])], VOCABULARY, output_folder=str(tmp_path))
    evaluator.process([{"question_id": 1}], [{"answer_scores": torch.tensor([0.1, 0.5, 0.5, 0.2, 0.5])}])
    assert evaluator.evaluate()["vqa"]["accuracy"] == 100.0


def test_files_hold_the_answers_in_the_order_of_the_dataset(tmp_path):
    questions = [question(3, ["dog"]), question(1, None), question(2, ["no"], image_id=9)]
    evaluate(questions, [(1, "t shirt"), (2, "yes"), (3, "dog")], output_folder=str(tmp_path / "out"))
    submission = json.loads((tmp_path / "out" / "vqa_submission.json").read_text())
    assert submission == [
        {"question_id": 3, "answer": "dog"},
        {"question_id": 1, "answer": "t shirt"},
        {"question_id": 2, "answer": "yes"},
    ]
    predictions = json.loads((tmp_path / "out" / "vqa_predictions.json").read_text())
    shared = {"question": "what?", "score": 0.75}
    assert predictions == [
        {"question_id": 3, "image_id": 7, "answer": "dog", **shared, "accuracy": 1.0},
        {"question_id": 1, "image_id": 7, "answer": "t shirt", **shared},
        {"question_id": 2, "image_id": 9, "answer": "yes", **shared, "accuracy": 0.0},
    ]


def test_test_set_gives_a_submission_and_no_scores(tmp_path, caplog):
    questions = [{"question_id": 1, "image_id": 7, "question": "what?"}]
    assert evaluate(questions, [(1, "dog")], output_folder=str(tmp_path)) == {}
    assert json.loads((tmp_path / "vqa_submission.json").read_text()) == [{"question_id": 1, "answer": "dog"}]
    assert "none of 1 question has answers" in caplog.text


def test_question_that_came_twice_counts_once_and_missing_ones_are_named(caplog):
    questions = [question(1, ["dog"]), question(2, ["dog"]), question(3, ["dog"])]
    results = evaluate(questions, [(1, "dog"), (2, "no"), (2, "no")])
    assert results["vqa"]["accuracy"] == 50.0
    assert "2 of 3 questions processed" in caplog.text


def test_questions_that_were_cut_off_are_counted_once_each(caplog):
    evaluator = VQAEvaluator("asked", [question(row, ["dog"]) for row in range(4)], VOCABULARY)
    for question_id, dropped in [(0, {"tokens": 2}), (1, {"tokens": 3, "phrases": 1}), (1, {"tokens": 3}), (2, None)]:
        sample = {"question_id": question_id, **({} if dropped is None else {"dropped": dropped})}
        evaluator.process([sample], [scores_for("dog")])
    results = evaluator.evaluate()
    (line,) = [record.getMessage() for record in caplog.records if "MAX_TOKENS" in record.getMessage()]
    assert line == "dataset 'asked': 2 of 3 questions pass MODEL.TEXT_ENCODER.MAX_TOKENS, cut off: 5 tokens, 1 phrase"
    assert results["vqa"] == {"accuracy": 100.0, "accuracy_normalized": 100.0, "upper_bound": 100.0}


def test_nothing_is_said_where_no_question_was_cut_off(caplog):
    evaluate([question(1, ["dog"])], [(1, "dog")])
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_question_ids_may_be_strings():
    assert evaluate([question("q1", ["dog"])], [("q1", "dog")])["vqa"]["accuracy"] == 100.0


@pytest.mark.parametrize(
    ("sample", "scores", "message"),
    [
        (
            {"question_id": 1},
            torch.zeros(4),
            r"question_id 1: expected answer_scores of shape \(5,\), .*, found \(4,\)",
        ),
        (
            {"question_id": 1},
            torch.full((5,), torch.nan),
            r"question_id 1: expected answer_scores in \[0, 1\], found NaN",
        ),
    ],
)
def test_answers_that_do_not_fit_are_refused(sample, scores, message):
    evaluator = VQAEvaluator("asked", [question(1, ["dog"])], VOCABULARY)
    with pytest.raises(ValueError, match=message):
        evaluator.process([sample], [{"answer_scores": scores}])


def test_a_vocabulary_without_answers_is_refused():
    with pytest.raises(ValueError, match="'asked': expected answers in MODEL.GLIPV2.VQA.ANSWERS, found none"):
        VQAEvaluator("asked", [question(1, ["a"])], [])
