import gzip
import io
import json
import logging
import tarfile
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from tar_shards import cut_tar, png, record, sample_files, write_shards, write_tar

from glipv2_d2.data.datasets.formats import register_shards
from glipv2_d2.data.datasets.tar_shards import (
    TarSample,
    _members,
    _TailReader,
    expand_shard_urls,
    find_shards,
    read_shard,
    read_shard_sample,
    shard_urls_of,
)
from glipv2_d2.data.datasets.value_checks import EntryError

FILES = {f"{key}.{suffix}": bytes([65 + i]) * 700 for i, key in enumerate("abcd") for suffix in ("jpg", "json")}
# A header and two blocks of content for each file.
FILE_SIZE, HEADER_SIZE, CONTENT_SIZE = 1536, 512, 700


def read(path: Path) -> tuple[list, list[str]]:
    damage: list[str] = []
    return list(read_shard(str(path), damage.append)), damage


def contents(samples: list) -> dict[str, bytes]:
    return {f"{sample.key}.{suffix}": data for sample in samples for suffix, data in sample.files.items()}


def test_files_of_a_name_are_one_sample(tmp_path):
    files = {"x/a.left.JPG": b"1", "x/a.json": b"2", "x/b.json": b"3", "y/b.txt": b"4"}
    samples, damage = read(write_tar(tmp_path / "s.tar", files))
    assert [tuple(sample) for sample in samples] == [
        ("x/a", {"left.jpg": b"1", "json": b"2"}, False),
        ("x/b", {"json": b"3"}, False),
        ("y/b", {"txt": b"4"}, False),
    ]
    assert damage == []


@pytest.mark.parametrize("cut", range(0, 8 * FILE_SIZE + 1, 256))
def test_a_cut_shard_gives_its_whole_files_and_is_named_once(tmp_path, cut):
    path = write_tar(tmp_path / "s.tar", FILES)
    path.write_bytes(path.read_bytes()[:cut])
    samples, (line,) = read(path)
    # The padding behind the content of a file may be missing.
    num_whole = (cut + FILE_SIZE - HEADER_SIZE - CONTENT_SIZE) // FILE_SIZE
    assert contents(samples) == dict(list(FILES.items())[:num_whole])
    assert [sample.is_cut for sample in samples] == [False] * (len(samples) - 1) + [True] * bool(samples)
    assert line.startswith(f"{path}: ") and f"{len(samples)} samples read" in line and "expected a whole tar" in line
    assert "object at" not in line


def test_a_whole_shard_is_not_damaged(tmp_path):
    path = write_tar(tmp_path / "s.tar", FILES)
    samples, damage = read(path)
    assert contents(samples) == FILES and damage == [] and not any(sample.is_cut for sample in samples)
    # Archives may end with no more than two blocks of zeros.
    path.write_bytes(path.read_bytes()[: 8 * FILE_SIZE + 1024])
    assert read(path)[1] == []


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz"])
def test_gzipped_shards_are_read(tmp_path, suffix):
    plain = write_tar(tmp_path / "s.tar", FILES).read_bytes()
    path = tmp_path / f"s{suffix}"
    path.write_bytes(gzip.compress(plain))
    assert contents(read(path)[0]) == FILES and read(path)[1] == []
    path.write_bytes(gzip.compress(plain)[:90])
    assert len(read(path)[1]) == 1


def test_a_broken_header_ends_a_shard(tmp_path):
    path = write_tar(tmp_path / "s.tar", FILES)
    data = bytearray(path.read_bytes())
    data[4 * FILE_SIZE : 4 * FILE_SIZE + 200] = b"?" * 200
    path.write_bytes(data)
    samples, damage = read(path)
    assert contents(samples) == dict(list(FILES.items())[:4])
    assert len(damage) == 1 and "2 samples read" in damage[0]


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 500])
def test_what_is_no_tar_file_has_no_samples(tmp_path, content):
    path = tmp_path / "s.tar"
    path.write_bytes(content)
    samples, (line,) = read(path)
    assert samples == [] and str(path) in line


def test_a_missing_shard_is_named(tmp_path):
    samples, (line,) = read(tmp_path / "none.tar")
    assert samples == [] and "none.tar: No such file" in line
    with pytest.raises(FileNotFoundError, match="none.tar does not exist"):
        find_shards([str(tmp_path / "none.tar")])


def test_an_address_is_opened_by_webdataset(tmp_path):
    path = write_tar(tmp_path / "s.tar", FILES)
    damage: list[str] = []
    assert contents(list(read_shard(f"pipe:cat {path}", damage.append))) == FILES and damage == []
    assert list(read_shard("pipe:exit 3", damage.append)) == [] and len(damage) == 1
    assert find_shards(["https://nowhere.invalid/s*.tar"]) == ["https://nowhere.invalid/s*.tar"]


def test_a_second_file_of_a_name_is_left_out_and_named(tmp_path):
    path = tmp_path / "s.tar"
    write_tar(path, {"a.json": b"first", "b.json": b"b"})
    with tarfile.open(path, "a") as tar:
        tar.add(write_tar(tmp_path / "other", {"c": b""}), "b.json")
    samples, (line,) = read(path)
    assert contents(samples) == {"a.json": b"first", "b.json": b"b"}
    assert "b.json" in line and "duplicate" in line


def test_reading_goes_no_further_than_asked(tmp_path):
    path = write_tar(tmp_path / "s.tar", {f"{i}.jpg": bytes(20_000) for i in range(20)})
    path.write_bytes(path.read_bytes()[:-100_000])
    damage: list[str] = []
    stream = read_shard(str(path), damage.append)
    assert next(stream).key == "0" and damage == []


def test_the_headers_of_a_shard_do_not_pile_up_in_memory(tmp_path):
    stream = _TailReader(io.BytesIO(write_tar(tmp_path / "s.tar", FILES).read_bytes()))
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        assert [len(archive.members) for _ in _members(archive, "s.tar", stream)] == [1] * len(FILES)


def test_shards_are_found_by_a_pattern_in_sorted_order(tmp_path):
    names = [str(write_tar(tmp_path / f"{name}.tar", FILES)) for name in ("b", "a2", "a10")]
    assert find_shards([str(tmp_path / "a*.tar"), names[0], names[1]]) == sorted(names)
    with pytest.raises(FileNotFoundError, match=r"shard .*c\*.tar does not exist"):
        find_shards([str(tmp_path / "c*.tar")])


def test_braces_are_expanded_and_sorted():
    expected = ["a/s-08.tar", "a/s-09.tar", "a/s-10.tar", "b.tgz"]
    assert expand_shard_urls(["b.tgz", "a/s-{10..08}.tar", "a/s-09.tar"]) == expected
    assert expand_shard_urls("https://host/{x,y}") == ["https://host/x", "https://host/y"]


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        ("s-{00..09.tar", r"'s-\{00..09.tar'.*expected braces like \{000000..000099\}"),
        ([], r"expected at least one tar file, found \[\]"),
        ("a.zip", "shard 'a.zip': expected a name that ends in .tar, .tar.gz or .tgz"),
    ],
)
def test_patterns_that_name_no_shard_are_errors(urls, message):
    with pytest.raises(ValueError, match=message):
        expand_shard_urls(urls)


def test_a_file_that_claims_more_than_is_read_ends_the_shard(tmp_path, monkeypatch):
    monkeypatch.setattr("glipv2_d2.data.datasets.tar_shards._MAX_SAMPLE_BYTES", 1500)
    path = write_tar(tmp_path / "s.tar", {**FILES, "e.jpg": b"x" * 1501, "f.jpg": b"y"})
    samples, (line,) = read(path)
    assert contents(samples) == FILES and "'e.jpg' has 1501 bytes, expected plain ones of at most 1500" in line


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, b"Z"])
def test_a_header_that_claims_more_than_is_read_ends_the_shard(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("glipv2_d2.data.datasets.tar_shards._MAX_SAMPLE_BYTES", 1500)
    plain, header = write_tar(tmp_path / "plain.tar", FILES), tarfile.TarInfo("long")
    header.type, header.size = kind, 10**6
    files = Path(plain).read_bytes().rstrip(b"\0")
    path = tmp_path / "s.tar"
    path.write_bytes(files + bytes(-len(files) % tarfile.BLOCKSIZE) + header.tobuf() + b"x" * 10**6)
    samples, (line,) = read(path)
    assert contents(samples) == FILES and "more than 3000 bytes up to the next file" in line


def test_json_of_any_length_is_not_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr("glipv2_d2.data.datasets.tar_shards._MAX_JSON_BYTES", 3)
    with pytest.raises(EntryError, match="expected json of at most 3 bytes, found 4"):
        read_shard_sample(TarSample("a", {"jpg": b"x", "json": b"null"}, False), "s.tar")


@pytest.mark.parametrize("size", [400_000_000, 400])
def test_a_file_with_holes_ends_the_shard_before_the_holes_are_filled(tmp_path, size):
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("a.jpg")
        # Version 0.1 of GNU's sparse files: one byte at the end.
        sparse = {"map": f"{size - 1},1", "size": f"{size}", "numblocks": "1"}
        member.pax_headers = {f"GNU.sparse.{key}": value for key, value in sparse.items()}
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    samples, (line,) = read(path)
    assert samples == [] and "with holes" in line


# --- registered shards


@pytest.fixture
def registered():
    """A function that registers shards under the name "caps"."""

    def register(*args, **kwargs) -> str:
        register_shards("caps", *args, **kwargs)
        return "caps"

    return register


def test_registration_expands_and_opens_nothing(registered):
    name = registered("nowhere/{b,a}.tar", num_samples=7, source="web")
    metadata = MetadataCatalog.get(name)
    assert metadata.shard_urls == ["nowhere/a.tar", "nowhere/b.tar"]
    assert (metadata.task, metadata.num_samples, metadata.source) == ("pseudo_grounding", 7, "web")
    with pytest.raises(FileNotFoundError, match="'caps': shard nowhere/a.tar does not exist"):
        shard_urls_of(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"task": "detection"},
            r"'caps': task: expected one of \['pseudo_grounding', 'grounding'\], found 'detection'",
        ),
        ({"num_samples": 0}, "'caps': num_samples: expected a positive integer or None, found 0"),
        ({"num_samples": 2.0}, "num_samples: .* found 2.0"),
        ({"urls": "a-{0.tar"}, "'caps': shards 'a-{0.tar'"),
    ],
)
def test_arguments_that_cannot_be_are_named(registered, options, message):
    with pytest.raises(ValueError, match=message):
        registered(**{"urls": "a.tar", **options})
    assert "caps" not in DatasetCatalog


def test_the_catalog_gives_all_samples_and_counts_what_it_leaves_out(registered, tmp_path, caplog):
    pattern = write_shards(tmp_path, [2, 2])
    cut_tar(tmp_path / "caps-001.tar", "0003.png", 100)
    files = {**sample_files(7), "bad.json": b"{", "bad.png": b""}
    write_tar(tmp_path / "caps-002.tar", files)
    name = registered(pattern.replace("001}", "002}"))
    with caplog.at_level(logging.WARNING):
        dicts = DatasetCatalog.get(name)
    assert [item["image_id"] for item in dicts] == ["0000", "0001", "0002", "0007"]
    (message,) = caplog.messages
    assert message.startswith("shards of dataset 'caps': left out shards (malformed shards: 1), records (malformed ")
    assert "caps-001.tar: unexpected end of data" in message and "caps-002.tar: 'bad'" in message


def test_a_sample_becomes_a_dataset_dict(tmp_path):
    content = record(5)
    files = {"png": png(5), "json": json.dumps(content).encode(), "cls": b"\x80\x04never read"}
    dataset_dict, left_out = read_shard_sample(TarSample("x/0005", files, False), "a/b.tar")
    annotations = dataset_dict.pop("annotations")
    assert dataset_dict == {
        "file_name": "a/b.tar/x/0005.png",
        "image_id": "x/0005",
        "image_bytes": files["png"],
        "height": 48,
        "width": 64,
        "caption": "a dog on sofa 5",
    }
    assert [(list(item["bbox"]), item["score"]) for item in annotations] == [
        ([4, 6, 24, 16], 0.9),
        ([20, 20, 60, 40], 0.9),
    ]
    assert [[list(span) for span in item["tokens_positive"]] for item in annotations] == [[[0, 5]], [[9, 13]]]
    assert left_out == []


def test_a_bad_box_is_left_out_with_its_place():
    content = record(5)
    content["grounding"]["regions"][0]["bbox"] = [float("nan"), 1, 2, 3]
    files = {"jpg": b"", "json": json.dumps(content).encode()}
    dataset_dict, (line,) = read_shard_sample(TarSample("k", files, False), "b.tar")
    assert len(dataset_dict["annotations"]) == 1 and line.startswith("b.tar: 'k': ") and "nan" in line


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"json": b"{}"}, r"b.tar: 'k': expected an image among its files, found \['json'\]"),
        ({"jpg": b""}, r"expected json among its files, found \['jpg'\]"),
        ({"jpg": b"", "json": b"{"}, "b.tar: 'k': "),
        ({"jpg": b"", "json": b"\xff\xfe\x00"}, "b.tar: 'k': "),
        ({"jpg": b"", "json": b"[" * 100_000}, "b.tar: 'k': "),
        ({"jpg": b"", "json": b"[]"}, "b.tar: 'k': "),
        ({"jpg": b"", "json": json.dumps({"height": 4, "width": 4}).encode()}, "'k': grounding: expected .*found None"),
    ],
)
def test_a_sample_that_cannot_be_used_is_named(files, message):
    with pytest.raises(EntryError, match=message) as info:
        read_shard_sample(TarSample("k", files, False), "b.tar")
    assert "\n" not in str(info.value)
