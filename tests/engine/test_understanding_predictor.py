"""Answers and captions through the predictor."""

import json

import numpy as np
import pytest
import torch

from glipv2_d2 import GLIPv2Predictor

ANSWERS = ["yes", "no", "1", "2", "red", "blue"]
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture
def cfg(tiny_cfg, tmp_path):
    (tmp_path / "answers.json").write_text(json.dumps(ANSWERS))
    vqa, captioning = tiny_cfg.MODEL.GLIPV2.VQA, tiny_cfg.MODEL.GLIPV2.CAPTIONING
    vqa.ENABLED = captioning.ENABLED = True
    vqa.ANSWERS = str(tmp_path / "answers.json")
    captioning.MAX_LENGTH = 6
    tiny_cfg.MODEL.GLIPV2.TEST.SCORE_THRESH = 0.0
    return tiny_cfg


def build(cfg):
    torch.manual_seed(0)
    return GLIPv2Predictor(cfg)


def test_the_answer_is_the_best_of_the_list(cfg):
    result = build(cfg).answer(IMAGE, "is there a red dog?")
    assert len(result["answers"]) == 5 and result["answers"][0] == (result["answer"], result["score"])
    scores = [score for _, score in result["answers"]]
    assert scores == sorted(scores, reverse=True) and {answer for answer, _ in result["answers"]} < set(ANSWERS)
    assert len(result["instances"]) == 0 and result["phrases"] == []


def test_a_grounded_answer_comes_with_boxes_of_what_is_named_and_of_the_answer(cfg):
    cfg.MODEL.GLIPV2.VQA.GROUNDED = True
    result = build(cfg).answer(IMAGE, "is there a red dog?")
    assert result["phrases"] == ["a red dog", "[answer]"] or result["phrases"] == ["red dog", "[answer]"]
    assert set(result["instances"].pred_classes.tolist()) <= {0, 1} and len(result["instances"]) > 0


def test_a_caption_without_grounding_has_no_boxes(cfg):
    result = build(cfg).caption(IMAGE)
    assert isinstance(result["caption"], str) and result["score"] < 0
    assert len(result["instances"]) == 0 and result["phrases"] == result["phrase_spans"] == []


def test_each_phrase_of_a_grounded_caption_has_the_best_box_of_its_words(cfg, monkeypatch):
    cfg.MODEL.GLIPV2.CAPTIONING.GROUNDED = True
    predictor = build(cfg)
    ids = predictor.tokenizer._encoder.encode("a dog and a skateboard", add_special_tokens=False).ids
    boxes, scores = torch.zeros(len(ids), 10, 4), torch.zeros(len(ids), 10)
    for row in range(len(ids)):
        boxes[row, 0] = torch.tensor([row, 0.0, row + 5, 5.0])
        scores[row, 0] = 0.1 * (row + 1)
    output = {"caption_ids": torch.tensor(ids), "caption_score": -0.5, "token_boxes": boxes, "token_scores": scores}
    monkeypatch.setattr(predictor.model, "forward", lambda inputs: [output])
    result = predictor.caption(IMAGE)
    assert result["caption"] == "a dog and a skateboard" and result["score"] == -0.5
    phrases = dict(zip(result["phrases"], result["instances"].pred_boxes.tensor.tolist()))
    (dog,) = [box for phrase, box in phrases.items() if "dog" in phrase]
    (board,) = [box for phrase, box in phrases.items() if "skateboard" in phrase]
    # Tokens: a dog and a skate ##board; the better of those of a phrase.
    assert dog == [1, 0, 6, 5] and board == [len(ids) - 1, 0, len(ids) + 4, 5]
    for phrase, (span,) in zip(result["phrases"], result["phrase_spans"]):
        assert result["caption"][slice(*span)] == phrase
    assert result["instances"].pred_classes.tolist() == list(range(len(result["phrases"])))


def test_a_model_made_for_neither_says_so(tiny_cfg):
    predictor = build(tiny_cfg)
    with pytest.raises(ValueError, match="VQA.ENABLED True"):
        predictor.answer(IMAGE, "why?")
    with pytest.raises(ValueError, match="CAPTIONING.ENABLED True"):
        predictor.caption(IMAGE)


@pytest.mark.parametrize("question", ["", "  ", None, 3])
def test_a_question_without_words_is_an_error(cfg, question):
    with pytest.raises(ValueError, match="question: expected"):
        build(cfg).answer(IMAGE, question)
