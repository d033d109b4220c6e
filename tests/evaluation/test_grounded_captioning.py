import json
import math

import pytest
import torch
from caption_cases import caption_output, decode, process, scene

from glipv2_d2.evaluation.grounded_captioning import GroundedCaptioningEvaluator

LEFT, RIGHT, FAR = [0.0, 0.0, 40.0, 40.0], [60.0, 0.0, 100.0, 40.0], [0.0, 60.0, 30.0, 100.0]
# Boxes apart from each other and from those above, with falling scores.
WRONG = [([41.0, 41.0 + 4 * k, 59.0, 44.0 + 4 * k], 0.9 - k / 100) for k in range(12)]


def evaluator_of(dataset_dicts, **options):
    options = {"implementation": "python", **options}
    return GroundedCaptioningEvaluator("shown", dataset_dicts, decode, **options)


def recalls(results):
    return [results["grounding"][name] for name in ("objects", "R@1", "R@5", "R@10")]


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
    with pytest.raises(
        ValueError, match=f"{key}: expected one row for each of 4 tokens of a grounded caption, found 2 rows"
    ):
        process(evaluator, [(1, short)])
    del output[key]
    with pytest.raises(ValueError, match=f"{key}: expected .*, found none"):
        process(evaluator, [(1, output)])
