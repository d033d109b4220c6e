"""The detections of all prompts of an image: the best stay, whatever the passes, and only they get masks."""

from types import SimpleNamespace

import pytest
import torch
from detectron2.structures import Boxes, Instances
from prompt_samples import make_prompt

from glipv2_d2.modeling.batch import Pairs
from glipv2_d2.modeling.tasks.detection_pool import DetectionPool, PassFeatures

PROMPT = make_prompt([1])


def detections(*scores):
    """Detections in the order given; the number in ``pred_classes`` is a thousand times the score."""
    instances = Instances((20, 20))
    instances.scores = torch.tensor(scores)
    instances.pred_classes = (1000 * instances.scores).round().long()
    instances.phrase_ids = torch.arange(len(scores))
    corners = torch.arange(len(scores), dtype=torch.float32)[:, None] + torch.tensor([0.0, 0.0, 4.0, 4.0])
    instances.pred_boxes = Boxes(corners)
    return instances


class DrawnMasks:
    """A mask head whose masks say which text they were drawn with and which phrase they are of; it keeps the calls."""

    pooler = SimpleNamespace(resolution=1)

    def __init__(self):
        self.drawn = []

    def inference(self, levels, text, instances, prompts):
        self.drawn.append([one.phrase_ids.tolist() for one in instances])
        assert len(levels[0]) == len(text) == len(instances) == len(prompts)
        return [
            (10 * text[row, 0, 0] + one.phrase_ids)[:, None, None].expand(-1, 2, 2) for row, one in enumerate(instances)
        ]


def features(*pairs):
    """Features of a pass of (row, place) pairs; the text of a pair is a hundred times its row plus its place."""
    rows, places = map(list, zip(*pairs))
    text = torch.tensor([100.0 * row + place for row, place in pairs])[:, None, None]
    return PassFeatures(Pairs(rows, places, [PROMPT] * len(rows)), [torch.zeros(len(rows), 1, 2, 2)], text)


FOUND = {0: (0.9, 0.5, 0.1), 1: (0.8, 0.5, 0.3), 2: (0.7, 0.6), 3: ()}
# Ways to cut the four prompts of an image into passes.
CUTS = [[[0, 1, 2, 3]], [[0], [1], [2], [3]], [[3, 1], [0, 2]], [[2], [3, 0, 1]]]


def pool_of(cut, max_detections, mask_head=None):
    pool = DetectionPool(1, max_detections, mask_head)
    for places in cut:
        pool.add([detections(*FOUND[place]) for place in places], features(*((0, place) for place in places)))
    return pool


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize(
    ("max_detections", "expected"),
    [
        (0, [0.9, 0.8, 0.7, 0.6, 0.5, 0.5, 0.3, 0.1]),
        (3, [0.9, 0.8, 0.7]),
        # What ties with the last of the best stays.
        (5, [0.9, 0.8, 0.7, 0.6, 0.5, 0.5]),
        (8, [0.9, 0.8, 0.7, 0.6, 0.5, 0.5, 0.3, 0.1]),
        (100, [0.9, 0.8, 0.7, 0.6, 0.5, 0.5, 0.3, 0.1]),
    ],
)
def test_the_best_detections_of_all_prompts_stay(cut, max_detections, expected):
    (merged,) = pool_of(cut, max_detections).merge()
    assert merged.scores.tolist() == pytest.approx(expected)
    assert merged.pred_classes.tolist() == [round(1000 * score) for score in expected]
    assert set(merged.get_fields()) == {"scores", "pred_classes", "phrase_ids", "pred_boxes"}


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("max_detections", [0, 5])
def test_ties_are_in_the_order_of_the_prompts(cut, max_detections):
    pool = DetectionPool(1, max_detections)
    for places in cut:
        found = [detections(0.5, 0.5) for _ in places]
        for place, instances in zip(places, found):
            instances.pred_classes = torch.tensor([10 * place, 10 * place + 1])
        pool.add(found, features(*((0, place) for place in places)))
    assert pool.merge()[0].pred_classes.tolist() == [0, 1, 10, 11, 20, 21, 30, 31]


def test_images_do_not_mix():
    pool = DetectionPool(2, 2)
    pool.add([detections(0.1, 0.05), detections(0.9, 0.8, 0.7)], features((1, 0), (0, 0)))
    pool.add([detections(0.2)], features((1, 1)))
    assert [one.scores.tolist() for one in pool.merge()] == [pytest.approx([0.9, 0.8]), pytest.approx([0.2, 0.1])]


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("max_detections", [0, 3, 5])
def test_masks_are_of_the_prompt_that_found_the_box(cut, max_detections):
    (merged,) = pool_of(cut, max_detections, DrawnMasks()).merge()
    place_and_phrase = {900: 0, 500: 1, 100: 2, 800: 10, 300: 12, 700: 20, 600: 21}
    expected = [place_and_phrase[row] for row in merged.pred_classes.tolist()]
    found = merged.mask_probabilities[:, 0, 0].tolist()
    if max_detections != 3:
        # Prompts 0 and 1 both found something with the score 0.5, each as its phrase 1.
        expected[5] = 11
    assert found == expected
    assert merged.mask_probabilities.shape == (len(merged), 2, 2)


def test_a_limit_draws_the_masks_of_what_is_kept_alone():
    head = DrawnMasks()
    pool = pool_of([[0], [1], [2], [3]], 2, head)
    assert head.drawn == []
    pool.merge()
    # 0.9 of prompt 0 and 0.8 of prompt 1; nothing is left of prompts 2 and 3, whose features are gone.
    assert head.drawn == [[[0]], [[0]]]


def test_features_leave_with_the_last_detection_that_needs_them():
    pool = DetectionPool(2, 1, DrawnMasks())
    pool.add([detections(0.2), detections(0.3)], features((0, 0), (1, 0)))
    pool.add([detections(0.4)], features((0, 1)))
    # Image 1 still needs the first pass.
    assert [kept.pairs.rows for kept in pool._features] == [[0, 1], [0]]
    pool.add([detections(0.5)], features((1, 1)))
    assert [kept.pairs.rows for kept in pool._features] == [[0], [1]]
    pool.add([detections(0.9), detections(0.9)], features((0, 2), (1, 2)))
    assert [kept.pairs.rows for kept in pool._features] == [[0, 1]]
    assert [one.mask_probabilities.flatten().tolist() for one in pool.merge()] == [[20.0] * 4, [1020.0] * 4]


def test_without_a_limit_masks_are_drawn_at_once_and_no_features_kept():
    head = DrawnMasks()
    pool = pool_of([[0], [1, 2]], 0, head)
    assert head.drawn == [[[0, 1, 2]], [[0, 1, 2], [0, 1]]] and pool._features == []
    pool.merge()
    assert len(head.drawn) == 2


def test_without_masks_no_features_are_kept():
    assert pool_of(CUTS[1], 5)._features == []
