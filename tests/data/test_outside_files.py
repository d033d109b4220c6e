"""What a file of data names stays in its folder and has bounds, and long files are read in proportional time."""

import gzip
import json
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog
from tar_shards import sample_files, write_tar

from glipv2_d2.data.datasets.coco import load_coco_grounding, load_lvis
from glipv2_d2.data.datasets.coco_json import CocoJson
from glipv2_d2.data.datasets.grounding_json import load_grounding_json
from glipv2_d2.data.datasets.grounding_records import read_odvg_grounding
from glipv2_d2.data.datasets.odvg import load_odvg
from glipv2_d2.data.datasets.questions import load_vqa_json, load_vqa_jsonl
from glipv2_d2.data.datasets.referring import load_referring_json
from glipv2_d2.data.datasets.skip_report import DataReport
from glipv2_d2.data.datasets.tar_shards import find_shards, read_shard
from glipv2_d2.data.datasets.tsv import load_tsv
from glipv2_d2.data.datasets.value_checks import AnnotationError, path_inside
from glipv2_d2.errors import InputError
from glipv2_d2.tensor_files import CheckpointError, read_tensors

SIZE = {"height": 40, "width": 50}
BOX = {"image_id": 1, "bbox": [1, 2, 20, 20], "area": 400, "iscrowd": 0}


def coco(path, **fields):
    image = {"id": 1, "file_name": path, "caption": "a dog", **SIZE, **fields}
    annotation = {**BOX, "id": 1, "category_id": 1, "tokens_positive": [[0, 5]], "phrase": "a dog"}
    annotation |= {"caption": "a dog"}
    return {"images": [image], "annotations": [annotation], "categories": [{"id": 1, "name": "dog", "frequency": "f"}]}


def odvg(path):
    instances = [{"bbox": [1, 2, 20, 20], "label": 0, "category": "dog"}]
    return {"filename": path, **SIZE, "detection": {"instances": instances}}


QUESTIONS = [{"question_id": 1, "question": "what?", "answer": "a dog"}]
# Loader, arguments behind the image folder, task, and a file that names a path.
READERS = {
    "coco": (load_coco_grounding, (), "detection", coco),
    "lvis": (load_lvis, (), "detection", lambda path: coco(path, neg_category_ids=[], not_exhaustive_category_ids=[])),
    "grounding": (load_grounding_json, (), "grounding", coco),
    "referring": (load_referring_json, (), "grounding", coco),
    "odvg": (load_odvg, (None,), "detection", odvg),
    "vqa_json": (load_vqa_json, (), "vqa", lambda path: coco(path, questions=QUESTIONS)),
    "vqa_jsonl": (load_vqa_jsonl, (), "vqa", lambda path: {"filename": path, **SIZE, **QUESTIONS[0]}),
}


@pytest.fixture(params=READERS, ids=str)
def load(request, tmp_path, new_name):
    """A function that loads a dataset of one image with this path, in each format."""
    reader, options, task, make = READERS[request.param]

    def write_and_load(path):
        (tmp_path / "data.json").write_text(json.dumps(make(path)))
        MetadataCatalog.get(new_name).task = task
        records = reader(str(tmp_path / "data.json"), str(tmp_path / "images"), *options, name=new_name)
        return [record["file_name"] for record in records]

    return write_and_load


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a/../../secret.png", "images/../../x.png"])
def test_a_path_that_leaves_the_image_folder_needs_the_config(load, tmp_path, path):
    with pytest.raises(AnnotationError, match="DATASETS.ALLOW_OUTSIDE_FILES"):
        load(path)
    with DataReport(outside_files=True):
        assert load(path) == [str(tmp_path / "images" / path) if path[0] != "/" else path]
    with pytest.raises(AnnotationError):
        load(path)


def test_an_absolute_path_below_the_image_folder_is_inside(load, tmp_path):
    path = str(tmp_path / "images" / "a" / "b.png")
    assert load(path) == [path]


@pytest.mark.parametrize(
    ("path", "folder", "expected"),
    [
        ("a/b.png", "", "a/b.png"),
        ("/a/b.png", "", None),
        ("/a/b.png", "/", "a/b.png"),
        ("/a/b.png", "/a/", "b.png"),
        ("/ab/c.png", "/a", None),
        ("/a/../b.png", "/a", None),
        ("..\\b.png", "/a", None),
        ("..a/b..png", "/a", "..a/b..png"),
        ("a/../b.png", "/a", "b.png"),
        ("a/../b.png", "", "b.png"),
        ("a/../../b.png", "/a", None),
        ("a/..\\..\\b.png", "/a", None),
        ("https://host/b.png", "", None),
        ("https://host/b.png", "a", "https://host/b.png"),
    ],
)
def test_paths_inside_a_folder(path, folder, expected):
    assert path_inside(path, folder) == expected


def test_an_absolute_path_and_its_folder_may_be_named_through_links(tmp_path):
    (tmp_path / "real" / "a").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    for folder, path in (("real", "link/a/b.png"), ("link", "real/a/b.png"), ("link", "link/a/b.png")):
        assert path_inside(str(tmp_path / path), str(tmp_path / folder)) == "a/b.png"
    assert path_inside(str(tmp_path / "link" / "b.png"), str(tmp_path / "real" / "a")) is None


@pytest.mark.parametrize("key", ["img", "hw", "jsondict"])
def test_the_yaml_of_a_tsv_dataset_names_files_below_it(tmp_path, new_name, key):
    MetadataCatalog.get(new_name).task = "detection"
    files = {"img": "i.tsv", "label": "l.tsv", key: "../else/i.tsv"}
    yaml_file = tmp_path / "set.yaml"
    yaml_file.write_text(json.dumps(files))
    with pytest.raises(AnnotationError, match=f"{key}: expected a file below .*ALLOW_OUTSIDE_FILES True"):
        load_tsv(str(yaml_file), new_name)
    # Then the next thing that is wrong is said: the files are not there.
    with DataReport(outside_files=True), pytest.raises(FileNotFoundError):
        load_tsv(str(yaml_file), new_name)


def test_a_command_as_a_shard_needs_the_config():
    with pytest.raises(InputError, match="shard 'pipe:cat a.tar': .*found a command; DATASETS.ALLOW_OUTSIDE_FILES"):
        find_shards(["pipe:cat a.tar"])
    with DataReport(outside_files=True):
        assert find_shards(["pipe:cat a.tar"]) == ["pipe:cat a.tar"]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_the_files_of_a_sample_have_a_bound_together(tmp_path, monkeypatch, suffix):
    limit = 4 * sum(map(len, sample_files(0).values()))
    monkeypatch.setattr("glipv2_d2.data.datasets.tar_shards._MAX_SAMPLE_BYTES", limit)
    bomb = {f"d/bomb.{number}": bytes(limit // 3) for number in range(12)}
    path = write_tar(tmp_path / "s.tar", {**sample_files(0), **sample_files(1), **bomb})
    if suffix == "tar.gz":
        packed = tmp_path / "s.tar.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        path = packed
    damage: list[str] = []
    samples = list(read_shard(str(path), damage.append))
    assert [sample.key for sample in samples if "json" in sample.files] == ["0000", "0001"]
    (line,) = damage
    assert str(path) in line and f"'d/bomb.3' has {limit // 3} bytes" in line
    # Three of twelve were read.
    assert sum(map(len, samples[-1].files.values())) <= limit and tarfile.is_tarfile(path)


def test_a_member_of_a_checkpoint_that_expands_without_measure_is_named(tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "stored.pth")
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(tmp_path / "stored.pth") as stored, zipfile.ZipFile(packed, "w") as compressed:
        for name in stored.namelist():
            compressed.writestr(name, stored.read(name), zipfile.ZIP_DEFLATED)
    assert torch.equal(read_tensors(packed)[0]["a"], torch.zeros(100_000))
    monkeypatch.setattr("glipv2_d2.tensor_files._MOST_UNPACKED", 399_999)
    with pytest.raises(CheckpointError, match="packed.pth: expected a member '.*/data/0' .*one that claims 400000"):
        read_tensors(packed)


def test_members_of_a_checkpoint_that_expand_without_measure_together_are_refused(tmp_path, monkeypatch):
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(5):
            archive.writestr(f"packed/data/{number}", bytes(399_999))
    size = packed.stat().st_size
    monkeypatch.setattr("glipv2_d2.tensor_files._MOST_UNPACKED", 400_000)
    with pytest.raises(CheckpointError, match=f"packed.pth: .*100 times its {size} bytes, found .* claim 1999995"):
        read_tensors(packed)


def test_boxes_of_one_phrase_share_its_places():
    regions = [{"bbox": [1, 2, 20, 20], "phrase": "cat"}, {"bbox": [3, 2, 20, 20], "phrase": ["cat", "cat"]}]
    entries, left_out = read_odvg_grounding({**SIZE, "grounding": {"caption": "cat " * 2000, "regions": regions}})
    first, second = (annotation["tokens_positive"] for annotation in entries["annotations"])
    assert first is second and len(first) == 2000 and not left_out


def seconds(function, *arguments) -> float:
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start


def categories(path: Path, number: int) -> str:
    rows = [{"id": row, "name": f"c{row}", "supercategory": f"c{row % 7}" if row else "none"} for row in range(number)]
    path.write_text(json.dumps({"categories": rows, "images": [], "annotations": []}))
    return str(path)


def test_ten_times_as_many_categories_take_ten_times_as_long(tmp_path):
    files = [CocoJson(categories(tmp_path / f"{number}.json", number)) for number in (800, 8000)]
    few, many = (seconds(file.categories) for file in files)
    # Of the square it is 100 times; the margin is for a machine under load.
    assert many < 40 * few + 0.2
