"""Small copies of the data that a model is tested on, in their official folders: for tools/reproduce.py --smoke.

The first images of a dataset are linked, and its annotations are cut down to them. Whatever reads the official folders
reads the copies.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from glipv2_d2.data.loading import load_dataset
from glipv2_d2.tensor_files import write_text


def copy_first_images(names: Iterable[str], root: Path, target: Path, number: int) -> dict[str, int]:
    """Write small copies of datasets; a folder that is there is replaced.

    Args:
        names: Registered datasets below ``root``: boxes in a json file in COCO's or LVIS's format, or Flickr30K.
        root: The folder of all datasets.
        target: The folder of all small ones.
        number: Images of each dataset, or all if there are fewer.

    Returns:
        For each dataset the number of images that it has.

    Raises:
        InputError: Annotations break their format.
        FileNotFoundError: Data are not there.
    """
    shutil.rmtree(target, ignore_errors=True)
    return {name: _copy(name, root, target, number) for name in names}


def _copy(name: str, root: Path, target: Path, number: int) -> int:
    images: dict[str, Any] = {}
    for record in load_dataset(name):
        if len(images) == number and record["file_name"] not in images:
            break
        images[record["file_name"]] = record["image_id"]
    for path in images:
        _link(Path(path), root, target)
    metadata = MetadataCatalog.get(name)
    if metadata.get("json_file") is None:
        _copy_list(metadata, list(images), root, target)
    else:
        _copy_json(Path(metadata.json_file), set(images.values()), root, target)
    return len(images)


def _copy_json(json_file: Path, image_ids: set, root: Path, target: Path) -> None:
    content = json.loads(json_file.read_text("utf-8"))
    content["images"] = [image for image in content["images"] if image["id"] in image_ids]
    content["annotations"] = [item for item in content["annotations"] if item["image_id"] in image_ids]
    path = _below(json_file, root, target)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content))


def _copy_list(metadata: Any, images: list[str], root: Path, target: Path) -> None:
    """Write the list of images of a split of Flickr30K, whose other files stay whole."""
    entities = Path(metadata.entities_root)
    for folder in ("Annotations", "Sentences"):
        _link(entities / folder, root, target)
    ids = "".join(f"{Path(path).stem}\n" for path in images)
    write_text(_below(entities / f"{metadata.split}.txt", root, target), ids)


def _link(path: Path, root: Path, target: Path) -> None:
    link = _below(path, root, target)
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(os.path.abspath(path))


def _below(path: Path, root: Path, target: Path) -> Path:
    return target / os.path.relpath(path, root)
