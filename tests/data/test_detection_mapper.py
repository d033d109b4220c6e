import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from mapper_cases import annotation, drawn_record, options, words_of_boxes
from PIL import Image

from glipv2_d2.data.dataset_mappers.detection import DetectionDatasetMapper, training_kept_names
from glipv2_d2.data.image_reading import UnreadableImageError
from glipv2_d2.data.transforms import ZoomWindow
from glipv2_d2.prompts.kept_names import KeptNames
from glipv2_d2.prompts.tokenizer import PromptTokenizer
from glipv2_d2.structures import KEPT_NAME

LONG_NAME = "very " * 60 + "long dog"


def make_mapper(vocabularies=None, **more) -> DetectionDatasetMapper:
    own = {"separator": ". ", "num_negatives": 85, "full_negatives_prob": 1.0, "shuffle": True}
    vocabularies = vocabularies or {"pets": ["red dog", "cat", "fish"]}
    return DetectionDatasetMapper(vocabularies=vocabularies, **options(**{**own, **more}))


@pytest.fixture
def record(tmp_path: Path) -> dict:
    """An image of 64 x 48 with a cat, a dog, and a crowd of fish."""
    boxes = [([4.0, 6.0, 24.0, 16.0], 1, 0), ([30.0, 8.0, 40.0, 40.0], 0, 0), ([1.0, 1.0, 9.0, 9.0], 2, 1)]
    annotations = [annotation(box, category_id=category, iscrowd=crowd) for box, category, crowd in boxes]
    return drawn_record(tmp_path, annotations=annotations)


def phrases_of_boxes(sample: dict) -> list[str]:
    return [sample["prompts"][0].phrases[row] for row in sample["instances"].gt_classes.tolist()]


def test_a_training_sample_follows_the_contract(record):
    sample = make_mapper()(record)
    pixels = np.asarray(Image.open(record["file_name"]))
    assert sample["image"].dtype == torch.uint8
    assert torch.equal(sample["image"], torch.from_numpy(pixels[:, :, ::-1].transpose(2, 0, 1).copy()))
    assert {key: sample[key] for key in ("image_id", "width", "height")} == {"image_id": 7, "width": 64, "height": 48}
    assert sample["file_name"] == record["file_name"]
    assert sample["instances"].image_size == (48, 64)
    assert sample["instances"].gt_boxes.tensor.tolist() == [[4, 6, 24, 16], [30, 8, 40, 40]]
    assert phrases_of_boxes(sample) == ["cat", "red dog"]
    assert sample["instances"].gt_category_ids.tolist() == [1, 0]
    assert len(sample["prompts"]) == 1 and set(sample["prompts"][0].phrases) == {"red dog", "cat", "fish"}


def test_a_zoomed_window_holds_a_box_that_trains(record):
    """The crowd is no such box. Free windows of 16 x 16 of this image often hold none."""
    window = ZoomWindow((1.0, 1.0), (16, 16), (48, 64))
    samples = [make_mapper(augmentations=[window])({**record, "sample_seed": seed}) for seed in range(40)]
    assert all(len(sample["instances"]) > 0 for sample in samples)
    assert {name for sample in samples for name in phrases_of_boxes(sample)} == {"cat", "red dog"}


def test_gt_classes_are_rows_that_spell_the_name(record):
    for seed in range(8):
        sample = make_mapper()({**record, "sample_seed": seed})
        prompt, rows = sample["prompts"][0], sample["instances"].gt_classes
        # "red dog" has two word pieces, "cat" one.
        assert prompt.phrase_token_map[rows].sum(dim=1).tolist() == [1, 2]
        assert prompt.category_ids[rows].tolist() == [1, 0]


def test_the_dataset_dict_stays_as_it_is(record):
    before = pickle.dumps(record)
    make_mapper()(record)
    assert pickle.dumps(record) == before


def test_boxes_in_both_modes_are_the_same(record):
    sides = {**record["annotations"][0], "bbox_mode": BoxMode.XYWH_ABS, "bbox": [4, 6, 20, 10]}
    sample = make_mapper()({**record, "annotations": [sides]})
    assert sample["instances"].gt_boxes.tensor.tolist() == [[4, 6, 24, 16]]


def test_a_flip_mirrors_boxes_and_pixels(record):
    plain = make_mapper()(record)
    flipped = make_mapper(augmentations=[T.RandomFlip(1.0)])(record)
    assert torch.equal(flipped["image"], plain["image"].flip(2))
    assert flipped["instances"].gt_boxes.tensor.tolist() == [[40, 6, 60, 16], [24, 8, 34, 40]]
    assert phrases_of_boxes(flipped) == ["cat", "red dog"]


def test_boxes_that_a_crop_cuts_off_go(record):
    crop = T.CropTransform(0, 0, 26, 10)
    instances = make_mapper(augmentations=[crop])(record)["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[4, 6, 24, 10]]
    assert len(instances.gt_classes) == len(instances.gt_category_ids) == 1


def test_an_image_without_boxes_trains_on_absent_names(record):
    for annotations in ([], record["annotations"][2:]):
        sample = make_mapper(num_negatives=1)({**record, "annotations": annotations})
        assert sample["instances"].gt_boxes.tensor.shape == (0, 4)
        assert sample["instances"].gt_classes.dtype == sample["instances"].gt_category_ids.dtype == torch.int64
        assert sample["prompts"][0].phrases[0] in ("red dog", "cat", "fish")


def test_a_name_that_does_not_fit_loses_its_boxes(record):
    # Six tokens hold "[CLS] red dog . [SEP]" or "[CLS] cat . [SEP]", but not both names with their separators.
    mapper = make_mapper(max_tokens=6, num_negatives=0)
    kept = [tuple(phrases_of_boxes(mapper({**record, "sample_seed": seed}))) for seed in range(20)]
    assert set(kept) == {("cat",), ("red dog",)}


def test_phrases_cut_off_by_the_tokenizer_lose_their_boxes(record, monkeypatch):
    module = "glipv2_d2.data.dataset_mappers.detection.sample_training_names"
    monkeypatch.setattr(module, lambda *args, **kwargs: [0, 2, 1])
    mapper = make_mapper(max_tokens=7)  # [CLS] red dog . fish . [SEP], and no room for "cat"
    sample = mapper(record)
    assert sample["prompts"][0].phrases == ("red dog", "fish", "cat")
    assert phrases_of_boxes(sample) == ["red dog"]
    assert sample["instances"].gt_boxes.tensor.tolist() == [[30, 8, 40, 40]]


def test_prompt_options_reach_the_prompt(record):
    sample = make_mapper(num_negatives=0)(record)
    assert set(sample["prompts"][0].phrases) == {"red dog", "cat"}
    sample = make_mapper(num_negatives=-1, shuffle=False, separator=" ; ")(record)
    assert sample["prompts"][0].phrases == ("red dog", "cat", "fish")
    tokens = PromptTokenizer().count_tokens("red dog ; cat ; fish")
    assert len(sample["prompts"][0]) == tokens + 2


def test_the_seed_alone_decides_and_global_randomness_is_left_alone(record):
    mapper = make_mapper(augmentations=[T.RandomFlip(0.5), T.RandomCrop("absolute", (20, 20))])
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    samples = [mapper({**record, "sample_seed": seed}) for seed in (1, 1, 2, 3)]
    assert np.random.get_state()[1].tolist() == before
    np.random.seed(5)
    again = mapper({**record, "sample_seed": 1})
    assert torch.equal(samples[0]["image"], samples[1]["image"]) and torch.equal(samples[0]["image"], again["image"])
    assert samples[0]["prompts"][0].phrases == again["prompts"][0].phrases
    assert len({sample["image"].numpy().tobytes() for sample in samples}) == 3


def test_global_randomness_is_restored_after_an_error(record):
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    with pytest.raises(UnreadableImageError, match="a.png: .*expected a readable image of the size"):
        make_mapper()({**record, "width": 65})
    assert np.random.get_state()[1].tolist() == before


def test_without_a_seed_the_global_generator_decides(record):
    del record["sample_seed"]
    mapper = make_mapper()
    np.random.seed(0)
    orders = [mapper(record)["prompts"][0].phrases for _ in range(8)]
    assert len(set(orders)) > 1
    np.random.seed(0)
    assert [mapper(record)["prompts"][0].phrases for _ in range(8)] == orders


def test_test_samples_share_the_prompts_and_have_no_instances(record):
    mapper = make_mapper(is_train=False, chunk_sizes={"pets": 2})
    sample, other = mapper(record), mapper({**record, "image_id": 8})
    assert sample["prompts"] is other["prompts"] and "instances" not in sample
    assert [prompt.phrases for prompt in sample["prompts"]] == [("red dog", "cat"), ("fish",)]
    assert [prompt.category_ids.tolist() for prompt in sample["prompts"]] == [[0, 1], [2]]
    assert set(mapper.test_image(record)) == {"file_name", "image_id", "width", "height", "image"}


def test_each_dataset_has_its_own_names_and_shared_ids(record):
    vocabularies = {"pets": ["red dog", "cat", "fish"], "zoo": ["lion", "Cat", "red_dog", "bow_(weapon)"]}
    mapper = make_mapper(vocabularies=vocabularies)
    pets = mapper({**record, "dataset_name": "pets"})
    zoo = mapper({**record, "dataset_name": "zoo"})
    assert phrases_of_boxes(pets) == ["cat", "red dog"] and phrases_of_boxes(zoo) == ["Cat", "lion"]
    assert set(zoo["prompts"][0].phrases) == set(vocabularies["zoo"])
    assert pets["instances"].gt_category_ids.tolist() == [1, 0]
    # "Cat" is the cat of the other dataset; "lion" is a name that only this one has.
    assert zoo["instances"].gt_category_ids.tolist() == [1, 3]
    ids = dict(zip(zoo["prompts"][0].phrases, zoo["prompts"][0].category_ids.tolist()))
    assert ids == {"lion": 3, "Cat": 1, "red_dog": 0, "bow_(weapon)": 4}
    with pytest.raises(ValueError, match="dataset_name is None, expected one of .*zoo"):
        mapper(record)


def test_names_that_read_the_same_keep_their_ids_in_one_dataset():
    mapper = make_mapper(vocabularies={"arms": ["bow_(weapon)", "bow_(ribbon)"]}, is_train=False)
    assert mapper.test_prompts({})[0].category_ids.tolist() == [0, 1]


@pytest.mark.parametrize("num_negatives", [-1, 85])
def test_no_negative_reads_like_a_name_in_the_image(record, num_negatives):
    names = ["bow_(weapon)", "cat", "bow_(ribbon)", "fish"]
    mapper = make_mapper(vocabularies={"arms": names}, num_negatives=num_negatives)
    annotations = [{**record["annotations"][0], "category_id": 2}]
    sample = mapper({**record, "annotations": annotations})
    assert sorted(sample["prompts"][0].phrases) == ["bow_(ribbon)", "cat", "fish"]
    assert phrases_of_boxes(sample) == ["bow_(ribbon)"]
    # Both in the image: both in the prompt. Neither: both can be negatives.
    both = mapper({**record, "annotations": annotations + [{**annotations[0], "category_id": 0}]})
    assert set(both["prompts"][0].phrases) == set(names)
    assert phrases_of_boxes(both) == ["bow_(ribbon)", "bow_(weapon)"]
    neither = mapper({**record, "annotations": [{**annotations[0], "category_id": 1}]})
    assert set(neither["prompts"][0].phrases) == set(names)


def test_names_of_another_dataset_that_read_the_same_matter_not(record):
    mapper = make_mapper(vocabularies={"pets": ["red dog", "cat", "fish"], "zoo": ["lion", "Lion", "tiger"]})
    sample = mapper({**record, "annotations": record["annotations"][1:2], "dataset_name": "pets"})
    assert set(sample["prompts"][0].phrases) == {"red dog", "cat", "fish"}


def test_names_whose_objects_do_not_all_have_a_box_are_never_negatives_of_the_image(record):
    mapper = make_mapper()
    assert set(mapper(record)["prompts"][0].phrases) == {"red dog", "cat", "fish"}
    for ids, phrases in (([2], {"red dog", "cat"}), ([1, 2], {"red dog", "cat"}), ([1], {"red dog", "cat", "fish"})):
        sample = mapper({**record, "never_negative_ids": ids})
        assert set(sample["prompts"][0].phrases) == phrases
        assert phrases_of_boxes(sample) == ["cat", "red dog"]


def test_a_vocabulary_that_fits_no_prompt_is_an_error_at_once():
    with pytest.raises(ValueError, match="long dog|very"):
        make_mapper(vocabularies={"pets": [LONG_NAME]}, max_tokens=32)


def test_the_config_decides(mixed_dataset, data_cfg):
    data_cfg.merge_from_list(["DATASETS.TRAIN", (mixed_dataset,), "INPUT.FORMAT", "RGB", "INPUT.RANDOM_FLIP", "none"])
    data_cfg.merge_from_list(["INPUT.PROMPT.NUM_NEGATIVES", 0, "INPUT.PROMPT.SEPARATOR", " ; "])
    record = DatasetCatalog.get(mixed_dataset)[2]
    sample = DetectionDatasetMapper(data_cfg)(record)
    assert min(sample["image"].shape[1:]) in (48, 64, 96)
    assert sorted(sample["prompts"][0].phrases) == ["fish", "red dog"]
    data_cfg.INPUT.MIN_SIZE_TEST = 48
    test = DetectionDatasetMapper(data_cfg, is_train=False, dataset_names=(mixed_dataset,))(record)
    assert torch.equal(test["image"][0], torch.from_numpy(np.asarray(Image.open(record["file_name"]))[:, :, 0].copy()))


def test_a_mapper_can_be_sent_to_a_worker(record):
    mapper = pickle.loads(pickle.dumps(make_mapper()))
    assert phrases_of_boxes(mapper(record)) == ["cat", "red dog"]


def test_names_that_do_not_fit_are_counted_with_their_boxes(record):
    # One of both names fits, see above; a second cat goes with the first.
    record["annotations"].append({**record["annotations"][0], "bbox": [50.0, 6.0, 60.0, 16.0]})
    mapper = make_mapper(max_tokens=6, num_negatives=0)
    for seed in range(10):
        sample = mapper({**record, "sample_seed": seed})
        lost_boxes = 2 if phrases_of_boxes(sample) == ["red dog"] else 1
        assert sample["dropped"] == {"phrases": 1, "boxes": lost_boxes}
    assert "dropped" not in make_mapper()(record)


def test_other_names_take_the_place_of_absent_ones_as_far_as_they_fit(record):
    """Boxes stay with their names."""
    kept = KeptNames(("zebra", "alarm clock", "spoon"), number=3, share=1.0)
    found = []
    # "red dog. cat. " has five tokens, "zebra. " and "spoon. " have two, "alarm clock. " three; two are special.
    for max_tokens in (256, 10, 8):
        mapper = make_mapper(num_negatives=-1, shuffle=False, kept_names=kept, max_tokens=max_tokens)
        for seed in range(8):
            sample = mapper({**record, "sample_seed": seed})
            prompt = sample["prompts"][0]
            assert sorted(phrases_of_boxes(sample)) == ["cat", "red dog"]
            assert sorted(words_of_boxes(mapper, sample)) == ["cat", "red dog"]
            assert [one for one in prompt.phrases if one not in kept.names] == ["red dog", "cat"]
            is_kept = [number == KEPT_NAME for number in prompt.category_ids.tolist()]
            assert is_kept == [one in kept.names for one in prompt.phrases]
            assert len(prompt) <= max_tokens and prompt.phrase_token_map.any(dim=1).all()
            found.append((max_tokens, sum(is_kept)))
    assert set(found) - {(10, 0)} == {(256, 3), (10, 1), (8, 0)}


@pytest.mark.parametrize(
    ("options", "replays"),
    [
        ({}, True),
        ({"KEEP.ENABLED": False}, False),
        # Each kind of names has its own weights.
        ({"KEEP.BY_NAME": True}, False),
        ({"KEEP.NAMES_WEIGHT": 0.0}, True),
        ({"KEEP.BOXES_WEIGHT": 0.0}, True),
        ({"KEEP.NAMES_WEIGHT": 0.0, "KEEP.BOXES_WEIGHT": 0.0}, False),
        ({"MODE": "prompt"}, False),
        ({"MODE": "lora"}, True),
    ],
)
def test_prompts_hold_other_names_where_a_loss_reads_what_the_base_says_of_them(tiny_cfg, options, replays):
    options = {"KEEP.ENABLED": True, "KEEP.BY_NAME": False, **options}
    tiny_cfg.merge_from_list([word for key, one in options.items() for word in (f"MODEL.GLIPV2.TUNING.{key}", one)])
    kept = training_kept_names(tiny_cfg, {"pets": ["dog"], "zoo": ["zebra", "cat"]})
    assert (kept is not None) == replays
    # The names of no dataset are other names.
    assert kept is None or ("cow" in kept.names and not {"dog", "zebra", "cat"} & set(kept.names))


def test_absent_names_stay_where_no_other_name_fits_into_a_prompt(record):
    mapper = make_mapper(shuffle=False, kept_names=KeptNames((LONG_NAME,), number=1, share=1.0), max_tokens=16)
    assert mapper({**record, "annotations": []})["prompts"][0].phrases == ("red dog", "cat", "fish")
