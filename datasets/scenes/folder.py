"""The folder of a dataset: the parameters it was made with, and whether it is whole."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from checked_files import write_json

from .composer import SceneRules

# Raised whenever the same parameters give other files than before: datasets made by older code are then built again.
FORMAT_VERSION = 1

# The number that each split puts into its seeds. A split that is added later gets a new number.
SPLIT_SEEDS = {"train": 0, "val": 1, "val_24": 2, "val_novel": 3, "val_looks": 4, "val_names": 5, "val_source": 6}

MANIFEST = "manifest.json"
PARTIAL = ".partial"


@dataclass(frozen=True)
class DatasetParameters:
    """Everything that decides what the files hold. The number of worker processes does not.

    Attributes:
        name: "stampworld" or "shapeworld".
        source_version: A text that changes when cut-outs or backgrounds do.
        num_names: Names in train and val; None for all that are not novel.
        num_novel: Names in val_novel.
        num_train: Scenes in train.
        num_val: Scenes in each of the val splits.
        seed: Seed of all random choices.
        rules: How a scene is laid out.

    Raises:
        ValueError: A number is out of range.
    """

    name: str
    source_version: str
    num_names: int | None
    num_novel: int
    num_train: int
    num_val: int
    seed: int
    rules: SceneRules = field(default_factory=SceneRules)

    def __post_init__(self):
        low, high = self.rules.min_objects, self.rules.max_objects
        limits = {
            "num_names": (self.num_names, 1),
            "num_novel": (self.num_novel, 1),
            "num_train": (self.num_train, 1),
            "num_val": (self.num_val, 1),
            "seed": (self.seed, 0),
            "size": (self.rules.size, 64),
            "objects": (low, 1),
        }
        for key, (value, least) in limits.items():
            if value is not None and value < least:
                raise ValueError(f"{key}: expected at least {least}, found {value}")
        if high < low:
            raise ValueError(f"objects: expected the smaller number first, found {low} {high}")


def is_finished(output: Path, parameters: DatasetParameters) -> bool:
    """Whether ``output`` holds the whole dataset of these parameters; reads the manifest and lists the folders."""
    manifest = _read_manifest(output)
    if manifest is None or not manifest["finished"] or manifest["parameters"] != plain(parameters):
        return False
    return all((output / name).is_file() for name in manifest["files"]) and all(
        len(list((output / split).glob("*.jpg"))) == count for split, count in manifest["num_images"].items()
    )


@contextmanager
def sole_writer(output: Path) -> Iterator[None]:
    """Keep other runs out of a folder, where its file system has locks of folders.

    The lock is gone with the last process of this run, however it ends.

    Raises:
        OSError: Another run is writing there.
    """
    output.mkdir(parents=True, exist_ok=True)
    lock = os.open(output, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found = "found another run that writes there; wait for its end, or name another folder"
            raise OSError(f"{output}: {found}") from None
        except OSError:
            # NFS locks no folders. A file for the lock would lie in folders that turn out to be somebody else's.
            pass
        yield
    finally:
        os.close(lock)


def start(output: Path, parameters: DatasetParameters) -> None:
    """Make a folder ready: go on with an unfinished run of the same parameters, or clear an older dataset.

    Raises:
        ValueError: The folder holds files and no manifest: they are not ours to delete.
    """
    manifest = _read_manifest(output)
    if manifest is None and any(output.iterdir()):
        raise ValueError(f"{output}: expected an empty folder or a {MANIFEST}, found other files; name an empty folder")
    if manifest is not None and manifest["parameters"] != plain(parameters):
        changes = _changes(manifest["parameters"], plain(parameters))
        print(f"{output} was made with other parameters ({changes}): it is built again")
        _clear(output)
    elif manifest is not None:
        print(f"{output} is not whole: going on from what is there")
    write_json(output / MANIFEST, {"finished": False, "parameters": plain(parameters)})
    for folder in ("annotations", PARTIAL):
        (output / folder).mkdir(exist_ok=True)


def finish(output: Path, parameters: DatasetParameters, num_images: dict[str, int], content: dict) -> None:
    """Declare the dataset whole: from now on :func:`is_finished` finds it.

    Args:
        num_images: Images in each folder. Each folder has an annotation file of its name.
        content: Further entries of the manifest.
    """
    files = [f"annotations/{name}.json" for name in num_images] + ["LICENSES.md"]
    manifest = {"finished": True, "parameters": plain(parameters), "num_images": num_images, "files": files}
    write_json(output / MANIFEST, manifest | content)
    shutil.rmtree(output / PARTIAL, ignore_errors=True)
    for leftover in output.glob("*/*.tmp*"):
        leftover.unlink()


def plain(parameters: DatasetParameters) -> dict:
    """The parameters as they stand in json files."""
    return {"format_version": FORMAT_VERSION} | asdict(parameters)


def _changes(old: dict, new: dict) -> str:
    keys = [key for key in new if old.get(key) != new[key]]
    return ", ".join(f"{key} {old.get(key)} before, {new[key]} now" for key in keys)


def _read_manifest(output: Path) -> dict | None:
    """The manifest of a folder; None if there is none, or one that cannot be read."""
    try:
        manifest = json.loads((output / MANIFEST).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    known = isinstance(manifest, dict) and isinstance(manifest.get("parameters"), dict) and "finished" in manifest
    return manifest if known else None


def _clear(output: Path) -> None:
    """Delete the files of a dataset, and no others."""
    for folder in (*SPLIT_SEEDS, "real"):
        for pattern in ("*.jpg", "*.jpg.tmp*"):
            for path in (output / folder).glob(pattern):
                path.unlink()
        if (output / folder).is_dir() and not any((output / folder).iterdir()):
            (output / folder).rmdir()
        (output / "annotations" / f"{folder}.json").unlink(missing_ok=True)
    shutil.rmtree(output / PARTIAL, ignore_errors=True)
    (output / "LICENSES.md").unlink(missing_ok=True)
