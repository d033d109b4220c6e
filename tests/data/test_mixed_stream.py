"""The training stream over stored and streamed datasets of all three kinds."""

import itertools
import logging
from collections import Counter
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils import comm
from tar_shards import cut_tar, png, write_shards, write_tar

from glipv2_d2.data import build_train_loader, register_shards
from glipv2_d2.data.image_reading import UnreadableImageError
from glipv2_d2.data.loading import load_training_dicts
from glipv2_d2.data.stream.state import NotedConfig
from glipv2_d2.data.stream.training_sets import load_training_sets

CAPTIONS = [f"a dog beside tree {number}" for number in range(8)]


def take(loader, count: int) -> list[list[dict]]:
    return list(itertools.islice(loader, count))


def fingerprint(sample: dict) -> tuple:
    prompt, instances = sample["prompts"][0], sample["instances"]
    tensors = (sample["image"], prompt.input_ids, prompt.phrase_token_map, instances.gt_boxes.tensor)
    return (sample["file_name"], prompt.phrases, *(tensor.numpy().tobytes() for tensor in tensors))


def prints(batches: list[list[dict]]) -> list[list[tuple]]:
    return [[fingerprint(sample) for sample in batch] for batch in batches]


def caption_dict(number: int, folder: Path, score: float | None = 0.8) -> dict:
    """A sentence with a box for "a dog"."""
    annotation = {"bbox": [4, 6, 24, 16], "bbox_mode": BoxMode.XYXY_ABS, "tokens_positive": [[0, 5]]}
    if score is not None:
        annotation["score"] = score
    path = folder / f"c{number}.png"
    path.write_bytes(png(number))
    size = {"height": 48, "width": 64}
    return {
        "file_name": str(path),
        "image_id": number,
        **size,
        "caption": CAPTIONS[number],
        "annotations": [annotation],
    }


@pytest.fixture
def register(tmp_path):
    """A function that registers dataset dicts, or shards given by their sizes, for the length of a test."""

    def make(name: str, content: list, task: str, **options) -> str:
        if isinstance(content[0], int):
            (tmp_path / name).mkdir()
            register_shards(
                name, write_shards(tmp_path / name, content, **options), task=task, num_samples=sum(content)
            )
        else:
            DatasetCatalog.register(name, lambda: content)
            MetadataCatalog.get(name).set(task=task)
        return name

    return make


@pytest.fixture
def mixed_cfg(data_cfg, mixed_dataset, register, tmp_path):
    """Detection, grounding and caption data, and shards of captions; a quarter of the draws each."""
    sentences = register("sentences", [caption_dict(number, tmp_path, None) for number in range(5)], "grounding")
    captions = register("captions", [caption_dict(number, tmp_path) for number in range(8)], "pseudo_grounding")
    shards = register("shards", [4, 4, 4], "pseudo_grounding")
    data_cfg.DATASETS.TRAIN = (mixed_dataset, sentences, captions, shards)
    data_cfg.DATASETS.TRAIN_RATIOS = (1, 1, 1, 1)
    data_cfg.DATALOADER.SHUFFLE_BUFFER = 3
    data_cfg.SOLVER.IMS_PER_BATCH = 4
    return data_cfg


def train_on(cfg, names: tuple, ratios: tuple) -> None:
    cfg.DATASETS.TRAIN, cfg.DATASETS.TRAIN_RATIOS = names, ratios


def source_of(sample: dict) -> str:
    if ".tar/" in sample["file_name"]:
        return "shards"
    return "captions" if Path(sample["file_name"]).name.startswith("c") else "detection"


def test_all_kinds_of_data_meet_in_batches_by_their_ratios(mixed_cfg, mixed_dataset):
    mixed_cfg.DATASETS.TRAIN_RATIOS = (2, 0.5, 0.5, 1)
    batches = take(build_train_loader(mixed_cfg), 60)
    counts = Counter(source_of(sample) for batch in batches for sample in batch)
    assert counts["detection"] / 240 == pytest.approx(0.5, abs=0.1)
    assert counts["captions"] / 240 == pytest.approx(0.25, abs=0.08)
    assert counts["shards"] / 240 == pytest.approx(0.25, abs=0.08)
    assert any(len({source_of(sample) for sample in batch}) == 3 for batch in batches)
    for sample in itertools.chain.from_iterable(batches):
        assert len(sample["prompts"]) == 1 and sample["image"].shape[0] == 3
        assert "stream_position" not in sample and "negative_captions" not in sample


def test_without_ratios_datasets_are_drawn_by_their_sizes(mixed_cfg):
    mixed_cfg.DATASETS.TRAIN_RATIOS = ()
    mixed_cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    mixed_cfg.SOLVER.IMS_PER_BATCH = 1
    mixed_cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True
    samples = [batch[0] for batch in take(build_train_loader(mixed_cfg), 6 + 5 + 8 + 12)]
    assert Counter(map(source_of, samples)) == {"detection": 6, "captions": 13, "shards": 12}
    names = [sample["file_name"] for sample in samples if source_of(sample) == "shards"]
    assert len(set(names)) == 12


def test_copies_multiply_the_sizes_of_datasets(mixed_cfg):
    mixed_cfg.DATASETS.TRAIN_RATIOS = ()
    mixed_cfg.DATASETS.TRAIN_COPIES = (2, 1, 1, 3)
    mixed_cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True
    sets = load_training_sets(NotedConfig(mixed_cfg))
    assert sets.ratios == [2 * 6, 5, 8, 3 * 12]
    # Of a stream there is one member, however many samples its shards have.
    assert [len(own) for own in sets.members] == [6, 5, 8, 1] and len(sets.dicts) == 19
    MetadataCatalog.get("shards").__dict__["num_samples"] = 10**12
    assert [len(own) for own in load_training_sets(NotedConfig(mixed_cfg)).members] == [6, 5, 8, 1]
    mixed_cfg.DATASETS.TRAIN_RATIOS = (1, 1, 1, 1)
    with pytest.raises(ValueError, match="TRAIN_COPIES: expected none beside DATASETS.TRAIN_RATIOS, found both"):
        build_train_loader(mixed_cfg)
    mixed_cfg.DATASETS.TRAIN_RATIOS, mixed_cfg.DATASETS.TRAIN_COPIES = (), (1, 0, 1, 1)
    with pytest.raises(ValueError, match="TRAIN_COPIES: expected finite numbers above 0, found 0"):
        build_train_loader(mixed_cfg)


def test_the_size_of_shards_must_be_known_without_ratios(mixed_cfg):
    mixed_cfg.DATASETS.TRAIN_RATIOS = ()
    MetadataCatalog.get("shards").__dict__["num_samples"] = None
    with pytest.raises(
        ValueError, match="TRAIN_RATIOS: expected ratios, or num_samples .* shards of 'shards' is not known"
    ):
        build_train_loader(mixed_cfg)


def test_ratios_have_to_fit(mixed_cfg):
    mixed_cfg.DATASETS.TRAIN_RATIOS = (1, 2)
    with pytest.raises(ValueError, match="DATASETS.TRAIN_RATIOS: expected one number for each of the 4 .*found 2"):
        build_train_loader(mixed_cfg)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_mixed_stream_resumes_exactly_with_and_without_its_state(mixed_cfg, num_workers):
    mixed_cfg.DATALOADER.NUM_WORKERS = num_workers
    loader = build_train_loader(mixed_cfg)
    stream = iter(loader)
    head = prints(take(stream, 7))
    state = loader.state.as_dict()
    whole = head + prints(take(stream, 5))
    assert prints(take(build_train_loader(mixed_cfg, start_iter=7), 5)) == whole[7:]
    resumed = build_train_loader(mixed_cfg, 7, state)
    assert prints(take(resumed, 5)) == whole[7:]
    assert resumed.state.positions.keys() >= state["positions"].keys() and state["positions"]


def test_stored_samples_are_the_same_with_any_number_of_workers(mixed_cfg):
    streams = []
    for num_workers in (0, 2):
        mixed_cfg.DATALOADER.NUM_WORKERS = num_workers
        streams.append(prints(take(build_train_loader(mixed_cfg), 12)))
    for batch, other in zip(*streams):
        assert [".tar/" in sample[0] for sample in batch] == [".tar/" in sample[0] for sample in other]
        assert [s for s in batch if ".tar/" not in s[0]] == [s for s in other if ".tar/" not in s[0]]


def test_ranks_and_workers_read_different_samples_of_an_epoch(mixed_cfg, monkeypatch):
    train_on(mixed_cfg, ("shards",), (1,))
    mixed_cfg.DATALOADER.NUM_WORKERS = 2
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    names = []
    # Three shards for four readers: one shard is shared. Reader 0 and its twin have two samples each, the others four.
    for rank in (0, 1):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        names += [sample["file_name"] for batch in take(build_train_loader(mixed_cfg), 2) for sample in batch]
    assert len(set(names)) == len(names) == 8


def test_a_state_for_other_readers_is_not_used_but_the_next_epoch_begins(mixed_cfg, caplog):
    train_on(mixed_cfg, ("shards",), (1,))
    loader = build_train_loader(mixed_cfg)
    take(loader, 5)
    # 20 samples of 12: the second epoch has begun.
    state = loader.state.as_dict()
    mixed_cfg.DATALOADER.NUM_WORKERS = 2
    with caplog.at_level(logging.WARNING):
        resumed = build_train_loader(mixed_cfg, 5, state)
    (message,) = [message for message in caplog.messages if "another order" in message]
    assert message.endswith("would: DATALOADER.NUM_WORKERS was 1, is 2")
    assert (resumed.state.first_epoch, resumed.state.first_shard_batch, resumed.state.positions) == (2, 5, {})
    stream = iter(resumed)
    drawn = prints(take(stream, 3))
    # Batches 5 and 6 come from two readers.
    assert len({sample[0] for batch in drawn[:2] for sample in batch}) == 8
    # The new state is continued in turn.
    assert prints(take(build_train_loader(mixed_cfg, 8, resumed.state.as_dict()), 2)) == prints(take(stream, 2))


def test_what_has_changed_is_named(mixed_cfg, caplog):
    state = build_train_loader(mixed_cfg).state.as_dict()
    mixed_cfg.SEED = 4
    mixed_cfg.DATASETS.TRAIN = mixed_cfg.DATASETS.TRAIN[:2]
    mixed_cfg.DATASETS.TRAIN_RATIOS = (1, 2)
    with caplog.at_level(logging.WARNING):
        build_train_loader(mixed_cfg, 1, state)
    (message,) = [message for message in caplog.messages if "another order" in message]
    for change in ("SEED was 3, is 4", "DATASETS.TRAIN was", "DATASETS.TRAIN_RATIOS was [1, 1, 1, 1], is [1, 2]"):
        assert change in message
    assert "DATALOADER.NUM_WORKERS was 1, is None" in message and "IMS_PER_BATCH" not in message


def test_a_stream_without_shards_may_change_its_workers(data_cfg, mixed_dataset, caplog):
    data_cfg.DATASETS.TRAIN = (mixed_dataset,)
    state = build_train_loader(data_cfg).state.as_dict()
    data_cfg.DATALOADER.NUM_WORKERS = 1
    with caplog.at_level(logging.WARNING):
        build_train_loader(data_cfg, 3, state)
    assert not [message for message in caplog.messages if "another order" in message]


def test_a_drawn_seed_is_that_of_the_state(mixed_cfg):
    mixed_cfg.SEED = -1
    loader = build_train_loader(mixed_cfg)
    whole = prints(take(loader, 5))
    assert prints(take(build_train_loader(mixed_cfg, 2, loader.state.as_dict()), 3)) == whole[2:]
    assert prints(take(build_train_loader(mixed_cfg), 5)) != whole


# --- captions


@pytest.mark.parametrize("name", ["captions", "shards"])
def test_caption_data_gets_captions_of_other_images(mixed_cfg, name):
    train_on(mixed_cfg, (name,), ())
    mixed_cfg.merge_from_list(["INPUT.PROMPT.NO_NEGATIVE_CAPTIONS_PROB", 0.0, "INPUT.PROMPT.NUM_NEGATIVE_CAPTIONS", 2])
    mixed_cfg.INPUT.PROMPT.FULL_NEGATIVE_CAPTIONS_PROB = 1.0
    loader = build_train_loader(mixed_cfg)
    lengths = [len(sample["prompts"][0]) for batch in take(loader, 3) for sample in batch]
    mixed_cfg.INPUT.PROMPT.NUM_NEGATIVE_CAPTIONS = 0
    alone = [len(sample["prompts"][0]) for batch in take(build_train_loader(mixed_cfg), 3) for sample in batch]
    # Two more captions as long as the own one.
    assert min(lengths) > 2.4 * max(alone)


def test_grounding_data_gets_none(mixed_cfg):
    train_on(mixed_cfg, ("sentences",), ())
    mixed_cfg.merge_from_list(["INPUT.PROMPT.NO_NEGATIVE_CAPTIONS_PROB", 0.0])
    loader = build_train_loader(mixed_cfg)
    lengths = {len(sample["prompts"][0]) for batch in take(loader, 3) for sample in batch}
    assert max(lengths) < 10


def test_captions_whose_boxes_are_all_uncertain_are_left_out(register, tmp_path, caplog):
    dicts = [caption_dict(number, tmp_path, score) for number, score in enumerate((0.8, 0.3, None, 0.5, 0.49))]
    dicts.append({**caption_dict(5, tmp_path), "annotations": []})
    name = register("uncertain", dicts, "pseudo_grounding")
    with caplog.at_level(logging.INFO):
        kept = load_training_dicts(name, filter_empty=False, min_score=0.5)
    assert [item["image_id"] for item in kept] == [0, 2, 3]
    assert any("left out 3 of 6 images: no box with a score of at least 0.5" in text for text in caplog.messages)
    with pytest.raises(
        ValueError, match="'gone' of DATASETS.TRAIN: expected at least one image with boxes, found none"
    ):
        load_training_dicts(register("gone", dicts[1:2], "pseudo_grounding"), filter_empty=False, min_score=0.5)


# --- what is left out


def test_a_broken_image_in_a_shard_is_replaced_by_another_of_its_block(mixed_cfg, register, tmp_path):
    train_on(mixed_cfg, (register("broken", [4], "pseudo_grounding"),), (1,))
    mixed_cfg.DATALOADER.SHUFFLE_BUFFER = 4
    path = tmp_path / "broken" / "caps-000.tar"
    path.write_bytes(path.read_bytes().replace(png(2)[:60], bytes(60)))
    samples = [sample for batch in take(build_train_loader(mixed_cfg), 4) for sample in batch]
    replaced = [sample for sample in samples if "skipped_files" in sample]
    assert len(replaced) == 4
    for sample in replaced:
        assert sample["image_id"] != "0002" and "caps-000.tar/0002.png: " in sample["skipped_files"][0]
    assert prints(take(build_train_loader(mixed_cfg, 2), 2)) == prints(take(build_train_loader(mixed_cfg), 4))[2:]


def test_the_last_sample_of_an_epoch_may_be_replaced_by_one_of_the_next(mixed_cfg, tmp_path):
    train_on(mixed_cfg, ("shards",), (1,))
    mixed_cfg.DATALOADER.SHUFFLE_BUFFER = 1
    path = tmp_path / "shards" / "caps-001.tar"
    path.write_bytes(path.read_bytes().replace(png(5)[:60], bytes(60)))
    samples = [sample for batch in take(build_train_loader(mixed_cfg), 6) for sample in batch]
    assert sum("skipped_files" in sample for sample in samples) == 2
    assert len(samples) == 24 and all(sample["image_id"] != "0005" for sample in samples)


def test_shards_without_any_readable_image_stop_the_run(mixed_cfg, tmp_path):
    train_on(mixed_cfg, ("shards",), (1,))
    for path in (tmp_path / "shards").iterdir():
        path.write_bytes(path.read_bytes().replace(png(0)[:8], bytes(8)))
    with pytest.raises(UnreadableImageError, match="11 images in a row could not be read"):
        take(build_train_loader(mixed_cfg), 1)


def test_damage_reaches_the_samples(mixed_cfg, tmp_path):
    train_on(mixed_cfg, ("shards",), (1,))
    cut_tar(tmp_path / "shards" / "caps-001.tar", "0005.png", 10)
    write_tar(tmp_path / "shards" / "caps-002.tar", {"0008.png": png(8), "0008.json": b"[]"})
    samples = [sample for batch in take(build_train_loader(mixed_cfg), 3) for sample in batch]
    damaged = [line for sample in samples for line in sample.get("damaged_shards", ())]
    records = [line for sample in samples for line in sample.get("skipped_records", ())]
    assert damaged and all("caps-001.tar: unexpected end of data" in line for line in damaged)
    assert records and all("caps-002.tar: '0008'" in line for line in records)
    assert sum(sample.get("dropped", {}).get("records", 0) for sample in samples) == len(records)


def test_shards_that_are_not_there_or_hold_nothing_are_named(mixed_cfg, tmp_path):
    mixed_cfg.INPUT.PROMPT.MIN_PSEUDO_SCORE = 0.95
    train_on(mixed_cfg, ("shards",), (1,))
    with pytest.raises(
        ValueError, match="'shards': expected usable samples in its 3 shards, found none: no record has a box"
    ):
        build_train_loader(mixed_cfg)
    (tmp_path / "shards" / "caps-001.tar").unlink()
    with pytest.raises(FileNotFoundError, match="'shards': shard .*caps-001.tar does not exist"):
        build_train_loader(mixed_cfg)


def test_scores_of_annotated_boxes_do_not_matter(mixed_cfg, register):
    train_on(mixed_cfg, (register("annotated", [3], "grounding", score=0.1),), (1,))
    assert all(len(sample["instances"]) == 2 for sample in take(build_train_loader(mixed_cfg), 1)[0])


def test_an_image_that_loses_all_its_boxes_is_replaced_and_counted(mixed_cfg, register, tmp_path):
    # The phrase of the first caption lies behind the token limit.
    long = {**caption_dict(0, tmp_path), "caption": "so " * 300 + "a dog"}
    long["annotations"] = [{**long["annotations"][0], "tokens_positive": [[900, 905]]}]
    train_on(mixed_cfg, (register("long", [long, *(caption_dict(i, tmp_path) for i in (1, 2))], "grounding"),), ())
    samples = [sample for batch in take(build_train_loader(mixed_cfg), 3) for sample in batch]
    assert {sample["image_id"] for sample in samples} == {1, 2}
    dropped = [sample["dropped"] for sample in samples if "dropped" in sample]
    assert len(dropped) == 4 and all(
        counts["samples"] == counts["boxes"] == counts["phrases"] == 1 for counts in dropped
    )
    assert all(counts["tokens"] > 0 for counts in dropped)
    mixed_cfg.DATASETS.TRAIN = (register("only", [long], "grounding"),)
    sample, *_ = take(build_train_loader(mixed_cfg), 1)[0]
    assert len(sample["instances"]) == 0 and sample["dropped"]["samples"] == 1
