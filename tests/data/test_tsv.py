import base64
import io
import json
import logging
import math
import re

import numpy as np
import pytest
from damaged_json import assert_fit_or_one_line, damaged
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from glipv2_d2.config import add_glipv2_config
from glipv2_d2.data.datasets.dict_checks import check_dataset_dicts
from glipv2_d2.data.datasets.formats import register_tsv
from glipv2_d2.data.datasets.tsv import load_tsv
from glipv2_d2.data.datasets.value_checks import AnnotationError
from glipv2_d2.data.image_reading import read_image
from glipv2_d2.data.loading import load_test_dataset, load_training_dicts

CAPTION = "a dog and a red dog"


def pixels(number: int) -> np.ndarray:
    return np.full((48, 64, 3), 40 * number, np.uint8)


def encoded_image(number: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels(number)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def write_tsv(path, lines, with_index=True) -> None:
    encoded = [("\t".join(line) + "\n").encode() for line in lines]
    path.write_bytes(b"".join(encoded))
    if with_index:
        offsets = np.cumsum([0, *(len(line) for line in encoded[:-1])])
        path.with_suffix(".lineidx").write_text("".join(f"{offset}\n" for offset in offsets))


@pytest.fixture
def load(tmp_path, new_name):
    """A function that writes labels and images with the keys k0, k1, ..., registers them and loads them."""

    def write_and_load(labels, task, *, hw=None, linelist=None, jsondict=None, with_index=True, edit=None, **options):
        keys = [f"k{number}" for number in range(len(labels))]
        files = {"img": "images.tsv", "label": "labels.tsv"}
        images = [(key, encoded_image(number)) for number, key in enumerate(keys)]
        texts = [label if isinstance(label, str) else json.dumps(label) for label in labels]
        write_tsv(tmp_path / "images.tsv", images, with_index)
        write_tsv(tmp_path / "labels.tsv", list(zip(keys, texts)), with_index)
        if hw is not None:
            files["hw"] = "hw.tsv"
            write_tsv(tmp_path / "hw.tsv", list(zip(keys, hw)), with_index)
        if linelist is not None:
            files["linelist"] = "rows.txt"
            (tmp_path / "rows.txt").write_text("\n".join(map(str, linelist)))
        if jsondict is not None:
            files["jsondict"] = "names.json"
            (tmp_path / "names.json").write_text(json.dumps(jsondict))
        (tmp_path / "data.yaml").write_text("".join(f"{key}: {name}\n" for key, name in files.items()))
        if edit:
            edit(tmp_path)
        register_tsv(new_name, tmp_path / "data.yaml", task=task, **options)
        return DatasetCatalog.get(new_name)

    return write_and_load


def thing(name="cat", rect=(4, 6, 24, 16)) -> dict:
    return {"class": name, "rect": list(rect), "conf": 0.5}


def pseudo(**fields) -> dict:
    return {
        **{"img_h": 48, "img_w": 64, "caption": CAPTION},
        **{"bboxes": [[4, 6, 24, 16], [1, 1, 9, 9]], "scores": [0.5, 0.75]},
        **{"tokens_positive": [[[12, 19]], [[2, 5]]], **fields},
    }


def box_of(bbox, **fields) -> dict:
    return {"bbox": bbox, "bbox_mode": BoxMode.XYXY_ABS, **fields}


def test_detection_lines_become_dataset_dicts(load, new_name, tmp_path):
    labels = [[thing()], {"objects": [thing("red dog"), thing("cat", (-3, 1, 9, 90))]}, []]
    names = {"label_to_idx": {"cat": 2, "red dog": 7, "fish": 1, "__background__": 0}}
    records = load(labels, "detection", jsondict=names, note="old")
    assert [record["annotations"] for record in records] == [
        [box_of((4, 6, 24, 16), category_id=1)],
        [box_of((4, 6, 24, 16), category_id=2), box_of((0, 1, 9, 48), category_id=1)],
        [],
    ]
    metadata = MetadataCatalog.get(new_name)
    assert metadata.thing_classes == ["fish", "cat", "red dog"]
    assert (metadata.task, metadata.note) == ("detection", "old")
    assert [(record["image_id"], record["height"], record["width"]) for record in records] == [
        (number, 48, 64) for number in range(3)
    ]
    assert {record["file_name"] for record in records} == {str(tmp_path / "images.tsv")}
    for number, record in enumerate(records):
        assert np.array_equal(read_image(record, "RGB"), pixels(number))
    check_dataset_dicts("x", records, 3)


def test_without_names_the_classes_are_those_of_the_boxes(load, new_name):
    records = load([[thing("fish"), thing()], [thing("red dog")]], "detection")
    assert MetadataCatalog.get(new_name).thing_classes == ["cat", "fish", "red dog"]
    assert [[item["category_id"] for item in record["annotations"]] for record in records] == [[1, 0], [2]]


def test_names_can_stand_in_the_file_alone_or_under_the_older_key(load, new_name, tmp_path):
    def use_older_key(folder):
        path = folder / "data.yaml"
        path.write_text(path.read_text().replace("jsondict", "labelmap"))

    load([[thing()]], "detection", jsondict={"fish": 2, "cat": 5}, edit=use_older_key)
    assert MetadataCatalog.get(new_name).thing_classes == ["fish", "cat"]


@pytest.mark.parametrize("hw", ['[{"height": 48, "width": 64}]', '{"height": 48, "width": 64}', "48 64"])
def test_sizes_come_from_their_own_file(load, hw):
    (record,) = load([[thing()]], "detection", hw=[hw])
    assert (record["height"], record["width"]) == (48, 64)


def test_sizes_of_that_file_win_over_the_image(load):
    (record,) = load([[thing("cat", (4, 6, 90, 90))]], "detection", hw=["40 50"])
    assert record["annotations"][0]["bbox"] == (4, 6, 50, 40)


def test_a_line_list_chooses_and_repeats_lines(load):
    records = load([[thing()], [thing("fish")], []], "detection", linelist=[2, 0, 0])
    assert [record["image_id"] for record in records] == [2, 0, 0]
    assert records[1] is records[2] and records[1]["annotations"][0]["category_id"] == 0


def test_a_repeated_line_is_learned_each_time_and_tested_once(load, new_name, caplog):
    load([[thing()], [thing("fish")], []], "detection", linelist=[1, 0, 1, 1])
    assert [record["image_id"] for record in load_training_dicts(new_name, filter_empty=True)] == [1, 0, 1, 1]
    cfg = get_cfg()
    add_glipv2_config(cfg)
    with caplog.at_level(logging.INFO):
        dataset = load_test_dataset(cfg, new_name)
    assert [record["image_id"] for record in dataset.dicts] == [1, 0]
    assert [image["id"] for image in dataset.truth["images"]] == [1, 0] and len(dataset.truth["annotations"]) == 2
    assert "left out 2 of 4 images: repeats of others" in caplog.text


def test_captions_with_a_box_per_entry(load):
    (record,) = load([pseudo()], "pseudo_grounding")
    assert record["caption"] == CAPTION and (record["height"], record["width"]) == (48, 64)
    assert record["annotations"] == [
        box_of((4, 6, 24, 16), tokens_positive=((12, 19),), score=0.5),
        box_of((1, 1, 9, 9), tokens_positive=((2, 5),), score=0.75),
    ]
    check_dataset_dicts("x", [record], task="pseudo_grounding")


def test_captions_with_several_boxes_per_entry(load):
    boxes, scores = [[[4, 6, 24, 16], [1, 1, 9, 9]], [[2, 2, 8, 8]]], [[0.5, 0.75], [0.25]]
    (record,) = load([pseudo(bboxes=boxes, scores=scores)], "grounding")
    assert [(item["tokens_positive"], item["score"]) for item in record["annotations"]] == [
        (((12, 19),), 0.5),
        (((12, 19),), 0.75),
        (((2, 5),), 0.25),
    ]


def test_scores_may_be_missing(load):
    label = pseudo()
    del label["scores"]
    (record,) = load([label], "grounding")
    assert all("score" not in item for item in record["annotations"])


def test_without_an_index_the_lines_are_found(load):
    records = load([pseudo(), pseudo(caption="a dog, and a red one")], "pseudo_grounding", with_index=False)
    assert np.array_equal(read_image(records[1], "RGB"), pixels(1))


BAD_DETECTION = {
    "no json": ("no json", "expected a key and json"),
    "nested": ("[" * 100_000, "expected a key and json"),
    "number": ("7", "label: expected .*a list of objects.*found 7"),
}


@pytest.mark.parametrize("bad, reason", BAD_DETECTION.values(), ids=BAD_DETECTION)
def test_a_bad_detection_line_is_left_out(load, caplog, bad, reason):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        records = load([[thing()], bad, [thing()]], "detection", linelist=[1, 0, 2, 1])
    assert [record["image_id"] for record in records] == [0, 2]
    assert len(caplog.records) == 1
    assert re.search(rf"data.yaml: left out lines \(.*: 1\); line 1: .*{reason}", caplog.text)


BAD_BOXES = {
    "no class": ({"rect": [4, 6, 24, 16]}, "malformed texts", "class: expected a string .*, found None"),
    "no rect": ({"class": "cat"}, "boxes that are not four numbers", "bbox: expected .*found None"),
    "nan": (thing("cat", (1, 2, math.nan, 4)), "boxes that are not four numbers", r"found \[1, 2, nan, 4\]"),
    "one pixel": (thing("cat", (4, 4, 5, 9)), "boxes of at most one pixel", "at most 1 pixel of it inside"),
}


@pytest.mark.parametrize("bad, kind, reason", BAD_BOXES.values(), ids=BAD_BOXES)
def test_a_bad_box_is_left_out_alone(load, caplog, bad, kind, reason):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (record,) = load([[thing(), bad]], "detection")
    assert len(record["annotations"]) == 1
    assert re.search(rf"left out boxes \({kind}: 1\); .*line 0: .*{reason}", caplog.text)


BAD_CAPTIONS = {
    "list": ([], r"expected an object, found \[\]"),
    "blank": (pseudo(caption=" "), "caption: expected .*found ' '"),
    "no boxes": (
        pseudo(bboxes=[], scores=[], tokens_positive=[]),
        "expected a box for 'a dog and a red dog', found none",
    ),
    "fewer ranges": (pseudo(tokens_positive=[[[2, 5]]]), "bboxes: expected as many as tokens_positive"),
    "fewer scores": (pseudo(scores=[0.5]), "expected 2"),
    "fewer inner scores": (pseudo(bboxes=[[[1, 1, 9, 9]] * 2, [1, 1, 9, 9]], scores=[[0.5], 0.5]), "expected 2"),
    "boxes of nan": (pseudo(bboxes=[[math.nan] * 4] * 2), r"bbox: expected .*found \[nan, nan, nan, nan\]"),
    "ranges outside": (pseudo(tokens_positive=[[[2, 50]]] * 2), "caption of 19 characters"),
    "no size": (pseudo(img_w=None), "img_w: expected .*found None"),
}


@pytest.mark.parametrize("bad, reason", BAD_CAPTIONS.values(), ids=BAD_CAPTIONS)
def test_bad_captions_are_left_out_counted_and_named(load, caplog, bad, reason):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        records = load([pseudo(), bad], "pseudo_grounding")
    assert [record["image_id"] for record in records] == [0]
    assert len(caplog.records) == 1
    assert re.search(rf"lines \(.*: 1\); line 1: .*{reason}", caplog.text)


def test_one_bad_box_of_a_caption_leaves_the_others(load, caplog):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (record,) = load([pseudo(scores=[0.5, 2])], "pseudo_grounding")
    assert len(record["annotations"]) == 1
    assert "left out boxes (malformed scores: 1); line 0: score: expected a number in [0, 1], found 2" in caplog.text


@pytest.mark.parametrize("hw", ["48", "x y", "[]", '{"height": 48}', "0 64", "-48 64", "48 " + "9" * 5000])
def test_a_size_that_is_none_leaves_the_line_out(load, hw):
    with pytest.raises(AnnotationError, match="line 0: (height|width): expected a positive integer, found"):
        load([[thing()]], "detection", hw=[hw])


def test_an_image_whose_size_cannot_be_read_is_left_out(load, caplog):
    def break_image(folder):
        path = folder / "images.tsv"
        lines = path.read_bytes().split(b"\n")
        lines[1] = b"k1\t" + b"A" * (len(lines[1]) - 3)
        path.write_bytes(b"\n".join(lines))

    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        records = load([[thing()], [thing()]], "detection", edit=break_image)
    assert [record["image_id"] for record in records] == [0]
    assert "line 1: image: " in caplog.text


def replaced(name, text):
    return lambda folder: (folder / name).write_text(text)


WRONG_FILES = {
    "index of another file": (replaced("images.lineidx", "0\n7\n"), "images.lineidx: expected the beginnings"),
    "index beyond the end": (replaced("images.lineidx", "0\n99999999\n"), "images.lineidx: expected the beginnings"),
    "index that goes back": (replaced("images.lineidx", "0\n0\n"), "images.lineidx: expected the beginnings"),
    "index without zero": (replaced("labels.lineidx", "5\n"), "labels.lineidx: expected the beginnings"),
    "empty index": (replaced("labels.lineidx", ""), "labels.lineidx: expected the beginnings"),
    "index of words": (replaced("labels.lineidx", "zero\n"), "labels.lineidx: .*expected an integer"),
    "fewer labels": (replaced("labels.lineidx", "0\n"), "expected 1 lines as in .*labels.tsv, found 2"),
    "rows beyond": (replaced("rows.txt", "0\n2\n"), "rows.txt: expected lines 0 to 1, found 2"),
    "negative row": (replaced("rows.txt", "-1\n"), "rows.txt: expected lines 0 to 1, found -1"),
    "words as rows": (replaced("rows.txt", "a\n"), "rows.txt: .*expected an integer"),
    "names": (
        replaced("names.json", '{"label_to_idx": ["cat"]}'),
        "names.json: expected the number of each class, found",
    ),
    "number as name": (replaced("names.json", '{"cat": "1"}'), "names.json: expected the number of each class, found"),
    "unknown class": (
        replaced("names.json", '{"dog": 1}'),
        "labels.tsv: line 0: class: expected one of .*, found 'cat'",
    ),
    "empty yaml": (replaced("data.yaml", ""), "data.yaml: expected img, .*, found None"),
    "list as yaml": (replaced("data.yaml", "- a\n"), "data.yaml: expected img, label and other keys, found"),
    "deep yaml": (replaced("data.yaml", "img: " + "[" * 20_000), "data.yaml: expected values at most 64 levels deep"),
    "broken yaml": (replaced("data.yaml", "img: [\n"), "data.yaml: .*expected a yaml file"),
    "object in yaml": (replaced("data.yaml", "img: !!python/object/apply:os.getcwd []\n"), "expected a yaml file"),
    "no label file": (
        replaced("data.yaml", "img: images.tsv\n"),
        r"data\.yaml: label: expected .*a TSV file.*found None",
    ),
    "other keys": (
        replaced("hw.tsv", "k0\t48 64\nk7\t48 64\n"),
        "hw.tsv: line 1: expected the key b'k1' .*, found b'k7'",
    ),
}


@pytest.mark.parametrize("edit, message", WRONG_FILES.values(), ids=WRONG_FILES)
def test_files_that_do_not_belong_together_are_an_error(load, edit, message):
    options = {"hw": ["48 64"] * 2, "linelist": [0, 1], "jsondict": {"cat": 1}}
    with pytest.raises(AnnotationError, match=message) as raised:
        load([[thing()], []], "detection", edit=edit, **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["data.yaml", "images.tsv", "labels.tsv", "rows.txt", "names.json"])
def test_missing_files_are_named(load, name):
    with pytest.raises(FileNotFoundError, match=name):
        load([[thing()]], "detection", linelist=[0], jsondict={"cat": 1}, edit=lambda folder: (folder / name).unlink())


def test_nothing_left_is_an_error(load):
    message = r"data\.yaml: expected lines of a pseudo_grounding dataset.*, found nothing to use"
    with pytest.raises(AnnotationError, match=message):
        load([pseudo(caption="")], "pseudo_grounding")


@pytest.mark.parametrize("task", ["detection", "pseudo_grounding"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_any_damage_of_a_label_is_left_out_or_a_one_line_error(tmp_path, task, data):
    """Replace or remove one random value of a good label; what comes out is fit for training."""
    good = [thing(), thing("fish")] if task == "detection" else pseudo()
    labels = [("k0", json.dumps(good)), ("k1", json.dumps(damaged(data, {"label": good})["label"]))]
    write_tsv(tmp_path / "labels.tsv", labels)
    write_tsv(tmp_path / "images.tsv", [("k0", encoded_image(0)), ("k1", encoded_image(1))])
    (tmp_path / "data.yaml").write_text("img: images.tsv\nlabel: labels.tsv\n")
    name = f"{tmp_path.name}_damaged"
    MetadataCatalog.get(name).set(task=task)
    records = assert_fit_or_one_line(lambda: load_tsv(str(tmp_path / "data.yaml"), name), tmp_path, name, task)
    assert 1 <= len(records) <= 2
