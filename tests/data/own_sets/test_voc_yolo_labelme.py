"""Files of Pascal VOC, YOLO and LabelMe: layouts that are found, and faults that are left out."""

import json
import os

import pytest
from conftest import assert_one_line
from own_set_writers import Photo, save_image, write_coco, write_labelme, write_voc, write_yolo

from glipv2_d2.data.datasets.skip_report import DataReport
from glipv2_d2.data.datasets.value_checks import AnnotationError
from glipv2_d2.data.own_sets import find_own_sets
from glipv2_d2.errors import InputError

GOOD = "<xmin>1</xmin><ymin>2</ymin><xmax>31</xmax><ymax>42</ymax>"


def voc(*boxes: str, name: str = "cat", head: str = "") -> str:
    objects = "".join(f"<object><name>{name}</name><bndbox>{box}</bndbox></object>" for box in boxes)
    return f"{head}<annotation><filename>other.jpg</filename>{objects}</annotation>"


@pytest.mark.parametrize(
    ("xml", "picture"),
    [
        ("Annotations/{}.xml", "JPEGImages/{}.jpg"),
        ("annots/{}.xml", "images/{}.jpg"),
        ("{}.xml", "{}.JPG"),
        ("train/{}.xml", "train/{}.png"),
        ("a/b/c/{}.xml", "d/{}.jpeg"),
    ],
)
def test_xml_and_images_are_found_wherever_they_lie(tmp_path, find, xml, picture):
    for stem in ("one", "two"):
        save_image(tmp_path / picture.format(stem), 100, 80)
        path = tmp_path / xml.format(stem)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(voc(GOOD))
    found = find(tmp_path)
    suffix = picture.rsplit(".", 1)[1]
    assert {**found.boxes("train"), **found.boxes("val")} == {
        f"{stem}.{suffix}": [("cat", 1, 2, 30, 40)] for stem in ("one", "two")
    }
    assert found.own.seed == 0 and found.left_out == {}


def test_folders_of_splits_and_lists_are_splits(tmp_path, find):
    for split in ("train", "validation", "testing"):
        save_image(tmp_path / "f" / split / "images" / f"{split}.jpg", 100, 80)
        (tmp_path / "f" / split / "annotations").mkdir()
        (tmp_path / "f" / split / "annotations" / f"{split}.xml").write_text(voc(GOOD))
    found = find(tmp_path / "f")
    assert {split: list(found.boxes(split)) for split in found.own.splits} == {
        "train": ["train.jpg"],
        "val": ["validation.jpg"],
        "test": ["testing.jpg"],
    }
    photos = [Photo(f"{i}.png", 50, 40, [("cat", 1, 2, 31, 32)]) for i in range(4)]
    root = write_voc(tmp_path / "v", {"trainval": photos[:3], "test": photos[2:3], "cat_train": photos}, ["cat"])
    found = find(root)
    # Image 3 is in no list that counts, and image 2 in two.
    assert list(found.boxes("train")) + list(found.boxes("val")) == ["0.png", "1.png", "2.png"] or found.own.seed == 0
    assert found.left_out == {"annotations of images in no list": 1}


@pytest.mark.parametrize(
    "lists",
    [
        {"train.txt": "0  1\n1 -1\n2  0\n", "val.txt": "3  1\n"},
        {"train.txt": '"0"\n"1.png"\n2\n', "val.txt": '"3" 1\n'},
        {"cat_train.txt": "0.png 1\n1.png -1\n2.png 1\n", "cat_val.txt": "3.png -1\n"},
        # The others train.
        {"val.txt": "3\n"},
    ],
)
def test_lists_of_voc_in_their_forms(tmp_path, find, lists):
    photos = [Photo(f"{i}.png", 50, 40, [("cat", 1, 2, 31, 32)]) for i in range(4)]
    write_voc(tmp_path, {"train": photos}, ["cat"])
    main = tmp_path / "ImageSets" / "Main"
    (main / "train.txt").unlink()
    for name, text in lists.items():
        (main / name).write_text(text)
    found = find(tmp_path)
    assert list(found.boxes("train")) == ["0.png", "1.png", "2.png"] and list(found.boxes("val")) == ["3.png"]
    assert found.own.seed is None and found.left_out == {}


WRITERS = [write_voc, write_yolo, write_labelme, write_coco]


@pytest.mark.parametrize("write", WRITERS)
def test_blanks_and_parted_accents_in_names_of_files_do_not_count(tmp_path, find, write):
    """As a Mac writes names of files, and a person that has typed one blank too many."""
    photos = [Photo("L\u00f6we.png", 50, 40, [("cat", 1, 2, 31, 32)]), Photo(" b.png", 50, 40, [("cat", 3, 2, 31, 32)])]
    write(tmp_path, {"train": photos, "val": [Photo("c.png", 50, 40, [("cat", 1, 2, 31, 32)])]}, ["cat"])
    (path,) = tmp_path.rglob("L\u00f6we.png")
    path.rename(path.with_name("Lo\u0308we.png"))
    found = find(tmp_path)
    assert found.boxes() == {" b.png": [("cat", 3, 2, 28, 30)], "Lo\u0308we.png": [("cat", 1, 2, 30, 30)]}
    assert found.left_out == {}


@pytest.mark.parametrize("write", WRITERS)
def test_names_that_differ_in_case_are_two_images(tmp_path, find, write):
    photos = [Photo(f"{name}.png", 50, 40, [("cat", left, 2, 31, 32)]) for name, left in (("A", 1), ("a", 3))]
    write(tmp_path, {"train": photos, "val": [Photo("c.png", 50, 40, [("cat", 1, 2, 31, 32)])]}, ["cat"])
    assert find(tmp_path).boxes() == {"A.png": [("cat", 1, 2, 30, 30)], "a.png": [("cat", 3, 2, 28, 30)]}


@pytest.mark.parametrize("write", WRITERS)
def test_an_image_whose_name_is_no_text_is_left_out(tmp_path, find, write):
    photos = [Photo(f"{name}.png", 50, 40, [("cat", 1, 2, 31, 32)]) for name in "ab"]
    write(tmp_path, {"train": photos, "val": [Photo("c.png", 50, 40, [("cat", 1, 2, 31, 32)])]}, ["cat"])
    for path in [*tmp_path.rglob("a.*")]:
        path.rename(os.fsdecode(os.fsencode(path.parent) + b"/\xe4" + os.fsencode(path.suffix)))
    with DataReport() as report:
        own = find_own_sets(tmp_path)
    assert [image["file_name"] for image in own.splits["train"].content["images"]] == ["b.png"]
    own.splits["train"].json_text().encode()
    reasons = [f"{case.where} {case.reason}" for one in report.files.values() for case in one.cases]
    assert reasons and "".join(reasons).isascii()


def test_an_xml_of_another_name_means_the_image_in_its_folder(tmp_path, find):
    for name, left in (("cat", 1), ("dog", 3)):
        save_image(tmp_path / "images" / name / "1.jpg", 100, 80)
        text = voc(GOOD.replace("<xmin>1<", f"<xmin>{left}<"), name=name).replace("other.jpg", "1.jpg")
        (tmp_path / f"{name}_1.xml").write_text(text.replace("<filename>", f"<folder> {name} </folder><filename>"))
    assert find(tmp_path).boxes() == {"cat/1.jpg": [("cat", 1, 2, 30, 40)], "dog/1.jpg": [("dog", 3, 2, 28, 40)]}


@pytest.mark.parametrize("folder", ["Masks", "Annotations/trimaps", "gt", "SegmentationClass", "labels"])
@pytest.mark.parametrize("write", [write_voc, write_yolo, write_labelme])
def test_masks_with_the_names_of_photographs_are_none(tmp_path, find, write, folder):
    photos = [Photo(f"{i}.jpg", 50, 40, [("cat", 1, 2, 31, 32)]) for i in range(3)]
    write(tmp_path, {"train": photos[:2], "val": photos[2:]}, ["cat"])
    for path in tmp_path.rglob("data.yaml"):
        path.with_name("classes.txt").write_text("cat\n")
        path.unlink()
    for photo in photos:
        save_image(tmp_path / folder / photo.name.replace("jpg", "png"), photo.width, photo.height)
    found = find(tmp_path)
    assert [*found.boxes("train"), *found.boxes("val")] == ["0.jpg", "1.jpg", "2.jpg"] and found.left_out == {}


@pytest.mark.parametrize("form", ["xml", "txt", "json"])
def test_a_class_whose_folder_is_called_mask_keeps_its_images(tmp_path, find, form):
    names = {"mask": 1, "nomask": 3}
    for name, left in names.items():
        save_image(tmp_path / "images" / name / "1.png", 100, 80)
        path = tmp_path / "annots" / name / f"1.{form}"
        path.parent.mkdir(parents=True)
        lines = {
            "xml": voc(GOOD.replace("<xmin>1<", f"<xmin>{left}<"), name="cat"),
            "txt": f"0 {(left + 31) / 200} 0.275 {(31 - left) / 100} 0.5\n",
        }
        if form in lines:
            path.write_text(lines[form])
    (tmp_path / "classes.txt").write_text("cat\n")
    if form == "json":
        images = [{"id": left, "file_name": f"{name}/1.png"} for name, left in names.items()]
        items = [{"image_id": left, "category_id": 1, "bbox": [left, 2, 31 - left, 40]} for left in names.values()]
        content = {"images": images, "annotations": items, "categories": [{"id": 1, "name": "cat"}]}
        (tmp_path / "annots" / "all.json").write_text(json.dumps(content))
    found = find(tmp_path)
    expected = {f"{name}/1.png": [("cat", left, 2, 31 - left, 40)] for name, left in names.items()}
    assert found.boxes() == expected and found.left_out == {}


def test_pictures_in_a_folder_of_masks_alone_are_photographs(tmp_path, find):
    save_image(tmp_path / "face masks" / "a.png", 100, 80)
    (tmp_path / "face masks" / "a.xml").write_text(voc(GOOD))
    assert find(tmp_path).boxes() == {"a.png": [("cat", 1, 2, 30, 40)]}


@pytest.mark.parametrize("write", [write_voc, write_labelme])
def test_an_image_has_the_suffix_that_its_annotation_names(tmp_path, find, write):
    photos = [Photo(f"{i}.png", 50, 40, [("cat", 1, 2, 31, 32)]) for i in range(2)]
    write(tmp_path, {"train": photos[:1], "val": photos[1:]}, ["cat"])
    for path in tmp_path.rglob("*.xml"):
        path.write_text(path.read_text().replace("other.jpg", f"{path.stem}.png"))
    for path in [*tmp_path.rglob("*.png")]:
        # Before the others by its path.
        save_image(tmp_path / "A" / f"{path.stem}.jpg", 50, 40)
    assert list(find(tmp_path).boxes()) == ["0.png"]


def test_an_image_beside_its_annotation_goes_before_one_of_the_named_suffix(tmp_path, find):
    save_image(tmp_path / "images" / "a.png", 100, 80)
    save_image(tmp_path / "originals" / "a.jpg", 100, 80)
    (tmp_path / "images" / "a.xml").write_text(voc(GOOD).replace("other.jpg", "a.jpg"))
    assert list(find(tmp_path).boxes()) == ["a.png"]


REVERSED = "<xmin>31</xmin><ymin>42</ymin><xmax>1</xmax><ymax>2</ymax>"
SHARES = "<xmin>0.1</xmin><ymin>0.2</ymin><xmax>0.5</xmax><ymax>1</ymax>"


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        (REVERSED, "0.xml: object 0: bbox: expected sides >= 0, found ['31', '42', '1', '2']"),
        (SHARES, "0.xml: object 0: bbox: expected pixels, found corners in shares of the image, [0.1, 0.2, 0.5, 1.0]"),
    ],
)
def test_a_set_whose_boxes_are_all_faulty_says_why(tmp_path, find, box, reason):
    save_image(tmp_path / "0.jpg", 100, 80)
    (tmp_path / "0.xml").write_text(voc(box))
    with pytest.raises(InputError) as caught:
        find(tmp_path)
    assert_one_line(caught, "expected boxes of at least one class, found none; left out: boxes (", reason)


def test_a_class_all_of_whose_boxes_are_faulty_is_named_among_those_left_out(tmp_path, find):
    for name, box in (("cat", GOOD), ("dog", REVERSED), ("cow", SHARES)):
        save_image(tmp_path / f"{name}.jpg", 100, 80)
        (tmp_path / f"{name}.xml").write_text(voc(box, name=name))
    found = find(tmp_path)
    assert found.own.names == ["cat"] and found.own.unused_names == ["cow", "dog"]


ROBOFLOW = "<y1>20</y1><x1>10</x1><x2>30</x2><y2>20</y2><x3>30</x3><y3>60</y3>"
POINTS = "<username>me</username><pt><x>10</x><y>20</y></pt><pt><x>30</x><y>20</y></pt><pt><x>30</x><y>60</y></pt>"


@pytest.mark.parametrize("box", ["", "<xmin>10</xmin><ymin>20</ymin><xmax>30</xmax><ymax>60</ymax>"])
@pytest.mark.parametrize("polygon", [ROBOFLOW, POINTS])
def test_polygons_of_xml_are_masks_and_have_a_box(tmp_path, find, polygon, box):
    save_image(tmp_path / "a.jpg", 100, 80)
    bndbox = f"<bndbox>{box}</bndbox>" if box else ""
    item = f"<object><name>cat</name>{bndbox}<polygon>{polygon}</polygon></object>"
    (tmp_path / "a.xml").write_text(f"<annotation><filename>a.jpg</filename>{item}</annotation>")
    (item,) = find(tmp_path).own.splits["train"].content["annotations"]
    assert item["segmentation"] == [[10, 20, 30, 20, 30, 60]] and item["bbox"] == [10, 20, 20, 40]


@pytest.mark.parametrize("polygon", ["", ROBOFLOW.replace("60", "x"), ROBOFLOW.partition("<x3>")[0]])
def test_a_polygon_of_xml_that_is_none_leaves_the_box(tmp_path, find, polygon):
    save_image(tmp_path / "a.jpg", 100, 80)
    item = f"<object><name>cat</name><bndbox>{GOOD}</bndbox><polygon>{polygon}</polygon></object>"
    (tmp_path / "a.xml").write_text(f"<annotation><filename>a.jpg</filename>{item}</annotation>")
    found = find(tmp_path)
    assert found.boxes() == {"a.jpg": [("cat", 1, 2, 30, 40)]} and found.left_out == {}
    assert "segmentation" not in found.own.splits["train"].content["annotations"][0]


BOMB = '<!DOCTYPE a [<!ENTITY x "xxxxxxxx"><!ENTITY y "&x;&x;&x;&x;">]>'


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("<annotation><object>", "files that are not xml"),
        (voc(GOOD, name="&y;", head=BOMB), "files that are not xml"),
        (voc(GOOD, head='<!DOCTYPE a SYSTEM "file:///etc/passwd">'), "files that are not xml"),
        (voc(GOOD, head="<!DOCTYPE a>").encode("utf-16"), "files that are not xml"),
        (voc(GOOD, name=" "), "boxes without a name"),
        (voc("<xmin>1</xmin><ymin>2</ymin><xmax>x</xmax><ymax>3</ymax>"), "boxes that are not four numbers"),
        (voc(""), "boxes that are not four numbers"),
        (voc("<xmin>5</xmin><ymin>5</ymin><xmax>5</xmax><ymax>9</ymax>"), "boxes without area"),
    ],
)
def test_a_faulty_xml_does_not_end_it(tmp_path, find, text, kind):
    for stem in ("a", "b"):
        save_image(tmp_path / f"{stem}.jpg", 100, 80)
    (tmp_path / "a.xml").write_text(voc(GOOD))
    (tmp_path / "b.xml").write_bytes(text if isinstance(text, bytes) else text.encode())
    found = find(tmp_path)
    assert found.boxes()["a.jpg"] == [("cat", 1, 2, 30, 40)] and found.left_out == {kind: 1}


def test_names_with_dots_are_kept_apart(tmp_path, find):
    for number, (picture, xml) in enumerate((("a", "a"), ("a.2", "a.2"), ("a.3", "a.3.jpg"))):
        save_image(tmp_path / "images" / f"{picture}.jpg", 100, 80)
        (tmp_path / f"{xml}.xml").write_text(voc(GOOD.replace("<xmin>1<", f"<xmin>{number}<")))
    found = find(tmp_path)
    boxes = {**found.boxes("train"), **found.boxes("val")}
    assert {name: left for name, ((_, left, *_),) in boxes.items()} == {"a.jpg": 0, "a.2.jpg": 1, "a.3.jpg": 2}


def test_an_image_without_annotation_is_told(tmp_path, find):
    for stem in ("a", "b"):
        save_image(tmp_path / f"{stem}.jpg", 100, 80)
    save_image(tmp_path / "elsewhere" / "c.jpg", 100, 80)
    (tmp_path / "a.xml").write_text(voc(GOOD))
    found = find(tmp_path)
    assert list(found.boxes()) == ["a.jpg"] and found.left_out == {"images without annotations": 1}


def test_many_faulty_files_are_one_error(tmp_path, find):
    for number in range(12):
        save_image(tmp_path / f"{number}.jpg", 100, 80)
        (tmp_path / f"{number}.xml").write_text("<annotation>" if number else voc(GOOD))
    with pytest.raises(AnnotationError, match="MAX_FAULTY_SHARE"):
        find(tmp_path)


YOLO_LAYOUTS = [
    ("images/{}/a.jpg", "labels/{}/a.txt", "data.yaml"),
    ("{}/images/a.jpg", "{}/labels/a.txt", "data.yaml"),
    ("{}/a.jpg", "{}/a.txt", "classes.txt"),
    ("{}/obj_train_data/a.jpg", "{}/obj_train_data/a.txt", "obj.names"),
    ("pictures/{}/a.jpg", "text/{}/a.txt", "_darknet.labels"),
]


@pytest.mark.parametrize(("picture", "label", "names"), YOLO_LAYOUTS)
def test_yolo_is_found_in_its_layouts(tmp_path, find, picture, label, names):
    for split, x in (("train", 0.5), ("val", 0.25)):
        save_image(tmp_path / picture.format(split), 100, 80)
        path = tmp_path / label.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"1 {x} 0.5 0.2 0.5\r\n\r\n0 0.5 0.5 1 1".encode())
    text = "dog\ncat\n"
    if names == "data.yaml":
        # As Roboflow writes it: the paths start from a folder that is not there.
        folder = picture.format("train").rsplit("/", 1)[0]
        text = (
            f"train: ../{folder}\nval: ../{folder.replace('train', 'val')}\ntest: ../test/images\nnames: [dog, cat]\n"
        )
        (tmp_path / "test" / "images").mkdir(parents=True)
    (tmp_path / names).write_text(text)
    found = find(tmp_path)
    assert found.boxes("train") == {"a.jpg": [("dog", 0, 0, 100, 80), ("cat", 40, 20, 20, 40)]}
    assert found.boxes("val") == {"a.jpg": [("dog", 0, 0, 100, 80), ("cat", 15, 20, 20, 40)]}
    assert found.left_out == {}


@pytest.mark.parametrize("names", ["{0: dog, 1: cat}", "[dog, cat]", "\n  0: dog\n  1: cat"])
@pytest.mark.parametrize("train", ["images/train", "[images/train]", "train_list.txt", "./images/train/"])
def test_data_yaml_in_its_forms(tmp_path, find, names, train):
    root = write_yolo(tmp_path, {"train": [Photo("a.png", 100, 80, [("cat", 10, 20, 30, 40)])]}, ["dog", "cat"])
    (root / "train_list.txt").write_text("./images/train/a.png\n")
    (root / "data.yaml").write_text(f"path: /elsewhere/datasets/mine\ntrain: {train}\nval:\nnames: {names}\n")
    for path in (root, root / "data.yaml"):
        assert find(path).boxes() == {"a.png": [("cat", 10, 20, 20, 20)]}


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("7 0.5 0.5 0.2 0.2", "unknown classes"),
        ("0 50 50 20 20", "boxes in other units"),
        ("0 0.5 0.5 0.2", "malformed lines"),
        ("0 0.5 0.5 nan 0.2", "malformed lines"),
        ("cat 0.5 0.5 0.2 0.2", "unknown classes"),
        ("0 0.5 0.5 0 0.2", "boxes without area"),
        ("0 1.6 0.5 0.2 0.2", "boxes outside their image"),
        ("0 0.1 0.1 0.5 0.5 0.9", None),
        # A score may be in per cent.
        ("0 0.1 0.1 0.5 0.5 90", None),
        ("0 0.1 0.1 0.6 0.1 0.6 0.6", None),
    ],
)
def test_a_faulty_line_is_left_out(tmp_path, find, line, kind):
    save_image(tmp_path / "a.jpg", 100, 80)
    (tmp_path / "a.txt").write_text(f"0 0.5 0.5 0.2 0.5\n{line}\n")
    (tmp_path / "classes.txt").write_text("cat\n")
    found = find(tmp_path)
    assert ("cat", 40, 20, 20, 40) in found.boxes()["a.jpg"]
    assert found.left_out == ({} if kind is None else {kind: 1}) and len(found.boxes()["a.jpg"]) == 1 + (kind is None)
    assert found.changed.get("boxes whose score was not read", 0) == (len(line.split()) == 6)


@pytest.mark.parametrize(
    ("names", "train", "val", "place"),
    [
        (
            "dog\ncat\n",
            "1 2",
            "1",
            "train/a.txt: line 2: class: expected one of 0 to 1 (2 names), found 2",
        ),
        ("dog\ncat\n", "1", "2", "val/a.txt: line 1: class: expected one of 0 to 1 (2 names), found 2"),
        ("cat\n", "1 1", "1", "train/a.txt: line 1: class: expected 0 (1 name), found 1"),
        # The class 0 is there, the last number is no box, another number is wrong too, or 0 has a name of its own.
        ("dog\ncat\n", "1 " * 30 + "2", "0", None),
        ("dog\ncat\n", "1 " * 60 + "2 3", "1", None),
        ("none\ndog\ncat\n", "1 2", "2", None),
        ("{1: dog, 2: cat}", "1 2", "2", None),
    ],
)
def test_classes_that_are_counted_from_1_are_refused(tmp_path, find, names, train, val, place):
    for split, classes in (("train", train), ("val", val)):
        save_image(tmp_path / split / "a.jpg", 100, 80)
        (tmp_path / split / "a.txt").write_text("".join(f"{one} 0.5 0.5 0.2 0.5\n" for one in classes.split()))
    file = "data.yaml" if "{" in names else "classes.txt"
    (tmp_path / file).write_text(f"train: train\nval: val\nnames: {names}\n" if "{" in names else names)
    if place is None:
        assert {box[0] for box in find(tmp_path).boxes()["a.jpg"]} <= {"dog", "cat"}
    else:
        with pytest.raises(InputError) as caught:
            find(tmp_path)
        assert_one_line(caught, f"{tmp_path}/{place}, and 0 in no line; ", "put one more name before the others")


def test_polygons_of_yolo_are_masks(tmp_path, find):
    save_image(tmp_path / "a.jpg", 100, 80)
    (tmp_path / "a.txt").write_text("0 0.1 0.1 0.6 0.1 0.6 0.6\n")
    (tmp_path / "classes.txt").write_text("cat\n")
    (item,) = find(tmp_path).own.splits["train"].content["annotations"]
    assert item["segmentation"] == [[10, 8, 60, 8, 60, 48]] and item["bbox"] == [10, 8, 50, 40] and item["area"] == 1000


def test_keypoints_of_yolo_are_not_read(tmp_path, find):
    """Where the yaml says that there are some; otherwise the numbers of a line would be a polygon."""
    save_image(tmp_path / "images" / "train" / "a.jpg", 100, 80)
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.2 0.5 0.1 0.1 2 0.9 0.9 1\n")
    (tmp_path / "data.yaml").write_text("train: images/train\nkpt_shape: [2, 3]\nnames: [cat]\n")
    found = find(tmp_path)
    assert found.boxes() == {"a.jpg": [("cat", 40, 20, 20, 40)]} and found.left_out == {}
    assert "segmentation" not in found.own.splits["train"].content["annotations"][0]


@pytest.mark.parametrize(("digits", "expected"), [(6, 337), (5, 337), (4, 337), (3, 336.96)])
def test_digits_say_whether_a_corner_was_a_whole_pixel(tmp_path, find, digits, expected):
    save_image(tmp_path / "a.jpg", 960, 80)
    center, side = (337 + 700) / 2 / 960, (700 - 337) / 960
    (tmp_path / "a.txt").write_text(f"0 {center:.{digits}f} 0.5 {side:.{digits}f} 0.5\n")
    (tmp_path / "classes.txt").write_text("cat\n")
    ((_, left, _, width, _),) = find(tmp_path).boxes()["a.jpg"]
    # 0.54 - 0.378 / 2 = 0.351 of 960.
    assert left == expected and (width == 363 or digits == 3)


def test_yolo_without_names_of_classes_says_what_to_write(tmp_path, find):
    save_image(tmp_path / "a.jpg", 100, 80)
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.2 0.5\n")
    with pytest.raises(InputError, match="classes.txt, one in each line"):
        find(tmp_path)


def test_images_of_yolo_without_a_file_have_no_objects_but_unlabelled_tests_are_left_out(tmp_path, find):
    photos = [Photo(f"{i}.png", 50, 40, [("cat", 1, 2, 31, 32)] * (i == 0)) for i in range(3)]
    root = write_yolo(tmp_path, {"train": photos[:2], "val": photos[:1], "test": photos[2:]}, ["cat"])
    found = find(root)
    assert list(found.own.splits) == ["train", "val"] and found.boxes()["1.png"] == []
    assert found.left_out == {"images without labels": 1}


def shape(kind: str | None, points: list, label: str = "cat", **more) -> dict:
    return {"label": label, "points": points, "shape_type": kind, **more}


def test_drawings_and_settings_of_other_programs_do_not_belong_to_a_set(tmp_path, find):
    photos = [Photo(f"{i}.png", 50, 40, [("cat", 1, 2, 31, 32)] * (i > 0)) for i in range(4)]
    root = write_yolo(tmp_path, {"train": photos[:2], "val": photos[2:]}, ["cat"])
    save_image(root / "runs" / "detect" / "train" / "results.png", 50, 40)
    (root / "runs" / "detect" / "train" / "args.yaml").write_text("task: detect\nval: true\npath: x\nsplit: val\n")
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("cat\n")
    found = find(root)
    assert list(found.boxes("train")) == ["0.png", "1.png"] and list(found.boxes("val")) == ["2.png", "3.png"]
    assert found.left_out == {"images without labels": 1}


def test_lists_of_darknet_are_splits(tmp_path, find):
    photos = [Photo(f"{i}.png", 50, 40, [("cat", 1, 2, 31, 32)]) for i in range(4)]
    root = write_yolo(tmp_path, {"train": photos}, ["cat"])
    (root / "data.yaml").unlink()
    (root / "obj.names").write_text("cat\n")
    (root / "train.txt").write_text("data/images/train/0.png\n/home/me/images/train/1.png\n")
    (root / "valid.txt").write_text("images/train/2.png\n")
    found = find(root)
    assert list(found.boxes("train")) == ["0.png", "1.png"] and list(found.boxes("val")) == ["2.png"]
    assert found.left_out == {"images in no list": 1}


TRIANGLE = [[10, 10], [30, 10], [10, 50]]


@pytest.mark.parametrize(
    ("shapes", "boxes", "left_out"),
    [
        ([shape("rectangle", [[30, 40], [10, 20]])], [(10, 20, 20, 20)], {}),
        ([shape(None, TRIANGLE)], [(10, 10, 20, 40)], {}),
        ([shape("circle", [[50, 40], [50, 60]])], [(30, 20, 40, 40)], {}),
        (
            [shape("polygon", TRIANGLE, group_id=3), shape("polygon", [[60, 10], [70, 10], [60, 20]], group_id=3)],
            [(10, 10, 60, 40)],
            {},
        ),
        (
            [shape("polygon", TRIANGLE), shape("point", [[1, 2]]), shape("line", [[1, 2], [3, 4]])],
            [(10, 10, 20, 40)],
            {"shapes without area": 2},
        ),
        (
            [shape("polygon", TRIANGLE), shape("polygon", TRIANGLE[:2])],
            [(10, 10, 20, 40)],
            {"polygons without area": 1},
        ),
        (
            [shape("polygon", TRIANGLE), shape("rectangle", [[1, None], [3, 4]])],
            [(10, 10, 20, 40)],
            {"malformed points": 1},
        ),
        (
            [shape("polygon", TRIANGLE), shape("polygon", TRIANGLE, "__ignore__")],
            [(10, 10, 20, 40)],
            {"shapes of no class": 1},
        ),
        ([shape("quadrilateral", [[10, 10], [30, 10], [30, 50], [10, 50]])], [(10, 10, 20, 40)], {}),
        # The box of a bitmap, which is not read.
        ([shape("mask", [[10, 20], [30, 40]], mask="iVBORw0KGgo=")], [(10, 20, 20, 20)], {}),
        (
            [shape("polygon", TRIANGLE), shape("rectangle", [[1, 2]]), shape("ellipse", [[1, 2], [9, 9]])],
            [(10, 10, 20, 40)],
            {"polygons without area": 2},
        ),
    ],
)
def test_shapes_of_labelme(tmp_path, find, shapes, boxes, left_out):
    save_image(tmp_path / "a.jpg", 100, 80)
    content = {"version": "5", "shapes": shapes, "imagePath": "..\\pics\\old.jpg", "imageHeight": 80, "imageWidth": 100}
    (tmp_path / "a.json").write_text(json.dumps(content))
    found = find(tmp_path)
    assert found.boxes() == {"a.jpg": [("cat", *box) for box in boxes]} and found.left_out == left_out


@pytest.mark.parametrize("write", [write_voc, write_labelme])
def test_boxes_of_an_image_of_another_size_are_left_out(tmp_path, find, write):
    photos = [Photo(f"{i}.png", 50, 40, [("cat", 1, 2, 31, 32)]) for i in range(3)]
    write(tmp_path, {"train": photos[:2], "val": photos[2:]}, ["cat"])
    texts = {path.stem: path for suffix in ("xml", "json") for path in tmp_path.rglob(f"*.{suffix}")}
    text = texts["1"].read_text().replace("<width>0</width><height>0</height>", "<width>99</width><height>80</height>")
    texts["1"].write_text(text.replace('"imageWidth": 50', '"imageWidth": 99'))
    found = find(tmp_path)
    assert list(found.boxes()) == ["0.png"] and found.left_out == {"sizes that differ": 1}


@pytest.mark.parametrize("left", [10, 11])
def test_of_two_lists_of_boxes_of_an_image_the_first_counts_and_another_is_told(tmp_path, find, left):
    save_image(tmp_path / "images" / "a.jpg", 100, 80)
    for folder, x in (("one", 10), ("two", left)):
        (tmp_path / folder).mkdir()
        content = {"shapes": [shape("rectangle", [[x, 20], [30, 40]])], "imagePath": "a.jpg"}
        (tmp_path / folder / "a.json").write_text(json.dumps(content))
    found = find(tmp_path)
    assert found.boxes() == {"a.jpg": [("cat", 10, 20, 20, 20)]}
    assert found.left_out == ({"images listed twice": 1} if left == 11 else {})


def test_an_image_that_is_in_its_json_alone_is_told(tmp_path):
    save_image(tmp_path / "a.jpg", 100, 80)
    for name in "ab":
        content = {"shapes": [shape(None, TRIANGLE)], "imagePath": f"{name}.jpg", "imageData": "/9j/4A=="}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    with DataReport() as report:
        find_own_sets(tmp_path)
    (case,) = next(iter(report.files.values())).cases
    found = "found none named 'b.jpg'; imageData has it in base64: save it as b.jpg"
    assert case.reason == f"expected an image file, {found}"


def test_groups_of_labelme_keep_their_polygons(tmp_path, find):
    save_image(tmp_path / "a.jpg", 100, 80)
    shapes = [shape("polygon", TRIANGLE, group_id=0), shape("polygon", [[60, 10], [70, 10], [60, 20]], group_id=0)]
    (tmp_path / "a.json").write_text(json.dumps({"shapes": shapes, "imagePath": "a.jpg"}))
    (item,) = find(tmp_path).own.splits["train"].content["annotations"]
    assert item["segmentation"] == [[10, 10, 30, 10, 10, 50], [60, 10, 70, 10, 60, 20]] and item["area"] == 450


@pytest.mark.parametrize("text", ['{"shapes": 3, "imagePath": "b.jpg"}', '{"shapes": [', "[" * 9999])
def test_a_faulty_json_of_labelme_does_not_end_it(tmp_path, find, text):
    for stem in ("a", "b"):
        save_image(tmp_path / f"{stem}.jpg", 100, 80)
    (tmp_path / "a.json").write_text(json.dumps({"shapes": [shape(None, TRIANGLE)], "imagePath": "a.jpg"}))
    (tmp_path / "b.json").write_text(text)
    assert list(find(tmp_path).boxes()) == ["a.jpg"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_texts_of_other_encodings_are_read(tmp_path, find, encoding):
    """As editors and shells of Windows write them, with a byte order mark."""
    photos = [Photo(f"{i}.png", 50, 40, [("Löwe", 1, 2, 31, 32)]) for i in range(2)]
    for write, suffix in ((write_voc, "xml"), (write_yolo, "txt"), (write_labelme, "json"), (write_coco, "json")):
        root = write(tmp_path / write.__name__, {"train": photos[:1], "val": photos[1:]}, ["Löwe"])
        for path in root.rglob(f"*.{suffix}"):
            path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
        found = find(root)
        assert found.boxes("train") == {"0.png": [("Löwe", 1, 2, 30, 30)]} and found.left_out == {}


def test_an_image_of_a_format_that_is_not_read_is_named(tmp_path):
    for number in range(3):
        save_image(tmp_path / f"{number}.jpg", 100, 80)
        (tmp_path / f"{number}.xml").write_text(voc(GOOD))
    (tmp_path / "2.jpg").rename(tmp_path / "2.HEIC")
    with DataReport() as report:
        find_own_sets(tmp_path)
    (case,) = next(iter(report.files.values())).cases
    assert (case.kind, case.where) == ("missing files", "2.xml")
    assert case.reason == "expected an image file, found '2.HEIC': save it as JPEG"


def test_escaped_names_of_images_are_found(tmp_path, find):
    root = write_coco(tmp_path, {"train": [Photo("a%20b.png", 50, 40, [("cat", 1, 2, 31, 32)])]}, ["cat"])
    (root / "train" / "a%20b.png").rename(root / "train" / "a b.png")
    assert list(find(root).boxes()) == ["a b.png"]


@pytest.mark.parametrize("encoding", ["gbk", "gb2312", "shift_jis", "iso-8859-1", "utf-8", "UTF-16"])
def test_xml_may_have_any_encoding_that_it_names(tmp_path, find, encoding):
    name = "Bär" if encoding == "iso-8859-1" else "木"
    save_image(tmp_path / "a.jpg", 100, 80)
    text = voc(GOOD, name=name, head=f'<?xml version="1.0" encoding="{encoding}"?>\n')
    (tmp_path / "a.xml").write_bytes(text.encode(encoding))
    assert find(tmp_path).boxes() == {"a.jpg": [(name, 1, 2, 30, 40)]}


@pytest.mark.parametrize("encoding", ["rot13", "no-such", "gbk"])
def test_xml_in_another_encoding_than_it_names_is_left_out(tmp_path, find, encoding):
    for stem in "ab":
        save_image(tmp_path / f"{stem}.jpg", 100, 80)
    (tmp_path / "a.xml").write_text(voc(GOOD))
    head = f'<?xml version="1.0" encoding="{encoding}"?>'.encode()
    (tmp_path / "b.xml").write_bytes(head + voc(GOOD, name="\0").encode().replace(b"\0", b"\xff\xff"))
    found = find(tmp_path)
    assert found.boxes() == {"a.jpg": [("cat", 1, 2, 30, 40)]} and found.left_out == {"files that are not xml": 1}
