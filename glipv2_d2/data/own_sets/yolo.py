"""YOLO's text files: a file for each image, a line for each object.

``supervision`` reads this format too, but one faulty line ends it, it needs a ``data.yaml`` and one folder of labels
for each folder of images, and it rounds nothing back to the pixels that were annotated.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from ...errors import InputError
from ...plurals import counted
from ..datasets.skip_report import SkipReport
from ..datasets.value_checks import EntryError, OmittedEntry, as_integer, as_number, read_corners, show
from .folder import Folder, decode_text, is_plain, read_beginning, read_bytes, stem_of
from .pascal_voc import read_split_lists
from .set_yaml import read_classes
from .sets import OwnBox, OwnImage, Part

_MOST_BYTES = 2**24
_LINE = re.compile(rb"\s*\d+(\.0*)?([ \t,]+[+-]?[\d.]+(e[+-]?\d+)?){4,}\s*(\n|\r|$)", re.IGNORECASE)
_NAMES_FILES = ("classes.txt", "obj.names", "_darknet.labels", "labels.txt", "names.txt", "predefined_classes.txt")
_YAML_FILES = ("data.yaml", "data.yml", "dataset.yaml")
# Shares may reach a little past the image; what lies beyond this is given in pixels or per cent.
_MOST_SHARE = 2.0

# Names of classes by the number that stands in the lines.
ClassNames = Mapping[int, str]


def is_yolo(path: str) -> bool:
    """Tell whether the first line of a text file is that of an object."""
    return bool(_LINE.match(read_beginning(path)))


def label_files(files: Folder) -> list[str]:
    """Return the text files that belong to an image, by their names."""
    names = {stem_of(path) for path in files.images}
    return [path for path in files.others[".txt"] if stem_of(path) in names]


def read_yolo(
    files: Folder,
    report: SkipReport,
    names: ClassNames | None = None,
    splits: Mapping[str, str] | None = None,
    *,
    has_keypoints: bool = False,
) -> list[Part]:
    """Read boxes and polygons of images, both in shares of the sides of the upright image.

    A line is the number of a class and center x, center y, width, height, or it and the points of a polygon. The file
    of an image has its name; it lies beside it, or in a folder of labels. An image without one has no objects; but test
    images, and images of no split, are left out if none of them has one. Numbers with few digits are rounded to whole
    pixels where the digits allow it.

    Args:
        files: The folder.
        report: Counts what is left out.
        names: The classes; None: they stand in a file such as ``classes.txt`` or ``data.yaml`` near the labels.
        splits: The split of each image, by its path; others are left out. None: that of lists or folders.
        has_keypoints: After the box of a line, keypoints follow, which are not read.

    Raises:
        InputError: The names of the classes are not known, or the classes are counted from 1.
    """
    by_stem: defaultdict[str, list[str]] = defaultdict(list)
    for path in label_files(files):
        by_stem[stem_of(path)].append(path)
    labels = {path: _label_of(path, by_stem, files) for path in files.images}
    if splits is None:
        splits = _found_splits(labels, files, report)
    parts: dict[str, Part] = {}
    known: dict[str, ClassNames] = {}
    # For the classes of each file of names where each number stands first.
    used: defaultdict[tuple[str, ...], dict[int, str]] = defaultdict(dict)
    for path, split in _with_labels(splits, labels, files, report).items():
        label, own_names = labels[path], names or {}
        if label is not None and names is None:
            folder = os.path.dirname(label)
            if folder not in known:
                known[folder] = _names_near(label, files)
            own_names = known[folder]
        part = parts.setdefault(split, Part(split, [], [], {}))
        part.names.extend(name for name in own_names.values() if name not in part.names)
        try:
            places = used[tuple(own_names.values())] if own_names.keys() == {*range(len(own_names))} else {}
            part.images.append(_read_image(path, label, own_names, files, report, has_keypoints, places))
        except EntryError as error:
            report.count("images")
            report.skip("images", files.relative(path), error, _classes_of(label, own_names))
    for texts, places in used.items():
        _check_first_class(len(texts), places, files)
    _count_labels_alone(files, names, report)
    return list(parts.values())


def _check_first_class(count: int, places: Mapping[int, str], files: Folder) -> None:
    """Check that classes are counted from 0: counted from 1, each box has the name of another class.

    Args:
        count: The number of names, those of the classes 0, 1 and so on.
        places: Where the numbers of the boxes stand first.
        files: The folder.

    Raises:
        InputError: No box has the class 0, and the largest number is the one behind the last class.
    """
    if places and min(places) > 0 and max(places) == count:
        raise InputError(
            f"{os.path.join(files.root, places[count])}: class: expected {_numbers(count - 1)} "
            f"({counted(count, 'name')}), found {count}, and 0 in no line; if the classes are counted from 1, put one "
            "more name before the others, for 0; if not, correct this line"
        )


def _count_labels_alone(files: Folder, names: ClassNames | None, report: SkipReport) -> None:
    """Count the text files of boxes whose images are not there."""
    known = set(label_files(files))
    for path in files.others[".txt"]:
        if path not in known and is_yolo(path):
            report.count("annotation files")
            error = OmittedEntry("expected an image of its name, found none", "labels without images")
            classes = _classes_of(path, _names_near(path, files) if names is None else names)
            report.skip("annotation files", files.relative(path), error, classes)


def read_names(path: str) -> ClassNames:
    """Return the classes of a yaml, or of a file with a name in each line, the first with the number 0.

    It is empty where the file has none, or cannot be read.
    """
    if path.lower().endswith((".yaml", ".yml")):
        return read_classes(path)
    try:
        lines = decode_text(read_bytes(path, _MOST_BYTES)).splitlines()
    except EntryError:
        return {}
    return {number: line.strip() for number, line in enumerate(lines) if line.strip()}


def _found_splits(labels: Mapping[str, str | None], files: Folder, report: SkipReport) -> dict[str, str]:
    """Return the split of each image by lists, if there are some, or else by folders.

    Images of no list are left out, and so are those of folders where no image has a label file, such as drawings.
    """
    lists = read_split_lists(files)
    labeled = {os.path.dirname(path) for path, label in labels.items() if label is not None}
    splits = {}
    for path, label in labels.items():
        if lists and path not in lists:
            _leave_out(path, "an image that a list of a split names", "images in no list", files, report)
        elif not lists and os.path.dirname(path) not in labeled:
            _leave_out(path, "a text file for some image of its folder", "images without labels", files, report)
        else:
            folder_split = files.split_of_path(path) or (files.split_of_path(label) if label else "")
            splits[path] = lists.get(path, folder_split)
    return splits


def _with_labels(
    splits: Mapping[str, str], labels: Mapping[str, str | None], files: Folder, report: SkipReport
) -> dict[str, str]:
    """Return the images and splits but for test images, and images of no split, if none of them has a label file."""
    labeled = {split for path, split in splits.items() if labels.get(path) is not None}
    kept = {}
    for path, split in splits.items():
        if split in labeled or split in ("train", "val"):
            kept[path] = split
        else:
            _leave_out(path, "a text file for some image of the split", "images without labels", files, report)
    return kept


def _leave_out(path: str, expected: str, kind: str, files: Folder, report: SkipReport) -> None:
    report.count("images")
    report.skip("images", files.relative(path), OmittedEntry(f"expected {expected}, found none", kind))


def _label_of(image: str, by_stem: Mapping[str, Sequence[str]], files: Folder) -> str | None:
    """Return the text file of an image; None if there is none, or only one of another split."""
    own = files.split_of_path(image)
    found = [path for path in by_stem.get(stem_of(image), ()) if not own or files.split_of_path(path) in ("", own)]
    folders = os.path.dirname(files.relative(image)).split(os.sep)
    beside = [["labels" if part == "images" else part for part in folders], folders]
    name = os.path.splitext(os.path.basename(image))[0]

    def likeness(path: str) -> tuple[bool, bool, int, bool]:
        parts = os.path.dirname(files.relative(path)).split(os.sep)
        is_same = os.path.basename(path).startswith(f"{name}.")  # "A.txt" is not that of "a.jpg".
        return parts == beside[0], parts == beside[1], len(set(parts) & set(folders)), is_same

    return max(found, key=likeness, default=None)


def _names_near(label: str, files: Folder) -> ClassNames:
    """Return the classes of the file of names that has most folders in common with a label file.

    Raises:
        InputError: There is none.
    """
    paths = [*files.others[".names"], *files.others[".labels"], *files.others[".txt"]]
    paths = [one for one in paths if os.path.basename(one).lower() in _NAMES_FILES or one.endswith(".names")]
    paths += [*files.others[".yaml"], *files.others[".yml"]]
    for path in sorted(paths, key=lambda one: len(os.path.commonpath([one, label])), reverse=True):
        if found := read_names(path):
            return found
    above = [os.path.join(folder, name) for folder in _plain_above(files.root) for name in _YAML_FILES]
    named = next((path for path in above if read_classes(path)), "")
    way_out = "write them to classes.txt, one in each line, the class 0 first"
    raise InputError(
        f"{files.root}: expected the names of the classes beside labels as {files.relative(label)}, found none; "
        + (f"{named} has names: give its folder" if named else way_out)
    )


def _plain_above(folder: str) -> list[str]:
    """Return the one or two folders above that one with a name such as images or train is a part of."""
    found: list[str] = []
    while len(found) < 2 and is_plain(os.path.basename(folder)) and folder != os.sep:
        folder = os.path.dirname(folder)
        found.append(folder)
    return found


def _read_image(
    image: str,
    label: str | None,
    names: ClassNames,
    files: Folder,
    report: SkipReport,
    has_keypoints: bool,
    places: dict[int, str],
) -> OwnImage:
    if label is None:
        return OwnImage(image, [])
    shape = files.shapes.of(image)
    boxes = []
    where = files.relative(label)
    for number, words in _rows_of(label):
        place, class_id = f"{where}: line {number}", as_integer(words[0])
        if class_id is not None and len(words) > 4:
            places.setdefault(class_id, place)
        try:
            boxes.append(_read_line(words[:5] if has_keypoints else words, names, shape[:2], place, report))
        except EntryError as error:
            report.count("boxes")
            classes = [] if class_id is None else filter(None, [names.get(class_id)])
            report.skip("boxes", place, error, classes)
    return OwnImage(image, boxes)


def _rows_of(label: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the words of each line of a text file that has some."""
    for number, line in enumerate(decode_text(read_bytes(label, _MOST_BYTES)).splitlines(), 1):
        if words := line.replace(",", " ").split():
            yield number, words


def _classes_of(label: str | None, names: ClassNames) -> set[str]:
    """Return the classes of the boxes of a text file; none if it cannot be read."""
    with contextlib.suppress(EntryError):
        ids = {as_integer(words[0]) for _, words in _rows_of(label)} if label is not None else set()
        return {names[class_id] for class_id in ids if class_id is not None and class_id in names}
    return set()


def _read_line(words: Sequence[str], names: ClassNames, size: Sequence[int], where: str, report: SkipReport) -> OwnBox:
    class_id = as_integer(words[0])
    if class_id is None or class_id not in names:
        found = f"class: expected {_numbers(max(names, default=0))}, found {show(words[0])}"
        raise EntryError(found, "unknown classes")
    shares = [as_number(word) for word in words[1:]]
    values = [value for value in shares if value is not None]
    if len(values) < len(shares) or len(values) < 4 or (len(values) > 5 and len(values) % 2):
        found = f"expected a class and four numbers, or pairs of them, found {show(' '.join(words))}"
        raise EntryError(found, "malformed lines")
    if max(map(abs, values[: None if len(values) > 5 else 4])) > _MOST_SHARE:
        found = f"expected shares of the image from 0 to 1, found {show(' '.join(words[1:]))}"
        raise EntryError(found, "boxes in other units")
    if len(values) == 5:
        report.change("boxes whose score was not read")
    digits = max(_digits(word) for word in words[1:])
    height, width = size
    if len(values) > 5:
        polygon = [_pixels(value, (height if i % 2 else width), digits) for i, value in enumerate(values)]
        corners = [min(polygon[::2]), min(polygon[1::2]), max(polygon[::2]), max(polygon[1::2])]
        return OwnBox(names[class_id], read_corners(corners), [polygon], where=where)
    x, y, w, h = values[:4]
    corners = [
        *(_pixels(x - w / 2, width, digits), _pixels(y - h / 2, height, digits)),
        *(_pixels(x + w / 2, width, digits), _pixels(y + h / 2, height, digits)),
    ]
    return OwnBox(names[class_id], read_corners(corners), where=where)


def _numbers(last: int) -> str:
    """Say which numbers classes may have."""
    return f"one of 0 to {last}" if last else "0"


def _digits(word: str) -> int:
    """Return how many digits a number has behind its point."""
    return 16 if "e" in word.lower() else len(word.partition(".")[2])


def _pixels(share: float, side: int, digits: int) -> float:
    """Return a coordinate, a whole number where the one that was annotated may have been it."""
    value = share * side
    # A corner is made of two numbers, of which one counts half.
    error = 0.75 * 10**-digits * side + 1e-9
    return float(round(value)) if error < 0.25 and abs(value - round(value)) <= error else value
