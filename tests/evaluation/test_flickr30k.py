import json

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from glipv2_d2 import add_glipv2_config
from glipv2_d2.data.datasets.formats import register_flickr30k
from glipv2_d2.data.loading import load_test_dataset
from glipv2_d2.evaluation import build_evaluator
from glipv2_d2.evaluation.flickr30k import Flickr30kEvaluator, first_hit, merged_box, phrases_of

LEFT, RIGHT, BOTH = [0, 0, 40, 40], [60, 0, 100, 40], [0, 0, 100, 40]
# Shares no pixel with the others.
ELSEWHERE = [0, 60, 20, 90]


def caption(image_id, *phrases):
    """Dataset dict of a caption; each phrase is a list of boxes XYXY. They are called "aa", "bb", ..."""
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "tokens_positive": ((3 * row, 3 * row + 2),)}
        for row, boxes in enumerate(phrases)
        for box in boxes
    ]
    return {"image_id": image_id, "caption": "aa bb cc", "annotations": annotations, "height": 100, "width": 100}


def detections(*found):
    """Each (phrase, score, box)."""
    instances = Instances((100, 100))
    instances.pred_boxes = Boxes(torch.tensor([item[2] for item in found], dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.tensor([item[1] for item in found], dtype=torch.float32)
    instances.pred_classes = torch.tensor([item[0] for item in found], dtype=torch.int64)
    return {"instances": instances}


def evaluate(captions, outputs, **options):
    evaluator = Flickr30kEvaluator("said", captions, **options)
    evaluator.reset()
    for image_id, found in outputs.items():
        evaluator.process([{"image_id": image_id}], [detections(*found)])
    return evaluator.evaluate()


def test_recalls_counted_by_hand():
    captions = [caption("1_0", [LEFT, RIGHT], [LEFT]), caption("2_0", [RIGHT]), caption("3_0", [ELSEWHERE])]
    outputs = {
        "1_0": [
            (0, 0.3, BOTH),  # The second of "aa": the box around both, which fits neither of them.
            (0, 0.9, RIGHT),  # The first of "aa": one of its two boxes.
            *((1, 0.8 - row / 100, ELSEWHERE) for row in range(4)),
            (1, 0.2, LEFT),  # The fifth of "bb".
        ],
        "2_0": [*((0, 0.9, ELSEWHERE) for _ in range(11)), (0, 0.1, RIGHT)],  # The twelfth.
        "3_0": [],
    }
    results = evaluate(captions, outputs)
    assert list(results) == ["any_box", "merged"]
    # Of four phrases: "aa" at the first, "bb" at the fifth, one at the twelfth place, one never.
    assert results["any_box"] == {"R@1": 25.0, "R@5": 50.0, "R@10": 50.0, "R@all": 75.0, "phrases": 4.0}
    # "aa" only at its second box; the three others have one box each.
    assert results["merged"] == {"R@1": 0.0, "R@5": 50.0, "R@10": 50.0, "R@all": 75.0, "phrases": 4.0}


@pytest.mark.parametrize(
    ("box", "any_box", "merged"),
    [(LEFT, 100.0, 0.0), (RIGHT, 100.0, 0.0), (BOTH, 0.0, 100.0), (ELSEWHERE, 0.0, 0.0)],
)
def test_one_of_two_boxes_is_right_for_any_box_and_the_box_around_them_for_merged(box, any_box, merged):
    results = evaluate([caption("1_0", [LEFT, RIGHT])], {"1_0": [(0, 0.5, box)]})
    assert (results["any_box"]["R@1"], results["merged"]["R@1"]) == (any_box, merged)


def test_the_parts_of_a_phrase_are_one_phrase_in_any_order():
    item = caption("1_0", [LEFT], [RIGHT])
    parts = ((0, 2), (6, 8))
    for annotation, order in zip(item["annotations"], (parts, parts[::-1])):
        annotation["tokens_positive"] = order
    (phrase,) = phrases_of(item)
    assert phrase.text == "aa cc" and phrase.boxes.tolist() == [LEFT, RIGHT]


def test_a_box_of_another_phrase_does_not_count():
    captions = [caption("1_0", [LEFT], [RIGHT])]
    assert evaluate(captions, {"1_0": [(0, 0.9, RIGHT), (1, 0.9, LEFT)]})["any_box"]["R@all"] == 0.0
    assert evaluate(captions, {"1_0": [(1, 0.9, RIGHT), (0, 0.9, LEFT)]})["any_box"]["R@1"] == 100.0


@pytest.mark.parametrize(
    ("box", "place"),
    [
        # Officially the boxes are a pixel smaller, 39 x 39: 20 columns of 39 are half of them, 19 are not.
        ([0, 0, 21, 40], 0),
        ([0, 0, 20, 40], None),
        ([0, 0, 40, 40], 0),
    ],
)
def test_the_overlap_is_that_of_corner_pixels(box, place):
    assert first_hit(torch.tensor([box], dtype=torch.float32), torch.tensor([LEFT], dtype=torch.float32)) == place


def test_an_overlap_of_one_half_is_a_hit():
    # Officially 20 x 40 of 40 x 40.
    assert first_hit(torch.tensor([[0.0, 0, 21, 41]]), torch.tensor([[0.0, 0, 41, 41]])) == 0


def test_the_first_hit_is_the_first_of_the_list():
    boxes = torch.tensor([ELSEWHERE, LEFT, LEFT], dtype=torch.float32)
    assert first_hit(boxes, torch.tensor([RIGHT, LEFT], dtype=torch.float32)) == 1
    assert first_hit(boxes[:0], torch.tensor([LEFT], dtype=torch.float32)) is None


def test_the_merged_box_is_the_smallest_around_all():
    assert merged_box(torch.tensor([[4.0, 9, 9, 20], [2, 10, 7, 30]])).tolist() == [[2, 9, 9, 30]]


def test_equally_good_boxes_stay_in_the_order_of_the_model():
    captions = [caption("1_0", [LEFT])]
    assert evaluate(captions, {"1_0": [(0, 0.5, LEFT), (0, 0.5, RIGHT)]})["any_box"]["R@1"] == 100.0
    assert evaluate(captions, {"1_0": [(0, 0.5, RIGHT), (0, 0.5, LEFT)]})["any_box"]["R@1"] == 0.0


def test_phrases_are_numbered_in_the_order_of_first_use():
    record = caption("1_0", [LEFT], [RIGHT])
    record["annotations"] = [record["annotations"][1], *record["annotations"], record["annotations"][1]]
    record["annotations"][0]["bbox"], record["annotations"][0]["bbox_mode"] = [60, 0, 40, 40], BoxMode.XYWH_ABS
    phrases = phrases_of(record)
    assert [phrase.text for phrase in phrases] == ["bb", "aa"]
    assert [phrase.boxes.tolist() for phrase in phrases] == [[RIGHT] * 3, [LEFT]]


def test_predictions_are_written_in_order(tmp_path):
    found = {"2_0": [(0, 0.25, ELSEWHERE), (0, 0.75, LEFT)] + [(0, 0.125, LEFT)] * 11, "1_0": []}
    evaluate([caption("1_0", [LEFT]), caption("2_0", [LEFT])], found, output_folder=str(tmp_path / "out"))
    first, second = json.loads((tmp_path / "out" / "flickr30k_results.json").read_text())
    assert first == {"image_id": "1_0", "phrases": [{"phrase": "aa", "boxes": [], "scores": []}]}
    (phrase,) = second["phrases"]
    assert phrase["boxes"][:2] == [LEFT, ELSEWHERE] and phrase["scores"][:3] == [0.75, 0.25, 0.125]
    assert len(phrase["boxes"]) == len(phrase["scores"]) == 10


def test_a_phrase_that_the_caption_does_not_have_is_an_error():
    with pytest.raises(ValueError, match="expected pred_classes in 0..0, found"):
        evaluate([caption("1_0", [LEFT])], {"1_0": [(1, 0.5, LEFT)]})


def test_the_files_of_the_release_are_evaluated_by_the_type_of_their_dataset(tmp_path):
    for folder in ("Annotations", "Sentences", "images"):
        (tmp_path / folder).mkdir()
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>40</ymax></bndbox>"
    size = "<size><width>100</width><height>100</height></size>"
    (tmp_path / "Annotations/7.xml").write_text(f"<a>{size}<object><name>3</name>{box}</object></a>")
    (tmp_path / "Sentences/7.txt").write_text("[/EN#3/animals A dog] .\n")
    (tmp_path / "val.txt").write_text("7\n")
    Image.new("RGB", (100, 100)).save(tmp_path / "images/7.jpg")
    register_flickr30k("entities", tmp_path, "val", tmp_path / "images")
    cfg = get_cfg()
    add_glipv2_config(cfg)
    try:
        evaluator = build_evaluator(cfg, load_test_dataset(cfg, "entities"), str(tmp_path / "out"))
        evaluator.reset()
        evaluator.process([{"image_id": "7_0"}], [detections((0, 0.5, LEFT))])
        assert evaluator.evaluate()["any_box"]["R@1"] == 100.0
    finally:
        DatasetCatalog.remove("entities")
        MetadataCatalog.remove("entities")
    assert (tmp_path / "out" / "flickr30k_results.json").is_file()
