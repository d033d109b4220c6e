import itertools

import pytest

from glipv2_d2.data.samplers import StreamEntry, TrainingBatchSampler, sample_seed

GROUPS = [0, 0, 1, 0, 1, 1, 0, 1, 0, 0, 0]


def batches(count: int, groups=GROUPS, batch_size=3, seed=7, **kwargs) -> list[list[StreamEntry]]:
    return list(itertools.islice(TrainingBatchSampler(groups, batch_size, seed=seed, **kwargs), count))


def test_each_epoch_draws_each_sample_once_in_another_order():
    # Batches of one leave in the order of the draws.
    drawn = [batch[0] for batch in batches(33, batch_size=1)]
    assert [entry.position for entry in drawn] == list(range(33))
    epochs = [[entry.index for entry in drawn[begin : begin + 11]] for begin in (0, 11, 22)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(11))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_batch_holds_one_group_and_full_batches_leave_first():
    drawn = batches(40)
    assert all(len({GROUPS[entry.index] for entry in batch}) == 1 and len(batch) == 3 for batch in drawn)
    assert [batch[-1].position for batch in drawn] == sorted(batch[-1].position for batch in drawn)


def test_no_draw_is_lost_between_epochs():
    # All but at most two draws of each group have left once the stream is cut.
    positions = sorted(entry.position for batch in batches(200) for entry in batch)
    assert len(set(positions)) == 600 and positions[-1] < 600 + 4


@pytest.mark.parametrize("start", [1, 3, 4, 5, 50])
@pytest.mark.parametrize("rank", [0, 1])
def test_the_stream_can_be_taken_up_at_any_batch(start, rank):
    where = {"rank": rank, "world_size": 2}
    assert batches(6, start_batch=start, **where) == batches(start + 6, **where)[start:]


@pytest.mark.parametrize("world_size", [2, 3, 16])
def test_ranks_share_the_draws_of_one_process(world_size):
    whole = {(entry.index, entry.position) for batch in batches(64, [0] * 11, 1) for entry in batch}
    parts = [
        {tuple(batch[0]) for batch in batches(64 // world_size + 1, [0] * 11, 1, rank=rank, world_size=world_size)}
        for rank in range(world_size)
    ]
    assert sum(len(part) for part in parts) == len(set.union(*parts))
    assert {entry for entry in set.union(*parts) if entry[1] < 64} == whole


def test_seeds_give_different_streams():
    assert batches(5) == batches(5)
    assert batches(5) != batches(5, seed=8)


def test_sample_seeds_differ_between_positions_and_seeds():
    assert sample_seed(0, 5) == sample_seed(0, 5)
    assert len({sample_seed(seed, position) for seed in range(20) for position in range(50)}) == 1000
    assert all(0 <= sample_seed(seed, 2**40) < 2**64 for seed in (0, 2**31))


@pytest.mark.parametrize(("groups", "batch_size"), [([], 2), ([0], 0)])
def test_nothing_to_draw_is_an_error(groups, batch_size):
    with pytest.raises(ValueError, match="expected at least 1 of both"):
        TrainingBatchSampler(groups, batch_size, seed=0)
