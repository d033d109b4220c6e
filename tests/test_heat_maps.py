import numpy as np
import pytest
import torch

from glipv2_d2 import heat_maps
from glipv2_d2.heat_maps import draw_phrase_maps
from glipv2_d2.structures import PhraseMaps


def make_maps(values, strides=(10,), image_size=(20, 40)):
    return PhraseMaps([torch.as_tensor(np.array(level, np.float32)) for level in values], list(strides), image_size)


def test_locations_inside_leave_out_those_of_the_padding_alone():
    # 15 x 21 pixels: of stride 10 two rows and three columns lie in the image, in part; of stride 20 one and two.
    fine = [[[1, 2, 3, 9], [4, 5, 6, 9], [9, 9, 9, 9]]]
    maps = make_maps([fine, [[[7, 8], [9, 9]]]], (10, 20), (15, 21))
    assert maps.inside().tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]


def test_enlarged_map_has_its_values_at_the_centers_and_the_best_level_everywhere():
    # The image ends within the third column and the second row.
    maps = make_maps([[[[0, 4, 8], [2, 6, 10]]], [[[5, 5]]]], (10, 20), (15, 25))
    large = maps.enlarged(0, (60, 100))
    # Four pixels for one: centers of the fine locations lie at 20, 60 and 100, between pixels.
    assert large.shape == (60, 100)
    assert large[:20, :20].tolist() == [[5.0] * 20] * 20
    assert large[19:21, 59:61].mean() == 5.0 and large[59, 99] == pytest.approx(9.85, abs=0.1)
    along = maps.enlarged(0, (60, 100))[10, 60:100]
    # From 5 it grows by 4 in 40 pixels, from where the fine level is the best.
    assert (along.diff() >= 0).all() and along[-1] == pytest.approx(4 + 4 * 39.5 / 40)


def test_the_place_that_fits_is_red_and_all_else_gray(monkeypatch):
    shown = []
    monkeypatch.setattr(heat_maps, "join_tiles", lambda tiles, columns, title: shown.append((tiles, columns, title)))
    image = np.full((20, 40, 3), (200, 40, 40), np.uint8)
    hot = [[0.0] * 4, [0.0, 0.0, 0.0, 0.8]]
    draw_phrase_maps(image, ["cat", "dog"], {"after": make_maps([[hot, np.zeros((2, 4))]])})
    (cat, dog), columns, title = shown[0]
    assert (
        columns == 2 and title == "How well each place fits a phrase, after fusion (probability): clear 0.00, red 0.80."
    )
    # The headings stand above.
    cat, dog = cat[-240:].astype(int), dog[-240:].astype(int)
    assert cat.shape == (240, 480, 3)
    assert (np.ptp(dog, axis=2) == 0).all() and (np.ptp(cat[:, :200], axis=2) == 0).all()
    red, green, blue = cat[-60, -60]
    assert red > green + 50 and red > blue + 50


def test_the_best_phrases_are_shown_and_the_others_counted(monkeypatch):
    shown = []
    monkeypatch.setattr(heat_maps, "join_tiles", lambda tiles, columns, title: shown.append((len(tiles), title)))
    written = []
    words = heat_maps.draw_words
    monkeypatch.setattr(
        heat_maps, "draw_words", lambda text, *more: written.append("".join(w for w, _ in text)) or words(text, *more)
    )
    values = torch.arange(15.0)[:, None, None].expand(15, 2, 4) / 20
    maps = PhraseMaps([values], [10], (20, 40))
    draw_phrase_maps(np.zeros((20, 40, 3), np.uint8), [f"name {row}" for row in range(15)], {"after": maps})
    assert shown[0][0] == 12 and shown[0][1].startswith("The 12 best of 15 phrases. How well")
    assert written[0] == "name 3: 0.15 after fusion" and written[-1] == "name 14: 0.70 after fusion"


def test_before_and_after_stand_side_by_side_with_scales_of_their_own(monkeypatch):
    shown = []
    monkeypatch.setattr(
        heat_maps, "join_tiles", lambda tiles, columns, title: shown.append((len(tiles), columns, title))
    )
    before = make_maps([[[[-0.5, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.4]]]])
    maps = {"after": make_maps([np.zeros((1, 2, 4))]), "before": before}
    draw_phrase_maps(np.zeros((20, 40, 3), np.uint8), ["cat"], maps)
    number, columns, title = shown[0]
    assert (number, columns) == (2, 2)
    # Nothing fits after fusion: the least range, so that noise stays dark.
    assert "words): clear 0.10, red 0.40; after fusion (probability): clear 0.00, red 0.05." in title
