"""Registered names of own sets, and the key that every process reads."""

import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from own_set_writers import Photo, write_coco, write_voc

from glipv2_d2.data.loading import load_dataset
from glipv2_d2.data.own_sets import find_own_sets, register_configured_sets, register_own_sets, register_test_sets
from glipv2_d2.engine.command_line import build_config
from glipv2_d2.errors import InputError

CONFIG = Path(__file__).resolve().parents[3] / "configs" / "demo" / "glipv2_micro.yaml"
PHOTOS = [Photo(f"{i}.png", 40, 30, [("cat", 2 + i, 3, 22, 23)]) for i in range(10)]


@pytest.fixture(autouse=True)
def no_names_left():
    before = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize(
    ("splits", "tested"),
    [
        ({"train": PHOTOS[:6], "valid": PHOTOS[6:8], "test": PHOTOS[8:]}, ("pets_val", "pets_test")),
        ({"train": PHOTOS[:6], "test": PHOTOS[6:]}, ("pets_test",)),
        ({"train": PHOTOS}, ("pets_train",)),
        ({"": PHOTOS}, ("pets_test",)),
    ],
    ids=["held out", "no validation", "a folder to train on", "no splits"],
)
def test_a_finished_model_is_measured_on_what_is_held_out_or_on_all_at_once(tmp_path, splits, tested):
    path = write_coco(tmp_path / "pets", splits, ["cat"])
    assert register_test_sets(path, tmp_path / "out") == tested
    assert sum(len(load_dataset(name)) for name in tested) == (4 if len(splits) > 1 else 10)
    # Other processes, and the config that is written, read the set again.
    options = ["DATASETS.REGISTER", str((str(path),)), "DATASETS.DIVIDE", "False", "OUTPUT_DIR", str(tmp_path / "b")]
    again = register_configured_sets(build_config(str(CONFIG), [*options, "MODEL.DEVICE", "cpu"]))[str(path)]
    assert {*tested} <= {*again.values()} and sum(len(load_dataset(name)) for name in again.values()) == 10


def test_splits_are_registered_under_the_name_of_the_folder(tmp_path):
    own = find_own_sets(write_coco(tmp_path / "my cats", {"train": PHOTOS[:6], "valid": PHOTOS[6:]}, ["cat"]))
    names = register_own_sets(own, tmp_path / "out")
    assert names == {"train": "my_cats_train", "val": "my_cats_val"}
    records = load_dataset("my_cats_val")
    assert [record["annotations"][0]["bbox"][0] for record in records] == [8, 9, 10, 11]
    assert MetadataCatalog.get("my_cats_train").thing_classes == ["cat"]
    # The json of the source numbers the reversed list from 50, and its class 7.
    ids = json.loads((tmp_path / "out" / "my_cats_train_ids.json").read_text())
    assert ids == {"images": {str(i + 1): 55 - i for i in range(6)}, "categories": {"1": 7}}


def test_a_set_may_be_registered_again_but_not_over_another(tmp_path):
    own = find_own_sets(write_voc(tmp_path / "cats", {"train": PHOTOS}, ["cat"]))
    first = register_own_sets(own, tmp_path / "out")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert register_own_sets(own, tmp_path / "out") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == stamps
    other = find_own_sets(write_voc(tmp_path / "b" / "cats", {"train": PHOTOS}, ["cat"]))
    with pytest.raises(InputError, match="cats_train.*rename the folder"):
        register_own_sets(other, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == stamps


def test_a_made_split_is_written_down(tmp_path):
    own = find_own_sets(write_voc(tmp_path / "cats", {"train": PHOTOS}, ["cat"]), seed=3)
    register_own_sets(own, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "cats_set.json").read_text())
    assert content["seed"] == 3 and len(content["chosen"]["val"]) == 2
    assert sorted(content["chosen"]["train"] + content["chosen"]["val"]) == [photo.name for photo in PHOTOS]


def test_the_key_registers_with_every_config(tmp_path):
    root = write_voc(tmp_path / "key cats", {"train": PHOTOS[:6], "val": PHOTOS[6:]}, ["cat"])
    options = ["DATASETS.REGISTER", str((str(root),)), "OUTPUT_DIR", str(tmp_path / "out"), "MODEL.DEVICE", "cpu"]
    for _ in range(2):
        build_config(str(CONFIG), options)
    assert len(load_dataset("key_cats_train")) == 6 and len(load_dataset("key_cats_val")) == 4
    assert (tmp_path / "out" / "datasets" / "key_cats_train.json").is_file()


def test_a_process_reads_a_configured_set_once(tmp_path, monkeypatch):
    root = write_voc(tmp_path / "once cats", {"train": PHOTOS[:6], "val": PHOTOS[6:]}, ["cat"])
    options = ["DATASETS.REGISTER", str((str(root),)), "OUTPUT_DIR", str(tmp_path / "out"), "MODEL.DEVICE", "cpu"]
    cfg = build_config(str(CONFIG), options)
    monkeypatch.setattr("glipv2_d2.data.own_sets.register.find_own_sets", None)
    assert register_configured_sets(cfg) == {str(root): {"train": "once_cats_train", "val": "once_cats_val"}}


@pytest.mark.parametrize("words", ["tabby cat", "tabby_cat (brown)"])
def test_words_of_a_yaml_are_what_prompts_say(tmp_path, words):
    """Prompts take names without underscores and parentheses, and refuse other words beside them."""
    write_voc(tmp_path / "cells", {"train": PHOTOS}, ["cat"])
    (tmp_path / "set.yaml").write_text(f"name: worded\npath: cells\nnames: {{cat: {words}}}\n")
    names = register_own_sets(find_own_sets(tmp_path / "set.yaml"), tmp_path / "out")
    assert MetadataCatalog.get(names["train"]).prompt_texts == {"cat": ("", "tabby cat", "")}
    assert MetadataCatalog.get(names["train"]).thing_classes == ["cat"]


def test_a_run_inside_the_folder_of_its_data_changes_nothing(tmp_path, monkeypatch):
    root = write_voc(tmp_path / "inner cats", {"train": PHOTOS[:6], "val": PHOTOS[6:]}, ["cat"])
    before = find_own_sets(root)
    options = ["DATASETS.REGISTER", str((str(root),)), "OUTPUT_DIR", str(root / "out"), "MODEL.DEVICE", "cpu"]
    build_config(str(CONFIG), options)
    assert (root / "out" / "datasets" / "inner_cats_train.json").is_file() and find_own_sets(root) == before


def test_a_run_knows_its_classes_when_its_images_are_gone(tmp_path):
    write_voc(tmp_path / "gone", {"train": PHOTOS[:6], "val": PHOTOS[6:]}, ["cat"])
    (tmp_path / "set.yaml").write_text("name: gone cats\npath: gone\nnames: {cat: tabby cat}\n")
    options = ["DATASETS.REGISTER", str((str(tmp_path / "set.yaml"),)), "MODEL.DEVICE", "cpu"]
    cfg = build_config(str(CONFIG), [*options, "OUTPUT_DIR", str(tmp_path / "run")])
    (tmp_path / "run" / "config.yaml").write_text(cfg.dump())
    for name in ("gone_cats_train", "gone_cats_val"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    (tmp_path / "set.yaml").unlink()
    (tmp_path / "run").rename(tmp_path / "moved")
    build_config(str(tmp_path / "moved" / "config.yaml"), [], for_results=True)
    assert MetadataCatalog.get("gone_cats_val").thing_classes == ["cat"]
    assert MetadataCatalog.get("gone_cats_val").prompt_texts == {"cat": ("", "tabby cat", "")}
    assert len(DatasetCatalog.get("gone_cats_train")) == 6


def test_a_prediction_asks_for_the_classes_that_were_trained(tmp_path, monkeypatch):
    root = write_voc(tmp_path / "grown cats", {"train": PHOTOS[:6], "val": PHOTOS[6:]}, ["cat"])
    options = ["DATASETS.REGISTER", str((str(root),)), "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "run")]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(build_config(str(CONFIG), options).dump())
    (tmp_path / "run").rename(tmp_path / "first")
    # The set gets a class, and another run takes the name of the first.
    for path in (root / "Annotations").iterdir():
        path.write_text(path.read_text().replace("> cat <", "> dog <", 1))
    build_config(str(CONFIG), options)
    for is_measured, expected in ((False, ["cat"]), (True, ["dog"])):
        for name in ("grown_cats_train", "grown_cats_val"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        build_config(str(tmp_path / "first" / "config.yaml"), [], for_results=True, measures=is_measured)
        assert MetadataCatalog.get("grown_cats_val").thing_classes == expected


def test_a_set_that_is_not_there_stops_a_training_but_no_prediction(tmp_path, caplog):
    options = ["DATASETS.REGISTER", str((str(tmp_path / "nowhere"),)), "OUTPUT_DIR", str(tmp_path / "out")]
    build_config(str(CONFIG), options, for_results=True)
    assert "nowhere" in caplog.text
    with pytest.raises(FileNotFoundError, match="nowhere: expected a folder or a file"):
        build_config(str(CONFIG), options)


def test_a_relative_path_of_a_set_may_be_read_from_another_folder(tmp_path, monkeypatch):
    write_voc(tmp_path / "near cats", {"train": PHOTOS[:6], "val": PHOTOS[6:]}, ["cat"])
    monkeypatch.chdir(tmp_path)
    cfg = build_config(str(CONFIG), ["DATASETS.REGISTER", "('near cats',)", "OUTPUT_DIR", "out"])
    assert cfg.DATASETS.REGISTER == (str(tmp_path / "near cats"),)
