import argparse
import collections
import errno
import hashlib
import io
import logging
import os
import pickle
import stat
import zipfile

import detectron2.checkpoint  # noqa: F401  It knows addresses of catalog://.
import numpy as np
import pytest
import torch
from conftest import assert_one_line
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from glipv2_d2.tensor_files import (
    CheckpointError,
    file_sha256,
    is_whole,
    read_checkpoint,
    read_tensors,
    unwrap_weights,
    write_checkpoint,
    write_tensors,
    write_text,
)

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.index": torch.tensor([[3, 1]])}


class RunsCode:
    """Unpickling this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype and torch.equal(actual[name], tensor)


@pytest.mark.parametrize(
    "save",
    [
        lambda path: torch.save(TENSORS, path),
        lambda path: torch.save({"model": TENSORS, "iteration": 3}, path),
        lambda path: torch.save({"model": {f"module.{name}": t for name, t in TENSORS.items()}}, path),
        lambda path: torch.save({"state_dict": TENSORS, "meta": {"epoch": 3}}, path),
        lambda path: torch.save(TENSORS, path, _use_new_zipfile_serialization=False),
        lambda path: save_file(TENSORS, path),
        lambda path: write_tensors(str(path), TENSORS),
        lambda path: write_checkpoint(path, {"model": TENSORS}),
    ],
    ids=["flat", "model", "module", "state_dict", "old torch", "safetensors", "write_tensors", "write_checkpoint"],
)
@pytest.mark.parametrize("name", ["x.pth", "x"])
def test_tensors_are_read_from_every_accepted_form_whatever_the_file_is_called(tmp_path, save, name):
    save(tmp_path / name)
    tensors, metadata = read_tensors(tmp_path / name)
    assert_same(tensors, TENSORS)
    assert metadata == {}


def test_module_prefix_stays_where_not_all_names_have_it():
    tensors = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert unwrap_weights(tensors, "x").keys() == tensors.keys()


def test_moving_average_is_taken_on_request_only():
    content = {"model": {"a": torch.zeros(1)}, "model_ema": {"module.a": torch.ones(1)}}
    assert unwrap_weights(content, "x")["a"] == 0
    assert unwrap_weights(content, "x", ema=True)["a"] == 1
    with pytest.raises(CheckpointError) as caught:
        unwrap_weights({"model": {"a": torch.zeros(1)}, "iteration": 1}, "x.pth", ema=True)
    assert_one_line(caught, "x.pth", "model_ema", "'iteration'")


@pytest.mark.parametrize("content", [{}, {"model": {}}, {"model": {"a": 1}}, {"epoch": 3}, {1: torch.ones(1)}])
def test_what_is_no_dict_of_named_tensors_is_refused(content):
    with pytest.raises(CheckpointError) as caught:
        unwrap_weights(content, "x.pth")
    assert_one_line(caught, "x.pth", "expected named tensors")


@pytest.mark.parametrize(
    "kind",
    [
        torch.eye(2).to_sparse(),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
    ],
    ids=["sparse", "quantized", "nested"],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_weights_are_dense(tmp_path, kind):
    torch.save({"model": {"a": torch.ones(1), "b": kind}}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as caught:
        read_tensors(tmp_path / "x.pth")
    assert_one_line(caught, "x.pth", "b: expected a dense tensor")


def test_metadata_and_shared_and_strided_tensors_survive_safetensors(tmp_path):
    base = torch.arange(6.0).view(2, 3)
    tensors = {"tied": base, "twin": base, "part": base[1], "turned": torch.arange(6.0).view(2, 3).T}
    write_tensors(tmp_path / "x.safetensors", tensors, {"source": "GLIP"})
    read, metadata = read_tensors(tmp_path / "x.safetensors")
    assert_same(read, tensors)
    assert metadata == {"source": "GLIP"}
    assert_same(load_file(tmp_path / "x.safetensors"), tensors)


@pytest.mark.parametrize("value", [3.0, torch.eye(2).to_sparse()])
def test_safetensors_of_anything_but_dense_tensors_are_not_written(tmp_path, value):
    with pytest.raises(CheckpointError) as caught:
        write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(1), "b": value})
    assert_one_line(caught, "x.safetensors", "'b'")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [lambda code: {"model": TENSORS, "scheduler": code}, lambda code: {"model": {"a": code}}, lambda code: [code]],
)
def test_code_in_a_file_does_not_run(tmp_path, legacy, wrap):
    content = wrap(RunsCode(tmp_path / "ran"))
    for path in (tmp_path / "x.pth", tmp_path / "x.safetensors"):
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(CheckpointError) as caught:
            read_tensors(path)
        assert_one_line(caught, path)
    assert not (tmp_path / "ran").exists()


def test_refusal_names_what_the_file_holds_and_a_way_out(tmp_path):
    torch.save({"a": torch.ones(1), "best": np.float64(3.0)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as caught:
        read_tensors(tmp_path / "x.pth")
    assert_one_line(caught, "x.pth", "multiarray.scalar", "save its tensors alone as safetensors")


class Attributes(dict):
    """Hyperparameters as lightning saves them."""


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_tensors_of_other_libraries_are_read_and_the_rest_is_named(tmp_path, key, caplog):
    parameters = {name: torch.nn.Parameter(tensor, requires_grad=False) for name, tensor in TENSORS.items()}
    extras = {
        "message_hub": {"log": collections.deque([np.ones(2), 1])},
        "best": np.float64(3.0),
        "hyper_parameters": Attributes(rate=0.1),
        "meta": argparse.Namespace(epochs=3),
        "callbacks": {Attributes: {"patience": 3}},
    }
    torch.save({key: parameters, "epoch": 3, **extras}, tmp_path / "x.pth")
    with caplog.at_level(logging.WARNING):
        content, _ = read_checkpoint(tmp_path / "x.pth")
    assert content.keys() == {key, "epoch"}
    assert_same(unwrap_weights(content, "x"), TENSORS)
    (message,) = caplog.messages
    assert str(tmp_path / "x.pth") in message
    for name in (*extras, "multiarray", "Namespace", "Attributes"):
        assert name in message


def test_a_path_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_tensors(tmp_path / "x.safetensors", TENSORS)
    assert_same(read_tensors("~/x.safetensors")[0], TENSORS)


def test_programs_of_torch_are_refused_as_what_they_are(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"clip/{name}", b"")
    with pytest.raises(CheckpointError) as caught:
        read_tensors(tmp_path / "x.pt")
    assert_one_line(caught, "x.pt", "TorchScript archive, which holds code", "save its tensors alone as safetensors")


@pytest.mark.parametrize(
    ("name", "words"), [("x.pkl", "found a pickle"), ("x.pickle", "found a pickle"), ("x.pth", "")]
)
def test_plain_pickles_are_refused(tmp_path, name, words):
    (tmp_path / name).write_bytes(pickle.dumps({"model": {"a": np.ones(3)}, "run": RunsCode(tmp_path / "ran")}))
    with pytest.raises(CheckpointError) as caught:
        read_tensors(tmp_path / name)
    assert_one_line(caught, name, words)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>Sign in</html>", "found something else"),
        (b"PK\x03\x04" + bytes(50), "cut off"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{not json at all", "safetensors"),
    ],
)
def test_files_that_are_no_checkpoint_are_named(tmp_path, content, words):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_tensors(tmp_path / "x.pth")
    assert_one_line(caught, tmp_path / "x.pth", words)
    assert not is_whole(tmp_path / "x.pth")


def test_content_other_than_a_dict_is_refused(tmp_path):
    torch.save([torch.ones(1)], tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "x.pth")
    assert_one_line(caught, "x.pth", "found list")


def test_missing_file_and_folder_are_named(tmp_path):
    for path in (tmp_path / "x.pth", tmp_path):
        with pytest.raises(FileNotFoundError) as caught:
            read_tensors(path)
        assert_one_line(caught, path)
    assert not is_whole(tmp_path / "x.pth")
    with pytest.raises(FileNotFoundError) as caught:
        write_tensors(tmp_path / "no" / "x.safetensors", TENSORS)
    assert_one_line(caught, tmp_path / "no")


@pytest.mark.parametrize("size", [0, 5, (1 << 20) + 3])
def test_the_hash_of_a_file_is_that_of_all_its_bytes(tmp_path, size):
    content = os.urandom(size)
    (tmp_path / "x").write_bytes(content)
    assert file_sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    tensors = {f"layer.{index}.weight": torch.full((5, 7), float(index)) for index in range(4)}
    write_tensors(folder / "a.safetensors", tensors)
    write_checkpoint(folder / "b.pth", {"model": tensors, "iteration": 4})
    return folder, [(folder / "a.safetensors").read_bytes(), (folder / "b.pth").read_bytes()]


def test_whole_files_are_recognized(whole_files):
    folder, _ = whole_files
    assert is_whole(folder / "a.safetensors") and is_whole(folder / "b.pth")


@settings(max_examples=60)
@given(which=st.integers(0, 1), share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_not_whole_and_is_refused_in_one_line(whole_files, which, share):
    folder, contents = whole_files
    path = folder / ("cut.safetensors", "cut.pth")[which]
    path.write_bytes(contents[which][: int(share * len(contents[which]))])
    assert not is_whole(path)
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path)
    assert_one_line(caught, path)


def test_one_wrong_bit_in_a_tensor_of_a_torch_file_is_noticed(whole_files):
    folder, (_, content) = whole_files
    place = content.index(torch.full((5, 7), 3.0).numpy().tobytes())
    (folder / "bit.pth").write_bytes(content[:place] + b"\x01" + content[place + 1 :])
    assert not is_whole(folder / "bit.pth")


def test_a_directory_with_a_wrong_byte_is_damage_in_one_line(whole_files):
    folder, (_, content) = whole_files
    path, start = folder / "directory.pth", content.rindex(b"PK\x01\x02")
    messages = []
    for place in range(start, len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        # Some bytes do not matter, such as the time of the file.
        is_whole(path)
        try:
            read_tensors(path)
        except CheckpointError as error:
            messages.append(str(error))
    assert messages and all(str(path) in message and "\n" not in message for message in messages)


def test_a_compressed_file_holds_the_same_tensors(whole_files):
    folder, _ = whole_files
    with zipfile.ZipFile(folder / "b.pth") as stored, zipfile.ZipFile(folder / "c.pth", "w") as compressed:
        for name in stored.namelist():
            compressed.writestr(name, stored.read(name), zipfile.ZIP_DEFLATED)
    assert_same(read_tensors(folder / "c.pth")[0], read_tensors(folder / "b.pth")[0])


def test_a_zip_file_of_something_else_is_no_whole_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert not is_whole(tmp_path / "x.pth")


def make_training_state(steps):
    """The state of an AdamW with two groups, a scheduler, a loss scaler and random generators, trained some steps."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    groups = [{"params": model[0].parameters(), "lr": 1e-2}, {"params": model[1].parameters(), "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3])
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for step in range(steps):
        scaler.scale(model(torch.ones(2, 3) * step).square().sum() + model[0].weight.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
    return model, optimizer, scheduler, scaler


def test_a_whole_training_state_comes_back_as_it_was(tmp_path):
    model, optimizer, scheduler, scaler = make_training_state(4)
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "scaler": scaler.state_dict(),
        "generator": torch.get_rng_state(),
        "numpy_generator": np.random.default_rng(3).bit_generator.state,
        "best": np.float64(71.5),
        "step": np.int64(4),
        "iteration": 3,
    }
    write_checkpoint(tmp_path / "x.pth", content)
    read, _ = read_checkpoint(tmp_path / "x.pth")
    fresh, fresh_optimizer, fresh_scheduler, fresh_scaler = make_training_state(0)
    fresh.load_state_dict(read["model"])
    fresh_optimizer.load_state_dict(read["optimizer"])
    fresh_scheduler.load_state_dict(read["scheduler"])
    fresh_scaler.load_state_dict(read["scaler"])
    assert_same(fresh.state_dict(), model.state_dict())
    assert read["model"]._metadata == model.state_dict()._metadata
    for mine, other in zip(fresh_optimizer.state_dict()["state"].values(), optimizer.state_dict()["state"].values()):
        assert_same(mine, other)
    assert fresh_optimizer.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    assert fresh_scheduler.state_dict() == scheduler.state_dict()
    assert fresh_scaler.state_dict() == scaler.state_dict()
    assert np.random.default_rng(3).bit_generator.state == read["numpy_generator"]
    assert type(read["best"]) is float and read["best"] == 71.5 and type(read["step"]) is int


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"hooks": {"x": np.zeros(2)}}, "trainer.hooks.x"),
        ({"losses": [1.0, {2, 3}]}, "trainer.losses[1]"),
        ({"when": collections.defaultdict(int)}, "trainer.when"),
        ({(1, 2): 3}, "trainer"),
        (RunsCode("x"), "trainer"),
    ],
)
def test_a_checkpoint_that_could_not_be_read_back_is_not_written(tmp_path, value, place):
    with pytest.raises(CheckpointError) as caught:
        write_checkpoint(tmp_path / "x.pth", {"model": TENSORS, "trainer": value})
    assert_one_line(caught, "x.pth", f"{place}: expected")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x.pth"
    write_checkpoint(path, {"model": TENSORS})

    def disk_is_full(content, target):
        target.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", disk_is_full)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(path, {"model": {"a.weight": torch.zeros(9)}})
    assert [file.name for file in tmp_path.iterdir()] == ["x.pth"]
    assert_same(read_tensors(path)[0], TENSORS)


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    (tmp_path / ".x[1].pth.77.tmp").write_bytes(b"half")
    (tmp_path / ".y.pth.77.tmp").write_bytes(b"another file's")
    write_checkpoint(tmp_path / "x[1].pth", {"model": TENSORS})
    assert sorted(file.name for file in tmp_path.iterdir()) == [".y.pth.77.tmp", "x[1].pth"]


def test_text_is_utf_8_whatever_the_machine_writes_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(io, "text_encoding", lambda encoding, *_: encoding or "ascii")
    write_text(tmp_path / "classes.md", "ngựa vằn")
    assert (tmp_path / "classes.md").read_bytes() == "ngựa vằn".encode()


def test_files_are_written_where_folders_cannot_be_flushed(tmp_path, monkeypatch):
    flush = os.fsync

    def flush_files(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", flush_files)
    write_text(tmp_path / "t", "text")
    assert (tmp_path / "t").read_text() == "text"


def test_texts_replace_what_was_there(tmp_path):
    write_text(tmp_path / "t", "first and long")
    write_text(tmp_path / "t", "second")
    assert (tmp_path / "t").read_text() == "second"


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_that_the_umask_leaves(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write_tensors(tmp_path / "a.safetensors", TENSORS)
        write_checkpoint(tmp_path / "a.pth", TENSORS)
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.safetensors", "a.pth")] == [mode, mode]


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/weights.pth", "catalog://no/such"])
def test_an_address_that_cannot_be_fetched_is_named(address):
    with pytest.raises(CheckpointError) as caught:
        read_tensors(address)
    assert_one_line(caught, address, "expected a checkpoint at this address", "without network")


def test_bytes_of_a_checkpoint_are_those_of_its_content(tmp_path):
    content = {"model": {"weight": torch.arange(6.0)}, "iteration": 3}
    for name in ("a.pth", "another.pth"):
        write_checkpoint(tmp_path / name, content)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "another.pth").read_bytes()
