import functools
import itertools
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from glipv2_d2.data.stream.order import (
    ROUND_LENGTH,
    ShardEntry,
    StreamEntry,
    TrainingBatchSampler,
    draw_by_ratio,
    draw_by_size,
    sample_seed,
    shard_draw,
)

# --- draws


def first(draws, count: int) -> list[int]:
    taken: list[int] = []
    for piece in draws:
        taken += piece.tolist()
        if len(taken) >= count:
            return taken[:count]


DRAWN = [np.arange(10), np.arange(10, 13), np.array([-3])]


def test_by_size_an_epoch_draws_each_member_once_in_another_order():
    # Many epochs, to see several pieces.
    drawn = first(draw_by_size(DRAWN, seed=1), 14 * 200)
    epochs = [drawn[begin : begin + 14] for begin in range(0, len(drawn), 14)]
    assert all(sorted(epoch) == [-3, *range(13)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 200
    assert first(draw_by_size(DRAWN, 1), 20) == first(draw_by_size(DRAWN, 1), 20)
    assert first(draw_by_size(DRAWN, 2), 20) != first(draw_by_size(DRAWN, 1), 20)


@pytest.mark.parametrize("ratios", [[1, 1, 2], [0.5, 0.3, 0.2], [1e-4, 1, 3]])
def test_by_ratio_each_round_has_the_shares_to_within_one_draw(ratios):
    for piece in itertools.islice(draw_by_ratio(DRAWN, ratios, seed=5), 4):
        assert len(piece) == ROUND_LENGTH
        counts = [np.isin(piece, own).sum() for own in DRAWN]
        assert counts == pytest.approx([ROUND_LENGTH * ratio / sum(ratios) for ratio in ratios], abs=1)


def test_by_ratio_a_small_share_is_drawn_now_and_then():
    pieces = itertools.islice(draw_by_ratio(DRAWN, [1e-4, 1, 3], seed=0), 60)
    # 8192 * 1e-4 / 4 = 0.2 of them in a round.
    assert 4 <= sum(int((piece < 10).sum() - (piece == -3).sum()) for piece in pieces) <= 24


def test_by_ratio_datasets_are_mixed_everywhere():
    (piece,) = itertools.islice(draw_by_ratio(DRAWN, [1, 1, 2], seed=3), 1)
    for part in np.split(piece[:8000], 20):
        assert 130 < (part == -3).sum() < 270


def test_by_ratio_a_dataset_goes_round_once_in_each_pass():
    drawn = [index for index in first(draw_by_ratio(DRAWN, [1, 1, 2], seed=3), 2 * ROUND_LENGTH) if 0 <= index < 10]
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


# --- batches

GROUPS = [0, 0, 1, 0, 1, 1, 0, 1, 0, 0, 0]


def batches(count: int, groups=GROUPS, batch_size=3, seed=7, draw=None, **kwargs) -> list[list]:
    draw = draw or functools.partial(draw_by_size, [np.arange(len(groups))], seed)
    return list(itertools.islice(TrainingBatchSampler(draw, groups, batch_size, seed=seed, **kwargs), count))


def test_each_epoch_draws_each_sample_once_in_another_order():
    # Batches of one leave in the order of the draws.
    drawn = [batch[0] for batch in batches(33, batch_size=1)]
    assert [entry.position for entry in drawn] == list(range(33))
    epochs = [[entry.row for entry in drawn[begin : begin + 11]] for begin in (0, 11, 22)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(11))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_batch_holds_one_group_and_full_batches_leave_first():
    drawn = batches(40)
    assert all(len({GROUPS[entry.row] for entry in batch}) == 1 and len(batch) == 3 for batch in drawn)
    assert [batch[-1].position for batch in drawn] == sorted(batch[-1].position for batch in drawn)


def test_no_draw_is_lost_between_epochs():
    # All but at most two draws of each group have left once the stream is cut.
    positions = sorted(entry.position for batch in batches(200) for entry in batch)
    assert len(set(positions)) == 600 and positions[-1] < 600 + 4


@pytest.mark.parametrize("world_size", [2, 3, 16])
def test_ranks_share_the_draws_of_one_process(world_size):
    whole = {(entry.row, entry.position) for batch in batches(64, [0] * 11, 1) for entry in batch}
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


def test_a_batch_without_samples_is_an_error():
    with pytest.raises(ValueError, match="batch_size: expected at least 1, found 0"):
        batches(1, batch_size=0)


# --- samples without boxes

IS_EMPTY = [True] * 8 + [False] * 3


def test_no_batch_of_all_ranks_holds_only_empty_images():
    plain, drawn = batches(100), batches(100, is_empty=IS_EMPTY)
    num_redrawn = 0
    for before, batch in zip(plain, drawn):
        assert not all(IS_EMPTY[entry.row] for entry in batch)
        if before != batch:
            num_redrawn += 1
            earliest = min(range(3), key=lambda row: before[row].position)
            assert [entry.position for entry in batch] == [entry.position for entry in before]
            changed = [row for row in range(3) if before[row] != batch[row]]
            assert changed == [earliest] and all(IS_EMPTY[entry.row] for entry in before)
    assert num_redrawn > 10


def test_a_redraw_stays_in_its_group_if_that_has_boxes():
    drawn = batches(100, is_empty=IS_EMPTY)
    # Group 1 has no sample with a box, so that one of group 0 helps out.
    groups = [[GROUPS[entry.row] for entry in batch] for batch in drawn]
    assert [0, 0, 0] in groups
    assert {sum(batch) for batch in groups} == {0, 2}


def test_a_redraw_depends_on_seed_and_position():
    stay_empty = [True] * 10 + [False]
    is_empty = [True] * 4 + [False] * 7
    replacements = [
        batch[0].row
        for before, batch in zip(batches(300, [0] * 11, 1), batches(300, [0] * 11, 1, is_empty=is_empty))
        if before != batch
    ]
    assert set(replacements) == set(range(4, 11))
    assert {batch[0].row for batch in batches(20, [0] * 11, 1, is_empty=stay_empty)} == {10}
    assert batches(50, is_empty=is_empty) == batches(50, is_empty=is_empty)


def test_ranks_together_redraw_as_one_process():
    one = batches(60, [0] * 11, 4, is_empty=IS_EMPTY)
    ranks = [batches(60, [0] * 11, 2, is_empty=IS_EMPTY, rank=rank, world_size=2) for rank in (0, 1)]
    assert [sorted(batch) for batch in one] == [sorted(a + b) for a, b in zip(*ranks)]
    # A rank alone may have only empty images.
    assert any(all(IS_EMPTY[entry.row] for entry in batch) for batch in ranks[0])
    assert one != batches(60, [0] * 11, 4)


def test_images_without_any_box_are_an_error():
    with pytest.raises(ValueError, match="TRAIN: expected an image with a box, found 11 without any"):
        batches(1, is_empty=[True] * 11)


def test_a_stream_helps_out_where_no_stored_image_has_a_box():
    draw = functools.partial(draw_by_size, [np.arange(11), np.array([shard_draw(1)] * 2)], 7)
    drawn = batches(60, [0] * 11, 2, draw=draw, is_empty=[True] * 11, streamed=[1])
    assert all(any(isinstance(entry, ShardEntry) for entry in batch) for batch in drawn)
    assert {entry.dataset for batch in drawn for entry in batch if isinstance(entry, ShardEntry)} == {1}
    # Each of them takes the next sample of the stream.
    ordinals = [entry.ordinal for batch in drawn for entry in batch if isinstance(entry, ShardEntry)]
    assert sorted(ordinals) == list(range(len(ordinals)))


# --- streamed datasets

SHARDS = shard_draw(1), shard_draw(3)
MEMBERS = [np.arange(11), np.array([SHARDS[0]]), np.array([SHARDS[1]])]


def mixed(count: int, **kwargs) -> list[list]:
    draw = functools.partial(draw_by_ratio, MEMBERS, [2, 1, 1], 7)
    return batches(count, draw=draw, shard_group=1, **kwargs)


def shard_entries(drawn: list[list]) -> list[tuple[int, ShardEntry]]:
    entries = [(number, entry) for number, batch in enumerate(drawn) for entry in batch]
    return [(number, entry) for number, entry in entries if isinstance(entry, ShardEntry)]


def test_shard_draws_number_the_samples_of_each_slot():
    drawn = mixed(50, num_slots=3)
    counts: Counter = Counter()
    for number, entry in shard_entries(drawn):
        assert entry.slot == number % 3 and entry.dataset in (1, 3)
        assert entry.ordinal == counts[entry.dataset, entry.slot]
        counts[entry.dataset, entry.slot] += 1
    assert len(counts) == 6
    positions = [entry.position for batch in drawn for entry in batch]
    assert len(set(positions)) == 150


def test_streamed_and_stored_samples_share_batches_of_one_group():
    drawn = mixed(60)
    groups = [[1 if isinstance(e, ShardEntry) else GROUPS[e.row] for e in batch] for batch in drawn]
    assert all(len(set(batch)) == 1 for batch in groups)
    kinds = [{type(entry) for entry in batch} for batch in drawn]
    assert {StreamEntry, ShardEntry} in kinds and {StreamEntry} in kinds


def test_stored_samples_do_not_depend_on_the_slots():
    one, three = mixed(40), mixed(40, num_slots=3)
    for before, batch in zip(one, three):
        assert [e.position for e in before] == [e.position for e in batch]
        assert [e for e in before if isinstance(e, StreamEntry)] == [e for e in batch if isinstance(e, StreamEntry)]


@pytest.mark.parametrize("start", [10, 14, 23])
def test_ordinals_can_be_counted_from_a_later_batch(start):
    whole = mixed(40, num_slots=2)
    before = Counter((entry.dataset, entry.slot) for number, entry in shard_entries(whole) if number < 10)
    drawn = mixed(40 - start, num_slots=2, start_batch=start, first_shard_batch=10)
    expected = [
        [e._replace(ordinal=e.ordinal - before[e.dataset, e.slot]) if isinstance(e, ShardEntry) else e for e in batch]
        for batch in whole[start:]
    ]
    assert drawn == expected


def test_a_streamed_sample_counts_as_one_with_boxes():
    only_last = [True] * 10 + [False]
    options = {"groups": [1] * 11}
    plain, drawn = mixed(80, **options), mixed(80, is_empty=only_last, **options)
    for before, batch in zip(plain, drawn):
        if any(isinstance(entry, ShardEntry) for entry in before):
            assert batch == before
        else:
            assert 10 in [entry.row for entry in batch]
    assert plain != drawn


def test_streams_need_no_stored_samples():
    draw = functools.partial(draw_by_size, [np.full(5, shard_draw(0))], 1)
    drawn = batches(3, groups=[], batch_size=2, draw=draw)
    assert [entry.ordinal for batch in drawn for entry in batch] == list(range(6))


# --- several kinds of samples

KINDS = [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
OWN_GROUPS = [0, 1, 0, 1, 0, 2, 3, 2, 4, 4, 4]


def test_one_kind_changes_nothing():
    for rank in (0, 1):
        options = {"rank": rank, "world_size": 2, "is_empty": IS_EMPTY}
        for kind in (0, 3):
            assert batches(40, kinds=[kind] * 11, **options) == batches(40, **options)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_batches_of_all_ranks_hold_one_group(world_size):
    options = {"kinds": KINDS, "world_size": world_size}
    ranks = [batches(60, OWN_GROUPS, 2, rank=rank, **options) for rank in range(world_size)]
    seen = set()
    for parts in zip(*ranks):
        assert all(len(part) == 2 for part in parts)
        (group,) = {OWN_GROUPS[entry.row] for part in parts for entry in part}
        seen.add(group)
    assert seen == {0, 1, 2, 3, 4}


def test_ranks_share_the_batches_of_one_process_that_has_them_all():
    whole = batches(40, OWN_GROUPS, 6, kinds=KINDS)
    ranks = [batches(40, OWN_GROUPS, 2, kinds=KINDS, rank=rank, world_size=3) for rank in range(3)]
    assert [[batch[rank::3] for batch in whole] for rank in range(3)] == ranks


STREAMS = {
    "plain": (batches, {}),
    "redraws": (batches, {"is_empty": IS_EMPTY}),
    **{f"shards in {number} slots": (mixed, {"num_slots": number}) for number in (1, 2, 4)},
    "kinds": (batches, {"groups": OWN_GROUPS, "kinds": KINDS, "is_empty": [True] * 3 + [False] * 8}),
}


@pytest.mark.parametrize(("make", "options"), STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("start", [1, 2, 3, 4, 5, 7, 9, 40, 50, 500])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stream_resumes_at_any_batch(make, options, start, rank):
    options = {**options, "rank": rank, "world_size": 2}
    assert make(6, start_batch=start, **options) == make(start + 6, **options)[start:]


def test_a_redraw_stays_in_its_kind():
    # Group 0 has no sample with a box; of the same kind only number 3 has one.
    is_empty = [True, True, True, False, True] + [False] * 6
    drawn = batches(80, OWN_GROUPS, 2, kinds=KINDS, is_empty=is_empty, world_size=2)
    plain = batches(80, OWN_GROUPS, 2, kinds=KINDS, world_size=2)
    changed = [
        (before.row, after.row)
        for whole, redrawn in zip(plain, drawn)
        for before, after in zip(whole, redrawn)
        if before != after
    ]
    assert len(changed) > 5 and {after for _, after in changed} == {3}
    assert {before for before, _ in changed} <= {0, 1, 2, 4}


def test_a_kind_without_any_box_that_needs_boxes_is_an_error():
    with pytest.raises(ValueError, match="TRAIN: expected an image with a box, found 5 without any"):
        batches(1, OWN_GROUPS, kinds=KINDS, is_empty=[kind == 0 for kind in KINDS])


def test_streamed_samples_are_of_the_first_kind():
    draw = functools.partial(draw_by_ratio, [np.arange(5, 8), np.array([shard_draw(1)])], [1, 1], 7)
    groups = [0] * 5 + [2] * 6
    ranks = [
        batches(40, groups, 2, draw=draw, kinds=[0] * 5 + [1] * 6, streamed=[1], rank=rank, world_size=2)
        for rank in (0, 1)
    ]
    for parts in zip(*ranks):
        assert len({isinstance(entry, ShardEntry) for part in parts for entry in part}) == 1
    # Questions alone in memory, boxes alone in streams: two kinds, though no stored sample is of the first.
    draw = functools.partial(draw_by_ratio, [np.arange(3), np.array([shard_draw(1)])], [1, 1], 7)
    options = {"draw": draw, "kinds": [1] * 3, "shard_group": 5, "streamed": [1], "world_size": 2}
    stored = [batches(40, [0] * 3, 2, rank=rank, **options) for rank in (0, 1)]
    for parts in zip(*stored):
        assert len({isinstance(entry, ShardEntry) for part in parts for entry in part}) == 1


def test_an_epoch_takes_no_python_objects_for_its_draws():
    """Twice 8 bytes a draw are needed; a list of two numbers takes another 136."""
    draws = np.arange(100_000)
    batches = iter(TrainingBatchSampler(lambda: iter([draws]), np.zeros(len(draws), dtype=int), 4, seed=0))
    tracemalloc.start()
    try:
        next(batches)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 120 * len(draws)
