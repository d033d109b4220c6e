"""Several drawings on one sheet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .colored_text import draw_words, split_words
from .visualizer import text_font

# White between two drawings, in pixels.
_GAP = 10
# Size of the title's letters, a share of the width of the sheet.
_TITLE_SHARE = 100


def join_tiles(tiles: Sequence[np.ndarray], columns: int, title: str) -> np.ndarray:
    """Put drawings side by side and below each other, in their order, and write a title above them.

    Args:
        tiles: At least one (H, W, 3) uint8, of any sizes. A row is as high as its highest tile, and all columns are as
            wide as the widest; the rest is white.
        columns: Tiles in a row, at least 1.
        title: Text above all.

    Returns:
        (H', W', 3) uint8.
    """
    width = max(tile.shape[1] for tile in tiles) + _GAP
    rows = []
    for begin in range(0, len(tiles), columns):
        row = tiles[begin : begin + columns]
        height = max(tile.shape[0] for tile in row) + _GAP
        rows.append(np.concatenate([_padded(tile, height, width) for tile in row], axis=1))
    total = rows[0].shape[1]
    words = draw_words(split_words(title, []), text_font((total, 0), share=_TITLE_SHARE), total)
    return np.concatenate([words, *(_padded(row, len(row), total) for row in rows)])


def _padded(drawing: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a drawing with white below it and on its right."""
    missing = ((0, height - drawing.shape[0]), (0, width - drawing.shape[1]), (0, 0))
    return np.pad(drawing, missing, constant_values=255)
