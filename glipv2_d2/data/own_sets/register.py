"""Registered datasets of own sets: COCO json in a folder, and names that every process with the config knows."""

from __future__ import annotations

import logging
import os

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ...errors import InputError
from ..datasets.formats import register
from ..datasets.skip_report import DataReport
from .find import find_own_sets
from .sets import SPLITS, OwnSets
from .writing import made_split_text, write_split, write_text_once


def register_own_sets(own: OwnSets, folder: str | os.PathLike[str]) -> dict[str, str]:
    """Write the splits of a set as COCO json, and register them as NAME_train, NAME_val, NAME_test.

    The same set may be registered again, also by several processes at once: files are replaced whole. Beside
    ``NAME_SPLIT.json`` lie ``NAME_SPLIT_ids.json``, the ids of a COCO json that the set was read from, and
    ``NAME_splits.json``, the images of each split, where a seed chose them.

    Args:
        own: The set.
        folder: Made if it is not there.

    Returns:
        The registered name of each split.

    Raises:
        InputError: A name is taken by another dataset.
    """
    folder = os.path.abspath(os.fspath(folder))
    os.makedirs(folder, exist_ok=True)
    if own.seed is not None:
        write_text_once(os.path.join(folder, f"{own.name}_splits.json"), made_split_text(own))
    registered = {}
    for split, one in own.splits.items():
        registered[split] = f"{own.name}_{split}"
        json_file = os.path.join(folder, f"{registered[split]}.json")
        write_split(one, json_file)
        _register(registered[split], own, json_file, one.image_root)
    return registered


def register_configured_sets(cfg: CfgNode) -> dict[str, dict[str, str]]:
    """Find and register the sets of DATASETS.REGISTER; their files go to the folder ``datasets`` of OUTPUT_DIR.

    A validation split that has to be made is the same in all processes and with all SEEDs. A process reads each set
    once.

    Returns:
        For each path the registered name of each split.

    Raises:
        FileNotFoundError, InputError: See ``find_own_sets`` and ``register_own_sets``.
    """
    folder = os.path.abspath(os.path.join(cfg.OUTPUT_DIR, "datasets"))
    found = {}
    for path in cfg.DATASETS.REGISTER:
        found[path] = _known_splits(path, folder)
        if not found[path]:
            with DataReport.from_config(cfg):
                found[path] = register_own_sets(find_own_sets(path), folder)
    return found


def _known_splits(path: str, folder: str) -> dict[str, str]:
    """Return the registered name of each split of a set that this process has written to a folder before."""
    known = {}
    for name in DatasetCatalog:
        metadata = MetadataCatalog.get(name)
        if metadata.get("own_source") == os.path.abspath(path) and os.path.dirname(metadata.json_file) == folder:
            known[name.rpartition("_")[2]] = name
    is_there = all(os.path.isfile(MetadataCatalog.get(name).json_file) for name in known.values())
    return {split: known[split] for split in SPLITS if split in known} if is_there else {}


def _register(name: str, own: OwnSets, json_file: str, image_root: str) -> None:
    """Register one split; one that was registered from the same path before is replaced."""
    if name in DatasetCatalog:
        if MetadataCatalog.get(name).get("own_source") != own.source:
            raise InputError(
                f"dataset name {name!r}: expected a new name, found one that is registered already; rename the folder "
                f"of the set, or give its yaml file a name"
            )
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    texts = {class_name: ("", text, "") for class_name, text in own.prompts.items()}
    metadata = {"own_source": own.source, "prompt_texts": texts, "thing_classes": list(own.names)}
    register("coco", name, metadata, json_file=json_file, image_root=image_root)
    logging.getLogger(__name__).info("registered %s: %s", name, json_file)
