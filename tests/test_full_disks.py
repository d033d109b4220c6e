"""A full disk ends each kind of result in one line that names the file; /dev/full is a file on one."""

import errno
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from conftest import assert_one_line
from safetensors import SafetensorError

from glipv2_d2 import folders
from glipv2_d2.data.own_sets import CocoSet, writing
from glipv2_d2.data_check.report import DataFindings
from glipv2_d2.engine.command_line import describe, one_line_errors
from glipv2_d2.engine.run_report import plot_precision_recall
from glipv2_d2.errors import DiskFullError, InputError, full_disk_message, space_errors
from glipv2_d2.evaluation.ap_inputs import DetectionRows
from glipv2_d2.program.predict_files import ArrayFile, VideoSink, save_image
from glipv2_d2.tensor_files import write_checkpoint

WORDS = (": expected space for the file, found the disk or the quota at its limit", "MiB free); free some, or name a")
FULL = OSError(errno.ENOSPC, "No space left on device")


def full(*_, **__):
    return open("/dev/full", "w")


def write_nothing(path, content):
    open("/dev/full", "wb", 0).write(content)


def write_once(folder, monkeypatch):
    monkeypatch.setattr("pathlib.Path.write_bytes", write_nothing)
    folders.write_text_once(str(folder / "result"), "text")


def copy_image(folder, monkeypatch):
    (folder / "images").mkdir()
    (folder / "images" / "result").write_bytes(b"pixels")
    (folder / "copies").mkdir()
    (folder / "copies" / "result").symlink_to("/dev/full")
    one = CocoSet(str(folder / "images"), {"images": [{"file_name": "result"}]}, {})
    writing._copy_images(one, str(folder / "copies"), "train")


def write_page(folder, monkeypatch):
    monkeypatch.setattr("glipv2_d2.data_check.report.open", full, raising=False)
    monkeypatch.setattr("glipv2_d2.data_check.report.page_html", lambda facts, findings: "")
    monkeypatch.setattr("glipv2_d2.data_check.report.JSON_FILE", "result")
    monkeypatch.setattr(DataFindings, "content", lambda self: {})
    DataFindings(None, []).write(folder)


def draw_curves(folder, monkeypatch):
    (folder / "result.png").symlink_to("/dev/full")
    plot_precision_recall([], folder / "result.png")


def write_rows(folder, monkeypatch):
    (folder / "result").symlink_to("/dev/full")
    DetectionRows(*([],) * 6).write(str(folder / "result"))


def write_drawing(folder, monkeypatch):
    monkeypatch.setattr("pathlib.Path.write_bytes", write_nothing)
    save_image(folder / "result", np.zeros((2, 2, 3), np.uint8))


def add_record(folder, monkeypatch):
    file = ArrayFile(folder / "result")
    file.add(1)
    file.path.unlink()
    file.path.symlink_to("/dev/full")
    file.add(2)


def save_weights(folder, monkeypatch):
    def cut_off(*_):
        raise RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", cut_off)
    write_checkpoint(folder / "result", {})


@pytest.mark.parametrize(
    "write",
    [write_once, copy_image, write_page, draw_curves, write_rows, write_drawing, add_record, save_weights],
)
def test_the_file_that_has_no_space_is_named(tmp_path, monkeypatch, write):
    with pytest.raises(DiskFullError) as caught:
        write(tmp_path, monkeypatch)
    assert caught.value.errno == errno.ENOSPC
    assert_one_line(caught, f"{tmp_path}", "/result", *WORDS)


@pytest.mark.parametrize(
    "error", [FULL, OSError(errno.EDQUOT, "Disk quota exceeded"), SafetensorError("IoError(Os (os error 28))")]
)
def test_every_kind_of_limit_is_one(tmp_path, error):
    with pytest.raises(DiskFullError), space_errors(tmp_path / "outer"), space_errors(tmp_path / "new" / "inner"):
        raise error


@pytest.mark.parametrize(
    "error", [PermissionError(errno.EACCES, "Permission denied"), RuntimeError("shapes"), OSError("x")]
)
def test_other_errors_stay_as_they_are(tmp_path, error):
    with pytest.raises(type(error)) as caught, space_errors(tmp_path / "file"):
        raise error
    assert caught.value is error


def test_the_innermost_name_stays(tmp_path):
    with pytest.raises(DiskFullError, match=r"^\S*inner: expected"), space_errors("outer"), space_errors("inner"):
        raise FULL


@pytest.mark.parametrize(
    ("error", "where"),
    [(FULL, "disk"), (OSError(errno.ENOSPC, "No space left on device", "/out/a.txt"), "/out/a.txt")],
)
def test_a_program_says_what_to_do_where_nobody_named_the_file(error, where):
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise error
    line = str(ended.value.code)
    assert line.startswith(f"error: {where}: expected space for the file, found the disk or the quota at its limit")
    assert line.endswith("; free some, or name a folder on another disk") and "Errno" not in line


def test_the_free_space_is_that_of_the_folder_itself(tmp_path, monkeypatch):
    free = {str(tmp_path): 7 * 2**20, str(tmp_path / "disk"): 0}
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free[str(path)]))
    for path, expected in (("disk", "(0 MiB free)"), ("disk/new/a.pth", "(0 MiB free)"), ("new", "(7 MiB free)")):
        assert expected in full_disk_message(tmp_path / path)


def test_the_line_of_a_full_disk_is_said_as_it_is():
    assert describe(DiskFullError(errno.ENOSPC, "a.pth: expected space")) == "a.pth: expected space"


def test_a_full_disk_is_told_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(folders.tempfile, "TemporaryFile", lambda dir: open("/dev/full", "wb"))
    with pytest.raises(InputError) as caught:
        folders.check_writable(tmp_path / "new", "--output")
    assert_one_line(caught, "--output: ", f"{tmp_path / 'new'}: expected space", "free some")
    assert list(tmp_path.iterdir()) == []


def test_a_video_that_lost_frames_is_told(tmp_path):
    sink = VideoSink(tmp_path / "a.mp4")
    for value in (0, 100):
        sink.write(np.full((48, 64, 3), value, np.uint8), 10.0)
    sink.close()
    assert cv2.VideoCapture(str(sink.path)).get(cv2.CAP_PROP_FRAME_COUNT) == 2
    sink.path.write_bytes(sink.path.read_bytes()[:100])
    with pytest.raises(InputError) as caught:
        sink.close()
    assert_one_line(caught, "a.mp4: expected a video of 2 frames, found 0 in the file; free space")
