"""What a set does not use of its folder, and what lies beside the folder that a person has given."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from ...plurals import counted
from ..datasets.skip_report import SkipReport
from ..datasets.value_checks import OmittedEntry
from ..image_reading import IMAGE_SUFFIXES
from .coco_exports import looks_like_coco
from .folder import Folder, is_plain, stem_of
from .labelme import looks_like_labelme
from .pascal_voc import is_pascal_voc
from .sets import Part
from .yolo import is_yolo

# Files that are looked at beside a folder.
_MOST_BESIDE = 20_000
# Files of another set that are looked into.
_MOST_SNIFFED = 50


def count_unused_images(parts: Sequence[Part], files: Folder, report: SkipReport) -> None:
    """Count the images that lie among those of a set and do not belong to it."""
    used = {image.path for part in parts for image in part.images}
    folders = set(map(os.path.dirname, used))
    # A file that was left out may be the annotation of an image.
    told = {stem_of(case.where) for case in report.cases}
    for path in files.images:
        if path not in used and os.path.dirname(path) in folders and stem_of(path) not in told:
            report.count("images")
            error = OmittedEntry("expected an annotation, found none", "images without annotations")
            report.skip("images", files.relative(path), error)


def count_unused_folders(parts: Sequence[Part], files: Folder, report: SkipReport) -> None:
    """Count the folders with images and annotations none of which belongs to a set: other sets in the same folder.

    Masks and other pictures with the names of images, and another suffix, are passed over.
    """
    used = {image.path for part in parts for image in part.images}
    if not used:
        return
    above = {folder for path in used for folder in _folders_above(path, files.root)}
    stems = {stem_of(path): os.path.splitext(path)[1] for path in used}
    found: Counter[str] = Counter()
    for path in files.images:
        folder, suffix = os.path.dirname(path), os.path.splitext(path)[1]
        if path in used or folder in above or stems.get(stem_of(path), suffix) != suffix:
            continue
        while os.path.dirname(folder) not in above and folder != files.root:
            folder = os.path.dirname(folder)
        found[folder] += 1
    others = [path for suffix in (".json", ".xml", ".txt") for path in files.others[suffix]]
    for folder, number in found.items():
        inside = [path for path in others if path.startswith(folder + os.sep)]
        if not any(map(_is_annotation, inside[:_MOST_SNIFFED])):
            continue
        report.count("folders")
        expected = f"expected images of this set, found {counted(number, 'image')} of another"
        error = OmittedEntry(f"{expected}; give this folder alone to use it", "folders of other sets")
        report.skip("folders", files.relative(folder), error)


def count_folders_beside(files: Folder, report: SkipReport) -> None:
    """Count the folder above the given one where missing images lie in it."""
    if files.missing and (above := _beside(files.root, lambda path: os.path.basename(path).lower() in files.missing)):
        report.count("folders")
        found = "expected all images below the given folder, found missing ones below this one; give it"
        report.skip("folders", above, OmittedEntry(found, "folders beside the given one"))


def way_out_beside(files: Folder) -> str:
    """Say which folder above a given one, in which nothing can be used, has the images or annotations; "" for none."""
    names = {stem_of(path) for path in files.images}

    def is_image(path: str) -> bool:
        name = os.path.basename(path).lower()
        return name in files.missing if files.missing else os.path.splitext(name)[1] in IMAGE_SUFFIXES

    def is_annotation(path: str) -> bool:
        return (stem_of(path) in names or path.lower().endswith(".json")) and _is_annotation(path)

    above = _beside(files.root, is_image if files.missing or not names else is_annotation)
    what = "images" if files.missing or not names else "annotations"
    return f"{what} lie below {above}: give that folder" if above else ""


def _beside(root: str, is_wanted: Callable[[str], bool]) -> str:
    """Return the folder above, or the one above that, below which a wanted file lies beside the root; "" for none.

    Only folders with a name such as images or train are parts of a larger one.
    """
    folder = root
    for above in list(_folders_above(root, os.sep))[:2]:
        if above in (os.sep, os.path.expanduser("~")) or not is_plain(os.path.basename(folder)):
            break
        if any(map(is_wanted, itertools.islice(_files_below(above, root), _MOST_BESIDE))):
            return above
        folder = above
    return ""


def _is_annotation(path: str) -> bool:
    readers = {".xml": (is_pascal_voc,), ".json": (looks_like_coco, looks_like_labelme), ".txt": (is_yolo,)}
    return any(reader(path) for reader in readers.get(os.path.splitext(path)[1].lower(), ()))


def _files_below(folder: str, left_out: str) -> Iterator[str]:
    for here, folders, names in os.walk(folder):
        folders[:] = [one for one in folders if not one.startswith(".") and os.path.join(here, one) != left_out]
        yield from (os.path.join(here, name) for name in names)


def _folders_above(path: str, root: str) -> Iterator[str]:
    """Yield the folders that a path lies in, the innermost first, up to a root."""
    while path not in (root, os.sep):
        path = os.path.dirname(path)
        yield path
