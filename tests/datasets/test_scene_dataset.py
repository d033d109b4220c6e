import argparse
import json
import os
import re
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import prepare_shapeworld
import pytest
from checked_files import write_atomically
from prepare_shapeworld import COLOURS, SHAPES, TEXTURES, draw_backgrounds, draw_shapes
from pycocotools import mask as rle
from pycocotools.coco import COCO
from scenes import dataset as scene_dataset
from scenes.composer import Background, SceneRules
from scenes.dataset import SceneSource, plan_splits
from scenes.folder import DatasetParameters, sole_writer
from scenes.options import add_dataset_options, usable_cores

TINY = {"num_train": 7, "num_val": 3, "size": 64, "num_names": 30, "num_novel": 5}
SPLITS = ("train", "val", "val_24", "val_novel")
# The novel names of ``parameters()``, drawn on 2026-11-29.
PINNED = {
    *("pink striped diamond", "green checked diamond", "green ringed triangle", "brown ringed ring"),
    "purple checked circle",
}


def build(output: Path, **changes) -> Path:
    return prepare_shapeworld.prepare_shapeworld(output, **(TINY | changes))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def load(folder: Path, split: str) -> dict:
    return json.loads((folder / "annotations" / f"{split}.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("world"), num_train=40, num_val=12)


@pytest.fixture
def drawn(monkeypatch) -> list[int]:
    """Grows by one with every scene that is drawn; chunks are three scenes."""
    calls = []
    compose = scene_dataset.compose_scene
    monkeypatch.setattr(scene_dataset, "compose_scene", lambda *args: calls.append(1) or compose(*args))
    monkeypatch.setattr(scene_dataset, "CHUNK_SIZE", 3)
    return calls


# --- what is written


def test_the_layout_is_a_folder_and_a_json_file_for_each_split(world):
    names = {path.name for path in world.iterdir()}
    assert names == {*SPLITS, "annotations", "manifest.json", "LICENSES.md"}
    assert sorted(path.name for path in (world / "val").iterdir()) == [f"{index:06d}.jpg" for index in range(1, 13)]


@pytest.mark.parametrize("split", SPLITS)
def test_coco_reads_the_boxes_and_masks_decode_to_them(world, split):
    coco = COCO(world / "annotations" / f"{split}.json")
    assert len(coco.getImgIds()) == (40 if split == "train" else 12)
    for annotation in coco.loadAnns(coco.getAnnIds()):
        mask = coco.annToMask(annotation)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
        assert annotation["bbox"] == box
        assert annotation["area"] == mask.sum() == rle.area(annotation["segmentation"])
        assert annotation["iscrowd"] == 0 and annotation["segmentation"]["size"] == [64, 64]


@pytest.mark.parametrize("split", SPLITS)
def test_ids_count_from_one_and_refer_to_what_is_there(world, split):
    data = load(world, split)
    assert [one["id"] for one in data["categories"]] == list(range(1, len(data["categories"]) + 1))
    assert [one["name"] for one in data["categories"]] == sorted(one["name"] for one in data["categories"])
    assert [one["id"] for one in data["annotations"]] == list(range(1, len(data["annotations"]) + 1))
    assert {one["image_id"] for one in data["annotations"]} == {one["id"] for one in data["images"]}
    questions = [question["question_id"] for image in data["images"] for question in image["questions"]]
    assert questions == list(range(1, len(questions) + 1))


def test_tokens_positive_spell_the_phrase_and_the_phrase_is_the_category(world):
    for split in SPLITS:
        data = load(world, split)
        captions = {image["id"]: image["caption"] for image in data["images"]}
        names = {category["id"]: category["name"] for category in data["categories"]}
        for annotation in data["annotations"]:
            ((start, end),) = annotation["tokens_positive"]
            assert captions[annotation["image_id"]][start:end] == annotation["phrase"]
            assert annotation["phrase"] == names[annotation["category_id"]]


def test_questions_are_true_of_the_boxes_and_names(world):
    checked = Counter()
    for split in SPLITS:
        data = load(world, split)
        names = {category["id"]: category["name"] for category in data["categories"]}
        objects = {image["id"]: [] for image in data["images"]}
        for annotation in data["annotations"]:
            x, y, width, height = annotation["bbox"]
            centre = (x + width / 2, y + height / 2)
            objects[annotation["image_id"]].append((names[annotation["category_id"]], *centre))
        for image in data["images"]:
            for one in image["questions"]:
                assert one["answer"] == second_look(one["question"], objects[image["id"]]), (image, one)
                checked[one["type"]] += 1
    assert min(checked[kind] for kind in ("count", "presence", "spatial", "colour")) > 20


def second_look(question: str, objects: list[tuple[str, float, float]]) -> str:
    names = [name for name, _, _ in objects]

    def centre(name: str) -> tuple[float, float]:
        ((_, x, y),) = [one for one in objects if one[0] == name]
        return x, y

    if match := re.fullmatch(r"How many (.*) are there\?", question):
        plurals = [name + ("es" if name.endswith("cross") else "s") for name in names]
        return str(sum(plural.endswith(match[1]) for plural in plurals))
    if match := re.fullmatch(r"Is there an? (.*) in the picture\?", question):
        return "yes" if match[1] in names else "no"
    if match := re.fullmatch(r"Which is (further to the left|higher up), the (.*) or the (.*)\?", question):
        axis = 0 if "left" in match[1] else 1
        return min(match[2], match[3], key=lambda name: centre(name)[axis])
    if match := re.fullmatch(r"Is the (.*) (to the left of|to the right of|above|below) the (.*)\?", question):
        axis = 0 if "to the" in match[2] else 1
        before = centre(match[1])[axis] < centre(match[3])[axis]
        return "yes" if before == (match[2] in ("to the left of", "above")) else "no"
    match = re.fullmatch(r"What colour is the (.*)\?", question)
    (colour,) = {name.split(" ")[0] for name in names if name.split(" ", 1)[1] == match[1]}
    return colour


def test_hidden_objects_are_in_the_image_but_not_in_the_json(world, make_cut_out):
    # Two names that always fill the whole image: of each pair only the later one is seen.
    cut_outs = [make_cut_out(name, (64, 64)) for name in ("crow", "saw", "owl")]
    grounds = [Background(f"g{index}", "on a photo of a wall", np.zeros((64, 64, 3), np.uint8)) for index in range(5)]
    rules = SceneRules(size=64, min_objects=2, max_objects=2, min_side=1, max_side=1, repeat_probability=0)
    parameters = DatasetParameters("test", "1", 2, 1, 4, 1, 0, rules)
    output = world.parent / "hidden"
    scene_dataset.write_dataset(output, SceneSource(cut_outs, grounds, "", "", ""), parameters, workers=1)
    data = load(output, "train")
    assert Counter(one["image_id"] for one in data["annotations"]) == {1: 1, 2: 1, 3: 1, 4: 1}
    for image, annotation in zip(data["images"], data["annotations"]):
        assert re.fullmatch(f"an? {annotation['phrase']} on a photo of a wall", image["caption"])


# --- splits


def test_splits_share_no_background_and_novel_names_share_no_stamp(world):
    data = {split: load(world, split) for split in SPLITS}
    stamps = {split: {one["stamp"] for one in data[split]["annotations"]} for split in SPLITS}
    grounds = {split: {one["background"] for one in data[split]["images"]} for split in SPLITS}
    names = {split: {one["name"] for one in data[split]["categories"]} for split in SPLITS}
    for split in SPLITS[1:]:
        assert not grounds["train"] & grounds[split]
    assert not stamps["train"] & stamps["val_novel"] and not stamps["val"] & stamps["val_novel"]
    assert not names["train"] & names["val_novel"] and len(names["val_novel"]) == 5
    assert names["train"] == names["val"] and len(names["train"]) == 30
    assert names["val_24"] < names["val"] and len(names["val_24"]) == 24


def parameters(**changes) -> DatasetParameters:
    values = {"num_names": 30, "num_novel": 5, "num_train": 4, "num_val": 2, "seed": 0} | changes
    return DatasetParameters("shapeworld", "1", **values)


def planned(**changes) -> dict[str, set[str]]:
    source = SceneSource(draw_shapes(20), draw_backgrounds(64, 0), "", "", "")
    return {split.name: set(split.cut_outs) for split in plan_splits(source, parameters(**changes))}


def test_a_small_vocabulary_is_its_own_24_and_part_of_the_larger_one():
    small, large = planned(num_names=24), planned()
    assert "val_24" not in small
    assert small["val"] == large["val_24"] and small["val_novel"] == large["val_novel"]


def test_without_a_number_all_names_that_are_not_novel_are_seen():
    splits = planned(num_names=None)
    assert len(splits["train"]) + len(splits["val_novel"]) == len(COLOURS) * len(TEXTURES) * len(SHAPES)


def test_the_seed_decides_which_names_are_novel():
    assert planned()["val_novel"] != planned(seed=1)["val_novel"]


def test_the_novel_names_of_a_seed_never_change():
    # All published figures on val_novel belong to one draw. Another number of splits must not change it.
    assert planned()["val_novel"] == PINNED


def test_what_an_object_may_be_called_too_is_not_exhaustive_in_its_image(world, make_cut_out):
    cut_outs = [make_cut_out(name, (20, 20)) for name in ("crow", "bird", "saw")]
    grounds = [Background(f"g{index}", "on a photo of a wall", np.zeros((64, 64, 3), np.uint8)) for index in range(5)]
    rules = SceneRules(size=64, min_objects=2, max_objects=2, max_overlap=0, repeat_probability=0)
    parameters = DatasetParameters("test", "1", 3, 1, 12, 1, 0, rules)
    relatives = {"crow": {"bird"}, "bird": {"crow"}, "saw": set()}
    by_name = {cut_out.category.name: [cut_out] for cut_out in cut_outs}
    split = scene_dataset.Split("train", 12, by_name, grounds, relatives=relatives)
    output = world.parent / "relatives"
    source = SceneSource(cut_outs, grounds, "", "", "")
    scene_dataset.write_dataset(output, source, parameters, 1, lambda *_: [split])
    data = load(output, "train")
    names = {one["id"]: one["name"] for one in data["categories"]}
    shown = {image["id"]: set() for image in data["images"]}
    for annotation in data["annotations"]:
        shown[annotation["image_id"]].add(names[annotation["category_id"]])
    found = {
        frozenset(shown[image["id"]]): {names[number] for number in image["not_exhaustive_category_ids"]}
        for image in data["images"]
    }
    # A name that has a box is not in doubt.
    assert found == {
        frozenset({"crow", "saw"}): {"bird"},
        frozenset({"bird", "saw"}): {"crow"},
        frozenset({"crow", "bird"}): set(),
    }


def test_a_fifth_of_the_backgrounds_is_for_validation():
    source = SceneSource(draw_shapes(20), draw_backgrounds(64, 0), "", "", "")
    assert [len(split.backgrounds) for split in plan_splits(source, parameters())] == [16, 4, 4, 4]


def test_too_few_names_or_backgrounds_are_an_error():
    source = SceneSource(draw_shapes(20), draw_backgrounds(64, 0), "", "", "")
    with pytest.raises(ValueError, match="expected at most 256 together, the names of shapeworld, found 250 and 7"):
        plan_splits(source, parameters(num_names=250, num_novel=7))
    with pytest.raises(ValueError, match="expected at least 2 backgrounds, found 1"):
        plan_splits(SceneSource(source.cut_outs, source.backgrounds[:1], "", "", ""), parameters())


# --- the same files, whatever happens


def test_workers_do_not_change_a_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(scene_dataset, "CHUNK_SIZE", 2)
    threads = cv2.getNumThreads()
    assert contents(build(tmp_path / "one")) == contents(build(tmp_path / "three", workers=3))
    assert cv2.getNumThreads() == threads


def test_another_seed_gives_other_images(tmp_path):
    first = (build(tmp_path / "a") / "train" / "000001.jpg").read_bytes()
    assert first != (build(tmp_path / "b", seed=1) / "train" / "000001.jpg").read_bytes()


def test_scenes_do_not_depend_on_how_many_there_are(tmp_path):
    few, many = build(tmp_path / "few", num_train=2), build(tmp_path / "many", num_train=5)
    assert contents(few / "train").items() < contents(many / "train").items()


def test_a_killed_run_goes_on_and_gives_the_same_files(tmp_path, drawn, monkeypatch, capsys):
    straight = contents(build(tmp_path / "straight"))
    total = len(drawn)
    compose = scene_dataset.compose_scene
    drawn.clear()

    def killed_at_the_ninth(*args):
        if len(drawn) == 8:
            raise KeyboardInterrupt
        return compose(*args)

    monkeypatch.setattr(scene_dataset, "compose_scene", killed_at_the_ninth)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "killed")
    assert not (tmp_path / "killed" / "annotations" / "train.json").exists()

    (tmp_path / "killed" / "train" / "000007.jpg.tmp99").write_bytes(b"half")  # as a kill in a write leaves it
    monkeypatch.setattr(scene_dataset, "compose_scene", compose)
    drawn.clear()
    assert contents(build(tmp_path / "killed")) == straight
    assert len(drawn) == total - 7  # two chunks of three, and the last scene of train alone, were done
    assert "going on" in capsys.readouterr().out


def test_images_and_names_are_counted_at_the_end(tmp_path, capsys):
    """A package of which files are missing has fewer names, and nothing else tells."""
    world = build(tmp_path / "world", num_names=30, num_novel=8)
    counts = {split: (len(load(world, split)["images"]), len(load(world, split)["categories"])) for split in SPLITS}
    assert counts["train"][1] == 30 and counts["val_novel"][1] == 8
    shown = capsys.readouterr().out
    assert all(f"{split} {images} images of {names} names" in shown for split, (images, names) in counts.items())


def test_a_finished_data_set_is_found_and_nothing_is_drawn(tmp_path, drawn, capsys):
    build(tmp_path / "world")
    drawn.clear()
    started = time.perf_counter()
    build(tmp_path / "world", workers=2)
    assert time.perf_counter() - started < 1
    assert drawn == [] and "there already" in capsys.readouterr().out


@pytest.mark.parametrize("gone", ["val/000002.jpg", "annotations/val.json", "LICENSES.md"])
def test_a_file_that_is_gone_is_made_again(tmp_path, gone):
    world = build(tmp_path / "world")
    before = contents(world)
    (world / gone).unlink()
    assert contents(build(world)) == before


@pytest.mark.parametrize("manifest", ["", "no json", "[]", '{"finished": true}', '{"parameters": {}}'])
def test_a_manifest_that_can_not_be_read_is_none(tmp_path, manifest):
    world = build(tmp_path / "world")
    (world / "manifest.json").write_text(manifest)
    with pytest.raises(ValueError, match="expected an empty folder or a manifest.json, found other files"):
        build(world)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    (tmp_path / "a.json").write_text("old")
    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.json", b"new")
    assert (tmp_path / "a.json").read_text() == "old"


def test_other_parameters_build_again_in_the_same_folder_and_say_so(tmp_path, capsys):
    world = build(tmp_path / "world")
    (world / "notes.txt").write_text("mine")
    assert contents(build(world, num_names=24, num_train=3)) == contents(
        build(tmp_path / "fresh", num_names=24, num_train=3)
    ) | {"notes.txt": b"mine"}
    assert "num_names 30 before, 24 now" in capsys.readouterr().out


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "000001.jpg").write_bytes(b"mine")
    with pytest.raises(ValueError, match="expected an empty folder or a manifest.json"):
        build(tmp_path)
    assert contents(tmp_path) == {"train/000001.jpg": b"mine"}


def test_there_are_as_many_workers_as_cores_that_a_job_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    parser = argparse.ArgumentParser()
    add_dataset_options(parser, "shapeworld", num_names=None, num_novel=1)
    assert parser.parse_args([]).workers == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == os.cpu_count()


def test_two_runs_do_not_write_into_one_folder(tmp_path):
    with sole_writer(tmp_path), pytest.raises(OSError, match="another run that writes there"):
        build(tmp_path)
    assert contents(build(tmp_path))


def test_scenes_are_made_where_folders_have_no_locks(tmp_path, nfs_locks):
    assert contents(build(tmp_path))


def test_what_goes_wrong_in_a_worker_is_raised(tmp_path, monkeypatch):
    def full_disk(*args):
        raise OSError("no space left")

    monkeypatch.setattr(scene_dataset, "compose_scene", full_disk)
    with pytest.raises(OSError, match="no space left"):
        build(tmp_path / "world", workers=2)


def test_a_worker_that_dies_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(scene_dataset, "compose_scene", lambda *args: os._exit(3))
    with pytest.raises(OSError, match="a worker process: expected exit status 0, found 3"):
        build(tmp_path / "world", workers=2)


# --- numbers that can not be


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_train": 0}, "num_train: expected at least 1, found 0"),
        ({"num_val": 0}, "num_val: expected at least 1, found 0"),
        ({"num_names": 0}, "num_names: expected at least 1, found 0"),
        ({"num_novel": 0}, "num_novel: expected at least 1, found 0"),
        ({"size": 32}, "size: expected at least 64, found 32"),
        ({"seed": -1}, "seed: expected at least 0, found -1"),
        ({"objects": (0, 2)}, "objects: expected at least 1, found 0"),
        ({"objects": (4, 2)}, "objects: expected the smaller number first, found 4 2"),
        ({"workers": 0}, "workers: expected at least 1, found 0"),
    ],
)
def test_a_number_out_of_range_is_named_and_nothing_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        build(tmp_path / "world", **changes)
    assert not (tmp_path / "world").exists()


# --- the program


def test_the_program_reads_its_options(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    options = "--num-names 3 --num-novel 2 --num-train 2 --num-val 1 --size 64 --objects 1 1 --seed 5 --workers 1"
    prepare_shapeworld.main(options.split())
    data = load(tmp_path / "shapeworld", "train")
    used = data["info"]["parameters"]
    assert [used[key] for key in ("num_names", "num_novel", "num_train", "num_val", "seed")] == [3, 2, 2, 1, 5]
    assert used["rules"]["size"] == 64 and len(data["annotations"]) == 2 and len(data["categories"]) == 3


def test_the_program_ends_with_one_line_for_an_error(tmp_path):
    with pytest.raises(SystemExit, match="^error: num_train: expected at least 1, found 0$"):
        prepare_shapeworld.main(["--output", str(tmp_path), "--num-train", "0"])


def test_a_stopped_program_says_how_to_go_on(tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(scene_dataset, "compose_scene", stop)
    with pytest.raises(SystemExit, match="same command goes on"):
        prepare_shapeworld.main(["--output", str(tmp_path / "world"), "--size", "64", "--workers", "1"])


# --- shapes


@pytest.fixture(scope="module")
def shapes() -> dict[str, np.ndarray]:
    """Pixels of each name, 60 at the longest side."""
    return {cut_out.category.name: cut_out.pixels for cut_out in draw_shapes(60)}


def test_shapes_are_all_combinations_with_their_own_colour(shapes):
    assert len(shapes) == len(COLOURS) * len(TEXTURES) * len(SHAPES)
    for colour in COLOURS:
        pixels = shapes[f"{colour} striped square"][5:-5, 5:-5, :3].reshape(-1, 3).astype(int)
        distances = {other: np.abs(pixels - tone).sum(axis=1).min() for other, tone in COLOURS.items()}
        assert min(distances, key=distances.get) == colour and distances[colour] == 0


@pytest.mark.parametrize(
    ("shape", "share"),
    [("circle", np.pi / 4), ("ring", np.pi * 3 / 16), ("square", 1), ("triangle", 0.5), ("diamond", 0.5)],
)
def test_a_shape_covers_its_share_of_the_box(shapes, shape, share):
    assert shapes[f"red dotted {shape}"][:, :, 3].mean() / 255 == pytest.approx(share, abs=0.06)


def test_textures_differ(shapes):
    patterns = [shapes[f"red {texture} square"][:, :, :3] for texture in TEXTURES]
    for index, a in enumerate(patterns):
        for b in patterns[:index]:
            assert (a != b).any(axis=2).mean() > 0.2
