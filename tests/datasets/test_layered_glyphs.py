import pytest
from layered_font import write_layered_font
from scenes.layered_glyphs import SIDE, layered_glyphs


@pytest.mark.parametrize("name", ["font.ttf", "font.woff2"])
def test_layers_are_drawn_one_over_the_other_and_holes_stay_open(tmp_path, name):
    write_layered_font(tmp_path / name, 0x1F98A)
    ((code_point, draw),) = layered_glyphs(tmp_path / name)
    pixels = draw()
    assert code_point == 0x1F98A and pixels.shape == (SIDE, SIDE, 4)

    def at(x: float, y: float) -> tuple[int, ...]:
        """The pixel at a point of the em square, which is drawn with an eighth of it around."""
        place = [int((value + 0.125) / 1.25 * SIDE) for value in (1 - y, x)]
        return tuple(int(value) for value in pixels[place[0], place[1]])

    assert at(0.2, 0.8) == at(0.8, 0.2) == (0, 0, 255, 255)  # blue, green, red, alpha
    assert at(0.5, 0.5) == (255, 0, 0, 255)
    assert at(0.42, 0.5) == (0, 0, 0, 0) and at(0.05, 0.05) == (0, 0, 0, 0)


def test_a_font_without_layers_is_named(tmp_path):
    write_layered_font(tmp_path / "font.ttf", 0x1F98A)
    from fontTools.ttLib import TTFont

    font = TTFont(tmp_path / "font.ttf")
    del font["COLR"]
    font.save(tmp_path / "font.ttf")
    with pytest.raises(
        ValueError, match="font.ttf: expected a font with COLR layers, and the package brotli to unpack it, found"
    ):
        list(layered_glyphs(tmp_path / "font.ttf"))
