"""Find the images and boxes of a folder or file by content, whatever its folders are called."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable

from ...errors import InputError
from ..datasets.skip_report import SkipReport
from .canonical import make_coco_sets
from .coco_exports import looks_like_coco, read_coco_exports
from .folder import Folder, split_of, words_of
from .pascal_voc import is_pascal_voc, read_pascal_voc
from .sets import OwnImage, OwnSets, Part
from .splits import make_splits

_JSON_SUFFIXES = (".json", ".txt")
# Names of folders that say nothing about a set, but for those of splits.
_PLAIN_WORDS = {"image", "images", "annotation", "annotations", "annots", "label", "labels", "data", "dataset", "jpeg"}


def find_own_sets(path: str | os.PathLike[str], *, seed: int = 0) -> OwnSets:
    """Read the images and boxes of a folder or file that an annotation tool, a public set or a person made.

    What it may be: json in COCO's format, Pascal VOC xml, and images anywhere below the same folder. Splits are those
    of names ("train", "valid", "test" and their like) and of lists; without any, a fifth of the images becomes the
    validation split.

    Args:
        path: A folder, or an annotation file whose images lie in its folder or beside it.
        seed: Chooses the validation images where there is no validation split.

    Raises:
        FileNotFoundError: Nothing is there.
        InputError: Nothing is found in it that can be used, or it is too much of one set.
        AnnotationError: More of it is faulty than DATASETS.MAX_FAULTY_SHARE allows.
    """
    path = os.path.abspath(os.fspath(path))
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: expected a folder or a file of images and boxes, found nothing")
    name = set_name(path)
    report = SkipReport(path, name)
    files = _folder_of(path)
    parts = _read_folder(files, report) if os.path.isdir(path) else _read_file(path, files, report)
    return _finish(name, parts, files, report, seed)


def set_name(path: str) -> str:
    """Return a name for the set at an absolute path: letters, digits and underscores, from the path's own names."""
    parts = [part for part in path.split(os.sep) if part]
    if parts and os.path.isfile(path):
        parts[-1] = os.path.splitext(parts[-1])[0]
        parts = parts[:-1] if len(parts) > 1 else parts
    while len(parts) > 1 and all(word in _PLAIN_WORDS or split_of(word) for word in words_of(parts[-1])):
        parts.pop()
    return re.sub(r"\W+", "_", parts[-1] if parts else "").strip("_") or "own"


def _folder_of(path: str) -> Folder:
    """Return the files of a folder; of a file those of the folder it lies in, or of the one above."""
    if os.path.isdir(path):
        return Folder(path)
    folder = Folder(os.path.dirname(path))
    above = os.path.dirname(folder.root)
    return folder if folder.images or above in (folder.root, os.path.expanduser("~")) else Folder(above)


def _read_folder(files: Folder, report: SkipReport) -> list[Part]:
    """Return what the first reader finds whose format is there."""
    json_files = [path for suffix in _JSON_SUFFIXES for path in files.others[suffix] if looks_like_coco(path)]
    parts = read_coco_exports(json_files, files, report) if json_files else []
    xml_files = files.others[".xml"]
    if not parts and any(map(is_pascal_voc, xml_files)):
        parts = read_pascal_voc(xml_files, files, report)
    if not parts:
        raise InputError(_nothing_found(files))
    return parts


def _read_file(path: str, files: Folder, report: SkipReport) -> list[Part]:
    if looks_like_coco(path):
        return read_coco_exports([path], files, report)
    if is_pascal_voc(path):
        return read_pascal_voc([path], files, report)
    raise InputError(f"{path}: expected json in COCO's format or Pascal VOC xml, found another file")


def _nothing_found(files: Folder) -> str:
    suffixes = ", ".join(f"{len(paths)} {suffix or 'other'}" for suffix, paths in sorted(files.others.items()) if paths)
    found = f"{len(files.images)} images and {suffixes or 'no other'} files"
    return f"{files.root}: expected COCO json or Pascal VOC xml beside images, found {found}; see docs/own_data.md"


def _finish(name: str, parts: Iterable[Part], files: Folder, report: SkipReport, seed: int) -> OwnSets:
    parts = list(parts)
    found: dict[str, list[OwnImage]] = {}
    source_ids: dict[str, int] = {}
    for part in parts:
        found.setdefault(part.split, []).extend(part.images)
        for class_name, source_id in part.source_ids.items():
            source_ids.setdefault(class_name, source_id)
    splits, is_made = make_splits(found, seed)
    declared = [class_name for part in parts for class_name in part.names]
    sets, names, unused = make_coco_sets(splits, declared, source_ids, files, report)
    report.close([image for one in sets.values() for image in one.content["images"]], "images with their annotations")
    if not names:
        raise InputError(f"{files.root}: expected boxes of at least one class, found none")
    sizes = ", ".join(f"{split} {len(one.content['images'])}" for split, one in sets.items())
    notes = f"; val chosen from train by seed {seed}" if is_made else ""
    notes += f"; left out, since no box has them: {', '.join(unused)}" if unused else ""
    logging.getLogger(__name__).info("%s: images: %s; classes: %s%s", name, sizes, ", ".join(names), notes)
    return OwnSets(name, sets, names, {}, unused, seed if is_made else None)
