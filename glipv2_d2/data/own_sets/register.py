"""Registered datasets of own sets: COCO json in a folder, and names that every process with the config knows."""

from __future__ import annotations

import json
import logging
import os
import uuid

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ...errors import InputError
from ..datasets.formats import register
from ..datasets.skip_report import DataReport
from .find import find_own_sets
from .sets import OwnSets


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
        files = {split: [image["file_name"] for image in one.content["images"]] for split, one in own.splits.items()}
        _write(os.path.join(folder, f"{own.name}_splits.json"), json.dumps({"seed": own.seed, **files}, indent=1))
    registered = {}
    for split, one in own.splits.items():
        name = f"{own.name}_{split}"
        json_file = os.path.join(folder, f"{name}.json")
        _write(json_file, one.json_text())
        if any(one.source_ids.values()):
            _write(os.path.join(folder, f"{name}_ids.json"), json.dumps(one.source_ids, indent=1))
        _register(name, own, json_file, one.image_root)
        registered[split] = name
    return registered


def register_configured_sets(cfg: CfgNode) -> dict[str, dict[str, str]]:
    """Find and register the sets of DATASETS.REGISTER; their files go to the folder ``datasets`` of OUTPUT_DIR.

    A validation split that has to be made is the same in all processes and with all SEEDs.

    Returns:
        For each path the registered name of each split.

    Raises:
        FileNotFoundError, InputError: See ``find_own_sets`` and ``register_own_sets``.
    """
    if not cfg.DATASETS.REGISTER:
        return {}
    folder = os.path.join(cfg.OUTPUT_DIR, "datasets")
    with DataReport.from_config(cfg):
        return {path: register_own_sets(find_own_sets(path), folder) for path in cfg.DATASETS.REGISTER}


def _register(name: str, own: OwnSets, json_file: str, image_root: str) -> None:
    """Register one split; one that was registered from the same images before is replaced."""
    if name in DatasetCatalog:
        known = MetadataCatalog.get(name).get("own_images")
        if known != image_root:
            raise InputError(
                f"dataset name {name!r}: expected a new name, found one that is registered already; rename the folder "
                f"of the set, or give its yaml file a name"
            )
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    texts = {class_name: ("", text, "") for class_name, text in own.prompts.items()}
    metadata = {"own_images": image_root, "prompt_texts": texts, "thing_classes": list(own.names)}
    register("coco", name, metadata, json_file=json_file, image_root=image_root)
    logging.getLogger(__name__).info("registered %s: %s", name, json_file)


def _write(path: str, text: str) -> None:
    """Write a text file whole, or not at all, while others may do the same; a file of the same text stays as it is."""
    if os.path.isfile(path):
        with open(path, encoding="utf-8", newline="") as file:
            if file.read() == text:
                return
    unfinished = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with open(unfinished, "x", encoding="utf-8", newline="") as file:
            file.write(text)
        os.replace(unfinished, path)
    finally:
        if os.path.exists(unfinished):
            os.unlink(unfinished)
