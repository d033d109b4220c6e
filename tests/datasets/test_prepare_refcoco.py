import copyreg
import json
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prepare_refcoco import convert_refs, main, read_plain_pickle

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
    with pytest.raises(SystemExit, match=r"error: .*expected \*/refs\(NAME\)\.p of refcoco, .*found none"):
        main([str(tmp_path)])


def test_a_pickle_that_would_run_something_is_refused(tmp_path):
    write(tmp_path / "refcoco", "refs(unc).p", [print])
    with pytest.raises(SystemExit, match=r"error: .*refs\(unc\)\.p: expected a pickle of plain values, found"):
        main([str(tmp_path)])
    assert not (tmp_path / "refcoco" / "refs_unc.json").exists()


BAD = {
    "no list": ({"a": 1}, r"x: expected a list of objects.*found {'a': 1}"),
    "no dict": ([[1]], r"x: \[0\]: expected a dict.*found \[1\]"),
    "text as id": ([{**REF, "ann_id": "7"}], r"x: \[0\]\.ann_id: expected a value of type int.*found '7'"),
    "boolean as id": (
        [REF, {**REF, "image_id": True}],
        r"x: \[1\]\.image_id: expected a value of type int",
    ),
    "no split": (
        [{key: REF[key] for key in REF if key != "split"}],
        "split: expected a value of type str",
    ),
    "no sentences": ([{**REF, "sentences": None}], r"\[0\]\.sentences: expected a list of sentences.*found None"),
    "sentence": ([{**REF, "sentences": ["a"]}], r"\[0\]\.sentences\[0\]: expected a dict.*found 'a'"),
    "no text": (
        [{**REF, "sentences": [{"sent_id": 1, "raw": "a"}]}],
        r"sentences\[0\]\.sent: expected ",
    ),
}


@pytest.mark.parametrize("refs, message", BAD.values(), ids=BAD)
def test_what_is_no_expression_is_named(refs, message):
    with pytest.raises(ValueError, match=message):
        convert_refs(refs, "x")


def test_values_nested_without_end_are_named_in_one_line():
    nested = ()
    for _ in range(100):
        nested = (nested, nested)
    with pytest.raises(ValueError, match=r"x: \[0\]: expected a dict, found ") as raised:
        convert_refs([nested], "x")
    assert len(str(raised.value)) < 3000


# --- pickles that are not to be trusted -------------------------------------------------------------------------------

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=300),
    lambda values: (
        st.lists(values, max_size=5)
        | st.lists(values, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers(), values, max_size=4)
    ),
    max_leaves=20,
)
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


@pytest.fixture
def read(tmp_path):
    def write_and_read(content: bytes):
        (tmp_path / "a.p").write_bytes(content)
        return read_plain_pickle(tmp_path / "a.p")

    return write_and_read


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(value=PLAIN, protocol=st.sampled_from(PROTOCOLS))
def test_plain_values_of_every_protocol_come_back(read, value, protocol):
    found = read(pickle.dumps(value, protocol))
    assert found == value and repr(found) == repr(value)


# As Python 2.7 writes [{'sent': 'the caf\xc3\xa9', 'ids': (1L, 2)}].
OF_PYTHON_2 = {
    "protocol 0": b"(lp1\n(dp2\nS'sent'\np3\nS'the caf\\xc3\\xa9'\np4\nsS'ids'\np5\n(L1L\nI2\ntp6\nsa.",
    "protocol 2": b"\x80\x02]q\x01}q\x02(U\x04sentq\x03U\tthe caf\xc3\xa9q\x04U\x03idsq\x05"
    b"\x8a\x01\x01K\x02\x86q\x06ua.",
}


@pytest.mark.parametrize("content", OF_PYTHON_2.values(), ids=OF_PYTHON_2)
def test_strings_of_python_2_are_read_as_utf8(read, content):
    assert read(content) == [{"sent": "the café", "ids": (1, 2)}]


def test_bytes_that_are_not_utf8_become_replacement_characters(read):
    assert read(b"(S\"it's\"\nS'a\\n\\\\b \\' \\xff'\nt.") == ("it's", "a\n\\b ' \ufffd")


class Calls:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class Numbered(Calls):
    """A class that has a number in the table of copyreg; pickles name it by that."""


@pytest.fixture
def numbered():
    """The pickle of a class that has a number."""
    copyreg.add_extension(Numbered.__module__, "Numbered", 240)
    try:
        yield b"\x80\x02\x82\xf0."  # EXT1 240
    finally:
        copyreg.clear_extension_cache()
        copyreg.remove_extension(Numbered.__module__, "Numbered", 240)


NOT_PLAIN = {
    **{f"call, protocol {protocol}": pickle.dumps(Calls(os.mkdir, "made"), protocol) for protocol in PROTOCOLS},
    **{f"object, protocol {protocol}": pickle.dumps([Path("a")], protocol) for protocol in PROTOCOLS},
    "instance": b"(S'made'\nios\nmkdir\n.",
    "object on the stack": b"(cos\nmkdir\nS'made'\no.",
    "number without a class": b"\x80\x02\x82\xf1.",
    "persistent, protocol 0": b"P17\n.",
    "persistent": b"\x80\x02K\x11Q.",
}


@pytest.mark.parametrize("content", NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_nothing_is_imported_called_or_looked_up(read, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"a\.p: expected a pickle of plain values, found .+; download") as raised:
        read(content)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "made").exists()


def test_a_class_with_a_number_is_refused_even_after_it_was_loaded(read, numbered):
    assert pickle.loads(numbered) is Numbered
    with pytest.raises(ValueError, match="found .*Numbered, which is not a plain value"):
        read(numbered)


DAMAGED = {
    "empty": b"",
    "text": b"\xff\xfe\x00",
    "nothing left": b".",
    "mark left": b"(.",
    "no mark": b"K\x01t.",
    "no list to append to": b"}K\x01a.",
    "no dict to fill": b"]U\x01aK\x01s.",
    "list as key": b"}]K\x01s.",
    "key without value": b"(U\x01ad.",
    "unknown memo": b"h\x07.",
    "no quotes": b"Sabc\n.",
    "quotes that differ": b"S'a\"\n.",
    "length beyond the file": b"X\x00\x00\x00\x80a.",
    "not a number": b"Iabc\n.",
    **{f"cut off after {end}": pickle.dumps(["a", {"b": 300}], 2)[:end] for end in range(1, 20, 3)},
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_pickles_are_named_in_one_line(read, content):
    with pytest.raises(ValueError, match=r"a\.p: expected a pickle of plain values, found .+; download") as raised:
        read(content)
    assert "\n" not in str(raised.value)


def test_a_missing_pickle_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_plain_pickle(tmp_path / "none.p")
