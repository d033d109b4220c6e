import json

import pytest

from glipv2_d2.data.datasets.question_files import QuestionSample
from glipv2_d2.data.datasets.questions import read_question_boxes
from glipv2_d2.engine.pseudo_boxes import PseudoBoxTeacher
from glipv2_d2.engine.pseudo_questions import question_content, question_regions, read_question
from glipv2_d2.prompts.phrase_finders import build_phrase_finder
from glipv2_d2.prompts.questions import ANSWER_PHRASE, question_to_ground

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def make_sample(question, answer):
    return QuestionSample("line 1", "0", "a.jpg", 7, question, answer)


@pytest.fixture(scope="module")
def finder():
    return build_phrase_finder("rules")


@pytest.fixture
def teacher(tiny_cfg, finder):
    return PseudoBoxTeacher(tiny_cfg, finder, 0.5)


# --- what the teacher reads


@pytest.mark.parametrize(
    "question, answer, phrases, spans",
    [
        ("What is the dog chasing?", "a cat", ("the dog", "a cat"), [[(8, 15)], [(25, 30)]]),
        # Without a mark between them both would be one phrase.
        ("who has the dog", "leash", ("the dog", "leash"), [[(8, 15)], [(16, 21)]]),
        ("Is the dog asleep?", "yes", ("the dog",), [[(3, 10)]]),
        ("Is the dog asleep?", "Unknown", ("the dog",), [[(3, 10)]]),
        ("Is the dog asleep?", "2", ("the dog",), [[(3, 10)]]),
        ("Is it?", "cat and dog", ("cat", "dog"), [[(7, 10)], [(15, 18)]]),
        # No phrases of a question when it is answered.
        ("What color is the cat?", "2", ("the cat",), [[(14, 21)]]),
        ("What time is it in this picture?", "noon", ("noon",), [[(33, 37)]]),
        ("What is the man holding?", "picture", ("the man", "picture"), [[(8, 15)], [(25, 32)]]),
    ],
)
def test_the_phrases_of_question_and_answer_are_looked_for_in_one_text(teacher, question, answer, phrases, spans):
    caption = read_question(teacher, make_sample(question, answer))
    assert caption.prompt.phrases == phrases and caption.spans == spans
    text = f"{question} {answer}"
    assert [text[begin:end] for [(begin, end)] in caption.spans] == list(phrases)
    assert caption.prompt.phrase_token_map.any(dim=1).all()
    assert len(caption.prompt) == teacher.tokenizer.count_tokens(text) + 2


@pytest.mark.parametrize(
    "answer",
    ["can't tell", "cant tell", "Can’t tell", "cannot tell", "don't know the dog", "no cat", "is a cat", "'not' cat"],
)
def test_an_answer_that_begins_with_an_auxiliary_or_a_negation_is_no_thing(teacher, answer):
    caption = read_question(teacher, make_sample("Is the dog asleep?", answer))
    assert caption.prompt.phrases == ("the dog",)


@pytest.mark.parametrize("answer", ["canteen", "notebook", "island"])
def test_an_answer_that_begins_like_an_auxiliary_is_one(teacher, answer):
    assert read_question(teacher, make_sample("Is it?", answer)).prompt.phrases == (answer,)


def test_questions_and_their_pseudo_boxes_have_the_same_phrases(teacher):
    for question in ("What color is the cat?", "What kind of dog is in the photo?", "How many cars are on the street?"):
        taught = read_question(teacher, make_sample(question, "2")).prompt.phrases
        assert question_to_ground(question, teacher.tokenizer).phrases == (*taught, ANSWER_PHRASE)


def test_a_question_that_names_nothing_has_no_phrases(teacher):
    assert read_question(teacher, make_sample("Is it?", "yes")) is None


def test_typed_special_tokens_are_text(teacher):
    caption = read_question(teacher, make_sample("Is the dog a [MASK]?", "cat"))
    assert teacher.tokenizer.mask_id not in caption.prompt.input_ids.tolist()
    assert caption.spans[-1] == [(21, 24)]


def test_an_answer_behind_a_long_question_is_past_the_limit(teacher):
    caption = read_question(teacher, make_sample("is it on " * 100 + "?", "a cat"))
    assert len(caption.prompt) == 256 and caption.num_past_limit == 1


# --- regions

SAMPLE = make_sample("What is the dog chasing?", "a cat")


def region(box, spans, score=0.8, phrase="x"):
    return {"bbox": box, "phrase": phrase, "tokens_positive": spans, "score": score}


def test_regions_of_the_answer_are_told_from_those_of_the_question():
    of_answer = region([50.0, 0.0, 60.0, 10.0], [[25, 30]], 0.9, "a cat")
    of_question = region([0.0, 0.0, 10.0, 10.0], [[8, 15]], 0.7, "the dog")
    assert question_regions(SAMPLE, [of_answer, of_question]) == [
        {"bbox": [0.0, 0.0, 10.0, 10.0], "phrase": "the dog", "tokens_positive": [[8, 15]], "score": 0.7},
        {"bbox": [50.0, 0.0, 60.0, 10.0], "phrase": "a cat", "answer_box": True, "score": 0.9},
    ]


@pytest.mark.parametrize("scores", [(0.9, 0.6), (0.6, 0.9)])
def test_a_box_of_both_is_one_region_with_the_lower_score(scores):
    regions = [
        region([0.0, 0.0, 10.0, 10.0], [[0, 4]], 0.99),
        region([50.0, 0.0, 60.0, 10.0], [[8, 15]], scores[0], "the dog"),
        # 9.5 of 10 columns are the same.
        region([50.0, 0.0, 59.5, 10.0], [[25, 30]], scores[1], "a cat"),
    ]
    before = [dict(item) for item in regions]
    first, both = question_regions(SAMPLE, regions)
    assert first == regions[0]
    assert both == {**regions[1], "answer_box": True, "score": 0.6}
    assert regions == before


def test_boxes_that_overlap_less_stay_two_regions():
    regions = [region([0.0, 0.0, 10.0, 10.0], [[8, 15]]), region([0.0, 0.0, 8.9, 10.0], [[25, 30]])]
    assert ["answer_box" in item for item in question_regions(SAMPLE, regions)] == [False, True]
    assert question_regions(SAMPLE, []) == []


def test_the_reader_of_questions_takes_every_region():
    regions = [
        region([0.0, 0.0, 10.0, 10.0], [[8, 15]], 0.5),
        region([50.0, 0.0, 60.0, 10.0], [[25, 30]], 0.6),
        region([0.0, 20.0, 10.0, 30.0], [[8, 15]], 0.7),
        region([0.0, 20.0, 10.0, 30.0], [[25, 30]], 0.8),
    ]
    content = question_content(SAMPLE, question_regions(SAMPLE, regions))
    record = json.loads(json.dumps({"height": 40, "width": 60, **content}))
    annotations, left_out = read_question_boxes(record, SAMPLE.question)
    assert left_out == []
    found = [(item["bbox"], item.get("tokens_positive"), item.get("answer_box"), item["score"]) for item in annotations]
    assert found == [
        ((0.0, 0.0, 10.0, 10.0), ((8, 15),), None, 0.5),
        ((0.0, 20.0, 10.0, 30.0), ((8, 15),), True, 0.7),
        ((50.0, 0.0, 60.0, 10.0), None, True, 0.6),
    ]


def test_a_record_says_which_question_it_is_of():
    regions = [region([0.0, 0.0, 10.0, 10.0], [[8, 15]])]
    assert question_content(SAMPLE, regions) == {
        "question_id": 7,
        "question": "What is the dog chasing?",
        "answer": "a cat",
        "regions": regions,
    }
