import json
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, PolygonMasks
from hypothesis import given, settings
from hypothesis import strategies as st
from mapper_cases import annotation, drawn_record, options
from pycocotools import mask as mask_util

from glipv2_d2.data import build_train_loader
from glipv2_d2.data.dataset_mappers.detection import DetectionDatasetMapper
from glipv2_d2.data.dataset_mappers.grounding import GroundingDatasetMapper
from glipv2_d2.data.dataset_mappers.pseudo_grounding import PseudoGroundingDatasetMapper
from glipv2_d2.data.mask_transforms import transform_masks
from glipv2_d2.data.transforms import ResizeTransformLegacy

HEIGHT, WIDTH = 48, 64
# With holes in neither, and a part in two pieces.
STAR = [[32, 4, 38, 18, 56, 20, 42, 28, 46, 44, 32, 34, 18, 44, 22, 28, 8, 20, 26, 18]]
PIECES = [[4, 4, 20, 4, 20, 16, 4, 16], [30, 20, 60, 24, 44, 44]]
TRANSFORMS = {
    "flip": [T.HFlipTransform(WIDTH)],
    "vertical flip": [T.VFlipTransform(HEIGHT)],
    "larger": [ResizeTransformLegacy(HEIGHT, WIDTH, 96, 128)],
    "smaller": [ResizeTransformLegacy(HEIGHT, WIDTH, 36, 50)],
    "one pixel less": [ResizeTransformLegacy(HEIGHT, WIDTH, 60, 79), T.HFlipTransform(79)],
    "nothing": [T.NoOpTransform()],
    "crop": [T.CropTransform(10, 6, 40, 30)],
    "crop, then larger and mirrored": [
        T.CropTransform(10, 6, 40, 30),
        ResizeTransformLegacy(30, 40, 60, 80),
        T.HFlipTransform(80),
    ],
}


def draw(polygons: list, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Fill polygons by testing the centre of each pixel, (height, width) bool."""
    ys, xs = np.mgrid[:height, :width] + 0.5
    bitmap = np.zeros((height, width), dtype=bool)
    for polygon in polygons:
        points = np.array(polygon, dtype=float).reshape(-1, 2)
        inside = np.zeros_like(bitmap)
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, 1, axis=0)):
            if y0 != y1:
                inside ^= ((y0 > ys) != (y1 > ys)) & (xs < x0 + (ys - y0) * (x1 - x0) / (y1 - y0))
        bitmap |= inside
    return bitmap


def to_rle(bitmap: np.ndarray) -> dict:
    encoded = mask_util.encode(np.asfortranarray(bitmap.astype(np.uint8)))
    return {"size": list(bitmap.shape), "counts": encoded["counts"].decode()}


def moved_bitmap(bitmap: np.ndarray, transforms: list) -> np.ndarray:
    """A bitmap that goes through the transforms as the pixels of the image do."""
    image = (bitmap * 255).astype(np.uint8)
    for transform in transforms:
        image = transform.apply_image(image)
    return image > 127


def differs_at_the_border_only(one: np.ndarray, other: np.ndarray, width: int, thin_parts: bool = False) -> bool:
    """Tell whether two masks agree wherever the second, or both of them, are constant within ``width`` pixels."""
    kernel = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    is_inner = np.ones(other.shape, dtype=bool)
    for pixels in [other.astype(np.uint8), one.astype(np.uint8)][: 1 + thin_parts]:
        is_inner &= cv2.dilate(pixels, kernel) == cv2.erode(pixels, kernel)
    return one.shape == other.shape and bool((one == other)[is_inner].all())


def as_bitmaps(masks: PolygonMasks | BitMasks, height: int, width: int) -> np.ndarray:
    if isinstance(masks, BitMasks):
        return masks.tensor.numpy()
    return np.stack([draw(polygons, height, width) for polygons in masks.polygons])


@pytest.mark.parametrize("transforms", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("form", ["polygons", "RLE", "both"])
def test_masks_move_as_their_image_does(transforms, form):
    bitmaps = [draw(STAR), draw(PIECES)]
    expected = [moved_bitmap(bitmap, transforms) for bitmap in bitmaps]
    first = STAR if form != "RLE" else to_rle(bitmaps[0])
    second = PIECES if form == "polygons" else to_rle(bitmaps[1])
    size = expected[0].shape
    masks, has_mask = transform_masks([first, second], T.TransformList(transforms), size)
    assert has_mask.tolist() == [True, True] and has_mask.dtype == torch.bool
    is_cropped = any(isinstance(transform, T.CropTransform) for transform in transforms)
    assert isinstance(masks, PolygonMasks if form == "polygons" and not is_cropped else BitMasks)
    for found, wanted in zip(as_bitmaps(masks, *size), expected):
        assert wanted.sum() > 100 and differs_at_the_border_only(found, wanted, 2)


@settings(max_examples=40)
@given(
    corners=st.lists(st.tuples(st.integers(0, WIDTH), st.integers(0, HEIGHT)), min_size=3, max_size=6, unique=True),
    size=st.tuples(st.integers(24, 120), st.integers(24, 120)),
    mirrored=st.booleans(),
)
def test_any_polygon_moves_as_its_bitmap_does(corners, size, mirrored):
    polygon = [float(coordinate) for corner in corners for coordinate in corner]
    transforms = [ResizeTransformLegacy(HEIGHT, WIDTH, *size), *[T.HFlipTransform(size[1])] * mirrored]
    expected = moved_bitmap(draw([polygon]), transforms)
    masks, _ = transform_masks([[polygon]], T.TransformList(transforms), size)
    (found,) = as_bitmaps(masks, *size)
    bitmaps, _ = transform_masks([to_rle(draw([polygon]))], T.TransformList(transforms), size)
    # A border pixel of the original covers up to five pixels when it is enlarged; what is thinner can vanish.
    for one in (found, bitmaps.tensor[0].numpy()):
        assert differs_at_the_border_only(one, expected, 6, thin_parts=True)


def test_an_unmoved_rle_is_the_same_mask():
    bitmap = np.random.default_rng(0).random((HEIGHT, WIDTH)) > 0.5
    masks, _ = transform_masks([to_rle(bitmap)], T.TransformList([]), (HEIGHT, WIDTH))
    assert masks.tensor.dtype == torch.bool and np.array_equal(masks.tensor[0].numpy(), bitmap)
    mirrored, _ = transform_masks([to_rle(bitmap)], T.TransformList([T.HFlipTransform(WIDTH)]), (HEIGHT, WIDTH))
    assert np.array_equal(mirrored.tensor[0].numpy(), bitmap[:, ::-1])


def test_polygons_are_moved_exactly_and_stay_as_they_are():
    triangle = [8.0, 6.0, 40.0, 6.0, 8.0, 30.0]
    transforms = T.TransformList([ResizeTransformLegacy(HEIGHT, WIDTH, 96, 160), T.HFlipTransform(160)])
    masks, _ = transform_masks([[triangle]], transforms, (96, 160))
    assert masks.polygons[0][0].tolist() == [140, 12, 60, 12, 140, 60]
    assert triangle == [8, 6, 40, 6, 8, 30]


@pytest.mark.parametrize("first", [STAR, to_rle(draw(STAR))], ids=["polygons", "RLE"])
def test_boxes_without_a_mask_have_an_empty_one(first):
    masks, has_mask = transform_masks([None, first, None], T.TransformList([]), (HEIGHT, WIDTH))
    assert has_mask.tolist() == [False, True, False]
    assert len(masks) == 3 and masks.nonempty().tolist() == [False, True, False]


def test_without_boxes_there_are_no_masks():
    masks, has_mask = transform_masks([], T.TransformList([]), (HEIGHT, WIDTH))
    assert isinstance(masks, PolygonMasks) and len(masks) == 0
    assert has_mask.shape == (0,) and has_mask.dtype == torch.bool
    masks, has_mask = transform_masks([], T.TransformList([T.CropTransform(0, 0, 9, 9)]), (9, 9))
    assert masks.tensor.shape == (0, 9, 9) and has_mask.shape == (0,)


@pytest.mark.parametrize("form", ["polygons", "RLE"])
def test_a_mask_that_a_crop_takes_away_is_none(form):
    # An L whose bounding box covers the crop, none of its area.
    corner = [[0, 0, 10, 0, 10, 38, 64, 38, 64, 48, 0, 48]]
    segmentations = [corner, PIECES] if form == "polygons" else [to_rle(draw(corner)), to_rle(draw(PIECES))]
    crop = T.TransformList([T.CropTransform(12, 2, 40, 30)])
    masks, has_mask = transform_masks(segmentations, crop, (30, 40))
    assert has_mask.tolist() == [False, True] and masks.nonempty().tolist() == [False, True]


def test_an_rle_that_shrinks_away_is_none():
    dot = np.zeros((HEIGHT, WIDTH), dtype=bool)
    dot[3, 3] = True
    shrink = T.TransformList([ResizeTransformLegacy(HEIGHT, WIDTH, 6, 8)])
    _, has_mask = transform_masks([to_rle(dot)], shrink, (6, 8))
    assert has_mask.tolist() == [False]


def test_two_hundred_polygons_of_a_large_image_are_no_bitmaps():
    height, width = 800, 1333
    polygons = [[[x, y, x + 60, y, x + 60, y + 40, x, y + 40]] for x in range(0, 1200, 60) for y in range(0, 400, 40)]
    transforms = T.TransformList([ResizeTransformLegacy(480, 800, height, width), T.HFlipTransform(width)])
    tracemalloc.start()
    try:
        masks, has_mask = transform_masks(polygons, transforms, (height, width))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(masks) == 200 and isinstance(masks, PolygonMasks) and has_mask.all()
    # A single bitmap has a megabyte; torch's memory is not traced, but the class says that there is none.
    assert peak < 500_000


@pytest.fixture
def record(tmp_path: Path) -> dict:
    """An image of 64 x 48 with a cat that has a mask, a dog that has none, a fish with one, and a crowd with an RLE."""
    fish = {"category_id": 2, "iscrowd": 0}
    items = [
        annotation([8, 4, 56, 44], [12, 15], category_id=1, iscrowd=0, segmentation=STAR),
        annotation([30, 8, 40, 40], [2, 5], category_id=0, iscrowd=0),
        annotation([4, 4, 20, 16], [22, 26], **fish, segmentation=[PIECES[0]]),
        annotation([0, 0, 9, 9], [22, 26], **{**fish, "iscrowd": 1}, segmentation=to_rle(draw(STAR))),
    ]
    return drawn_record(tmp_path, caption="a dog and a cat with a fish", annotations=items)


def detection_mapper(**more) -> DetectionDatasetMapper:
    return DetectionDatasetMapper(
        vocabularies={"pets": ["dog", "cat", "fish"]},
        separator=". ",
        num_negatives=0,
        full_negatives_prob=1.0,
        shuffle=False,
        **options(**{"with_masks": True, **more}),
    )


def grounding_mapper(**more) -> GroundingDatasetMapper:
    return GroundingDatasetMapper(**options(**{"with_masks": True, **more}))


def caption_mapper(min_score=0.5, **more) -> PseudoGroundingDatasetMapper:
    numbers = {"num_negatives": 0, "no_negatives_prob": 0.0, "full_negatives_prob": 1.0}
    return PseudoGroundingDatasetMapper(min_score=min_score, **numbers, **options(**{"with_masks": True, **more}))


MAPPERS = {"detection": detection_mapper, "grounding": grounding_mapper, "pseudo_grounding": caption_mapper}


@pytest.mark.parametrize("make_mapper", MAPPERS.values(), ids=MAPPERS)
def test_each_box_has_its_own_mask(record, make_mapper):
    instances = make_mapper()(record)["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[8, 4, 56, 44], [30, 8, 40, 40], [4, 4, 20, 16]]
    assert instances.gt_has_mask.tolist() == [True, False, True]
    assert [[polygon.tolist() for polygon in own] for own in instances.gt_masks] == [STAR, [], [PIECES[0]]]


@pytest.mark.parametrize("make_mapper", MAPPERS.values(), ids=MAPPERS)
def test_without_the_option_there_are_no_masks(record, make_mapper):
    instances = make_mapper(with_masks=False)(record)["instances"]
    assert set(instances.get_fields()) == {"gt_boxes", "gt_classes", "gt_category_ids"}


def test_masks_turn_with_boxes_and_pixels(record):
    sample = detection_mapper(augmentations=[T.RandomFlip(1.0)])(record)
    instances = sample["instances"]
    assert instances.gt_boxes.tensor[2].tolist() == [44, 4, 60, 16]
    assert instances.gt_masks.polygons[2][0].tolist() == [60, 4, 44, 4, 44, 16, 60, 16]
    # Mirrored words of grounding data keep their masks too.
    flipped = grounding_mapper(augmentations=[T.RandomFlip(1.0)], flip_words=True)(record)["instances"]
    assert flipped.gt_masks.polygons[2][0].tolist() == [60, 4, 44, 4, 44, 16, 60, 16]


def test_masks_of_boxes_that_go_are_gone(record):
    # Of the cat a part is left, of the dog and the fish nothing.
    instances = detection_mapper(augmentations=[T.CropTransform(42, 10, 20, 30)])(record)["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[0, 0, 14, 30]]
    assert instances.gt_masks.tensor.shape == (1, 30, 20)
    assert differs_at_the_border_only(instances.gt_masks.tensor[0].numpy(), draw(STAR)[10:40, 42:62], 1)
    # Of the fish, which comes last, a part is left, of the others nothing.
    instances = detection_mapper(augmentations=[T.CropTransform(4, 4, 4, 12)])(record)["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[0, 0, 4, 12]]
    assert instances.gt_has_mask.tolist() == [True] and instances.gt_masks.tensor.all()
    # The prompt of the second has no room for the cat.
    for make_mapper in (detection_mapper, grounding_mapper):
        short = make_mapper(max_tokens=5)(record)["instances"]
        assert len(short.gt_masks) == len(short.gt_boxes) == len(short.gt_has_mask) < 3
        for bounds, masks, has_mask in zip(short.gt_boxes, short.gt_masks, short.gt_has_mask.tolist()):
            assert has_mask == (bounds[0] != 30)
            assert not has_mask or masks[0].reshape(-1, 2).min(axis=0).tolist() == bounds[:2].tolist()


def test_masks_of_boxes_with_a_low_score_are_gone(record):
    scores = [0.9, 0.8, 0.3, 0.9]
    items = [{**item, "score": score} for item, score in zip(record["annotations"], scores)]
    instances = caption_mapper()({**record, "annotations": items})["instances"]
    assert len(instances.gt_masks) == 2 and instances.gt_has_mask.tolist() == [True, False]


def test_the_dataset_dict_and_its_masks_stay_as_they_are(record):
    before = json.dumps(record)
    detection_mapper(augmentations=[T.RandomFlip(1.0), T.Resize((96, 128))])(record)
    detection_mapper(augmentations=[T.CropTransform(4, 4, 40, 40)])(record)
    assert json.dumps(record) == before


def test_images_without_boxes_have_no_masks(record):
    instances = grounding_mapper()({**record, "annotations": []})["instances"]
    assert len(instances.gt_masks) == 0 and instances.gt_has_mask.shape == (0,)


def add_masks(content: dict) -> None:
    """Give each second box a polygon, and one a mask that cannot be used."""
    for row, item in enumerate(content["annotations"]):
        x, y, width, height = item["bbox"]
        if row % 2 == 0:
            item["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    content["annotations"][1]["segmentation"] = [[1, 2]]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_training_stream_has_masks_if_the_model_has(data_cfg, make_dataset, num_workers):
    boxes = [[[0, 4, 6, 20, 10], [1, 30, 20, 8, 16]]] * 3
    data_cfg.DATASETS.TRAIN = (make_dataset([(WIDTH, HEIGHT)] * 3, boxes, edit=add_masks),)
    data_cfg.DATALOADER.NUM_WORKERS = num_workers
    data_cfg.MODEL.MASK_ON = True
    for sample in next(iter(build_train_loader(data_cfg))):
        instances = sample["instances"]
        assert instances.gt_has_mask.tolist() == [True, False]
        factor = sample["image"].shape[2] / WIDTH
        points = instances.gt_masks.polygons[0][0].reshape(-1, 2)
        assert np.ptp(points, axis=0) == pytest.approx([20 * factor, 10 * factor])
    data_cfg.MODEL.MASK_ON = False
    for sample in next(iter(build_train_loader(data_cfg))):
        assert not sample["instances"].has("gt_masks")


def test_at_test_time_no_mask_is_asked_for(data_cfg, record):
    data_cfg.MODEL.MASK_ON = True
    mapper = GroundingDatasetMapper(data_cfg, is_train=False)
    assert not mapper.with_masks and "instances" not in mapper(record)
    assert GroundingDatasetMapper(data_cfg).with_masks
    data_cfg.MODEL.MASK_ON = False
    assert not GroundingDatasetMapper(data_cfg).with_masks
