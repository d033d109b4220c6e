"""Training images that are decoded at a part of their size: boxes and masks move as ever, and pixels hardly differ."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_config
from detectron2.data import transforms as T
from mapper_cases import annotation, options
from PIL import Image

from glipv2_d2.data.dataset_mappers.detection import DetectionDatasetMapper
from glipv2_d2.data.image_reading import read_image
from glipv2_d2.data.transforms import ResizeShortestEdgeLegacy, ZoomWindow, least_side

HEIGHT, WIDTH = 403, 602
BOXES = [[40.0, 60.0, 240.0, 161.0], [300.0, 83.0, 402.0, 400.0]]
POLYGON = [40.0, 60.0, 240.0, 60.0, 240.0, 161.0]


def smooth_image(height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    waves = [127 + 100 * np.sin(rows / a) * np.cos(columns / b) for a, b in ((40, 60), (55, 35), (70, 90))]
    return Image.fromarray(np.stack(waves, axis=2).astype(np.uint8))


@pytest.fixture
def record(tmp_path: Path) -> dict:
    path = tmp_path / "x.jpg"
    smooth_image().save(path, quality=95)
    annotations = [{**annotation(box, category_id=row), "segmentation": [POLYGON]} for row, box in enumerate(BOXES)]
    return {"file_name": str(path), "image_id": 1, "height": HEIGHT, "width": WIDTH, "annotations": annotations}


def make_mapper(augmentation: T.Augmentation, side: int | None, **more) -> DetectionDatasetMapper:
    own = {"separator": ". ", "num_negatives": 5, "full_negatives_prob": 1.0, "shuffle": True, **more}
    own = options(augmentations=[augmentation, T.RandomFlip(prob=1.0)], least_side=side, **own)
    return DetectionDatasetMapper(vocabularies={"pets": ["dog", "cat"]}, **own)


@pytest.mark.parametrize(
    ("side", "size"),
    [(None, (403, 602)), (403, (403, 602)), (202, (403, 602)), (201, (202, 301)), (60, (101, 151)), (2, (51, 76))],
)
def test_a_jpeg_is_decoded_at_the_smallest_size_that_is_large_enough(record, side, size):
    assert read_image(record, "RGB", least_side=side).shape == (*size, 3)


@pytest.mark.parametrize("orientation", [1, 6])
def test_an_image_is_turned_upright(tmp_path, orientation):
    path = tmp_path / "x.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth_image().save(path, exif=exif)
    expected = (101, 151, 3) if orientation == 1 else (151, 101, 3)
    assert read_image({"file_name": str(path)}, "RGB", least_side=80).shape == expected


def test_other_formats_keep_their_size(tmp_path):
    smooth_image().save(tmp_path / "x.png")
    assert read_image({"file_name": str(tmp_path / "x.png")}, "RGB", least_side=10).shape == (HEIGHT, WIDTH, 3)


def test_an_image_of_another_size_than_its_annotation_is_found(record):
    with pytest.raises(ValueError, match="403 x 602 pixels, and 101 x 151"):
        read_image({**record, "height": 101, "width": 151}, "RGB", least_side=80)


@pytest.mark.parametrize("with_masks", [False, True])
def test_boxes_and_masks_are_those_of_the_whole_image_and_pixels_are_close(record, with_masks):
    resize = ResizeShortestEdgeLegacy(100, 1000)
    whole, smaller = (make_mapper(resize, side, with_masks=with_masks)(record) for side in (None, 100))
    assert whole["image"].shape == smaller["image"].shape == (3, 100, 149)
    assert (smaller["height"], smaller["width"]) == (HEIGHT, WIDTH)
    difference = (whole["image"].float() - smaller["image"].float()).abs()
    assert 0 < difference.max() < 12 and difference.mean() < 1.5
    boxes = [one["instances"].gt_boxes.tensor for one in (whole, smaller)]
    assert torch.allclose(*boxes, atol=1e-3)
    if with_masks:
        points = [one["instances"].gt_masks.polygons[0][0] for one in (whole, smaller)]
        assert np.allclose(*points, atol=1e-3)


def test_a_zoomed_window_shows_the_same_place(record):
    window = ZoomWindow((0.5, 1.0), (60, 60), (100, 1000))
    for seed in range(10):
        whole, smaller = (make_mapper(window, side)({**record, "sample_seed": seed}) for side in (None, 100))
        shapes = [torch.tensor(one["image"].shape) for one in (whole, smaller)]
        assert (shapes[0] - shapes[1]).abs().max() <= 4
        assert len(whole["instances"]) and len(smaller["instances"])


def test_a_zoomed_window_of_an_image_that_was_decoded_smaller_shows_the_middle_of_its_box(record):
    """The box is in the left upper quarter: with its pixels of the whole image it would be looked for elsewhere."""
    box = [110.0, 90.0, 130.0, 110.0]
    record["annotations"] = [{**record["annotations"][0], "bbox": box}]
    window = ZoomWindow((1.0, 1.0), (20, 20), (100, 1000))
    for seed in range(10):
        assert len(make_mapper(window, 100)({**record, "sample_seed": seed})["instances"]) == 1


def test_a_dict_without_a_size_is_read_whole(record):
    sample = make_mapper(ResizeShortestEdgeLegacy(0), 50)({k: v for k, v in record.items() if k != "height"})
    assert sample["image"].shape == (3, HEIGHT, WIDTH) and sample["height"] == HEIGHT


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, None),
        ({"REDUCED_DECODING": True}, 800),
        ({"REDUCED_DECODING": True, "MIN_SIZE_TRAIN": (320, 640)}, 640),
        ({"REDUCED_DECODING": True, "MIN_SIZE_TRAIN": (0,)}, None),
        ({"REDUCED_DECODING": True, "ZOOM": (0.5, 1.5), "MIN_SIZE_TEST": 321}, 482),
        ({"REDUCED_DECODING": True, "CROP.ENABLED": True}, None),
    ],
)
def test_the_side_that_is_needed_follows_from_the_config(keys, expected):
    cfg = load_config("Base-GLIPv2.yaml")
    cfg.merge_from_list(["INPUT.MIN_SIZE_TRAIN", (480, 800)])
    cfg.merge_from_list([word for key, value in keys.items() for word in (f"INPUT.{key}", value)])
    assert least_side(cfg) == expected


def test_images_of_a_test_are_decoded_whole():
    cfg = load_config("models/glipv2_micro.yaml")
    cfg.INPUT.REDUCED_DECODING = True
    sides = [DetectionDatasetMapper.from_config(cfg, is_train)["least_side"] for is_train in (True, False)]
    assert sides == [192, None]
