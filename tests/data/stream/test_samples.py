import itertools

import numpy as np
import pytest
from tar_shards import write_shards

from glipv2_d2.data.dataset_mappers.base import boxes_to_train_on
from glipv2_d2.data.datasets.tar_shards import expand_shard_urls
from glipv2_d2.data.stream.order import ShardEntry, StreamEntry
from glipv2_d2.data.stream.samples import StoredSamples, StreamedSamples, choose_others
from glipv2_d2.data.stream.shards import ShardSet

BOX = [{"bbox": [0, 0, 1, 1]}]


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [([{}], True), ([{"iscrowd": 0}], True), ([{"iscrowd": 1}], False), ([{"iscrowd": 1}, {}], True), ([], False)],
)
def test_a_crowd_region_is_no_box(annotations, expected):
    assert bool(boxes_to_train_on({"annotations": annotations})) is expected
    assert boxes_to_train_on({}) == []


@pytest.mark.parametrize(("count", "number", "expected"), [(20, 5, 5), (4, 5, 3), (1, 5, 0), (20, 0, 0)])
def test_others_are_different_rows_but_not_the_own_one(count, number, expected):
    for seed in range(40):
        rows = choose_others(count, 0, number, seed)
        assert len(rows) == len(set(rows)) == expected and 0 not in rows and set(rows) <= set(range(count))
    drawn = {tuple(choose_others(20, 3, 5, seed)) for seed in range(40)}
    assert len(drawn) > 35 and choose_others(20, 3, 5, 7) == choose_others(20, 3, 5, 7)


def stored(num: int, boxes: set[int], groups=None, **options) -> StoredSamples:
    dicts = [{"image_id": i, "annotations": BOX if i in boxes else [], "dataset_name": "a"} for i in range(num)]
    return StoredSamples(dicts, np.zeros(num, dtype=int) if groups is None else np.array(groups), **options)


def ids(samples: StoredSamples, index: int, seed: int = 0) -> list[int]:
    return [item["image_id"] for item in samples.candidates(StreamEntry(index, 99), seed)]


def test_replacements_have_the_group_of_the_sample_and_boxes_if_it_has_some():
    samples = stored(8, {0, 1, 2, 6}, groups=[0, 0, 0, 0, 0, 1, 1, 1])
    assert samples.is_empty.tolist() == [False, False, False, True, True, True, False, True]
    assert ids(samples, 0)[0] == 0 and sorted(ids(samples, 0)) == [0, 1, 2]
    assert ids(samples, 3)[0] == 3 and sorted(ids(samples, 3)) == [0, 1, 2, 3, 4]
    assert ids(samples, 6) == [6]


def test_replacements_are_at_most_ten_and_drawn_by_the_seed():
    samples = stored(40, set(range(40)))
    assert len(ids(samples, 5)) == len(set(ids(samples, 5))) == 11
    assert len({tuple(ids(samples, 5, seed)) for seed in range(20)}) == 20


def test_negative_captions_come_from_the_same_dataset():
    # The caption dataset "b" is there twice, with other data between.
    dicts = [
        {"dataset_name": name, "caption": f"{name}{i}", "annotations": BOX, "file_name": f"{i}.jpg"}
        for i, name in enumerate("bbabb")
    ]
    samples = StoredSamples(dicts, np.zeros(5, dtype=int), pseudo_datasets={"b"}, num_negative_captions=9)
    for index, expected in ((0, {"b1", "b3", "b4"}), (3, {"b0", "b1", "b4"})):
        candidates = list(samples.candidates(StreamEntry(index, 0), 3))
        assert set(candidates[0]["negative_captions"]) == expected
    assert "negative_captions" not in next(samples.candidates(StreamEntry(2, 0), 3))
    # A replacement has those of its own row.
    for candidate in candidates:
        if candidate["dataset_name"] == "b":
            assert candidate["caption"] not in candidate["negative_captions"]
    few = StoredSamples(dicts, np.zeros(5, dtype=int), pseudo_datasets={"b"}, num_negative_captions=1)
    chosen = {next(few.candidates(StreamEntry(0, 0), seed))["negative_captions"][0] for seed in range(30)}
    assert chosen == {"b1", "b3", "b4"}


def streamed(folder, num: int = 0, **options) -> StreamedSamples:
    urls = tuple(expand_shard_urls(write_shards(folder, [6])))
    shards = ShardSet("caps", urls, min_score=0.5, num_negative_captions=num, dataset=2, seed=3, buffer_size=4)
    return StreamedSamples({2: shards}, **options)


def test_candidates_of_a_stream_are_those_of_the_block_then_those_behind_it(tmp_path):
    samples = streamed(tmp_path)
    entry = ShardEntry(2, 50, 0, 1)
    found = list(itertools.islice(samples.candidates(entry, seed=1), 8))
    numbers = [int(item["image_id"]) for item in found]
    assert sorted(numbers[:4]) == [0, 1, 2, 3] and sorted(numbers[4:6]) == [4, 5]
    assert (
        len({tuple(item["image_id"] for item in itertools.islice(samples.candidates(entry, s), 4)) for s in range(9)})
        > 3
    )
    first = {next(samples.candidates(entry, seed))["image_id"] for seed in range(5)}
    assert first == {found[0]["image_id"]}
    assert samples.notes(entry)["stream_position"] == ("2/caps/0", [0, 0, 0, 0])
    assert samples.notes(entry._replace(ordinal=5))["stream_position"] == ("2/caps/0", [4, 0, 0, 4])


def test_negative_captions_of_a_stream_come_from_the_same_block(tmp_path):
    samples = streamed(tmp_path, num=9)
    for candidate in itertools.islice(samples.candidates(ShardEntry(2, 50, 0, 0), 1), 4):
        own = int(candidate["image_id"])
        assert set(candidate["negative_captions"]) == {f"a dog on sofa {i}" for i in range(4) if i != own}
    annotated = StreamedSamples({2: samples.shard_sets[2]._replace(num_negative_captions=0)})
    assert "negative_captions" not in next(annotated.candidates(ShardEntry(2, 50, 0, 0), 1))


def test_another_caption_of_the_same_image_is_no_negative(tmp_path):
    """Five captions of each image, as COCO and Flickr30K have them: in a file of their own, a TSV file or a shard."""
    images = [{"file_name": "0.jpg"}, {"file_name": "a.tsv", "tsv_offset": 0}, {"file_name": "a.tsv", "tsv_offset": 9}]
    images += [{"file_name": f"a.tar/{row}.jpg", "image_bytes": b"jpg"} for row in range(5)]
    places = [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3, 4, 5, 6, 7]
    dicts = [{**images[place], "dataset_name": "b", "caption": str(row)} for row, place in enumerate(places)]
    samples = StoredSamples(dicts, np.zeros(20, dtype=int), pseudo_datasets={"b"}, num_negative_captions=19)
    for row in range(20):
        (found, *_) = samples.candidates(StreamEntry(row, 0), 3)
        own = row // 5
        assert sorted(map(int, found["negative_captions"])) == [one for one in range(20) if one // 5 != own]


def test_slots_are_numbered_over_all_ranks(tmp_path):
    options = {"rank": 1, "world_size": 3, "num_slots": 2}
    samples = streamed(tmp_path, **options)
    entry = ShardEntry(2, 50, 1, 0)
    own = next(samples.candidates(entry, 0))
    assert samples.notes(entry)["stream_position"][0] == "2/caps/3"
    # Six readers of one shard with six samples: reader 3 has the fourth in the first epoch.
    assert own["image_id"] == "0003"
    later = StreamedSamples(samples.shard_sets, positions={"2/caps/3": [1, 1, 0, 0]}, **options)
    assert later.notes(entry._replace(ordinal=1))["stream_position"] == ("2/caps/3", [1, 1, 0, 0])
