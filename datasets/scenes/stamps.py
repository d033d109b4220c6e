"""Reads the stamps of Tux Paint and the photographs of GCompris: the material of StampWorld's scenes."""

import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from .composer import MIN_CROP, Background, Category, CutOut, make_cut_out
from .curation import Curation
from .dataset import Photograph
from .qt_resources import QtResourceFile
from .text import article_of, colour_of, plural_of

# Below this many pixels on the longest side a stamp is too coarse for the sizes that scenes ask for.
MIN_STAMP_SIDE = 90

# Photographs have hundreds of colours, even at 5 bits a channel; most drawings have not.
MIN_PHOTO_COLOURS = 250
OPAQUE_ALPHA = 200

PHOTO_FOLDERS = ("animals", "food", "hobbies", "household", "plants", "sports", "vehicles")
DRAWING_FOLDERS = ("cartoon",)

README_FACTS = ("Copyright", "License", "Source", "Comment", "Comments")


def name_of(caption: str) -> str:
    """The name that a stamp's caption gives: "A red kangaroo." becomes "red kangaroo".

    Only the first sentence counts, without its article and what stands in brackets, in lower case.
    """
    sentence = re.split(r"[.!?]", caption.strip())[0]
    sentence = re.sub(r"\s*\(.*?\)", "", sentence).strip().lower()
    sentence = re.sub(r"^(a|an|the)\s+", "", sentence)
    return re.sub(r"[^\w\s-]", "", sentence).strip()


def load_stamps(stamps: Path, curation: Curation, max_side: int) -> list[CutOut]:
    """Read all photographic stamps, sorted by path.

    Args:
        stamps: The folder ``stamps`` of the package.
        max_side: Longest side, in pixels, that a scene will ask for.

    Raises:
        ValueError: A stamp cannot be read, or has no solid pixel.
    """
    cut_outs = []
    for path in sorted(stamps.rglob("*.png")):
        identity = path.relative_to(stamps).as_posix()
        if not _is_candidate(identity, path, curation):
            continue
        pixels = _read_bgra(path)
        if pixels is None or max(pixels.shape[:2]) < MIN_STAMP_SIDE:
            continue
        if identity not in curation.included and not looks_like_photograph(pixels):
            continue
        caption = path.with_suffix(".txt").read_text("utf-8", errors="replace").splitlines()[0]
        name = curation.renamed.get(identity) or name_of(caption)
        cut_outs.append(make_cut_out(identity, category_of(name, identity, curation), pixels, max_side))
    return cut_outs


def looks_like_photograph(bgra: np.ndarray) -> bool:
    """Whether the opaque part of a stamp has as many colours as photographs have."""
    colours = bgra[bgra[:, :, 3] > OPAQUE_ALPHA][:, :3].astype(np.int32) >> 3
    return np.unique(colours @ np.array([1024, 32, 1])).size >= MIN_PHOTO_COLOURS


def category_of(name: str, identity: str, curation: Curation) -> Category:
    """The category of a stamp: grammar by rule, or from the tables where the rule would be wrong."""
    group = next((group for prefix, group in curation.groups.items() if identity.startswith(prefix)), "object")
    determiner = curation.determiners.get(name, article_of(name))
    if determiner in ("a", "an"):
        plural = plural_of(name)
    elif " " in determiner:  # "a pair of" pliers: pairs are counted
        _, measure, of = determiner.split(" ")
        plural = f"{plural_of(measure)} {of} {name}"
    else:
        plural = ""
    kinds = frozenset({name, name.split(" ")[-1], *curation.also_called.get(name, ())})
    return Category(name, group, curation.counted_groups.get(group, ""), determiner, plural, kinds, colour_of(name))


def load_backgrounds(resources: Path, curation: Curation, size: int) -> list[Background]:
    """Read the photographs that scenes are pasted on, shrunk to what crops of ``size`` pixels need."""
    backgrounds = []
    for identity, description, content in _resource_files(resources, curation.backgrounds):
        pixels = _decode(content, identity)
        scale = size / (MIN_CROP * min(pixels.shape[:2]))
        if scale < 1:
            pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        backgrounds.append(Background(identity, f"on a photo of {description}", pixels))
    return backgrounds


def load_photographs(resources: Path, curation: Curation, max_side: int) -> list[Photograph]:
    """Photographs of one named animal each, at most ``max_side`` pixels large."""
    photographs = []
    for identity, name, content in _resource_files(resources, curation.real):
        pixels = _decode(content, identity)
        scale = max_side / max(pixels.shape[:2])
        if scale < 1:
            pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        photographs.append(Photograph(identity, name, pixels))
    return photographs


def load_attributions(resources: Path, activities: list[str]) -> dict[str, str]:
    """Copyright, licence and source of each photograph, as the READMEs of the activities state them.

    Returns:
        One line of text for each ``activity/file``.
    """
    attributions = {}
    for activity in activities:
        archive = QtResourceFile(resources / f"{activity}.rcc")
        for name in archive.names():
            if name.endswith("/README"):
                folder = name.removesuffix("README").split("/resource/")[-1]
                text = archive.read(name).decode("utf-8", errors="replace")
                for file, line in _readme_entries(text):
                    attributions[f"{activity}/{folder}{file}"] = line
    return attributions


def _is_candidate(identity: str, path: Path, curation: Curation) -> bool:
    if identity in curation.excluded or not path.with_suffix(".txt").is_file():
        return False
    folders = identity.split("/")[:-1]
    return identity in curation.included or (folders[0] in PHOTO_FOLDERS and not set(folders) & set(DRAWING_FOLDERS))


def _read_bgra(path: Path) -> np.ndarray | None:
    """An image with alpha as (h, w, 4) uint8; None for one without alpha or in grey."""
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError(f"{path}: expected a PNG image, found a file that cannot be read as one")
    if pixels.ndim != 3 or pixels.shape[2] != 4 or pixels.dtype != np.uint8 or pixels[:, :, 3].min() == 255:
        return None
    return pixels


def _resource_files(resources: Path, table: dict[str, dict[str, str]]) -> Iterator[tuple[str, str, bytes]]:
    """Identity, text and file content of each photograph of a table; the package may have dropped some."""
    for activity, files in table.items():
        archive = QtResourceFile(resources / f"{activity}.rcc")
        inside = {name.split("/resource/")[-1]: name for name in archive.names() if "/resource/" in name}
        for file, text in files.items():
            if file in inside:
                yield f"{activity}/{file}", text, archive.read(inside[file])


def _decode(content: bytes, identity: str) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise ValueError(f"{identity}: expected a photograph, found a file that cannot be read as one")
    return pixels


def _readme_entries(text: str) -> Iterator[tuple[str, str]]:
    """File names of a GCompris README, each with the facts of its block. Some blocks list files without "Files:"."""
    for block in re.split(r"\n\s*\n", text):
        facts, files = [], []
        for line in block.splitlines():
            key, colon, value = line.partition(":")
            if colon and key.strip() in README_FACTS:
                facts.append(f"{key.strip()}: {value.strip()}")
            else:
                words = (value if key.strip() == "Files" else line).split()
                files += [word for word in words if "." in word]
        yield from ((file, "; ".join(facts)) for file in files)
