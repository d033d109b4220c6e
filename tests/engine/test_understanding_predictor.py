"""Answers and captions through the predictor."""

import json
import re

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


#       [CLS] is there very very big dog beside the cat ? [MASK] [SEP]
CROWDED = "is there very very big dog beside the cat?"


@pytest.mark.parametrize(
    ("max_tokens", "grounded", "phrases", "message"),
    [
        (13, True, ["dog", "cat", "[answer]"], None),
        (12, False, [], None),
        (10, True, ["dog", "[answer]"], "question: 3 tokens pass the limit of 10 tokens .*the cat'] cannot be found"),
        (7, True, ["[answer]"], "question: 6 tokens pass .*dog', 'the cat'] cannot be found"),
        (7, False, [], "question: 5 tokens pass the limit of 7 tokens and are not read"),
    ],
)
def test_a_question_past_the_token_limit_is_answered_with_a_warning(
    cfg, caplog, max_tokens, grounded, phrases, message
):
    cfg.MODEL.TEXT_ENCODER.MAX_TOKENS = max_tokens
    cfg.MODEL.GLIPV2.CAPTIONING.ENABLED = False
    cfg.MODEL.GLIPV2.VQA.GROUNDED = grounded
    result = build(cfg).answer(IMAGE, CROWDED)
    assert [phrase.split()[-1] for phrase in result["phrases"]] == phrases
    assert set(result["instances"].pred_classes.tolist()) <= set(range(len(phrases)))
    lines = [record.getMessage() for record in caplog.records if record.name == "glipv2_d2.engine.predictor"]
    assert [re.search(message, line) is not None for line in lines] == [True] if message else lines == []


def test_a_caption_without_grounding_has_no_boxes(cfg):
    result = build(cfg).caption(IMAGE)
    assert isinstance(result["caption"], str) and result["score"] < 0
    assert len(result["instances"]) == 0 and result["phrases"] == result["phrase_spans"] == result["words"] == []


@torch.no_grad()
def test_each_word_of_a_grounded_caption_has_a_box_in_the_image(cfg):
    cfg.MODEL.GLIPV2.CAPTIONING.GROUNDED = True
    result = build(cfg).caption(IMAGE)
    for word in result["words"]:
        assert result["caption"][slice(*word["span"])] == word["word"]
        left, top, right, bottom = word["box"]
        # As for detections, the last pixel of the image may reach out of it by less than one.
        assert 0 <= left < right < 61 and 0 <= top < bottom < 41 and 0 < word["score"] <= 1


def caption_with(cfg, monkeypatch, caption, boxes_of_tokens):
    """Let a predictor write a caption, whose tokens, in their order, have one box with a score each."""
    cfg.MODEL.GLIPV2.CAPTIONING.GROUNDED = True
    predictor = build(cfg)
    ids = predictor.tokenizer._encoder.encode(caption, add_special_tokens=False).ids
    assert len(ids) == len(boxes_of_tokens)
    boxes, scores = torch.zeros(len(ids), 10, 4), torch.zeros(len(ids), 10)
    for row, (box, score) in enumerate(boxes_of_tokens):
        boxes[row, 0], scores[row, 0] = torch.tensor(box), score
    output = {"caption_ids": torch.tensor(ids), "caption_score": -0.5, "token_boxes": boxes, "token_scores": scores}
    monkeypatch.setattr(predictor.model, "forward", lambda inputs: [output])
    result = predictor.caption(IMAGE)
    assert result["caption"] == caption and result["score"] == -0.5
    return result


DOG, BOARD, SKY = [1.0, 2.0, 11.0, 12.0], [20.0, 0.0, 40.0, 10.0], [0.0, 30.0, 60.0, 40.0]


def test_each_phrase_of_a_grounded_caption_has_the_best_box_of_its_words(cfg, monkeypatch):
    # Tokens: a dog and a skate ##board; the IoU of the boxes of the last two is 18 / 20.
    beside = [20.0, 0.0, 38.0, 10.0]
    tokens = [(SKY, 0.1), (DOG, 0.8), (SKY, 0.2), (SKY, 0.6), (BOARD, 0.5), (beside, 0.9)]
    result = caption_with(cfg, monkeypatch, "a dog and a skateboard", tokens)
    assert result["phrases"] == ["a dog", "a skateboard"] and result["phrase_spans"] == [[(0, 5)], [(10, 22)]]
    instances = result["instances"]
    assert instances.pred_classes.tolist() == [0, 1]
    # Articles do not rate: those of their boxes would be better, and they would halve the scores.
    assert instances.scores.tolist() == pytest.approx([0.8, 0.7])
    assert instances.pred_boxes.tensor.tolist() in ([DOG, BOARD], [DOG, beside])


@pytest.mark.parametrize("determiner", ["a", "the", "this", "some", "another"])
def test_a_phrase_is_rated_at_least_as_its_least_rated_noun(cfg, monkeypatch, determiner):
    tokens = [(SKY, 0.01), (DOG, 0.7), (DOG, 0.6), (SKY, 0.9)]
    result = caption_with(cfg, monkeypatch, f"{determiner} red dog", tokens[:3])
    assert result["phrases"] == [f"{determiner} red dog"] and result["phrase_spans"][0][0][0] == 0
    assert result["instances"].scores.tolist() == pytest.approx([0.65])
    assert result["instances"].pred_boxes.tensor.tolist() == [DOG]


def test_a_word_that_only_begins_like_a_determiner_rates(cfg, monkeypatch):
    result = caption_with(cfg, monkeypatch, "all dogs", [(SKY, 0.01), (DOG, 0.7)])
    assert result["instances"].scores.tolist() == pytest.approx([0.7])
    result = caption_with(cfg, monkeypatch, "animal dogs", [(DOG, 0.5), (DOG, 0.7)])
    assert result["instances"].scores.tolist() == pytest.approx([0.6])


def test_each_word_of_a_caption_has_the_best_box_of_its_tokens(cfg, monkeypatch):
    # Tokens: a dog jumps , on a skate ##board
    tokens = [(SKY, 0.1), (DOG, 0.8), (DOG, 0.4), (SKY, 0.9), (BOARD, 0.3), (SKY, 0.0), (BOARD, 0.5), (BOARD, 0.75)]
    result = caption_with(cfg, monkeypatch, "a dog jumps, on a skateboard", tokens)
    expected = [
        ("a", (0, 1), SKY, 0.1),
        ("dog", (2, 5), DOG, 0.8),
        ("jumps", (6, 11), DOG, 0.4),
        ("on", (13, 15), BOARD, 0.3),
        ("a", (16, 17), None, 0.0),
        ("skateboard", (18, 28), BOARD, 0.625),
    ]
    keys = ("word", "span", "box", "score")
    assert [tuple(word[key] for key in keys) for word in result["words"]] == [
        (word, span, box, pytest.approx(score)) for word, span, box, score in expected
    ]
    assert all(sorted(word) == sorted(keys) for word in result["words"])


def test_a_phrase_without_any_box_is_named_and_has_none(cfg, monkeypatch):
    tokens = [(SKY, 0.1), (DOG, 0.0), (SKY, 0.2), (SKY, 0.1), (DOG, 0.5)]
    result = caption_with(cfg, monkeypatch, "a dog and a man", tokens)
    assert result["phrases"] == ["a dog", "a man"]
    assert result["instances"].pred_classes.tolist() == [1]
    assert result["instances"].pred_boxes.tensor.tolist() == [DOG]


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
