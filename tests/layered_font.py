"""Writes a font with one layered glyph, for the tests of what reads such fonts."""

from pathlib import Path

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTFont

RED, BLUE = (1.0, 0.0, 0.0, 1.0), (0.0, 0.0, 1.0, 1.0)


def _square(low: int, high: int, hole: tuple[int, int] | None = None):
    pen = TTGlyphPen(None)
    for first, last, turns in ((low, high, 1), (*hole, -1)) if hole else ((low, high, 1),):
        points = [(first, first), (first, last), (last, last), (last, first)][::turns]
        pen.moveTo(points[0])
        for point in points[1:]:
            pen.lineTo(point)
        pen.closePath()
    return pen.glyph()


def write_layered_font(path: Path, code_point: int) -> None:
    """One glyph, em 1000: a red square from 100 to 900 with a hole from 400 to 600, and a blue one in the hole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    builder = FontBuilder(1000, isTTF=True)
    names = [".notdef", "whole", "red", "blue"]
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({code_point: "whole"})
    glyphs = {"red": _square(100, 900, hole=(400, 600)), "blue": _square(450, 550)}
    builder.setupGlyf({name: glyphs.get(name, TTGlyphPen(None).glyph()) for name in names})
    starts = {"red": 100, "blue": 450}
    builder.setupHorizontalMetrics({name: (1000, starts.get(name, 0)) for name in names})
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupOS2()
    builder.setupPost()
    builder.setupNameTable({"familyName": "Layers", "styleName": "Regular"})
    builder.setupCOLR({"whole": [("red", 0), ("blue", 1)]})
    builder.setupCPAL([[RED, BLUE]])
    builder.save(path)
    font = TTFont(path)
    font.flavor = "woff2" if path.suffix == ".woff2" else None
    font.save(path)
