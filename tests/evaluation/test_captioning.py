import json
import math

import pytest
from caption_cases import caption_output, decode, process, scene

from glipv2_d2.evaluation.caption_metrics import score_captions
from glipv2_d2.evaluation.captioning import CaptioningEvaluator
from glipv2_d2.evaluation.named_objects import annotated_boxes, find_mentions, name_of

BOX = (10, 10, 50, 50)
NAMES = ["BLEU1", "BLEU2", "BLEU3", "BLEU4", "ROUGE_L", "CIDEr"]


def evaluator_of(dataset_dicts, **options):
    return CaptioningEvaluator("said", dataset_dicts, decode, **{"implementation": "python", **options})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Red Car", ("red", "car")),
        ("a dog", ("dog",)),
        ("dog", ("dog",)),
        ("T-shirt!", ("t", "shirt")),
        ("the", ()),
        ("the the", ("the",)),
        ("", ()),
    ],
)
def test_names_are_words_without_article(text, expected):
    assert name_of(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a dog and a car", ["dog", "car"]),
        ("a sports car", ["sports car"]),  # Not a car.
        ("a sports-car, Sports\nCAR", ["sports-car", "Sports\nCAR"]),
        ("dogs, hotdog", []),
        ("dog dog", ["dog", "dog"]),
        ("sports", []),
        ("sports car dog", ["sports car", "dog"]),
        ("", []),
    ],
)
def test_mentions_are_whole_words_and_the_longest_name(text, expected):
    mentions = find_mentions(text, [("dog",), ("car",), ("sports", "car"), ()])
    assert [text[slice(*mention.span)] for mention in mentions] == expected
    assert all(name_of(text[slice(*mention.span)]) == mention.name for mention in mentions)


def test_of_names_that_begin_with_one_word_the_longest_is_mentioned():
    names = [("sports",), ("sports", "car"), ("sports", "car", "race")]
    assert [mention.name for mention in find_mentions("a sports car, sports", names)] == [
        ("sports", "car"),
        ("sports",),
    ]


def test_nothing_is_mentioned_where_no_name_is_known():
    assert find_mentions("a dog", []) == []


def test_annotations_are_named_by_their_phrase_or_else_by_their_category():
    item = scene(1, "a red car, the dog and the dog", [("the dog", BOX), ("the dog", (0, 0, 5, 5)), (1, (1, 2, 3, 4))])
    assert annotated_boxes(item, ["street", "sports car"]) == {
        ("dog",): [[10, 10, 50, 50], [0, 0, 5, 5]],
        ("sports", "car"): [[1, 2, 3, 4]],
    }
    assert list(annotated_boxes(item)) == [("dog",)]
    item["annotations"][0]["tokens_positive"] = ((2, 5), (11, 18))
    assert ("red", "the", "dog") in annotated_boxes(item)
    item["annotations"] = [{**item["annotations"][0], "tokens_positive": ((11, 14),)}]  # "the"
    assert annotated_boxes(item) == {}
    assert annotated_boxes({"image_id": 1}) == {}


def test_scores_are_those_of_the_texts():
    data = [scene(1, ["a dog and a car", "A red car."]), scene(2, ["the man", "a man on the street"])]
    results = process(
        evaluator_of(data), [(2, caption_output("a man on a street")), (1, caption_output("a car , a dog"))]
    )
    expected = score_captions(
        ["a car, a dog", "a man on a street"], [item["captions"] for item in data], "python"
    ).values
    assert list(results) == ["captioning"]
    assert results["captioning"] == {**expected, "pycocoevalcap": 0.0}
    assert list(expected) == NAMES


def test_one_caption_is_a_reference_too():
    data = [scene(1, "a dog"), scene(2, "a car")]
    scores = process(evaluator_of(data), [(1, caption_output("a dog")), (2, caption_output("a car"))])["captioning"]
    assert scores["BLEU2"] == pytest.approx(100.0) and scores["ROUGE_L"] == pytest.approx(100.0)


def test_dicts_of_one_image_are_joined_and_an_image_counts_once():
    data = [scene(1, "a dog", [("dog", BOX)]), scene(1, "a car", [("car", BOX)]), scene(2, ["man"])]
    outputs = [(1, caption_output("a car")), (1, caption_output("a car")), (2, caption_output("man"))]
    scores = process(evaluator_of(data), outputs)["captioning"]
    assert scores["BLEU1"] == pytest.approx(100.0)
    assert (scores["named_objects"], scores["named_objects_in_scene"]) == (1.0, 100.0)


def test_dicts_of_one_file_are_one_image(tmp_path, caplog):
    texts = ["a dog", "a car", "man", "street"]
    names = ["1.jpg", "1.jpg", "1.jpg", "2.jpg"]
    offsets = [{}, {}, {"tsv_offset": 5}, {}]
    data = [
        {**scene(10 + row, text, [(text.split()[-1], BOX)]), "file_name": name, **offset}
        for row, (text, name, offset) in enumerate(zip(texts, names, offsets))
    ]
    outputs = [(11, caption_output("a dog")), (10, caption_output("a dog")), (12, caption_output("a dog"))]
    scores = process(evaluator_of(data, output_folder=str(tmp_path)), outputs)["captioning"]
    # The first two are one image; the third lies elsewhere in the file of that name; the fourth was not processed.
    assert (scores["named_objects"], scores["named_objects_in_scene"]) == (2.0, 50.0)
    written = json.loads((tmp_path / "caption_predictions.json").read_text())
    assert [item["image_id"] for item in written] == [10, 12]
    assert "2 of 3 images processed" in caplog.text


def test_images_that_only_bear_the_same_name_are_two():
    data = [{**scene(row, "a dog"), "file_name": "x.jpg", "image_bytes": b""} for row in (1, 2)]
    evaluator = evaluator_of(data)
    assert {image.image_id for image in evaluator._known.values()} == {1, 2}


def test_named_objects_counted_by_hand():
    classes = ["dog", "car", "sports car", "man"]
    data = [scene(1, ["x"], [(0, BOX), (2, BOX)]), scene(2, ["x"], [(3, BOX)]), scene(3, ["x"])]
    outputs = [
        (1, caption_output("a dog and a sports car and a car")),  # 2 of 3
        (2, caption_output("a man on a man , street")),  # 2 of 2
        (3, caption_output("a dog on a street")),  # 0 of 1
    ]
    scores = process(evaluator_of(data, thing_classes=classes), outputs)["captioning"]
    assert scores["named_objects"] == 6.0
    assert scores["named_objects_in_scene"] == pytest.approx(100 * 4 / 6)


@pytest.mark.parametrize(("caption", "expected"), [("a dog", 100.0), ("a car", 0.0), ("a street", math.nan)])
def test_all_none_and_nothing_named(caption, expected):
    data = [scene(1, "a dog", [("dog", BOX)]), scene(2, "a car", [("car", BOX)])]
    scores = process(evaluator_of(data), [(1, caption_output(caption))])["captioning"]
    assert scores["named_objects_in_scene"] == pytest.approx(expected, nan_ok=True)


def test_dataset_without_names_has_no_named_objects():
    scores = process(evaluator_of([scene(1, ["a dog"])]), [(1, caption_output("a dog"))])["captioning"]
    assert list(scores) == [*NAMES, "pycocoevalcap"]


def test_files_hold_captions_and_scores(tmp_path):
    data = [scene(3, ["a dog"]), scene(1, ["a car"]), scene(2, [])]
    outputs = [(1, caption_output("a car")), (2, caption_output("a man")), (3, caption_output("a dog", score=-1.5))]
    results = process(evaluator_of(data, output_folder=str(tmp_path / "out")), outputs)
    assert json.loads((tmp_path / "out" / "caption_predictions.json").read_text()) == [
        {"image_id": 3, "caption": "a dog", "score": -1.5},
        {"image_id": 1, "caption": "a car", "score": -0.5},
        {"image_id": 2, "caption": "a man", "score": -0.5},
    ]
    written = json.loads((tmp_path / "out" / "caption_scores.json").read_text())
    assert written == {"implementation": "python", **results}


def test_images_without_captions_are_counted_and_left_out(caplog):
    data = [scene(1, ["a dog"]), scene(2, []), scene(3, ["a car"])]
    outputs = [(1, caption_output("a dog")), (2, caption_output("a man"))]
    assert process(evaluator_of(data), outputs)["captioning"]["BLEU1"] == pytest.approx(100.0)
    assert "2 of 3 images processed, and 1 of these with captions" in caplog.text


def test_nothing_to_judge_gives_no_scores(tmp_path, caplog):
    evaluator = evaluator_of([scene(1, [])], output_folder=str(tmp_path))
    assert process(evaluator, [(1, caption_output("a dog"))]) == {}
    assert len(json.loads((tmp_path / "caption_predictions.json").read_text())) == 1
    assert not (tmp_path / "caption_scores.json").exists()
    assert process(evaluator, []) == {}
    assert "0 of 1 image processed" in caplog.text


def test_implementation_is_handed_on_and_told(monkeypatch):
    def score(captions, references, implementation):
        return score_captions(captions, references, "python")._replace(implementation=implementation)

    monkeypatch.setattr("glipv2_d2.evaluation.captioning.score_captions", score)
    evaluator = evaluator_of([scene(1, ["a dog"])], implementation="pycocoevalcap")
    assert process(evaluator, [(1, caption_output("a dog"))])["captioning"]["pycocoevalcap"] == 1.0
