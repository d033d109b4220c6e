"""Our own yaml, names of splits and of sets, and validation images that a seed chooses."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import assert_one_line
from own_set_writers import Photo, save_image, write_coco, write_voc, write_yolo

from glipv2_d2.data.own_sets.find import set_name
from glipv2_d2.data.own_sets.folder import split_of
from glipv2_d2.errors import InputError

PHOTOS = [Photo(f"{i}.png", 50, 40, [("RBC", 1 + i, 2, 31, 32)]) for i in range(10)]


def test_a_yaml_of_ours_names_splits_and_words(tmp_path, find):
    write_coco(tmp_path / "a", {"train": PHOTOS[:4]}, ["RBC"])
    shutil.move(tmp_path / "a" / "train" / "_annotations.coco.json", tmp_path / "boxes.json")
    write_voc(tmp_path / "b", {"x": PHOTOS[4:6]}, ["RBC"])
    write_yolo(tmp_path / "c", {"train": PHOTOS[6:8], "val": PHOTOS[8:]}, ["RBC"])
    text = """
        name: my blood
        train: {json: boxes.json, images: a/train}
        val: [b, {path: c}]
        names: {RBC: red blood cell}
    """
    (tmp_path / "set.yaml").write_text(text)
    for path in (tmp_path / "set.yaml", tmp_path):
        found = find(path)
        assert found.own.name == "my_blood" and found.own.prompts == {"RBC": "red blood cell"}
        assert len(found.boxes("train")) == 4 and len(found.boxes("val")) == 6 and found.left_out == {}


@pytest.mark.parametrize(("names", "said"), [("{0: zero, 1: one}", {"0": "zero", "1": "one"}), ("{7: seven}", {})])
def test_numbers_that_are_the_names_of_classes_have_words(tmp_path, find, names, said):
    """As check-data advises; other numbers are those of YOLO's lines."""
    photos = [Photo(f"{i}.png", 50, 40, [(str(i % 2), 1, 2, 31, 32)]) for i in range(6)]
    write_coco(tmp_path, {"train": photos[:4], "val": photos[4:]}, ["0", "1"])
    (tmp_path / "data.yaml").write_text(f"train: train\nval: val\nnames: {names}\n")
    own = find(tmp_path).own
    assert (own.names, own.prompts) == (["0", "1"], said)


def test_numbers_in_quotes_number_classes_or_are_their_names(tmp_path, find):
    write_yolo(tmp_path / "a", {"train": PHOTOS[:6], "val": PHOTOS[6:]}, ["RBC"])
    (data,) = (tmp_path / "a").rglob("data.yaml")
    data.write_text("train: images/train\nval: images/val\nnames: {'0': RBC}\n")
    found = find(data)
    assert (found.own.names, found.own.prompts, len(found.boxes("train"))) == (["RBC"], {}, 6)
    digits = [Photo(f"{i}.png", 50, 40, [("0", 1 + i, 2, 31, 32)]) for i in range(10)]
    write_coco(tmp_path / "b", {"train": digits[:6], "val": digits[6:]}, ["0"])
    (tmp_path / "b" / "set.yaml").write_text("train: train\nval: val\nnames: {'0': zero}\n")
    found = find(tmp_path / "b" / "set.yaml")
    assert (found.own.names, found.own.prompts) == (["0"], {"0": "zero"})


def test_a_test_split_that_is_named_and_not_there_is_told_and_ends_nothing(tmp_path, find):
    write_yolo(tmp_path, {"train": PHOTOS[:6], "val": PHOTOS[6:]}, ["RBC"])
    text = "train: ../images/train\nval: ../images/val\ntest: ../images/test\nnames: [RBC]\n"
    (tmp_path / "data.yaml").write_text(text)
    for path in (tmp_path / "data.yaml", tmp_path):
        found = find(path)
        assert list(found.own.splits) == ["train", "val"] and len(found.boxes("train")) == 6
        assert found.left_out == {"test splits that are not there": 1}
    for text in ("test: ../images/test", "train: images/train\nval: gone"):
        (tmp_path / "data.yaml").write_text(text)
        with pytest.raises(FileNotFoundError, match="expected a folder or file, found none at"):
            find(tmp_path / "data.yaml")


@pytest.mark.parametrize(
    ("names", "line", "words"),
    [
        (
            "nc: 1",
            "0 0.5 0.5 0.2 0.2",
            ("names: expected the names of the classes whose numbers stand in labels", "class 0 first"),
        ),
        ("names: [RBC]", "0 25 20 10 10", ("0.txt: line 1: expected shares of the image from 0 to 1, found '25 20",)),
        ("names: [RBC]", "RBC 0.5 0.5 0.2 0.2", ("0.txt: line 1: class: expected 0, found 'RBC'",)),
    ],
)
def test_labels_in_another_form_are_named(tmp_path, find, names, line, words):
    write_yolo(tmp_path, {"train": PHOTOS[:3], "val": PHOTOS[3:6]}, ["RBC"])
    for file in tmp_path.rglob("[0-9].txt"):
        file.write_text(line)
    (tmp_path / "data.yaml").write_text(f"train: images/train\nval: images/val\n{names}\n")
    with pytest.raises(InputError) as caught:
        find(tmp_path / "data.yaml")
    assert_one_line(caught, *words)


def test_a_yaml_may_only_say_words_and_a_seed(tmp_path, find):
    write_voc(tmp_path / "data", {"x": PHOTOS}, ["RBC"])
    chosen = []
    for seed in (1, 2):
        (tmp_path / "set.yaml").write_text(f"path: data\nseed: {seed}\nnames: {{RBC: cell}}\n")
        found = find(tmp_path / "set.yaml")
        assert found.own.seed == seed and len(found.boxes("val")) == 2
        chosen.append(set(found.boxes("val")))
    assert chosen[0] != chosen[1]


ALIASES = "a: &a [x, x]\nb: &b [*a, *a]\npath: data\ntrain: *b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path: data\nnames: {WBC: white}", "names: expected classes of the set, 'RBC', found 'WBC'"),
        ("path: data\nnames: 3", "names: expected a list or a mapping"),
        ("path: data\nnames: {RBC: [a]}", "expected a text"),
        ("path: data\nnames: {RBC: (red)}", "names: RBC: expected words outside of parentheses"),
        ("path: data\nseed: x", "seed: expected an integer"),
        ("path: 3", "path: expected a path"),
        ("train: {json: a.json, path: data}", "expected json and images, or path"),
        ("train: nowhere", "expected a folder or file, found none"),
        ("[1, 2]", "expected lines of KEY: VALUE"),
        ("path: {", "expected a yaml file"),
        ("colour: red", "expected train, val or path"),
        ("train: data\nval: data\ntrain: data", "set.yaml: train: expected once, found again in line 3"),
        ("path: data\nnames: {RBC: red, RBC: cell}", "set.yaml: RBC: expected once, found again in line 2"),
        ("train: data\nvla: data", "set.yaml: vla: expected the name of a split, .* did you mean val"),
        ("train: data\nmore: {path: data}", "set.yaml: more: expected the name of a split"),
        (ALIASES, "found an alias"),
        ("train: " + "[" * 20_000, "at most 64 levels deep"),
        ("path: !!python/object/apply:os.system ['true']", "expected a yaml file"),
    ],
)
def test_a_yaml_that_cannot_be_used_says_why(tmp_path, find, text, message):
    write_voc(tmp_path / "data", {"x": PHOTOS[:2]}, ["RBC"])
    (tmp_path / "set.yaml").write_text(text)
    with pytest.raises((InputError, FileNotFoundError), match=message) as raised:
        find(tmp_path / "set.yaml")
    assert "\n" not in str(raised.value)


def test_a_yaml_of_a_folder_that_cannot_be_read_is_told(tmp_path, find):
    write_voc(tmp_path / "data", {"x": PHOTOS[:2]}, ["RBC"])
    (tmp_path / "set.yaml").write_text("path: data\nnames: {RBC: red}\nnames: {RBC: cell}\n")
    assert find(tmp_path).left_out == {"yaml files that are not used": 1}


def test_names_in_a_yaml_are_as_they_are_written(tmp_path, find):
    photos = [Photo(f"{i}.png", 50, 40, [(("off", "on", "1.10")[i], 1, 2, 31, 32)]) for i in range(3)]
    root = write_yolo(tmp_path / "a", {"train": photos, "val": photos[:1]}, ["off", "on", "1.10"])
    for names in ("[off, on, 1.10]", "{0: off, 1: on, 2: 1.10}"):
        (root / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: {names}\n")
        assert find(root).own.names == ["1.10", "off", "on"]
    write_voc(tmp_path / "b", {"x": photos}, [])
    (tmp_path / "set.yaml").write_text("path: b\nnames: {on: yes, off: no}\n")
    assert find(tmp_path / "set.yaml").own.prompts == {"on": "yes", "off": "no"}


def test_words_for_a_class_whose_boxes_are_all_left_out_end_nothing(tmp_path, find):
    write_voc(tmp_path / "data", {"x": [*PHOTOS[:2], Photo("w.png", 50, 40, [("WBC", 9, 9, 1, 1)])]}, ["RBC"])
    (tmp_path / "set.yaml").write_text("path: data\nnames: {RBC: red, WBC: white}\n")
    own = find(tmp_path / "set.yaml").own
    assert own.prompts == {"RBC": "red"} and own.unused_names == ["WBC"]


def test_a_yaml_may_name_those_of_other_sets(tmp_path, find):
    for name, photos in (("a", PHOTOS[:3]), ("b", PHOTOS[3:5])):
        write_yolo(tmp_path / name, {"train": photos}, ["RBC"])
    (tmp_path / "set.yaml").write_text("train: a/data.yaml\nval: {path: b/data.yaml}\n")
    found = find(tmp_path / "set.yaml")
    assert (len(found.boxes("train")), len(found.boxes("val")), found.own.names) == (3, 2, ["RBC"])


def test_a_data_yaml_without_its_images_leaves_the_rest_to_what_is_there(tmp_path, find):
    root = write_yolo(tmp_path, {"train": PHOTOS[:2], "val": PHOTOS[2:3]}, ["RBC"])
    (root / "data.yaml").write_text("train: nowhere/a\nval: nowhere/b\nnames: [RBC]\n")
    assert len(find(root).boxes("train")) == 2


@pytest.mark.parametrize(
    ("text", "split"),
    [
        *(("train", "train"), ("Training", "train"), ("train2017", "train"), ("instances_train", "train")),
        *(("valid", "val"), ("validation", "val"), ("val_images", "val"), ("dev", "val"), ("VAL", "val")),
        *(("test", "test"), ("testing", "test"), ("TestImages", "test"), ("trainval", "train")),
        *(("images", ""), ("contest", ""), ("invalid", ""), ("constrained", ""), ("latest", "")),
        *(("obj_train_data", ""), ("instances_train_val2017", "train"), ("train_val_test", "test")),
    ],
)
def test_names_of_splits(text, split):
    assert split_of(text) == split


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/Raccoon", "Raccoon"),
        ("/data/my cats (v2)/", "my_cats_v2"),
        ("/data/cats/train/images", "cats"),
        ("/data/cats/annotations", "cats"),
        ("/data", "data"),
        ("/", "own"),
        # Letters of other alphabets say as much.
        *(("/data/猫", "猫"), ("/data/Мои коты/train", "Мои_коты"), ("/data/cats/2024", "cats")),
    ],
)
def test_a_set_has_the_name_of_its_folder(path, name):
    assert set_name(path.rstrip("/") or "/") == name


def test_images_of_equal_names_are_those_of_the_split_that_their_json_is_of(tmp_path, find):
    photos = PHOTOS[:3]
    root = write_coco(tmp_path / "set", {"train": photos, "val": photos, "test": photos}, ["RBC"])
    (root / "annotations").mkdir()
    for split in ("train", "val", "test"):
        (root / split / "_annotations.coco.json").rename(root / "annotations" / f"instances_{split}.json")
    found = find(root)
    assert {split: len(found.boxes(split)) for split in found.own.splits} == {"train": 3, "val": 3, "test": 3}
    assert {Path(one.image_root).name for one in found.own.splits.values()} == {"train", "val", "test"}
    assert not found.left_out


def test_a_fifth_is_chosen_by_the_seed_and_the_names_alone(tmp_path, find):
    chosen = []
    for number, writer in enumerate((write_coco, write_voc)):
        root = writer(tmp_path / str(number) / "set", {"train": PHOTOS}, ["RBC"])
        found = find(root)
        assert found.own.seed == 0 and list(found.own.splits) == ["train", "val"] and len(found.boxes("val")) == 2
        assert not found.boxes("val").keys() & found.boxes("train").keys()
        chosen.append({split: one.json_text() for split, one in found.own.splits.items()})
    assert chosen[0] == chosen[1]


def test_equal_files_stay_together_and_each_class_keeps_an_image(tmp_path, find):
    photos = [Photo(f"{i}.png", 50, 40, [("cat", 1, 2, 31, 32)]) for i in range(9)]
    photos.append(Photo("alone.png", 50, 40, [("dog", 1, 2, 31, 32)]))
    root = write_voc(tmp_path / "set", {"x": photos}, ["cat", "dog"])
    shutil.rmtree(root / "ImageSets")
    for copy in range(1, 7):
        shutil.copy(root / "JPEGImages" / "0.png", root / "JPEGImages" / f"{copy}.png")
    for seed in range(4):
        (root / "set.yaml").write_text(f"path: .\nseed: {seed}\n")
        found = find(root / "set.yaml")
        assert sorted(found.boxes("val")) == ["7.png", "8.png"]


def test_sets_without_training_images_stay_as_they_are(tmp_path, find):
    found = find(write_coco(tmp_path / "set", {"valid": PHOTOS[:3], "test": PHOTOS[3:]}, ["RBC"]))
    assert {split: len(found.boxes(split)) for split in found.own.splits} == {"val": 3, "test": 7}


def test_training_and_test_images_without_validation_keep_their_test(tmp_path, find):
    found = find(write_coco(tmp_path / "set", {"train": PHOTOS[:5], "test": PHOTOS[5:]}, ["RBC"]))
    assert {split: len(found.boxes(split)) for split in found.own.splits} == {"train": 4, "val": 1, "test": 5}


def test_a_folder_of_other_files_says_what_was_found(tmp_path, find):
    save_image(tmp_path / "a.jpg", 40, 30)
    (tmp_path / "via.json").write_text(json.dumps({"a.jpg": {"regions": []}}))
    with pytest.raises(InputError, match="found 1 image and 1 .json file; see docs/own_data.md"):
        find(tmp_path)
    (tmp_path / "more" / "b.zip").parent.mkdir()
    (tmp_path / "more" / "b.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match="1 .zip file; unpack more/b.zip"):
        find(tmp_path)
    with pytest.raises(InputError, match="b.zip: .* found another file; unpack it"):
        find(tmp_path / "more" / "b.zip")
    (tmp_path / "cvat.xml").write_text("<annotations><image/></annotations>")
    with pytest.raises(InputError, match="export CVAT's xml as COCO json"):
        find(tmp_path)
    with pytest.raises(FileNotFoundError, match="found nothing"):
        find(tmp_path / "nowhere")


def test_reports_about_a_set_are_no_annotations_that_were_left_out(tmp_path, find):
    root = write_coco(tmp_path / "set", {"train": PHOTOS[:5], "val": PHOTOS[5:]}, ["RBC"])
    for name in ("data_check.json", "data_report.json"):
        (root / name).write_text('{"images": 7, "annotations": {}}')
    assert find(root).left_out == {}
