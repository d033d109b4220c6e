"""The datasets that the repository's own scripts prepare, registered under $DETECTRON2_DATASETS at import.

Nothing is read here: a dataset that was not prepared fails when it is used, with the path that is missing.
"""

from __future__ import annotations

import os

from .coco import register_coco_grounding

# Folder, which is also the first part of the name: splits.
_WORLDS = {
    "stampworld": ("train", "val", "val_24", "val_novel"),
    "shapeworld": ("train", "val", "val_24", "val_novel"),
}


def register_builtin_datasets(root: str) -> None:
    """Register FOLDER_SPLIT with images in ROOT/FOLDER/SPLIT and boxes in ROOT/FOLDER/annotations/SPLIT.json."""
    for folder, splits in _WORLDS.items():
        base = os.path.join(root, folder)
        for split in splits:
            json_file = os.path.join(base, "annotations", f"{split}.json")
            register_coco_grounding(f"{folder}_{split}", json_file, os.path.join(base, split))


register_builtin_datasets(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))
