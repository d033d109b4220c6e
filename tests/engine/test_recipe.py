import pytest
from detectron2.structures import BoxMode

from glipv2_d2.engine.recipe import (
    Facts,
    input_side,
    large_model_recipe,
    large_schedule,
    length_within,
    names_in_prompt,
    num_updates,
    schedule,
    small_model_recipe,
)


def as_dict(options):
    return dict(zip(options[::2], options[1::2], strict=True))


def image(height, width, *boxes, **more):
    annotations = [{"bbox": list(box), "bbox_mode": BoxMode.XYWH_ABS, **more} for box in boxes]
    return {"height": height, "width": width, "annotations": annotations}


def test_facts_measure_boxes_in_the_image_as_it_is_resized():
    dicts = [
        # Short side 100 becomes 1: the sides are 0.2 and 0.3.
        image(100, 150, (0, 0, 10, 40), (0, 0, 30, 30)),
        # The long side of 300 becomes 1.5, and 60 x 60 pixels have a side of 0.3.
        image(300, 100, (0, 0, 60, 60)),
        image(100, 100),
        image(100, 100, (0, 0, 90, 90), iscrowd=1),
    ]
    assert Facts.of(dicts, 7) == Facts(
        num_images=4, num_boxes=3, num_names=7, box_side=pytest.approx(0.3), image_side=100, most_boxes=2
    )


def test_facts_of_images_without_boxes():
    assert Facts.of([image(100, 150)], 1) == Facts(1, 0, 1, 0.0, 100)


@pytest.mark.parametrize(
    ("box_side", "expected"),
    [(0.76, 192), (40 / 192, 192), (0.2, 256), (0.13, 320), (0.105, 384), (0.09, 448), (0.08, 512), (0.0, 512)],
)
def test_small_objects_get_larger_images(box_side, expected):
    """256 * 0.2 = 51, 320 * 0.13 = 41.6, 384 * 0.105 = 40.3, 448 * 0.09 = 40.3, 512 * 0.08 = 41."""
    assert input_side(box_side) == expected


@pytest.mark.parametrize(
    ("num_images", "epochs", "expected"),
    [
        # 160 images are 40 updates an epoch: three epochs are fewer than the least number.
        (160, None, 1000),
        # 4,000 images: three epochs of 1,000 updates.
        (4000, None, 3000),
        (160, 10, 400),
        # 12 images: 1.5 epochs are 4.5 updates, rounded up to a multiple of ten.
        (12, 1.5, 10),
        (4001, 1, 1010),
    ],
)
def test_updates_follow_the_data(num_images, epochs, expected):
    assert num_updates(num_images, 4, 1000, epochs) == expected


@pytest.mark.parametrize(
    ("minutes", "per_update", "per_evaluation", "expected"),
    [
        # 300 s less 11 evaluations of 10 s are 190 s, which hold 95 updates of 2 s.
        (5, 2.0, 10.0, (90, 10)),
        (5, 0.19, 10.0, (1000, 10)),
        # 11 evaluations would take 110 s of 60. Three take half of the time, and the other half holds 60 updates.
        (1, 0.5, 10.0, (60, 2)),
        # Not even the two that a run needs leave any time.
        (1, 0.5, 40.0, (10, 1)),
    ],
)
def test_evaluations_take_at_most_half_of_the_time(minutes, per_update, per_evaluation, expected):
    assert length_within(minutes, per_update, per_evaluation) == expected


def test_a_second_evaluation_at_the_end_takes_its_time_from_the_updates():
    # 300 s less 12 evaluations of 10 s are 180 s; 10 of 15 s are half of the time, which leaves 75 updates.
    assert length_within(5, 2.0, 10.0, at_end=2) == (90, 10)
    assert length_within(5, 2.0, 15.0, at_end=2) == (72, 8)


def test_fewer_evaluations_are_further_apart():
    keys = as_dict(schedule(60, 2))
    assert (keys["TEST.EVAL_PERIOD"], keys["SOLVER.CHECKPOINT_PERIOD"]) == (30, 30)


@pytest.mark.parametrize(
    ("updates", "period", "warmup", "decay"),
    [(3, 1, 1, 0.5), (10, 1, 1, 0.5), (105, 10, 5, 0.8095), (400, 40, 20, 0.95), (1000, 100, 50, 0.98)],
)
def test_schedule_is_in_tenths(updates, period, warmup, decay):
    keys = as_dict(schedule(updates))
    assert (keys["SOLVER.MAX_ITER"], keys["TEST.EVAL_PERIOD"], keys["SOLVER.CHECKPOINT_PERIOD"]) == (
        *(updates, period, period),
    )
    assert (keys["SOLVER.WARMUP_ITERS"], keys["SOLVER.EMA_DECAY"]) == (warmup, decay)


def test_a_large_model_drops_its_rate_as_the_official_code_does():
    assert as_dict(large_schedule(1000))["SOLVER.STEPS"] == (670, 890)


def test_many_names_are_drawn_for_each_prompt():
    assert [names_in_prompt(Facts(9, 9, number, 0.5)) for number in (80, 81)] == [-1, 40]
    assert names_in_prompt(Facts(9, 9, 50, 0.5, fit_prompt=False)) == 40


@pytest.mark.parametrize("recipe", [small_model_recipe, large_model_recipe])
def test_only_large_photographs_are_decoded_at_a_part_of_their_size(recipe):
    assert "INPUT.REDUCED_DECODING" not in recipe(Facts(100, 500, 3, 0.5, image_side=999)).options
    large = recipe(Facts(100, 500, 3, 0.5, image_side=3000))
    assert as_dict(large.options)["INPUT.REDUCED_DECODING"] is True and "3,000 pixels" in large.reasons[-1]


@pytest.mark.parametrize("recipe", [small_model_recipe, large_model_recipe])
def test_an_image_with_many_boxes_keeps_twice_as_many_detections(recipe):
    # COCO's 100, which the configs have, are enough for 100.
    assert "TEST.DETECTIONS_PER_IMAGE" not in recipe(Facts(9, 9, 3, 0.5, most_boxes=100)).options
    many = recipe(Facts(9, 9, 3, 0.5, most_boxes=150))
    assert as_dict(many.options)["TEST.DETECTIONS_PER_IMAGE"] == 300
    assert "the best 300 of an image, since one has 150 boxes" in many.reasons[-1]


def test_windows_of_small_objects_are_smaller_than_test_images():
    small = small_model_recipe(Facts(100, 500, 3, 0.05))
    keys = as_dict(small.options)
    assert (keys["INPUT.MIN_SIZE_TEST"], keys["INPUT.MAX_SIZE_TEST"]) == (512, 768)
    assert (keys["INPUT.MIN_SIZE_TRAIN"], keys["INPUT.MAX_SIZE_TRAIN"]) == ((256,), 384)
    large = small_model_recipe(Facts(100, 500, 3, 0.5))
    keys = as_dict(large.options)
    assert (keys["INPUT.MIN_SIZE_TEST"], keys["INPUT.MIN_SIZE_TRAIN"]) == (192, (192,))
    assert small.base_updates == large.base_updates == 1200


def test_own_images_are_tested_at_one_size_whatever_the_start_was_tested_at():
    assert as_dict(small_model_recipe(Facts(100, 500, 3, 0.5)).options)["TEST.AUG.ENABLED"] is False
