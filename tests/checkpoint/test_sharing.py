"""Folders of a model: replaced, described, sent to the hub and fetched from it; nothing here uses the network."""

import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from conftest import assert_one_line
from detectron2.data import MetadataCatalog

from glipv2_d2 import GLIPv2Predictor
from glipv2_d2.checkpoint import hub
from glipv2_d2.checkpoint.checkpointer import GLIPv2Checkpointer
from glipv2_d2.checkpoint.model_card import find_measured
from glipv2_d2.evaluation.result_tables import write_result_table
from glipv2_d2.tensor_files import file_sha256

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture
def predictor(tiny_cfg, tmp_path):
    """A predictor with the weights of a run, in its folder."""
    tiny_cfg.MODEL.GLIPV2.TEST.SCORE_THRESH = 0.001
    tiny_cfg.DATASETS.TRAIN, tiny_cfg.DATASETS.TEST = ("my_train",), ("my_val",)
    (tmp_path / "run").mkdir()
    GLIPv2Checkpointer(GLIPv2Predictor(tiny_cfg).model, str(tmp_path / "run")).save("model_best")
    tiny_cfg.MODEL.WEIGHTS = str(tmp_path / "run" / "model_best.pth")
    return GLIPv2Predictor(tiny_cfg)


def front_matter(folder):
    text = (folder / "README.md").read_text()
    head, body = text.removeprefix("---\n").split("\n---\n")
    return yaml.safe_load(head), body


# --- replacing


def test_a_folder_is_replaced_only_if_that_is_asked_for(predictor, tmp_path):
    folder = tmp_path / "model"
    predictor.save_pretrained(folder)
    before = file_sha256(folder / "model.safetensors")
    with pytest.raises(FileExistsError, match="one that save_pretrained wrote; overwrite=True replaces it"):
        predictor.save_pretrained(folder)
    (folder / "README.md").write_text("changed by a person")
    with torch.no_grad():
        next(predictor.model.parameters()).add_(1)
    predictor.save_pretrained(folder, overwrite=True)
    assert file_sha256(folder / "model.safetensors") != before
    assert GLIPv2Predictor.from_pretrained(folder)(IMAGE, ["dog"])["phrases"] == ["dog"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_nothing_else_is_replaced(predictor, tmp_path):
    folder = tmp_path / "model"
    predictor.save_pretrained(folder)
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="one to which notes/a.txt was added"):
        predictor.save_pretrained(folder, overwrite=True)
    assert (folder / "notes" / "a.txt").read_text() == "mine"
    for path in (tmp_path / "run", tmp_path / "run" / "model_best.pth"):
        with pytest.raises(FileExistsError, match="found one with files; name another folder"):
            predictor.save_pretrained(path, overwrite=True)


def test_all_files_have_the_mode_that_the_umask_leaves(predictor, tmp_path):
    before = os.umask(0o022)
    try:
        predictor.save_pretrained(tmp_path / "model")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()} == {0o644}


# --- the page


def test_the_page_says_what_the_config_says(predictor, tmp_path):
    MetadataCatalog.get("my_val").thing_classes = ["red|box", "<b>cup</b>"]
    predictor.save_pretrained(tmp_path / "model", license_name="cc-by-4.0")
    fields, body = front_matter(tmp_path / "model")
    assert fields["license"] == "cc-by-4.0" and fields["pipeline_tag"] == "zero-shot-object-detection"
    assert "# model\n" in body and 'from_pretrained("model")' in body
    assert "| DATASETS.TRAIN | my_train |" in body
    assert "| names of its test data | red\\|box, \\<b\\>cup\\</b\\> |" in body
    number = sum(parameter.numel() for parameter in predictor.model.parameters())
    assert f"| parameters | {number:,} |" in body
    assert "| pixels of an image | 64 (short side), at most 96 (long side) |" in body
    assert "No results of these weights are recorded." in body


def test_without_a_licence_none_is_named_and_a_wrong_one_is_refused(predictor, tmp_path):
    predictor.save_pretrained(tmp_path / "model")
    assert "license" not in front_matter(tmp_path / "model")[0]
    for text in ("MIT\ntags: x", "My licence", "-"):
        with pytest.raises(ValueError, match="license: expected a short name"):
            predictor.save_pretrained(tmp_path / "other", license_name=text)
    assert not (tmp_path / "other").exists()


def write_run_results(folder, weights="elsewhere/model_best.pth"):
    content = {"val": {"bbox": {"AP": 51.04, "APs": None}}, "minutes": 2.5, "weights": weights}
    (folder / "results.json").write_text(json.dumps(content))


def test_results_of_the_run_are_on_the_page(predictor, tmp_path):
    write_run_results(tmp_path / "run")
    predictor.save_pretrained(tmp_path / "model")
    body = front_matter(tmp_path / "model")[1]
    assert "| val | bbox | AP | 51.04 |\n| val | bbox | APs | not measured |" in body


@pytest.mark.parametrize("case", ["other file", "older than the weights", "changed weights", "no json", "a list"])
def test_results_of_other_weights_are_not(predictor, tmp_path, case):
    run = tmp_path / "run"
    write_run_results(run, "model_final.pth" if case == "other file" else "model_best.pth")
    if case == "older than the weights":
        os.utime(run / "results.json", (1, 1))
    if case == "changed weights":
        predictor.cfg.MODEL.GLIPV2.TUNING.INTERPOLATE_WITH = str(run / "model_best.pth")
    if case in ("no json", "a list"):
        (run / "results.json").write_text("[]" if case == "a list" else "{")
    assert find_measured(predictor.cfg) == []
    with pytest.raises(ValueError, match="results: expected result_table.json or results.json, measured with"):
        find_measured(predictor.cfg, run)


def test_a_table_counts_if_it_has_the_hash_of_the_weights(predictor, tmp_path):
    evaluation = tmp_path / "evaluation"
    write_result_table(predictor.cfg, {"my_val": {"bbox": {"AP": 33.129, "AP50": 74.9}}}, str(evaluation))
    assert find_measured(predictor.cfg) == []
    (measured,) = find_measured(predictor.cfg, evaluation)
    assert measured == ("my_val", "bbox", {"AP": 33.129, "AP50": 74.9})
    assert find_measured(predictor.cfg, evaluation / "result_table.json") == [measured]
    predictor.save_pretrained(tmp_path / "model", results=evaluation)
    assert "| my_val | bbox | AP | 33.13 |" in front_matter(tmp_path / "model")[1]
    # Other weights under the same name.
    with open(predictor.cfg.MODEL.WEIGHTS, "ab") as file:
        file.write(b"0")
    with pytest.raises(ValueError, match="results: expected"):
        find_measured(predictor.cfg, evaluation)


def test_random_weights_have_no_results(tiny_cfg, tmp_path, monkeypatch):
    write_run_results(tmp_path, "random")
    monkeypatch.chdir(tmp_path)
    for name in ("", "random"):
        tiny_cfg.MODEL.WEIGHTS = name
        assert find_measured(tiny_cfg) == []


# --- the hub


class FakeHub:
    """Keeps what is sent in a folder, and hands it out."""

    def __init__(self, folder):
        self.folder, self.calls = folder, []

    def api(self, token=None):
        self.calls.append(("token", token))
        return self

    def create_repo(self, repository, private, exist_ok):
        self.calls.append(("create", repository, private, exist_ok))
        return f"https://huggingface.co/{repository}"

    def upload_folder(self, repo_id, folder_path, commit_message):
        self.calls.append(("upload", repo_id, commit_message))
        shutil.copytree(folder_path, self.folder / repo_id)

    def snapshot_download(self, repository, revision, allow_patterns):
        self.calls.append(("download", repository, revision))
        files = [path for path in (self.folder / repository).rglob("*") if path.is_file()]
        names = [path.relative_to(self.folder / repository).as_posix() for path in files]
        snapshot = self.folder / f"snapshot_{len(self.calls)}"
        for name in huggingface_hub.utils.filter_repo_objects(names, allow_patterns=allow_patterns):
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.folder / repository / name, snapshot / name)
        return str(snapshot)


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(hub, "HfApi", fake.api)
    monkeypatch.setattr(hub, "snapshot_download", fake.snapshot_download)
    return fake


def test_a_model_is_sent_and_fetched(predictor, fake_hub, monkeypatch, tmp_path):
    write_run_results(tmp_path / "run")
    address = predictor.push_to_hub("someone/my-model", license_name="mit", token="t", message="First")
    assert address == "https://huggingface.co/someone/my-model"
    assert fake_hub.calls == [
        ("token", "t"),
        ("create", "someone/my-model", True, True),
        ("upload", "someone/my-model", "First"),
    ]
    sent = fake_hub.folder / "someone" / "my-model"
    fields, body = front_matter(sent)
    assert fields["license"] == "mit" and "| val | bbox | AP | 51.04 |" in body
    assert 'from_pretrained("someone/my-model", download=True)' in body
    # What else lies there is not fetched.
    for name in ("model.pth", "code.py", "weights.bin", "names.txt"):
        (sent / name).write_text("no")
    fetched = GLIPv2Predictor.from_pretrained("someone/my-model", download=True, revision="v1")
    assert fake_hub.calls[-1] == ("download", "someone/my-model", "v1")
    snapshot = Path(fetched.cfg.MODEL.WEIGHTS).parent
    assert sorted(path.name for path in snapshot.iterdir()) == ["config.yaml", "files.json", "model.safetensors"]
    one, other = (one(IMAGE, ["dog"])["instances"] for one in (fetched, predictor))
    assert torch.equal(one.scores, other.scores) and len(one)


def test_a_public_repository_is_asked_for(predictor, fake_hub):
    predictor.push_to_hub("someone/open", private=False)
    assert fake_hub.calls[1] == ("create", "someone/open", False, True)


def test_a_file_of_a_model_is_not_its_folder(tmp_path):
    (tmp_path / "model_best.pth").touch()
    with pytest.raises(NotADirectoryError, match=f"expected the folder of a model, found a file; give {tmp_path}"):
        GLIPv2Predictor.from_pretrained(tmp_path / "model_best.pth")


def test_nothing_is_fetched_unless_that_is_asked_for(fake_hub):
    with pytest.raises(FileNotFoundError) as caught:
        GLIPv2Predictor.from_pretrained("someone/my-model")
    assert_one_line(caught, "someone/my-model", "download=True", "--allow-downloads, fetches", "huggingface.co")
    assert fake_hub.calls == []


def test_a_folder_comes_before_a_repository_of_its_name(predictor, fake_hub, tmp_path, monkeypatch):
    (tmp_path / "someone").mkdir()
    predictor.save_pretrained(tmp_path / "someone" / "my-model")
    monkeypatch.chdir(tmp_path)
    assert GLIPv2Predictor.from_pretrained("someone/my-model", download=True).cfg.MODEL.WEIGHTS
    assert fake_hub.calls == []
    with pytest.raises(ValueError, match="revision: expected a repository of the hub"):
        GLIPv2Predictor.from_pretrained("someone/my-model", revision="v1")


@pytest.mark.parametrize("name", ["no-slash", "a/b/c", "../x", "a/b c", "/a/b", ""])
def test_what_is_no_name_of_a_repository_is_never_sent_or_fetched(predictor, fake_hub, name):
    with pytest.raises(FileNotFoundError, match="found nothing"):
        hub.locate_pretrained(name or "nothing", download=True)
    with pytest.raises(ValueError, match="repository: expected USER/NAME, found"):
        predictor.push_to_hub(name)
    assert fake_hub.calls == []


def test_a_repository_of_something_else_is_named(fake_hub):
    folder = fake_hub.folder / "someone" / "other"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("a: 1")
    (folder / "model_final.pth").write_text("x")
    with pytest.raises(ValueError, match="expected a repository that push_to_hub made, found one without files.json"):
        hub.locate_pretrained("someone/other", download=True)


def test_changed_files_of_a_repository_are_refused(predictor, fake_hub):
    predictor.push_to_hub("someone/my-model")
    with open(fake_hub.folder / "someone" / "my-model" / "model.safetensors", "ab") as file:
        file.write(b"0")
    with pytest.raises(ValueError, match="model.safetensors: expected sha256"):
        GLIPv2Predictor.from_pretrained("someone/my-model", download=True)


@pytest.mark.parametrize(
    "error",
    [
        OSError("no\nnetwork"),
        huggingface_hub.errors.HFValidationError("bad name"),
        huggingface_hub.errors.HfHubHTTPError.__bases__[0]("403 of the proxy"),
    ],
)
def test_a_hub_that_refuses_is_one_line(predictor, monkeypatch, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    reason = " ".join(str(error).split())
    with pytest.raises(ValueError) as caught:
        hub.locate_pretrained("someone/x", download=True)
    assert_one_line(caught, "someone/x: expected a repository of huggingface.co, found", reason)
    with pytest.raises(ValueError) as caught:
        predictor.push_to_hub("someone/x")
    assert_one_line(caught, "someone/x: expected to send the model to huggingface.co, found", reason)


# --- names


@pytest.mark.parametrize("other_names", [None, ["zebra"], ["RBC", "cup"]])
def test_a_folder_brings_its_names(predictor, tmp_path, other_names):
    """Also where no dataset of that name is known, or one with other names."""
    texts = {"RBC": ("", "red blood cell", "")}
    MetadataCatalog.get("my_val").set(thing_classes=["RBC", "cup"], prompt_texts=texts)
    predictor.cfg.DATASETS.REGISTER = (str(tmp_path / "photos"),)
    expected = predictor(IMAGE)
    predictor.save_pretrained(tmp_path / "model")
    MetadataCatalog.pop("my_val")
    if other_names is not None:
        MetadataCatalog.get("my_val").set(thing_classes=other_names, prompt_texts=texts if len(other_names) > 1 else {})
    fetched = GLIPv2Predictor.from_pretrained(tmp_path / "model")
    found = fetched(IMAGE)
    assert found["phrases"] == expected["phrases"] and len(found["instances"])
    assert torch.equal(found["instances"].scores, expected["instances"].scores)
    assert str(tmp_path) not in (tmp_path / "model" / "config.yaml").read_text()
    assert fetched.cfg.DATASETS.REGISTER == ()
    assert (fetched.cfg.DATASETS.TEST == ("my_val",)) == (other_names == ["RBC", "cup"])


def test_unknown_names_are_not_written(predictor, tmp_path):
    predictor.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model" / "names.json").exists()


@pytest.mark.parametrize(
    "content",
    ["no json", "[]", '{"names": []}', '{"names": "ab", "texts": {}}', '{"names": ["a"], "texts": {"a": ["", 1, ""]}}'],
)
def test_damaged_names_are_named(predictor, tmp_path, content):
    MetadataCatalog.get("my_val").thing_classes = ["cup"]
    predictor.save_pretrained(tmp_path / "model")
    names, manifest = tmp_path / "model" / "names.json", tmp_path / "model" / "files.json"
    files = json.loads(manifest.read_text())["files"]
    names.write_text(content)
    manifest.write_text(json.dumps({"files": {**files, "names.json": file_sha256(names)}}))
    with pytest.raises(ValueError) as caught:
        GLIPv2Predictor.from_pretrained(tmp_path / "model")
    assert_one_line(caught, f"{names}: expected")
