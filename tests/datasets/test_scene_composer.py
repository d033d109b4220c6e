import numpy as np
import pytest
from scenes.composer import Background, Category, CutOut, SceneRules, compose_scene
from scenes.composer import make_cut_out as trim_cut_out

ANIMAL = Category("crow", "animal", "animals", "a", "crows", frozenset({"crow"}))


def ground(value: int = 100, size: int = 200) -> Background:
    return Background("ground", "on a photo of a wall", np.full((size, size, 3), value, np.uint8))


def scenes(cut_outs, rules, count, background=None):
    by_name = {cut_out.category.name: [cut_out] for cut_out in cut_outs}
    for seed in range(count):
        yield compose_scene(np.random.default_rng(seed), by_name, [background or ground()], rules)


def slow_extent(mask):
    """x, y, width, height by looking at every pixel."""
    pixels = [(x, y) for y in range(mask.shape[0]) for x in range(mask.shape[1]) if mask[y, x]]
    left, top = min(x for x, _ in pixels), min(y for _, y in pixels)
    return left, top, max(x for x, _ in pixels) - left + 1, max(y for _, y in pixels) - top + 1


def shared_area(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def test_a_box_is_the_extent_of_what_is_seen(make_cut_out):
    cut_outs = [make_cut_out(name, (40, 30)) for name in ("crow", "saw", "lion", "bus")]
    covered = 0
    for scene in scenes(cut_outs, SceneRules(size=64, max_overlap=1.0), 30):
        for one in scene.labelled:
            assert one.box == slow_extent(one.mask)
            covered += one.visible < 1
    assert covered > 5  # otherwise nothing was tested but whole objects


def test_no_pixel_belongs_to_two_objects(make_cut_out):
    cut_outs = [make_cut_out(name, (40, 40)) for name in ("crow", "saw", "lion")]
    for scene in scenes(cut_outs, SceneRules(size=64, max_overlap=1.0), 10):
        assert sum(one.mask.astype(int) for one in (*scene.labelled, *scene.hidden)).max() == 1


def test_an_object_covered_by_a_later_one_has_no_box_and_stays_in_the_image(make_cut_out):
    # Both fill the image, so the second leaves nothing of the first.
    rules = SceneRules(size=64, min_objects=2, max_objects=2, min_side=1.0, max_side=1.0, repeat_probability=0)
    for scene in scenes([make_cut_out("crow", (64, 64)), make_cut_out("saw", (64, 64))], rules, 5):
        assert [one.box for one in scene.labelled] == [(0, 0, 64, 64)]
        assert [(one.box, one.visible) for one in scene.hidden] == [((0, 0, 0, 0), 0.0)]


def test_an_object_seen_by_less_than_a_fifth_has_no_box(make_cut_out):
    # The saw is at most 92 of 100 pixels large, as it may be enlarged to twice its 46 only: it covers 84.64 %.
    crow, saw = make_cut_out("crow", (100, 100)), make_cut_out("saw", (100, 100), longest_side=46)
    rules = SceneRules(size=100, min_objects=2, max_objects=2, min_side=1.0, max_side=1.0, repeat_probability=0)
    shares = []
    for scene in scenes([crow, saw], rules, 8):
        assert len(scene.labelled) == len(scene.hidden) == 1
        shares += [one.visible for one in scene.hidden if one.cut_out is crow]
    assert shares and shares == pytest.approx([1 - 0.92**2] * len(shares))


def test_min_visible_is_the_share_from_which_a_box_is_given(make_cut_out):
    crow, saw = make_cut_out("crow", (100, 100)), make_cut_out("saw", (100, 100), longest_side=46)
    rules = SceneRules(
        size=100, min_objects=2, max_objects=2, min_side=1.0, max_side=1.0, min_visible=0.15, repeat_probability=0
    )
    labelled = [{one.cut_out.category.name for one in scene.labelled} for scene in scenes([crow, saw], rules, 8)]
    assert {"crow", "saw"} in labelled


def test_equal_generators_give_equal_scenes(make_cut_out):
    cut_outs = [make_cut_out(name, (40, 30)) for name in ("crow", "saw", "lion")]
    background = Background("noise", "", np.random.default_rng(0).integers(0, 255, (90, 120, 3)).astype(np.uint8))
    first = list(scenes(cut_outs, SceneRules(size=64), 4, background))
    second = list(scenes(cut_outs, SceneRules(size=64), 4, background))
    for a, b in zip(first, second):
        assert np.array_equal(a.image, b.image)
        assert [one.box for one in a.labelled] == [one.box for one in b.labelled]
    assert not np.array_equal(first[0].image, first[1].image)


def test_objects_overlap_little_where_there_is_room(make_cut_out):
    # Objects of 16 to 30 % of the side: 24 trials always find a free place for three of them.
    cut_outs = [make_cut_out(name, (60, 60)) for name in ("crow", "saw", "lion")]
    for scene in scenes(cut_outs, SceneRules(size=200, max_side=0.3), 40):
        boxes = [one.box for one in scene.labelled]
        for index, a in enumerate(boxes):
            for b in boxes[:index]:
                assert shared_area(a, b) <= 0.3 * min(a[2] * a[3], b[2] * b[3])


def test_the_longest_side_is_within_the_rules_and_the_shape_is_kept(make_cut_out):
    longest = []
    for scene in scenes([make_cut_out("crow", (110, 55))], SceneRules(size=200, min_objects=1, max_objects=1), 60):
        _, _, width, height = scene.labelled[0].box
        assert height == pytest.approx(width / 2, abs=1)
        longest.append(width)
    assert 32 <= min(longest) < 45 and 100 < max(longest) <= 110


def test_a_small_image_is_enlarged_to_twice_its_size_at_most(make_cut_out):
    sides = [
        scene.labelled[0].box[2]
        for scene in scenes([make_cut_out("crow", (30, 30))], SceneRules(size=200, min_objects=1, max_objects=1), 40)
    ]
    assert max(sides) == 60


def test_names_repeat_now_and_then_and_never_when_that_is_switched_off(make_cut_out):
    cut_outs = [make_cut_out(name, (20, 20)) for name in ("crow", "saw", "lion", "bus", "owl")]

    def repeated(probability):
        rules = SceneRules(size=100, min_objects=3, max_objects=3, max_side=0.2, repeat_probability=probability)
        names = [[one.cut_out.category.name for one in scene.labelled] for scene in scenes(cut_outs, rules, 60)]
        return sum(len(set(some)) < len(some) for some in names)

    assert repeated(0) == 0
    assert 0 < repeated(0.2) < 45


def test_one_name_can_fill_a_scene_of_several_objects(make_cut_out):
    rules = SceneRules(size=100, min_objects=3, max_objects=3, max_side=0.2)
    for scene in scenes([make_cut_out("crow", (20, 20))], rules, 3):
        assert [one.cut_out.category.name for one in scene.labelled] == ["crow"] * 3


def test_an_opaque_object_hides_the_background_and_a_half_transparent_one_mixes_with_it(make_cut_out):
    rules = SceneRules(size=100, min_objects=1, max_objects=1, min_side=0.4)
    for alpha, low, high in ((255, 160, 235), (128, 80, 120)):
        for scene in scenes([make_cut_out("crow", (40, 40), (200, 200, 200), alpha)], rules, 5, ground(0)):
            x, y, width, height = scene.labelled[0].box
            assert low <= scene.image[y + height // 2, x + width // 2].min()
            assert scene.image[y + height // 2, x + width // 2].max() <= high
            assert scene.image[~scene.labelled[0].mask].max() == 0


def test_background_and_objects_vary_in_brightness(make_cut_out):
    rules = SceneRules(size=100, min_objects=1, max_objects=1, max_side=0.3)
    some = list(scenes([make_cut_out("crow", (40, 40), (200, 200, 200))], rules, 20))
    grounds = {int(scene.image[~scene.labelled[0].mask].mean()) for scene in some}
    objects = {int(scene.image[scene.labelled[0].mask].mean()) for scene in some}
    assert len(grounds) > 5 and 70 < min(grounds) and max(grounds) < 125
    assert len(objects) > 5 and 155 < min(objects) and max(objects) < 240


def test_objects_and_backgrounds_are_mirrored_half_of_the_time(make_cut_out):
    cut_out = make_cut_out("crow", (40, 40))
    cut_out.pixels[:, :20, 0] = 255  # blue on the left
    background = ground()
    background.pixels[:, :100] = 0
    rules = SceneRules(size=100, min_objects=1, max_objects=1, max_side=0.3)
    object_left, ground_left = [], []
    for scene in scenes([cut_out], rules, 40, background):
        x, y, width, height = scene.labelled[0].box
        blue = scene.image[y : y + height, x : x + width, 0].astype(int)
        object_left.append(blue[:, : width // 2].mean() > blue[:, -(width // 2) :].mean())
        free = np.where(scene.labelled[0].mask, np.nan, scene.image[:, :, 2])
        ground_left.append(np.nanmean(free[:, :10]) < np.nanmean(free[:, -10:]))
    assert 8 < sum(object_left) < 32 and 8 < sum(ground_left) < 32


def test_a_background_is_cut_to_a_random_part_of_at_least_three_fifths():
    # Grey levels that rise from left to right: the span that is seen tells how wide the part was.
    pixels = np.repeat(np.arange(0, 200, dtype=np.uint8)[None, :, None], 200, axis=0).repeat(3, axis=2)
    rules = SceneRules(size=100, min_objects=1, max_objects=1, max_side=0.2)
    faint = CutOut("crow.png", ANIMAL, np.zeros((9, 9, 4), np.uint8), 9)
    shares, lefts = [], []
    for scene in scenes([faint], rules, 60, Background("ramp", "", pixels)):
        row = np.sort(scene.image[50, :, 0].astype(float))
        shares.append((row[-1] - row[0]) / 200)
        lefts.append(row[0])
    # Gains of 0.77 to 1.2 stretch the span: parts of 0.6 to 1 give 0.46 to 1.2.
    assert 0.44 < min(shares) < 0.6 and 0.8 < max(shares) < 1.2
    assert len({int(left) for left in lefts}) > 15


def test_an_object_too_faint_to_have_a_mask_is_left_out(make_cut_out):
    rules = SceneRules(size=64, min_objects=1, max_objects=1)
    for scene in scenes([make_cut_out("crow", (20, 20), alpha=40)], rules, 3):
        assert scene.labelled == scene.hidden == ()
        assert len(np.unique(scene.image.reshape(-1, 3), axis=0)) == 1  # nothing but the background


def test_a_cut_out_is_trimmed_to_what_is_solid():
    image = np.zeros((50, 60, 4), np.uint8)
    image[10:30, 20:50] = (10, 20, 30, 255)
    cut_out = trim_cut_out("crow.png", ANIMAL, image, max_side=100)
    assert cut_out.pixels.shape == (20, 30, 4) and cut_out.longest_side == 30
    assert cut_out.pixels[10, 15].tolist() == [10, 20, 30, 255]


def test_a_cut_out_is_shrunk_to_the_largest_side_ever_asked_for():
    cut_out = trim_cut_out("crow.png", ANIMAL, np.full((100, 300, 4), 255, np.uint8), max_side=60)
    assert cut_out.pixels.shape == (20, 60, 4) and cut_out.longest_side == 300


def test_stray_pixels_do_not_widen_a_cut_out():
    image = np.zeros((80, 80, 4), np.uint8)
    image[10:50, 10:50] = 255
    image[78, 78] = 255
    assert trim_cut_out("crow.png", ANIMAL, image, max_side=100).pixels.shape == (40, 40, 4)


def test_a_second_part_of_an_object_is_kept():
    image = np.zeros((80, 80, 4), np.uint8)
    image[10:50, 10:50] = 255
    image[70:76, 70:76] = 255  # 36 of 1636 pixels
    assert trim_cut_out("crow.png", ANIMAL, image, max_side=100).pixels.shape == (66, 66, 4)


def test_only_the_outline_of_a_cut_out_is_softened():
    image = np.zeros((40, 40, 4), np.uint8)
    image[5:35, 5:35] = 255
    image[20, 20, :3] = 0  # a fine mark inside
    pixels = trim_cut_out("crow.png", ANIMAL, image, max_side=100).pixels
    assert 64 <= pixels[0, 15, 3] < 255
    assert pixels[15, 15].tolist() == [0, 0, 0, 255] and pixels[15, 16].tolist() == [255] * 4


def test_an_empty_image_is_refused_by_name():
    with pytest.raises(ValueError, match="crow.png: expected an object, found only transparent pixels"):
        trim_cut_out("crow.png", ANIMAL, np.zeros((9, 9, 4), np.uint8), max_side=50)
