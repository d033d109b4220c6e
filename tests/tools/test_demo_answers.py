"""The tasks of tools/demo.py in which the model answers or writes; detection is tested in test_demo.py."""

import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from glipv2_d2.colored_text import phrase_color

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def demo(load_tool):
    return load_tool("demo")


def make_instances(size, boxes, scores):
    instances = Instances(size)
    instances.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.scores = torch.tensor(scores)
    instances.pred_classes = torch.arange(len(boxes))
    return instances


@pytest.fixture
def talking_predictor(demo, monkeypatch):
    """Replace the model by one that says the same of every image; what it grounds can be changed, and it notes what
    it was asked."""

    class TalkingPredictor:
        boxes = [[1.0, 2.0, 11.126, 12.0], [0.0, 0.0, 5.0, 5.0]]
        scores = [0.75, 0.4]
        asked = []

        def __init__(self, cfg):
            pass

        def answer(self, image, question):
            self.asked.append((image.shape, question))
            instances = make_instances(image.shape[:2], self.boxes, self.scores)
            answers = [("a cat", 0.61238), ("no", 0.2), ("2", 0.1), ("red", 0.05), ("air", 0.01)]
            phrases = ["[answer]", "the dog"] if self.boxes else []
            return {"answer": "a cat", "score": 0.61238, "answers": answers, "instances": instances, "phrases": phrases}

        def caption(self, image):
            self.asked.append(image.shape)
            instances = make_instances(image.shape[:2], self.boxes, self.scores)
            phrases, spans = (["a dog", "a cat"], [[(0, 5)], [(10, 15)]]) if self.boxes else ([], [])
            output = {"caption": "a dog and a cat", "score": -0.76543, "instances": instances}
            words = [
                {"word": "dog", "span": (2, 5), "box": [1.0, 2.0, 11.126, 12.0], "score": 0.76543},
                {"word": "and", "span": (6, 9), "box": None, "score": 0.0},
            ]
            return {**output, "phrases": phrases, "phrase_spans": spans, "words": words if self.boxes else []}

    monkeypatch.setattr(demo, "GLIPv2Predictor", TalkingPredictor)
    return TalkingPredictor


@pytest.fixture
def run(demo, config, talking_predictor, tmp_path):
    """Run the program on two images; return what it writes."""
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(images / name), np.full((20, 30, 3), 100, np.uint8))

    def run_on_images(*words, source="--input"):
        output = tmp_path / "out"
        demo.main(["--config-file", config, source, str(images), "--output", str(output), *words])
        drawings = [cv2.imread(str(output / name))[:, :, ::-1] for name in ("a.png", "b.png")]
        return json.loads((output / "predictions.json").read_text()), drawings

    return run_on_images


def has_color(area, row):
    return bool((area == phrase_color(row)).all(axis=2).any())


def test_a_question_is_answered_for_every_image(run, talking_predictor):
    content, drawings = run("--task", "vqa", "--question", "What is the dog chasing?", "--confidence-threshold", "0.3")
    assert content["question"] == "What is the dog chasing?"
    assert [record["drawing"] for record in content["predictions"]] == ["a.png", "b.png"]
    for record in content["predictions"]:
        assert record["answer"] == "a cat" and record["score"] == 0.6124
        assert record["answers"] == [["a cat", 0.6124], ["no", 0.2], ["2", 0.1], ["red", 0.05], ["air", 0.01]]
        assert record["detections"] == [
            {"phrase": "[answer]", "score": 0.75, "box": [1.0, 2.0, 11.13, 12.0]},
            {"phrase": "the dog", "score": 0.4, "box": [0.0, 0.0, 5.0, 5.0]},
        ]
    assert talking_predictor.asked[-2:] == [((20, 30, 3), "What is the dog chasing?")] * 2
    # 20 x 30 pixels are enlarged to 533 x 800; question and answer stand below.
    for drawing in drawings:
        assert drawing.shape[1] == 800
        assert has_color(drawing[533:], 0) and has_color(drawing[533:], 1)


def test_a_caption_is_written_for_every_image(run, talking_predictor):
    content, drawings = run("--task", "caption")
    assert sorted(content) == ["predictions"] and len(content["predictions"]) == 2
    for record in content["predictions"]:
        assert record["caption"] == "a dog and a cat" and record["score"] == -0.7654
        assert record["detections"] == [{"phrase": "a dog", "score": 0.75, "box": [1.0, 2.0, 11.13, 12.0]}]
        # Of the words also those with a low score.
        assert record["words"] == [
            {"word": "dog", "span": [2, 5], "score": 0.7654, "box": [1.0, 2.0, 11.13, 12.0]},
            {"word": "and", "span": [6, 9], "score": 0.0, "box": None},
        ]
    assert talking_predictor.asked[-2:] == [(20, 30, 3)] * 2
    for drawing in drawings:
        # The box of the second phrase has too low a score.
        assert has_color(drawing[533:], 0) and not has_color(drawing[533:], 1)


@pytest.mark.parametrize("words", [["--task", "vqa", "--question", "What is it?"], ["--task", "caption"]])
def test_a_model_without_grounding_gives_text_and_no_boxes(run, talking_predictor, monkeypatch, words):
    monkeypatch.setattr(talking_predictor, "boxes", [])
    monkeypatch.setattr(talking_predictor, "scores", [])
    content, drawings = run(*words)
    assert [record["detections"] for record in content["predictions"]] == [[], []]
    assert all(record.get("words", []) == [] for record in content["predictions"])
    assert all((drawing[:500] == drawing[0, 0]).all() and drawing.shape[0] > 533 for drawing in drawings)


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["--task", "vqa"],
            "--question: expected a question with --task vqa and none with other tasks, found no question",
        ),
        (["--question", "What is it?"], "found --task detect"),
        (["--task", "caption", "--question", "What is it?"], "found --task caption"),
        (["--task", "caption", "--prompt", "a dog"], "--prompt, --vocabulary: expected --task detect or refer"),
        (["--task", "caption", "--vocabulary", "dog"], "--prompt, --vocabulary: expected --task detect"),
    ],
)
def test_flags_that_do_not_fit_together_end_in_one_line(run, talking_predictor, words, message):
    before = len(talking_predictor.asked)
    with pytest.raises(SystemExit) as exit_info:
        run(*words)
    assert message in exit_info.value.code and "\n" not in exit_info.value.code
    assert len(talking_predictor.asked) == before


def test_answers_and_captions_are_for_images_only(run):
    for words in (["--task", "vqa", "--question", "What is it?"], ["--task", "caption"]):
        with pytest.raises(SystemExit, match="--video-input: expected --task detect or refer, found"):
            run(*words, source="--video-input")


def test_a_question_and_a_prompt_exclude_each_other(run, capsys):
    with pytest.raises(SystemExit):
        run("--task", "vqa", "--question", "What is it?", "--prompt", "a dog")
    assert "not allowed with argument" in capsys.readouterr().err
