import io
import json
import tarfile

import pytest

from glipv2_d2.engine.shard_writer import open_shard

RECORD = {"filename": "a/ü.jpg", "grounding": {"caption": "a dog\nכלב", "regions": []}}


def test_a_record_is_one_line_of_jsonl(tmp_path):
    with open_shard(tmp_path / "a.jsonl") as writer:
        writer.write(RECORD, "0", b"image", "jpg")
        writer.write({"filename": "b"}, "1", b"image", "jpg")
    lines = (tmp_path / "a.jsonl").read_bytes().split(b"\n")
    assert [json.loads(line) for line in lines[:2]] == [RECORD, {"filename": "b"}] and lines[2:] == [b""]
    assert "ü" in lines[0].decode("utf-8")


def test_a_record_is_two_members_of_a_tar(tmp_path):
    for name in ("a.tar", "b.tar"):
        with open_shard(tmp_path / name) as writer:
            writer.write(RECORD, "x/000", b"\xffimage", "webp")
            writer.write(RECORD, "x/001", b"", "png")
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getnames() == ["x/000.webp", "x/000.json", "x/001.png", "x/001.json"]
        assert tar.extractfile("x/000.webp").read() == b"\xffimage"
        assert json.load(tar.extractfile("x/000.json")) == RECORD
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_a_tar_without_records_is_a_tar(tmp_path):
    with open_shard(tmp_path / "a.tar"):
        pass
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getnames() == []


@pytest.mark.parametrize("name", ["a.jsonl", "a.tar"])
def test_a_shard_appears_as_a_whole_or_not_at_all(tmp_path, name):
    (tmp_path / name).write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt):
        with open_shard(tmp_path / name) as writer:
            writer.write(RECORD, "0", b"image", "jpg")
            raise KeyboardInterrupt
    assert (tmp_path / name).read_bytes() == b"before"
    with open_shard(tmp_path / name) as writer:
        writer.write(RECORD, "0", b"image", "jpg")
        assert (tmp_path / name).read_bytes() == b"before"
    assert b"a dog" in (tmp_path / name).read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_what_a_killed_writer_left_behind_is_removed_but_nothing_else(tmp_path):
    for name in (".a.jsonl.123.tmp", ".b.jsonl.123.tmp"):
        (tmp_path / name).write_text("half")
    with open_shard(tmp_path / "a.jsonl"):
        pass
    assert sorted(file.name for file in tmp_path.iterdir()) == [".b.jsonl.123.tmp", "a.jsonl"]


def test_numbers_that_json_does_not_have_are_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        with open_shard(tmp_path / "a.jsonl") as writer:
            writer.write({"score": float("nan")}, "0", b"", "jpg")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_name_or_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"a\.json: expected a name that ends in \.jsonl or \.tar"):
        with open_shard(tmp_path / "a.json"):
            pass
    with pytest.raises(FileNotFoundError, match="expected the folder .*none, found none"):
        with open_shard(tmp_path / "none" / "a.tar"):
            pass


def test_webdataset_reads_what_is_written(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with open_shard(tmp_path / "a.tar") as writer:
        writer.write(RECORD, "000", b"image", "jpg")
    (sample,) = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)
    assert sample["__key__"] == "000" and sample["jpg"] == b"image"
    assert json.load(io.BytesIO(sample["json"])) == RECORD
