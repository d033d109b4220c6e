from collections import Counter

import pytest
from tar_shards import cut_tar, sample_files, write_shards, write_tar

from glipv2_d2.data.datasets import tar_shards
from glipv2_d2.data.datasets.tar_shards import expand_shard_urls
from glipv2_d2.data.stream.shards import ReadPosition, ShardSet, ShardStream


def shard_set(pattern: str | list[str], **edits) -> ShardSet:
    urls = tuple(expand_shard_urls(pattern))
    shards = ShardSet("caps", urls, min_score=0.5, num_negative_captions=0, dataset=0, seed=3, buffer_size=4)
    return shards._replace(**edits)


def number_of(dataset_dict: dict) -> int:
    return int(dataset_dict["image_id"])


def read(stream: ShardStream, count: int, start: int = 0) -> list[int]:
    """The numbers of samples start .. start + count - 1 of a stream."""
    numbers = []
    for ordinal in range(start, start + count):
        block = stream.block_of(ordinal)
        numbers.append(number_of(block.dicts[ordinal - block.begin.ordinal]))
    return numbers


def epoch_of(shards: ShardSet, epoch: int, slot: int, num_slots: int) -> list[int]:
    numbers = []
    for block in ShardStream(shards, slot, num_slots).blocks_from(ReadPosition(0, epoch, 0, 0)):
        if block.begin.epoch > epoch:
            return numbers
        numbers += [number_of(item) for item in block.dicts]


# --- splitting


@pytest.mark.parametrize("sizes", [[3, 1, 4], [5], [1, 2], [2] * 7])
@pytest.mark.parametrize("num_slots", [1, 2, 3, 5])
def test_in_an_epoch_the_slots_together_read_each_sample_once(tmp_path, sizes, num_slots):
    shards = shard_set(write_shards(tmp_path, sizes))
    for epoch in (0, 1):
        numbers = [number for slot in range(num_slots) for number in epoch_of(shards, epoch, slot, num_slots)]
        assert sorted(numbers) == list(range(sum(sizes)))


def test_each_slot_gets_data_from_fewer_shards_than_slots(tmp_path):
    # Two samples for five slots: a slot waits for its turn.
    shards = shard_set(write_shards(tmp_path, [2]))
    for slot in range(5):
        assert set(read(ShardStream(shards, slot, 5), 4)) == {0, 1}


def test_epochs_shuffle_the_shards(tmp_path):
    shards = shard_set(write_shards(tmp_path, [1] * 8))
    orders = {tuple(shards.share(epoch, 0, 1)[0]) for epoch in range(5)}
    assert len(orders) == 5
    assert shards.share(0, 0, 1) != shards._replace(seed=4).share(0, 0, 1)
    assert shards.share(0, 0, 1) != shards._replace(dataset=1).share(0, 0, 1)


# --- order


def test_blocks_are_shuffled_and_end_with_the_epoch(tmp_path):
    shards = shard_set(write_shards(tmp_path, [10]))
    stream = ShardStream(shards, 0, 1)
    blocks = [block for block, _ in zip(stream.blocks_from(ReadPosition(0, 0, 0, 0)), range(6))]
    numbers = [[number_of(item) for item in block.dicts] for block in blocks]
    expected = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [sorted(block) for block in numbers] == expected * 2
    assert numbers != expected * 2 and numbers[:3] != numbers[3:]
    assert [block.begin for block in blocks[:4]] == [
        ReadPosition(0, 0, 0, 0),
        ReadPosition(4, 0, 0, 4),
        ReadPosition(8, 0, 0, 8),
        ReadPosition(10, 1, 0, 0),
    ]
    assert blocks[1].end == blocks[2].begin and blocks[2].end == ReadPosition(10, 0, 0, 10)


def test_a_stream_is_a_function_of_seed_dataset_and_slot(tmp_path):
    shards = shard_set(write_shards(tmp_path, [6, 6]))
    numbers = read(ShardStream(shards, 0, 1), 24)
    assert read(ShardStream(shards, 0, 1), 24) == numbers
    assert read(ShardStream(shards._replace(seed=4), 0, 1), 24) != numbers
    assert read(ShardStream(shards._replace(dataset=1), 0, 1), 24) != numbers
    later = read(ShardStream(shards._replace(first_epoch=1), 0, 1), 12)
    assert later == numbers[12:]


@pytest.mark.parametrize("num_slots", [1, 2, 5])
@pytest.mark.parametrize("start", [1, 4, 13])
def test_a_stream_can_be_taken_up_at_any_sample_from_any_earlier_position(tmp_path, num_slots, start):
    shards = shard_set(write_shards(tmp_path, [3, 7, 2]))
    stream = ShardStream(shards, 0, num_slots)
    whole = read(stream, start + 6)
    assert read(ShardStream(shards, 0, num_slots), 6, start) == whole[start:]
    for ordinal in range(start):
        begin = ShardStream(shards, 0, num_slots).block_of(ordinal).begin
        assert read(ShardStream(shards, 0, num_slots, begin), 6, start) == whole[start:]
    # A position behind the sample that is asked for is of no use, and does no harm.
    late = ShardStream(shards, 0, num_slots).block_of(start + 5).begin
    assert read(ShardStream(shards, 0, num_slots, late), start + 6) == whole


def test_going_back_starts_over(tmp_path):
    stream = ShardStream(shard_set(write_shards(tmp_path, [9])), 0, 1)
    whole = read(stream, 12)
    assert read(stream, 3, 2) == whole[2:5]


def test_ascending_ordinals_read_each_file_once_and_a_position_spares_the_shards_before_it(tmp_path, monkeypatch):
    shards = shard_set(write_shards(tmp_path, [5, 5, 5, 5]))
    opened: list[str] = []
    original = tar_shards.PathManager.open
    monkeypatch.setattr(tar_shards.PathManager, "open", lambda path, mode: opened.append(path) or original(path, mode))
    stream = ShardStream(shards, 0, 1)
    read(stream, 20)
    assert Counter(opened) == Counter(shards.urls)
    begin = stream.block_of(17).begin
    opened.clear()
    read(ShardStream(shards, 0, 1, begin), 1, 17)
    assert opened == shards.share(0, 0, 1)[0][-1:]


def test_skipping_decodes_no_image(tmp_path, monkeypatch):
    shards = shard_set(write_shards(tmp_path, [6]))
    monkeypatch.setattr("PIL.Image.open", lambda *args, **kwargs: pytest.fail("an image was opened"))
    assert len(read(ShardStream(shards, 0, 1), 3, start=40)) == 3


# --- what is left out


def test_records_that_cannot_be_used_are_passed_over_and_counted(tmp_path):
    files: dict[str, bytes] = {}
    for number in range(6):
        files |= sample_files(number, score=0.4 if number == 1 else 0.9)
    files["0002.json"] = b"{"
    files["0003.json"] = files["0003.json"].replace(b"[9, 13]", b"[9, 99]")
    del files["0004.png"]
    shards = shard_set(str(write_tar(tmp_path / "s.tar", files)), buffer_size=10)
    stream = ShardStream(shards, 0, 1)
    assert sorted(read(stream, 3)) == [0, 3, 5]
    report = stream.take_report()
    assert report["dropped"] == {"records": 2, "records_without_boxes": 1, "regions": 1}
    assert [line.split(": ")[1] for line in report["skipped_records"]] == ["'0002'", "'0003'", "'0004'"]
    assert report["damaged_shards"] == []
    assert stream.take_report() == {"damaged_shards": [], "skipped_records": [], "dropped": {}}
    assert ShardStream(shards._replace(min_score=0.0), 0, 1).block_of(0).end.ordinal == 4


def test_only_the_first_few_records_are_named_but_all_are_counted(tmp_path):
    files = {f"b{i}.json": b"{" for i in range(40)}
    stream = ShardStream(shard_set(str(write_tar(tmp_path / "s.tar", {**files, **sample_files(1)}))), 0, 1)
    assert read(stream, 1) == [1]
    report = stream.take_report()
    assert report["dropped"] == {"records": 40} and len(report["skipped_records"]) == 5


@pytest.mark.parametrize(
    ("name", "num_bytes", "num_whole"), [("0002.png", 100, 2), ("0002.json", 9, 2), ("0003.png", 0, 3)]
)
def test_a_truncated_shard_gives_its_whole_samples_and_is_named(tmp_path, name, num_bytes, num_whole):
    pattern = write_shards(tmp_path, [4, 4])
    cut_tar(tmp_path / "caps-000.tar", name, num_bytes)
    stream = ShardStream(shard_set(pattern, buffer_size=50), 0, 1)
    numbers = sorted(number_of(item) for item in stream.block_of(0).dicts)
    assert numbers == [*range(num_whole), 4, 5, 6, 7]
    report = stream.take_report()
    (line,) = report["damaged_shards"]
    # The piece of one more sample is no malformed record.
    assert "caps-000.tar" in line and not report["dropped"] and not report["skipped_records"]


def test_a_missing_or_broken_shard_costs_only_itself(tmp_path):
    pattern = write_shards(tmp_path, [3, 3, 3])
    (tmp_path / "caps-000.tar").unlink()
    (tmp_path / "caps-001.tar").write_bytes(b"?" * 3000)
    stream = ShardStream(shard_set(pattern), 0, 1)
    assert sorted(read(stream, 3)) == [6, 7, 8]
    read(stream, 6)
    assert len(stream.take_report()["damaged_shards"]) == 2


def test_shards_without_a_usable_sample_are_an_error(tmp_path):
    pattern = write_shards(tmp_path, [2, 2], score=0.3)
    with pytest.raises(
        ValueError, match="'caps': expected usable samples in its 2 shards, found none: no record has a box with a suff"
    ):
        ShardStream(shard_set(pattern), 0, 1).check()
    with pytest.raises(
        ValueError, match="'caps': expected usable samples .* found none in 100 epochs of reader 1 of 3 .*NUM_WORKERS"
    ):
        ShardStream(shard_set(pattern), 1, 3).block_of(0)
    assert ShardStream(shard_set(pattern, min_score=0.3), 0, 1).check() is None
    (tmp_path / "caps-000.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="2 shards, found none: .*caps-000.tar: empty file"):
        ShardStream(shard_set(pattern), 0, 1).check()


def test_the_check_reads_no_further_than_the_first_sample(tmp_path, monkeypatch):
    shards = shard_set(write_shards(tmp_path, [2, 2, 2]))
    opened: list[str] = []
    original = tar_shards.PathManager.open
    monkeypatch.setattr(tar_shards.PathManager, "open", lambda path, mode: opened.append(path) or original(path, mode))
    ShardStream(shards, 0, 1).check()
    assert len(opened) == 1
