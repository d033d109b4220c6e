import json
import pickle

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from glipv2_d2.data import register_grounding_json
from glipv2_d2.data.dataset_mappers.build import build_train_mapper, mapper_of
from glipv2_d2.data.dataset_mappers.detection import DetectionDatasetMapper
from glipv2_d2.data.dataset_mappers.grounding import GroundingDatasetMapper
from glipv2_d2.data.dataset_mappers.pseudo_grounding import PseudoGroundingDatasetMapper

CAPTION = "a red dog left of the cat"
TASKS = ("detection", "grounding", "pseudo_grounding")


@pytest.fixture
def names(make_dataset, tmp_path):
    """A dataset of each task, in the order of ``TASKS``, one image each with a red dog."""
    image = {"id": 1, "file_name": "a.png", "width": 64, "height": 48, "caption": CAPTION}
    box = {"image_id": 1, "bbox": [4, 6, 20, 10], "tokens_positive": [[2, 9]]}
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "captions.json").write_text(json.dumps({"images": [image], "annotations": [box]}))
    registered = []
    for task in TASKS[1:]:
        registered.append(f"{tmp_path.name}_{task}")
        register_grounding_json(registered[-1], tmp_path / "captions.json", tmp_path, task=task)
    return [make_dataset([(64, 48)], [[[0, 4, 6, 20, 10]]]), *registered]


@pytest.fixture
def mixed_cfg(data_cfg, names):
    data_cfg.DATASETS.TRAIN = tuple(names)
    data_cfg.INPUT.PROMPT.NUM_NEGATIVES = 1
    return data_cfg


def record_of(name: str, **fields) -> dict:
    return {**DatasetCatalog.get(name)[0], "dataset_name": name, "sample_seed": 1, **fields}


def test_each_dataset_goes_to_the_mapper_of_its_task(mixed_cfg, names):
    mapper = build_train_mapper(mixed_cfg)
    classes = [type(mapper.mapper_of_dataset[name]) for name in names]
    assert classes == [DetectionDatasetMapper, GroundingDatasetMapper, PseudoGroundingDatasetMapper]
    samples = [mapper(record_of(name)) for name in names]
    assert [len(sample["instances"]) for sample in samples] == [1, 1, 1]
    assert samples[0]["instances"].gt_category_ids.tolist() == [0]
    assert [sample["instances"].gt_category_ids.tolist() for sample in samples[1:]] == [[-1], [-1]]
    assert [sample["prompts"][0].phrases for sample in samples[1:]] == [("red dog",), ("red dog",)]


def test_there_is_one_tokenizer_and_one_mapper_a_task(mixed_cfg, names):
    mapper = build_train_mapper(mixed_cfg)
    assert len({id(one.tokenizer) for one in mapper.mapper_of_dataset.values()}) == 1
    mixed_cfg.DATASETS.TRAIN = (names[1], names[1], names[2])
    assert len({id(one) for one in build_train_mapper(mixed_cfg).mapper_of_dataset.values()}) == 2


def test_detection_datasets_share_their_category_ids(mixed_cfg, names, make_dataset):
    zoo = make_dataset([(64, 48)], [[[1, 4, 6, 20, 10]]], names=("lion", "Red_dog"))
    mixed_cfg.DATASETS.TRAIN = (names[1], names[0], zoo)
    sample = build_train_mapper(mixed_cfg)(record_of(zoo))
    # The red dog of the first detection dataset; captions have no ids.
    assert sample["instances"].gt_category_ids.tolist() == [0]


@pytest.mark.parametrize("found", [None, "elsewhere"])
def test_samples_of_other_datasets_are_named(mixed_cfg, names, found):
    record = {**record_of(names[0]), "dataset_name": found}
    with pytest.raises(ValueError, match=f"100.png: dataset_name: expected one of .*, found {found!r}"):
        build_train_mapper(mixed_cfg)(record)


def test_tasks_come_from_the_metadata(names, new_name):
    assert [mapper_of(name).task for name in names] == list(TASKS)
    assert mapper_of("coco_2017_train") is DetectionDatasetMapper
    MetadataCatalog.get(new_name).set(task="poetry")
    with pytest.raises(ValueError, match="task in its metadata: expected one of .*, found 'poetry'"):
        mapper_of(new_name)
    with pytest.raises(ValueError, match="dataset 'none_such' is not registered"):
        mapper_of("none_such")
    assert "none_such" not in MetadataCatalog.list()


def test_prompts_of_data_with_boxes_are_masked(mixed_cfg, names):
    mixed_cfg.MODEL.GLIPV2.MLM.ENABLED = True
    mapper = build_train_mapper(mixed_cfg)
    assert all(mapper(record_of(name))["prompts"][0].mlm_labels is not None for name in names)


def test_nothing_is_masked_without_masked_language_modelling(mixed_cfg, names):
    mapper = build_train_mapper(mixed_cfg)
    assert [mapper(record_of(name))["prompts"][0].mlm_labels for name in names] == [None] * 3


@pytest.mark.parametrize("only_positives", [True, False])
def test_only_names_are_restricted_to_those_with_a_box(mixed_cfg, names, only_positives):
    keys = ["MODEL.GLIPV2.MLM.ENABLED", True, "MODEL.GLIPV2.MLM.ONLY_POSITIVES", only_positives]
    mixed_cfg.merge_from_list([*keys, "MODEL.GLIPV2.MLM.MASK_PROB", 1.0, "INPUT.PROMPT.NUM_NEGATIVES", 3])
    mapper = build_train_mapper(mixed_cfg)
    prompts = [mapper(record_of(name))["prompts"][0] for name in names]
    asked = [prompt.mlm_labels != -100 for prompt in prompts]
    red_dog = prompts[0].phrase_token_map[prompts[0].phrases.index("red dog")]
    assert len(prompts[0].phrases) == 3 and red_dog.sum() == 2
    assert torch.equal(asked[0], red_dog) if only_positives else asked[0].all()
    # Of packed captions it is the words of the own one, not the special tokens around them all.
    assert asked[1].all() and asked[2][1:-1].all() and not asked[2][[0, -1]].any()


def test_keys_of_captions_reach_the_prompt(mixed_cfg, names):
    prompt_keys = {"NUM_NEGATIVE_CAPTIONS": 2, "NO_NEGATIVE_CAPTIONS_PROB": 0.0, "FULL_NEGATIVE_CAPTIONS_PROB": 1.0}
    for key, value in prompt_keys.items():
        mixed_cfg.INPUT.PROMPT[key] = value
    record = record_of(names[2], negative_captions=["three birds", "an old house", "two boats"])
    alone = len(build_train_mapper(mixed_cfg)(record_of(names[2]))["prompts"][0])

    def num_tokens() -> int:
        return len(build_train_mapper(mixed_cfg)(record)["prompts"][0])

    assert num_tokens() > alone + 4
    mixed_cfg.INPUT.PROMPT.NUM_NEGATIVE_CAPTIONS = 1
    assert alone < num_tokens() < alone + 6
    mixed_cfg.INPUT.PROMPT.NO_NEGATIVE_CAPTIONS_PROB = 1.0
    assert num_tokens() == alone
    mixed_cfg.merge_from_list(["INPUT.PROMPT.NO_NEGATIVE_CAPTIONS_PROB", 0.0])
    mixed_cfg.INPUT.PROMPT.FULL_NEGATIVE_CAPTIONS_PROB = 0.0
    assert num_tokens() == alone  # 0 to one less than 1


def test_the_least_score_reaches_the_boxes(mixed_cfg, names):
    record = record_of(names[2])
    record["annotations"] = [{**record["annotations"][0], "score": 0.6}]
    for min_score, kept in ((0.5, 1), (0.7, 0)):
        mixed_cfg.INPUT.PROMPT.MIN_PSEUDO_SCORE = min_score
        assert len(build_train_mapper(mixed_cfg)(record)["instances"]) == kept


@pytest.mark.parametrize("flip_words", [True, False])
def test_words_are_swapped_if_the_config_says_so(mixed_cfg, names, flip_words):
    mixed_cfg.INPUT.PROMPT.FLIP_WORDS = flip_words
    mapper = build_train_mapper(mixed_cfg)
    captions = set()
    for seed in range(10):
        ids = mapper(record_of(names[1], sample_seed=seed))["prompts"][0].input_ids
        captions.add(tuple(ids.tolist()))
    assert len(captions) == 1 + flip_words


def test_the_names_of_categories_are_never_swapped(mixed_cfg, make_dataset):
    name = make_dataset([(64, 48)], [[[0, 4, 6, 20, 10]]], names=("left shoe", "right shoe"))
    mixed_cfg.DATASETS.TRAIN = (name,)
    mapper = build_train_mapper(mixed_cfg)
    for seed in range(8):
        sample = mapper(record_of(name, sample_seed=seed, caption="a left shoe"))
        assert sample["prompts"][0].phrases[sample["instances"].gt_classes[0]] == "left shoe"


@pytest.mark.parametrize(("sampling", "num_names"), [("drawn", {2, 3}), ("total", {2})])
def test_the_kind_of_negative_sampling_reaches_the_prompt(mixed_cfg, names, sampling, num_names):
    mixed_cfg.merge_from_list(["INPUT.PROMPT.NEGATIVE_SAMPLING", sampling, "INPUT.PROMPT.NUM_NEGATIVES", 2])
    mixed_cfg.INPUT.PROMPT.FULL_NEGATIVES_PROB = 1.0
    mapper = build_train_mapper(mixed_cfg)
    lengths = {len(mapper(record_of(names[0], sample_seed=seed))["prompts"][0].phrases) for seed in range(12)}
    assert lengths == num_names


BIRDS = ("crow", "magpie", "bicycle", "robin", "car")


@pytest.mark.parametrize(("share", "phrases"), [(1.0, {"crow", "magpie", "robin"}), (0.0, set(BIRDS))])
def test_prompts_ask_for_siblings_by_the_share_of_the_config(mixed_cfg, make_dataset, share, phrases):
    def add_parents(content):
        for category in content["categories"]:
            category["supercategory"] = "vehicle" if category["name"] in ("bicycle", "car") else "bird"

    name = make_dataset([(64, 48)], [[[0, 4, 6, 20, 10]]], names=BIRDS, edit=add_parents)
    mixed_cfg.merge_from_list(["DATASETS.TRAIN", (name,), "INPUT.PROMPT.SIBLING_NEGATIVES", share])
    mixed_cfg.merge_from_list(["INPUT.PROMPT.NUM_NEGATIVES", 2, "INPUT.PROMPT.FULL_NEGATIVES_PROB", 1.0])
    # Its metadata are there once it was read, as in every training.
    record = record_of(name)
    mapper = build_train_mapper(mixed_cfg)
    asked = [mapper({**record, "sample_seed": seed})["prompts"][0].phrases for seed in range(12)]
    assert set().union(*asked) == phrases
    without = mapper({**record, "sample_seed": 0, "never_negative_ids": [1]})["prompts"][0].phrases
    assert "magpie" not in without


def test_data_without_siblings_are_named_once(mixed_cfg, names, caplog):
    mixed_cfg.INPUT.PROMPT.SIBLING_NEGATIVES = 0.5
    DatasetCatalog.get(names[0])
    with caplog.at_level("INFO"):
        mapper = build_train_mapper(mixed_cfg)
        for seed in range(3):
            mapper(record_of(names[0], sample_seed=seed))
    said = [line for line in caplog.messages if "SIBLING_NEGATIVES" in line]
    assert len(said) == 1 and f"has no effect on {names[0]!r}: " in said[0]


def test_it_can_be_sent_to_a_worker(mixed_cfg, names):
    mapper = pickle.loads(pickle.dumps(build_train_mapper(mixed_cfg)))
    assert [len(mapper(record_of(name))["instances"]) for name in names] == [1, 1, 1]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("FULL_NEGATIVES_PROB", 1.5),
        ("SIBLING_NEGATIVES", -0.5),
        ("NUM_NEGATIVE_CAPTIONS", -1),
        ("NO_NEGATIVE_CAPTIONS_PROB", 3.0),
        ("FULL_NEGATIVE_CAPTIONS_PROB", -0.1),
    ],
)
def test_a_key_out_of_range_is_an_error_before_the_first_sample(mixed_cfg, key, value):
    mixed_cfg.INPUT.PROMPT[key] = value
    with pytest.raises(ValueError, match=f"INPUT.PROMPT.{key}: expected .*, found {value}"):
        build_train_mapper(mixed_cfg)
