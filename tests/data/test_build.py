import itertools
import json
import logging
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from PIL import Image

from glipv2_d2.data import build_test_loader, build_train_loader, register_captioning, register_vqa_json
from glipv2_d2.data.datasets import coco, registration
from glipv2_d2.data.datasets.coco import load_detection_truth
from glipv2_d2.data.datasets.formats import (
    register_coco_grounding,
    register_grounding_json,
    register_lvis,
    register_odvg,
)
from glipv2_d2.data.image_reading import UnreadableImageError
from glipv2_d2.data.loading import LoadedDataset, load_test_dataset, load_training_dicts
from glipv2_d2.data.stream.order import StreamEntry
from glipv2_d2.data.stream.samples import DROPPED_COUNTS, StoredSamples, StreamedSamples, TrainingSamples
from glipv2_d2.engine.trainer import GLIPv2Trainer
from glipv2_d2.evaluation import build_evaluator
from glipv2_d2.prompts import questions
from glipv2_d2.structures import DetectionLimits


def take(loader, count: int) -> list[list[dict]]:
    return list(itertools.islice(loader, count))


def fingerprint(sample: dict) -> tuple:
    """All that a sample holds, in a form that compares by value."""
    prompt, instances = sample["prompts"][0], sample["instances"]
    tensors = (
        *(sample["image"], prompt.input_ids, prompt.phrase_token_map, prompt.category_ids),
        *(instances.gt_boxes.tensor, instances.gt_classes, instances.gt_category_ids),
    )
    return (sample["image_id"], prompt.phrases, *(tensor.numpy().tobytes() for tensor in tensors))


def stream(cfg, count: int, start_iter: int = 0) -> list[list[tuple]]:
    return [[fingerprint(sample) for sample in batch] for batch in take(build_train_loader(cfg, start_iter), count)]


@pytest.fixture
def train_cfg(data_cfg, mixed_dataset):
    data_cfg.DATASETS.TRAIN = (mixed_dataset,)
    return data_cfg


def test_the_stream_is_the_same_with_any_number_of_workers(train_cfg):
    expected = stream(train_cfg, 7)
    np.random.seed(1)
    torch.manual_seed(1)
    for num_workers in (1, 2):
        train_cfg.DATALOADER.NUM_WORKERS = num_workers
        assert stream(train_cfg, 7) == expected


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_stream_goes_on_where_it_ended(train_cfg, num_workers):
    whole = stream(train_cfg, 11)
    train_cfg.DATALOADER.NUM_WORKERS = num_workers
    assert stream(train_cfg, 4, start_iter=7) == whole[7:]


def test_an_iteration_is_as_many_batches_as_are_accumulated(train_cfg):
    whole = stream(train_cfg, 8)
    train_cfg.SOLVER.ACCUMULATION_STEPS = 3
    assert stream(train_cfg, 2, start_iter=2) == whole[6:]


def test_skipped_iterations_read_no_image(train_cfg, monkeypatch):
    train_cfg.SOLVER.IMS_PER_BATCH = 1
    loader = iter(build_train_loader(train_cfg, start_iter=10_000))
    calls = []
    original = TrainingSamples.__getitem__
    monkeypatch.setattr(TrainingSamples, "__getitem__", lambda self, key: calls.append(key) or original(self, key))
    next(loader)
    assert [entry.position for entry in calls] == [10_000]


def test_an_image_differs_between_epochs(train_cfg):
    samples = [sample for batch in stream(train_cfg, 60) for sample in batch]
    versions = {sample[1:] for sample in samples if sample[0] == 102}
    # Three sizes, flipped or not, and the order of the names.
    assert len(versions) > 6


def test_the_seed_changes_the_stream_and_minus_one_draws_one(train_cfg):
    first = stream(train_cfg, 3)
    assert stream(train_cfg, 3) == first
    train_cfg.SEED = 4
    assert stream(train_cfg, 3) != first
    train_cfg.SEED = -1
    np.random.seed(0)
    free = stream(train_cfg, 3)
    assert stream(train_cfg, 3) != free
    np.random.seed(0)
    assert stream(train_cfg, 3) == free


def test_starting_workers_leaves_the_random_state_of_training_alone(train_cfg):
    train_cfg.DATALOADER.NUM_WORKERS = 1
    before = torch.get_rng_state()
    take(build_train_loader(train_cfg), 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_hold_one_orientation(train_cfg):
    def upright(batch):
        return {sample["height"] >= sample["width"] for sample in batch}

    assert all(len(upright(batch)) == 1 for batch in take(build_train_loader(train_cfg), 20))
    train_cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    assert any(len(upright(batch)) == 2 for batch in take(build_train_loader(train_cfg), 20))


def test_images_without_boxes_are_kept_or_filtered(train_cfg):
    def drawn_ids():
        return {sample["image_id"] for batch in take(build_train_loader(train_cfg), 15) for sample in batch}

    assert drawn_ids() == set(range(100, 109))
    train_cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True
    assert drawn_ids() == {101, 102, 104, 105, 107, 108}


def test_ranks_together_draw_what_one_process_draws(train_cfg, monkeypatch):
    # Without redraws, which depend on the batch of all ranks.
    train_cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True
    train_cfg.SOLVER.IMS_PER_BATCH = 1
    alone = [batch[0] for batch in stream(train_cfg, 12)]
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    train_cfg.SOLVER.IMS_PER_BATCH = 2
    ranks = []
    for rank in (0, 1):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        batches = stream(train_cfg, 6)
        assert all(len(batch) == 1 for batch in batches)
        ranks.append([batch[0] for batch in batches])
    assert [sample for pair in zip(*ranks) for sample in pair] == alone


def test_datasets_with_different_names_train_together(data_cfg, make_dataset):
    pets = make_dataset([(64, 48)] * 3, [[[0, 4, 6, 20, 10]]] * 3)
    zoo = make_dataset([(64, 48)] * 3, [[[1, 4, 6, 20, 10]]] * 3, names=("lion", "zebra"))
    data_cfg.DATASETS.TRAIN = (pets, zoo)
    pairs = set()
    for sample in itertools.chain.from_iterable(take(build_train_loader(data_cfg), 6)):
        prompt = sample["prompts"][0]
        folder = Path(sample["file_name"]).parent.name
        assert set(prompt.phrases) <= ({"red dog", "cat", "fish"} if folder == pets else {"lion", "zebra"})
        pairs.add((folder, prompt.phrases[sample["instances"].gt_classes[0]]))
    assert pairs == {(pets, "red dog"), (zoo, "zebra")}


def break_images(name: str, *image_ids: int) -> list[str]:
    paths = [Path(MetadataCatalog.get(name).image_root) / f"{image_id}.png" for image_id in image_ids]
    for path in paths:
        path.write_bytes(path.read_bytes()[:100])
    return [str(path) for path in paths]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_images_are_replaced_and_reported(train_cfg, mixed_dataset, num_workers):
    good = stream(train_cfg, 8)
    (broken,) = break_images(mixed_dataset, 102)
    train_cfg.DATALOADER.NUM_WORKERS = num_workers
    num_replaced = 0
    for expected, batch in zip(good, take(build_train_loader(train_cfg), 8)):
        assert len({sample["width"] > sample["height"] for sample in batch}) == 1
        for before, sample in zip(expected, batch):
            if before[0] == 102:
                num_replaced += 1
                assert sample["image_id"] != 102
                assert len(sample["skipped_files"]) == 1 and sample["skipped_files"][0].startswith(broken)
            else:
                assert "skipped_files" not in sample and fingerprint(sample) == before
    assert num_replaced > 0


def test_replacements_do_not_depend_on_the_workers(train_cfg, mixed_dataset):
    break_images(mixed_dataset, 100, 102, 104)
    expected = stream(train_cfg, 8)
    train_cfg.DATALOADER.NUM_WORKERS = 2
    assert stream(train_cfg, 8) == expected


def test_replacements_may_be_unreadable_too(train_cfg, mixed_dataset):
    broken = break_images(mixed_dataset, 100, 102, 103, 105, 106)  # all images that are wide but one
    samples = [sample for batch in take(build_train_loader(train_cfg), 12) for sample in batch]
    assert {sample["image_id"] for sample in samples} == {101, 104, 107, 108}
    reported = [line for sample in samples for line in sample.get("skipped_files", ())]
    assert {line.split(": ")[0] for line in reported} == set(broken)
    assert max(len(sample.get("skipped_files", ())) for sample in samples) > 1


def test_a_sample_gives_up_when_nothing_can_be_read(train_cfg, mixed_dataset):
    break_images(mixed_dataset, *range(100, 109))
    with pytest.raises(UnreadableImageError, match=r"\d images in a row could not be read; the last: .*\.png"):
        take(build_train_loader(train_cfg), 1)


def test_a_sample_gives_up_after_ten_replacements():
    calls = []

    def mapper(dataset_dict):
        calls.append(dataset_dict["index"])
        raise UnreadableImageError("x.png: broken")

    stored = StoredSamples([{"index": i} for i in range(50)], np.zeros(50, dtype=int))
    samples = TrainingSamples(stored, StreamedSamples({}), mapper, seed=0)
    with pytest.raises(UnreadableImageError, match="^11 images in a row"):
        samples[StreamEntry(7, 0)]
    assert calls[0] == 7 and len(set(calls)) == 11


def test_test_loader_gives_each_image_once_with_shared_prompts(data_cfg, mixed_dataset):
    # The dataset says its protocol.
    MetadataCatalog.get(mixed_dataset).set(prompt_chunk_size=2, detection_limits=(7, 9))
    for num_workers in (0, 1):
        data_cfg.DATALOADER.NUM_WORKERS = num_workers
        loader = build_test_loader(data_cfg, load_test_dataset(data_cfg, mixed_dataset))
        batches = list(loader)
        assert len(batches) == len(loader) == 9 and all(len(batch) == 1 for batch in batches)
        assert [batch[0]["image_id"] for batch in batches] == list(range(100, 109))
        assert len({id(batch[0]["prompts"]) for batch in batches}) == 1
        assert {batch[0]["detection_limits"] for batch in batches} == {DetectionLimits(per_prompt=7, per_image=9)}
        assert [prompt.phrases for prompt in batches[0][0]["prompts"]] == [("red dog", "cat"), ("fish",)]
        assert all(min(batch[0]["image"].shape[1:]) == 96 for batch in batches)


CAPTIONS = ("a dog and a cat", "the dog")


@pytest.fixture
def caption_json(tmp_path, new_name):
    """A function that registers two images with a caption and boxes, some with masks, as data of a task."""

    def make(task):
        images, annotations = [], []
        for image_id, caption in enumerate(CAPTIONS):
            name = f"{image_id}.png"
            images.append({"id": image_id, "file_name": name, "height": 48, "width": 64, "caption": caption})
            Image.new("RGB", (64, 48)).save(tmp_path / name)
            for begin in (caption.find(word) for word in ("cat", "dog") if word in caption):
                span, mask = [[begin, begin + 3]], [[4, 6, 24, 6, 24, 16]]
                annotations.append(
                    {"image_id": image_id, "bbox": [4, 6, 20, 10], "tokens_positive": span, "segmentation": mask}
                )
        (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
        register_grounding_json(new_name, tmp_path / "captions.json", tmp_path, task=task)
        return new_name

    return make


@pytest.mark.parametrize("task", ["grounding", "pseudo_grounding"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_captions_are_tested_each_with_its_own_prompt(data_cfg, caption_json, task, num_workers):
    data_cfg.DATALOADER.NUM_WORKERS = num_workers
    data_cfg.MODEL.MASK_ON = True
    loader = build_test_loader(data_cfg, load_test_dataset(data_cfg, caption_json(task)))
    batches = list(loader)
    assert len(batches) == len(loader) == 2 and all(len(batch) == 1 for batch in batches)
    samples = [batch[0] for batch in batches]
    assert [sample["image_id"] for sample in samples] == [0, 1]
    prompts = [prompt for sample in samples for prompt in sample["prompts"]]
    assert [prompt.phrases for prompt in prompts] == [("cat", "dog"), ("dog",)]
    # [CLS] and [SEP] stand around the words.
    assert [len(prompt) for prompt in prompts] == [len(caption.split()) + 2 for caption in CAPTIONS]
    assert [prompt.category_ids.tolist() for prompt in prompts] == [[0, 1], [0]]
    assert all(sample["image"].shape == (3, 96, 128) and "instances" not in sample for sample in samples)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_sample_of_a_test_says_why_its_image_cannot_be_read(data_cfg, mixed_dataset, num_workers):
    data_cfg.DATALOADER.NUM_WORKERS = num_workers
    (broken,) = break_images(mixed_dataset, 104)
    batches = list(build_test_loader(data_cfg, load_test_dataset(data_cfg, mixed_dataset)))
    (sample,) = [sample for (sample,) in batches if "image" not in sample]
    assert sample["unreadable"].startswith(f"{broken}: ")
    assert (sample["file_name"], sample["image_id"], sample["height"], sample["width"]) == (broken, 104, 64, 48)
    assert len(batches) == 9 and not any("unreadable" in one for (one,) in batches if one is not sample)


def test_the_loader_of_detectron2_works_without_prompts(data_cfg, mixed_dataset):
    data_cfg.DATASETS.TEST = (mixed_dataset,)
    sample = next(iter(build_detection_test_loader(data_cfg, mixed_dataset)))[0]
    assert sample["image"].shape == (3, 96, 128) and "prompts" not in sample


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SOLVER.IMS_PER_BATCH", 0, "SOLVER.IMS_PER_BATCH: expected a positive multiple of the 1 processes, found 0"),
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "expected 'TrainingSampler'"),
        ("DATALOADER.SHUFFLE_BUFFER", 0, "DATALOADER.SHUFFLE_BUFFER: expected at least 1, found 0"),
        ("DATASETS.TRAIN", (), "DATASETS.TRAIN: expected at least one dataset, found none"),
        ("DATASETS.TRAIN", ("stampworld_trian",), "'stampworld_trian' is not registered.*stampworld_train"),
        ("DATASETS.TRAIN", ("qqqq",), "'qqqq' is not registered, expected for example a name given to register"),
    ],
)
def test_config_values_that_cannot_be_are_named(train_cfg, key, value, message):
    train_cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=message):
        build_train_loader(train_cfg)


def test_batches_that_ranks_cannot_share_are_named(train_cfg, monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match="expected a positive multiple of the 3 processes, found 2"):
        build_train_loader(train_cfg)


@pytest.fixture
def foreign_dataset():
    """A function that registers dataset dicts of another reader."""

    def make(dataset_dicts, **metadata):
        DatasetCatalog.register("foreign", lambda: dataset_dicts)
        MetadataCatalog.get("foreign").set(**metadata)
        return "foreign"

    return make


RECORD = {"file_name": "a.png", "width": 64, "height": 48}
BAD_BOX = {"bbox": [1, 2, -3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}


@pytest.mark.parametrize(
    ("dataset_dicts", "metadata", "message"),
    [
        ([], {"thing_classes": ["cat"]}, "'foreign': expected at least one image and one name, found 0 images"),
        ([{**RECORD, "annotations": []}], {}, "'foreign': expected .* found 1 images and thing_classes None"),
        ([RECORD], {"thing_classes": ["cat"]}, "without 'annotations'"),
        ([{**RECORD, "annotations": []}], {"thing_classes": ["cat"]}, "image with boxes, found none"),
        ([{**RECORD, "annotations": [BAD_BOX]}], {"thing_classes": ["cat"]}, "a.png: bbox: expected .*sides >= 0"),
    ],
)
def test_datasets_that_cannot_train_are_named(foreign_dataset, images_exist, dataset_dicts, metadata, message):
    with pytest.raises(ValueError, match=message):
        load_training_dicts(foreign_dataset(dataset_dicts, **metadata), filter_empty=True)


def test_missing_files_are_named_before_anything_is_loaded(data_cfg, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("stampworld_train", "coco_2017_train"):
        data_cfg.DATASETS.TRAIN = (name,)
        if not Path(MetadataCatalog.get(name).json_file).exists():
            with pytest.raises(FileNotFoundError, match=f"{name}.*DETECTRON2_DATASETS"):
                build_train_loader(data_cfg)
            with pytest.raises(FileNotFoundError, match=f"{name}.*DETECTRON2_DATASETS"):
                build_test_loader(data_cfg, load_test_dataset(data_cfg, name))


# --- questions and captions to write


@pytest.fixture
def understanding_cfg(data_cfg, mixed_dataset, tmp_path):
    """Boxes, questions and captions of drawn images, the last two with and without boxes."""
    images, annotations = [], []
    for number in range(4):
        Image.new("RGB", (64, 48)).save(tmp_path / f"{number}.png")
        questions = [
            {"question_id": 2 * number, "question": "Is there a dog?", "answer": "yes"},
            {"question_id": 2 * number + 1, "question": "How many?", "answer": "seven"},
        ]
        caption = "a dog" if number else "a photo"
        images.append({"id": number, "file_name": f"{number}.png", "height": 48, "width": 64, "questions": questions})
        images[-1]["caption"] = caption
        if number:
            box = {"image_id": number, "bbox": [4, 6, 20, 10], "phrase": "dog", "tokens_positive": [[2, 5]]}
            annotations.append(box)
    (tmp_path / "boxes.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    captions = [{"image_id": number, "caption": "two dogs"} for number in range(4)]
    (tmp_path / "plain.json").write_text(json.dumps({"images": images, "annotations": captions}))
    (tmp_path / "answers.txt").write_text("yes\nno")
    names = [f"{tmp_path.name}_{kind}" for kind in ("vqa", "grounded", "plain")]
    register_vqa_json(names[0], tmp_path / "boxes.json", tmp_path)
    register_grounding_json(names[1], tmp_path / "boxes.json", tmp_path, task="captioning")
    register_captioning(names[2], tmp_path / "plain.json", tmp_path)
    data_cfg.DATASETS.TRAIN = (mixed_dataset, *names)
    data_cfg.DATASETS.TRAIN_RATIOS = (1, 1, 1, 1)
    data_cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True
    data_cfg.MODEL.GLIPV2.VQA.ANSWERS = str(tmp_path / "answers.txt")
    data_cfg.MODEL.GLIPV2.VQA.GROUNDED = data_cfg.MODEL.GLIPV2.CAPTIONING.GROUNDED = True
    return data_cfg


def kind_of(sample) -> tuple:
    return sample.get("task"), "instances" in sample


ALL_KINDS = {(None, True), ("vqa", True), ("captioning", True), ("captioning", False)}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_batch_holds_one_kind_of_samples(understanding_cfg, num_workers):
    understanding_cfg.DATALOADER.NUM_WORKERS = num_workers
    kinds = [{kind_of(sample) for sample in batch} for batch in take(build_train_loader(understanding_cfg), 40)]
    assert all(len(kind) == 1 for kind in kinds) and set.union(*kinds) == ALL_KINDS


def test_the_batches_of_all_ranks_hold_one_kind(understanding_cfg, monkeypatch):
    understanding_cfg.SOLVER.IMS_PER_BATCH = 4
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    ranks = []
    for rank in (0, 1):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        ranks.append(take(build_train_loader(understanding_cfg), 20))
    kinds = [{kind_of(sample) for batch in batches for sample in batch} for batches in zip(*ranks)]
    assert all(len(kind) == 1 for kind in kinds) and set.union(*kinds) == ALL_KINDS


def test_without_grounding_all_captions_are_of_one_kind(understanding_cfg):
    understanding_cfg.MODEL.GLIPV2.VQA.GROUNDED = understanding_cfg.MODEL.GLIPV2.CAPTIONING.GROUNDED = False
    understanding_cfg.DATASETS.TRAIN = understanding_cfg.DATASETS.TRAIN[1:]
    understanding_cfg.DATASETS.TRAIN_RATIOS = (1, 1, 1)
    batches = take(build_train_loader(understanding_cfg), 30)
    assert {kind_of(sample) for batch in batches for sample in batch} == {("vqa", False), ("captioning", False)}
    # Both datasets of captions share batches.
    texts = [{len(sample["prompts"][0]) for sample in batch} for batch in batches if batch[0]["task"] == "captioning"]
    assert all(len({sample["task"] for sample in batch}) == 1 for batch in batches) and texts


def test_questions_and_captions_without_boxes_are_kept_and_may_fill_a_batch(understanding_cfg):
    vqa, grounded = understanding_cfg.DATASETS.TRAIN[1:3]
    understanding_cfg.DATASETS.TRAIN = (vqa, grounded)
    understanding_cfg.DATASETS.TRAIN_RATIOS = ()
    batches = take(build_train_loader(understanding_cfg), 60)
    samples = [sample for batch in batches for sample in batch]
    assert {id_ for sample in samples if sample["task"] == "vqa" for id_ in sample["question_ids"]} == set(range(8))
    assert {sample["image_id"] for sample in samples if sample["task"] == "captioning"} == set(range(4))
    assert any(sum(len(sample["instances"]) for sample in batch) == 0 for batch in batches)


@pytest.mark.parametrize("number", [2, 3])
def test_batches_count_images_where_several_questions_of_each_train_together(understanding_cfg, number):
    understanding_cfg.DATASETS.TRAIN = understanding_cfg.DATASETS.TRAIN[1:2]
    understanding_cfg.DATASETS.TRAIN_RATIOS = ()
    understanding_cfg.INPUT.QUESTIONS_PER_IMAGE = number
    batches = take(build_train_loader(understanding_cfg), 6)
    assert {len(batch) for batch in batches} == {understanding_cfg.SOLVER.IMS_PER_BATCH}
    # Each of the images has two questions.
    for sample in (sample for batch in batches for sample in batch):
        assert set(sample["question_ids"]) == {2 * sample["image_id"], 2 * sample["image_id"] + 1}


def test_no_question_for_an_image_is_an_error(understanding_cfg):
    understanding_cfg.INPUT.QUESTIONS_PER_IMAGE = 0
    with pytest.raises(ValueError, match="QUESTIONS_PER_IMAGE: expected at least 1, found 0"):
        build_train_loader(understanding_cfg)


def test_questions_without_a_known_answer_are_counted(understanding_cfg):
    understanding_cfg.DATASETS.TRAIN = understanding_cfg.DATASETS.TRAIN[1:2]
    understanding_cfg.DATASETS.TRAIN_RATIOS = ()
    for sample in itertools.chain.from_iterable(take(build_train_loader(understanding_cfg), 8)):
        known = sample["question_ids"][0] % 2 == 0
        assert sample["answer_scores"].tolist() == [[1.0, 0.0] if known else [0.0, 0.0]]
        assert sample.get("dropped") == (None if known else {"questions_without_answers": 1})
    assert "questions_without_answers" in DROPPED_COUNTS


def test_a_question_whose_boxes_are_cropped_away_stays(understanding_cfg):
    understanding_cfg.DATASETS.TRAIN = understanding_cfg.DATASETS.TRAIN[1:2]
    understanding_cfg.DATASETS.TRAIN_RATIOS = ()
    whole = [sample["question_ids"] for batch in take(build_train_loader(understanding_cfg), 12) for sample in batch]
    understanding_cfg.merge_from_list(["INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [0.2, 0.2]])
    batches = take(build_train_loader(understanding_cfg), 12)
    assert [sample["question_ids"] for batch in batches for sample in batch] == whole
    assert not any("samples" in sample.get("dropped", {}) for batch in batches for sample in batch)


def test_the_layout_of_a_stream_names_what_is_grounded(understanding_cfg, mixed_dataset):
    layout = build_train_loader(understanding_cfg).state.layout
    assert layout["MODEL.GLIPV2.VQA.GROUNDED"] is True and layout["MODEL.GLIPV2.CAPTIONING.GROUNDED"] is True
    understanding_cfg.DATASETS.TRAIN, understanding_cfg.DATASETS.TRAIN_RATIOS = (mixed_dataset,), ()
    assert not any("GROUNDED" in key for key in build_train_loader(understanding_cfg).state.layout)


def test_questions_and_captions_are_tested_each_alone(understanding_cfg):
    vqa, grounded, plain = understanding_cfg.DATASETS.TRAIN[1:]
    understanding_cfg.MODEL.MASK_ON = True
    batches = list(build_test_loader(understanding_cfg, load_test_dataset(understanding_cfg, vqa)))
    assert [batch[0]["question_id"] for batch in batches] == list(range(8)) and all(len(b) == 1 for b in batches)
    assert batches[0][0]["prompts"][0].phrases == ("a dog", "[answer]")
    for name in (grounded, plain):
        batches = list(build_test_loader(understanding_cfg, load_test_dataset(understanding_cfg, name)))
        assert [batch[0]["image_id"] for batch in batches] == list(range(4))
        assert all(batch[0]["task"] == "captioning" and "prompts" not in batch[0] for batch in batches)


def test_an_image_with_several_captions_is_tested_once(understanding_cfg, caption_json):
    name = caption_json("captioning")
    dicts = DatasetCatalog.get(name)
    several = [one | {"image_id": one["image_id"] + 10 * place} for one in dicts for place in range(3)]
    batches = list(build_test_loader(understanding_cfg, LoadedDataset(name, several)))
    assert [batch[0]["image_id"] for batch in batches] == [one["image_id"] for one in dicts]


def test_questions_need_a_list_of_answers(understanding_cfg):
    understanding_cfg.MODEL.GLIPV2.VQA.ANSWERS = ""
    with pytest.raises(ValueError, match="MODEL.GLIPV2.VQA.ANSWERS is empty, expected the path of a list"):
        build_train_loader(understanding_cfg)


def test_masks_are_no_part_of_questions_and_captions(understanding_cfg):
    understanding_cfg.MODEL.MASK_ON = True
    understanding_cfg.DATASETS.TRAIN = understanding_cfg.DATASETS.TRAIN[1:3]
    understanding_cfg.DATASETS.TRAIN_RATIOS = ()
    for sample in itertools.chain.from_iterable(take(build_train_loader(understanding_cfg), 4)):
        assert not sample["instances"].has("gt_masks")


# --- the layout of a stream


def drawn_ids(cfg) -> list:
    batches = take(build_train_loader(cfg), 30)
    return [(sample["image_id"], sample.get("question_ids")) for batch in batches for sample in batch]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("DATALOADER.ASPECT_RATIO_GROUPING", False),
        ("DATALOADER.FILTER_EMPTY_ANNOTATIONS", False),
        ("DATASETS.TRAIN_RATIOS", (1, 2, 1, 1)),
        ("INPUT.QUESTIONS_PER_IMAGE", 2),
        ("MODEL.GLIPV2.CAPTIONING.GROUNDED", False),
        ("SOLVER.ACCUMULATION_STEPS", 2),
        ("SOLVER.IMS_PER_BATCH", 4),
    ],
)
def test_a_key_that_changes_the_order_is_named_when_a_run_goes_on(understanding_cfg, caplog, key, value):
    before, state = drawn_ids(understanding_cfg), build_train_loader(understanding_cfg).state.as_dict()
    understanding_cfg.merge_from_list([key, value])
    # All but the steps change the order from the first batch on; those change where a later iteration begins.
    assert (drawn_ids(understanding_cfg) == before) == ("STEPS" in key)
    build_train_loader(understanding_cfg, 3, state)
    (message,) = [text for text in caplog.messages if "or in another order" in text]
    assert f"{key} was " in message


@pytest.mark.parametrize("options", [["INPUT.MIN_SIZE_TRAIN", (64,)], ["MODEL.MASK_ON", True], ["SOLVER.BASE_LR", 1.0]])
def test_other_keys_change_no_order_and_are_not_named(understanding_cfg, caplog, options):
    before, state = drawn_ids(understanding_cfg), build_train_loader(understanding_cfg).state.as_dict()
    understanding_cfg.merge_from_list(options)
    assert drawn_ids(understanding_cfg) == before
    assert build_train_loader(understanding_cfg, 3, state).state.as_dict() == state
    assert not [text for text in caplog.messages if "or in another order" in text]


def fatter_box(record):
    record["annotations"][0]["bbox"][2] += 1


def other_class(record):
    record["annotations"][0]["category_id"] = (record["annotations"][0]["category_id"] + 1) % 3


def no_annotation(record):
    record["annotations"].pop()


@pytest.mark.parametrize("change", [fatter_box, other_class, no_annotation])
def test_changed_annotations_are_named_when_a_run_goes_on(data_cfg, mixed_dataset, monkeypatch, caplog, change):
    data_cfg.DATASETS.TRAIN = (mixed_dataset,)
    state = build_train_loader(data_cfg).state.as_dict()
    dicts = DatasetCatalog.get(mixed_dataset)
    change(next(record for record in dicts if len(record["annotations"]) == 2))
    monkeypatch.setitem(DatasetCatalog.data, mixed_dataset, lambda: dicts)
    build_train_loader(data_cfg, 3, state)
    (message,) = [text for text in caplog.messages if "goes on with other content" in text]
    assert f"annotations of '{mixed_dataset}' was " in message


def test_a_checkpoint_without_digests_goes_on_with_the_same_samples(data_cfg, mixed_dataset, caplog):
    data_cfg.DATASETS.TRAIN = (mixed_dataset,)
    state = build_train_loader(data_cfg).state.as_dict()
    layout = {key: value for key, value in state["layout"].items() if not key.startswith("annotations of")}
    assert layout != state["layout"]
    assert build_train_loader(data_cfg, 3, {**state, "layout": layout}).state.as_dict() == state
    assert not [text for text in caplog.messages if "goes on with other content" in text]


def test_images_of_a_run_that_goes_on_may_have_moved(data_cfg, mixed_dataset, monkeypatch, tmp_path, caplog):
    data_cfg.DATASETS.TRAIN = (mixed_dataset,)
    state = build_train_loader(data_cfg).state.as_dict()
    dicts = DatasetCatalog.get(mixed_dataset)
    for record in dicts:
        moved = tmp_path / Path(record["file_name"]).name
        shutil.move(record["file_name"], moved)
        record["file_name"] = str(moved)
    monkeypatch.setitem(DatasetCatalog.data, mixed_dataset, lambda: dicts)
    assert build_train_loader(data_cfg, 3, state).state.as_dict() == state
    assert not [text for text in caplog.messages if "goes on with other content" in text]


# --- read once


def test_a_test_reads_a_dataset_once_and_a_question_once(understanding_cfg, monkeypatch):
    vqa = understanding_cfg.DATASETS.TRAIN[1]
    load, asked, read = DatasetCatalog.data[vqa], [], []
    monkeypatch.setitem(DatasetCatalog.data, vqa, lambda: read.append(vqa) or load())
    original = questions.question_to_ground
    monkeypatch.setattr(questions, "question_to_ground", lambda *words: asked.append(words[0]) or original(*words))
    understanding_cfg.DATASETS.TEST = (vqa,)
    model = torch.nn.Identity()
    model.forward = lambda inputs: [{"answer_scores": torch.tensor([0.9, 0.1])} for _ in inputs]
    results = GLIPv2Trainer.test(understanding_cfg, model)
    assert results["vqa"] and read == [vqa] and len(asked) == 8


def test_detection_data_without_a_json_file_are_read_once_for_each_test(data_cfg, mixed_dataset, tmp_path, monkeypatch):
    dicts, metadata = DatasetCatalog.get(mixed_dataset), MetadataCatalog.get(mixed_dataset)
    jsonl_file = tmp_path / "lines.jsonl"

    def write(first: int) -> None:
        lines = []
        for row, record in enumerate(dicts):
            names = [metadata.thing_classes[item["category_id"]] for item in record["annotations"]]
            boxes = [
                {"bbox": item["bbox"], "label": item["category_id"], "category": name}
                for item, name in zip(record["annotations"], names)
            ]
            image = {"filename": Path(record["file_name"]).name, "height": record["height"], "width": record["width"]}
            lines.append(json.dumps({**image, "detection": {"instances": boxes if row >= first else []}}))
        jsonl_file.write_text("\n".join(lines))

    def find_all(inputs: list[dict]) -> list[dict]:
        """What the lines of the beginning hold; the ids of images are numbers of lines."""
        found = []
        for sample in inputs:
            items = dicts[sample["image_id"] - 1]["annotations"]
            instances = Instances((sample["height"], sample["width"]))
            instances.pred_boxes = Boxes(torch.tensor([item["bbox"] for item in items]).float().reshape(-1, 4))
            instances.scores = torch.ones(len(items))
            instances.pred_classes = torch.tensor([item["category_id"] for item in items], dtype=torch.int64)
            found.append({"instances": instances})
        return found

    write(0)
    register_odvg("lines", jsonl_file, metadata.image_root, task="detection")
    data_cfg.DATASETS.TEST = ("lines",)
    model = torch.nn.Identity()
    model.forward = find_all
    opened, original_open = [], open
    monkeypatch.setattr("builtins.open", lambda path, *a, **k: opened.append(str(path)) or original_open(path, *a, **k))
    assert GLIPv2Trainer.test(data_cfg, model)["bbox"]["AP"] == pytest.approx(100)
    assert opened.count(str(jsonl_file)) == 1
    # Boxes that are gone from the file are wrong from now on.
    write(3)
    assert 0 < GLIPv2Trainer.test(data_cfg, model)["bbox"]["AP"] < 90
    assert opened.count(str(jsonl_file)) == 2


@pytest.mark.parametrize("evaluator_type", ["coco", "lvis"])
def test_a_test_reads_detection_data_once_for_its_loader_and_its_evaluator(
    data_cfg, mixed_dataset, monkeypatch, evaluator_type
):
    source = MetadataCatalog.get(mixed_dataset)
    json_file, name = source.json_file, f"{mixed_dataset}_{evaluator_type}"
    content = json.loads(Path(json_file).read_text())
    for number, image in enumerate(content["images"]):
        image.update(neg_category_ids=[30], not_exhaustive_category_ids=[10] * (number % 2))
    content["categories"] = [{**row, "frequency": "f"} for row in content["categories"]]
    content["annotations"][1]["bbox"] = None
    # One of them reaches past its image; the file of another image is missing.
    content["annotations"][2].update(bbox=[-5, 6, 400, 10], area=7.5)
    Path(json_file).write_text(json.dumps(content))
    Path(source.image_root, content["images"][4]["file_name"]).unlink()
    {"coco": register_coco_grounding, "lvis": register_lvis}[evaluator_type](name, json_file, source.image_root)

    expected = load_detection_truth(json_file, source.image_root, is_lvis=evaluator_type == "lvis")
    dataset = load_test_dataset(data_cfg, name)
    assert dataset.truth == expected
    assert len(expected["images"]) == 8 and 0 < len(expected["annotations"]) < len(content["annotations"]) - 1

    opened, parsed, looked_up, original_open, parse = [], [], [], open, json.load
    monkeypatch.setattr("builtins.open", lambda path, *a, **k: opened.append(path) or original_open(path, *a, **k))
    monkeypatch.setattr(json, "load", lambda file, **k: parsed.append(file.name) or parse(file, **k))
    for module in (coco, registration):
        find = lambda paths, find=module.missing_files: looked_up.append(len(paths)) or find(paths)  # noqa: E731
        monkeypatch.setattr(module, "missing_files", find)
    data_cfg.DATASETS.TEST = (name,)
    model = torch.nn.Identity()
    model.forward = lambda inputs: [{"instances": found_boxes(expected, one)} for one in inputs]
    results = GLIPv2Trainer.test(data_cfg, model)
    assert opened.count(json_file) == parsed.count(json_file) == 1 and looked_up == [9]
    again = GLIPv2Trainer.test(data_cfg, model, [build_evaluator(data_cfg, LoadedDataset(name, dataset.dicts))])
    assert results["bbox"]["AP"] > 50 and str(results) == str(again)


def found_boxes(truth: dict, sample: dict) -> Instances:
    """The true boxes of an image, found with a high score, and a wrong one with a higher."""
    items = [item for item in truth["annotations"] if item["image_id"] == sample["image_id"]]
    boxes = torch.tensor([item["bbox"] for item in items], dtype=torch.float32).reshape(-1, 4)
    boxes = torch.cat([torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1), torch.tensor([[0.0, 0, 3, 3]])])
    classes = torch.tensor([item["category_id"] // 10 - 1 for item in items] + [0])
    scores = torch.tensor([0.8] * len(items) + [0.9])
    return Instances((sample["height"], sample["width"]), pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_truncated_images_are_trained_and_tested_on_and_named(train_cfg, mixed_dataset, num_workers, caplog):
    path = Path(MetadataCatalog.get(mixed_dataset).image_root) / "102.png"
    noise = np.random.default_rng(0).integers(0, 256, (*cv2.imread(str(path)).shape[:2], 3), dtype=np.uint8)
    path.write_bytes(cv2.imencode(".jpg", noise)[1].tobytes()[:-200])
    train_cfg.DATALOADER.NUM_WORKERS = num_workers
    samples = [sample for batch in take(build_train_loader(train_cfg), 8) for sample in batch]
    reported = {sample["image_id"]: sample["truncated_files"] for sample in samples if "truncated_files" in sample}
    assert list(reported) == [102] and reported[102][0].startswith(f"{path}: image file is truncated")
    assert not any("skipped_files" in sample for sample in samples)
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        for _ in range(2):
            tested = [batch[0] for batch in build_test_loader(train_cfg, load_test_dataset(train_cfg, mixed_dataset))]
    assert len(tested) == 9 and not any("truncated_files" in sample for sample in tested)
    assert sum(str(path) in message for message in caplog.messages) == 1
