import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from glipv2_d2.data.datasets.skip_report import DataReport
from glipv2_d2.errors import InputError
from glipv2_d2.folders import check_writable, lock_folder, write_text_once


def test_a_folder_that_is_there_or_can_be_made_is_left_as_it_was(tmp_path):
    check_writable(tmp_path, "--output")
    check_writable(tmp_path / "new" / "folder", "--output")
    assert list(tmp_path.iterdir()) == []


def test_files_are_no_folders(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError, match="^OUTPUT_DIR: expected a folder, found a file at .*/file$"):
            check_writable(path, "OUTPUT_DIR")


@pytest.mark.parametrize("path", ["/proc/nowhere", "x" * 300])
def test_folders_that_cannot_be_made_are_named(path):
    with pytest.raises(InputError, match=f"^--output: expected .* found {path}, where nothing can be written: "):
        check_writable(path, "--output")


def test_one_run_at_a_time_has_a_folder(tmp_path, nfs_locks):
    with lock_folder(tmp_path, "--output"):
        message = f"^--output: {tmp_path}: expected no other run, found another one, .*; wait for its end$"
        with pytest.raises(InputError, match=message), lock_folder(tmp_path, "--output"):
            pass
    with lock_folder(tmp_path, "--output"):
        pass


def test_a_folder_is_locked_until_the_last_process_that_inherited_the_lock_ends(tmp_path):
    with lock_folder(tmp_path, "--output") as lock:
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(lock,))
    with pytest.raises(InputError, match="a process of a killed one"), lock_folder(tmp_path, "--output"):
        pass
    child.communicate()
    with lock_folder(tmp_path, "--output"):
        pass


def test_a_run_goes_on_with_a_warning_where_there_are_no_locks(tmp_path, no_locks, caplog):
    with lock_folder(tmp_path, "--output"), lock_folder(tmp_path, "--output"):
        assert f"{tmp_path}: no locks there (Function not implemented): let no other run use it" in caplog.text


def test_many_may_write_one_file_at_once(tmp_path):
    path, text = tmp_path / "a.json", "x" * 100_000
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: write_text_once(str(path), text), range(64)))
    assert path.read_text() == text and list(tmp_path.iterdir()) == [path]


def test_a_file_in_another_encoding_is_replaced(tmp_path):
    (tmp_path / "set.yaml").write_bytes("name: Äpfel".encode("latin-1"))
    write_text_once(str(tmp_path / "set.yaml"), "name: Äpfel")
    assert (tmp_path / "set.yaml").read_text(encoding="utf-8") == "name: Äpfel"


@pytest.mark.parametrize("write", [lambda path: write_text_once(path, "text"), DataReport().write])
def test_what_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch, write):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(PermissionError):
        write(str(tmp_path / "data_report.json"))
    assert not list(tmp_path.iterdir())


def test_a_file_that_another_process_has_written_meanwhile_stays_for_its_readers(tmp_path, monkeypatch):
    path, write = tmp_path / "a.json", Path.write_bytes

    def write_after_another(unfinished, content):
        write(path, content)
        write(unfinished, content)

    monkeypatch.setattr(Path, "write_bytes", write_after_another)
    monkeypatch.setattr("os.replace", lambda *_: pytest.fail("the file was replaced"))
    write_text_once(path, "text")
    assert path.read_text() == "text" and list(tmp_path.iterdir()) == [path]
