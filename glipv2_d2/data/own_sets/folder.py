"""The files below a folder by what they hold, and the image that an annotation means."""

from __future__ import annotations

import codecs
import os
import re
import unicodedata
import urllib.parse
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from ...errors import InputError
from ..datasets.skip_report import REPORT_FILE
from ..datasets.value_checks import EntryError, is_text, show
from ..image_reading import IMAGE_SUFFIXES, UNREAD_SUFFIXES, ImageShape, UnreadableImageError, read_image_shape
from .sets import SPLITS

_MOST_FILES = 2_000_000
# What check-data writes.
_CHECK_FILE = "data_check.json"
_MOST_FOLDERS_DEEP = 12
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Folders that programs make.
_NOT_ENTERED = ("__MACOSX", "__pycache__", "node_modules", "System Volume Information")
# As people and tools write them.
_SPLIT_WORDS = {
    "train": ("train", "training", "trainset", "trainval", "trn"),
    "val": ("val", "valid", "validation", "valset", "minival", "dev"),
    "test": ("test", "testing", "testset", "tst"),
}
_SPLIT_OF_WORD = {word: split for split in SPLITS for word in _SPLIT_WORDS[split]}
# Names of folders that say nothing about a set, but for those of splits.
_PLAIN_WORDS = {
    *("image", "images", "img", "imgs", "jpeg", "data", "dataset"),
    *("annotation", "annotations", "annots", "anno", "label", "labels", "xml", "xmls", "json"),
}
# In names of folders of pictures that are made of the images, with their names.
_MADE_OF_IMAGES = {"mask", "masks", "segmentation", "trimap", "trimaps", "depth", "gt", "visualization", "preview"}
_ANNOTATIONS = {"annotation", "annotations", "annots", "label", "labels"}
_PHOTOGRAPHS = (".jpg", ".jpeg")  # no annotation is kept as one
# The folder that CVAT gives to all images of a task in YOLO's form, whatever they are for.
_ALL_OF_DARKNET = "obj_train_data"
# Label Studio's address of a local file, and what it puts before the name of an upload.
_LOCAL_FILE = "d="
_UPLOAD = re.compile(r"(?<![^\\/])[0-9a-f]{8}-(?=[^\\/]+$)")
# A word in small letters, with its first letter in any case, or one in capitals; digits and signs are between words.
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def split_of(text: str) -> str:
    """Return the split that a name of a file or folder speaks of, the last one; "" for none.

    "train_val" is "trainval", images to train on.
    """
    words = [] if text == _ALL_OF_DARKNET else words_of(text)
    found = [_SPLIT_OF_WORD[word] for word in words if word in _SPLIT_OF_WORD]
    return "train" if found[-2:] == ["train", "val"] else found[-1] if found else ""


def words_of(text: str) -> list[str]:
    """Return the words of a name of a file or folder, in lower case; "JPEGImages" has two."""
    return [word.lower() for word in _WORD.findall(text)]


def is_plain(name: str) -> bool:
    """Tell whether the name of a folder says nothing about a set, as "images" or "train"."""
    return name.isascii() and all(word in _PLAIN_WORDS or split_of(word) for word in words_of(name))


def shown_path(path: str, folder: str) -> str:
    """Return a path as seen from a folder, for reports; bytes of it that are no text are written as numbers."""
    return os.path.relpath(path, folder).encode("utf-8", "backslashreplace").decode()


def read_bytes(path: str, limit: int) -> bytes:
    """Return the content of a file.

    Raises:
        EntryError: It cannot be read, or is larger than a limit in bytes.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise EntryError(f"expected a file, found {error.strerror}", "files that cannot be read") from error
    if len(content) > limit:
        raise EntryError(f"expected at most {limit} bytes, found more", "files that are too large")
    return content


def decode_text(content: bytes) -> str:
    """Return text of UTF-8, with or without a byte order mark, of UTF-16 with one, or else of Latin-1."""
    try:
        return content.decode("utf-16" if content.startswith(_UTF_16) else "utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def read_beginning(path: str) -> bytes:
    """Return the first 4096 bytes of a file in UTF-8, without a byte order mark; nothing of one that cannot be read."""
    try:
        with open(path, "rb") as file:
            return as_utf_8(file.read(4096))
    except OSError:
        return b""


def as_utf_8(content: bytes) -> bytes:
    """Return the bytes of a text, perhaps cut off, without its byte order mark, those of UTF-16 in UTF-8."""
    if content.startswith(_UTF_16):
        return content.decode("utf-16", "ignore").encode()
    return content.removeprefix(codecs.BOM_UTF8)


class ImageShapes:
    """The sizes of image files; each file is opened once."""

    def __init__(self) -> None:
        self._found: dict[str, ImageShape | EntryError] = {}

    def of(self, path: str) -> ImageShape:
        """Return the size of an image file.

        Raises:
            EntryError: It cannot be read.
        """
        if path not in self._found:
            try:
                self._found[path] = read_image_shape(path)
            except UnreadableImageError as error:
                self._found[path] = EntryError(str(error).removeprefix(f"{path}: "), "unreadable images")
            if not is_text(path):
                found_name = show(os.path.basename(path))
                reason = f"expected a path in UTF-8, found {found_name}; rename the file or its folder"
                self._found[path] = EntryError(reason, "names of files that are no text")
        found = self._found[path]
        if isinstance(found, EntryError):
            raise found
        return found


class Folder:
    """The files below a folder; hidden ones, reports and folders of runs are passed over, links are followed once.

    Args:
        root: The folder.
        shapes: The sizes of images that are known already.

    Attributes:
        root: Absolute.
        shapes: The sizes of images.
        images: Paths of files with a suffix of an image, sorted; not those of masks and drawings of others.
        others: All other paths by their suffix in lower case ("" for none), sorted.
        missing: Names of images, in lower case, that were looked for and are not there.

    Raises:
        InputError: It holds more than two million files.
    """

    def __init__(self, root: str, shapes: ImageShapes | None = None) -> None:
        self.root = os.path.abspath(root)
        self.shapes = ImageShapes() if shapes is None else shapes
        self.others: defaultdict[str, list[str]] = defaultdict(list)
        self.missing: set[str] = set()
        images: list[str] = []
        for number, path in enumerate(self._walk()):
            if number == _MOST_FILES:
                raise InputError(f"{root}: expected the folder of one set, found more than {_MOST_FILES} files in it")
            suffix = os.path.splitext(path)[1].lower()
            (images if suffix in IMAGE_SUFFIXES else self.others[suffix]).append(path)
        self._made = self._made_of_others(images)
        self.images = [path for path in images if path not in self._made]
        self._paths = frozenset(images)
        self._num_images = Counter(map(os.path.dirname, images))
        self._by_stem: defaultdict[str, list[str]] = defaultdict(list)
        for path in images:
            self._by_stem[stem_of(path)].append(path)

    def relative(self, path: str) -> str:
        """Return a path as seen from the root, for reports."""
        return shown_path(path, self.root)

    def split_of_path(self, path: str, *, of_file: bool = False) -> str:
        """Return the split that the folders of a file below the root speak of, the innermost one; "" for none.

        Args:
            path: The file.
            of_file: The name of the file may speak of it, too, and counts first.
        """
        *folders, name = self.relative(path).split(os.sep)
        for part in [*([os.path.splitext(name)[0]] if of_file else []), *reversed(folders)]:
            if split := split_of(part):
                return split
        return ""

    def find_image(self, reference: str, near: str) -> str:
        """Return the image file that an annotation means.

        A path from the folder of the annotation, or one of some folders from the root, is taken if it is there.
        Otherwise an image of the same name is looked for everywhere, with another suffix if there is none with this; of
        several that which has most of the folders in the reference, then one that is not of another split than the
        annotation, then that which has most in common with its path, and then lies among most images.

        Args:
            reference: Its name or path, also one of another computer, or a URL.
            near: The file of the annotation.

        Raises:
            EntryError: There is none; or only one that lies in the folder of another split.
        """
        path, separators = reference.strip(), "/"
        name = os.path.basename(path)
        # On some disks a name holds such letters; one that is there means no URL and no path of Windows.
        is_name = {*"?\\"} & {*name} and name in map(os.path.basename, self._by_stem.get(stem_of(name), ()))
        if not is_name:
            path, _, query = path.partition("?")
            separators = r"\\/"
            if query.startswith(_LOCAL_FILE):
                path = urllib.parse.unquote(query.removeprefix(_LOCAL_FILE))
        parts = [part for part in re.split(f"[{separators}]+", path) if part not in ("", ".")]
        if not parts:
            raise EntryError(f"expected the name of an image, found {show(reference)}", "malformed texts")
        for folder in (os.path.dirname(near), self.root)[: len(parts)]:
            path = os.path.normpath(os.path.join(folder, *parts))
            if path in self._paths:
                return path
        # What follows the last dot of "photo.2" is no suffix.
        stems = [stem_of(parts[-1]), stem_of(f"{parts[-1]}.")]
        if os.path.splitext(parts[-1])[1].lower() not in IMAGE_SUFFIXES:
            stems.reverse()
        same = self._by_stem.get(stems[0]) or self._by_stem.get(stems[1], [])
        named = [path for path in same if os.path.basename(path).lower() == parts[-1].lower()]
        own = self.split_of_path(near, of_file=True)
        ranked = [(self._likeness(path, parts, near, own), path) for path in named or same]
        if not ranked and (original := _UPLOAD.sub("", urllib.parse.unquote(reference))) != reference:
            return self.find_image(original, near)
        if not ranked:
            self.missing.add(parts[-1].lower())
            others = (
                path for suffix in UNREAD_SUFFIXES for path in self.others.get(suffix, ()) if stem_of(path) in stems
            )
            unread = next((f"{show(self.relative(path))}: save it as JPEG" for path in others), "")
            found = unread or f"none named {show(parts[-1])}"
            raise EntryError(f"expected an image file, found {found}", "missing files")
        likeness, path = max(ranked, key=lambda pair: pair[0])
        if self._is_of_another_split(path, own) and likeness[0] < 2:
            found = f"{show(self.relative(path))} of another split"
            raise EntryError(f"expected an image file, found {found}", "missing files")
        return path

    def find_first_image(self, references: Sequence[str], near: str) -> str:
        """Return the image of the first of some references that ``find_image`` finds.

        Raises:
            EntryError: The error of the first, if there is none.
        """
        errors = []
        for reference in references:
            try:
                return self.find_image(reference, near)
            except EntryError as error:
                errors.append(error)
        raise errors[0]

    def find_own_image(self, annotation_file: str, named: str) -> str:
        """Return the image of an annotation file that is of one image.

        It is the one beside it with its name, or else what both names mean, its own, or the other.

        Args:
            annotation_file: Its path.
            named: The name or path of an image in it, perhaps of another computer; "" for none.

        Raises:
            EntryError: See ``find_image``.
        """
        stem, folder = stem_of(annotation_file), os.path.dirname(annotation_file)
        beside = [path for path in self._by_stem.get(stem, ()) if os.path.dirname(path) == folder]
        if len(beside) == 1 and beside[0] not in self._made:
            return beside[0]
        name = re.split(r"[\\/]", named)[-1]
        # With its suffix it is not that of another file, such as a mask.
        first = name if stem_of(name) == stem else os.path.splitext(os.path.basename(annotation_file))[0]
        return self.find_first_image([first, *([named] if named.strip(" /") else [])], annotation_file)

    def _is_of_another_split(self, path: str, split: str) -> bool:
        """Tell whether the folders of a file speak of another split than this one, "" for none."""
        other = self.split_of_path(path)
        return bool(split and other) and split != other

    def _likeness(self, path: str, parts: Sequence[str], near: str, split: str) -> tuple[int, ...]:
        """Say how much an image is the one that a reference near a file of a split means."""
        own = self.relative(path).split(os.sep)
        # A name in other case, or with another suffix, has no end in common.
        ends = _common(reversed(own), reversed(parts))
        folders, others = own[:-1], self.relative(near).split(os.sep)[:-1]
        shared = len(set(folders) & set(others))
        is_same = parts[-1] in (own[-1], os.path.splitext(own[-1])[0])  # "A.jpg" is not "a.jpg".
        num_images = self._num_images[os.path.dirname(path)]
        is_photograph = path not in self._made
        is_allowed = not self._is_of_another_split(path, split)
        near_it = _common(iter(folders), iter(others))
        return ends, is_photograph, is_allowed, near_it, shared, -len(own), is_same, num_images

    def _made_of_others(self, images: Sequence[str]) -> frozenset[str]:
        """Return the images in a folder of masks that share a name with one elsewhere, but have no annotation."""
        annotations = [path for suffix in (".xml", ".json", ".txt") for path in self.others[suffix]]
        folders = {os.path.dirname(path) for path in (*images, *annotations)}
        words = {folder: {*words_of(self.relative(folder))} for folder in folders}
        # Of classes such as mask and nomask, each with its folders.
        own = {(stem_of(one), word) for one in annotations for word in words[os.path.dirname(one)] & _MADE_OF_IMAGES}
        made = set()
        for path in images:
            found = words[os.path.dirname(path)]
            is_map = found & _ANNOTATIONS and not path.lower().endswith(_PHOTOGRAPHS)
            masks = {(stem_of(path), word) for word in found & _MADE_OF_IMAGES}
            if is_map or (masks and own.isdisjoint(masks)):
                made.add(path)
        stems = {stem_of(path) for path in images if path not in made}
        return frozenset(path for path in made if stem_of(path) in stems)

    def _walk(self) -> Iterator[str]:
        seen: set[str] = set()
        depth = self.root.rstrip(os.sep).count(os.sep)
        for folder, folders, files in os.walk(self.root, followlinks=True):
            here = os.path.realpath(folder)
            is_run = REPORT_FILE in files and folder != self.root
            if is_run or here in seen or folder.count(os.sep) - depth > _MOST_FOLDERS_DEEP:
                folders.clear()
                continue
            seen.add(here)
            folders[:] = sorted(one for one in folders if not one.startswith(".") and one not in _NOT_ENTERED)
            names = sorted({*files} - {REPORT_FILE, _CHECK_FILE})
            yield from (os.path.join(folder, one) for one in names if not one.startswith("."))


def stem_of(path: str) -> str:
    """Return the name of a file without its suffix, in a form in which names of the same letters are equal.

    Case and white space around a name do not count, nor whether an accent is a letter of its own, as in names of files
    that come from a Mac.
    """
    return unicodedata.normalize("NFC", os.path.splitext(os.path.basename(path))[0]).strip().lower()


def _common(one: Iterator[str], other: Iterator[str]) -> int:
    """Count how many first values two iterators share."""
    number = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        number += 1
    return number
