"""Where the files of a pretrained text model are looked for."""

import sys

import pytest
from huggingface_hub import constants

from glipv2_d2.prompts import pretrained
from glipv2_d2.prompts.pretrained import resolve_pretrained


def test_directory_is_itself(tmp_path):
    assert resolve_pretrained(str(tmp_path), "KEY", allow_download=False) == str(tmp_path)


def test_directory_of_an_installed_package_is_found(tmp_path, monkeypatch):
    (tmp_path / "some_encoder" / "model").mkdir(parents=True)
    (tmp_path / "some_encoder" / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    found = resolve_pretrained("package://some_encoder/model", "KEY", allow_download=False)
    assert found == str(tmp_path / "some_encoder" / "model")


def test_hub_name_is_found_in_the_local_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--some--encoder"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "config.json").write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    assert resolve_pretrained("some/encoder", "KEY", allow_download=False) == str(folder / "snapshots" / "abc")


@pytest.mark.parametrize("path", ["some/encoder", "no-such-encoder", "/no/such/directory", "a b"])
def test_name_that_is_nowhere_is_refused_with_the_key(path, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"KEY: '{path}' is neither a directory nor") as caught:
        resolve_pretrained(path, "KEY", allow_download=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["https://example.org/encoder", "s3://bucket/encoder"])
def test_address_is_refused(path):
    with pytest.raises(FileNotFoundError, match="KEY: '.*' is an address"):
        resolve_pretrained(path, "KEY", allow_download=True)


def test_package_that_is_not_installed_is_refused():
    with pytest.raises(FileNotFoundError, match="pip install no-such-package"):
        resolve_pretrained("package://no_such_package/model", "KEY", allow_download=False)


@pytest.mark.parametrize("allow_download", [True, False])
def test_network_is_used_only_where_allowed_and_never_for_pickles(allow_download, monkeypatch):
    calls = []

    def record(name, *, allow_patterns, local_files_only):
        calls.append((name, local_files_only, allow_patterns))
        return "folder"

    monkeypatch.setattr(pretrained, "snapshot_download", record)
    assert resolve_pretrained("some/encoder", "KEY", allow_download) == "folder"
    ((name, local_files_only, patterns),) = calls
    assert (name, local_files_only) == ("some/encoder", not allow_download)
    assert not any(pattern.endswith((".bin", ".pt", ".pth", "*")) for pattern in patterns)


def test_incomplete_copy_in_the_cache_is_used(monkeypatch):
    class Incomplete(pretrained.LocalEntryNotFoundError):
        snapshot_path = "partial"

    def fail(name, **_):
        raise Incomplete("some files are missing")

    monkeypatch.setattr(pretrained, "snapshot_download", fail)
    assert resolve_pretrained("some/encoder", "KEY", allow_download=False) == "partial"
