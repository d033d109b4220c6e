import pytest

from glipv2_d2.errors import InputError
from glipv2_d2.folders import check_writable


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
