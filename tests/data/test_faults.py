"""Faulty entries of json in COCO's format: one table of faults for every format that is read from it."""

import json
import logging
import math
from pathlib import Path

import pytest
from damaged_json import damaged
from detectron2.data import MetadataCatalog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glipv2_d2.data import build_train_loader, register_coco_grounding
from glipv2_d2.data.datasets.captioning import load_captioning
from glipv2_d2.data.datasets.coco import load_coco_grounding, load_detection_truth, load_lvis
from glipv2_d2.data.datasets.dict_checks import check_dataset_dicts
from glipv2_d2.data.datasets.grounding_json import load_grounding_json
from glipv2_d2.data.datasets.questions import load_vqa_json, load_vqa_jsonl
from glipv2_d2.data.datasets.referring import load_referring_json
from glipv2_d2.data.datasets.skip_report import FEW_FAULTS, DataReport
from glipv2_d2.data.datasets.value_checks import AnnotationError
from glipv2_d2.data.loading import load_dataset, load_test_dataset
from glipv2_d2.errors import InputError

LOADERS = {
    "coco": load_coco_grounding,
    "lvis": load_lvis,
    "grounding_json": load_grounding_json,
    "referring_json": load_referring_json,
    "vqa_json": load_vqa_json,
    "captioning": lambda json_file, root, name: load_captioning(json_file, root, (), (), name),
}
TASKS = {"coco": "detection", "lvis": "detection", "vqa_json": "vqa", "captioning": "captioning"}
DETECTION = ("coco", "lvis")
SENTENCES = ("grounding_json", "referring_json", "vqa_json")
BOXES = (*DETECTION, *SENTENCES)


def image(image_id, **fields) -> dict:
    """An image with the fields of all formats."""
    own = {"id": image_id, "file_name": f"{image_id}.jpg", "height": 48, "width": 64, "caption": "a dog and a red dog"}
    own["coco_url"] = f"http://images/val2017/{image_id}.jpg"
    own["questions"] = [{"question_id": 10 * image_id, "question": "Is there a red dog?", "answer": "yes"}]
    return {**own, **fields}


def annotation(image_id, **fields) -> dict:
    """An annotation with the fields of all formats."""
    own = {"image_id": image_id, "category_id": 1, "bbox": [4, 6, 20, 10], "phrase": "red dog", "caption": "A dog."}
    return {**own, "tokens_positive": [[12, 19]], **fields}


def good_content() -> dict:
    return {
        "images": [image(1), image(2)],
        "annotations": [annotation(1), annotation(2), annotation(2, bbox=[1, 2, 8, 9.5])],
        "categories": [{"id": row, "name": name, "synonyms": [name]} for row, name in ((1, "dog"), (2, "cat"))],
    }


@pytest.fixture
def load(tmp_path):
    """A function that reads a content in a format; returns the dicts and the one report."""

    def write_and_load(format_name, content, **options):
        path, name = tmp_path / "a.json", f"{tmp_path.name}_loaded"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        MetadataCatalog.pop(name, None)
        with DataReport(**options) as report:
            records = LOADERS[format_name](str(path), str(tmp_path), name)
        return records, report.files[str(path), name]

    yield write_and_load
    MetadataCatalog.pop(f"{tmp_path.name}_loaded", None)


# Fields of an annotation, the kind of fault, and the words of the message, beside the value itself.
FAULTS = {
    "no object": (7, "malformed entries", "an object", "7"),
    "null": (None, "malformed entries", "an object", "None"),
    "unknown image": ({"image_id": 8}, "unknown image_ids", "image_id: expected an id that stands in images", "8"),
    "list as image": ({"image_id": [1]}, "malformed ids", "image_id: expected an integer", "[1]"),
    "no image": ({"image_id": None}, "malformed ids", "image_id: expected an integer", "None"),
}
BOX_FAULTS = {
    "no box": ({"bbox": None}, "boxes that are not four numbers", "four finite numbers", "None"),
    "three numbers": ({"bbox": [1, 2, 3]}, "boxes that are not four numbers", "four finite numbers", "[1, 2, 3]"),
    "null in box": ({"bbox": [1, 2, 3, None]}, "boxes that are not four numbers", "four finite", "[1, 2, 3, None]"),
    "text in box": ({"bbox": [1, 2, 3, "four"]}, "boxes that are not four numbers", "four finite", "[1, 2, 3, 'four']"),
    "nan": ({"bbox": [1, math.nan, 3, 4]}, "boxes that are not four numbers", "four finite", "[1, nan, 3, 4]"),
    "infinity": ({"bbox": [1, 2, math.inf, 4]}, "boxes that are not four numbers", "four finite", "[1, 2, inf, 4]"),
    "huge": ({"bbox": [1, 2, 3, 10**400]}, "boxes that are not four numbers", "four finite", "[1, 2, 3, 1000"),
    "true": ({"bbox": [1, 2, 3, True]}, "boxes that are not four numbers", "four finite", "[1, 2, 3, True]"),
    "inverted": ({"bbox": [9, 9, -3, 4]}, "boxes with a negative side", "sides >= 0", "[9, 9, -3, 4]"),
    "upside down": ({"bbox": [9, 9, 3, -4]}, "boxes with a negative side", "sides >= 0", "[9, 9, 3, -4]"),
    "empty": ({"bbox": [9, 9, 0, 4]}, "boxes without area", "a width and a height above 0", "[9, 9, 0, 4]"),
    **{
        f"outside at {x}, {y}": (
            *({"bbox": [x, y, 3, 4]}, "boxes outside their image"),
            *("inside its image of 64 x 48", f"corners [{x}.0, {y}.0"),
        )
        for x, y in ((65, 1), (64, 1), (-9, 1), (1, -9), (1, 49))
    },
}
DETECTION_FAULTS = {
    "unknown category": ({"category_id": 9}, "unknown category_ids", "an id that stands in categories", "9"),
    "text as category": ({"category_id": "dog"}, "malformed ids", "category_id: expected an integer", "'dog'"),
    "crowd of two": ({"iscrowd": 2}, "malformed flags", "iscrowd: expected 0 or 1", "2"),
    "to ignore": ({"ignore": 1}, "boxes to ignore", "marked by iscrowd", "1"),
}
OTHER_FAULTS = [
    ("grounding_json", {"tokens_positive": [[2, 99]]}, "malformed character ranges", "caption of 19", "[[2, 99]]"),
    ("grounding_json", {"tokens_positive": []}, "malformed character ranges", "a list of pairs", "[]"),
    ("referring_json", {"phrase": " "}, "malformed texts", "phrase: expected a string", "' '"),
    ("vqa_json", {"phrase": None}, "malformed texts", "phrase: expected a string", "None"),
    ("captioning", {"caption": None}, "malformed texts", "caption: expected a string", "None"),
    # These are left out by rule.
    *[(one, {"iscrowd": 1}, "crowd regions", "iscrowd: expected 0", "1") for one in SENTENCES],
    *[
        (one, {"bbox": [9, 9, 1, 4]}, "boxes of at most one pixel", "with at most 1 pixel", "corners [9.0")
        for one in SENTENCES
    ],
]
ALL_FAULTS = [
    *[(one, *fault) for one in LOADERS for fault in FAULTS.values()],
    *[(one, *fault) for one in BOXES for fault in BOX_FAULTS.values()],
    *[(one, *fault) for one in DETECTION for fault in DETECTION_FAULTS.values()],
    *OTHER_FAULTS,
]


@pytest.mark.parametrize(("format_name", "fields", "kind", "expected", "found"), ALL_FAULTS)
def test_a_faulty_annotation_is_left_out_counted_and_named(load, caplog, format_name, fields, kind, expected, found):
    without = load(format_name, good_content())[0]
    content = good_content()
    content["annotations"].insert(1, {**annotation(2), "id": 5, **fields} if isinstance(fields, dict) else fields)
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        records, report = load(format_name, content)
    assert records == without
    assert report.counts == {("annotations", kind): 1} and report.totals["annotations"] == 4
    (case,) = report.cases
    where = "annotations[1] (id 5)" if isinstance(fields, dict) else "annotations[1]"
    assert case.where == where and expected in case.reason and f"found {found}" in case.reason
    (warning,) = caplog.messages
    assert warning.endswith(f"a.json: left out annotations ({kind}: 1); {where}: {case.reason}") and "\n" not in warning


IMAGE_FAULTS = {
    "no object": (7, "malformed entries", "an object"),
    "no id": (image(3) | {"id": None}, "malformed ids", "id: expected an integer, found None"),
    "true as id": (image(3) | {"id": True}, "malformed ids", "id: expected an integer, found True"),
    "no size": (image(3, height=None), "malformed image sizes", "height: expected a positive integer, found None"),
    "size of nothing": (image(3, width=0), "malformed image sizes", "width: expected a positive integer, found 0"),
    "half a pixel": (image(3, width=6.5), "malformed image sizes", "width: expected a positive integer, found 6.5"),
    "twice": (image(2), "images listed twice", "id: expected one entry, found 2 again"),
}
PATH_FAULTS = {
    "no file": (image(3, file_name=None), "malformed texts", "file_name: expected a string that is not empty"),
    "blank file": (image(3, file_name=" "), "malformed texts", "file_name: expected a string that is not empty"),
    "half a character": (image(3, file_name="a\ud800"), "malformed texts", "file_name: expected a string"),
}
LEAVING_FAULTS = {
    "absolute": (image(3, file_name="/a.jpg"), "paths that leave the image folder", "a path inside the folder"),
    "upwards": (image(3, file_name="../a.jpg"), "paths that leave the image folder", "a path inside the folder"),
    "backslash": (
        image(3, file_name="b\\..\\..\\a.jpg"),
        "paths that leave the image folder",
        "a path inside the folder",
    ),
}
ALL_IMAGE_FAULTS = [
    *[(one, *fault) for one in LOADERS for fault in IMAGE_FAULTS.values()],
    *[(one, *fault) for one in LOADERS if one != "lvis" for fault in PATH_FAULTS.values()],
    *[(one, *fault) for one in (*SENTENCES, "captioning") for fault in LEAVING_FAULTS.values()],
    ("grounding_json", image(3, caption=" "), "malformed texts", "caption: expected a string"),
    ("vqa_json", image(3, questions={}), "malformed entries", "questions: expected a list"),
    ("lvis", image(3, coco_url="000003.jpg"), "malformed entries", "coco_url: expected a URL that ends with a folder"),
    ("lvis", image(3, neg_category_ids=3), "malformed images", "neg_category_ids: expected a list of category ids"),
    ("coco", image(3, file_name="1.jpg"), "images listed twice", "file_name: expected one entry, found '1.jpg' again"),
]


@pytest.mark.parametrize(("format_name", "bad", "kind", "reason"), ALL_IMAGE_FAULTS)
def test_a_faulty_image_is_left_out_with_its_annotations(load, caplog, format_name, bad, kind, reason):
    without = load(format_name, good_content())[0]
    content = good_content()
    content["images"].append(bad)
    content["annotations"].append(annotation(3))
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        records, report = load(format_name, content)
    assert records == without
    (case,) = [case for case in report.cases if case.unit == "images"]
    assert case.kind == kind and case.where.startswith("images") and reason in case.reason
    # The annotation is counted too: of an image that is left out, or of one that is not listed.
    assert len(caplog.messages) == 1
    # With the copy of an entry nothing is lost.
    assert report.faults["images"] == (bad != image(2))
    assert sum(number for (unit, _), number in report.counts.items() if unit == "annotations") <= 1


WRONG_FILES = {
    "no images": (lambda content: content.pop("images"), "images: expected a list, found None", LOADERS),
    "number as images": (lambda content: content.update(images=7), "images: expected a list, found 7", LOADERS),
    "number as boxes": (lambda content: content.update(annotations=7), "annotations: expected a list", LOADERS),
    "no image": (lambda content: content.update(images=[]), "found nothing to use", LOADERS),
    "two images": (
        lambda content: content["images"].append(image(1, file_name="b.jpg", coco_url="http://x/val2017/b.jpg")),
        r"images\[2\] \(id 1\): id: expected an id that no other image has, found 1",
        LOADERS,
    ),
    "no categories": (lambda content: content.pop("categories"), "categories: expected a list", DETECTION),
    "empty": (
        lambda content: content["categories"].clear(),
        r"categories: expected at least one, found \[\]",
        DETECTION,
    ),
    "no object": (lambda content: content["categories"].append(7), r"categories\[2\]: expected an object", DETECTION),
    "no id": (lambda content: content["categories"][1].pop("id"), "an object with an integer as id", DETECTION),
    "id twice": (
        lambda content: content["categories"][1].update(id=1),
        r"categories\[1\] \(id 1\): id: expected an id that no other category has",
        DETECTION,
    ),
    "name twice": (
        lambda content: content["categories"][1].update(name="dog", synonyms=["dog"], supercategory="sausage"),
        r"categories \(id 2\): name: expected a name that no other category has, found 'dog'",
        DETECTION,
    ),
    "no name": (
        lambda content: content["categories"][1].update(name=None, synonyms=[None]),
        r"categories\[1\] \(id 2\): name: expected a name that is not empty, found ",
        DETECTION,
    ),
    "no synonyms": (
        lambda content: [content["categories"][1].pop("name"), content["categories"][1].update(synonyms="dog")],
        r"categories\[1\] \(id 2\): name: expected a name that is not empty, found None",
        ["lvis"],
    ),
}
ALL_WRONG_FILES = [(one, edit, message) for edit, message, formats in WRONG_FILES.values() for one in formats]


@pytest.mark.parametrize(("format_name", "edit", "message"), ALL_WRONG_FILES)
def test_a_change_of_meaning_is_an_error(load, format_name, edit, message):
    content = good_content()
    edit(content)
    with pytest.raises(AnnotationError, match=f"a.json: .*{message}") as raised:
        load(format_name, content)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("format_name", LOADERS)
@pytest.mark.parametrize("text", ["", "[1]", "{", '{"images": [', "null", "7", "[" * 100_000])
def test_a_file_that_holds_no_object_is_named(load, format_name, text):
    with pytest.raises(AnnotationError, match=r"a.json: expected (an object|a json file), found ") as raised:
        load(format_name, text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("format_name", LOADERS)
def test_numbers_may_be_text_and_a_byte_order_mark_is_passed_over(load, format_name):
    def as_text(value):
        if isinstance(value, dict):
            return {key: as_text(one) for key, one in value.items()}
        return [as_text(one) for one in value] if isinstance(value, list) else str(value)

    records, report = load(format_name, "\ufeff" + json.dumps(as_text(good_content())))
    assert records == load(format_name, good_content())[0] and not report.counts


@pytest.mark.parametrize("format_name", LOADERS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@given(data=st.data())
def test_any_damage_is_counted_or_a_one_line_error(load, format_name, data):
    """Replace or remove one random value of a good file: no good annotation is lost without a word."""
    content = damaged(data, {"a": good_content()})["a"]
    try:
        records, report = load(format_name, content)
    except InputError as error:
        assert "a.json" in str(error) and "\n" not in str(error) and len(str(error)) < 1500
        return
    task = TASKS.get(format_name, "grounding")
    check_dataset_dicts("damaged", records, 2, task=task)
    if format_name != "vqa_json":  # There an annotation belongs to several questions, or none.
        used = sum(len(record.get("captions" if task == "captioning" else "annotations", ())) for record in records)
        lost = sum(number for (unit, _), number in report.counts.items() if unit == "annotations")
        assert used + lost == report.totals["annotations"]
        assert report.totals["annotations"] == len(content.get("annotations", []))


# --- categories and details of detection data


ROOT = {"id": 0, "name": "pets", "supercategory": "none"}


@pytest.mark.parametrize("first", [ROOT, ROOT | {"name": "dog"}, {"id": 0, "name": "_background_"}])
def test_a_first_category_that_stands_for_the_others_is_left_out(load, first):
    content = good_content()
    content["categories"] = [first, *({**row, "supercategory": first["name"]} for row in content["categories"])]
    records, report = load("coco", content)
    assert {item["category_id"] for record in records for item in record["annotations"]} == {0}
    assert list(report.changed.values()) == [1] and f"category {first['name']!r} left out" in next(iter(report.changed))


@pytest.mark.parametrize("parent", ["pets", "N/A"])
def test_a_first_category_with_objects_or_of_its_own_stays(load, parent, tmp_path):
    content = good_content()
    content["categories"] = [ROOT, *({**row, "supercategory": parent} for row in content["categories"])]
    content["annotations"][0]["category_id"] = 0 if parent == "pets" else 1
    load("coco", content)
    assert MetadataCatalog.get(f"{tmp_path.name}_loaded").thing_classes == ["pets", "dog", "cat"]


def test_a_first_category_of_only_some_of_the_others_stays(load, tmp_path):
    content = good_content()
    parents = ["pets", "zoo"]
    rows = [{**row, "supercategory": parent} for row, parent in zip(content["categories"], parents, strict=True)]
    content["categories"] = [ROOT, *rows]
    load("coco", content)
    assert MetadataCatalog.get(f"{tmp_path.name}_loaded").thing_classes == ["pets", "dog", "cat"]


@pytest.mark.parametrize("category_id", [2, 3])
@pytest.mark.parametrize("format_name", DETECTION)
def test_a_category_that_is_listed_twice_counts_once(load, tmp_path, format_name, category_id):
    content = good_content()
    content["annotations"][1]["category_id"] = 2
    expected = load(format_name, content)[0]
    content["categories"].append({**content["categories"][1], "id": category_id})
    content["annotations"][1]["category_id"] = category_id
    records, report = load(format_name, content)
    assert records == expected and report.counts == {("categories", "categories listed twice"): 1}
    assert MetadataCatalog.get(f"{tmp_path.name}_loaded").thing_dataset_id_to_contiguous_id == {1: 0, 2: 1}
    truth = load_detection_truth(str(tmp_path / "a.json"))
    assert len(truth["categories"]) == 2 and [item["category_id"] for item in truth["annotations"]] == [1, 2, 1]


@pytest.mark.parametrize("bbox", [[0.25, 0.5, 0.4, 0.3], [0, 0, 1, 1]])
def test_boxes_in_shares_of_the_image_are_a_fault_and_not_boxes_of_a_pixel(load, bbox):
    content = good_content()
    content["annotations"][1]["bbox"] = bbox
    records, report = load("coco", content)
    assert report.counts == {("annotations", "boxes not in pixels"): 1} and len(records[1]["annotations"]) == 1


def test_boxes_are_cut_at_the_border_and_info_and_licenses_may_lack(load, caplog):
    content = good_content()
    content["annotations"][0]["bbox"] = [-30.5, 6, 400, 90]
    with caplog.at_level(logging.INFO, "glipv2_d2"):
        records, report = load("coco", content)
    assert records[0]["annotations"][0]["bbox"] == [0, 6, 64, 48]
    assert report.changed == {"boxes cut at the border of their image": 1} and not report.counts
    assert "a.json: 2 records; boxes cut at the border of their image: 1" in caplog.text


def test_ids_may_have_nineteen_digits_and_annotations_may_lack_ids(load):
    content = good_content()
    content["images"][0]["id"] = content["annotations"][0]["image_id"] = 1700212345678901234
    records, report = load("coco", content)
    assert records[1]["image_id"] == 1700212345678901234 and len(records[1]["annotations"]) == 1 and not report.counts


def test_a_test_set_has_no_annotations(load):
    content = good_content()
    del content["annotations"]
    assert [record["annotations"] for record in load("coco", content)[0]] == [[], []]


def test_the_evaluation_compares_with_the_annotations_that_the_loader_uses(load, tmp_path):
    content = good_content()
    content["annotations"][0] |= {"area": 7.5, "iscrowd": 1, "id": 70}
    content["annotations"].insert(0, annotation(1, bbox=None))
    load("coco", content)
    truth = load_detection_truth(str(tmp_path / "a.json"))
    assert [item["id"] for item in truth["annotations"]] == [1, 2, 3]
    assert [(item["area"], item["iscrowd"]) for item in truth["annotations"]] == [(7.5, 1), (200, 0), (76, 0)]
    assert [item["bbox"] for item in truth["annotations"]][0] == [4, 6, 20, 10]
    (tmp_path / "2.jpg").touch()
    truth = load_detection_truth(str(tmp_path / "a.json"), str(tmp_path))
    assert [one["id"] for one in truth["images"]] == [2] and len(truth["annotations"]) == 2
    del content["annotations"]
    load("coco", content)
    assert "annotations" not in load_detection_truth(str(tmp_path / "a.json"))


# --- the limit and the report


def content_with(num_good: int, num_bad: int) -> dict:
    content = good_content()
    bad = [annotation(1, bbox=[1, 2, 3, -number]) for number in range(1, num_bad)] + [annotation(9)] * (num_bad > 0)
    return {**content, "annotations": [annotation(1)] * num_good + bad}


@pytest.mark.parametrize(
    ("num_good", "num_bad", "share", "is_too_many"),
    [
        (1, FEW_FAULTS, 0.02, False),  # a few faults never end a run
        (1, FEW_FAULTS + 1, 0.02, True),
        (980, 20, 0.02, False),
        (979, 21, 0.02, True),
        (979, 21, 0.05, False),
        (1, 50, 1.0, False),
        (1000, 1, 0.0, True),
        (1000, 0, 0.0, False),
    ],
)
@pytest.mark.parametrize("format_name", ["coco", "grounding_json"])
def test_too_many_faults_are_one_error_with_a_way_out(load, format_name, num_good, num_bad, share, is_too_many):
    content = content_with(num_good, num_bad)
    if not is_too_many:
        assert load(format_name, content, max_share=share)[1].faults["annotations"] == num_bad
        return
    message = rf"a.json: expected at most {share:.1%} faulty annotations, found {num_bad} of {num_good + num_bad}: "
    with pytest.raises(AnnotationError, match=message) as raised:
        load(format_name, content, max_share=share)
    text = str(raised.value)
    assert num_bad == 1 or f"boxes with a negative side: {num_bad - 1}, unknown image_ids: 1" in text
    assert f"annotations[{num_good}]: " in text and "raise DATASETS.MAX_FAULTY_SHARE" in text and "\n" not in text


def test_the_report_lists_every_case_and_keeps_other_files(load, tmp_path):
    folder = tmp_path / "output" / "run"
    load("coco", content_with(1, 4), folder=str(folder))
    (tmp_path / "a.json").rename(tmp_path / "b.json")
    for number in (9, 3):
        with DataReport(folder=str(folder)):
            (tmp_path / "b.json").write_text(json.dumps(content_with(1, number)))
            load_referring_json(str(tmp_path / "b.json"), str(tmp_path), "other")
    first, second = json.loads((folder / "data_report.json").read_text())["files"]
    assert first["file"] == str(tmp_path / "a.json") and first["dataset"] == f"{tmp_path.name}_loaded"
    assert first["entries"] == {"images": 2, "annotations": 5, "categories": 2}
    assert first["left_out"] == {"annotations": {"boxes with a negative side": 3, "unknown image_ids": 1}}
    assert [case["where"] for case in first["cases"]] == [f"annotations[{number}]" for number in (1, 2, 3, 4)]
    assert second["file"] == str(tmp_path / "b.json") and len(second["cases"]) == 3
    with pytest.raises(AnnotationError, match=r"run/data_report.json lists all of them"):
        load("coco", content_with(1, 30), folder=str(folder))
    assert len(json.loads((folder / "data_report.json").read_text())["files"][0]["cases"]) == 30


def test_a_warning_names_a_case_of_each_kind_before_a_second_of_any(load, caplog):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        load("coco", content_with(1, 6))
    (message,) = caplog.messages
    assert message.count("sides >= 0") == 2 and message.count("an id that stands in images") == 1


@pytest.mark.parametrize("flag", [0, False, None, "0"])
@pytest.mark.parametrize("format_name", SENTENCES)
def test_no_crowd_may_be_said_in_several_ways(load, format_name, flag):
    content = good_content()
    expected = load(format_name, content)[0]
    content["annotations"][1]["iscrowd"] = flag
    assert load(format_name, content)[0] == expected


def test_a_report_that_is_not_one_of_ours_is_written_anew(load, tmp_path):
    for text in ("", "[]", '{"files": 3}', '{"files": [{"file": 3}]}'):
        (tmp_path / "data_report.json").write_text(text)
        load("coco", content_with(1, 2), folder=str(tmp_path))
        assert len(json.loads((tmp_path / "data_report.json").read_text())["files"]) == 1


def test_the_share_is_a_share(data_cfg):
    data_cfg.DATASETS.MAX_FAULTY_SHARE = 2.0
    with pytest.raises(InputError, match=r"DATASETS.MAX_FAULTY_SHARE: expected a number in \[0, 1\], found 2"):
        DataReport.from_config(data_cfg)


# --- missing images


def test_missing_images_are_left_out_once_for_each_file(make_dataset, caplog, monkeypatch):
    sizes, boxes = [(64, 48)] * 5, [[[0, 4, 6, 20, 10]]] * 5
    name = make_dataset(sizes, boxes)
    folder = Path(MetadataCatalog.get(name).image_root)
    (folder / "101.png").unlink()
    for few in (200, 1):  # looked up one by one, and listed
        monkeypatch.setattr("glipv2_d2.data.datasets.registration._FEW_IMAGES", few)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "glipv2_d2"), DataReport() as report:
            records = load_dataset(name)
        assert [record["image_id"] for record in records] == [100, 102, 103, 104]
        found = report.files[f"images of dataset {name!r}", name]
        assert found.totals == {"images": 5} and found.counts == {("images", "missing files"): 1}
        assert f"{folder}/101.png: file_name: expected an image file, found none" in caplog.text


def test_images_of_another_folder_are_an_error(make_dataset, tmp_path):
    name = make_dataset([(64, 48)] * 3, [[]] * 3)
    metadata = MetadataCatalog.get(name)
    for path in Path(metadata.image_root).glob("*.png"):
        path.unlink()
    with pytest.raises(AnnotationError, match=f"images of dataset '{name}': .*found nothing to use.*missing files: 3"):
        load_dataset(name)


def test_faults_of_a_dataset_that_is_registered_end_in_its_report(new_name, tmp_path):
    content = good_content()
    for one in content["images"]:
        (tmp_path / one["file_name"]).touch()
    content["annotations"].append(annotation(1, segmentation=[[1, 2, 3, 4]]))
    content["annotations"].append(annotation(1, bbox="none"))
    (tmp_path / "a.json").write_text(json.dumps(content))
    register_coco_grounding(new_name, tmp_path / "a.json", tmp_path)
    with DataReport(folder=str(tmp_path)):
        records = load_dataset(new_name, with_masks=True)
    assert [len(record["annotations"]) for record in records] == [2, 2]
    assert not any("segmentation" in item for record in records for item in record["annotations"])
    entries = {entry["file"]: entry for entry in json.loads((tmp_path / "data_report.json").read_text())["files"]}
    assert entries[str(tmp_path / "a.json")]["left_out"] == {"annotations": {"boxes that are not four numbers": 1}}
    masks = entries[f"masks of dataset {new_name!r}"]
    assert masks["left_out"] == {"masks": {"polygons without area": 1}} and masks["entries"] == {"masks": 1}


def test_training_and_testing_write_the_report(make_dataset, data_cfg):
    names = [make_dataset([(64, 48)] * 4, [[[0, 4, 6, 20, 10], [1, 9, 9, 0, 4]]] * 4) for _ in range(2)]
    data_cfg.DATASETS.TRAIN = (names[0],)
    build_train_loader(data_cfg)
    load_test_dataset(data_cfg, names[1])
    entries = json.loads((Path(data_cfg.OUTPUT_DIR) / "data_report.json").read_text())["files"]
    left_out = {entry["dataset"]: entry["left_out"] for entry in entries if entry["file"].endswith("boxes.json")}
    assert left_out == dict.fromkeys(names, {"annotations": {"boxes without area": 4}})


def test_a_question_or_image_that_stands_in_its_file_twice_counts_once(tmp_path):
    line = {"filename": "1.jpg", "question": "Is there a dog?", "question_id": 7, "answer": "yes"}
    (tmp_path / "a.jsonl").write_text(2 * (json.dumps(line) + "\n"))
    karpathy = {"filename": "1.jpg", "cocoid": 7, "split": "val", "sentences": [{"raw": "A dog."}]}
    (tmp_path / "k.json").write_text(json.dumps({"images": [karpathy, karpathy]}))
    with DataReport() as report:
        assert len(load_vqa_jsonl(str(tmp_path / "a.jsonl"), "", "questions")) == 1
        assert len(load_captioning(str(tmp_path / "k.json"), "", ("val",), (), "captions")) == 1
    questions, captions = report.files.values()
    assert questions.counts == {("lines", "questions listed twice"): 1}
    assert captions.counts == {("images", "images listed twice"): 1}
    (tmp_path / "a.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(line | {"answer": "no"}) + "\n")
    with pytest.raises(AnnotationError, match="line 2: question_id: expected an id that no other question has"):
        load_vqa_jsonl(str(tmp_path / "a.jsonl"), "", "questions")
