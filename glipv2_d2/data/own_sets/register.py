"""Registered datasets of own sets: COCO json in a folder, and names that every process with the config knows."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ...errors import InputError
from ...folders import write_text_once
from ..datasets.formats import register
from ..datasets.skip_report import DataReport
from ..datasets.value_checks import is_text, read_json_file
from .find import find_own_sets
from .sets import SPLITS, OwnSets
from .writing import set_text, write_split

# At the end of the name of the file that says what a set is.
_RECORD = "_set.json"


def register_own_sets(own: OwnSets, folder: str | os.PathLike[str]) -> dict[str, str]:
    """Write the splits of a set as COCO json, and register them as NAME_train, NAME_val, NAME_test.

    The same set may be registered again, also by several processes at once: files are replaced whole. Beside
    ``NAME_SPLIT.json`` lie ``NAME_SPLIT_ids.json``, the ids of a COCO json that the set was read from, and
    ``NAME_set.json``: where it was read, its classes, and the images of each split where a seed chose them.

    Args:
        own: The set.
        folder: Made if it is not there.

    Returns:
        The registered name of each split.

    Raises:
        InputError: A name is taken by another dataset.
    """
    folder = os.path.abspath(os.fspath(folder))
    registered = {split: f"{own.name}_{split}" for split in own.splits}
    for dataset in registered.values():
        _check_free(dataset, own)
    os.makedirs(folder, exist_ok=True)
    write_text_once(os.path.join(folder, own.name + _RECORD), set_text(own))
    for split, one in own.splits.items():
        json_file = os.path.join(folder, f"{registered[split]}.json")
        write_split(one, json_file)
        _register(registered[split], own, json_file, one.image_root)
    return registered


def register_test_sets(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Register a set, and return the names of those splits that a finished model is measured on.

    They are all but that of training, or that one if there is no other. No set is divided: a model that was trained
    elsewhere knows none of its images.

    Raises:
        FileNotFoundError, InputError: See ``find_own_sets`` and ``register_own_sets``.
    """
    registered = register_own_sets(find_own_sets(path, seed=None), folder)
    return tuple(name for split, name in registered.items() if split != "train") or tuple(registered.values())


def register_configured_sets(
    cfg: CfgNode, run_folder: str = "", *, needs_images: bool = True, from_record: bool = False
) -> dict[str, dict[str, str]]:
    """Find and register the sets of DATASETS.REGISTER; their files go to the folder ``datasets`` of OUTPUT_DIR.

    A validation split that has to be made is the same in all processes and with all SEEDs. A process reads each set
    once. Of a set that is not there any more, what a run has written about it is registered, with its classes, if it
    lies in OUTPUT_DIR or beside the config.

    Args:
        cfg: Full config.
        run_folder: The folder of the config file, "" for none.
        needs_images: A set of which nothing is there is an error; otherwise it is a warning.
        from_record: No set is read of which a run has written the classes.

    Returns:
        For each path the registered name of each split.

    Raises:
        FileNotFoundError, InputError: See ``find_own_sets`` and ``register_own_sets``.
    """
    folders = [os.path.abspath(os.path.join(folder, "datasets")) for folder in (cfg.OUTPUT_DIR, run_folder or ".")]
    found = {}
    for path in cfg.DATASETS.REGISTER:
        source = os.path.abspath(path)
        found[path] = _known_splits(source, folders[0])
        is_there = os.path.exists(source)
        if not found[path] and (from_record or not is_there):
            # The folder that a config lies in knows its run better than a path in it, which another run may have taken.
            found[path] = _recorded_splits(source, folders[::-1] if run_folder else folders)
            if found[path] and not is_there and not from_record:
                logging.getLogger(__name__).warning(
                    "%s is not there: its classes are those of %s", source, cfg.OUTPUT_DIR
                )
            if not found[path] and not is_there and not needs_images:
                logging.getLogger(__name__).warning(
                    "DATASETS.REGISTER: found nothing at %s, whose names are not known", source
                )
                continue
        if not found[path]:
            with DataReport.from_config(cfg):
                own = find_own_sets(source, seed=0 if cfg.DATASETS.DIVIDE else None)
                found[path] = register_own_sets(own, folders[0])
    return found


def _recorded_splits(source: str, folders: Sequence[str]) -> dict[str, str]:
    """Register a set whose images are gone from what a run has written about it; return the name of each split."""
    for record_file in [path for folder in folders for path in sorted(glob.glob(f"{glob.escape(folder)}/*{_RECORD}"))]:
        record = read_json_file(record_file)
        names, prompts, roots = (record.get(key) for key in ("names", "prompts", "image_roots"))
        is_whole = isinstance(names, list) and isinstance(prompts, dict) and isinstance(roots, dict)
        texts = [*names, *prompts.values(), *roots.values()] if is_whole else [None]
        if record.get("source") != source or not all(map(is_text, texts)):
            continue
        name = os.path.basename(record_file).removesuffix(_RECORD)
        own = OwnSets(name, {}, names, prompts, [], None, source)
        registered = {split: f"{name}_{split}" for split in SPLITS if split in roots}
        for split, dataset in registered.items():
            _register(dataset, own, os.path.join(os.path.dirname(record_file), f"{dataset}.json"), roots[split])
        return registered
    return {}


def _known_splits(source: str, folder: str) -> dict[str, str]:
    """Return the registered name of each split of a set that this process has written to a folder before."""
    known = {}
    for name in DatasetCatalog:
        metadata = MetadataCatalog.get(name)
        if metadata.get("own_source") == source and os.path.dirname(metadata.json_file) == folder:
            known[name.rpartition("_")[2]] = name
    is_there = all(os.path.isfile(MetadataCatalog.get(name).json_file) for name in known.values())
    return {split: known[split] for split in SPLITS if split in known} if is_there else {}


def _check_free(name: str, own: OwnSets) -> None:
    if name in DatasetCatalog and MetadataCatalog.get(name).get("own_source") != own.source:
        raise InputError(
            f"dataset name {name!r}: expected a new name, found one that is registered already; rename the folder "
            f"of the set, or give its yaml file a name"
        )


def _register(name: str, own: OwnSets, json_file: str, image_root: str) -> None:
    """Register one split; one that was registered from the same path before is replaced."""
    _check_free(name, own)
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    texts = {class_name: ("", text, "") for class_name, text in own.prompts.items()}
    metadata = {"own_source": own.source, "prompt_texts": texts, "thing_classes": list(own.names)}
    register("coco", name, metadata, json_file=json_file, image_root=image_root)
    logging.getLogger(__name__).info("registered %s: %s", name, json_file)
