import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from glipv2_d2.config import add_glipv2_config
from glipv2_d2.data.transforms import ImageVersions, ResizeShortestEdgeLegacy, ZoomWindow, build_augmentations
from glipv2_d2.errors import InputError


# Sizes are (height, width); the first five rows are measured with the official transform.
@pytest.mark.parametrize(
    ("old", "new", "short", "limit"),
    [
        ((480, 640), (800, 1066), 800, 1333),
        ((768, 1024), (800, 1066), 800, 1333),
        ((281, 500), (749, 1332), 800, 1333),
        ((427, 640), (800, 1199), 800, 1333),
        ((1080, 1920), (750, 1333), 800, 1333),
        ((150, 170), (208, 235), 208, 1333),
        ((640, 480), (1066, 800), 800, 1333),  # upright: the same with sides swapped
        ((800, 1000), (800, 1000), 800, 1333),  # the short side fits already
        ((100, 100), (800, 800), 800, 1333),
        ((4, 1000), (5, 1250), 800, 1333),  # 1333 * 4 / 1000 = 5.332
        ((3, 1000), (4, 1333), 800, 1333),  # 3.999
        ((25, 1000), (2, 80), 80, 100),  # 2.5: half to even
        # The official rule rounds 0.27 to 0, an empty image.
        ((1, 5000), (1, 1333), 800, 1333),
        ((20000, 1), (1333, 1), 800, 1333),
        ((2, 400000), (1, 1333), 800, 1333),
        ((1, 2**26), (1, 256), 192, 256),
    ],
)
def test_target_size_follows_the_official_rule(old, new, short, limit):
    assert ResizeShortestEdgeLegacy.get_output_shape(*old, short, limit) == new


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 1000), st.integers(1, 2000))
def test_target_size_is_never_empty_and_short_side_is_sampled_or_limited(height, width, short, limit):
    new_height, new_width = ResizeShortestEdgeLegacy.get_output_shape(height, width, short, limit)
    assert min(new_height, new_width) >= 1
    assert (new_height <= new_width) == (height <= width) or new_height == new_width
    unlimited = max(height, width) / min(height, width) * short <= limit
    assert min(new_height, new_width) == short or not unlimited
    # A short side of 0.5 pixels and more is rounded as officially, which at most doubles the long side.
    assert max(new_height, new_width) <= (limit if unlimited else max(2 * limit, short))


@pytest.mark.parametrize("name", ["img0", "img1"])
def test_pixels_equal_those_of_the_official_transform(assets, name):
    folder = assets / "parity" / "tiny"
    bgr = np.asarray(Image.open(folder / f"{name}.png").convert("RGB"))[:, :, ::-1]
    resized = ResizeShortestEdgeLegacy(208, 1333, "choice").get_transform(bgr).apply_image(bgr)
    assert np.array_equal(resized[:, :, ::-1], np.asarray(Image.open(folder / f"{name}_resized.png")))
    mean, std = np.array([103.53, 116.28, 123.675]), np.array([57.375, 57.12, 58.395])
    normalized = ((resized - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(normalized, np.load(folder / "preprocessed.npz")[name], atol=1e-5)


@pytest.mark.parametrize("size", [(40, 60), (300, 200)])
def test_floating_point_is_resized_as_integers_are(size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    resize = ResizeShortestEdgeLegacy(100, 1000, "choice").get_transform(pixels)
    np.testing.assert_allclose(resize.apply_image(pixels.astype(np.float64)), resize.apply_image(pixels), atol=1.01)


def test_boxes_scale_first_and_last_pixel():
    transform = ResizeShortestEdgeLegacy(100, 1000, "choice").get_transform(np.zeros((50, 80, 3), np.uint8))
    # Pixels 10..29 and 5..6 become 20..58 and 10..12 of the inclusive convention.
    assert transform.apply_box(np.array([[10.0, 5.0, 30.0, 7.0]])).tolist() == [[20, 10, 59, 13]]
    assert transform.apply_box(np.zeros((0, 4))).shape == (0, 4)


def test_boxes_go_through_a_list_of_transforms():
    image = np.zeros((50, 80, 3), np.uint8)
    resize = ResizeShortestEdgeLegacy(100, 1000, "choice").get_transform(image)
    both = T.TransformList([resize, T.HFlipTransform(160)])
    assert both.apply_box(np.array([[10.0, 5.0, 30.0, 7.0]])).tolist() == [[101, 10, 140, 13]]


def sampled_lengths(*arguments) -> set[int]:
    image = np.zeros((10, 10, 3), np.uint8)
    return {ResizeShortestEdgeLegacy(*arguments).get_transform(image).new_h for _ in range(200)}


def test_lengths_are_chosen_from_the_list_or_the_range():
    np.random.seed(0)
    assert sampled_lengths((20, 30, 40), 100, "choice") == {20, 30, 40}
    assert sampled_lengths((20, 23), 100, "range") == {20, 21, 22, 23}
    assert sampled_lengths(20, 100, "range") == sampled_lengths((20,), 100, "range") == {20}


def test_length_zero_keeps_the_image():
    image = np.zeros((10, 10, 3), np.uint8)
    assert isinstance(ResizeShortestEdgeLegacy(0, 100, "choice").get_transform(image), T.NoOpTransform)


@pytest.mark.parametrize("arguments", [((20,), 100, "uniform"), ((20, 30, 40), 100, "range"), ((), 100, "choice")])
def test_wrong_arguments_are_named(arguments):
    with pytest.raises(ValueError, match="INPUT.MIN_SIZE_TRAIN"):
        ResizeShortestEdgeLegacy(*arguments)


def test_augmentations_follow_the_config():
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (20, 30), 40, 25
    resize, flip = build_augmentations(cfg, is_train=True)
    assert (resize.short_edge_length, resize.max_size, resize.sample_style) == ((20, 30), 40, "choice")
    assert (flip.horizontal, flip.vertical) == (True, False)
    (resize,) = build_augmentations(cfg, is_train=False)
    assert (resize.short_edge_length, resize.max_size) == ((25,), 1333)
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.CROP.ENABLED, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "vertical", True, "range"
    crop, resize, flip = build_augmentations(cfg, is_train=True)
    assert isinstance(crop, T.RandomCrop) and resize.sample_style == "range" and flip.vertical
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.CROP.ENABLED = "none", False
    assert len(build_augmentations(cfg, is_train=True)) == 1


def test_zoom_and_jitter_follow_the_config():
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.INPUT.ZOOM, cfg.INPUT.COLOR_JITTER, cfg.INPUT.CROP.ENABLED = (0.5, 2.0), 0.25, True
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (20, 30), 40
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 25, 50
    crop, zoom, flip, *colours = build_augmentations(cfg, is_train=True)
    assert isinstance(crop, T.RandomCrop) and flip.horizontal
    assert (zoom.zoom, zoom.window, zoom.test_size) == ((0.5, 2.0), (30, 40), (25, 50))
    assert [type(one) for one in colours] == [T.RandomBrightness, T.RandomContrast, T.RandomSaturation]
    assert {(one.intensity_min, one.intensity_max) for one in colours} == {(0.75, 1.25)}


def test_unknown_flip_is_named():
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.INPUT.RANDOM_FLIP = "diagonal"
    with pytest.raises(ValueError, match="INPUT.RANDOM_FLIP"):
        build_augmentations(cfg, is_train=True)


@pytest.mark.parametrize(
    ("image_size", "zoom", "expected"),
    [
        # Test images of 100 x 200 become 50 x 100, and 200 x 100 become 100 x 50; the window is 40 x 60.
        ((100, 200), 0.5, (25, 50)),
        ((100, 200), 1.0, (40, 60)),
        ((200, 100), 2.0, (60, 40)),
        ((200, 100), 0.5, (50, 25)),
    ],
)
def test_zoom_window_has_the_zoomed_scale_and_at_most_the_size_of_the_window(image_size, zoom, expected):
    image = np.zeros((*image_size, 3), np.uint8)
    transform = ZoomWindow((zoom, zoom), (40, 60), (50, 1000)).get_transform(image)
    assert transform.apply_image(image).shape[:2] == expected
    # A box as wide as the scaled image shows how far the pixels were moved apart.
    left, top, right, bottom = transform.apply_box(np.array([[10.0, 10.0, 31.0, 51.0]]))[0]
    assert (right - left - 1, bottom - top - 1) == pytest.approx((20 * 0.5 * zoom, 40 * 0.5 * zoom))


def test_zoom_window_shows_every_part_of_the_image():
    column = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (100, 200, 3)).copy()
    window = ZoomWindow((1.0, 1.0), (50, 50), (100, 1000))
    np.random.seed(0)
    shown = [window.get_transform(column).apply_image(column) for _ in range(300)]
    assert {part.shape for part in shown} == {(50, 50, 3)}
    assert min(part.min() for part in shown) == 0
    assert max(part.max() for part in shown) == 199


def test_zoom_window_shows_the_middle_of_a_box_and_each_box_equally_often():
    """A box at the left border, and one below the middle; in half of all free windows there would be none of them."""
    boxes = np.array([[0.0, 0.0, 5.0, 6.0], [150.0, 60.0, 190.0, 100.0]])
    window = ZoomWindow((1.0, 1.0), (40, 40), (100, 1000))
    image = np.zeros((100, 200, 3), np.uint8)
    np.random.seed(0)
    places = []
    for _ in range(300):
        middles = window.get_transform(image, boxes).apply_coords(np.array([[2.5, 3.0], [170.0, 80.0]]))
        places.append(((middles >= 0) & (middles < 40)).all(axis=1))
    shown = np.array(places)
    assert (shown.sum(axis=1) == 1).all() and 0.44 < shown[:, 0].mean() < 0.56


def test_zoom_window_of_a_box_reaches_every_place_of_it():
    window = ZoomWindow((1.0, 1.0), (10, 10), (100, 1000))
    image = np.zeros((100, 100, 3), np.uint8)
    np.random.seed(0)
    corners = [
        window.get_transform(image, np.array([[40.0, 0.0, 61.0, 4.0]])).apply_coords(np.zeros((1, 2)))[0]
        for _ in range(300)
    ]
    # The middle is in pixel 50 of the columns and pixel 2 of the rows.
    assert {-int(x) for x, _ in corners} == set(range(41, 51)) and {-int(y) for _, y in corners} == {0, 1, 2}


def test_zoom_is_drawn_alike_on_a_scale_of_logarithms():
    image = np.zeros((100, 100, 3), np.uint8)
    np.random.seed(0)
    window = ZoomWindow((0.25, 4.0), (1000, 1000), (100, 1000))
    sides = [window.get_transform(image).apply_image(image).shape[0] for _ in range(400)]
    assert 25 <= min(sides) < 30 and 350 < max(sides) <= 400
    assert 0.44 < np.mean(np.array(sides) < 100) < 0.56


@pytest.mark.parametrize(
    ("key", "value"), [("ZOOM", (2.0, 1.0)), ("ZOOM", (0.0, 1.0)), ("ZOOM", (1.0,)), ("COLOR_JITTER", 1.0)]
)
def test_bad_zoom_and_jitter_are_named(key, value):
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.INPUT[key] = value
    with pytest.raises(ValueError, match=f"INPUT.{key}"):
        build_augmentations(cfg, is_train=True)


def test_jitter_changes_colours_in_training_only_and_leaves_boxes():
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.INPUT.COLOR_JITTER, cfg.INPUT.RANDOM_FLIP, cfg.INPUT.MIN_SIZE_TRAIN = 0.5, "none", (20,)
    image = np.full((20, 20, 3), (40, 80, 120), np.uint8)
    np.random.seed(0)
    inputs = T.AugInput(image.copy())
    transforms = T.AugmentationList(build_augmentations(cfg, is_train=True))(inputs)
    assert not np.array_equal(inputs.image, image) and inputs.image.dtype == np.uint8
    assert transforms.apply_box(np.array([[1.0, 2.0, 3.0, 4.0]])).tolist() == [[1.0, 2.0, 3.0, 4.0]]
    assert len(build_augmentations(cfg, is_train=False)) == 1


@pytest.mark.parametrize("shape, size", [((50, 80), (20, 32)), ((10, 10), (40, 40))])
def test_finer_image_is_resized_from_the_original_pixels(shape, size):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = Image.fromarray(image).resize((round(1.5 * size[1]), round(1.5 * size[0])), Image.Resampling.BILINEAR)
    assert np.array_equal(
        ImageVersions(1.5)(image, size)["fine_image"].numpy().transpose(1, 2, 0), np.asarray(expected)
    )
    assert ImageVersions()(image, size) == {}


@pytest.mark.parametrize(
    "options, scale",
    [
        ([], None),
        (["MODEL.GLIPV2.CLASS_WORDS.ENABLED", True], None),
        (["MODEL.GLIPV2.CLASS_WORDS.ENABLED", True, "MODEL.GLIPV2.CLASS_WORDS.IMAGE_SCALE", 2.5], 2.5),
        (["MODEL.GLIPV2.CLASS_WORDS.IMAGE_SCALE", 2.5], None),
    ],
)
def test_a_finer_image_is_made_for_a_classifier_that_reads_larger_ones(options, scale):
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.merge_from_list(options)
    assert ImageVersions.from_config(cfg).scale == scale


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_the_base_of_a_tuning_sees_an_image_as_its_own_config_has_it(scale):
    """Its size and its classifier's are not those of the tuned weights."""
    keys = {"CLASS_WORDS.ENABLED": True, "CLASS_WORDS.IMAGE_SCALE": 1.5}
    keys |= {"TUNING.KEEP.SIZE_TEST": (20, 50), "TUNING.KEEP.IMAGE_SCALE": scale}
    cfg, base = get_cfg(), get_cfg()
    for one in (cfg, base):
        add_glipv2_config(one)
    cfg.merge_from_list([word for key, value in keys.items() for word in (f"MODEL.GLIPV2.{key}", value)])
    base.merge_from_list(["INPUT.MIN_SIZE_TEST", 20, "INPUT.MAX_SIZE_TEST", 50])
    base.merge_from_list(["MODEL.GLIPV2.CLASS_WORDS.ENABLED", True, "MODEL.GLIPV2.CLASS_WORDS.IMAGE_SCALE", scale])
    image = np.random.default_rng(0).integers(0, 256, (37, 100, 3), dtype=np.uint8)
    found = ImageVersions.from_config(cfg)(image, (60, 162))
    (resize,) = build_augmentations(base, is_train=False)
    shown = resize.get_transform(image).apply_image(image).transpose(2, 0, 1)
    expected = {"image": shown, **ImageVersions.from_config(base)(image, shown.shape[1:])}
    assert found["of_base"].keys() == expected.keys() and ("fine_image" in expected) == (scale > 1)
    assert all(np.array_equal(found["of_base"][key], expected[key]) for key in expected)
    assert shown.shape == (3, 18, 48) and found["fine_image"].shape == (3, 90, 243)
    cfg.TEST.AUG.ENABLED = True
    assert ImageVersions.from_config(cfg)(image, (60, 162)).keys() == {"fine_image"}


@pytest.mark.parametrize("size", [(20,), (20, 30, 40), (-1, 20)])
def test_the_size_of_a_base_is_two_numbers(size):
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.MODEL.GLIPV2.TUNING.KEEP.SIZE_TEST = size
    with pytest.raises(InputError, match="KEEP.SIZE_TEST: expected the short side and the limit of the long side"):
        ImageVersions.from_config(cfg)
