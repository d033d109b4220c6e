"""Fetches Debian packages with the system's own client and unpacks them into a cache, without installing them."""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

# As root, apt drops its rights for downloads and then warns that it cannot write to the cache.
UNSANDBOXED = ["-o", "APT::Sandbox::User=root"]


class PackageError(RuntimeError):
    """A package could not be fetched or unpacked; the message names the step and the command."""


def fetch_packages(names: Sequence[str], cache: Path) -> dict[str, Path]:
    """Make sure that packages lie unpacked in a cache.

    A package that is there already costs nothing. Otherwise ``apt-get download`` fetches it; if that fails, because
    the system has no package lists or old ones, lists are fetched into the cache first. Root is not needed.

    Args:
        names: Names of Debian packages.
        cache: A folder; made if missing.

    Returns:
        The folder of each package, laid out as it would be below ``/``. A folder is there whole or not at all.

    Raises:
        PackageError: A step failed.
    """
    folders = {name: cache / name for name in names}
    if all(folder.is_dir() for folder in folders.values()):
        return folders
    with sole_fetcher(cache):
        # Looked for again: another program may have fetched them meanwhile.
        for name in (name for name, folder in folders.items() if not folder.is_dir()):
            for program in ("apt-get", "dpkg-deb"):
                if shutil.which(program) is None:
                    raise PackageError(f"fetching {name}: expected the program {program}, found none on this system")
            package = _download(name, cache)
            unpack_package(package, folders[name])
            package.unlink()
    return folders


@contextmanager
def sole_fetcher(cache: Path) -> Iterator[None]:
    """Let one program at a time fetch and unpack packages in a cache, made if missing; others wait for its end.

    A file system without locks keeps nobody out.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tqdm.write(f"{cache}: another program fetches packages there, waiting for it", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            # As on Lustre that is mounted without locks.
            pass
        else:
            # Of programs that were killed.
            for left in cache.glob("*.partial"):
                shutil.rmtree(left, ignore_errors=True)
        yield


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a new folder to be filled, which then becomes ``folder``: that is there whole or not at all.

    Others that make the same folder have new ones of their own, and the first that is whole stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", suffix=".partial", dir=folder.parent) as parent:
        partial = Path(parent, folder.name)
        partial.mkdir()
        yield partial
        try:
            os.replace(partial, folder)
        except OSError:
            if not folder.is_dir():
                raise


def package_version(folder: Path) -> str:
    """The version of an unpacked package; empty if it was put into the cache by other means."""
    path = folder / "VERSION"
    return path.read_text("utf-8").strip() if path.is_file() else ""


def _download(name: str, cache: Path) -> Path:
    """Fetch one package; returns the path of a complete ``.deb``."""
    try:
        return _download_from_lists(name, cache, [])
    except PackageError:
        # No lists on this system, or so old that they name a file that is gone: lists of our own need no root.
        lists = (cache / "apt" / "lists").resolve()
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        options = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={lists.parent}"]
        strict = ["-o", "APT::Update::Error-Mode=any"]
        _call(["apt-get", *UNSANDBOXED, *options, *strict, "update"], f"fetching package lists for {name}", cache)
        return _download_from_lists(name, cache, options)


def _download_from_lists(name: str, cache: Path, options: list[str]) -> Path:
    command = ["apt-get", *UNSANDBOXED, *options]
    uri = _uri([*command, "--print-uris", "download", name])
    if uri is None:
        raise PackageError(f"looking up {name}: `apt-get download {name}` knows no such package")
    file_name, size = uri
    folder = cache / "download"
    folder.mkdir(exist_ok=True)
    _call([*command, "download", name], f"downloading {name}", folder, watch=folder / file_name, total=size)
    return folder / file_name


def _uri(command: list[str]) -> tuple[str, int] | None:
    """File name and size of a package as apt would download it; None if apt knows nothing of it."""
    result = subprocess.run(command, capture_output=True, text=True, env=_environment())
    for line in result.stdout.splitlines():
        parts = line.split()  # 'URI' file_name size hash
        if result.returncode == 0 and len(parts) >= 3 and parts[0].startswith("'") and parts[2].isdigit():
            return Path(parts[1]).name, int(parts[2])
    return None


def unpack_package(package: Path, folder: Path) -> Path:
    """Unpack a package file into a folder, which is there whole or not at all, with its version; returns the folder.

    Raises:
        PackageError: It is no Debian package.
    """
    with whole_folder(folder) as partial:
        # -X is -x with a line for each file, by which progress can be shown.
        _call(["dpkg-deb", "-X", str(package), str(partial)], f"unpacking {folder.name}", None)
        version = subprocess.run(["dpkg-deb", "-f", package, "Version"], capture_output=True, text=True).stdout
        (partial / "VERSION").write_text(version, "utf-8")
    return folder


def _call(command: list[str], step: str, folder: Path | None, watch: Path | None = None, total: int = 0) -> None:
    """Run a command, with a progress bar: the size of the file ``watch``, or else the lines that it prints."""
    form = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "total": total} if watch else {"unit": " lines"}
    with tempfile.TemporaryFile("w+") as errors, tqdm(desc=step, delay=1, disable=None, **form) as bar:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=subprocess.DEVNULL if watch else subprocess.PIPE,
            stderr=errors,
            text=True,
            env=_environment(),
        )
        try:
            for _ in process.stdout or ():
                bar.update()
            while process.poll() is None:
                time.sleep(0.2)
                if watch and watch.exists():
                    bar.update(min(watch.stat().st_size, total) - bar.n)
        except BaseException:
            process.kill()
            process.wait()
            raise
        errors.seek(0)
        lines = [line.strip() for line in errors if line.strip()]
    if process.returncode:
        # apt prints warnings and notes too; its errors begin with "E:".
        reason = " ".join([line for line in lines if line.startswith("E:")] or lines)[:300]
        raise PackageError(f"{step}: `{' '.join(command)}` failed: {reason or f'exit status {process.returncode}'}")


def _environment() -> dict[str, str]:
    return os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
