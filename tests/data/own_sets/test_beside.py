"""What a set does not use of its folder, and what lies beside the given folder, is told."""

import json
import shutil
from pathlib import Path

import pytest
from own_set_writers import Photo, save_image, write_coco, write_labelme, write_voc, write_yolo

from glipv2_d2.data.own_sets.folder import Folder
from glipv2_d2.data_check import find_reported
from glipv2_d2.errors import InputError

PHOTOS = [Photo(f"{i}.png", 50, 40, [("cat", 1 + i, 2, 31, 32)]) for i in range(6)]


def told(path):
    """The cases of folders that a report has, by kind."""
    _, reports = find_reported(str(path))
    return [(case.kind, case.where) for one in reports for case in one.cases if case.unit == "folders"]


def test_a_set_of_another_form_in_the_same_folder_is_told(tmp_path):
    write_coco(tmp_path / "a", {"images": PHOTOS[:3]}, ["cat"])
    write_voc(tmp_path / "b", {"train": PHOTOS[3:]}, ["cat"])
    save_image(tmp_path / "empty" / "deep" / "x.png", 20, 20)
    assert told(tmp_path) == [("folders of other sets", "b")]


def test_of_two_exports_in_one_folder_the_second_is_told(tmp_path):
    for name, photos in (("one", PHOTOS[:3]), ("two", PHOTOS[3:])):
        write_yolo(tmp_path / name, {"train": photos}, ["cat"])
    assert told(tmp_path) == [("folders of other sets", "two")]


def test_hidden_files_those_of_programs_and_circles_of_links_are_no_part_of_a_set(tmp_path):
    root = write_coco(tmp_path / "set", {"train": PHOTOS[:2]}, ["cat"])
    for path in ("__MACOSX/train/0.png", "train/._0.png", ".thumbs/0.png"):
        save_image(root / path, 20, 20)
    save_image(tmp_path / "elsewhere" / "linked.png", 20, 20)
    (root / "more").symlink_to(tmp_path / "elsewhere")
    (root / "train" / "circle").symlink_to(root)
    found = [Path(path).relative_to(root).as_posix() for path in Folder(str(root)).images]
    assert found == ["more/linked.png", "train/0.png", "train/1.png"]


def test_masks_beside_the_images_are_no_set(tmp_path):
    write_voc(tmp_path, {"train": PHOTOS}, ["cat"])
    for folder, suffix in (("SegmentationClass", ".png"), ("thumbs", ".jpg")):
        for photo in PHOTOS:
            save_image((tmp_path / folder / photo.name).with_suffix(suffix), 50, 40)
    assert told(tmp_path) == []


def test_missing_images_that_lie_beside_the_given_folder_are_told(tmp_path):
    write_coco(tmp_path / "data", {"train": PHOTOS}, ["cat"])
    (tmp_path / "rest").mkdir()
    for photo in PHOTOS[4:]:
        shutil.move(tmp_path / "data" / "train" / photo.name, tmp_path / "rest")
    assert told(tmp_path / "data") == [("folders beside the given one", str(tmp_path))]


@pytest.mark.parametrize("write", [write_coco, write_labelme])
def test_a_folder_of_annotations_alone_names_that_of_both(tmp_path, find, write):
    folder = write(tmp_path / "set", {"images": PHOTOS}, ["cat"]) / "images"
    (tmp_path / "set" / "annotations").mkdir()
    for path in folder.glob("*.json"):
        shutil.move(path, tmp_path / "set" / "annotations")
    # All of LabelMe's files are faulty without their images.
    with pytest.raises(InputError, match=f"images lie below {tmp_path / 'set'}: give that folder$"):
        find(tmp_path / "set" / "annotations")
    with pytest.raises(InputError, match=f"; annotations lie below {tmp_path / 'set'}: give that folder$"):
        find(folder)
    assert len(find(tmp_path / "set").boxes()) + len(find(tmp_path / "set").boxes("val")) == 6


def test_images_of_yolo_two_folders_deep_name_that_of_their_labels(tmp_path, find):
    write_yolo(tmp_path / "set", {"train": PHOTOS}, ["cat"])
    with pytest.raises(InputError, match=f"; annotations lie below {tmp_path / 'set'}: give that folder$"):
        find(tmp_path / "set" / "images" / "train")


def test_other_json_beside_a_folder_is_no_annotation(tmp_path, find):
    save_image(tmp_path / "set" / "x.png", 20, 20)
    (tmp_path / "package.json").write_text(json.dumps({"name": "x"}))
    with pytest.raises(InputError, match="found 1 image and no other files; see docs/own_data.md$"):
        find(tmp_path / "set")


@pytest.mark.parametrize("part", ["valid", "valid/images"])
def test_a_part_of_a_yolo_export_names_the_folder_whose_yaml_has_its_names(tmp_path, find, part):
    save_image(tmp_path / "valid" / "images" / "a.jpg", 40, 30)
    label = tmp_path / "valid" / ("a.txt" if part == "valid" else "images/a.txt")
    label.write_text("0 0.5 0.5 0.5 0.5\n")
    with pytest.raises(InputError, match=r"write them to classes\.txt"):
        find(tmp_path / part)
    (tmp_path / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnames: [cat]\n")
    with pytest.raises(InputError, match=rf"found none; {tmp_path}/data\.yaml has names: give its folder"):
        find(tmp_path / part)
