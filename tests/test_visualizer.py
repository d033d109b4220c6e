import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from glipv2_d2.colored_text import phrase_color, split_caption, text_color
from glipv2_d2.visualizer import GroundingVisualizer, enlarge_mask, place_label


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


def test_small_images_are_enlarged_with_their_boxes():
    drawn = GroundingVisualizer(gray(50, 100), min_long_side=400).draw_predictions(
        make_instances([[25, 25, 75, 45]], [0], (50, 100)), ["a"]
    )
    assert drawn.shape == (200, 400, 3)
    assert drawn[150, 100].tolist() == drawn[150, 299].tolist() == list(phrase_color(0))
    assert drawn[150, 200].tolist() == [128, 128, 128]


def test_large_images_are_shrunk_with_their_boxes_if_asked_to():
    visualizer = GroundingVisualizer(gray(400, 800), 100, max_long_side=200)
    drawn = visualizer.draw_predictions(make_instances([[200, 200, 600, 360]], [0], (400, 800)), ["a"])
    assert drawn.shape == (100, 200, 3)
    assert drawn[75, 50].tolist() == drawn[75, 149].tolist() == list(phrase_color(0))
    assert GroundingVisualizer(gray(40, 80), 100, max_long_side=200)._scale == 100 / 80
    assert GroundingVisualizer(gray(75, 150), 100, max_long_side=200)._scale == 1


def test_image_without_detections_stays_and_the_image_given_too():
    image = gray(300, 900)
    drawn = GroundingVisualizer(image).draw_predictions(make_instances([], []), [])
    assert (drawn == image).all() and (image == 128).all()


def test_caption_makes_the_drawing_higher_whatever_is_found():
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


# Box at (50, 40), label 30 x 10, image 100 x 80.
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
        ((50, 100, 70, 120), [], (50, 70, 80, 80)),  # box outside the image
    ],
)
def test_label_finds_a_place(box, taken, expected):
    assert place_label(box, (30, 10), (100, 80), taken) == expected


@pytest.mark.parametrize("size", [(1, 1), (3, 700), (2000, 40)])
def test_any_image_size_can_be_drawn(size):
    height, width = size
    drawn = GroundingVisualizer(gray(height, width)).draw_predictions(
        make_instances([[0, 0, width, height], [0.2, 0.2, 0.2, 0.2]], [0, 1], size), ["a dog", "b"], "a dog"
    )
    assert drawn.shape[1] >= width and drawn.dtype == np.uint8


# The colour of phrase 0 is (217, 33, 33); 45 % of it on 128 is (168, 85, 85).
TINT = [168, 85, 85]
WHITE = [255, 255, 255]
GRAY = [128, 128, 128]


def make_mask(size, top, left, bottom, right):
    mask = np.zeros(size, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def draw_masks(masks, rows, image=None, min_long_side=800):
    """Draw masks whose boxes and labels lie in the lower left corner of the image."""
    size = masks[0].shape
    instances = make_instances([[0, size[0] - 1, 1, size[0]]] * len(masks), rows, size)
    instances.pred_masks = torch.from_numpy(np.stack(masks))
    visualizer = GroundingVisualizer(gray(*size) if image is None else image, min_long_side)
    return visualizer.draw_predictions(instances, ["a"] * (max(rows) + 1))


def test_mask_is_tinted_inside_its_edge_with_white_around_it():
    drawn = draw_masks([make_mask((400, 800), 100, 300, 200, 500)], [0])
    # From the left and from above: the image, white, an edge of two pixels, the tint.
    expected = [GRAY, WHITE, [217, 33, 33], [217, 33, 33], TINT]
    assert drawn[150, 298:303].tolist() == drawn[98:103, 400].tolist() == expected
    assert drawn[150, 497:502].tolist() == drawn[197:202, 400].tolist() == expected[::-1]
    assert (drawn[102:198, 302:498] == TINT).all()


def test_image_can_be_seen_through_a_mask():
    image = gray(400, 800)
    image[:, 400:] = 228
    drawn = draw_masks([make_mask((400, 800), 100, 300, 200, 500)], [0], image)
    # 55 % of a difference of 100 are left.
    assert (drawn[150, 450].astype(int) - drawn[150, 350] == 55).all()
    assert (image[:, :400] == 128).all() and (image[:, 400:] == 228).all()


def test_boxes_and_labels_lie_above_masks():
    instances = make_instances([[100, 200, 300, 350], [0, 0, 800, 400]], [1, 0], (400, 800))
    instances.pred_masks = torch.from_numpy(np.stack([make_mask((400, 800), 0, 0, 0, 0), np.ones((400, 800), bool)]))
    drawn = GroundingVisualizer(gray(400, 800)).draw_predictions(instances, ["a", "b"])
    for y, x in ((200, 250), (349, 200), (195, 103)):
        assert drawn[y, x].tolist() == list(phrase_color(1))
    assert drawn[300, 200].tolist() == TINT


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_small_mask_lies_on_large_ones_and_is_tinted_as_if_alone(order):
    size = (400, 800)
    corners = [(140, 390, 160, 410), (100, 300, 200, 500), (90, 290, 210, 510)]
    masks = [make_mask(size, *corners[k]) for k in order]
    drawn = draw_masks(masks, order)
    assert (drawn[142:158, 392:408] == TINT).all()
    assert drawn[140, 400].tolist() == [217, 33, 33] and drawn[139, 400].tolist() == WHITE
    # The large masks keep what the small one leaves them.
    tints = [np.rint(0.45 * np.array(phrase_color(row)) + 0.55 * 128).tolist() for row in (1, 2)]
    assert drawn[150, 350].tolist() == tints[0] and drawn[150, 295].tolist() == tints[1]
    assert drawn[150, 300].tolist() == list(phrase_color(1)) and drawn[150, 290].tolist() == list(phrase_color(2))


def test_edge_of_a_large_mask_goes_through_a_small_one():
    size = (400, 800)
    drawn = draw_masks([make_mask(size, 140, 280, 160, 330), make_mask(size, 100, 300, 200, 500)], [0, 1])
    assert drawn[150, 290].tolist() == drawn[150, 310].tolist() == TINT
    assert drawn[150, 300].tolist() == drawn[150, 301].tolist() == list(phrase_color(1))


def test_masks_side_by_side_have_no_white_between_them():
    size = (400, 800)
    drawn = draw_masks([make_mask(size, 100, 300, 200, 400), make_mask(size, 100, 400, 200, 500)], [0, 1])
    assert drawn[150, 398:402].tolist() == [list(phrase_color(0))] * 2 + [list(phrase_color(1))] * 2


def test_masks_are_enlarged_with_the_image():
    drawn = draw_masks([make_mask((50, 100), 20, 30, 40, 60)], [0], min_long_side=400)
    assert drawn.shape == (200, 400, 3)
    expected = [GRAY, WHITE, [217, 33, 33], [217, 33, 33], TINT]
    assert drawn[120, 118:123].tolist() == drawn[78:83, 180].tolist() == expected
    assert drawn[120, 237:242].tolist() == drawn[157:162, 180].tolist() == expected[::-1]


def test_enlarged_mask_has_no_stairs():
    y, x = np.mgrid[:20, :20]
    enlarged = enlarge_mask(x > y, (160, 160))
    assert enlarged.dtype == bool and enlarged.shape == (160, 160)
    # Pixels repeated in squares of 8 x 8 would make steps of 8.
    steps = np.diff(enlarged[8:144].argmax(axis=1))
    assert steps.min() >= 0 and steps.max() <= 3
    assert abs(int(enlarged.sum()) - 64 * 190) < 64 * 4


def test_mask_of_one_pixel_can_be_seen():
    drawn = draw_masks([make_mask((400, 800), 150, 300, 151, 301)], [0])
    assert drawn[150, 298:303].tolist() == [GRAY, WHITE, [217, 33, 33], WHITE, GRAY]
    assert drawn[148:153, 300].tolist() == [GRAY, WHITE, [217, 33, 33], WHITE, GRAY]
    assert drawn[149, 299].tolist() == GRAY


def test_mask_that_leaves_the_image_has_an_edge_there():
    drawn = draw_masks([make_mask((400, 800), 0, 700, 100, 800)], [0])
    assert drawn[50, 797:].tolist() == [TINT, [217, 33, 33], [217, 33, 33]]
    assert drawn[:3, 750].tolist() == [[217, 33, 33], [217, 33, 33], TINT]
    assert drawn[50, 698:701].tolist() == [GRAY, WHITE, [217, 33, 33]]


def test_empty_mask_draws_nothing():
    instances = make_instances([[100, 200, 300, 350]], [1], (400, 800))
    without = GroundingVisualizer(gray(400, 800)).draw_predictions(instances, ["a", "b"])
    instances.pred_masks = torch.zeros(1, 400, 800, dtype=torch.bool)
    assert (GroundingVisualizer(gray(400, 800)).draw_predictions(instances, ["a", "b"]) == without).all()


def test_no_detection_of_a_model_with_masks_draws_nothing():
    instances = make_instances([], [], (300, 900))
    instances.pred_masks = torch.zeros(0, 300, 900, dtype=torch.bool)
    assert (GroundingVisualizer(gray(300, 900)).draw_predictions(instances, []) == 128).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 700), (2000, 40)])
def test_masks_of_any_image_size_can_be_drawn(size):
    drawn = draw_masks([np.ones(size, dtype=bool), make_mask(size, 0, 0, 1, 1)], [0, 1], gray(*size))
    assert drawn.shape[1] >= size[1] and drawn.dtype == np.uint8
    referred = GroundingVisualizer(gray(*size)).draw_referred(np.ones(size, dtype=bool), "a dog")
    assert referred.shape[0] > drawn.shape[0] and referred.shape[1] == drawn.shape[1]


def test_masks_of_another_size_than_the_image_are_refused():
    instances = make_instances([[1, 1, 50, 50]], [0])
    instances.pred_masks = torch.zeros(1, 200, 100, dtype=torch.bool)
    visualizer = GroundingVisualizer(gray())
    with pytest.raises(ValueError, match=r"pred_masks: expected .* \(100, 200\), found \(200, 100\)"):
        visualizer.draw_predictions(instances, ["a"])
    with pytest.raises(ValueError, match=r"mask: expected .* \(100, 200\), found \(100, 201\)"):
        visualizer.draw_referred(np.zeros((100, 201), dtype=bool), "a")


def test_referred_mask_and_its_phrase_have_one_colour():
    visualizer = GroundingVisualizer(gray(400, 800))
    drawn = visualizer.draw_referred(make_mask((400, 800), 100, 300, 200, 500), "the dog on the left")
    assert drawn[150, 400].tolist() == TINT and drawn[150, 300].tolist() == [217, 33, 33]
    assert drawn[150, 250].tolist() == GRAY
    strip = drawn[400:].reshape(-1, 3).tolist()
    assert [217, 33, 33] in strip and WHITE in strip


def test_phrase_that_refers_to_nothing_has_no_colour():
    visualizer = GroundingVisualizer(gray(400, 800))
    drawn = visualizer.draw_referred(np.zeros((400, 800), dtype=bool), "the dog on the left")
    assert (drawn[:400] == 128).all()
    strip = drawn[400:]
    assert (strip[:, :, 0] == strip[:, :, 1]).all() and strip.min() < 100


def test_size_of_a_referring_drawing_does_not_depend_on_what_is_found():
    visualizer = GroundingVisualizer(gray(400, 800))
    phrase = "the dog that is sitting on the left of the other dogs " * 6
    masks = make_mask((400, 800), 1, 1, 9, 9), np.zeros((400, 800), dtype=bool)
    found, nothing = (visualizer.draw_referred(mask, phrase) for mask in masks)
    assert found.shape == nothing.shape and found.shape[0] > 480
