"""COCO json of tools: files that are found, faults that are left out, and what is computed."""

import json
import struct

import pytest
from conftest import assert_one_line
from own_set_writers import save_image
from PIL import Image

from glipv2_d2.data.datasets.value_checks import AnnotationError
from glipv2_d2.data.own_sets import find_own_sets
from glipv2_d2.errors import InputError


def coco(images: list, annotations: list, categories: list | None = None) -> str:
    rows = [{"id": 1, "name": "cat"}] if categories is None else categories
    items = [{"id": i, "image_id": 1, "category_id": rows[-1]["id"], **item} for i, item in enumerate(annotations)]
    return json.dumps({"images": images, "annotations": items, "categories": rows})


def image(name: str = "a.jpg", number: int = 1, **more) -> dict:
    return {"id": number, "file_name": name, "width": 100, "height": 80, **more}


GOOD = {"bbox": [1, 2, 30, 40]}


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ({"bbox": None}, "boxes that are not four numbers"),
        ({"bbox": [1, 2, None, 4]}, "boxes that are not four numbers"),
        ({"bbox": [1, 2, 0, 4]}, "boxes without area"),
        ({"bbox": [5, 5, -2, 4]}, "boxes with a negative side"),
        ({"bbox": [200, 2, 10, 10]}, "boxes outside their image"),
        ({"bbox": [0.1, 0.2, 0.5, 0.5]}, "boxes not in pixels"),
        ({"bbox": [1, 2, 3, 4], "category_id": 9}, "unknown category_ids"),
        ({"bbox": [1, 2, 3, 4], "image_id": 77}, "unknown image_ids"),
        ({"bbox": [1, 2, 3, 4], "ignore": 1}, "boxes to ignore"),
        ({"bbox": [1, 2, 3, 4], "iscrowd": "many"}, "malformed flags"),
    ],
)
def test_a_faulty_box_is_left_out_and_counted(tmp_path, find, fault, kind):
    save_image(tmp_path / "a.jpg", 100, 80)
    (tmp_path / "x.json").write_text(coco([image()], [GOOD, fault]))
    found = find(tmp_path)
    assert found.boxes() == {"a.jpg": [("cat", 1, 2, 30, 40)]} and found.left_out == {kind: 1}


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"bbox": ["1", "2.5", "30", "40"]}, (1, 2.5, 30, 40)),
        ({"bbox": [0.5, 1.5, 20.5, 10.5]}, (0.5, 1.5, 20.5, 10.5)),
        ({"bbox": [-5, 70, 20, 30]}, (0, 70, 15, 10)),
        ({"bbox": [1.004, 2.006, 10, 10]}, (1, 2.01, 10, 10)),
        ({"bbox": [0, 0, 0, 0], "segmentation": [[5, 6, 25, 6, 25, 36]]}, (5, 6, 20, 30)),
        # The box of a polygon.
        ({"bbox": None, "segmentation": [[5, 6, 25, 6, 25, 36, 5, 36, 4, 9]]}, (4, 6, 21, 30)),
    ],
)
def test_a_box_that_can_be_read_is_used(tmp_path, find, item, expected):
    save_image(tmp_path / "a.jpg", 100, 80)
    (tmp_path / "x.json").write_text(coco([image()], [item]))
    found = find(tmp_path)
    assert found.boxes() == {"a.jpg": [("cat", *expected)]} and found.left_out == {}


def test_area_and_iscrowd_are_computed_and_masks_stay(tmp_path, find):
    save_image(tmp_path / "a.jpg", 100, 80)
    triangle = [[10, 10, 30, 10, 10, 50]]
    counts = [0, 80 * 100]
    items = [
        {"bbox": [1, 2, 3, 4], "area": 99},
        {"bbox": [10, 10, 20, 40], "segmentation": triangle},
        {"bbox": [20, 10, 20, 40], "segmentation": [[20, 10, 40, 10, 20, 50]], "area": 333.25},
        {"bbox": [50, 10, 9, 9], "segmentation": [[50, 10, 59, 19]]},
        {"bbox": [60, 0, 20, 20], "iscrowd": 1, "segmentation": {"size": [80, 100], "counts": counts}},
    ]
    (tmp_path / "x.json").write_text(coco([image()], items))
    found = find(tmp_path)
    annotations = found.own.splits["train"].content["annotations"]
    # A triangle of 20 x 40 has half of the area of its box; a polygon of two points has none, and its box stays.
    assert [item["area"] for item in annotations] == [12, 400, 333.25, 81, 8000]
    assert [item["iscrowd"] for item in annotations] == [0, 0, 0, 0, 1]
    assert ["segmentation" in item for item in annotations] == [False, True, True, False, True]
    assert annotations[1]["segmentation"] == triangle and found.left_out == {"polygons without area": 1}


def test_masks_that_are_all_boxes_are_none(tmp_path, find):
    save_image(tmp_path / "a.jpg", 100, 80)
    items = [{"bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 1, 6, 4, 6, 4, 2]], "area": 5}]
    (tmp_path / "x.json").write_text(coco([image()], items))
    (item,) = find(tmp_path).own.splits["train"].content["annotations"]
    assert "segmentation" not in item and item["area"] == 12


@pytest.mark.parametrize(
    ("categories", "names"),
    [
        (
            [{"id": 0, "name": "pets", "supercategory": "none"}, {"id": 1, "name": "cat", "supercategory": "pets"}],
            ["cat"],
        ),
        ([{"id": 0, "name": "cat", "supercategory": "N/A"}], ["cat"]),
        ([{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}], ["cat"]),
        ([{"id": 1, "name": " red  cat "}], ["red cat"]),
        ([{"id": 3, "name": "cat", "supercategory": "a"}, {"id": 1, "name": "cat", "supercategory": "b"}], ["cat"]),
    ],
    ids=["an empty row 0", "class 0", "an unused class", "white space", "a class twice"],
)
def test_classes_are_those_that_have_boxes(tmp_path, find, categories, names):
    save_image(tmp_path / "a.jpg", 100, 80)
    (tmp_path / "x.json").write_text(coco([image()], [GOOD], categories))
    own = find(tmp_path).own
    assert own.names == names and [row["name"] for row in own.splits["train"].content["categories"]] == names


def test_an_unused_class_is_told(tmp_path, find):
    save_image(tmp_path / "a.jpg", 100, 80)
    (tmp_path / "x.json").write_text(coco([image()], [GOOD], [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}]))
    found = find(tmp_path)
    assert found.own.unused_names == ["dog"] and found.changed == {"classes left out that no box has": 1}


def test_images_that_are_missing_or_no_images_are_left_out(tmp_path, find):
    save_image(tmp_path / "a.jpg", 100, 80)
    (tmp_path / "pointer.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n")
    images = [image(), image("missing.jpg", 2), image("pointer.jpg", 3)]
    (tmp_path / "x.json").write_text(coco(images, [GOOD, {**GOOD, "image_id": 2}, {**GOOD, "image_id": 3}]))
    found = find(tmp_path)
    assert list(found.boxes()) == ["a.jpg"]
    assert found.left_out["missing files"] == 1 and found.left_out["unreadable images"] == 1


@pytest.mark.parametrize("kind", ["GIF", "PNG", "truncated", "L", "RGBA", "P"])
def test_odd_images_are_used(tmp_path, find, kind):
    path = tmp_path / "a.jpg"
    save_image(path, 100, 80)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-30])
    elif kind in ("GIF", "PNG"):
        Image.open(path).convert("RGB").save(path, format=kind)
    else:
        Image.open(path).convert(kind).save(path, format="PNG")
    (tmp_path / "x.json").write_text(coco([image()], [GOOD]))
    found = find(tmp_path)
    assert list(found.boxes()) == ["a.jpg"] and found.left_out == {}


@pytest.mark.parametrize(
    ("orientation", "size", "expected"),
    [
        # Boxes that were made in the upright image.
        (0, (100, 80), (1, 2, 30, 40)),
        (3, (100, 80), (1, 2, 30, 40)),
        (65537, (100, 80), (1, 2, 30, 40)),
        (6, (80, 100), (1, 2, 30, 40)),
        # Boxes of the stored image, 100 x 80: its left side comes to the top, its upper side to the right.
        (6, (100, 80), (80 - 42, 1, 40, 30)),
        (8, (100, 80), (2, 100 - 31, 40, 30)),
        (5, (100, 80), (2, 1, 40, 30)),
        (7, (100, 80), (80 - 42, 100 - 31, 40, 30)),
    ],
)
def test_boxes_are_in_pixels_of_the_upright_image(tmp_path, find, orientation, size, expected):
    # A header of little-endian TIFF and one entry: tag 0x0112, type LONG, one value.
    exif = b"Exif\0\0II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, 4, 1, orientation, 0)
    save_image(tmp_path / "a.jpg", 100, 80, exif=exif)
    polygon = [1, 2, 31, 2, 31, 42, 16, 42, 1, 22]
    entry = image(width=size[0], height=size[1])
    (tmp_path / "x.json").write_text(coco([entry], [{**GOOD, "segmentation": [polygon]}]))
    found = find(tmp_path)
    assert found.boxes() == {"a.jpg": [("cat", *expected)]}
    (item,) = found.own.splits["train"].content["annotations"]
    (points,) = item["segmentation"]
    assert (min(points[::2]), min(points[1::2])) == expected[:2] and max(points[::2]) == expected[0] + expected[2]
    is_turned = size == (100, 80) and orientation in (5, 6, 7, 8)
    assert found.changed == ({"images whose boxes were turned upright with them": 1} if is_turned else {})


@pytest.mark.parametrize(
    ("size", "is_used"),
    [
        ((100, 80), True),
        ((80, 100), True),
        ((0, 0), True),
        ((None, None), True),
        (("100", "80"), True),
        ((50, 40), False),
    ],
)
def test_the_size_of_an_image_is_that_of_its_file(tmp_path, find, size, is_used):
    for name in ("a.jpg", "b.jpg"):
        save_image(tmp_path / name, 100, 80)
    images = [image(width=size[0], height=size[1]), image("b.jpg", 2)]
    (tmp_path / "x.json").write_text(coco(images, [GOOD, {**GOOD, "image_id": 2}]))
    found = find(tmp_path)
    content = (
        found.own.splits["train"].content["images"]
        + found.own.splits.get("val", found.own.splits["train"]).content["images"]
    )
    assert {(one["width"], one["height"]) for one in content} == {(100, 80)}
    assert found.left_out == ({} if is_used else {"sizes that differ": 1})


@pytest.mark.parametrize(("height", "is_used"), [(78, True), (79, False)])
def test_width_and_height_may_be_exchanged_if_all_boxes_lie_in_the_file(tmp_path, find, height, is_used):
    for name in ("a.jpg", "b.jpg"):
        save_image(tmp_path / name, 100, 80)
    images = [image(width=80, height=100), image("b.jpg", 2)]
    (tmp_path / "x.json").write_text(coco(images, [{"bbox": [1, 2, 30, height]}, {**GOOD, "image_id": 2}]))
    found = find(tmp_path)
    assert ("a.jpg" in {**found.boxes(), **found.boxes([*found.own.splits][-1])}) == is_used
    assert found.left_out == ({} if is_used else {"sizes that differ": 1})
    exchanged = "images with width and height exchanged in their annotation"
    assert found.changed == ({exchanged: 1} if is_used else {})


@pytest.mark.parametrize(
    "places",
    [
        {"train/_annotations.coco.json": "train/{}", "valid/_annotations.coco.json": "valid/{}"},
        {"annotations/instances_train2017.json": "train2017/{}", "annotations/instances_val2017.json": "val2017/{}"},
        {"train.json": "images/{}", "val.json": "images/{}"},
        {"Training/labels.json": "Training/pics/{}", "Validation/labels.json": "Validation/pics/{}"},
        {"annotations/train.txt": "images/train/{}", "annotations/dev.txt": "images/dev/{}"},
    ],
)
def test_splits_are_found_whatever_their_folders_are_called(tmp_path, find, places):
    for number, (json_file, pattern) in enumerate(places.items()):
        name = f"{number}.jpg"
        save_image(tmp_path / pattern.format(name), 100, 80)
        (tmp_path / json_file).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / json_file).write_text(coco([image(name)], [GOOD]))
    found = find(tmp_path)
    assert found.boxes("train") == {"0.jpg": [("cat", 1, 2, 30, 40)]}
    assert list(found.boxes("val")) == ["1.jpg"] and found.own.seed is None


def test_a_json_of_another_split_does_not_take_its_images(tmp_path, find):
    for split in ("train", "valid"):
        save_image(tmp_path / split / f"{split}.jpg", 100, 80)
        images = [image(f"{split}.jpg"), image("valid.jpg", 2)][: 2 if split == "train" else 1]
        (tmp_path / split / "_annotations.coco.json").write_text(coco(images, [GOOD]))
    found = find(tmp_path)
    assert list(found.boxes("train")) == ["train.jpg"] and found.left_out == {"missing files": 1}


def test_of_files_about_the_same_images_the_largest_is_used(tmp_path, find):
    save_image(tmp_path / "images" / "a.jpg", 100, 80)
    rows = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    (tmp_path / "instances_train.json").write_text(coco([image()], [GOOD, {**GOOD, "category_id": 1}], rows))
    (tmp_path / "keypoints_train.json").write_text(coco([image()], [GOOD]))
    (tmp_path / "captions_train.json").write_text(json.dumps({"images": [image()], "annotations": []}))
    found = find(tmp_path)
    assert found.own.names == ["cat", "dog"] and found.left_out == {"other annotation files": 2}


def test_a_name_in_several_folders_is_that_beside_the_json(tmp_path, find):
    for folder, width in (("train", 100), ("valid", 90), ("old", 70)):
        save_image(tmp_path / folder / "images" / "a.jpg", width, 80)
    for folder, width in (("train", 100), ("valid", 90)):
        (tmp_path / folder / "x.json").write_text(coco([image(width=width)], [GOOD]))
    own = find(tmp_path).own
    assert own.splits["train"].image_root.endswith("train/images")
    assert own.splits["val"].content["images"][0]["width"] == 90


def test_paths_of_other_computers_long_names_and_upper_case_are_found(tmp_path, find):
    long_name = "stock photo of a cat on a sofa, seen from above " * 4
    for name in (f"{long_name}.jpg", "B.JPG"):
        save_image(tmp_path / "images" / name, 100, 80)
    images = [image(f"C:\\data\\images\\{long_name}.jpg"), image("https://example.com/x/b.jpg?size=1", 2)]
    (tmp_path / "x.json").write_text(coco(images, [GOOD, {**GOOD, "image_id": 2}]))
    own = find(tmp_path).own
    assert {one["file_name"] for split in own.splits.values() for one in split.content["images"]} == {
        f"{long_name}.jpg",
        "B.JPG",
    }


@pytest.mark.parametrize("text", ["{", '{"images": 3, "categories": [], "annotations": []}', ""])
def test_a_folder_of_one_unusable_json_is_one_clear_error(tmp_path, find, text):
    save_image(tmp_path / "a.jpg", 100, 80)
    (tmp_path / "x.json").write_text('{"images": [' if text == "{" else text)
    with pytest.raises(ValueError, match="expected") as raised:
        find(tmp_path)
    assert isinstance(raised.value, AnnotationError) == (text == "{") and "\n" not in str(raised.value)


@pytest.mark.parametrize(("last", "is_told"), [([60, 60, 40, 40], True), ([60, 60, 41, 40], False)])
def test_boxes_that_may_be_in_per_cent_are_told(tmp_path, find, caplog, last, is_told):
    save_image(tmp_path / "a.jpg", 640, 480)
    items = [{"bbox": [number, 2, 30, 40]} for number in range(9)] + [{"bbox": last}]
    (tmp_path / "x.json").write_text(coco([image(width=640, height=480)], items))
    found = find(tmp_path)
    assert found.changed == ({"boxes that may be in per cent, taken as pixels": 10} if is_told else {})
    assert ("are they in per cent?" in caplog.text) == is_told


@pytest.mark.parametrize("categories", [True, {"id": 1}, "cat", 3])
def test_categories_that_are_no_list_are_named(tmp_path, categories):
    Image.new("RGB", (64, 48)).save(tmp_path / "1.png")
    images = [{"id": 1, "file_name": "1.png", "height": 48, "width": 64}]
    annotations = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 6, 20, 10]}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match="a.json: categories: expected a list, found"):
        find_own_sets(tmp_path)


def test_json_in_latin_1_is_refused_with_a_way_out(tmp_path):
    save_image(tmp_path / "a.jpg", 100, 80)
    text = coco([image()], [GOOD], [{"id": 1, "name": "Löwe"}]).replace("\\u00f6", "ö")
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
    for path in (tmp_path, tmp_path / "x.json"):
        with pytest.raises(AnnotationError, match=r"x\.json: expected json in UTF-8, .*iconv -f LATIN1 -t UTF-8"):
            find_own_sets(path)


def test_a_name_that_is_there_is_no_address(tmp_path, find):
    for name in ("what?.jpg", "a\\b.jpg"):
        save_image(tmp_path / "images" / name, 100, 80)
    images = [image("what?.jpg"), image("images/a\\b.jpg", 2)]
    (tmp_path / "x.json").write_text(coco(images, [GOOD, {**GOOD, "image_id": 2}]))
    found = find(tmp_path)
    files = {one["file_name"] for split in found.own.splits.values() for one in split.content["images"]}
    assert found.left_out == {} and files == {"a\\b.jpg", "what?.jpg"}


@pytest.mark.parametrize(
    "reference",
    [
        "../../label-studio/data/media/upload/1/0af31be4-a.jpg",
        "/data/local-files/?d=photos/a.jpg",
        "/data/local-files/?d=photos%2Fa.jpg",
        "http://localhost:8080/data/upload/3/0af31be4-a.jpg?x=1",
    ],
)
def test_references_of_label_studio_mean_the_photographs_that_it_was_given(tmp_path, find, reference):
    save_image(tmp_path / "photos" / "a.jpg", 100, 80)
    (tmp_path / "result.json").write_text(coco([image(reference)], [GOOD]))
    found = find(tmp_path)
    assert found.boxes() == {"a.jpg": [("cat", 1, 2, 30, 40)]} and found.left_out == {}


def test_ids_may_be_texts(tmp_path, find):
    for name in ("a.jpg", "b.jpg"):
        save_image(tmp_path / name, 100, 80)
    images = [image("a.jpg", "c0-ff"), image("b.jpg", "7")]
    rows = [{"id": "d1-x", "name": "cat"}, {"id": "d1-y", "name": "dog"}]
    items = [{**GOOD, "image_id": "7", "category_id": "d1-x"}, {**GOOD, "image_id": "c0-ff"}]
    items += [{**GOOD, "image_id": "c0-gg"}]
    (tmp_path / "x.json").write_text(coco(images, items, rows))
    found = find(tmp_path)
    assert found.boxes() == {
        "a.jpg": [("dog", 1, 2, 30, 40)],
        "b.jpg": [("cat", 1, 2, 30, 40)],
    }
    assert found.left_out == {"malformed ids": 1}
    # The ids of the file are no numbers.
    assert all(one.source_ids == {"images": {}, "categories": {}} for one in found.own.splits.values())


@pytest.mark.parametrize("size", [{}, {"width": 100, "height": 80}])
def test_boxes_of_an_image_that_is_listed_again_for_each_are_put_together(tmp_path, find, size):
    save_image(tmp_path / "a.jpg", 100, 80)
    images = [{"id": number, "file_name": "a.jpg", **size} for number in range(20)]
    items = [{"image_id": number, "bbox": [number, 2, 30, 40]} for number in range(20)]
    (tmp_path / "x.json").write_text(coco(images, items))
    found = find(tmp_path)
    assert found.boxes() == {"a.jpg": [("cat", number, 2, 30, 40) for number in range(20)]}
    assert found.changed == {"images listed twice, whose boxes were put together": 19} and found.left_out == {}


def test_an_image_that_is_listed_again_under_its_id_is_no_fault(tmp_path, find):
    save_image(tmp_path / "a.jpg", 100, 80)
    (tmp_path / "x.json").write_text(coco([image()] * 20, [GOOD]))
    assert find(tmp_path).boxes() == {"a.jpg": [("cat", 1, 2, 30, 40)]}


def test_an_empty_polygon_is_no_mask(tmp_path, find):
    save_image(tmp_path / "a.jpg", 100, 80)
    items = [{"bbox": [number, 2, 30, 40], "segmentation": [[]]} for number in range(20)]
    (tmp_path / "x.json").write_text(coco([image()], items))
    found = find(tmp_path)
    assert len(found.boxes()["a.jpg"]) == 20 and found.left_out == {}


def test_the_name_of_a_class_may_be_a_number(tmp_path, find):
    save_image(tmp_path / "a.jpg", 100, 80)
    (tmp_path / "x.json").write_text(coco([image()], [GOOD], [{"id": 1, "name": 7}]))
    assert find(tmp_path).boxes() == {"a.jpg": [("7", 1, 2, 30, 40)]}


def test_a_number_is_none_of_the_ids_that_are_texts(tmp_path, find):
    for name in "ab":
        save_image(tmp_path / f"{name}.jpg", 100, 80)
    images = [image(f"{name}.jpg", f"id of {name}") for name in "ab"]
    items = [{**GOOD, "image_id": "id of a"}, {**GOOD, "image_id": 2}]
    (tmp_path / "x.json").write_text(coco(images, items))
    found = find(tmp_path)
    boxes = {**found.boxes("train"), **found.boxes("val")}
    assert boxes == {"a.jpg": [("cat", 1, 2, 30, 40)], "b.jpg": []} and found.left_out == {"unknown image_ids": 1}


def test_a_json_none_of_whose_images_is_there_ends_nothing(tmp_path, find):
    save_image(tmp_path / "a.jpg", 100, 80)
    (tmp_path / "x.json").write_text(coco([image()], [GOOD]))
    images = [image(f"gone{number}.jpg", number) for number in range(14)]
    (tmp_path / "y.json").write_text(coco(images, [GOOD], [{"id": 1, "name": "dog"}]))
    found = find(tmp_path)
    assert found.boxes() == {"a.jpg": [("cat", 1, 2, 30, 40)]} and found.left_out["unusable files"] == 1


def test_of_two_files_an_image_of_both_is_left_out_of_one(tmp_path, find):
    for number in range(9):
        save_image(tmp_path / f"{number}.jpg", 100, 80)
    for name, numbers in (("cat", range(5)), ("dog", range(4, 9))):
        images = [image(f"{number}.jpg", number) for number in numbers]
        items = [{**GOOD, "image_id": number} for number in numbers]
        extra = [{**GOOD, "image_id": 4}] if name == "cat" else []
        (tmp_path / f"{name}.json").write_text(coco(images, items + extra, [{"id": 1, "name": name}]))
    found = find(tmp_path)
    names = {path: {one[0] for one in boxes} for s in found.own.splits for path, boxes in found.boxes(s).items()}
    assert names == {f"{number}.jpg": {"cat" if number < 5 else "dog"} for number in range(9)}
    assert found.left_out == {"images of two files": 1}


def test_a_class_of_a_file_that_is_not_used_is_named(tmp_path, find):
    for number in range(3):
        save_image(tmp_path / f"{number}.jpg", 100, 80)
    images = [image(f"{number}.jpg", number) for number in range(3)]
    (tmp_path / "cats.json").write_text(coco(images, [{**GOOD, "image_id": number} for number in range(3)]))
    (tmp_path / "dogs.json").write_text(coco(images[:2], [GOOD], [{"id": 1, "name": "dog"}]))
    found = find(tmp_path)
    assert found.own.names == ["cat"] and found.own.unused_names == ["dog"]


def test_a_json_without_categories_says_what_it_has(tmp_path):
    save_image(tmp_path / "a.jpg", 100, 80)
    (tmp_path / "x.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(InputError) as caught:
        find_own_sets(tmp_path)
    assert_one_line(caught, "x.json: expected images and categories, found ['images', 'annotations']")


def test_a_json_whose_images_lie_beside_its_folder_names_that_of_both(tmp_path):
    root = tmp_path / "photos"
    save_image(root / "images" / "a.jpg", 100, 80)
    save_image(root / "annotations" / "preview.png", 10, 10)
    (root / "annotations" / "x.json").write_text(coco([image()], [GOOD]))
    with pytest.raises(InputError) as caught:
        find_own_sets(root / "annotations" / "x.json")
    assert_one_line(caught, f"images lie below {root}: give that folder")


def test_of_files_about_the_same_images_one_without_boxes_is_not_used(tmp_path, find):
    """As COCO's panoptic json, whose boxes lie elsewhere."""
    for number in range(12):
        save_image(tmp_path / f"{number}.jpg", 100, 80)
    images = [image(f"{number}.jpg", number) for number in range(12)]
    (tmp_path / "instances.json").write_text(coco(images, [{**GOOD, "image_id": number} for number in range(12)]))
    rows = [{"id": 1, "name": "cat"}, {"id": 2, "name": "sky"}]
    items = [{"image_id": number, "segments_info": [{"category_id": 2, "bbox": [0, 0, 9, 9]}]} for number in range(12)]
    (tmp_path / "panoptic.json").write_text(json.dumps({"images": images, "annotations": items, "categories": rows}))
    found = find(tmp_path)
    assert found.own.names == ["cat"] and found.left_out == {"other annotation files": 1}


@pytest.mark.parametrize(("last", "is_told"), [([90, 70], True), ([40, 30], False)])
def test_boxes_that_may_be_corners_are_told(tmp_path, find, caplog, last, is_told):
    """Left, top, right, bottom, of which the last two are taken as width and height."""
    save_image(tmp_path / "a.jpg", 100, 80)
    items = [{"bbox": [20 + number, 10 + number, *last]} for number in range(12)]
    (tmp_path / "x.json").write_text(coco([image()], items))
    kind = "boxes that may be left, top, right, bottom, taken as left, top, width, height"
    changed = find(tmp_path).changed.get(kind, 0)
    assert changed == 12 * is_told and ("12 of 12 boxes reach out of their images; are they" in caplog.text) == is_told


@pytest.mark.parametrize("content", ["version https://git-lfs.github.com/spec/v1\noid sha256:4d", "", None])
def test_a_json_that_is_not_there_is_told(tmp_path, find, content):
    """A text pointer, nothing, or a link to a file that is gone."""
    for split in ("train", "valid"):
        save_image(tmp_path / split / f"{split}.jpg", 100, 80)
        (tmp_path / split / "x.json").write_text(coco([image(f"{split}.jpg")], [GOOD]))
    (tmp_path / "train" / "x.json").unlink()
    if content is None:
        (tmp_path / "train" / "x.json").symlink_to(tmp_path / "gone")
    else:
        (tmp_path / "train" / "x.json").write_text(content)
    found = find(tmp_path)
    assert list(found.own.splits) == ["val"] and found.left_out == {"files that are not json": 1}


@pytest.mark.parametrize("suffix", ["json", "xml"])
def test_a_set_of_text_pointers_alone_says_what_they_are(tmp_path, suffix):
    save_image(tmp_path / "a.jpg", 100, 80)
    (tmp_path / f"a.{suffix}").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError) as caught:
        find_own_sets(tmp_path)
    assert_one_line(caught, f"a.{suffix}: expected {suffix}, found 'version https://git-lfs.github.com/spec/v1'")
