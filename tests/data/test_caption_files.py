import gzip
import json
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tar_shards import write_tar

from glipv2_d2.data.datasets import caption_files
from glipv2_d2.data.datasets.caption_files import CaptionSample, SkippedCaption, open_captions


def write_jsonl(path, *lines):
    encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"".join(line + b"\n" for line in encoded))
    return str(path)


def read_all(captions):
    return [entry for piece in range(len(captions)) for entry in captions.read(piece)]


def reasons(entries):
    return [entry.reason if isinstance(entry, SkippedCaption) else entry.caption for entry in entries]


@pytest.mark.parametrize("count, sizes", [(1, [1]), (4, [2, 2]), (5, [2, 2, 1])])
def test_lines_are_read_in_pieces(tmp_path, count, sizes):
    lines = [{"filename": f"{i}.jpg", "caption": f"dog {i}", "more": [1]} for i in range(count)]
    captions = open_captions(write_jsonl(tmp_path / "a.jsonl", *lines), 2)
    assert captions.num_lines == count and captions.holds_images is False
    pieces = [list(captions.read(piece)) for piece in range(len(captions))]
    assert [len(piece) for piece in pieces] == sizes
    # Pieces can be read again and in any order.
    assert list(captions.read(len(sizes) - 1)) == pieces[-1]
    assert sum(pieces, []) == [
        CaptionSample(f"line {i + 1}: '{i}.jpg'", f"{i:09d}", f"{i}.jpg", f"dog {i}", None) for i in range(count)
    ]


def test_the_last_line_needs_no_end_and_blank_lines_hold_nothing(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"filename": "a", "caption": "x"}\r\n\n  \n{"filename": "b", "caption": "y"}')
    assert reasons(read_all(open_captions(str(path), 3))) == ["x", "y"]


@pytest.mark.parametrize(
    "line, reason",
    [
        (b"{", "line that is not a JSON object"),
        (b"[1]", "line that is not a JSON object"),
        (b"[" * 100_000, "line that is not a JSON object"),
        (b"\xff\xfe", "line that is not a JSON object"),
        ({"caption": "a"}, "no filename"),
        ({"filename": "", "caption": "a"}, "no filename"),
        ({"filename": 3, "caption": "a"}, "no filename"),
        ({"filename": "/etc/a.jpg", "caption": "a"}, "filename that leaves the image folder"),
        ({"filename": "b/../../a.jpg", "caption": "a"}, "filename that leaves the image folder"),
        ({"filename": "b\\..\\a.jpg", "caption": "a"}, "filename that leaves the image folder"),
        ({"filename": "a"}, "no caption"),
        ({"filename": "a", "caption": ["a"]}, "no caption"),
        ({"filename": "a", "caption": "x" * 10_001}, "caption of more than 10000 characters"),
        ({"filename": "a", "caption": "x\ud800"}, "caption or filename that is not valid text"),
        ({"filename": "\udfff", "caption": "x"}, "caption or filename that is not valid text"),
    ],
)
def test_bad_lines_are_skipped_with_a_reason_and_their_number(tmp_path, line, reason):
    good = {"filename": "a..b/c.jpg", "caption": "x" * 10_000}
    first, bad, last = read_all(open_captions(write_jsonl(tmp_path / "a.jsonl", good, line, good), 10))
    assert first.caption == last.caption == "x" * 10_000
    assert bad.reason == reason and bad.name.startswith("line 2")


def test_control_and_right_to_left_characters_stay(tmp_path):
    caption = "\x00\x07a dog\u202e כלב\n\t"
    (sample,) = read_all(open_captions(write_jsonl(tmp_path / "a.jsonl", {"filename": "a", "caption": caption}), 1))
    assert sample.caption == caption


@pytest.mark.parametrize("length", [63, 64, 65, 128, 129, 500])
def test_a_line_that_is_too_long_is_skipped_wherever_the_limit_falls(tmp_path, monkeypatch, length):
    monkeypatch.setattr(caption_files, "_MAX_LINE_BYTES", 64)
    good = {"filename": "a", "caption": "x"}
    long = json.dumps({"filename": "a", "caption": ""}).encode()
    long = long[:-2] + b"x" * (length - 33) + long[-2:]  # 32 bytes without the text, and the end of the line
    captions = open_captions(write_jsonl(tmp_path / "a.jsonl", good, long, good), 1)
    assert len(captions) == 3 and captions.num_lines == 3
    expected = "line of more than 64 bytes" if length >= 64 else "x" * (length - 33)
    assert reasons(read_all(captions)) == ["x", expected, "x"]


def test_an_empty_or_missing_file_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(ValueError, match="a.jsonl: expected lines with a filename and a caption, found none"):
        open_captions(str(tmp_path / "a.jsonl"), 10)
    with pytest.raises(FileNotFoundError, match="no file .*b.jsonl"):
        open_captions(str(tmp_path / "b.jsonl"), 10)
    with pytest.raises(FileNotFoundError, match="no file .*c-1.tar"):
        write_tar(tmp_path / "c-0.tar", {})
        open_captions(str(tmp_path / "c-{0..1}.tar"), 10)
    with pytest.raises(FileNotFoundError, match="no file .*{a,b}.jsonl"):
        open_captions(str(tmp_path / "{a,b}.jsonl"), 10)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz"])
def test_shards_in_braces_are_a_piece_each(tmp_path, suffix):
    for shard in range(2):
        members = {f"d.x/{shard}{i}.{kind}": f"{kind}{i}".encode() for i in range(2) for kind in ("JPG", "txt")}
        path = write_tar(tmp_path / f"c-{shard:03d}.{suffix}", members)
        if suffix != "tar":
            path.write_bytes(gzip.compress(path.read_bytes()))
    captions = open_captions(str(tmp_path / f"c-{{000..001}}.{suffix}"), 10)
    assert len(captions) == 2 and captions.holds_images is True
    assert read_all(captions) == [
        CaptionSample(f"c-00{key[0]}.{suffix}: 'd.x/{key}'", f"d.x/{key}", f"d.x/{key}.jpg", f"txt{i}", b"JPG%d" % i)
        for key, i in (("00", 0), ("01", 1), ("10", 0), ("11", 1))
    ]


@pytest.mark.parametrize(
    "members, expected",
    [
        ([("a.png", b"i"), ("a.json", b'{"caption": "x"}')], "x"),
        ([("a.json", b'{"caption": "y"}'), ("a.txt", b"\xef\xbb\xbfx\n"), ("a.webp", b"i"), ("a.cls", b"1")], "x"),
        ([("a.txt", b"x")], "no image"),
        ([("a.bmp", b"i"), ("a.txt", b"x")], "no image"),
        ([("a.jpg", b"i")], "no caption"),
        ([("a.jpg", b"i"), ("a.json", b"[]")], "no caption"),
        ([("a.jpg", b"i"), ("a.json", b'{"caption": 3}')], "no caption"),
        ([("a.jpg", b"i"), ("a.txt", b"\xff\xff")], "caption that is not valid text"),
        ([("../a.jpg", b"i"), ("../a.txt", b"x")], "key that leaves the folder"),
        ([("a.jpg", b"i"), ("a.txt", b"x" * 10_001)], "caption of more than 10000 characters"),
    ],
)
def test_samples_are_put_together_from_their_members(tmp_path, members, expected):
    path = write_tar(tmp_path / "c.tar", {**dict(members), "z.jpg": b"j", "z.txt": b"last"})
    entries = read_all(open_captions(str(path), 10))
    assert reasons(entries) == [expected, "last"]
    assert entries[0].name == ("c.tar: '../a'" if expected.startswith("key") else "c.tar: 'a'")


def test_links_and_folders_in_a_tar_are_not_followed(tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    with tarfile.open(tmp_path / "c.tar", "w") as tar:
        for name, kind in (("a.jpg", tarfile.SYMTYPE), ("a.txt", tarfile.LNKTYPE), ("b.jpg", tarfile.DIRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(tmp_path / "secret.txt")
            tar.addfile(member)
    assert read_all(open_captions(str(tmp_path / "c.tar"), 10)) == []


def test_a_shard_that_is_cut_off_gives_what_it_holds_and_says_so(tmp_path):
    path = write_tar(tmp_path / "c.tar", {f"{i}.{kind}": b"x" * 600 for i in range(2) for kind in ("jpg", "txt")})
    path.write_bytes(path.read_bytes()[:3500])
    sample, damage = read_all(open_captions(str(path), 10))
    assert sample.key == "0" and damage.reason == "rest of a damaged tar shard" and "c.tar: " in damage.name


@given(st.binary(max_size=300))
def test_no_line_stops_the_reader(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes(content + b'\n{"filename": "a", "caption": "last"}')
    entries = read_all(open_captions(str(path), 2))
    assert entries[-1].caption == "last"
