"""The package client is played by two small shell scripts: nothing is fetched."""

import os
import threading
from pathlib import Path

import prepare_stampworld
import pytest
from scenes.debian_packages import PackageError, fetch_packages, package_version, sole_fetcher, whole_folder

APT = """#!/bin/sh
echo "apt-get $*" >> "$LOG"
case "$*" in
  *Dir::State::Lists*) ;;
  *--print-uris*) [ -z "$NO_LISTS" ] || exit 100 ;;
  *) [ -z "$OLD_LISTS" ] || { echo "E: 404 not found" >&2; exit 100; } ;;
esac
case "$*" in
  *--print-uris*)
    [ -z "$UNKNOWN" ] || exit 100
    echo "'http://somewhere/fruit_1.0_all.deb' fruit_1.0_all.deb 6 SHA256:00" ;;
  *)
    [ -z "$NO_NETWORK" ] || { echo "W: a warning\nE: no network here" >&2; exit 100; }
    case "$*" in *download*) printf '%s' apples > fruit_1.0_all.deb ;; esac ;;
esac
"""
DPKG = """#!/bin/sh
echo "dpkg-deb $*" >> "$LOG"
case "$1" in
  -f) echo 1.0 ;;
  -X)
    mkdir -p "$3/usr"
    [ -z "$BROKEN" ] || exit 2
    echo ./usr/a
    cp "$2" "$3/usr/a" ;;
esac
"""


@pytest.fixture
def client(tmp_path, monkeypatch) -> Path:
    """The log of what was called, with programs that work."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("apt-get", APT), ("dpkg-deb", DPKG)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    return tmp_path / "log"


def test_a_package_is_fetched_unpacked_and_kept(tmp_path, client):
    folders = fetch_packages(["fruit"], tmp_path / "cache")
    assert folders == {"fruit": tmp_path / "cache" / "fruit"}
    assert (folders["fruit"] / "usr" / "a").read_text() == "apples"
    assert package_version(folders["fruit"]) == "1.0"
    assert not list((tmp_path / "cache").rglob("*.deb"))  # the packed form is not kept

    client.unlink()
    assert fetch_packages(["fruit"], tmp_path / "cache") == folders
    assert not client.exists()  # nothing was called


def test_a_package_is_fetched_where_there_are_no_locks(tmp_path, client, no_locks):
    assert (fetch_packages(["fruit"], tmp_path / "cache")["fruit"] / "VERSION").is_file()


def test_programs_that_want_a_package_at_once_fetch_it_once(tmp_path, client, capsys, nfs_locks):
    # The second one looks before the first has the package, and waits: as if both had begun with an empty cache.
    with sole_fetcher(tmp_path / "cache"):
        other = threading.Thread(target=fetch_packages, args=(["fruit"], tmp_path / "cache"))
        other.start()
        other.join(0.5)
        assert other.is_alive() and not client.exists()
        (tmp_path / "cache" / "fruit").mkdir()
    other.join(30)
    assert not other.is_alive() and not client.exists()
    assert "another program fetches packages there, waiting for it" in capsys.readouterr().err


def test_programs_that_unpack_at_once_do_not_touch_each_others_files(tmp_path):
    """Where there are no locks: a package lacked what one had unpacked when the other began."""
    folder = tmp_path / "fruit"
    with whole_folder(folder) as first:
        (first / "a").touch()
        with whole_folder(folder) as second:
            (second / "b").touch()
        (first / "c").touch()
    assert {one.name for one in folder.iterdir()} == {"b"} and list(tmp_path.iterdir()) == [folder]
    with pytest.raises(PackageError), whole_folder(tmp_path / "other"):
        raise PackageError("broken")
    assert list(tmp_path.iterdir()) == [folder]


def test_what_a_killed_program_left_is_removed(tmp_path, client):
    (tmp_path / "fruit.abc.partial" / "fruit").mkdir(parents=True)
    fetch_packages(["fruit"], tmp_path)
    assert (tmp_path / "fruit").is_dir() and not list(tmp_path.glob("*.partial"))


def test_without_lists_the_cache_gets_lists_of_its_own(tmp_path, client, monkeypatch):
    monkeypatch.setenv("NO_LISTS", "1")
    fetch_packages(["fruit"], tmp_path / "cache")
    calls = client.read_text().splitlines()
    own = f"Dir::State::Lists={tmp_path / 'cache' / 'apt' / 'lists'}"
    assert [own in call for call in calls if "apt-get" in call] == [False, True, True, True]
    assert any(call.endswith("update") for call in calls)


def test_lists_that_are_too_old_are_fetched_anew(tmp_path, client, monkeypatch):
    monkeypatch.setenv("OLD_LISTS", "1")
    assert (fetch_packages(["fruit"], tmp_path / "cache")["fruit"] / "usr" / "a").is_file()
    assert sum(call.endswith("update") for call in client.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("NO_NETWORK", "fetching package lists for fruit: `apt-get .*update` failed: E: no network here$"),
        ("UNKNOWN", "looking up fruit: `apt-get download fruit` knows no such package"),
        ("BROKEN", "unpacking fruit: `dpkg-deb -X .*` failed: exit status 2"),
    ],
)
def test_a_step_that_fails_is_named_with_its_command_and_leaves_no_folder(
    tmp_path, client, monkeypatch, variable, message
):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(PackageError, match=message):
        fetch_packages(["fruit"], tmp_path / "cache")
    assert not (tmp_path / "cache" / "fruit").exists()

    monkeypatch.delenv(variable)
    assert (fetch_packages(["fruit"], tmp_path / "cache")["fruit"] / "usr" / "a").is_file()


def test_without_a_package_client_the_program_names_the_step_and_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    arguments = ["--output", str(tmp_path / "world"), "--cache", str(tmp_path / "cache")]
    with pytest.raises(SystemExit) as stop:
        prepare_stampworld.main(arguments)
    message = stop.value.code
    assert message.startswith(
        "error: fetching tuxpaint-stamps-default: expected the program apt-get, found none on this system"
    )
    assert "datasets/prepare_shapeworld.py" in message and "\n" not in message
    assert not (tmp_path / "world").exists()
