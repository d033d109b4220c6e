"""Files of tensors: read without running code, written whole or not at all.

Two formats are read: safetensors, and files of ``torch.save`` that hold only tensors, numbers, text, lists and dicts.
Everything else that a pickle could do is refused.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import http.client
import logging
import os
import pickle
import re
import stat
import struct
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from .errors import InputError, space_errors

# MODEL.WEIGHTS of results that random weights shall give, as in tests and measurements of speed.
RANDOM_WEIGHTS = "random"
# Values of MODEL.WEIGHTS that name no file.
NO_WEIGHTS = ("", RANDOM_WEIGHTS)

_ZIP_MAGIC = b"PK\x03\x04"
# A compressed member, or all together, may be larger than this only if they do not expand by more than the factor.
_MOST_UNPACKED, _MOST_EXPANSION = 2**28, 100
_HASHED_AT_ONCE = 1 << 20
# Names that ``atomic_path`` gives.
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")
_PICKLE_SUFFIXES = (".pkl", ".pickle")
_NEW_COPY = "copy or download the file again"
_SAFE_COPY = "where you trust the file, save its tensors alone as safetensors"
# Damaged files make torch, pickle and zipfile raise any of these.
_DAMAGE = (
    *(AssertionError, AttributeError, EOFError, LookupError, RuntimeError, TypeError, ValueError),
    *(struct.error, zipfile.BadZipFile),
)
# Keys of the weights in checkpoints: of detectron2 and GLIP, and of OpenMMLab and others.
_WEIGHTS_KEYS = ("model", "state_dict")

# Types that torch reads back with weights_only. A subclass is pickled as its own type, so types are compared exactly:
# numpy.float64 is a subclass of float, and would make a checkpoint that cannot be loaded.
_SCALARS = (type(None), bool, int, float, str, torch.dtype, torch.Size)
_TENSORS = (Tensor, nn.Parameter)
_MAPPINGS = (dict, OrderedDict, Counter)


class CheckpointError(InputError):
    """A checkpoint cannot be used; the message is one line that names the file."""


def read_tensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read named tensors onto the CPU.

    Args:
        path: A safetensors file, or one of ``torch.save`` with a dict of tensors, also under the key "model" or
            "state_dict". Anything that detectron2's ``PathManager`` resolves, such as ``package://PACKAGE/FILE``.

    Returns:
        The tensors by name, without the prefix "module." if all names have it, and the metadata of a safetensors file.

    Raises:
        CheckpointError: The file is damaged, holds more than tensors and plain values, or is not a dict of tensors.
        FileNotFoundError: There is no such file.
    """
    content, metadata = read_checkpoint(path, mmap=True)
    return unwrap_weights(content, str(path)), metadata


def read_checkpoint(path: str | os.PathLike, *, mmap: bool = False) -> tuple[dict[str, Any], dict[str, str]]:
    """Read all that a checkpoint file holds onto the CPU, without unwrapping anything.

    Args:
        path: See ``read_tensors``.
        mmap: Leave tensors of a torch file on the disk until they are used. Only for content that is copied soon.

    Returns:
        The content, and the metadata of a safetensors file.

    Raises:
        CheckpointError, FileNotFoundError: See ``read_tensors``.
    """
    path = os.path.expanduser(path)
    local_path = _fetched(path)
    if not os.path.isfile(local_path):
        raise FileNotFoundError(f"{path}: expected a checkpoint, found no such file")
    with open(local_path, "rb") as file:
        head = file.read(9)
    if not head:
        raise CheckpointError(f"{path}: expected a checkpoint, found an empty file; {_NEW_COPY}")
    if path.endswith(_PICKLE_SUFFIXES):
        raise CheckpointError(f"{path}: expected a .safetensors or .pth file, found a pickle; {_SAFE_COPY}")
    # A safetensors header is JSON after eight bytes with its length.
    if path.endswith(".safetensors") or head[8:] == b"{":
        return _read_safetensors(local_path, path)
    content = _read_torch(local_path, path, is_zip=head[:4] == _ZIP_MAGIC, mmap=mmap)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected a dict of tensors, found {type(content).__name__}")
    return dict(content), {}


def _fetched(path: str) -> str:
    """Return the path of a file in the file system; one behind an address is fetched."""
    try:
        return PathManager.get_local_path(path)
    except FileNotFoundError:
        raise
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        if "://" not in path:
            raise
        raise CheckpointError(
            f"{path}: expected a checkpoint at this address, found {_first_line(error)}; without network, put the file "
            "on the disk and name its path"
        ) from error


def unwrap_weights(content: Mapping[str, Any], source: str, *, ema: bool = False) -> dict[str, Tensor]:
    """Take the named tensors out of what a checkpoint file holds.

    Args:
        content: Tensors by name, or a dict that has them under "model" or "state_dict".
        source: Name for error messages.
        ema: Take them from "model_ema", the moving average that the official GLIP code saves.

    Returns:
        The tensors, without the prefix "module." if all names have it.

    Raises:
        CheckpointError: There are no tensors, or other things between them; or "model_ema" is absent.
    """
    keys = ("model_ema",) if ema else _WEIGHTS_KEYS
    key = next((key for key in keys if isinstance(content.get(key), Mapping)), None)
    if key is not None:
        content = content[key]
    elif ema:
        raise CheckpointError(f"{source}: expected the key 'model_ema', found {_some(content)}")
    if not content:
        raise CheckpointError(f"{source}: expected named tensors, found none")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{source}: expected named tensors, at the top or under 'model' or 'state_dict', found {name!r} of "
                f"type {type(value).__name__}"
            )
        if value.is_nested or value.is_quantized or value.layout != torch.strided:
            raise CheckpointError(f"{source}: {name}: expected a dense tensor of numbers, found another kind")
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in content.items()}


def write_tensors(
    path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors as safetensors, whole or not at all.

    Tensors that share memory are written once each.

    Raises:
        CheckpointError: A value is not a dense tensor.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise CheckpointError(f"{path}: expected a dense tensor for {name!r}, found {type(tensor).__name__}")
    seen: set[int] = set()
    unshared = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        storage = tensor.untyped_storage().data_ptr()
        unshared[name] = tensor.clone(memory_format=torch.contiguous_format) if storage in seen else tensor.contiguous()
        seen.add(storage)
    with atomic_path(path) as temporary:
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        safetensors.torch.save_file(unshared, temporary, metadata=dict(metadata or {}))
        # safetensors makes its files readable for their owner only.
        temporary.chmod(mode)


def write_checkpoint(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values with ``torch.save``, whole or not at all; numpy's numbers become Python's.

    Raises:
        CheckpointError: A value is of a type that could not be read back without running code.
    """
    content = plain_content(path, content)
    # Given a path, torch would write its name into the file, whose bytes are to be those of its content alone.
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        torch.save(content, stream)


def plain_content(path: str | os.PathLike, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``write_checkpoint`` writes.

    Raises:
        CheckpointError: See there.
    """
    return {key: _plain(value, f"{path}: {key}") for key, value in content.items()}


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a short text file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def file_sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file in hexadecimal digits.

    Raises:
        OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_HASHED_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()


def is_whole(path: str | os.PathLike) -> bool:
    """Tell whether a safetensors file or a zip file of ``torch.save`` is complete and undamaged.

    The checksums of a torch file are compared, which reads it once. Other files, older formats of torch among them,
    are not whole.
    """
    try:
        with open(path, "rb") as file:
            is_zip = file.read(4) == _ZIP_MAGIC
        if not is_zip:
            # Opening compares the sizes in the header with that of the file.
            with safetensors.safe_open(path, framework="pt"):
                return True
        with zipfile.ZipFile(path) as archive:
            has_content = any(name.endswith("data.pkl") for name in archive.namelist())
            return has_content and archive.testzip() is None
    except (OSError, safetensors.SafetensorError, *_DAMAGE):
        return False


def _read_safetensors(local_path: str, path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(local_path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except safetensors.SafetensorError as error:
        found = _first_line(error)
        raise CheckpointError(
            f"{path}: expected a whole safetensors file, found damage ({found}); {_NEW_COPY}"
        ) from error


def _read_torch(local_path: str, path: str, *, is_zip: bool, mmap: bool) -> Any:
    try:
        if is_zip and not zipfile.is_zipfile(local_path):
            raise CheckpointError(
                f"{path}: expected a whole zip file, found one cut off before its directory; {_NEW_COPY}"
            )
        members = zipfile.ZipFile(local_path).infolist() if is_zip else []
        if any(member.filename.endswith("/constants.pkl") for member in members):
            raise CheckpointError(
                f"{path}: expected tensors, found a TorchScript archive, which holds code; {_SAFE_COPY}"
            )
        for member in members:
            if member.file_size > max(_MOST_UNPACKED, _MOST_EXPANSION * member.compress_size):
                raise CheckpointError(
                    f"{path}: expected a member {member.filename!r:.100} of at most {_MOST_EXPANSION} times its "
                    f"{member.compress_size} bytes, found one that claims {member.file_size}; {_NEW_COPY}"
                )
        size, claimed = os.path.getsize(local_path), sum(member.file_size for member in members)
        if claimed > max(_MOST_UNPACKED, _MOST_EXPANSION * size):
            raise CheckpointError(
                f"{path}: expected members of at most {_MOST_EXPANSION} times its {size} bytes, found some that claim "
                f"{claimed} together; {_NEW_COPY}"
            )
        # torch would map compressed members as if they were numbers.
        mmap = mmap and is_zip and all(member.compress_type == zipfile.ZIP_STORED for member in members)
        return torch.load(local_path, map_location="cpu", weights_only=True, mmap=mmap)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named is None:
            raise CheckpointError(f"{path}: expected a .safetensors or .pth file, found something else") from error
        if is_zip and (content := _read_foreign(local_path, path, mmap=mmap)) is not None:
            return content
        raise CheckpointError(
            f"{path}: expected only tensors and plain values, found {named[1]}, which could run code; {_SAFE_COPY}"
        ) from error
    except _DAMAGE as error:
        found = _first_line(error)
        raise CheckpointError(f"{path}: expected a checkpoint, found damage ({found}); {_NEW_COPY}") from error


class _Skipped:
    """Stands for an object of numpy that is not read."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _stand_in(name: str) -> Any:
    """Return what is made instead of an object of a type that is not read; ``_left_out`` of it is the type's name."""
    if name.startswith("numpy."):
        return type(name, (_Skipped,), {"_left_out": name})
    if name == "collections.deque":
        return lambda *_: []

    def make(cls: type, *_: object, **__: object) -> OrderedDict:
        # torch fills no other type with what the file holds for the object.
        made: OrderedDict = OrderedDict()
        made.__dict__["_left_out"] = name
        return made

    return type(name, (), {"__new__": make, "_left_out": name})


def _read_foreign(local_path: str, path: str, *, mmap: bool) -> dict[str, Any] | None:
    """Read the checkpoint of another library, without those of its entries that hold more than plain values.

    Returns:
        The entries, named tensors under one of ``_WEIGHTS_KEYS`` among them; None if there are no such tensors, or
        objects that torch does not let anything stand for.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(local_path)
        with torch.serialization.safe_globals([(_stand_in(name), name) for name in names]):
            content = torch.load(local_path, map_location="cpu", weights_only=True, mmap=mmap)
    except (pickle.UnpicklingError, *_DAMAGE):
        return None
    if not isinstance(content, dict):
        return None
    skipped = {key: found for key, value in content.items() if (found := _skipped_type([key, value]))}
    weights = next((content[key] for key in _WEIGHTS_KEYS if isinstance(content.get(key), dict)), None)
    if not weights or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        return None
    logging.getLogger(__name__).warning(
        "%s: only tensors and plain values are read; left out: %s",
        *(path, ", ".join(f"{key} ({found})" for key, found in skipped.items())),
    )
    return {key: value for key, value in content.items() if key not in skipped}


def _skipped_type(value: Any) -> str:
    """Return the name of a type that was not read anywhere in a value; "" if there is none."""
    if name := getattr(value, "_left_out", ""):
        return str(name)
    if isinstance(value, dict):
        value = [*value, *value.values()]
    return next(filter(None, map(_skipped_type, value)), "") if isinstance(value, (list, tuple, set)) else ""


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a path to write to; its file replaces ``path`` in one step at the end, or is removed after an error.

    A file has one writer at a time: temporary files of killed writers are removed.

    Raises:
        FileNotFoundError: There is no folder to write to.
        DiskFullError: There is no space.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: expected the folder {path.parent}, found none")
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        leftover.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with space_errors(path, "; what stood under this name before is still there"):
            yield temporary
            _flush_to_disk(temporary)
            os.replace(temporary, path)
            # The file is there. Shared folders of virtual machines and older ones of Windows flush no folders.
            with contextlib.suppress(OSError):
                _flush_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Remove the temporary files that killed writers of ``atomic_path`` have left in a folder; nobody writes there."""
    for path in Path(folder).glob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain(value: Any, place: str) -> Any:
    """Return ``value`` in the types that are read back without running code."""
    if isinstance(value, np.generic) and not isinstance(value, np.void):
        value = value.item()
    if type(value) in _SCALARS or type(value) in _TENSORS:
        return value
    if type(value) in _MAPPINGS:
        for key in value:
            if type(key) not in (str, int, float, bool):
                raise CheckpointError(f"{place}: expected text or numbers as keys, found {type(key).__name__}")
        plain = {key: _plain(item, f"{place}.{key}") for key, item in value.items()}
        # The value itself is kept if it is plain: a state dict of torch has attributes that a new dict would lack.
        return value if all(plain[key] is value[key] for key in plain) else type(value)(plain)
    if type(value) in (list, tuple):
        return type(value)(_plain(item, f"{place}[{index}]") for index, item in enumerate(value))
    raise CheckpointError(
        f"{place}: expected tensors, numbers, text, lists and dicts in a checkpoint, found {type(value).__name__}"
    )


def _some(names: Mapping[str, Any]) -> str:
    shown = ", ".join(repr(name) for name in list(names)[:5])
    return f"{shown}, ..." if len(names) > 5 else shown or "nothing"


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
