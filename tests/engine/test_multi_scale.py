"""One image at several sizes and mirrored: the merge equals one by hand, over single runs of the plain model."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_config
from detectron2.structures import Boxes, Instances
from PIL import Image

from glipv2_d2.data import build_test_loader
from glipv2_d2.data.image_reading import read_image
from glipv2_d2.data.loading import load_test_dataset
from glipv2_d2.engine import predictor
from glipv2_d2.engine.multi_scale import MultiScaleModel, ScaleSettings, merge_detections, multi_scale
from glipv2_d2.engine.predictor import GLIPv2Predictor
from glipv2_d2.engine.trainer import GLIPv2Trainer
from glipv2_d2.errors import InputError

SIZES = (64, 96)
# Real photographs, which are not part of the repository.
REAL_DATA = Path(os.environ.get("GLIPV2_REAL_DATA", "no-real-data"))


@pytest.fixture(autouse=True)
def boxes_as_the_model_gives_them(monkeypatch):
    """The predictor cuts boxes to the image, after the merge; single runs are merged by hand before they are cut."""
    monkeypatch.setattr(predictor, "_cut_to_image", lambda boxes, image_size: None)


def iou(one, other):
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


def merge_by_hand(found, merge, thresh):
    """Merge (box, score, class, mask) as the official code does; the best first."""
    waiting, kept = sorted(found, key=lambda one: -one[1]), []
    while waiting:
        best = waiting[0]
        same = [one for one in waiting if one[2] == best[2] and (one is best or iou(best[0], one[0]) >= thresh)]
        waiting = [one for one in waiting if not any(one is other for other in same)]
        box = best[0]
        if merge == "vote":
            total = sum(one[1] for one in same)
            box = [sum(one[0][edge] * one[1] for one in same) / total for edge in range(4)]
        kept.append((box, *best[1:]))
    return sorted(kept, key=lambda one: -one[1])


def single_runs(cfg, image, names):
    """What the plain predictor finds at each size, in the image and in its mirror image, moved back."""
    width = image.shape[1]
    found = []
    for size in SIZES:
        for flip in (False, True):
            own = cfg.clone()
            own.merge_from_list(["TEST.AUG.ENABLED", False, "INPUT.MIN_SIZE_TEST", size, "INPUT.MAX_SIZE_TEST", 150])
            torch.manual_seed(0)
            shown = np.ascontiguousarray(image[:, ::-1]) if flip else image
            instances = GLIPv2Predictor(own)(shown, names)["instances"]
            for row in range(len(instances)):
                left, top, right, bottom = instances.pred_boxes.tensor[row].tolist()
                box = [width - right, top, width - left, bottom] if flip else [left, top, right, bottom]
                mask = instances.pred_masks[row].numpy() if instances.has("pred_masks") else None
                mask = mask[:, ::-1] if flip and mask is not None else mask
                found.append((box, float(instances.scores[row]), int(instances.pred_classes[row]), mask))
    return found


def noise():
    return np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)


def photograph():
    photographs = sorted((REAL_DATA / "coco_mini" / "images").glob("*.jpg"))
    return read_image({"file_name": str(photographs[0])}, "BGR")


@pytest.mark.parametrize(
    ("image_of", "merge", "with_masks"),
    [
        *((noise, merge, with_masks) for merge, with_masks in [("vote", False), ("nms", False), ("vote", True)]),
        pytest.param(
            *(photograph, "vote", False),
            marks=pytest.mark.skipif(not REAL_DATA.is_dir(), reason="GLIPV2_REAL_DATA names no folder"),
        ),
    ],
)
def test_detections_are_those_of_a_merge_by_hand(tiny_cfg, image_of, merge, with_masks):
    tiny_cfg.merge_from_list(
        [
            *("MODEL.GLIPV2.TEST.SCORE_THRESH", 0.001, "TEST.DETECTIONS_PER_IMAGE", 30, "MODEL.MASK_ON", with_masks),
            *("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", SIZES, "TEST.AUG.MAX_SIZE", 150),
            *("TEST.AUG.MERGE", merge),
        ]
    )
    image = image_of()
    names = ["red box", "blue box"]
    torch.manual_seed(0)
    instances = GLIPv2Predictor(tiny_cfg)(image, names)["instances"]
    expected = merge_by_hand(single_runs(tiny_cfg, image, names), merge, 0.6)
    assert len(expected) > 30 <= len(instances)
    assert len({one[2] for one in expected[:30]}) == 2
    expected = expected[: len(instances)]
    np.testing.assert_allclose(instances.pred_boxes.tensor, [one[0] for one in expected], atol=1e-3)
    np.testing.assert_allclose(instances.scores, [one[1] for one in expected], atol=1e-6)
    assert instances.pred_classes.tolist() == [one[2] for one in expected]
    assert instances.has("pred_masks") == with_masks
    if with_masks:
        assert all(np.array_equal(mask, one[3]) for mask, one in zip(instances.pred_masks.numpy(), expected))


def detections(boxes, scores, classes):
    instances = Instances((100, 100))
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores, instances.pred_classes = torch.tensor(scores), torch.tensor(classes, dtype=torch.int64)
    return instances


def test_a_vote_is_the_mean_by_the_scores_and_keeps_the_best_score():
    found = detections(
        [[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 10], [50, 50, 60, 60]], [0.6, 0.2, 0.5, 0.9], [0, 0, 1, 0]
    )
    merged, rows = merge_detections(found, "vote", 0.6, 0)
    assert rows.tolist() == [3, 0, 2] and merged.scores.tolist() == pytest.approx([0.9, 0.6, 0.5])
    # (10 * 0.6 + 8 * 0.2) / 0.8
    assert merged.pred_boxes.tensor[1].tolist() == pytest.approx([0, 0, 10, 9.5])
    merged, rows = merge_detections(found, "nms", 0.6, 2)
    assert rows.tolist() == [3, 0] and merged.pred_boxes.tensor[1].tolist() == [0, 0, 10, 10]


@pytest.mark.parametrize(("merge", "expected"), [("vote", [0]), ("nms", [0, 1])])
# 3 of 5 pixels: in single precision the quotient is above 0.6.
@pytest.mark.parametrize(
    ("boxes", "thresh"), [([[0, 0, 10, 10], [0, 0, 10, 5]], 0.5), ([[0, 0, 4, 1], [1, 0, 5, 1]], 0.6)]
)
def test_an_overlap_of_the_threshold_is_voted_on_and_not_suppressed(merge, expected, boxes, thresh):
    found = detections(boxes, [0.6, 0.2], [0, 0])
    assert merge_detections(found, merge, thresh, 0)[1].tolist() == expected


@pytest.mark.parametrize("merge", ["vote", "nms"])
def test_a_box_without_area_is_one_of_its_own(merge):
    found = detections([[5, 5, 5, 9], [5, 5, 5, 9]], [0.6, 0.2], [0, 0])
    merged, rows = merge_detections(found, merge, 0.5, 0)
    assert rows.tolist() == [0, 1] and merged.pred_boxes.tensor.tolist() == [[5, 5, 5, 9]] * 2


@pytest.mark.parametrize(
    ("limit", "expected"), [(0, [0, 1, 2, 3]), (1, [0]), (2, [0, 1, 2]), (3, [0, 1, 2]), (4, [0, 1, 2, 3])]
)
def test_those_that_tie_with_the_last_are_kept(limit, expected):
    boxes = [[20 * row, 0, 20 * row + 10, 10] for row in range(4)]
    found = detections(boxes, [0.9, 0.5, 0.5, 0.4], [0, 0, 0, 0])
    assert merge_detections(found, "vote", 0.6, limit)[1].tolist() == expected


@pytest.mark.parametrize("merge", ["vote", "nms"])
def test_nothing_found_is_merged_to_nothing(merge):
    merged, rows = merge_detections(detections([], [], []), merge, 0.6, 5)
    assert len(merged) == len(rows) == 0 and merged.pred_boxes.tensor.shape == (0, 4)


class Recorder(torch.nn.Module):
    """A model that finds a box of 10 and one of 40 pixels, whatever it sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, inputs):
        self.seen += [tuple(one["image"].shape[1:]) for one in inputs]
        return [{"instances": detections([[0, 0, 10, 10], [20, 20, 60, 60]], [0.5, 0.25], [0, 1])} for _ in inputs]


@pytest.mark.parametrize(
    ("ranges", "phrases", "num_seen", "expected"),
    [
        ((), ("cat",), 4, [0, 0, 1, 1]),
        # Large boxes count at the small size alone, and small ones at the large size alone.
        (((20, 1000), (0, 20)), ("cat",), 4, [0, 0, 1, 1]),
        # The least and the most count too.
        (((40, 1000), (20, 40)), ("cat",), 4, [1, 1]),
        # A mirror image would change the meaning.
        ((), ("cat", "the leftmost dog"), 2, [0, 1]),
        ((), ("Right hand",), 2, [0, 1]),
        ((), ("bright copyright sign",), 4, [0, 0, 1, 1]),
    ],
)
def test_sizes_have_their_boxes_and_sides_their_meaning(ranges, phrases, num_seen, expected):
    class Named:
        pass

    prompt = Named()
    prompt.phrases = phrases
    model = Recorder()
    settings = ScaleSettings((50, 200), 1000, size_ranges=ranges)
    (output,) = MultiScaleModel(model, settings)([{"image": torch.zeros(3, 100, 100), "prompts": [prompt]}])
    assert len(model.seen) == num_seen and set(model.seen) == {(50, 50), (200, 200)}
    assert sorted(output["instances"].pred_classes.tolist()) == expected


def test_questions_are_asked_once():
    class Answers(torch.nn.Module):
        def forward(self, inputs):
            return [{"answer": one["image"].shape} for one in inputs]

    given = [{"image": torch.zeros(3, 10, 10), "task": "vqa"}]
    assert MultiScaleModel(Answers(), ScaleSettings((50,), 100))(given) == [{"answer": (3, 10, 10)}]


def test_a_classifier_reads_the_original_pixels_at_each_size(tiny_cfg):
    tiny_cfg.merge_from_list(
        [
            *("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (30, 60), "TEST.AUG.MAX_SIZE", 150),
            *("MODEL.GLIPV2.CLASS_WORDS.ENABLED", True, "MODEL.GLIPV2.CLASS_WORDS.IMAGE_SCALE", 1.5),
            # The base sees the sizes of TEST.AUG.
            *("MODEL.GLIPV2.TUNING.KEEP.SIZE_TEST", (16, 20)),
        ]
    )
    shown = []

    class Detector(torch.nn.Module):
        def forward(self, inputs):
            shown.extend(inputs)
            return [{"instances": detections([[0, 0, 9, 9]], [0.5], [0])}]

    pixels = noise()[:60, :80]
    multi_scale(tiny_cfg, Detector())([{"image": torch.from_numpy(pixels.transpose(2, 0, 1).copy())}])
    assert [sorted(one) for one in shown] == [["fine_image", "image"]] * 4
    for one, (height, width) in zip(shown[::2], ((45, 60), (90, 120)), strict=True):
        expected = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
        assert np.array_equal(one["fine_image"].permute(1, 2, 0), expected)
    for one, mirrored in zip(shown[::2], shown[1::2], strict=True):
        assert all(torch.equal(mirrored[key], one[key].flip(2)) for key in one)


def test_an_evaluation_and_a_predictor_give_the_same(train_cfg, monkeypatch):
    train_cfg.merge_from_list(["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", SIZES, "TEST.AUG.MAX_SIZE", 150])
    train_cfg.MODEL.GLIPV2.TUNING.KEEP.SIZE_TEST = (32, 40)
    train_cfg.MODEL.GLIPV2.TEST.SCORE_THRESH = 0.001
    dataset = load_test_dataset(train_cfg, train_cfg.DATASETS.TEST[0])
    ((sample,), *_) = build_test_loader(train_cfg, dataset)
    # The image comes in its original size, and in no other.
    assert not {"fine_image", "of_base"} & sample.keys()
    assert sample["image"].shape[1:] == (sample["height"], sample["width"])
    torch.manual_seed(0)
    predictor = GLIPv2Predictor(train_cfg)
    image = sample["image"].permute(1, 2, 0).numpy()
    image = image[:, :, ::-1] if train_cfg.INPUT.FORMAT == "RGB" else image
    expected = predictor(image)["instances"]
    with torch.no_grad():
        found = multi_scale(train_cfg, predictor.model)([sample])[0]["instances"]
    np.testing.assert_allclose(found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-3)
    results = GLIPv2Trainer.test(train_cfg, predictor.model)
    assert 0 <= results["bbox"]["AR" if "AR" in results["bbox"] else "AP"] <= 100


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["TEST.AUG.MIN_SIZES", ()], "TEST.AUG.MIN_SIZES: expected sizes in pixels, found"),
        (["TEST.AUG.SIZE_RANGES", ((0, 100),)], "TEST.AUG.SIZE_RANGES: expected none, or least and most for each of"),
        (["TEST.AUG.MERGE", "mean"], "TEST.AUG.MERGE: expected one of .*vote.*, found 'mean'"),
    ],
)
def test_wrong_settings_are_named(keys, message):
    cfg = load_config("models/glipv2_swin_t.yaml")
    key, value = keys
    node = cfg.TEST.AUG
    node[key.rsplit(".", 1)[1]] = value
    with pytest.raises(InputError, match=message):
        ScaleSettings.from_config(cfg)


def test_sizes_are_the_official_ones():
    cfg = load_config("models/glipv2_swin_t.yaml")
    assert not cfg.TEST.AUG.ENABLED
    assert ScaleSettings.from_config(cfg)[:3] == (
        (400, 500, 600, 640, 700, 900, 1000, 1100, 1200, 1300, 1400, 1800),
        2500,
        True,
    )


def test_boxes_without_any_score_have_a_mean():
    boxes = Boxes(torch.tensor([[0.0, 0.0, 10.0, 10.0], [2.0, 0.0, 10.0, 10.0]]))
    found = Instances((10, 10), pred_boxes=boxes, scores=torch.zeros(2), pred_classes=torch.zeros(2, dtype=torch.int64))
    merged, _ = merge_detections(found, "vote", 0.6, 100)
    assert merged.pred_boxes.tensor.tolist() == [[1.0, 0.0, 10.0, 10.0]]
