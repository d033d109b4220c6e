import json

import pytest

from glipv2_d2.prompts.answers import AnswerVocabulary, agreement, normal_form


@pytest.mark.parametrize(
    ("matches", "total", "expected"),
    [
        # The table of VQAv2.
        *[(0, 10, 0.0), (1, 10, 0.3), (2, 10, 0.6), (3, 10, 0.9), (4, 10, 1.0), (10, 10, 1.0)],
        # Too few people to agree: one is enough.
        *[(0, 1, 0.0), (1, 1, 1.0), (1, 2, 1.0), (1, 3, 1.0), (0, 3, 0.0)],
    ],
)
def test_agreement_follows_the_table_of_vqa(matches, total, expected):
    assert agreement(matches, total) == pytest.approx(expected)


@pytest.mark.parametrize("total", range(4, 12))
def test_agreement_is_the_mean_over_all_ways_to_leave_one_person_out(total):
    for matches in range(total + 1):
        says_so = [True] * matches + [False] * (total - matches)
        ways = [min(1, sum(says_so[:left] + says_so[left + 1 :]) / 3) for left in range(total)]
        assert agreement(matches, total) == pytest.approx(sum(ways) / total)


def test_soft_scores_count_equal_answers_of_ten_people():
    vocabulary = AnswerVocabulary(["yes", "no", "2", "red bus"])
    answers = ["2"] * 3 + ["two"] + ["A red bus"] * 2 + ["Yes."] + ["blue"] * 3
    assert vocabulary.soft_scores(answers).tolist() == pytest.approx([0.3, 0.0, 1.0, 0.6])


def test_one_answer_is_right_alone():
    assert AnswerVocabulary(["yes", "no"]).soft_scores(["no"]).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("answers", [[], ["blue"], ["blue", "green"]])
def test_answers_outside_the_list_score_nothing(answers):
    assert AnswerVocabulary(["yes", "no"]).soft_scores(answers).tolist() == [0.0, 0.0]


def test_entries_with_one_normal_form_are_right_together():
    vocabulary = AnswerVocabulary(["two", "yes", "2"])
    assert vocabulary.soft_scores(["2"]).tolist() == vocabulary.soft_scores(["Two!"]).tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("The Red Bus.", "red bus"), ("two", "2"), (" A ", "a"), ("The", "the"), ("?", "?"), (" ", "")],
)
def test_an_answer_of_articles_or_punctuation_alone_keeps_its_lower_case(answer, expected):
    assert normal_form(answer) == expected


def test_letters_of_a_multiple_choice_stay_apart():
    # The normal form of "A" is empty: it is an article.
    vocabulary = AnswerVocabulary(["A", "B", "the"])
    assert vocabulary.soft_scores(["a"]).tolist() == [1.0, 0.0, 0.0]
    assert vocabulary.soft_scores(["The"]).tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", json.dumps(["red bus", "no", "été"])),
        ("a.txt", "red bus\r\n\n  no \nété"),
        ("answers", "red bus\nno\nété\n"),
        # As programs of Windows write it.
        ("mark.txt", "\ufeffred bus\r\nno\r\nété\r\n"),
        ("mark.json", "\ufeff" + json.dumps(["red bus", "no", "été"])),
    ],
)
def test_lists_are_read_from_json_or_lines(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    vocabulary = AnswerVocabulary.from_file(str(tmp_path / name))
    assert vocabulary.answers == ("red bus", "no", "été") and len(vocabulary) == 3
    assert vocabulary.frequencies is None


def test_answers_with_their_numbers_of_questions_have_frequencies(tmp_path):
    (tmp_path / "a.json").write_text('{"no": 6, "red bus": 3, "2": 1}')
    vocabulary = AnswerVocabulary.from_file(str(tmp_path / "a.json"))
    assert vocabulary.answers == ("no", "red bus", "2")
    assert vocabulary.frequencies == pytest.approx((0.6, 0.3, 0.1))


BAD_LISTS = {
    "empty list": ("a.json", "[]", "found no answer"),
    "empty text": ("a.txt", " \n\n", "found no answer"),
    "no list": ("a.json", "7", "holds 7, expected a list of answers"),
    "empty object": ("a.json", "{}", "found no answer"),
    "no questions": ("a.json", '{"yes": 2, "no": 0}', "'no': expected a number of questions from 1 on, found 0"),
    "half a question": ("a.json", '{"no": 0.5}', "'no': expected a number of questions from 1 on, found 0.5"),
    "truth": ("a.json", '{"no": true}', "'no': expected a number of questions from 1 on, found True"),
    "key twice": ("a.json", '{"yes": 2, "no": 1, "yes": 2}', "answers 0 and 2 are both 'yes', expected one"),
    "no json": ("a.json", "yes\nno", "expected a list of answers"),
    "number": ("a.json", '["yes", 7]', "answer 1 is 7, expected a string"),
    "blank": ("a.json", '["yes", " "]', "answer 1 is ' ', expected a string"),
    "twice": ("a.txt", "yes\nno\nyes", "answers 0 and 2 are both 'yes', expected one"),
    "nested": ("a.json", "[" * 100_000, "expected a list of answers"),
}


@pytest.mark.parametrize("name, text, message", BAD_LISTS.values(), ids=BAD_LISTS)
def test_what_is_no_list_of_answers_is_named_in_one_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        AnswerVocabulary.from_file(str(tmp_path / name))
    assert str(tmp_path / name) in str(raised.value) and "\n" not in str(raised.value)


def test_text_that_is_not_utf_8_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="a.txt: .*expected a list of answers"):
        AnswerVocabulary.from_file(str(tmp_path / "a.txt"))


def test_a_missing_file_is_named_with_its_key(tmp_path):
    with pytest.raises(ValueError, match="MODEL.GLIPV2.VQA.ANSWERS is empty, expected the path"):
        AnswerVocabulary.from_file("")
    # The list lies below DETECTRON2_DATASETS; the configs name it below "datasets".
    message = "MODEL.GLIPV2.VQA.ANSWERS: expected .* found no file .*none.json; name the one that datasets/prepare"
    with pytest.raises(FileNotFoundError, match=message):
        AnswerVocabulary.from_file(str(tmp_path / "none.json"))
