"""Paths of the form ``package://PACKAGE/FILE``: files that other Python packages carry."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import IO, Any

from detectron2.utils.file_io import PathHandler, PathManager

from .errors import InputError

_PREFIX = "package://"


def is_remote(path: str) -> bool:
    """Tell whether a path has a prefix of an address, such as ``https://``, and is not one in an installed package."""
    return "://" in path and not path.startswith(_PREFIX)


def register_path_handlers() -> None:
    """Teach detectron2's ``PathManager`` the prefix ``package://``; calling it again changes nothing."""
    PathManager.register_handler(PackagePathHandler(), allow_override=True)


class PackagePathHandler(PathHandler):
    """Find ``package://PACKAGE/relative/path`` in the folder of an installed package, without importing it.

    The files are read-only. ``PACKAGE`` is the import name of the package.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return [_PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        """Return the path in the file system.

        Raises:
            FileNotFoundError: The package is not installed or has no such file or folder.
            InputError: The path names no package, or leaves its folder.
        """
        self._check_kwargs(kwargs)
        folders, relative = _locate(path)
        for folder in folders:
            if os.path.exists(local_path := os.path.join(folder, relative)):
                return local_path
        raise FileNotFoundError(
            f"{path}: expected {relative!r} in the installed package, found none in {', '.join(folders)}"
        )

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        if set(mode) & set("wax+"):
            raise InputError(f"{path}: expected a mode that only reads, as for all files of packages, found {mode!r}")
        return open(self._get_local_path(path), mode, buffering=buffering, **kwargs)

    def _exists(self, path: str, **kwargs: Any) -> bool:
        try:
            self._get_local_path(path, **kwargs)
        except FileNotFoundError:
            return False
        return True

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return self._exists(path, **kwargs) and os.path.isfile(self._get_local_path(path))

    def _isdir(self, path: str, **kwargs: Any) -> bool:
        return self._exists(path, **kwargs) and os.path.isdir(self._get_local_path(path))

    def _ls(self, path: str, **kwargs: Any) -> list[str]:
        return os.listdir(self._get_local_path(path, **kwargs))


def _locate(path: str) -> tuple[list[str], str]:
    """Split a ``package://`` path into the folders of the package and the path inside them."""
    package, _, relative = path.removeprefix(_PREFIX).partition("/")
    # A dotted name would import the parent package to find its child.
    if not package.isidentifier():
        raise InputError(f"{path}: expected {_PREFIX}PACKAGE/FILE with the import name of a package, found {package!r}")
    if ".." in Path(relative).parts or os.path.isabs(relative):
        raise InputError(f"{path}: expected a path inside the package, found {relative!r}")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"{path}: expected the package {package!r} to be installed, found none; pip install "
            f"{package.replace('_', '-')}"
        )
    return list(spec.submodule_search_locations), relative
