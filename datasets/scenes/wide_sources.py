"""Finds the pictures of the wide world's collections, each with the words that the collection has for it."""

import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from .curation import Curation
from .layered_glyphs import layered_glyphs
from .qt_resources import QtResourceFile
from .stamps import name_of
from .wide_names import Look
from .wide_tables import (
    CLIP_ART_FOLDERS,
    EMOJI_RANGES,
    EXCLUDED_FLASHCARDS,
    FLASHCARD_FOLDERS,
    STAMP_FOLDERS,
    WORD_KINDS,
)

# Code points of animals of which an emoji shows the head alone: "dog face".
_HEADS = (range(0x1F42D, 0x1F43D), range(0x1F981, 0x1F99B))

# A part of a flash card that may be an arrow has more than this share of the largest part's pixels.
MIN_ARROW = 0.01

# Pictures of twice this side and more are thinned out.
MAX_SIDE = 320

# A pixel of the ground of a flash card is at most so much darker than white, in each channel.
_GROUND_DARKNESS = 12


def find_clip_art(folder: Path) -> Iterator[Look]:
    """The drawings of Open Clip Art below a folder, in folders whose things have names; named by their files."""
    for path in sorted(folder.rglob("*.png")):
        identity = path.relative_to(folder).as_posix()
        kinds = _kinds_of(identity, CLIP_ART_FOLDERS)
        if kinds:
            yield Look(
                f"clip art/{identity}", "clip art", _words_of(path.stem), kinds, "file name", partial(read_file, path)
            )


def find_emoji_files(folder: Path, source: str) -> Iterator[Look]:
    """Pictures that are named by one code point in hexadecimal: ``1f98a.webp``."""
    for path in sorted(folder.rglob("*.webp")):
        if re.fullmatch(r"[0-9a-f]{4,5}", path.stem):
            yield _emoji(int(path.stem, 16), source, partial(read_file, path))


def find_emoji_font(font_file: Path, source: str) -> Iterator[Look]:
    """The bitmaps of a colour font (tables CBLC and CBDT), by code point."""
    from fontTools.ttLib import TTFont

    font = TTFont(font_file)
    bitmaps = {name: glyph for strike in font["CBDT"].strikeData for name, glyph in strike.items()}
    for code_point, name in sorted(font.getBestCmap().items()):
        if name in bitmaps:
            yield _emoji(code_point, source, partial(_read_glyph, bitmaps[name], f"{font_file}: {name}"))


def find_layered_emoji(font_file: Path, source: str) -> Iterator[Look]:
    """The layered glyphs of a colour font (tables COLR and CPAL), by code point."""
    for code_point, draw in layered_glyphs(font_file):
        yield _emoji(code_point, source, draw)


def find_word_pictures(resource_file: Path, activity: str) -> Iterator[Look]:
    """The word pictures of a GCompris activity, named by their files."""
    archive = QtResourceFile(resource_file)
    for name in archive.names():
        if "/resource/" in name and name.endswith((".webp", ".png")):
            identity = f"flash cards/{activity}/{name.split('/resource/')[-1]}"
            read = partial(_read_resource, archive, name)
            yield Look(identity, "flash cards", _words_of(Path(name).stem), tuple(WORD_KINDS.split()), "name", read)


def find_flash_cards(folder: Path, known: Collection[str]) -> Iterator[Look]:
    """The flash cards of pysiogame, whose ground is white, named by their files.

    Args:
        known: Words that are left out: GCompris has some of the same drawings, and these have alpha.
    """
    for path in sorted(folder.rglob("*.jpg")):
        identity = path.relative_to(folder).as_posix()
        kinds = _kinds_of(identity, FLASHCARD_FOLDERS)
        text = _words_of(path.stem)
        if kinds and text not in known and identity.removesuffix(".jpg") not in EXCLUDED_FLASHCARDS:
            yield Look(f"flash cards/{identity}", "flash cards", text, kinds, "name", partial(_read_card, path))


def find_drawn_stamps(folder: Path, curation: Curation, photographs: Collection[str]) -> Iterator[Look]:
    """The stamps of Tux Paint that are no photographs, named by their captions."""
    for path in sorted(folder.rglob("*.png")):
        identity, caption = path.relative_to(folder).as_posix(), path.with_suffix(".txt")
        kinds = _kinds_of(identity, STAMP_FOLDERS)
        if kinds and identity not in photographs and caption.is_file():
            lines = caption.read_text("utf-8", errors="replace").splitlines()
            text = curation.renamed.get(identity) or name_of(lines[0] if lines else "")
            yield Look(f"drawn stamps/{identity}", "drawn stamps", text, kinds, "caption", partial(read_file, path))


def read_file(path: Path) -> np.ndarray:
    """(h, w, 4) uint8 BGRA of an image file."""
    return decode(path.read_bytes(), str(path))


def decode(content: bytes, where: str) -> np.ndarray:
    """(h, w, 4) uint8 BGRA of an encoded image; one without alpha is opaque.

    Raises:
        ValueError: It cannot be read.
    """
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) if content else None
    if pixels is None:
        raise ValueError(f"{where}: expected an image, found a file that cannot be read as one")
    # Scenes show far less; all pixels of the largest pictures would cost minutes and gigabytes.
    step = max(1, max(pixels.shape[:2]) // MAX_SIDE)
    pixels = np.ascontiguousarray(pixels[::step, ::step])
    if pixels.dtype != np.uint8:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.ndim == 2:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGRA)
    return pixels if pixels.shape[2] == 4 else cv2.cvtColor(pixels, cv2.COLOR_BGR2BGRA)


def without_ground(bgra: np.ndarray) -> np.ndarray:
    """The picture with the white that reaches its border transparent; white inside of the thing stays."""
    height, width = bgra.shape[:2]
    light = (bgra[:, :, :3].min(axis=2) >= 255 - _GROUND_DARKNESS).astype(np.uint8)
    # A white frame joins what reaches the border at any place.
    framed = cv2.copyMakeBorder(light, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=1)
    _, labels = cv2.connectedComponents(framed, connectivity=4)
    ground = labels[1 : height + 1, 1 : width + 1] == labels[0, 0]
    return np.dstack([bgra[:, :, :3], np.where(ground, 0, bgra[:, :, 3])])


def _read_card(path: Path) -> np.ndarray:
    """The largest part of a card without its ground; all transparent where an arrow points at a part of the thing."""
    pixels = without_ground(read_file(path))
    count, labels, stats, _ = cv2.connectedComponentsWithStats((pixels[:, :, 3] > 0).astype(np.uint8), connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    largest = int(areas.argmax())
    others = [part for part in range(1, count) if part != largest and areas[part] > MIN_ARROW * areas[largest]]
    is_whole = not any(_is_arrow(pixels[labels == part]) for part in others)
    return np.dstack([pixels[:, :, :3], np.where((labels == largest) & is_whole, pixels[:, :, 3], 0)])


def _is_arrow(bgra: np.ndarray) -> bool:
    """Whether (n, 4) pixels have the one strong colour that arrows on flash cards have."""
    colours = bgra[:, :3].astype(np.float64)
    strong = colours[colours.max(axis=1) - colours.min(axis=1) > 120]
    return len(strong) > 0.6 * len(colours) and bool(
        np.median(np.abs(strong - np.median(strong, axis=0)), axis=0).max() < 12
    )


def _read_glyph(glyph: object, where: str) -> np.ndarray:
    return decode(glyph.imageData, where)


def _read_resource(archive: QtResourceFile, name: str) -> np.ndarray:
    return decode(archive.read(name), f"{archive.path}: {name}")


def _emoji(code_point: int, source: str, read: Callable[[], np.ndarray]) -> Look:
    text = " ".join(re.sub(r"[^a-z]", " ", unicodedata.name(chr(code_point), "").lower()).split())
    if any(code_point in heads for heads in _HEADS):
        text = text.removesuffix(" face")
    kinds = next(kinds for start, kinds in reversed(EMOJI_RANGES) if code_point >= start)
    return Look(f"{source}/{code_point:x}", source, text, tuple(kinds.split()), "name", read)


def _kinds_of(identity: str, folders: Mapping[str, str]) -> tuple[str, ...]:
    """What the things of the first folder that a path lies in can be; nothing for other folders."""
    return tuple(next((kinds for folder, kinds in folders.items() if identity.startswith(folder)), "").split())


def _words_of(stem: str) -> str:
    """ "Hot_Dog-01" becomes "hot dog"."""
    return re.sub(r"[\W_\d]+", " ", stem).strip().lower()
