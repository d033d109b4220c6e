import pickle

import numpy as np
import pytest
from detectron2.data import transforms as T
from mapper_cases import annotation, drawn_record, options, spelled, words_of_boxes

from glipv2_d2.data.dataset_mappers.vqa import VQADatasetMapper, questions_by_image
from glipv2_d2.prompts.answers import AnswerVocabulary
from glipv2_d2.prompts.tokenizer import PromptTokenizer

#           0         1         2
#           0123456789012345678901234567
QUESTION = "Is the cat left of the dog?"
CAT, DOG = (7, 10), (23, 26)
ANSWERS = ["yes", "no", "left", "right", "dog"]


def mapper(augmentations=(), grounded=True, **more) -> VQADatasetMapper:
    return VQADatasetMapper(answers=AnswerVocabulary(ANSWERS), grounded=grounded, **options(augmentations, **more))


@pytest.fixture
def record(tmp_path) -> dict:
    """An image of 64 x 48, a question, ten answers, and four boxes: cat, dog, dog as answer, and the answer alone."""
    fields = {
        **{"question": QUESTION, "question_id": 70},
        "answers": [{"answer": "yes"}] * 7 + [{"answer": "no"}] * 2 + ["a dog"],
        "annotations": [
            annotation((4.0, 6.0, 24.0, 16.0), CAT),
            annotation((30.0, 8.0, 40.0, 40.0), DOG),
            annotation((31.0, 8.0, 40.0, 40.0), DOG, answer_box=True, score=0.75),
            annotation((1.0, 1.0, 9.0, 9.0), answer_box=True),
        ],
    }
    return drawn_record(tmp_path, **fields)


def test_a_grounded_question_has_boxes_of_its_words_and_of_the_answer(record):
    own = mapper()
    sample = own(record)
    (prompt,) = sample["prompts"]
    assert spelled(own, prompt.input_ids) == "[CLS] is the cat left of the dog ? [MASK] [SEP]"
    assert words_of_boxes(own, sample) == ["cat", "dog", "dog [MASK]", "[MASK]"]
    instances = sample["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[4, 6, 24, 16], [30, 8, 40, 40], [31, 8, 40, 40], [1, 1, 9, 9]]
    assert instances.gt_category_ids.tolist() == [-1] * 4 and prompt.category_ids.tolist() == [-1] * 4
    assert (sample["task"], sample["question_ids"], sample["image_id"]) == ("vqa", [70], 7)
    assert sample["answer_scores"][0].tolist() == pytest.approx([1.0, 0.6, 0.0, 0.0, 0.3])
    assert prompt.mlm_labels is None and "dropped" not in sample


def without_boxes(record) -> dict:
    return {key: value for key, value in record.items() if key != "annotations"}


@pytest.mark.parametrize("has_boxes", [False, True])
def test_a_plain_question_has_no_instances_and_no_mask_token(record, has_boxes):
    own = mapper(grounded=False)
    sample = own(record if has_boxes else without_boxes(record))
    assert "instances" not in sample and sample["task"] == "vqa" and sample["prompts"][0].phrases == ()
    assert spelled(own, sample["prompts"][0].input_ids) == "[CLS] is the cat left of the dog ? [SEP]"
    assert sample["answer_scores"][0].tolist() == pytest.approx([1.0, 0.6, 0.0, 0.0, 0.3])


def test_a_question_of_a_dataset_without_boxes_is_read_in_training_as_at_test_time(record):
    own, tested = mapper(), mapper(is_train=False)
    sample = own(without_boxes(record))
    assert "instances" not in sample and sample["prompts"][0].phrases == ()
    assert spelled(own, sample["prompts"][0].input_ids) == "[CLS] is the cat left of the dog ? [MASK] [SEP]"
    assert sample["prompts"][0].input_ids.tolist() == tested(record)["prompts"][0].input_ids.tolist()
    assert sample["answer_scores"][0].tolist() == pytest.approx([1.0, 0.6, 0.0, 0.0, 0.3])
    assert mapper(max_tokens=10)(without_boxes(record))["dropped"] == {"tokens": 1}


def test_a_question_without_boxes_in_a_grounded_dataset_has_empty_instances(record):
    own = mapper()
    sample = own({**record, "annotations": []})
    assert len(sample["instances"]) == 0 and sample["prompts"][0].phrases == ()
    assert spelled(own, sample["prompts"][0].input_ids).endswith("? [MASK] [SEP]")


def test_the_dataset_dict_stays_as_it_is(record):
    before = pickle.dumps(record)
    mapper([T.RandomFlip(1.0)], flip_words=True)(record)
    mapper(is_train=False)(record)
    assert pickle.dumps(record) == before


def test_weak_boxes_and_crowds_are_no_targets(record):
    crowd = annotation((2.0, 2.0, 9.0, 9.0), CAT, iscrowd=1)
    own = mapper(min_score=0.8)
    sample = own({**record, "annotations": [*record["annotations"], crowd]})
    assert words_of_boxes(own, sample) == ["cat", "dog", "[MASK]"]
    assert len(mapper(min_score=0.75)(record)["instances"]) == 4


def test_a_mirrored_question_and_its_answers_change_sides(record):
    own = mapper([T.RandomFlip(1.0)], flip_words=True)
    sample = own({**record, "answers": ["left"] * 9 + ["right"]})
    assert spelled(own, sample["prompts"][0].input_ids) == "[CLS] is the cat right of the dog ? [MASK] [SEP]"
    assert words_of_boxes(own, sample) == ["cat", "dog", "dog [MASK]", "[MASK]"]
    assert sample["instances"].gt_boxes.tensor.tolist()[0] == [40, 6, 60, 16]
    assert sample["answer_scores"][0].tolist() == pytest.approx([0.0, 0.0, 0.3, 1.0, 0.0])


def test_nothing_changes_sides_without_a_flip_or_without_the_option(record):
    for own in (mapper(flip_words=True), mapper([T.RandomFlip(1.0)])):
        sample = own({**record, "answers": ["left"]})
        assert " left " in spelled(own, sample["prompts"][0].input_ids)
        assert sample["answer_scores"][0].tolist() == [0, 0, 1, 0, 0]


@pytest.mark.parametrize("answers", [["blue"], [{"answer": "blue"}] * 10])
def test_answers_outside_the_list_score_zero_and_are_counted(record, answers):
    sample = mapper()({**record, "answers": answers})
    assert sample["answer_scores"][0].tolist() == [0.0] * 5
    assert sample["dropped"] == {"questions_without_answers": 1}


def test_a_question_past_the_token_limit_is_cut_and_counted(record):
    # [CLS] is the cat left of [MASK] [SEP]: five of nine tokens fit beside the mask token.
    own = mapper(max_tokens=8)
    sample = own({**record, "answers": ["blue"]})
    assert spelled(own, sample["prompts"][0].input_ids) == "[CLS] is the cat left of [MASK] [SEP]"
    # The box of the dog that is also the answer keeps the mask token.
    assert words_of_boxes(own, sample) == ["cat", "[MASK]", "[MASK]"]
    assert sample["dropped"] == {"tokens": 3, "phrases": 1, "boxes": 1, "questions_without_answers": 1}


def test_a_question_that_just_fits_drops_nothing(record):
    assert "dropped" not in mapper(max_tokens=11)(record)
    assert mapper(max_tokens=10)(record)["dropped"] == {"tokens": 1}
    assert "dropped" not in mapper(max_tokens=10, grounded=False)(record)


def test_a_cut_off_question_counts_the_tokens_that_a_typed_special_token_is(record):
    # [CLS] is ( mask ) here ? [SEP]
    record = {**record, "question": "is [MASK] here?"}
    for is_train in (True, False):
        own = mapper(max_tokens=6, is_train=is_train, grounded=False)
        assert own(record)["dropped"] == {"tokens": 2}


@pytest.mark.parametrize(
    ("max_tokens", "grounded", "phrases", "dropped"),
    [
        (11, True, ("the cat", "the dog", "[answer]"), None),
        (10, True, ("the cat", "the dog", "[answer]"), {"tokens": 1}),
        (7, True, ("the cat", "[answer]"), {"tokens": 4, "phrases": 1}),
        (10, False, (), None),
        (7, False, (), {"tokens": 3}),
    ],
)
def test_what_is_cut_off_of_a_question_at_test_time_is_counted(record, max_tokens, grounded, phrases, dropped):
    sample = mapper(max_tokens=max_tokens, is_train=False, grounded=grounded)(record)
    assert sample["prompts"][0].phrases == phrases and sample.get("dropped") == dropped


@pytest.mark.parametrize(
    ("grounded", "phrases", "text"),
    [
        (True, ("the cat", "the dog", "[answer]"), "[CLS] is the cat left of the dog ? [MASK] [SEP]"),
        (False, (), "[CLS] is the cat left of the dog ? [SEP]"),
    ],
)
def test_a_test_sample_has_its_question_and_no_targets(record, grounded, phrases, text):
    own = mapper(is_train=False, grounded=grounded)
    sample = own({key: value for key, value in record.items() if key not in ("answers", "annotations")})
    (prompt,) = sample["prompts"]
    assert prompt.phrases == phrases and spelled(own, prompt.input_ids) == text
    assert (sample["task"], sample["question_id"], sample["height"], sample["width"]) == ("vqa", 70, 48, 64)
    assert not {"instances", "answer_scores", "dropped"} & set(sample)


def test_a_typed_special_token_is_text(record):
    own = mapper(grounded=False)
    ids = own({**record, "question": "What is [MASK]?"})["prompts"][0].input_ids
    assert own.tokenizer.mask_id not in ids.tolist()


def several(record, number=4) -> list[dict]:
    """As many questions about one image, of which the last has no boxes, and one about another."""
    texts = ["Is the cat left of the dog?", "What is right?", "Is the dog left?", "Which is left?"][:number]
    items = [{**record, "question": text, "question_id": index} for index, text in enumerate(texts)]
    for item in items[1:]:
        item["annotations"] = [annotation((1.0, 1.0, 9.0, 9.0), answer_box=True)]
    return items


def test_questions_are_put_together_by_image_and_by_whether_they_have_boxes(record):
    first, second, third, fourth = several(record)
    del fourth["annotations"]
    other = {**record, "file_name": "b.png", "question_id": 9}
    groups = questions_by_image([first, other, second, fourth, third])
    assert [[question["question_id"] for question in group["questions"]] for group in groups] == [[0, 1, 2], [9], [3]]
    assert [group["file_name"] for group in groups] == [record["file_name"], "b.png", record["file_name"]]
    assert ["annotations" in group for group in groups] == [True, True, False]
    assert groups[0]["questions"][0]["annotations"] == first["annotations"]
    assert not {"question", "question_id", "answers"} & groups[0].keys()


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_questions_of_an_image_are_those_that_each_alone_would_be(record, flip):
    make = mapper([T.RandomFlip(prob=flip)], flip_words=True, questions_per_image=3)
    (group,) = questions_by_image(several(record))
    sample = make({**group, "sample_seed": 5})
    assert len(set(sample["question_ids"])) == len(sample["prompts"]) == len(sample["answer_scores"]) == 3
    for row, question_id in enumerate(sample["question_ids"]):
        alone = make({**several(record)[question_id], "sample_seed": 5})
        np.testing.assert_array_equal(sample["image"], alone["image"])
        assert spelled(make, sample["prompts"][row].input_ids) == spelled(make, alone["prompts"][0].input_ids)
        np.testing.assert_array_equal(sample["answer_scores"][row], alone["answer_scores"][0])
        boxes = sample["instances"][sample["instances"].gt_prompts == row].gt_boxes
        np.testing.assert_array_equal(boxes.tensor, alone["instances"].gt_boxes.tensor)


def test_questions_of_an_image_change_from_sample_to_sample_and_are_all_where_there_are_few(record):
    make = mapper(questions_per_image=2)
    (group,) = questions_by_image(several(record))

    def asked(seed, make=make):
        sample = make({**group, "sample_seed": seed})
        return tuple(sample["question_ids"])

    assert {question for seed in range(20) for question in asked(seed)} == {0, 1, 2, 3}
    assert asked(3) == asked(3)
    assert sorted(asked(0, mapper(questions_per_image=9))) == [0, 1, 2, 3]


def test_what_the_questions_of_an_image_lost_is_counted_together(record):
    items = [{**item, "answers": ["unknown"]} for item in several(record, 3)]
    (group,) = questions_by_image(items)
    sample = mapper(questions_per_image=3)({**group, "sample_seed": 0})
    assert sample["dropped"]["questions_without_answers"] == 3


def test_grounding_needs_a_mask_token(monkeypatch):
    def no_mask(self):
        raise ValueError("has no mask token")

    monkeypatch.setattr(PromptTokenizer, "mask_id", property(no_mask))
    mapper(grounded=False)
    with pytest.raises(ValueError, match="has no mask token"):
        mapper(grounded=True)
