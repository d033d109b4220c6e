import pytest

from glipv2_d2.likeness import did_you_mean, likeliest

KEYS = ("SOLVER.BASE_LR", "SOLVER.BASE_LR_END", "SOLVER.MAX_ITER", "MODEL.DEVICE", "TEST.AUG.MAX_SIZE")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        # Letters of both: 2 * 13 / 27 and 2 * 13 / 31, both of the last part alike.
        ("SOLVER.BASELR", ["SOLVER.BASE_LR", "SOLVER.BASE_LR_END"]),
        ("max_iter", ["SOLVER.MAX_ITER"]),
        ("MODEL.SOLVER.MAX_ITER", ["SOLVER.MAX_ITER"]),
        ("zzz", []),
    ],
)
def test_names_come_in_the_order_of_their_likeness(word, expected):
    assert likeliest(word, KEYS)[: len(expected)] == expected
    assert bool(likeliest(word, KEYS)) == bool(expected)


def test_at_most_three_names_and_none_without_likeness():
    assert likeliest("SEED", ["SEED4", "SEED2", "SEED3", "SEED1"]) == ["SEED1", "SEED2", "SEED3"]
    assert did_you_mean("zzz", KEYS) == "" == did_you_mean("SEED", [])
    assert did_you_mean("MODEL.DEVISE", ["MODEL.DEVICE"]) == "; did you mean MODEL.DEVICE?"
