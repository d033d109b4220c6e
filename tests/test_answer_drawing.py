"""Drawn answers and generated captions; what all drawings share is tested in test_visualizer.py."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from glipv2_d2.colored_text import phrase_color, split_words
from glipv2_d2.visualizer import GroundingVisualizer

HEIGHT, WIDTH = 300, 800


def make_instances(boxes, rows):
    instances = Instances((HEIGHT, WIDTH))
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.linspace(0.9, 0.5, len(boxes))
    instances.pred_classes = torch.tensor(rows, dtype=torch.int64)
    return instances


def visualizer():
    return GroundingVisualizer(np.full((HEIGHT, WIDTH, 3), 128, np.uint8))


def lines_of(drawn):
    """The strip below the image, cut at its all-white rows into lines of text."""
    strip = drawn[HEIGHT:]
    written = (strip != 255).any(axis=(1, 2))
    edges = np.flatnonzero(np.diff(np.concatenate([[False], written, [False]]).astype(int)))
    return [strip[begin:end] for begin, end in zip(edges[::2], edges[1::2])]


def count(area, row):
    return int((area == phrase_color(row)).all(axis=2).sum())


BOXES = [[100, 100, 300, 250], [400, 120, 700, 280]]
PHRASES = ["the dog", "[answer]"]


def test_question_stands_above_the_answer_in_the_colours_of_their_boxes():
    drawn = visualizer().draw_answer(make_instances(BOXES, [0, 1]), PHRASES, "What is the dog chasing?", "a cat", 0.7)
    question, answer = lines_of(drawn)
    assert count(question, 0) > 100 and count(question, 1) == 0
    assert count(answer, 1) > 100 and count(answer, 0) == 0
    for row, (left, top, right, bottom) in enumerate(BOXES):
        for y, x in ((bottom - 1, left + 50), (top + 50, right - 1)):
            assert drawn[y, x].tolist() == list(phrase_color(row))


def test_box_of_the_answer_is_labelled_with_the_answer():
    instances = make_instances(BOXES, [0, 1])
    drawn = visualizer().draw_answer(instances, PHRASES, "What is the dog chasing?", "a cat", 0.7)
    expected = visualizer().draw_predictions(instances, ["the dog", "a cat"])
    assert (drawn[:HEIGHT] == expected).all()
    assert not (expected == visualizer().draw_predictions(instances, PHRASES)).all()


def test_answer_without_a_box_has_no_colour():
    drawn = visualizer().draw_answer(make_instances(BOXES[:1], [0]), PHRASES, "What is the dog chasing?", "air", 0.7)
    question, answer = lines_of(drawn)
    assert count(question, 0) > 100
    assert count(answer, 0) == count(answer, 1) == 0 and (answer < 100).any()


def test_answer_of_a_model_without_grounding_is_text_below_the_image():
    drawn = visualizer().draw_answer(make_instances([], []), [], "Is it a dog?", "yes", 0.7)
    assert (drawn[:HEIGHT] == 128).all() and len(lines_of(drawn)) == 2
    other_score = visualizer().draw_answer(make_instances([], []), [], "Is it a dog?", "yes", 0.8)
    (_, one), (_, other) = lines_of(drawn), lines_of(other_score)
    assert one.shape == other.shape and not (one == other).all()


def test_equal_phrases_of_a_generated_caption_have_the_colours_of_their_own_boxes():
    caption = "a dog and a dog"
    drawn = visualizer().draw_generated(make_instances(BOXES, [0, 1]), ["a dog"] * 2, caption, [[(0, 5)], [(10, 15)]])
    (line,) = lines_of(drawn)
    # The colour of the first dog lies left of that of the second.
    columns = [np.flatnonzero((line == phrase_color(row)).all(axis=2).any(axis=0)) for row in range(2)]
    assert columns[0].max() < columns[1].min()
    assert (drawn[:HEIGHT] == visualizer().draw_predictions(make_instances(BOXES, [0, 1]), ["a dog"] * 2)).all()


def test_phrase_of_a_generated_caption_without_a_box_has_no_colour():
    spans = [[(0, 5)], [(10, 15)]]
    drawn = visualizer().draw_generated(make_instances(BOXES[:1], [1]), ["a dog", "a cat"], "a dog and a cat", spans)
    (line,) = lines_of(drawn)
    assert count(line, 0) == 0 and count(line, 1) > 100


@pytest.mark.parametrize("caption", ["", "a dog"])
def test_caption_of_a_model_without_grounding_stands_below_the_image(caption):
    drawn = visualizer().draw_generated(make_instances([], []), [], caption, [])
    assert (drawn[:HEIGHT] == 128).all() and drawn.shape[0] > HEIGHT
    assert len(lines_of(drawn)) == bool(caption)


@pytest.mark.parametrize(
    "spans, expected",
    [
        ([[(0, 5)]], [("a ", 0), ("dog", 0), (" ", None), ("and ", None), ("a ", None), ("cat", None)]),
        ([[(2, 5), (12, 15)]], [("a ", None), ("dog", 0), (" ", None), ("and ", None), ("a ", None), ("cat", 0)]),
        # The longer one has the word, whichever comes first.
        ([[(10, 15)], [(2, 15)]], [("a ", None), ("dog ", 1), ("and ", 1), ("a ", 1), ("cat", 1)]),
        ([[(2, 15)], [(10, 15)]], [("a ", None), ("dog ", 0), ("and ", 0), ("a ", 0), ("cat", 0)]),
        # One range is not to be seen, and one passes the end of the text.
        ([[], [(12, 99)]], [("a ", None), ("dog ", None), ("and ", None), ("a ", None), ("cat", 1)]),
    ],
)
def test_words_belong_to_the_phrase_whose_range_they_are_in(spans, expected):
    assert split_words("a dog and a cat", spans) == expected
