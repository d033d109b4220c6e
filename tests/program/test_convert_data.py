"""``glipv2 convert-data``: COCO json of any form, and what was left out of it."""

import json

import pytest
from own_set_writers import Photo, write_coco, write_voc, write_yolo

from glipv2_d2.data.own_sets import find_own_sets
from glipv2_d2.program.main import main

PHOTOS = [Photo(f"{i}.png", 40, 30, [("cat", 2 + i, 3, 22, 23)]) for i in range(6)]


@pytest.mark.parametrize("copy", [True, False])
def test_what_was_written_is_the_same_set(tmp_path, capsys, copy):
    root = write_yolo(tmp_path / "cats", {"train": PHOTOS[:4], "val": PHOTOS[4:]}, ["dog", "cat"])
    assert main(["convert-data", str(root), str(tmp_path / "out"), *(["--copy-images"] if copy else [])]) == 0
    out = capsys.readouterr().out
    assert f"train: 4 images, 4 boxes in {tmp_path / 'out' / 'train.json'}" in out
    assert "classes: cat\n" in out and "classes without boxes, left out: dog" in out and "seed" not in out
    expected = {split: one.json_text() for split, one in find_own_sets(root).splits.items()}
    own = find_own_sets(tmp_path / "out" / "set.yaml")
    assert {split: one.json_text() for split, one in own.splits.items()} == expected
    assert own.name == "cats" and (tmp_path / "out" / "images" / "val" / "5.png").is_file() == copy


def test_what_was_left_out_is_told(tmp_path, capsys):
    root = write_voc(tmp_path / "cats", {"trainval": PHOTOS}, ["cat"])
    (root / "Annotations" / "0.xml").write_text("<annotation>")
    main(["convert-data", str(root), str(tmp_path / "out"), "--seed", "5"])
    out = capsys.readouterr().out
    assert "left out: annotation files (files that are not xml: 1); Annotations/0.xml: expected xml" in out
    assert "chosen by seed 5" in out
    assert json.loads((tmp_path / "out" / "splits.json").read_text())["seed"] == 5
    (report,) = json.loads((tmp_path / "out" / "data_report.json").read_text())["files"]
    assert report["left_out"] == {"annotation files": {"files that are not xml": 1}}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: expected a folder or a file of images and boxes, found nothing"),
        (["."], "expected COCO json, Pascal VOC xml, LabelMe json or YOLO text files"),
        ([".", "--max-faulty-share", "2"], "--max-faulty-share: expected a number in"),
    ],
)
def test_bad_words_end_in_one_line(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as raised:
        main(["convert-data", words[0], "out", *words[1:]])
    assert message in str(raised.value.code) and "\n" not in str(raised.value.code)


def test_paths_come_with_the_flags_of_the_other_commands_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_yolo(tmp_path / "cats", {"train": PHOTOS[:4], "val": PHOTOS[4:]}, ["cat"])
    for words in (["cats", "one"], ["--data", "cats", "--output", "two"], ["--output", "three", "cats"]):
        assert main(["convert-data", *words]) == 0
    assert (tmp_path / "one/val.json").read_bytes() == (tmp_path / "two/val.json").read_bytes()
    assert (tmp_path / "one/val.json").read_bytes() == (tmp_path / "three/val.json").read_bytes()
    for words, found in ((["cats"], "fewer"), (["cats", "four", "five"], "'five'")):
        with pytest.raises(SystemExit, match=f"expected --data PATH and --output OUT, found {found}"):
            main(["convert-data", *words])


def test_a_set_is_never_replaced_by_its_own_conversion(tmp_path):
    root = write_coco(tmp_path / "cats", {"train": PHOTOS}, ["dog", "cat"])
    other = write_coco(tmp_path / "other", {"train": PHOTOS[:2]}, ["cat"])
    json_file = root / "train" / "_annotations.coco.json"
    before = json_file.read_bytes()
    for source, target in ((root, root), (json_file, json_file.parent)):
        with pytest.raises(SystemExit, match="expected another folder than that of the set, found the same"):
            main(["convert-data", str(source), str(target)])
    (other / "train.json").write_text("mine")
    with pytest.raises(SystemExit, match="expected a new folder or one of an earlier conversion, found train.json"):
        main(["convert-data", str(root), str(other)])
    assert not list(tmp_path.rglob("data_report.json"))
    assert json_file.read_bytes() == before and (other / "train.json").read_text() == "mine"
    # A conversion may be made again.
    for _ in range(2):
        assert main(["convert-data", str(root), str(tmp_path / "out")]) == 0
