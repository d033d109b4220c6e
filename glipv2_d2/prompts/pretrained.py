"""Find the files of a pretrained text model or tokenizer: directory, installed package, or local cache of the hub."""

from __future__ import annotations

import os

from detectron2.utils.file_io import PathManager
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from ..paths import is_remote

# No file that would have to be unpickled, and only one format of weights.
_HUB_FILES = ["*.json", "*.txt", "model*.safetensors"]

# What the client of the hub raises. Where a proxy or the network refuses, it is an error of its HTTP library, which is
# another one from version to version.
HUB_ERRORS: tuple[type[Exception], ...] = (OSError, HFValidationError, *HfHubHTTPError.__bases__)


def resolve_pretrained(path: str, key: str, allow_download: bool) -> str:
    """Find the local directory of a pretrained text model or tokenizer.

    Args:
        path: Directory, ``package://PACKAGE/DIRECTORY`` or hub name.
        key: Config key that ``path`` comes from, for the error.
        allow_download: Fetch a hub name that is not in the local cache: text files and safetensors only.

    Raises:
        FileNotFoundError: There is no such directory, nor such a name in the local cache of the hub.
    """
    if is_remote(path):
        raise FileNotFoundError(f"{key}: {path!r} is an address, expected a directory, package://... or a hub name")
    directory = PathManager.get_local_path(path)
    if os.path.isdir(directory):
        return directory
    try:
        return snapshot_download(path, allow_patterns=_HUB_FILES, local_files_only=not allow_download)
    except LocalEntryNotFoundError as error:
        # The cache lacks some files of the hub. If one of them is needed, reading it will say so.
        partial = getattr(error, "snapshot_path", None)
        if partial is not None:
            return partial
        raise FileNotFoundError(_not_found(path, key)) from error
    except HUB_ERRORS as error:
        raise FileNotFoundError(_not_found(path, key)) from error


def _not_found(path: str, key: str) -> str:
    return (
        f"{key}: {path!r} is neither a directory nor in the local cache of the hub; expected a directory, "
        f"package://PACKAGE/DIRECTORY, or a hub name (fetched only with MODEL.TEXT_ENCODER.ALLOW_DOWNLOAD True)"
    )
