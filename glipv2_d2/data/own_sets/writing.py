"""Files of own sets: whole or not at all, while other processes may write the same."""

from __future__ import annotations

import json
import os
import shutil

import yaml

from ...errors import space_errors
from ...folders import write_text_once
from ..datasets.skip_report import with_progress
from .sets import CocoSet, OwnSets


def write_split(one: CocoSet, json_file: str) -> None:
    """Write a split as COCO json; ``NAME_ids.json`` beside it has the ids of the json that it was read from."""
    write_text_once(json_file, one.json_text())
    if any(one.source_ids.values()):
        write_text_once(f"{os.path.splitext(json_file)[0]}_ids.json", json.dumps(one.source_ids, indent=1))


def set_text(own: OwnSets) -> str:
    """Return json of what a set is, but for its images and boxes; the names of its images, if a seed chose splits."""
    record: dict[str, object] = {
        "source": own.source,
        "names": own.names,
        "unused_names": own.unused_names,
        "prompts": own.prompts,
        "image_roots": {split: one.image_root for split, one in own.splits.items()},
        "seed": own.seed,
    }
    if own.seed is not None:
        images = {split: [image["file_name"] for image in one.content["images"]] for split, one in own.splits.items()}
        record["chosen"] = images
    return json.dumps(record, indent=1)


def write_own_sets(own: OwnSets, folder: str | os.PathLike[str], *, copy_images: bool = False) -> dict[str, str]:
    """Write a set for other programs: ``SPLIT.json`` in COCO's format, and ``set.yaml``, which names them.

    Args:
        own: The set.
        folder: Made if it is not there.
        copy_images: Copy the images to ``images/SPLIT``; otherwise the yaml names the folder that they lie in.

    Returns:
        The json file of each split.

    Raises:
        FileExistsError: See ``check_target``.
    """
    folder = os.path.abspath(os.fspath(folder))
    check_target(own.source, folder)
    os.makedirs(folder, exist_ok=True)
    written = {}
    content: dict[str, object] = {"name": own.name}
    for split, one in own.splits.items():
        written[split] = os.path.join(folder, f"{split}.json")
        write_split(one, written[split])
        images = f"images/{split}" if copy_images else one.image_root
        if copy_images:
            _copy_images(one, os.path.join(folder, "images", split), split)
        content[split] = {"json": f"{split}.json", "images": images}
    if own.seed is not None:
        write_text_once(os.path.join(folder, "splits.json"), set_text(own))
    content["names"] = {name: own.prompts.get(name, name) for name in own.names}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    write_text_once(os.path.join(folder, "set.yaml"), text)
    return written


def check_target(source: str, folder: str) -> None:
    """Check, before anything is written, that the files of a conversion replace none that others made.

    Args:
        source: What the set is read from.
        folder: Folder of the conversion.

    Raises:
        FileExistsError: The folder is that of the set, or holds json of a split that no conversion wrote.
    """
    origin, target = os.path.realpath(source), os.path.realpath(folder)
    if target in (origin, os.path.dirname(origin)):
        raise FileExistsError(f"{folder}: expected another folder than that of the set, found the same")
    names = ("set.yaml", "train.json", "val.json", "test.json")
    present = [name for name in names if os.path.exists(os.path.join(target, name))]
    if present and present[0] != "set.yaml":
        raise FileExistsError(f"{folder}: expected a new folder or one of an earlier conversion, found {present[0]}")


def _copy_images(one: CocoSet, folder: str, split: str) -> None:
    for image in with_progress(one.content["images"], f"copying images of {split}"):
        target = os.path.join(folder, image["file_name"])
        os.makedirs(os.path.dirname(target), exist_ok=True)
        source = os.path.join(one.image_root, image["file_name"])
        if not (os.path.exists(target) and os.path.samefile(source, target)):
            with space_errors(target):
                shutil.copyfile(source, target)
