"""A checkpoint that is written in the background holds what was there when it was asked for, byte for byte."""

import errno
import threading

import pytest
import torch
from torch import nn

from glipv2_d2.checkpoint import checkpointer as checkpointer_module
from glipv2_d2.checkpoint.background import BackgroundWriter, copied
from glipv2_d2.checkpoint.checkpointer import GLIPv2Checkpointer
from glipv2_d2.checkpoint.resume import find_resume_file
from glipv2_d2.tensor_files import CheckpointError, write_checkpoint


class States:
    """A checkpointable whose state is what it is given."""

    def __init__(self, **values):
        self.values = values

    def state_dict(self):
        return self.values


def shared_content():
    """Tensors in one memory, one tensor twice, parameters, empty tensors, lists, and equal and same texts."""
    whole, name = torch.arange(12.0).reshape(3, 4), "".join(["na", "me"])
    state = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict()
    transposed, twice = whole.t(), torch.ones(2, dtype=torch.bfloat16)
    return {
        "model": state,
        "views": [whole, transposed, whole[1:, ::2], twice, twice],
        "rest": {name: name, "pair": (1, 2.5, None, torch.Size([2])), "empty": [torch.empty(0), torch.empty(0, 3)]},
        "parameters": [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3), requires_grad=False)],
        "kinds": [torch.tensor(7), torch.tensor([True]), torch.float16, torch.eye(3).to_sparse()],
    }


def test_a_copy_gives_the_same_bytes_and_shares_no_memory(tmp_path):
    content = shared_content()
    copy = copied(content)
    for folder, one in (("given", content), ("copy", copy)):
        (tmp_path / folder).mkdir()
        write_checkpoint(tmp_path / folder / "a.pth", one)
    expected = (tmp_path / "given" / "a.pth").read_bytes()
    assert (tmp_path / "copy" / "a.pth").read_bytes() == expected
    content["views"][0].zero_()
    content["model"]["0.weight"].zero_()
    content["rest"]["more"] = 1
    write_checkpoint(tmp_path / "copy" / "a.pth", copy)
    assert (tmp_path / "copy" / "a.pth").read_bytes() == expected


def make_checkpointer(folder, in_background=True, **values):
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    return GLIPv2Checkpointer(nn.Linear(2, 2), str(folder), in_background=in_background, states=States(**values))


@pytest.fixture
def gate(monkeypatch):
    """Files of checkpoints are written when it is open."""
    opened = threading.Event()

    def write(path, content):
        assert opened.wait(60)
        write_checkpoint(path, content)

    monkeypatch.setattr(checkpointer_module, "write_checkpoint", write)
    yield opened
    opened.set()


def test_what_changes_while_a_file_is_written_is_not_in_it(tmp_path, gate):
    one = make_checkpointer(tmp_path / "one", history=[1, torch.ones(2)])
    one.save("model_0000004", iteration=4)
    assert not list((tmp_path / "one").glob("*.pth")) and not (tmp_path / "one" / "last_checkpoint").exists()
    one.model.weight.data.zero_()
    one.checkpointables["states"].values["history"].append(2)
    gate.set()
    assert one.get_checkpoint_file() == str(tmp_path / "one" / "model_0000004.pth")
    make_checkpointer(tmp_path / "two", in_background=False, history=[1, torch.ones(2)]).save(
        "model_0000004", iteration=4
    )
    files = [(tmp_path / name / "model_0000004.pth").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]
    assert (tmp_path / "one" / "last_checkpoint").read_text() == "model_0000004.pth"


@pytest.mark.parametrize("in_background", [True, False])
def test_an_old_file_stays_until_the_new_one_is_whole(tmp_path, monkeypatch, in_background):
    one = make_checkpointer(tmp_path, in_background)
    one.save("model_0000001")
    one.finish_saving()
    old = tmp_path / "model_0000001.pth"
    found = []

    def write(path, content):
        found.append(find_resume_file(str(tmp_path))[0])
        write_checkpoint(path, content)
        found.append(old.is_file())

    monkeypatch.setattr(checkpointer_module, "write_checkpoint", write)
    one.save("model_0000003", replaced=[old])
    one.finish_saving()
    assert found == [str(old), True]
    assert [path.name for path in tmp_path.glob("*.pth")] == ["model_0000003.pth"]
    # A run that is resumed may write a file again that it is to remove.
    one.save("model_0000003", replaced=[tmp_path / "model_0000003.pth"])
    assert one.has_checkpoint()


def test_a_file_that_cannot_be_written_is_named_by_the_next_call_and_nothing_is_removed(tmp_path, monkeypatch):
    one = make_checkpointer(tmp_path)
    one.save("model_0000001")
    one.finish_saving()

    def fail(path, content):
        raise OSError(errno.ENOSPC, f"{path}: expected space for the file, found none")

    monkeypatch.setattr(checkpointer_module, "write_checkpoint", fail)
    for call in (one.finish_saving, lambda: one.save("model_0000005"), one.has_checkpoint):
        one.save("model_0000003", replaced=[tmp_path / "model_0000001.pth"])
        with pytest.raises(OSError, match="model_0000003.pth: expected space"):
            call()
    assert one.get_checkpoint_file() == str(tmp_path / "model_0000001.pth")
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"


def test_a_wrong_type_is_said_at_once(tmp_path):
    with pytest.raises(CheckpointError, match="states.thing: expected tensors, numbers"):
        make_checkpointer(tmp_path, thing=object()).save("model_0000001")


def test_one_file_is_written_at_a_time(tmp_path, gate):
    one = make_checkpointer(tmp_path)
    one.save("model_0000001")
    threading.Timer(0.05, gate.set).start()
    one.save("model_0000003")
    assert gate.is_set() and (tmp_path / "model_0000001.pth").is_file()
    one.finish_saving()
    assert (tmp_path / "model_0000003.pth").is_file()


def test_waiting_that_is_cut_off_goes_on_later(monkeypatch):
    writer, opened, done = BackgroundWriter(), threading.Event(), []
    writer.start(lambda: (opened.wait(60), done.append(1)))
    with monkeypatch.context() as patch:
        patch.setattr("glipv2_d2.checkpoint.background.wait", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            writer.finish()
    writer.check()
    assert not done
    opened.set()
    writer.finish()
    assert done == [1]
