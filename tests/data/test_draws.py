import itertools
from collections import Counter

import numpy as np
import pytest

from glipv2_d2.data.draws import ROUND_LENGTH, check_ratios, draw_by_ratio, draw_by_size


def first(draws, count: int) -> list[int]:
    taken: list[int] = []
    for piece in draws:
        taken += piece.tolist()
        if len(taken) >= count:
            return taken[:count]


MEMBERS = [np.arange(10), np.arange(10, 13), np.array([-3])]


def test_by_size_an_epoch_draws_each_member_once_in_another_order():
    # Many epochs, to see several pieces.
    drawn = first(draw_by_size(MEMBERS, seed=1), 14 * 200)
    epochs = [drawn[begin : begin + 14] for begin in range(0, len(drawn), 14)]
    assert all(sorted(epoch) == [-3, *range(13)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 200
    assert first(draw_by_size(MEMBERS, 1), 20) == first(draw_by_size(MEMBERS, 1), 20)
    assert first(draw_by_size(MEMBERS, 2), 20) != first(draw_by_size(MEMBERS, 1), 20)


@pytest.mark.parametrize("ratios", [[1, 1, 2], [0.5, 0.3, 0.2], [1e-4, 1, 3]])
def test_by_ratio_each_round_has_the_shares_to_within_one_draw(ratios):
    for piece in itertools.islice(draw_by_ratio(MEMBERS, ratios, seed=5), 4):
        assert len(piece) == ROUND_LENGTH
        counts = [np.isin(piece, own).sum() for own in MEMBERS]
        assert counts == pytest.approx([ROUND_LENGTH * ratio / sum(ratios) for ratio in ratios], abs=1)


def test_by_ratio_a_small_share_is_drawn_now_and_then():
    pieces = itertools.islice(draw_by_ratio(MEMBERS, [1e-4, 1, 3], seed=0), 60)
    # 8192 * 1e-4 / 4 = 0.2 of them in a round.
    assert 4 <= sum(int((piece < 10).sum() - (piece == -3).sum()) for piece in pieces) <= 24


def test_by_ratio_datasets_are_mixed_everywhere():
    (piece,) = itertools.islice(draw_by_ratio(MEMBERS, [1, 1, 2], seed=3), 1)
    for part in np.split(piece[:8000], 20):
        assert 130 < (part == -3).sum() < 270


def test_by_ratio_a_dataset_goes_round_once_in_each_pass():
    drawn = [index for index in first(draw_by_ratio(MEMBERS, [1, 1, 2], seed=3), 2 * ROUND_LENGTH) if 0 <= index < 10]
    passes = [tuple(drawn[begin : begin + 10]) for begin in range(0, len(drawn) - 9, 10)]
    assert all(Counter(one) == Counter(range(10)) for one in passes)
    assert len(set(passes)) > 0.99 * len(passes)


def test_by_ratio_seeds_and_datasets_differ():
    twins = [np.arange(50), np.arange(50, 100)]
    drawn = first(draw_by_ratio(twins, [1, 1], seed=3), 400)
    assert drawn == first(draw_by_ratio(twins, [2.0, 2.0], seed=3), 400)
    assert drawn != first(draw_by_ratio(twins, [1, 1], seed=4), 400)
    own = [[index % 50 for index in drawn if index // 50 == dataset][:40] for dataset in (0, 1)]
    assert own[0] != own[1]


@pytest.mark.parametrize("ratios", [[], [1, 2], [0.5, 1e-9]])
def test_ratios_fit_the_datasets(ratios):
    assert check_ratios(ratios, 2) is None


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ([1], "has 1 numbers, expected one for each of the 2 datasets"),
        ([1, 0], "holds 0, expected finite numbers above 0"),
        ([1, -2.5], "holds -2.5"),
        ([float("nan"), 1], "holds nan"),
        ([1, float("inf")], "holds inf"),
        ([1, "2"], "holds '2'"),
        ([True, 1], "holds True"),
    ],
)
def test_ratios_that_cannot_be_are_named(ratios, message):
    with pytest.raises(ValueError, match="DATASETS.TRAIN_RATIOS " + message):
        check_ratios(ratios, 2)
