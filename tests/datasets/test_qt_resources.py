import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes.qt_resources import QtResourceFile

FILES = {"act/README": b"Copyright: me", "act/resource/a.webp": b"\x00\x01" * 40, "act/resource/sub/b.webp": b""}


@pytest.mark.parametrize("version", [1, 2, 3])
def test_files_come_back_by_their_path(tmp_path, make_rcc, version):
    path = tmp_path / "act.rcc"
    path.write_bytes(make_rcc(FILES, version, packed=frozenset({"act/README"})))
    archive = QtResourceFile(path)
    assert archive.names() == sorted(FILES)
    assert {name: archive.read(name) for name in archive.names()} == FILES


def test_names_may_hold_any_letter(tmp_path, make_rcc):
    path = tmp_path / "act.rcc"
    path.write_bytes(make_rcc({"ä/ж.webp": b"1"}))
    assert QtResourceFile(path).names() == ["ä/ж.webp"]


def test_an_empty_archive_has_no_names(tmp_path, make_rcc):
    path = tmp_path / "act.rcc"
    path.write_bytes(make_rcc({}))
    assert QtResourceFile(path).names() == []


def broken(tmp_path, content):
    path = tmp_path / "act.rcc"
    path.write_bytes(content)
    return QtResourceFile(path)


def test_another_kind_of_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"act.rcc: expected b'qres' at its start, found b'PK"):
        broken(tmp_path, b"PK\x03\x04 and so on")


def test_a_folder_inside_itself_is_an_error_and_no_endless_loop(tmp_path):
    root = struct.pack(">IHII", 0, 2, 1, 1) + bytes(8)
    child = struct.pack(">IHII", 0, 2, 1, 0) + bytes(8)
    names = struct.pack(">HI", 1, 0) + "a".encode("utf-16-be")
    start = 20
    data = start + len(root + child)
    with pytest.raises(ValueError, match="act.rcc: expected a tree, found node 0 twice"):
        broken(tmp_path, b"qres" + struct.pack(">4I", 2, start, data, data) + root + child + names)


def test_a_folder_with_more_files_than_there_is_room_for_is_an_error(tmp_path):
    root = struct.pack(">IHII", 0, 2, 4_000_000_000, 1) + bytes(8)
    with pytest.raises(ValueError, match="act.rcc: expected at most 1 nodes, found node 4000000000"):
        broken(tmp_path, b"qres" + struct.pack(">4I", 2, 20, 42, 42) + root)


def test_a_name_that_is_cut_short_is_an_error(tmp_path, make_rcc):
    with pytest.raises(ValueError, match="act.rcc: expected a name of 4 letters"):
        broken(tmp_path, make_rcc({"file": b"x"})[:-2])


def test_a_file_that_is_not_there_is_named(tmp_path, make_rcc):
    with pytest.raises(KeyError, match="expected a file 'act/nothing' inside"):
        broken(tmp_path, make_rcc(FILES)).read("act/nothing")


def test_content_that_is_cut_short_or_does_not_unpack_is_an_error(tmp_path, make_rcc):
    archive = make_rcc({"a": b"x" * 50})
    length = struct.pack(">I", 50)
    with pytest.raises(ValueError, match="act.rcc: a: expected 60000 bytes, found "):
        broken(tmp_path, archive.replace(length + b"x", struct.pack(">I", 60000) + b"x")).read("a")
    packed = make_rcc({"a": b"x" * 50}, packed=frozenset({"a"}))
    with pytest.raises(ValueError, match="act.rcc: a: expected zlib content"):
        broken(tmp_path, packed.replace(b"x\x9c", b"\x00\x00")).read("a")


def test_zstd_is_named_as_the_reason(tmp_path, make_rcc):
    archive = make_rcc({"a": b"x" * 50})
    file_node = 20 + 22 + 4  # header, root, offset of the name
    archive = archive[:file_node] + struct.pack(">H", 4) + archive[file_node + 2 :]
    with pytest.raises(ValueError, match="a: expected plain or zlib content, found zstd"):
        broken(tmp_path, archive).read("a")


@settings(max_examples=80)
@given(data=st.data())
def test_a_damaged_file_gives_a_value_error_or_its_names(tmp_path_factory, make_rcc, data):
    content = bytearray(make_rcc(FILES))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(4, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(4, len(content))) :]
    path = tmp_path_factory.mktemp("rcc") / "act.rcc"
    path.write_bytes(content)
    try:
        archive = QtResourceFile(path)
        for name in archive.names():
            assert isinstance(archive.read(name), bytes)
    except ValueError as error:
        assert "act.rcc" in str(error)
