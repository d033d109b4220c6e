import json
import math

import pytest
import torch
from caption_cases import caption_output, decode, process, scene

from glipv2_d2.evaluation.grounded_captioning import GroundedCaptioningEvaluator, phrase_boxes, tokens_of_span

LEFT, RIGHT, FAR = [0.0, 0.0, 40.0, 40.0], [60.0, 0.0, 100.0, 40.0], [0.0, 60.0, 30.0, 100.0]
# Boxes apart from each other and from those above, with falling scores.
WRONG = [([41.0, 41.0 + 4 * k, 59.0, 44.0 + 4 * k], 0.9 - k / 100) for k in range(12)]


def evaluator_of(dataset_dicts, **options):
    options = {"implementation": "python", **options}
    return GroundedCaptioningEvaluator("shown", dataset_dicts, decode, **options)


def recalls(results):
    return [results["grounding"][name] for name in ("objects", "R@1", "R@5", "R@10")]


def test_boxes_of_a_phrase_are_ranked_by_their_mean_score():
    boxes = torch.tensor([[LEFT, RIGHT], [FAR, LEFT]])
    scores = torch.tensor([[0.6, 0.5], [0.7, 0.2]])
    found, means = phrase_boxes(boxes, scores)
    # Left: (0.6 + 0.2) / 2; far: 0.7 / 2; right: 0.5 / 2.
    assert found.tolist() == [LEFT, FAR, RIGHT]
    assert means.tolist() == pytest.approx([0.4, 0.35, 0.25])


def test_tokens_that_chose_neighbouring_boxes_of_a_thing_agree():
    # One pixel apart: the IoU is 39 / 41. Of both boxes of the thing the first by its coordinates stays.
    beside = [1.0, 0.0, 41.0, 40.0]
    boxes, scores = phrase_boxes(torch.tensor([[LEFT], [beside]]), torch.tensor([[0.9], [0.7]]))
    assert boxes.tolist() == [LEFT] and scores.tolist() == pytest.approx([0.8])


@pytest.mark.parametrize(
    ("right", "expected"),
    [
        # An IoU of 60 / 100 is enough: both have the mean of 0.8 and 0.6.
        (60.0, [0.7, 0.7, 0.1]),
        (59.0, [0.4, 0.3, 0.1]),
    ],
)
def test_tokens_agree_from_the_overlap_of_the_suppression_on(right, expected):
    # The box FAR is of one token alone; RIGHT has the score 0 and is none.
    token_boxes = torch.tensor([[[0.0, 0.0, 100.0, 10.0], FAR], [[0.0, 0.0, right, 10.0], RIGHT]])
    boxes, scores = phrase_boxes(token_boxes, torch.tensor([[0.8, 0.2], [0.6, 0.0]]))
    assert scores.tolist() == pytest.approx(expected)
    assert boxes.tolist()[2] == FAR and sorted(box[2] for box in boxes.tolist()[:2]) == [right, 100.0]


def test_a_token_counts_for_a_box_by_the_one_that_overlaps_it_most():
    # Both boxes of the second token overlap that of the first, with an IoU of 0.8 and of 0.9.
    first, wide, near = [0.0, 0.0, 100.0, 10.0], [0.0, 0.0, 80.0, 10.0], [0.0, 0.0, 90.0, 10.0]
    boxes, scores = phrase_boxes(torch.tensor([[first, FAR], [wide, near]]), torch.tensor([[0.9, 0.0], [0.8, 0.5]]))
    # Wide: (0.9 + 0.8) / 2; first and near: (0.9 + 0.5) / 2.
    assert boxes.tolist() == [wide] and scores.tolist() == pytest.approx([0.85])


def test_places_without_a_box_are_no_boxes():
    nothing = [0.0, 0.0, 0.0, 0.0]
    boxes, scores = phrase_boxes(torch.tensor([[LEFT, nothing], [nothing, nothing]]), torch.tensor([[0.5, 0], [0, 0]]))
    assert boxes.tolist() == [LEFT] and scores.tolist() == [0.25]
    # A box with the score 0 does not stand for what another token has there.
    boxes, scores = phrase_boxes(torch.tensor([[LEFT], [[0.0, 0.0, 40.0, 39.0]]]), torch.tensor([[0.5], [0.0]]))
    assert boxes.tolist() == [LEFT] and scores.tolist() == [0.25]
    boxes, scores = phrase_boxes(torch.tensor([[nothing]]), torch.tensor([[0.0]]))
    assert boxes.shape == (0, 4) and scores.shape == (0,)


def test_a_box_that_a_token_has_twice_counts_by_its_higher_score():
    boxes, scores = phrase_boxes(torch.tensor([[LEFT, RIGHT, LEFT]]), torch.tensor([[0.3, 0.4, 0.2]]))
    assert boxes.tolist() == [RIGHT, LEFT] and scores.tolist() == pytest.approx([0.4, 0.3])


def test_equally_good_boxes_are_sorted_by_coordinates():
    boxes, _ = phrase_boxes(torch.tensor([[RIGHT, FAR, LEFT]]), torch.full((1, 3), 0.5))
    assert boxes.tolist() == [LEFT, FAR, RIGHT]


def test_tokens_of_a_span_are_those_that_share_a_character():
    spans = [None, (0, 1), (2, 5), (5, 7), (8, 11), None]
    assert tokens_of_span(spans, (2, 7)) == [2, 3]
    assert tokens_of_span(spans, (4, 9)) == [2, 3, 4]
    assert tokens_of_span(spans, (7, 8)) == []


def test_recall_counted_by_hand():
    data = [
        scene(1, "a dog and a sports car", [("dog", LEFT), ("dog", FAR), ("sports car", RIGHT)]),
        scene(2, "the man and the car", [("the man", LEFT), ("the car", RIGHT)]),
    ]
    dog = [(RIGHT, 0.9), (FAR, 0.8)]  # Second; either of the two dogs is right.
    first = caption_output(
        "a dog and a sports car", {"dog": dog, "sports": [(LEFT, 0.9), (RIGHT, 0.8)], "car": [(FAR, 0.2), (RIGHT, 0.3)]}
    )  # "sports car": right has the mean 0.55, left 0.45.
    # "man" fits as the seventh box, "dog" is not in the scene, "car" never fits.
    wrong = WRONG[:6]
    second = caption_output("a man , dog and car", {"man": [*wrong, (LEFT, 0.1)], "dog": [(LEFT, 0.9)], "car": wrong})
    results = process(evaluator_of(data), [(1, first), (2, second)])
    assert list(results) == ["captioning", "grounding"]
    assert recalls(results) == pytest.approx([4.0, 25.0, 50.0, 75.0])
    assert results["captioning"]["named_objects"] == 5.0
    assert results["captioning"]["named_objects_in_scene"] == pytest.approx(80.0)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([0.0, 0.0, 40.0, 40.0], 100.0),
        ([0.0, 0.0, 40.0, 20.0], 100.0),  # An IoU of exactly 0.5.
        ([0.0, 0.0, 40.0, 19.0], 0.0),
        ([0.0, 0.0, 80.0, 41.0], 0.0),
    ],
)
def test_a_box_fits_from_half_an_iou_on(box, expected):
    output = caption_output("a dog", {"dog": [(box, 0.9)]})
    assert recalls(process(evaluator_of([scene(1, "a dog", [("dog", LEFT)])]), [(1, output)])) == [1.0] + [expected] * 3


@pytest.mark.parametrize("place", [0, 1, 4, 5, 9, 10])
def test_places_of_the_recalls(place):
    output = caption_output("a dog", {"dog": [*WRONG[:place], (LEFT, 0.5)]})
    results = process(evaluator_of([scene(1, "a dog", [("dog", LEFT)])]), [(1, output)])
    assert recalls(results) == [1.0, *(100.0 * (place < limit) for limit in (1, 5, 10))]


def test_each_mention_has_its_own_boxes():
    output = caption_output("a dog and another dog", {"dog": [(LEFT, 0.9)]})
    output["token_boxes"][5] = torch.tensor(RIGHT)
    results = process(evaluator_of([scene(1, "a dog", [("dog", LEFT)])]), [(1, output)])
    assert recalls(results) == [2.0, 50.0, 50.0, 50.0]


def test_word_of_two_tokens_uses_both():
    output = caption_output("a car ##s", {"car": [(RIGHT, 0.4), (LEFT, 0.3)], "##s": [(LEFT, 0.4), (RIGHT, 0.1)]})
    assert recalls(process(evaluator_of([scene(1, "cars", [("cars", LEFT)])]), [(1, output)]))[1] == 100.0


def test_no_correctly_named_object_has_no_recall():
    output = caption_output("a street", {"street": [(LEFT, 0.9)]})
    results = process(evaluator_of([scene(1, "a dog", [("dog", LEFT)])]), [(1, output)])
    assert recalls(results)[0] == 0.0 and all(math.isnan(value) for value in recalls(results)[1:])


def test_file_has_the_boxes_of_all_phrases(tmp_path):
    data = [scene(1, "a sports car", [("sports car", LEFT)]), scene(2, "dog", [("dog", LEFT)])]
    output = caption_output("a sports car , dog", {"sports": [(LEFT, 0.5)], "car": [(LEFT, 0.25)], "dog": WRONG})
    results = process(evaluator_of(data, output_folder=str(tmp_path)), [(1, output)])
    (prediction,) = json.loads((tmp_path / "caption_predictions.json").read_text())
    assert {key: prediction[key] for key in ("image_id", "caption")} == {"image_id": 1, "caption": "a sports car, dog"}
    car, dog = prediction["phrases"]
    assert (car["phrase"], car["span"], car["boxes"][0]) == ("sports car", [2, 12], LEFT)
    assert car["scores"][0] == pytest.approx(0.375)
    assert (dog["phrase"], dog["boxes"]) == ("dog", [box for box, _ in WRONG[:10]]) and len(dog["scores"]) == 10
    assert json.loads((tmp_path / "caption_scores.json").read_text())["grounding"] == results["grounding"]


@pytest.mark.parametrize("key", ["token_boxes", "token_scores"])
def test_a_caption_without_boxes_is_refused(key):
    evaluator = evaluator_of([scene(1, "a dog", [("dog", LEFT)])])
    output = caption_output("a dog", {"dog": [(LEFT, 0.9)]})
    short = {**output, key: output[key][:2]}
    with pytest.raises(ValueError, match=f"{key}: found 2 rows for a caption of 4 tokens"):
        process(evaluator, [(1, short)])
    del output[key]
    with pytest.raises(ValueError, match=f"{key}: found none for a caption of 4 tokens"):
        process(evaluator, [(1, output)])
