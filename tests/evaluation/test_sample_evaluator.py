"""The rules that the evaluators of single samples share; each has its own measures in a file of its own."""

import json
import logging

import numpy as np
import pytest
import torch
from caption_cases import caption_output, decode, scene
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm

from glipv2_d2.evaluation.captioning import CaptioningEvaluator
from glipv2_d2.evaluation.flickr30k import Flickr30kEvaluator
from glipv2_d2.evaluation.referring import ReferringEvaluator
from glipv2_d2.evaluation.sample_evaluator import by_id, percentage, recalls
from glipv2_d2.evaluation.vqa import VQAEvaluator

BOX, OTHER = [0.0, 0.0, 40.0, 40.0], [60.0, 60.0, 100.0, 100.0]


def detected(is_right):
    instances = Instances((104, 120))
    instances.pred_boxes = Boxes(torch.tensor([BOX if is_right else OTHER]))
    instances.scores, instances.pred_classes = torch.tensor([0.9]), torch.tensor([0])
    return {"instances": instances}


def grounded(key):
    annotation = {"bbox": BOX, "bbox_mode": BoxMode.XYXY_ABS, "tokens_positive": [[0, 3]]}
    return {"image_id": key, "height": 104, "width": 120, "caption": "cup", "annotations": [annotation]}


# For each evaluator: how it is made of dataset dicts, a dict for an id, its key, an output that is right or wrong, and
# the score that is 100 or 0 then.
CASES = {
    "flickr30k": (
        lambda dicts: Flickr30kEvaluator("said", dicts), grounded, "image_id", detected, ("any_box", "R@1")
    ),
    "referring": (
        lambda dicts: ReferringEvaluator("said", dicts, "refcoco", with_masks=False),
        *(grounded, "image_id", detected, ("referring", "acc@0.5")),
    ),
    "vqa": (
        lambda dicts: VQAEvaluator("said", dicts, ["dog", "no"]),
        lambda key: {"question_id": key, "image_id": 1, "question": "what?", "answers": ["dog"]},
        *("question_id", lambda is_right: {"answer_scores": torch.tensor([float(is_right), 0.5])}, ("vqa", "accuracy")),
    ),
    "captioning": (
        lambda dicts: CaptioningEvaluator("said", dicts, decode, implementation="python"),
        *(lambda key: scene(key, ["dog"]), "image_id"),
        *(lambda is_right: caption_output("dog" if is_right else "man"), ("captioning", "BLEU1")),
    ),
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.mark.parametrize("name", ["flickr30k", "referring", "captioning"])
def test_ids_of_a_reader_outside_may_be_of_numpy_and_of_several_types(name, tmp_path):
    make, dict_of, key, output, (task, score) = CASES[name]
    evaluator = make([dict_of(np.int64(2)), dict_of("a"), dict_of(1)])
    evaluator._output_folder = str(tmp_path)
    evaluator.process([{key: one} for one in (1, 2, "a")], [output(True), output(False), output(True)])
    assert evaluator.evaluate()[task][score] == pytest.approx(200 / 3, abs=20)
    (predictions,) = tmp_path.glob("*_[rp]*.json")
    assert [one[key] for one in json.loads(predictions.read_text())] == [2, "a", 1]


def test_of_a_sample_that_several_processes_had_the_first_result_counts(case, monkeypatch):
    make, dict_of, key, output, (task, score) = case
    evaluator, other = make([dict_of(1)]), make([dict_of(1)])
    evaluator.process([{key: 1}], [output(True)])
    other.process([{key: 1}], [output(False)])
    monkeypatch.setattr(comm, "gather", lambda results: [results, other._results])
    assert evaluator.evaluate()[task][score] == pytest.approx(100.0)


def test_a_sample_that_comes_twice_counts_once_and_the_evaluator_starts_anew(case):
    make, dict_of, key, output, (task, score) = case
    evaluator = make([dict_of(1), dict_of(2)])
    evaluator.process([{key: 2}], [output(False)])
    evaluator.reset()
    for sample_id, is_right in ((2, True), (1, True), (1, True), (2, True)):
        evaluator.process([{key: sample_id}], [output(is_right)])
    assert evaluator.evaluate()[task][score] == pytest.approx(100.0)
    evaluator.reset()
    evaluator.process([{key: 1}, {key: 2}], [output(True), output(False)])
    assert evaluator.evaluate()[task][score] == pytest.approx(50.0)


def test_nothing_processed_has_no_results_and_is_said(case, caplog):
    make, dict_of, *_ = case
    evaluator = make([dict_of(1), dict_of(2)])
    with caplog.at_level(logging.WARNING):
        assert evaluator.evaluate() == {}
    assert "dataset 'said'" in caplog.text and "processed" in caplog.text


def test_a_sample_of_another_dataset_is_an_error(case):
    make, dict_of, key, output, _ = case
    with pytest.raises(ValueError, match=f"{key} 9: expected a sample of the dataset 'said'"):
        make([dict_of(1)]).process([{key: 9}], [output(True)])


def test_inputs_and_outputs_are_equally_many(case):
    make, dict_of, key, output, _ = case
    with pytest.raises(ValueError, match="zip"):
        make([dict_of(1)]).process([{key: 1}], [output(True)] * 2)


@pytest.mark.parametrize("name", [name for name in CASES if name != "captioning"])
def test_two_dicts_with_one_id_are_an_error(name):
    make, dict_of, key, *_ = CASES[name]
    with pytest.raises(ValueError, match=f"'said': expected one {key} for each .*, found 1 different ones in 2 dicts"):
        make([dict_of(1), dict_of(1)])


def test_shares_and_recalls():
    assert by_id("said", [{"id": 3}, {"id": 1}], "id", "row") == {3: {"id": 3}, 1: {"id": 1}}
    assert percentage(1, 4) == 25.0 and percentage(0, 0) != percentage(0, 0)
    assert recalls([0, 1, 4, 5, 9, 10, None, None]) == {"R@1": 12.5, "R@5": 37.5, "R@10": 62.5}
