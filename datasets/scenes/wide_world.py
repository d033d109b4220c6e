"""Reads the wide world's collections: from packages to names with cut-outs."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from . import wide_sources
from .composer import SOLID_ALPHA, Category, CutOut, make_cut_out
from .curation import Curation
from .wide_names import KeptOut, Lexicon, Look, name_looks, wide_category
from .wide_splits import WideName
from .wide_tables import CLIP_ART, EMOJI, EMOJI_FONT, FLASHCARDS, LAYERED_EMOJI

PHOTOGRAPHS = "photographs"
SOURCES = (PHOTOGRAPHS, "drawn stamps", "flash cards", "clip art", "fluent emoji", "twemoji", "noto emoji")

# Below this many pixels on the longest side a look is too coarse.
MIN_SIDE = 90

# A cut-out that fills so much of its box is a picture with a ground.
MAX_FILLED = 0.98

# Two looks of a name whose pixels, shrunk to so many a side, differ by less on average are one.
_THUMBNAIL_SIDE = 12
_MIN_DIFFERENCE = 8


def find_looks(
    folders: Mapping[str, Path], stamps: Path, words: Path, curation: Curation, photographs: Iterable[CutOut]
) -> list[Look]:
    """All pictures of the packages that have words, but for the photographic stamps.

    Args:
        folders: Unpacked, one for each package that is not StampWorld's.
        stamps: The folder of Tux Paint's stamps.
        words: GCompris' resource file of word pictures.

    Raises:
        ValueError: A package lacks its folder.
    """
    taken = {cut_out.identity for cut_out in photographs}
    font = folders[EMOJI_FONT] / "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
    cards = folders[FLASHCARDS] / "usr/share/games/pysiogame/res/images/art4apps"
    art = folders[CLIP_ART] / "usr/share/openclipart/png"
    emoji = folders[EMOJI] / "package/assets"
    layered = folders[LAYERED_EMOJI] / "package/twemoji.woff2"
    for path in (words, font, cards, art, emoji, layered):
        if not path.exists():
            raise ValueError(f"{path}: expected this in the package, found none")
    pictures = list(wide_sources.find_word_pictures(words, words.stem))
    return [
        *wide_sources.find_drawn_stamps(stamps, curation, taken),
        *pictures,
        *wide_sources.find_flash_cards(cards, {look.text for look in pictures}),
        *wide_sources.find_clip_art(art),
        *wide_sources.find_emoji_files(emoji, "fluent emoji"),
        *wide_sources.find_layered_emoji(layered, "twemoji"),
        *wide_sources.find_emoji_font(font, "noto emoji"),
    ]


def load_names(
    looks: Sequence[Look],
    photographs: Mapping[str, Sequence[CutOut]],
    unseen: Sequence[Category],
    lexicon: Lexicon,
    max_side: int,
) -> list[WideName]:
    """Name the looks, and read those of every name that may be trained on.

    Args:
        photographs: The cut-outs of StampWorld's train by name; these names stay as they are.
        unseen: The names of StampWorld's val_novel: they, their synonyms and kinds are left out.
        max_side: Longest side, in pixels, that a scene will ask for.
    """
    kinds = {"animal": ("animal",), "food": ("food", "plant"), "plant": ("plant", "food")}
    rest = ("artifact", "person", "object", "body", "plant", "food", "animal")
    fixed = {}
    for name, cut_outs in photographs.items():
        group = kinds.get(cut_outs[0].category.group, rest)
        fixed[name] = lexicon.sense_or_head(name, group) or lexicon.unknown(name)
    kept_out = KeptOut(unseen, lexicon)
    named = {one.name: one for one in name_looks(looks, lexicon, fixed)}
    senses = fixed | {name: one.sense for name, one in named.items() if (name, one.sense) not in kept_out}
    names = []
    for name in tqdm(sorted(senses), desc="reading pictures", unit="name", delay=1, disable=None):
        given = photographs[name][0].category if name in photographs else None
        category = wide_category(name, senses[name], lexicon, senses, given)
        cut_outs = _different(
            [*photographs.get(name, ()), *_read(named[name].looks if name in named else (), category, max_side)]
        )
        if cut_outs:
            by_source: dict[str, list[CutOut]] = {}
            for cut_out in cut_outs:
                by_source.setdefault(source_of(cut_out), []).append(
                    CutOut(cut_out.identity, category, cut_out.pixels, cut_out.longest_side)
                )
            names.append(WideName(category, senses[name], by_source, name in fixed))
    return names


def source_of(cut_out: CutOut) -> str:
    """The collection that a cut-out comes from."""
    first = cut_out.identity.split("/")[0]
    return first if first in SOURCES else PHOTOGRAPHS


def is_fair(bgra: np.ndarray) -> bool:
    """Whether a picture is a coloured thing on a transparent ground: no silhouette, line art, or framed picture."""
    solid = bgra[:, :, 3] >= SOLID_ALPHA
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    if not rows.size:
        return False
    height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    if (
        max(height, width) < MIN_SIDE
        or solid.sum() > MAX_FILLED * height * width
        or solid.sum() < 0.05 * height * width
    ):
        return False
    colours = bgra[solid][:, :3].astype(np.int32)
    coarse = np.bincount((colours >> 5) @ np.array([64, 8, 1]), minlength=512) / len(colours)
    is_coloured = np.mean(colours.max(axis=1) - colours.min(axis=1) > 30) > 0.05
    return bool(coarse.max() < 0.93 and (is_coloured or np.count_nonzero(coarse > 0.02) > 3))


def _read(looks: Iterable[Look], category: Category, max_side: int) -> list[CutOut]:
    found = []
    for look in looks:
        pixels = look.read()
        if is_fair(pixels):
            found.append(make_cut_out(look.identity, category, pixels, max_side))
    return found


def _different(cut_outs: Sequence[CutOut]) -> list[CutOut]:
    """The cut-outs without those that look like an earlier one: collections share drawings, and keep copies."""
    kept, thumbnails = [], []
    for cut_out in cut_outs:
        thumbnail = cv2.resize(cut_out.pixels, (_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA).astype(
            int
        )
        if all(np.abs(thumbnail - other).mean() >= _MIN_DIFFERENCE for other in thumbnails):
            kept.append(cut_out)
            thumbnails.append(thumbnail)
    return kept
