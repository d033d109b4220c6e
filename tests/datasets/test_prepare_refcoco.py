import json
import pickle

import pytest
from prepare_refcoco import convert_refs, main

SENTENCES = [
    {"sent_id": 0, "sent": "the red dog", "raw": "the red dog!", "tokens": ["the", "red", "dog"]},
    {"sent_id": 1, "sent": "left dog", "raw": "Left dog", "tokens": ["left", "dog"]},
]
REF = {
    "ref_id": 5,
    "ann_id": 7,
    "image_id": 9,
    "category_id": 18,
    "split": "testA",
    "file_name": "COCO_train2014_000000000009_7.jpg",
    "sent_ids": [0, 1],
    "sentences": SENTENCES,
}
CONVERTED = {
    **{key: REF[key] for key in ("ref_id", "ann_id", "image_id", "category_id", "split")},
    "sentences": [
        {"sent_id": 0, "sent": "the red dog", "raw": "the red dog!"},
        {"sent_id": 1, "sent": "left dog", "raw": "Left dog"},
    ],
}


def write(folder, name, refs, protocol=2):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(pickle.dumps(refs, protocol))


def test_every_pickle_gets_a_json_beside_it(tmp_path, capsys):
    write(tmp_path / "refcoco", "refs(unc).p", [REF, {**REF, "split": "train", "sentences": SENTENCES[:1]}], 0)
    write(tmp_path / "refcocog", "refs(umd).p", [REF])
    main([str(tmp_path)])
    content = json.loads((tmp_path / "refcoco" / "refs_unc.json").read_text("utf-8"))
    assert content["refs"][0] == CONVERTED
    assert [len(ref["sentences"]) for ref in content["refs"]] == [2, 1]
    assert json.loads((tmp_path / "refcocog" / "refs_umd.json").read_text("utf-8")) == {"refs": [CONVERTED]}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("refs_unc.json: testA 2 expressions, train 1 expressions") and len(lines) == 2


def test_the_default_folder_is_below_the_root(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write(tmp_path / "refcoco" / "refcoco+", "refs(unc).p", [REF])
    main([])
    assert (tmp_path / "refcoco" / "refcoco+" / "refs_unc.json").is_file()


def test_no_pickle_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"error: .*found no \*/refs\(NAME\)\.p, expected"):
        main([str(tmp_path)])


def test_a_pickle_that_would_run_something_is_refused(tmp_path):
    write(tmp_path / "refcoco", "refs(unc).p", [print])
    with pytest.raises(SystemExit, match=r"error: .*refs\(unc\)\.p: byte \d+: found the instruction GLOBAL"):
        main([str(tmp_path)])
    assert not (tmp_path / "refcoco" / "refs_unc.json").exists()


BAD = {
    "no list": ({"a": 1}, r"x is {'a': 1}, expected a list of objects"),
    "no dict": ([[1]], r"x: \[0\] is \[1\], expected a dict"),
    "text as id": ([{**REF, "ann_id": "7"}], r"x: \[0\]\.ann_id is '7', expected a value of type int"),
    "boolean as id": ([REF, {**REF, "image_id": True}], r"x: \[1\]\.image_id is True"),
    "no split": ([{key: REF[key] for key in REF if key != "split"}], r"split is None, expected a value of type str"),
    "no sentences": ([{**REF, "sentences": None}], r"\[0\]\.sentences is None, expected a list of sentences"),
    "sentence": ([{**REF, "sentences": ["a"]}], r"\[0\]\.sentences\[0\] is 'a', expected a dict"),
    "no text": ([{**REF, "sentences": [{"sent_id": 1, "raw": "a"}]}], r"sentences\[0\]\.sent is None"),
}


@pytest.mark.parametrize("refs, message", BAD.values(), ids=BAD)
def test_what_is_no_expression_is_named(refs, message):
    with pytest.raises(ValueError, match=message):
        convert_refs(refs, "x")


def test_values_nested_without_end_are_named_in_one_line():
    nested = ()
    for _ in range(100):
        nested = (nested, nested)
    with pytest.raises(ValueError, match=r"x: \[0\] is ") as raised:
        convert_refs([nested], "x")
    assert len(str(raised.value)) < 3000
