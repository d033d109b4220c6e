"""Registered datasets: a new name, a loader that runs late, files that are there, and the names of the categories."""

from __future__ import annotations

import functools
import glob
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from ...errors import InputError
from .skip_report import SkipReport
from .value_checks import AnnotationError, EntryError, show

# Entries of a dataset's metadata that name a file it is read from.
_FILE_FIELDS = (
    *("json_file", "jsonl_file", "names_file", "yaml_file", "sizes_file", "instances_file"),
    *("questions_file", "annotations_file", "images_file", "boxes_file", "image_ids_file"),
)
# Fewer images of one folder are looked up one by one; of more the folder is listed.
_FEW_IMAGES = 200


def register_dataset(name: str, load: Callable[[], list[dict]], **metadata: Any) -> None:
    """Register a dataset under a name for DATASETS.TRAIN and DATASETS.TEST.

    ``load`` runs when the dataset is used, after a check of the files that the metadata name.

    Raises:
        InputError: The name is taken.
    """
    if name in DatasetCatalog:
        raise InputError(f"dataset name {name!r}: expected a new name, found one that is registered already")
    DatasetCatalog.register(name, functools.partial(_load, name, load))
    MetadataCatalog.get(name).set(**metadata)


def is_read_here(name: str) -> bool:
    """Tell whether a registered dataset has a reader of this package, which checks everything that it returns."""
    return getattr(DatasetCatalog[name], "func", None) is _load


def check_dataset_files(name: str) -> None:
    """Check that the annotations and the directories that a dataset's metadata name are there.

    Raises:
        FileNotFoundError: One is not.
    """
    metadata = MetadataCatalog.get(name)
    roots = metadata.get("image_root")
    directories = list(roots.values()) if isinstance(roots, Mapping) else [roots]
    paths = [(field, metadata.get(field), PathManager.isfile) for field in _FILE_FIELDS]
    paths += [("images_files", path, PathManager.isfile) for path in metadata.get("images_files", ())]
    paths += [("image_root", directory, PathManager.isdir) for directory in directories]
    paths += [("shard", path, _is_there) for path in metadata.get("shard_urls") or ()]
    if entities := metadata.get("entities_root"):
        folders = (os.path.join(entities, folder) for folder in ("Annotations", "Sentences"))
        paths += [("entities_root", folder, PathManager.isdir) for folder in folders]
    for field, path, exists in paths:
        if path and not exists(path):
            root = os.environ.get("DETECTRON2_DATASETS", "datasets")
            if source := metadata.get("own_source"):
                raise FileNotFoundError(
                    f"dataset {name!r}: {field} {path} does not exist; it was read from {source}: put that back, or "
                    f"name the new place in DATASETS.REGISTER"
                )
            raise FileNotFoundError(
                f"dataset {name!r}: {field} {path} does not exist; builtin datasets are expected under the directory "
                f"that the environment variable DETECTRON2_DATASETS names (now {root!r}), set before the start"
            )


def _is_there(shard: str) -> bool:
    """Tell whether a shard, or one that a pattern with ``*`` matches, is there; an address is not looked up."""
    if ":" in shard:
        return True
    return bool(glob.glob(shard)) if "*" in shard else PathManager.isfile(shard)


def missing_files(paths: Iterable[str]) -> set[str]:
    """Return those paths where no file is; of addresses such as "s3://..." none, since they are not looked up."""
    folders: dict[str, set[str]] = {}
    for path in paths:
        if "://" not in path:
            folder, file_name = os.path.split(path)
            folders.setdefault(folder, set()).add(file_name)
    missing: set[str] = set()
    for folder, names in folders.items():
        is_listed = len(names) > _FEW_IMAGES and os.path.isdir(folder)
        unknown = names.difference(os.listdir(folder)) if is_listed else names
        # A file system may know a file under another spelling than it lists.
        missing.update(path for path in (os.path.join(folder, one) for one in unknown) if not PathManager.isfile(path))
    return missing


def with_existing_images(name: str, dataset_dicts: Sequence[dict]) -> list[dict]:
    """Return the dataset dicts whose image file is there; the others are left out and counted, each file once.

    Images inside of other files are not looked up.

    Args:
        name: The dataset.
        dataset_dicts: At least one; the dicts stay as they are.

    Raises:
        AnnotationError: No image is there, or too many are missing.
    """
    paths = {
        record["file_name"] for record in dataset_dicts if "image_bytes" not in record and "tsv_offset" not in record
    }
    missing = missing_files(paths)
    report = SkipReport(f"images of dataset {name!r}", name)
    report.count("images", len(paths))
    for path in sorted(missing):
        report.skip("images", path, EntryError("file_name: expected an image file, found none", "missing files"))
    kept = [record for record in dataset_dicts if record["file_name"] not in missing]
    report.close(kept, "image files that exist")
    return kept


def set_thing_classes(source: str, name: str, names: list[str]) -> None:
    """Put the names of a detection dataset into its metadata, in the order of their contiguous ids.

    Raises:
        AnnotationError: A name stands there twice, or the metadata has other ``thing_classes`` already.
    """
    known_names: set[str] = set()
    for one in names:
        if one in known_names:
            raise AnnotationError(f"{source}: label: expected one with the name {show(one)}, found two")
        known_names.add(one)
    metadata = MetadataCatalog.get(name)
    known = metadata.get("thing_classes", names)
    if list(known) != names:
        raise AnnotationError(
            f"{source}: categories: expected the {len(known)} thing_classes in the metadata of {name!r}, "
            f"{', '.join(known[:6])}..., found {', '.join(names[:6])}..."
        )
    metadata.thing_classes = known


def _load(name: str, load: Callable[[], list[dict]]) -> list[dict]:
    check_dataset_files(name)
    return load()
