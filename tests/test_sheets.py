import numpy as np

from glipv2_d2.sheets import join_tiles


def tile(height, width, value):
    return np.full((height, width, 3), value, np.uint8)


def test_tiles_stand_in_their_order_with_white_around_them():
    tiles = [tile(30, 300, 10), tile(50, 200, 20), tile(40, 300, 30)]
    sheet = join_tiles(tiles, 2, "three of them")
    # Columns are as wide as the widest tile and 10 pixels of white, rows as high as their highest tile and 10.
    title, first, second = np.split(sheet, [len(sheet) - 110, len(sheet) - 50])
    assert sheet.shape[1:] == (620, 3) and title.min() < 100 and title.max() == 255
    expected = np.full((60, 620, 3), 255)
    expected[:30, :300], expected[:50, 310:510] = 10, 20
    assert (first == expected).all()
    expected = np.full((50, 620, 3), 255)
    expected[:40, :300] = 30
    assert (second == expected).all()


def test_fewer_tiles_than_columns_make_a_row_of_their_number():
    assert join_tiles([tile(30, 200, 10)], 3, "one").shape[1] == 210


def test_a_long_title_takes_more_lines():
    heights = {len(join_tiles([tile(30, 200, 10)], 1, "some words " * number)) for number in (1, 9)}
    assert len(heights) == 2
