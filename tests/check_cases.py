"""Small sets to be checked: images of noise, boxes by hand."""

import io
from pathlib import Path

import numpy as np
from conftest import load_config
from PIL import Image

from glipv2_d2.data.own_sets import CocoSet, OwnSets
from glipv2_d2.data_check import check_own_sets

DOG = ("dog", 8, 8, 40, 40)


def micro_cfg():
    """The small model, which sees images at 192 pixels."""
    cfg = load_config("demo/glipv2_micro.yaml")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu"])
    return cfg


def encoded(seed=0, size=(64, 48), image_format="JPEG", mode="RGB", **options) -> bytes:
    """The bytes of an image of a width and a height."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, image_format, **options)
    return buffer.getvalue()


def own_set(folder: Path, splits, names=("dog",), prompts=None) -> OwnSets:
    """Write images and return their set.

    Args:
        folder: Where the images go.
        splits: For each split, images by file name: bytes, or None for no file, boxes of (class, XYXY), and perhaps
            width and height as annotated, which are 64 and 48 otherwise.
        names: The classes.
        prompts: What prompts say for some of them.
    """
    sets = {}
    for split, images in splits.items():
        content = {"images": [], "annotations": [], "categories": []}
        (folder / split).mkdir()
        for image_id, (name, (data, boxes, *size)) in enumerate(images.items()):
            if data is not None:
                (folder / split / name).write_bytes(data)
            width, height = size or (64, 48)
            content["images"].append({"id": image_id, "file_name": name, "height": height, "width": width})
            for class_name, left, top, right, bottom, *crowd in boxes:
                box = [left, top, right - left, bottom - top]
                row = {"image_id": image_id, "category_id": names.index(class_name), "bbox": box, "iscrowd": len(crowd)}
                content["annotations"].append(row)
        content["categories"] = [{"id": row, "name": name} for row, name in enumerate(names)]
        sets[split] = CocoSet(str(folder / split), content, {})
    return OwnSets("mine", sets, list(names), prompts or {}, [], None, str(folder))


def check(folder: Path, splits, names=("dog",), prompts=None, **options):
    """Check a set as ``own_set`` makes it, for the small model."""
    return check_own_sets(own_set(folder, splits, names, prompts), micro_cfg(), **options)


def by_kind(findings):
    """The findings by their kind; each comes once."""
    found = {one.kind: one for one in findings.findings}
    assert len(found) == len(findings.findings)
    return found
