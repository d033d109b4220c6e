import os

import pytest
import torch

from glipv2_d2.checkpoint.resume import find_result_file, find_resume_file
from glipv2_d2.tensor_files import write_checkpoint


def fill(folder, files, tag=None, tag_written=100):
    """Write checkpoints: name, second at which it was written, whether it is whole."""
    for name, written, whole in files:
        path = folder / name
        write_checkpoint(path, {"model": {"a": torch.ones(20)}})
        if not whole:
            path.write_bytes(path.read_bytes()[:-30])
        os.utime(path, (written, written))
    if tag is not None:
        (folder / "last_checkpoint").write_text(tag)
        os.utime(folder / "last_checkpoint", (tag_written, tag_written))


FIRST, SECOND, THIRD = "model_0000009.pth", "model_0000019.pth", "model_0000029.pth"
FINAL, BEST = "model_final.pth", "model_best.pth"


@pytest.mark.parametrize(
    ("files", "tag", "found", "damaged"),
    [
        pytest.param([], None, "", [], id="nothing"),
        pytest.param([(FIRST, 10, True), (SECOND, 20, True)], SECOND, SECOND, [], id="the tagged one"),
        pytest.param([(FIRST, 10, True), (SECOND, 20, True)], None, SECOND, [], id="the latest, without a tag"),
        pytest.param([(FIRST, 10, True), (SECOND, 20, False)], SECOND, FIRST, [SECOND], id="the tagged one is cut"),
        pytest.param(
            [(FIRST, 10, True), (SECOND, 20, False), (THIRD, 30, False)], None, FIRST, [THIRD, SECOND], id="two are cut"
        ),
        pytest.param([(FIRST, 10, False)], FIRST, "", [FIRST], id="all are cut"),
        pytest.param([(FIRST, 90, True), (SECOND, 110, True)], FIRST, SECOND, [], id="killed before the tag came"),
        pytest.param([(FIRST, 90, True), (THIRD, 20, True)], FIRST, FIRST, [], id="left from an earlier run"),
        pytest.param(
            [(FIRST, 80, True), (SECOND, 90, False), (THIRD, 20, True)], SECOND, FIRST, [SECOND], id="both at once"
        ),
        pytest.param([(SECOND, 20, True), (FINAL, 30, True)], FINAL, FINAL, [], id="a finished run"),
        pytest.param([(SECOND, 20, True), (FINAL, 30, True)], None, FINAL, [], id="a finished run without a tag"),
        pytest.param([(SECOND, 20, True), (FINAL, 30, False)], FINAL, SECOND, [FINAL], id="its end is cut"),
        pytest.param([(FINAL, 30, True), (THIRD, 90, True)], THIRD, THIRD, [], id="a run that was prolonged"),
        pytest.param([(FINAL, 80, True), (BEST, 90, True)], BEST, BEST, [], id="the best"),
        pytest.param([(FIRST, 80, True), (BEST, 20, True)], FIRST, FIRST, [], id="the best of an earlier time"),
        pytest.param([(FIRST, 80, True)], SECOND, FIRST, [], id="the tagged one is gone"),
        pytest.param(
            [("model_9999999.pth", 80, True), ("model_10000000.pth", 70, True)],
            None,
            "model_10000000.pth",
            [],
            id="more digits",
        ),
        pytest.param([("swin_tiny_224.pth", 80, True)], None, "", [], id="weights that are no training checkpoint"),
    ],
)
def test_a_run_goes_on_from_the_newest_whole_checkpoint(tmp_path, files, tag, found, damaged):
    fill(tmp_path, files, tag)
    expected = (str(tmp_path / found) if found else "", [str(tmp_path / name) for name in damaged])
    assert find_resume_file(str(tmp_path)) == expected


def test_a_tag_that_is_no_text_names_nothing(tmp_path):
    fill(tmp_path, [(FIRST, 10, True), (SECOND, 20, True)])
    (tmp_path / "last_checkpoint").write_bytes(b"\xff\xfe\x00")
    assert find_resume_file(str(tmp_path)) == (str(tmp_path / SECOND), [])


def test_folders_that_are_absent_or_not_given_hold_nothing(tmp_path, monkeypatch):
    fill(tmp_path, [(FIRST, 10, True)], FIRST)
    monkeypatch.chdir(tmp_path)
    assert find_resume_file(str(tmp_path / "no")) == ("", [])
    assert find_resume_file("") == ("", [])


@pytest.mark.parametrize(
    ("files", "tag", "found"),
    [
        ([], None, ""),
        ([(FINAL, 30, True), (BEST, 20, True)], FINAL, BEST),
        ([(FINAL, 30, True), (BEST, 20, False)], FINAL, FINAL),
        ([(FIRST, 10, True), (SECOND, 20, True)], SECOND, SECOND),
        ([(FINAL, 30, True)], None, FINAL),
    ],
)
def test_results_are_those_of_the_best_else_the_newest_weights(tmp_path, files, tag, found):
    fill(tmp_path, files, tag)
    assert find_result_file(str(tmp_path)) == (str(tmp_path / found) if found else "")
    assert find_result_file("") == ""
