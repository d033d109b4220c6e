import numpy as np
import pytest

from glipv2_d2.data.stream.training_sets import TrainingSets, check_ratios


@pytest.mark.parametrize("ratios", [[], [1, 2], [0.5, 1e-9]])
def test_ratios_fit_the_datasets(ratios):
    assert check_ratios("DATASETS.TRAIN_RATIOS", ratios, 2) is None


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ([1], "expected one number for each of the 2 datasets of DATASETS.TRAIN, or none, found 1"),
        ([1, 0], "expected finite numbers above 0, found 0"),
        ([1, -2.5], "expected finite numbers above 0, found -2.5"),
        ([float("nan"), 1], "expected finite numbers above 0, found nan"),
        ([1, float("inf")], "expected finite numbers above 0, found inf"),
        ([1, "2"], "expected finite numbers above 0, found '2'"),
        ([True, 1], "expected finite numbers above 0, found True"),
    ],
)
def test_ratios_that_cannot_be_are_named(ratios, message):
    with pytest.raises(ValueError, match="DATASETS.TRAIN_RATIOS: " + message):
        check_ratios("DATASETS.TRAIN_RATIOS", ratios, 2)


@pytest.mark.parametrize(
    ("widths", "by_aspect_ratio", "expected"),
    [
        ([64, 32, 64], True, ([1, 0, 1], 1)),
        ([32, 32, 64], True, ([0, 0, 1], 0)),
        ([64, 32], True, ([1, 0], 1)),
        ([48], True, ([0], 0)),
        ([], True, ([], 0)),
        ([64, 32], False, ([0, 0], 0)),
    ],
)
def test_streamed_images_go_with_the_larger_group(widths, by_aspect_ratio, expected):
    dicts = [{"width": width, "height": 48} for width in widths]
    groups, shard_group = TrainingSets(dicts, {}, [], [], np.zeros(len(dicts), dtype=int)).groups(by_aspect_ratio)
    assert (groups.tolist(), shard_group) == expected


def test_images_of_unknown_size_count_as_upright():
    dicts = [{"width": 64, "height": 48}, {}, {"width": 48, "height": 64}]
    sets = TrainingSets(dicts, {}, [], [], np.array([0, 3, 3]))
    groups, shard_group = sets.groups(True)
    assert groups.tolist() == [1, 6, 6] and shard_group == 1
    assert sets._replace(kinds=np.array([1, 3, 3])).groups(True) == (pytest.approx([3, 6, 6]), 0)
