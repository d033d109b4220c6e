"""Training, validation and test images: those that were found, or a validation part that a seed takes away."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from .sets import SPLITS, OwnImage

_VALIDATION_SHARE = 0.2


def make_splits(splits: Mapping[str, Sequence[OwnImage]], seed: int | None) -> tuple[dict[str, list[OwnImage]], bool]:
    """Return the splits of a set, and whether a validation split had to be made.

    Images of no split are images to train on. Where a set has images to train on but no validation images, a fifth of
    them becomes these, chosen by a seed and the names of the files. Files of equal content stay together, and each
    class keeps an image to train on. Sets without images to train on stay as they are.

    Args:
        splits: Images by "train", "val", "test" and "" for none.
        seed: Another number chooses other images. None: no split is made, and a set without any is one to test on.
    """
    found = {split: list(splits.get(split, ())) for split in SPLITS}
    found["test" if seed is None and not any(found.values()) else "train"] += splits.get("", ())
    chosen: set[str] = set()
    if seed is not None and found["train"] and not found["val"]:
        chosen = _chosen_paths(found["train"], seed)
        found["val"] = [image for image in found["train"] if image.path in chosen]
        found["train"] = [image for image in found["train"] if image.path not in chosen]
    return {split: images for split, images in found.items() if images}, bool(chosen)


def _chosen_paths(images: Sequence[OwnImage], seed: int) -> set[str]:
    """Return the paths of the images that become validation images."""
    names_of: defaultdict[str, set[str]] = defaultdict(set)
    for image in images:
        names_of[image.path] |= {" ".join(box.name.split()) for box in image.boxes}
    root = os.path.commonpath([os.path.dirname(path) for path in names_of])
    keys = {path: os.path.relpath(path, root).replace(os.sep, "/") for path in names_of}
    groups = [sorted(group, key=keys.__getitem__) for group in _equal_files(sorted(names_of))]

    def order(group: list[str]) -> tuple[bytes, str]:
        return hashlib.sha256(f"{seed}:{keys[group[0]]}".encode("utf-8", "surrogateescape")).digest(), keys[group[0]]

    left = Counter(name for names in names_of.values() for name in names)
    wanted = round(_VALIDATION_SHARE * len(names_of)) or int(len(groups) > 1)
    chosen: set[str] = set()
    for group in sorted(groups, key=order):
        taken = Counter(name for path in group for name in names_of[path])
        if len(chosen) + len(group) <= wanted and all(left[name] > number for name, number in taken.items()):
            chosen.update(group)
            left -= taken
    return chosen


def _equal_files(paths: Sequence[str]) -> list[list[str]]:
    """Group paths of files that have the same bytes; a file that cannot be read is alone."""
    by_size: defaultdict[int, list[str]] = defaultdict(list)
    groups: list[list[str]] = []
    for path in paths:
        try:
            by_size[os.path.getsize(path)].append(path)
        except OSError:
            groups.append([path])
    for same_size in by_size.values():
        by_content: defaultdict[str, list[str]] = defaultdict(list)
        for path in same_size:
            by_content[path if len(same_size) == 1 else _digest(path)].append(path)
        groups += by_content.values()
    return groups


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError:
        return path
    return digest.hexdigest()
