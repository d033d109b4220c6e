import json
import logging
from collections import Counter

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from tar_shards import cut_tar, png, record, sample_files, write_shards, write_tar

from glipv2_d2.data import tar_stream
from glipv2_d2.data.datasets.grounding_records import EntryError
from glipv2_d2.data.datasets.shards import read_shard_sample, register_shards, shard_urls_of
from glipv2_d2.data.shards import ShardSet, ShardStream, StreamPlace
from glipv2_d2.data.tar_stream import TarSample, expand_shard_urls


def shard_set(pattern: str | list[str], **edits) -> ShardSet:
    urls = tuple(expand_shard_urls(pattern))
    return ShardSet("caps", "pseudo_grounding", urls, min_score=0.5, dataset=0, seed=3, buffer_size=4)._replace(**edits)


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
    for block in ShardStream(shards, slot, num_slots).blocks_from(StreamPlace(0, epoch, 0, 0)):
        if block.begin.epoch > epoch:
            return numbers
        numbers += [number_of(item) for item in block.dicts]


# --- registration and reading


@pytest.fixture
def registered():
    """A function that registers shards under the name "caps"."""

    def register(*args, **kwargs) -> str:
        register_shards("caps", *args, **kwargs)
        return "caps"

    yield register
    if "caps" in DatasetCatalog:
        DatasetCatalog.remove("caps")
        MetadataCatalog.remove("caps")


def test_registration_expands_and_opens_nothing(registered):
    name = registered("nowhere/{b,a}.tar", num_samples=7, source="web")
    metadata = MetadataCatalog.get(name)
    assert metadata.shard_urls == ["nowhere/a.tar", "nowhere/b.tar"]
    assert (metadata.task, metadata.num_samples, metadata.source) == ("pseudo_grounding", 7, "web")
    with pytest.raises(FileNotFoundError, match="'caps': shard nowhere/a.tar does not exist"):
        shard_urls_of(name)
    with pytest.raises(ValueError, match="registered already"):
        registered("a.tar")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "detection"}, r"'caps': task is 'detection', expected one of \['pseudo_grounding', 'grounding'\]"),
        ({"num_samples": 0}, "'caps': num_samples is 0, expected a positive integer"),
        ({"num_samples": 2.0}, "num_samples is 2.0"),
        ({"urls": "a-{0.tar"}, "'caps': shards 'a-{0.tar'"),
    ],
)
def test_arguments_that_cannot_be_are_named(registered, options, message):
    with pytest.raises(ValueError, match=message):
        registered(**{"urls": "a.tar", **options})
    assert "caps" not in DatasetCatalog


def test_the_catalog_gives_all_samples_and_counts_what_it_leaves_out(registered, tmp_path, caplog):
    pattern = write_shards(tmp_path, [2, 2])
    cut_tar(tmp_path / "caps-001.tar", "0003.png", 100)
    files = {**sample_files(7), "bad.json": b"{", "bad.png": b""}
    write_tar(tmp_path / "caps-002.tar", files)
    name = registered(pattern.replace("001}", "002}"))
    with caplog.at_level(logging.WARNING):
        dicts = DatasetCatalog.get(name)
    assert [number_of(item) for item in dicts] == [0, 1, 2, 7]
    (message,) = caplog.messages
    assert message.startswith("dataset 'caps': left out 2 records, boxes or ends of shards, such as ")
    assert "caps-001.tar: unexpected end of data" in message and "caps-002.tar: 'bad'" in message


def test_a_sample_becomes_a_dataset_dict(tmp_path):
    content = record(5)
    files = {"png": png(5), "json": json.dumps(content).encode(), "cls": b"\x80\x04never read"}
    dataset_dict, left_out = read_shard_sample(TarSample("x/0005", files, False), "a/b.tar")
    annotations = dataset_dict.pop("annotations")
    assert dataset_dict == {
        "file_name": "a/b.tar/x/0005.png",
        "image_id": "x/0005",
        "image_bytes": files["png"],
        "height": 48,
        "width": 64,
        "caption": "a dog on sofa 5",
    }
    assert [(list(item["bbox"]), item["score"]) for item in annotations] == [
        ([4, 6, 24, 16], 0.9),
        ([20, 20, 60, 40], 0.9),
    ]
    assert [[list(span) for span in item["tokens_positive"]] for item in annotations] == [[[0, 5]], [[9, 13]]]
    assert left_out == []


def test_a_bad_box_is_left_out_with_its_place():
    content = record(5)
    content["grounding"]["regions"][0]["bbox"] = [float("nan"), 1, 2, 3]
    files = {"jpg": b"", "json": json.dumps(content).encode()}
    dataset_dict, (line,) = read_shard_sample(TarSample("k", files, False), "b.tar")
    assert len(dataset_dict["annotations"]) == 1 and line.startswith("b.tar: 'k': ") and "nan" in line


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"json": b"{}"}, r"b.tar: 'k': holds files \['json'\], expected an image"),
        ({"jpg": b""}, r"holds files \['jpg'\], expected json"),
        ({"jpg": b"", "json": b"{"}, "b.tar: 'k': "),
        ({"jpg": b"", "json": b"\xff\xfe\x00"}, "b.tar: 'k': "),
        ({"jpg": b"", "json": b"[" * 100_000}, "b.tar: 'k': "),
        ({"jpg": b"", "json": b"[]"}, "b.tar: 'k': "),
        ({"jpg": b"", "json": json.dumps({"height": 4, "width": 4}).encode()}, "'k': grounding is None"),
    ],
)
def test_a_sample_that_cannot_be_used_is_named(files, message):
    with pytest.raises(EntryError, match=message) as info:
        read_shard_sample(TarSample("k", files, False), "b.tar")
    assert "\n" not in str(info.value)


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
    blocks = [block for block, _ in zip(stream.blocks_from(StreamPlace(0, 0, 0, 0)), range(6))]
    numbers = [[number_of(item) for item in block.dicts] for block in blocks]
    expected = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [sorted(block) for block in numbers] == expected * 2
    assert numbers != expected * 2 and numbers[:3] != numbers[3:]
    assert [block.begin for block in blocks[:4]] == [
        StreamPlace(0, 0, 0, 0),
        StreamPlace(4, 0, 0, 4),
        StreamPlace(8, 0, 0, 8),
        StreamPlace(10, 1, 0, 0),
    ]
    assert blocks[1].end == blocks[2].begin and blocks[2].end == StreamPlace(10, 0, 0, 10)


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
def test_a_stream_can_be_taken_up_at_any_sample_from_any_earlier_place(tmp_path, num_slots, start):
    shards = shard_set(write_shards(tmp_path, [3, 7, 2]))
    stream = ShardStream(shards, 0, num_slots)
    whole = read(stream, start + 6)
    assert read(ShardStream(shards, 0, num_slots), 6, start) == whole[start:]
    for ordinal in range(start):
        place = ShardStream(shards, 0, num_slots).block_of(ordinal).begin
        assert read(ShardStream(shards, 0, num_slots, place), 6, start) == whole[start:]
    # A place behind the sample that is asked for is of no use, and does no harm.
    late = ShardStream(shards, 0, num_slots).block_of(start + 5).begin
    assert read(ShardStream(shards, 0, num_slots, late), start + 6) == whole


def test_going_back_starts_over(tmp_path):
    stream = ShardStream(shard_set(write_shards(tmp_path, [9])), 0, 1)
    whole = read(stream, 12)
    assert read(stream, 3, 2) == whole[2:5]


def test_ascending_ordinals_read_each_file_once_and_a_place_spares_the_shards_before_it(tmp_path, monkeypatch):
    shards = shard_set(write_shards(tmp_path, [5, 5, 5, 5]))
    opened: list[str] = []
    original = tar_stream.PathManager.open
    monkeypatch.setattr(tar_stream.PathManager, "open", lambda path, mode: opened.append(path) or original(path, mode))
    stream = ShardStream(shards, 0, 1)
    read(stream, 20)
    assert Counter(opened) == Counter(shards.urls)
    place = stream.block_of(17).begin
    opened.clear()
    read(ShardStream(shards, 0, 1, place), 1, 17)
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
    with pytest.raises(ValueError, match="'caps': found no usable sample in 2 shards: no record has a box with a suff"):
        ShardStream(shard_set(pattern), 0, 1).check()
    with pytest.raises(ValueError, match="'caps': found no usable sample in 100 epochs of reader 1 of 3 .*NUM_WORKERS"):
        ShardStream(shard_set(pattern), 1, 3).block_of(0)
    assert ShardStream(shard_set(pattern, min_score=0.3), 0, 1).check() is None
    (tmp_path / "caps-000.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="2 shards: .*caps-000.tar: empty file"):
        ShardStream(shard_set(pattern), 0, 1).check()


def test_the_check_reads_no_further_than_the_first_sample(tmp_path, monkeypatch):
    shards = shard_set(write_shards(tmp_path, [2, 2, 2]))
    opened: list[str] = []
    original = tar_stream.PathManager.open
    monkeypatch.setattr(tar_stream.PathManager, "open", lambda path, mode: opened.append(path) or original(path, mode))
    ShardStream(shards, 0, 1).check()
    assert len(opened) == 1
