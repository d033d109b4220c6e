"""The configs that come with the package, by name, from any folder: those of a checkout or of an installed wheel."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from detectron2.config import CfgNode, get_cfg
from detectron2.utils.file_io import PathManager

from .config import add_glipv2_config
from .errors import InputError
from .likeness import did_you_mean

# Of files with one name in several folders, the name alone means that of the first of these folders.
_FIRST_FOLDERS = ("demo", "models")


def get_config_file(name: str) -> str:
    """Return the path of a config that comes with the package.

    Args:
        name: Its name, ``glip_swin_t_c``, or its path in ``configs/``, ``glip/glip_swin_t_c.yaml``; the ending and
            ``configs/`` before it may be there or not. The name alone of several files means that of ``demo/``, then
            that of ``models/``.

    Raises:
        FileNotFoundError: There is none; the message names similar ones.
        InputError: The name alone fits several files, none of them in the two folders.
    """
    folder = _config_folder()
    wanted = PurePosixPath(os.path.normpath(name).replace(os.sep, "/"))
    parts = wanted.with_suffix("").parts if wanted.suffix == ".yaml" else wanted.parts
    if parts[:1] == ("configs",):
        parts = parts[1:]
    known = {path: path.with_suffix("").parts for path in map(PurePosixPath, config_names())}
    fitting = [path for path, its_parts in known.items() if parts and its_parts[-len(parts) :] == parts]
    exact = [path for path in fitting if known[path] == parts]
    first = [path for top in _FIRST_FOLDERS for path in fitting if path.parts[0] == top]
    found = exact or first[:1] or fitting
    if not found:
        near = did_you_mean("/".join(parts), (str(path.with_suffix("")) for path in known))
        raise FileNotFoundError(
            f"config: expected a YAML file or the name of one of {folder}, found neither at {name!r}{near}"
        )
    if len(found) > 1:
        names = ", ".join(str(path.with_suffix("")) for path in found)
        raise InputError(f"config: expected the name of one file, found {name!r}, which may be {names}")
    return str(folder / found[0])


def get_config(name: str) -> CfgNode:
    """Return the config of a file, with all defaults of the package; it can be changed.

    Args:
        name: See ``get_config_file``; the path of a file of your own is taken too.

    Raises:
        FileNotFoundError, InputError: See ``get_config_file``.
    """
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.merge_from_file(find_config_file(name), allow_unsafe=False)
    return cfg


def find_config_file(path_or_name: str) -> str:
    """Return the path of a config file: the one at this path, otherwise the one of this name; see ``get_config_file``.

    Raises:
        FileNotFoundError, InputError: See ``get_config_file``.
    """
    is_elsewhere = os.path.isabs(path_or_name) or "://" in path_or_name
    if PathManager.isfile(path_or_name):
        return path_or_name
    if is_elsewhere:
        raise FileNotFoundError(f"config: expected a YAML file, found none at {path_or_name}")
    return get_config_file(path_or_name)


def config_names() -> list[str]:
    """Return the paths of all configs of the package in their folder, sorted, with "/" on every system."""
    folder = _config_folder()
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))


def _config_folder() -> Path:
    package = Path(__file__).resolve().parent
    # A wheel has them inside, a checkout beside the package.
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"
