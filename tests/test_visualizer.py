import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from glipv2_d2.visualizer import GroundingVisualizer, phrase_color, place_label, split_caption, text_color


def make_instances(boxes, classes, size=(100, 200)):
    instances = Instances(size)
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.linspace(0.9, 0.5, len(boxes))
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    return instances


def gray(height=100, width=200):
    return np.full((height, width, 3), 128, np.uint8)


def test_box_is_drawn_on_its_edges_in_the_colour_of_its_phrase():
    drawn = GroundingVisualizer(gray(400, 800)).draw_predictions(
        make_instances([[100, 200, 300, 350]], [1], (400, 800)), ["a", "b"]
    )
    assert drawn.shape == (400, 800, 3)
    color = list(phrase_color(1))
    for y, x in ((200, 250), (349, 200), (300, 100), (300, 299)):
        assert drawn[y, x].tolist() == color
    for y, x in ((199, 290), (350, 200), (300, 99), (300, 300), (300, 200)):
        assert drawn[y, x].tolist() == [128, 128, 128]
    # The label sits on the box.
    assert drawn[195, 103].tolist() == color


def test_small_pictures_are_enlarged_with_their_boxes():
    drawn = GroundingVisualizer(gray(50, 100), min_long_side=400).draw_predictions(
        make_instances([[25, 25, 75, 45]], [0], (50, 100)), ["a"]
    )
    assert drawn.shape == (200, 400, 3)
    assert drawn[150, 100].tolist() == drawn[150, 299].tolist() == list(phrase_color(0))
    assert drawn[150, 200].tolist() == [128, 128, 128]


def test_picture_without_detections_stays_and_the_image_given_too():
    image = gray(300, 900)
    drawn = GroundingVisualizer(image).draw_predictions(make_instances([], []), [])
    assert (drawn == image).all() and (image == 128).all()


def test_caption_makes_the_picture_higher_whatever_is_found():
    visualizer = GroundingVisualizer(gray(100, 800))
    empty = visualizer.draw_predictions(make_instances([], []), ["a dog"], "a dog on the grass")
    found = visualizer.draw_predictions(make_instances([[1, 1, 50, 50]], [0]), ["a dog"], "a dog on the grass")
    assert empty.shape == found.shape and empty.shape[0] > 100
    strip = empty[100:].reshape(-1, 3).tolist()
    assert list(phrase_color(0)) in strip and [255, 255, 255] in strip


def test_long_caption_takes_more_lines():
    visualizer = GroundingVisualizer(gray(100, 800))
    short, long = (
        visualizer.draw_predictions(make_instances([], []), [], caption).shape[0] for caption in ("dog", "dog " * 80)
    )
    assert long > short + 20


def test_caption_is_cut_at_words_and_phrases():
    assert split_caption("a red dog, a cat", ["a cat", "a red dog"]) == [
        ("a ", 1),
        ("red ", 1),
        ("dog", 1),
        (", ", None),
        ("a ", 0),
        ("cat", 0),
    ]


@pytest.mark.parametrize("phrases, owner", [(["dog", "a dog"], 1), (["a dog", "dog"], 0)])
def test_longer_phrase_has_the_word(phrases, owner):
    assert split_caption("a dog", phrases) == [("a ", owner), ("dog", owner)]


def test_phrase_that_is_not_in_the_caption_colours_nothing():
    assert split_caption("a dog", ["dog cat"]) == [("a ", None), ("dog", None)]


def test_empty_caption_has_no_words():
    assert split_caption("", ["a"]) == []


def test_colours_of_many_phrases_differ():
    colors = np.array([phrase_color(row) for row in range(60)])
    assert len({tuple(color) for color in colors.tolist()}) == 60
    assert (np.abs(np.diff(colors, axis=0)).sum(axis=1) > 100).all()


def test_writing_contrasts_with_its_ground():
    for row in range(60):
        luma = np.dot((0.299, 0.587, 0.114), np.subtract(phrase_color(row), text_color(row)))
        assert abs(luma) > 80


# Box at (50, 40), label 30 x 10, picture 100 x 80.
@pytest.mark.parametrize(
    "box, taken, expected",
    [
        ((50, 40, 70, 60), [], (50, 30, 80, 40)),  # above the box
        ((50, 5, 70, 60), [], (50, 5, 80, 15)),  # no room above
        ((90, 40, 99, 60), [], (70, 30, 100, 40)),  # moved to the left
        ((-5, 40, 70, 60), [], (0, 30, 30, 40)),
        ((50, 40, 70, 60), [(40, 25, 60, 35)], (50, 40, 80, 50)),  # another label is above
        ((50, 40, 70, 60), [(40, 25, 60, 45)], (50, 50, 80, 60)),
        ((50, 40, 70, 60), [(0, 0, 100, 80)], (50, 30, 80, 40)),  # no free place at all
        ((50, 79, 70, 80), [(0, 60, 100, 80)], (50, 69, 80, 79)),
        ((50, 100, 70, 120), [], (50, 70, 80, 80)),  # box outside the picture
    ],
)
def test_label_finds_a_place(box, taken, expected):
    assert place_label(box, (30, 10), (100, 80), taken) == expected


@pytest.mark.parametrize("size", [(1, 1), (3, 700), (2000, 40)])
def test_any_picture_size_can_be_drawn(size):
    height, width = size
    drawn = GroundingVisualizer(gray(height, width)).draw_predictions(
        make_instances([[0, 0, width, height], [0.2, 0.2, 0.2, 0.2]], [0, 1], size), ["a dog", "b"], "a dog"
    )
    assert drawn.shape[1] >= width and drawn.dtype == np.uint8
