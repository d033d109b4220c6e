"""What all registered datasets have in common: an unused name, a loader that runs late, and files that are there."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from ...errors import InputError
from .value_checks import AnnotationError, show

# Entries of a dataset's metadata that name a file it is read from.
_FILE_FIELDS = (
    *("json_file", "jsonl_file", "names_file", "yaml_file", "sizes_file", "instances_file"),
    *("questions_file", "annotations_file", "images_file", "boxes_file", "image_ids_file"),
)


def register_dataset(name: str, load: Callable[[], list[dict]], **metadata: Any) -> None:
    """Register a dataset under a name for DATASETS.TRAIN and DATASETS.TEST; ``load`` runs when it is used.

    Raises:
        InputError: The name is taken.
    """
    if name in DatasetCatalog:
        raise InputError(f"dataset name {name!r} is registered already, expected a new name")
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(**metadata)


def check_dataset_files(name: str) -> None:
    """Check that the annotations and the image directories that a dataset's metadata name are there.

    Raises:
        FileNotFoundError: One is not.
    """
    metadata = MetadataCatalog.get(name)
    roots = metadata.get("image_root")
    directories = list(roots.values()) if isinstance(roots, Mapping) else [roots]
    paths = [(field, metadata.get(field), PathManager.isfile) for field in _FILE_FIELDS]
    paths += [("images_files", path, PathManager.isfile) for path in metadata.get("images_files", ())]
    paths += [("image_root", directory, PathManager.isdir) for directory in directories]
    for field, path, exists in paths:
        if path and not exists(path):
            root = os.environ.get("DETECTRON2_DATASETS", "datasets")
            raise FileNotFoundError(
                f"dataset {name!r}: {field} {path} does not exist; builtin datasets are expected under the directory "
                f"that the environment variable DETECTRON2_DATASETS names (now {root!r}), set before the start"
            )


def set_thing_classes(source: str, name: str, names: list[str]) -> None:
    """Put the names of a detection dataset into its metadata, in the order of their contiguous ids.

    Raises:
        AnnotationError: A name stands there twice, or the metadata has other ``thing_classes`` already.
    """
    twice = [one for one in names if names.count(one) > 1] if len(set(names)) < len(names) else []
    if twice:
        raise AnnotationError(f"{source}: the name {show(twice[0])} belongs to two labels, expected one")
    metadata = MetadataCatalog.get(name)
    known = metadata.get("thing_classes", names)
    if list(known) != names:
        raise AnnotationError(
            f"{source}: categories are {', '.join(names[:6])}..., expected the {len(known)} thing_classes in the "
            f"metadata of {name!r}: {', '.join(known[:6])}..."
        )
    metadata.thing_classes = known
