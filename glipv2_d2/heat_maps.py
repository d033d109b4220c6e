"""Draw where phrases fit an image: a heat map over it for each phrase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from PIL import Image

from .colored_text import draw_words, split_words
from .sheets import join_tiles
from .structures import PhraseMaps
from .visualizer import text_font

# The phrases that one sheet shows.
MAX_PHRASES = 12
# Long side of an image on the sheet, in pixels, and the images in a row.
_SIDE, _COLUMNS = 480, 3
# The colours reach at least this far above what is left clear, so that noise around 0 does not glow.
_LEAST_RANGE = 0.05
# What is drawn of the colours where a phrase fits best; elsewhere in proportion.
_MOST_OPACITY = 0.75
_TITLES = {
    "before": "before fusion (cosine of location and words)",
    "after": "after fusion (probability)",
}


def draw_phrase_maps(image: np.ndarray, phrases: Sequence[str], maps: Mapping[str, PhraseMaps]) -> np.ndarray:
    """Draw a sheet with a heat map for each phrase, of the best level at each place.

    Of more than ``MAX_PHRASES`` phrases those that fit some place best are drawn, and the title says so. All maps of a
    kind have the same colours, so that phrases can be compared: clear stands for a middling location or, of
    probabilities, for 0, and red for the best of the sheet.

    Args:
        image: (H, W, 3) uint8 in RGB order.
        phrases: P strings, at least one.
        maps: See ``find_phrase_maps``: ``after``, of P phrases, and perhaps ``before``.

    Returns:
        (H', W', 3) uint8 in RGB order.
    """
    peaks = {kind: one.inside().amax(dim=1) for kind, one in maps.items()}
    best = peaks["after"].argsort(descending=True, stable=True)[:MAX_PHRASES].tolist()
    rows, kinds = sorted(best), [kind for kind in _TITLES if kind in maps]
    gray = _shown(image)
    ranges = {kind: _range_of(kind, maps[kind], rows) for kind in kinds}
    tiles = []
    for row in rows:
        for kind in kinds:
            values = maps[kind].enlarged(row, gray.shape[:2]).numpy()
            low, high = ranges[kind]
            heading = f"{phrases[row]}: {float(peaks[kind][row]):.2f} {kind} fusion"
            words = draw_words(split_words(heading, []), text_font((gray.shape[1], 0)), gray.shape[1])
            tiles.append(np.concatenate([words, _tinted(gray, (values - low) / (high - low))]))
    left_out = f"The {len(rows)} best of {len(phrases)} phrases. " if len(rows) < len(phrases) else ""
    scales = "; ".join(f"{_TITLES[kind]}: clear {ranges[kind][0]:.2f}, red {ranges[kind][1]:.2f}" for kind in kinds)
    columns = len(kinds) if len(kinds) > 1 else min(len(tiles), _COLUMNS if len(tiles) > 4 else 2)
    return join_tiles(tiles, columns, f"{left_out}How well each place fits a phrase, {scales}.")


def _shown(image: np.ndarray) -> np.ndarray:
    """Return an image in the size of a tile and in shades of gray, whose colours are those of the heat alone."""
    height, width = image.shape[:2]
    scale = _SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    gray = Image.fromarray(np.ascontiguousarray(image)).convert("L").resize(size, Image.Resampling.BICUBIC)
    return np.repeat(np.asarray(gray)[:, :, None], 3, axis=2)


def _range_of(kind: str, maps: PhraseMaps, rows: Sequence[int]) -> tuple[float, float]:
    """Return the values that are clear and red."""
    values = maps.inside()[list(rows)]
    low = 0.0 if kind == "after" else float(values.median())
    return low, max(float(values.max()), low + _LEAST_RANGE)


def _tinted(gray: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Paint values (H, W), 0 clear and 1 red, on an image (H, W, 3)."""
    values = values.clip(0, 1)[:, :, None]
    colors = 255 * matplotlib.colormaps["turbo"](values[:, :, 0])[:, :, :3]
    opacity = _MOST_OPACITY * values
    return np.rint(opacity * colors + (1 - opacity) * gray).astype(np.uint8)
