"""Fetches packages of the npm registry with its own client and unpacks them into a cache; nothing is installed."""

import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import NamedTuple

from .debian_packages import PackageError, sole_fetcher, whole_folder


class KnownFile(NamedTuple):
    """A package file that the tables were made for: its version, its bytes and their sha256 in hex."""

    version: str
    size: int
    sha256: str


def check_file(path: Path, known: KnownFile) -> None:
    """Compare a package file with the one that the tables were made for.

    Raises:
        PackageError: It is not there, or has another size or hash.
    """
    if not path.is_file():
        raise PackageError(f"{path}: expected the file of a package, found none")
    size = path.stat().st_size
    if size != known.size:
        raise PackageError(f"{path}: expected version {known.version} with {known.size} bytes, found {size} bytes")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != known.sha256:
        raise PackageError(f"{path}: expected sha256 {known.sha256} (version {known.version}), found {found}")


def fetch_npm_package(name: str, known: KnownFile, cache: Path, file: Path | None = None) -> Path:
    """Make sure that a package lies unpacked in a cache.

    Args:
        name: Name in the registry.
        known: The version to fetch, and what its file must be.
        cache: A folder; made if missing.
        file: The package's ``.tgz``, where it is at hand; None: ``npm pack`` fetches it.

    Returns:
        Its folder, which is there whole or not at all. One that is there already costs nothing.

    Raises:
        PackageError: A step failed, or the file is not the known one.
    """
    folder = cache / name.replace("/", "_").removeprefix("@")
    if folder.is_dir():
        return folder
    with sole_fetcher(cache):
        if not folder.is_dir():
            _fetch(name, known, folder, file)
    return folder


def _fetch(name: str, known: KnownFile, folder: Path, file: Path | None) -> None:
    package = file or _download(name, known.version, folder.parent)
    try:
        check_file(package, known)
        _unpack(package, folder)
    finally:
        if file is None:
            package.unlink()


def _download(name: str, version: str, cache: Path) -> Path:
    client = shutil.which("npm")
    if client is None:
        raise PackageError(f"fetching {name}: expected the program npm or a file of the package, found neither")
    folder = cache / "download"
    folder.mkdir(exist_ok=True)
    command = [client, "pack", "--silent", "--pack-destination", str(folder), f"{name}@{version}"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        reason = " ".join(result.stderr.split())[:300] or f"exit status {result.returncode}"
        raise PackageError(f"fetching {name}: `npm pack {name}@{version}` failed: {reason}")
    return folder / result.stdout.strip().splitlines()[-1]


def _unpack(package: Path, folder: Path) -> None:
    try:
        with tarfile.open(package) as archive, whole_folder(folder) as partial:
            # Refuses links and paths that lead out of the folder.
            archive.extractall(partial, filter="data")
    except tarfile.TarError as error:
        raise PackageError(f"{package}: expected a package of npm, found another file ({error})") from error
