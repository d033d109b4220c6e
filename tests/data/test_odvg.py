import json
import logging
import math
import os
import re

import pytest
from damaged_json import assert_fit_or_one_line, damaged
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glipv2_d2.data.datasets import skip_report
from glipv2_d2.data.datasets.dict_checks import check_dataset_dicts
from glipv2_d2.data.datasets.formats import register_odvg
from glipv2_d2.data.datasets.odvg import load_odvg
from glipv2_d2.data.datasets.registration import set_thing_classes
from glipv2_d2.data.datasets.value_checks import AnnotationError

NAMES = {"4": "cat", "0": "red dog", "7": "fish"}


def detection(*instances, **fields) -> dict:
    return {"filename": "a.jpg", "height": 48, "width": 64, "detection": {"instances": list(instances)}, **fields}


def instance(label=4, category="cat", bbox=(4, 6, 24, 16)) -> dict:
    return {"bbox": list(bbox), "label": label, "category": category}


def grounding(*regions, caption="a dog and a red dog", **fields) -> dict:
    content = {"caption": caption, "regions": list(regions)}
    return {"filename": "a.jpg", "height": 48, "width": 64, "grounding": content, **fields}


def region(**fields) -> dict:
    return {"bbox": [4, 6, 24, 16], "phrase": "red dog", **fields}


@pytest.fixture
def load(tmp_path, new_name):
    """A function that registers a file of these lines, objects or bytes, and loads it."""

    def write_and_load(*lines, names=None, **options):
        text = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        (tmp_path / "data.jsonl").write_bytes(b"\n".join(text) + b"\n")
        if names is not None:
            (tmp_path / "names.json").write_text(json.dumps(names))
            options["names_file"] = tmp_path / "names.json"
        register_odvg(new_name, tmp_path / "data.jsonl", tmp_path, **options)
        return DatasetCatalog.get(new_name)

    return write_and_load


def test_detection_lines_become_dataset_dicts(load, new_name, tmp_path):
    lines = [detection(instance(), instance(0, "red dog", (-3, 1, 9, 9))), detection(filename="sub/b.jpg")]
    records = load(*lines, names=NAMES)
    assert records == [
        {
            "file_name": os.path.join(tmp_path, "a.jpg"),
            "image_id": 1,
            "height": 48,
            "width": 64,
            "annotations": [
                {"bbox": (4, 6, 24, 16), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1},
                {"bbox": (0, 1, 9, 9), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0},
            ],
        },
        {
            "file_name": os.path.join(tmp_path, "sub/b.jpg"),
            "image_id": 2,
            "height": 48,
            "width": 64,
            "annotations": [],
        },
    ]
    metadata = MetadataCatalog.get(new_name)
    assert metadata.task == "detection" and metadata.thing_classes == ["red dog", "cat", "fish"]
    assert DatasetCatalog.get(new_name) == records
    check_dataset_dicts("x", records, 3)


def test_without_a_names_file_the_boxes_name_the_labels(load, new_name):
    lines = [detection(instance(9, "fish")), detection(instance(2, "cat"), instance(9, "fish"), instance(9, None))]
    records = load(*lines, task="detection")
    assert [[item["category_id"] for item in record["annotations"]] for record in records] == [[1], [0, 1, 1]]
    assert MetadataCatalog.get(new_name).thing_classes == ["cat", "fish"]


def test_a_category_may_be_missing_where_a_file_has_the_names(load):
    (record,) = load(detection({"bbox": [4, 6, 24, 16], "label": 7}), names=NAMES)
    assert record["annotations"][0]["category_id"] == 2


@pytest.mark.parametrize(
    ("bad", "options", "message"),
    [
        (
            detection(instance(3, "bird")),
            {"names": NAMES},
            "line 2: label: expected a name .*, found label 3 with category 'bird'",
        ),
        (detection(instance(4, "dog")), {"names": NAMES}, "line 2: category of label 4: expected 'cat', found 'dog'"),
        (
            detection(instance(4, "dog")),
            {"task": "detection"},
            "line 2: category of label 4: expected 'cat', found 'dog'",
        ),
        (
            detection(instance(3, None)),
            {"task": "detection"},
            "line 2: label: expected a name .*, found label 3 with category None",
        ),
        (
            detection(instance(3, " ")),
            {"task": "detection"},
            "line 2: label: expected a name .*, found label 3 with category ' '",
        ),
        (detection(instance(3, "cat")), {"task": "detection"}, "label: expected one with the name 'cat', found two"),
        (
            grounding(region()),
            {"names": NAMES},
            "line 2: expected 'detection' in a detection dataset, found 'grounding'",
        ),
        (detection(), {"names": {"0": "cat", "4": "cat"}}, "label: expected one with the name 'cat', found two"),
        (detection(), {"names": {"x": "cat"}}, r"names\.json: expected each number once.*, found 'x': 'cat'"),
        (detection(), {"names": {"0": 5}}, r"names\.json: expected each number once.*, found '0': 5"),
        (
            detection(),
            {"names": {"4": "cat", "04": "dog"}},
            r"names\.json: expected each number once.*, found '04': 'dog'",
        ),
        (
            detection(),
            {"names": {"4": "cat", "٤": "dog"}},
            r"names\.json: expected each number once.*, found '٤': 'dog'",
        ),
        (
            detection(),
            {"names": {"9" * 5000: "cat"}},
            r"names\.json: expected each number once.*, found '9+\.\.\.9+': 'cat'",
        ),
        (detection(), {"names": []}, r"names.json: expected an object, found \[\]"),
        (
            detection(),
            {"names": NAMES, "thing_classes": ["dog"]},
            "categories: expected the 1 thing_classes .*, dog..., found red dog, cat, fish",
        ),
    ],
)
def test_what_would_change_the_meaning_of_labels_is_an_error(load, bad, options, message):
    with pytest.raises(AnnotationError, match=message) as raised:
        load(detection(instance()), bad, **options)
    assert "\n" not in str(raised.value)


BAD_LINES = {
    "no json": (b'{"filename": ', "expected json"),
    "no utf-8": (b'{"filename": "\xff"}', "expected json"),
    "nested": (b"[" * 100_000, "expected json"),
    "long number": (b'{"filename": ' + b"9" * 9999 + b"}", "expected json"),
    "list": (b"[]", r"expected an object.*, found \[\]"),
    "no file": (detection(filename=None), "filename: expected .*found None"),
    "outside": (detection(filename="x/../../a.jpg"), "expected a path inside the folder of the images"),
    "no size": (detection(width=-1), "width: expected .*found -1"),
    "no kind": ({"filename": "a.jpg", "height": 4, "width": 4}, "detection: expected .*found None"),
    "no instances": (detection(detection={"boxes": []}), "expected an object with a list of instances"),
}


@pytest.mark.parametrize("bad, reason", BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_left_out(load, caplog, bad, reason):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        records = load(detection(instance()), bad, b"", detection(), names=NAMES)
    assert [record["image_id"] for record in records] == [1, 4]
    assert len(caplog.records) == 1
    assert "data.jsonl: left out lines (" in caplog.text and re.search(f"; line 2: .*{reason}", caplog.text)
    assert "\n" not in caplog.messages[0]


BAD_BOXES = {
    "number": (5, "malformed entries", "expected an object, found 5"),
    "no label": (instance(None), "malformed ids", "label: expected an integer, found None"),
    "nan": (instance(bbox=(1, 2, math.nan, 4)), "boxes that are not four numbers", r"found \[1, 2, nan, 4\]"),
    "one pixel": (instance(bbox=(4, 4, 5, 9)), "boxes of at most one pixel", "at most 1 pixel of it inside"),
}


@pytest.mark.parametrize("bad, kind, reason", BAD_BOXES.values(), ids=BAD_BOXES)
def test_a_bad_box_is_left_out_alone(load, caplog, bad, kind, reason):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (record,) = load(detection(instance(), bad, instance()), names=NAMES)
    assert len(record["annotations"]) == 2
    (message,) = caplog.messages
    assert re.search(rf"data.jsonl: left out boxes \({kind}: 1\); line 1: .*{reason}", message) and "\n" not in message


def test_grounding_lines_become_dataset_dicts(load, new_name, tmp_path):
    (record,) = load(grounding(region(), region(phrase="a dog", bbox=[[1, 1, 9, 9], [2, 2, 8, 8]])))
    assert record == {
        "file_name": os.path.join(tmp_path, "a.jpg"),
        "image_id": 1,
        "height": 48,
        "width": 64,
        "caption": "a dog and a red dog",
        "annotations": [
            {"bbox": (4, 6, 24, 16), "bbox_mode": BoxMode.XYXY_ABS, "tokens_positive": ((12, 19),)},
            {"bbox": (1, 1, 9, 9), "bbox_mode": BoxMode.XYXY_ABS, "tokens_positive": ((0, 5),)},
            {"bbox": (2, 2, 8, 8), "bbox_mode": BoxMode.XYXY_ABS, "tokens_positive": ((0, 5),)},
        ],
    }
    metadata = MetadataCatalog.get(new_name)
    assert metadata.task == "grounding" and metadata.get("thing_classes") is None


def test_pseudo_boxes_have_scores(load, new_name):
    (record,) = load(
        grounding(region(tokens_positive=[[2, 5]], score=0.75), teacher="ab12"), task="pseudo_grounding", note=1
    )
    assert [(item["tokens_positive"], item["score"]) for item in record["annotations"]] == [(((2, 5),), 0.75)]
    assert (MetadataCatalog.get(new_name).task, MetadataCatalog.get(new_name).note) == ("pseudo_grounding", 1)
    check_dataset_dicts("x", [record], task="pseudo_grounding")


def test_bad_regions_are_left_out_alone_and_sentences_without_any_box_too(load, caplog):
    nowhere = region(phrase="cat")
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        records = load(
            grounding(region(), nowhere), grounding(nowhere), grounding(caption="of the"), grounding(caption=" ")
        )
    assert [record["image_id"] for record in records] == [1] and len(records[0]["annotations"]) == 1
    assert len(caplog.records) == 1
    assert "left out boxes (phrases that are not in their caption: 2)" in caplog.text
    assert "lines (captions without a box: 2, malformed texts: 1); line 1: phrase: expected words of" in caplog.text


def test_long_and_foreign_captions_are_kept_whole(load):
    captions = ["dog " * 2500, "\u202edog \u0643\u0644\u0628", "dog\x00\x1b[2J"]
    records = load(*(grounding(region(phrase="dog"), caption=caption) for caption in captions))
    assert [record["caption"] for record in records] == captions
    assert len(records[0]["annotations"][0]["tokens_positive"]) == 2500


def test_detection_lines_in_grounding_data_are_an_error(load):
    message = "line 1: expected 'grounding' in a pseudo_grounding dataset, found 'detection'"
    with pytest.raises(AnnotationError, match=message):
        load(detection(instance()), task="pseudo_grounding")


@pytest.mark.parametrize("lines", [[], [b""], [b"no json"], [grounding(region(phrase="cat"))]])
def test_nothing_left_is_an_error(load, lines):
    with pytest.raises(
        AnnotationError, match=r"data\.jsonl: expected lines of a grounding data.*, found nothing to use"
    ):
        load(*lines)


def test_a_slow_file_shows_how_far_it_is(load, monkeypatch, capsys):
    load(grounding(region()), grounding(region()))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(skip_report, "_SILENT_SECONDS", 0)
    lines = list(skip_report.read_lines(os.devnull))
    assert lines == [] and "0.00B" in capsys.readouterr().err


def test_only_the_main_process_shows_it(monkeypatch, capsys):
    monkeypatch.setattr(skip_report, "_SILENT_SECONDS", 0)
    monkeypatch.setattr(skip_report.comm, "is_main_process", lambda: False)
    assert list(skip_report.with_progress(range(3), "x")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_lines_come_with_their_offsets(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\n\nthree")
    assert list(skip_report.read_lines(str(tmp_path / "a.txt"))) == [(0, b"one\n"), (4, b"\n"), (5, b"three")]


@pytest.mark.parametrize("task", ["detection", "pseudo_grounding"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@given(data=st.data())
def test_any_damage_is_left_out_or_a_one_line_error(tmp_path, task, data):
    """Replace or remove one random value of a good line, or cut the line; what comes out is fit for training."""
    line = detection(instance(), instance(0, "red dog")) if task == "detection" else grounding(region(score=0.5))
    text = json.dumps(damaged(data, {"line": json.loads(json.dumps(line))})["line"]).encode()
    cut = data.draw(st.integers(1, len(text)))
    good = json.dumps(line).encode()
    jsonl_file = tmp_path / "damaged.jsonl"
    jsonl_file.write_bytes(good + b"\n" + text[:cut] + b"\n" + good + b"\n" + text)
    name = f"{tmp_path.name}_damaged"
    MetadataCatalog.get(name).set(task=task, jsonl_file=str(jsonl_file), image_root=str(tmp_path))
    records = assert_fit_or_one_line(
        lambda: load_odvg(str(jsonl_file), str(tmp_path), None, name), jsonl_file, name, task
    )
    assert not records or 2 <= len(records) <= 4


def test_a_name_that_stands_twice_is_found_without_comparing_all_pairs(new_name):
    class Counted(str):
        __hash__ = str.__hash__
        compared = 0

        def __eq__(self, other):
            Counted.compared += 1
            return str(self) == str(other)

    names = [Counted(f"name {number}") for number in [*range(300), 299]]
    with pytest.raises(AnnotationError, match="expected one with the name 'name 299', found two"):
        set_thing_classes("names.json", new_name, names)
    assert Counted.compared < 2 * len(names)
