"""Draws the layered glyphs of colour fonts (tables COLR, version 0, and CPAL)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from fontTools.pens.basePen import BasePen
from fontTools.ttLib import TTFont

if TYPE_CHECKING:
    from collections.abc import Callable

SIDE = 256
# Width of the square that is drawn, in em: some glyphs reach out of theirs.
_WIDTH = 1.25
# Samples on each side of a pixel, and points on each curve of an outline.
_SAMPLES = 3
_CURVE_POINTS = 8


def layered_glyphs(font_file: Path) -> Iterator[tuple[int, Callable[[], np.ndarray]]]:
    """Every code point with a layered glyph, and a function that draws it as (SIDE, SIDE, 4) uint8 BGRA.

    Raises:
        ValueError: The font lacks the tables, or its packing (woff2) needs the package brotli, which is not there.
    """
    try:
        font = TTFont(font_file)
        layers, palette = font["COLR"].ColorLayers, font["CPAL"].palettes[0]
    except (ImportError, KeyError, AttributeError) as error:
        expected = "a font with COLR layers, and the package brotli to unpack it"
        raise ValueError(f"{font_file}: expected {expected}, found {error}") from error
    for code_point, name in sorted(font.getBestCmap().items()):
        if name in layers:
            yield code_point, partial(_draw, font, layers[name], palette)


class _Contours(BasePen):
    """Collects the contours of a glyph as lists of points, in units of the font."""

    def __init__(self, glyphs: Any) -> None:
        super().__init__(glyphs)
        self.contours: list[list[tuple[float, float]]] = []

    def _moveTo(self, point: tuple[float, float]) -> None:
        self.contours.append([point])

    def _lineTo(self, point: tuple[float, float]) -> None:
        self.contours[-1].append(point)

    def _qCurveToOne(self, control: tuple[float, float], end: tuple[float, float]) -> None:
        start = self.contours[-1][-1]
        for step in np.linspace(0, 1, _CURVE_POINTS + 1)[1:]:
            weights = ((1 - step) ** 2, 2 * step * (1 - step), step**2)
            self.contours[-1].append(tuple(np.dot(weights, (start, control, end))))


def _draw(font: TTFont, layers: list[Any], palette: list[Any]) -> np.ndarray:
    glyphs = font.getGlyphSet()
    side = SIDE * _SAMPLES
    em = font["head"].unitsPerEm
    scale, margin = side / (_WIDTH * em), (_WIDTH - 1) / 2 * em
    origin = (margin, font["hhea"].ascent + margin)
    image = np.zeros((side, side, 4), np.uint8)
    for layer in layers:
        pen = _Contours(glyphs)
        glyphs[layer.name].draw(pen)
        winding = np.zeros((side, side), np.int16)
        for contour in pen.contours:
            points = (np.array(contour) * (1, -1) + origin) * scale
            # A hole runs the other way round than its outline, so both sum up to nothing.
            sign = 1 if cv2.contourArea(points.astype(np.float32), oriented=True) > 0 else -1
            winding += cv2.fillPoly(np.zeros_like(winding), [np.rint(points).astype(np.int32)], sign)
        colour = palette[layer.colorID]
        image[winding != 0] = (colour.blue, colour.green, colour.red, 255)
    return cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
