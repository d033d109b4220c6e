import json
import os
import re

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from glipv2_d2.data import DetectionDatasetMapper, build_test_loader
from glipv2_d2.data.datasets.few_shot import FewShot, few_shot_dicts
from glipv2_d2.data.datasets.formats import register_odinw
from glipv2_d2.data.datasets.odinw import ODINW_13, ODINW_SETS, OdinwSet, dataset_of_set, load_odinw
from glipv2_d2.data.datasets.value_checks import AnnotationError
from glipv2_d2.data.loading import load_test_dataset
from glipv2_d2.prompts.tokenizer import PromptTokenizer
from glipv2_d2.prompts.training_names import sample_training_names
from glipv2_d2.prompts.vocabulary import build_default_prompts

NAMES = [dataset_of_set(key, split) for key in ODINW_SETS for split in ("train", "val", "test")]


@pytest.fixture
def sets_in(monkeypatch):
    """A function that registers all sets anew below a root, until the end of the test."""

    def register(root) -> None:
        for catalog in (DatasetCatalog, MetadataCatalog):
            monkeypatch.setattr(catalog, "data", {k: v for k, v in catalog.data.items() if k not in NAMES})
        register_odinw(root)

    return register


def write_split(root, folder, names, json_name="annotations_without_background.json") -> None:
    """One image of 64 x 48 with a box of each name; category ids are 10, 20, ..."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    box = {"image_id": 100, "bbox": [4, 6, 20, 10], "area": 200, "iscrowd": 0}
    rows = range(1, 1 + len(names))
    content = {
        "images": [{"id": 100, "file_name": "100.png", "width": 64, "height": 48}],
        "annotations": [{"id": row, "category_id": 10 * row, **box} for row in rows],
        "categories": [{"id": 10 * row, "name": name} for row, name in zip(rows, names)],
    }
    (root / folder / json_name).write_text(json.dumps(content))
    Image.new("RGB", (64, 48)).save(root / folder / "100.png")


def test_there_are_35_sets_of_which_13_are_those_of_the_paper():
    assert len(ODINW_SETS) == 35 and len(NAMES) == 105
    assert len(set(ODINW_13)) == 13 and set(ODINW_13) <= set(ODINW_SETS)
    assert set(NAMES) <= set(DatasetCatalog.list())


@pytest.mark.parametrize(
    ("name", "json_file", "images"),
    [
        (
            "odinw_Aquarium_val",
            "Aquarium/Aquarium Combined.v2-raw-1024.coco/valid/annotations_without_background.json",
            "Aquarium/Aquarium Combined.v2-raw-1024.coco/valid",
        ),
        ("odinw_pothole_train", "pothole/train/annotations_without_background.json", "pothole/train"),
        ("odinw_pothole_test", "pothole/test/annotations_without_background.json", "pothole/test"),
        # All splits in one folder.
        ("odinw_pistols_val", "pistols/export/val_annotations_without_background.json", "pistols/export"),
        ("odinw_pistols_test", "pistols/export/test_annotations_without_background.json", "pistols/export"),
        # No test split: the paper reports on val.
        ("odinw_PascalVOC_test", "PascalVOC/valid/annotations_without_background.json", "PascalVOC/valid"),
    ],
)
def test_splits_lie_where_the_official_files_have_them(sets_in, tmp_path, name, json_file, images):
    sets_in(tmp_path)
    metadata = MetadataCatalog.get(name)
    assert (metadata.json_file, metadata.image_root) == (str(tmp_path / json_file), str(tmp_path / images))
    assert (metadata.task, metadata.evaluator_type) == ("detection", "coco")


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_missing_set_is_an_error_with_its_folder(sets_in, tmp_path, split):
    sets_in(tmp_path)
    for key, one in ODINW_SETS.items():
        folder = re.escape(os.path.join(str(tmp_path), one.folder))
        with pytest.raises(FileNotFoundError, match=f"odinw_{key}_{split}.*{folder}.*DETECTRON2_DATASETS"):
            DatasetCatalog.get(dataset_of_set(key, split))


def test_texts_of_all_sets_are_made_of_the_names_they_speak_of():
    for key, one in ODINW_SETS.items():
        assert len(set(one.names)) == len(one.names), key
        assert all(text in one.names for text, _, _ in one.contexts) or not one.names, key
        assert not one.folder.startswith("/") and ".." not in one.folder


def test_another_word_for_a_name_keeps_its_category(sets_in, tmp_path, data_cfg):
    sets_in(tmp_path)
    folder = ODINW_SETS["NorthAmericaMushrooms"].folder + "/test"
    write_split(tmp_path, folder, ("CoW", "chanterelle"))
    name = "odinw_NorthAmericaMushrooms_test"
    (record,) = DatasetCatalog.get(name)
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == ["CoW", "chanterelle"]
    assert metadata.thing_dataset_id_to_contiguous_id == {10: 0, 20: 1}
    assert [item["category_id"] for item in record["annotations"]] == [0, 1]
    ((sample,),) = build_test_loader(data_cfg, load_test_dataset(data_cfg, name))
    (prompt,) = sample["prompts"]
    assert prompt.phrases == ("flat mushroom", "yellow mushroom")
    assert prompt.category_ids.tolist() == [0, 1]


def test_a_caption_prompt_stands_around_its_name(sets_in, tmp_path, data_cfg):
    sets_in(tmp_path)
    write_split(tmp_path, "pothole/test", ("pothole",))
    name = "odinw_pothole_test"
    (prompt,) = DetectionDatasetMapper(data_cfg, is_train=False, dataset_names=[name]).test_prompts({})
    # [CLS] there are some holes on the road [SEP]
    assert len(prompt) == 9 and prompt.phrase_token_map.tolist() == [[row == 4 for row in range(9)]]
    assert prompt.phrases == ("holes",)


@pytest.mark.parametrize(
    ("key", "names", "expected"),
    [
        # Written from the official task files of ODinW-35.
        (
            "Aquarium",
            ("fish", "penguin", "puffin", "stingray"),
            "fish. penguin, which is black and white. puffin with orange beaks. stingray which is flat and round",
        ),
        ("EgoHands_generic", ("hand",), "hand of a person"),
        ("Packages", ("package",), "there is a package on the porch"),
        ("pothole", ("pothole",), "there are some holes on the road"),
        ("CottontailRabbits", ("Cottontail-Rabbit",), "rabbit"),
    ],
)
def test_prompts_say_what_the_official_files_say(sets_in, tmp_path, data_cfg, key, names, expected):
    sets_in(tmp_path)
    name = f"odinw_{key}_test"
    write_split(tmp_path, ODINW_SETS[key].paths("test")[1], names)
    (prompt,) = DetectionDatasetMapper(data_cfg, is_train=False, dataset_names=[name]).test_prompts({})
    text = PromptTokenizer.from_config(data_cfg).decode(prompt.input_ids.tolist()).text
    assert text.removesuffix(".") == expected


def test_training_says_the_same_as_the_test(sets_in, tmp_path, data_cfg):
    sets_in(tmp_path)
    names = ("fish", "penguin", "puffin", "stingray")
    folder = ODINW_SETS["Aquarium"].folder + "/train"
    write_split(tmp_path, folder, names)
    data_cfg.merge_from_list(["INPUT.PROMPT.NUM_NEGATIVES", -1, "INPUT.PROMPT.SHUFFLE", False])
    name = "odinw_Aquarium_train"
    (record,) = DatasetCatalog.get(name)
    sample = DetectionDatasetMapper(data_cfg, is_train=True, dataset_names=[name])(record)
    (expected,) = DetectionDatasetMapper(data_cfg, is_train=False, dataset_names=[name]).test_prompts({})
    (prompt,) = sample["prompts"]
    assert prompt.input_ids.tolist() == expected.input_ids.tolist()
    assert prompt.phrase_token_map.tolist() == expected.phrase_token_map.tolist()
    # fish . penguin , which is black and white . puffin with orange beaks . stingray which is flat and round
    assert prompt.phrases == names and len(prompt) > 20
    assert sample["instances"].gt_category_ids.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (OdinwSet("x", names=("a", "b", "c")), "categories: expected .*3 .* a, b, c.*found red dog, cat"),
        (OdinwSet("x", contexts=(("cow", "a ", ""),)), "categories: expected .*'cow' among them.*found red dog, cat"),
    ],
)
def test_a_file_that_the_texts_do_not_fit_is_refused(tmp_path, new_name, one, message):
    write_split(tmp_path, "x", ("red dog", "cat"), "boxes.json")
    with pytest.raises(AnnotationError, match=message):
        load_odinw(str(tmp_path / "x/boxes.json"), str(tmp_path / "x"), one, new_name)


CHESS = ("  ", "bishop", "black-bishop")


def test_a_blank_category_is_in_no_phrase_and_stays_a_category(sets_in, tmp_path, data_cfg):
    """The first category of ChessPieces is two spaces; the official caption holds them, and no token is theirs."""
    sets_in(tmp_path)
    folder = ODINW_SETS["ChessPieces"].folder
    for split in ("train", "test"):
        write_split(tmp_path, f"{folder}/{split}", CHESS)
    data_cfg.merge_from_list(["INPUT.PROMPT.NUM_NEGATIVES", -1, "INPUT.PROMPT.SHUFFLE", False])
    name = "odinw_ChessPieces_test"
    (record,) = DatasetCatalog.get(name)
    assert MetadataCatalog.get(name).thing_classes == list(CHESS)
    assert [item["category_id"] for item in record["annotations"]] == [0, 1, 2]
    (prompt,) = DetectionDatasetMapper(data_cfg, is_train=False, dataset_names=[name]).test_prompts({})
    tokenizer = PromptTokenizer.from_config(data_cfg)
    assert prompt.input_ids.tolist() == tokenizer._encoder.encode("  . bishop. black-bishop").ids
    # [CLS] . bishop . black - bishop [SEP]
    assert [row.nonzero().flatten().tolist() for row in prompt.phrase_token_map] == [[], [2], [4, 5, 6]]
    assert prompt.category_ids.tolist() == [0, 1, 2]
    (train_record,) = DatasetCatalog.get("odinw_ChessPieces_train")
    mapper = DetectionDatasetMapper(data_cfg, is_train=True, dataset_names=["odinw_ChessPieces_train"])
    sample = mapper(train_record)
    assert sample["prompts"][0].input_ids.tolist() == prompt.input_ids.tolist()
    assert sample["instances"].gt_category_ids.tolist() == [1, 2]
    # No image has the blank category, and few-shot training does not ask for one.
    named = {**train_record, "annotations": train_record["annotations"][1:]}
    assert len(few_shot_dicts(name, [named], FewShot(1, 3), CHESS)) == 1


def test_a_blank_name_is_never_the_only_one_of_a_prompt(data_cfg):
    tokenizer = PromptTokenizer.from_config(data_cfg)
    options = {"num_negatives": 1, "full_negatives_prob": 1.0, "shuffle": True}
    rng = np.random.default_rng(0)
    drawn = [sample_training_names(["  ", "cat"], (), tokenizer, rng=rng, **options) for _ in range(20)]
    assert all(rows == [1] for rows in drawn)


def test_texts_of_the_sets_have_a_switch(sets_in, tmp_path, data_cfg):
    sets_in(tmp_path)
    write_split(tmp_path, "pothole/test", ("pothole",))
    name = "odinw_pothole_test"
    data_cfg.merge_from_list(["INPUT.PROMPT.DATASET_TEXTS", False, "DATASETS.TEST", (name,)])
    mapper = DetectionDatasetMapper(data_cfg, is_train=False, dataset_names=[name])
    for (prompt,) in mapper.test_prompts({}), build_default_prompts(data_cfg):
        assert prompt.phrases == ("pothole",)
        assert PromptTokenizer.from_config(data_cfg).decode(prompt.input_ids.tolist()).text == "pothole"
