import io
import os
import pickle
import random
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_pickle import read_plain_pickle

plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=300),
    lambda values: (
        st.lists(values, max_size=5)
        | st.tuples(values)
        | st.lists(values, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers(), values, max_size=4)
    ),
    max_leaves=20,
)
on_disk = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)


@pytest.fixture
def read(tmp_path):
    def write_and_read(content: bytes):
        (tmp_path / "a.p").write_bytes(content)
        return read_plain_pickle(tmp_path / "a.p")

    return write_and_read


@on_disk
@given(value=plain_values, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_values_of_every_protocol_come_back(read, value, protocol):
    found = read(pickle.dumps(value, protocol))
    assert found == value and repr(found) == repr(value)


def test_one_object_at_two_places_stays_one(read):
    shared = ["a"]
    first, second = read(pickle.dumps([shared, shared]))
    assert first is second == ["a"]


# As Python 2.7 writes [{'sent': 'the caf\xc3\xa9', 'ids': (1L, 2)}].
OF_PYTHON_2 = {
    "protocol 0": b"(lp1\n(dp2\nS'sent'\np3\nS'the caf\\xc3\\xa9'\np4\nsS'ids'\np5\n(L1L\nI2\ntp6\nsa.",
    "protocol 2": b"\x80\x02]q\x01}q\x02(U\x04sentq\x03U\tthe caf\xc3\xa9q\x04U\x03idsq\x05"
    b"\x8a\x01\x01K\x02\x86q\x06ua.",
}


@pytest.mark.parametrize("content", OF_PYTHON_2.values(), ids=OF_PYTHON_2)
def test_strings_of_python_2_are_read_as_utf8(read, content):
    assert read(content) == [{"sent": "the café", "ids": (1, 2)}]
    assert pickle.loads(content, encoding="utf-8") == [{"sent": "the café", "ids": (1, 2)}]


def test_quotes_and_escapes_of_python_2_strings(read):
    assert read(b"(S\"it's\"\nS'a\\n\\\\b \\' \\xff'\nt.") == ("it's", "a\n\\b ' \ufffd")


class Calls:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def deep_key() -> bytes:
    """A dict whose key is a pair of one pair of one pair ..., a hundred deep: 2**100 places to hash."""
    return b"}" + b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(100)) + b"K\x01s."


NOT_PLAIN = {
    "call": (pickle.dumps(Calls(os.mkdir, "made")), "STACK_GLOBAL"),
    "call, protocol 0": (pickle.dumps(Calls(os.mkdir, "made"), 0), "GLOBAL"),
    "instance": (b"(ios\nmkdir\n.", "INST"),
    "object": (pickle.dumps([Path("a")]), "STACK_GLOBAL"),
    "set": (pickle.dumps({1, 2}), "EMPTY_SET"),
    "bytes": (pickle.dumps(b"ab"), "BINBYTES"),
    "extension": (b"\x80\x02\x82\x01.", "EXT1"),
    "persistent": (b"P1\n.", "PERSID"),
    "key to hash for ever": (deep_key(), "a key that is no string and no number"),
    "list as key": (b"}]K\x01s.", "a key that is no string"),
}


@pytest.mark.parametrize("content, named", NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_nothing_else_is_made_or_run(read, tmp_path, monkeypatch, content, named):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=named) as raised:
        read(content)
    assert "expected a pickle of plain values" in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "made").exists()


DAMAGED = {
    "empty": b"",
    "text": b"\xff\xfe\x00",
    "cut off": pickle.dumps(["a", "b" * 300])[:-40],
    "nothing left": b".",
    "mark left": b"(.",
    "no mark": b"K\x01t.",
    "no mark on an empty stack": b"t.",
    "mark as value": b"](a.",
    "no list to append to": b"}K\x01a.",
    "no dict to fill": b"]U\x01aK\x01s.",
    "key without value": b"(U\x01ad.",
    "no pair on the stack": b"K\x01\x86.",
    "unknown memo": b"h\x07.",
    "nothing to remember": b"q\x00.",
    "no quotes": b"Sabc\n.",
    "half a quote": b"S'\n.",
    "quotes that differ": b"S'a\"\n.",
    "no latin letter": b"S'\\u0416'\n.",
    "length beyond the file": b"X" + struct.pack("<I", 2**31) + b"a.",
    "number that is none": b"Iabc\n.",
    "not ascii": b"I\xff\n.",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_named(read, content):
    with pytest.raises(ValueError, match=r"a\.p: byte \d+: .*; expected a pickle of plain values") as raised:
        read(content)
    assert "\n" not in str(raised.value)


def test_a_huge_memo_number_takes_no_memory(read):
    assert read(b"]r\xff\xff\xff\x7f.") == []


@on_disk
@given(value=plain_values, protocol=st.integers(0, 4), seed=st.integers(0, 9999))
def test_changed_bytes_give_plain_values_or_one_line(read, value, protocol, seed):
    rng = random.Random(seed)
    content = bytearray(pickle.dumps(value, protocol))
    for _ in range(3):
        content[rng.randrange(len(content))] = rng.randrange(256)
    try:
        found = read(bytes(content))
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        plain = (list, tuple, dict, str, int, float, bool, type(None))
        assert isinstance(found, plain)


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_plain_pickle(tmp_path / "none.p")


def test_python_itself_would_have_called():
    """The check of ``NOT_PLAIN`` means something: pickle's own reader would import what is named there."""

    class Named(pickle.Unpickler):
        def find_class(self, module, name):
            raise LookupError(f"{module}.{name}")

    with pytest.raises(LookupError, match="mkdir"):
        Named(io.BytesIO(NOT_PLAIN["call"][0])).load()
