"""The caption of a mirrored image: which words change, and where its phrases go."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from glipv2_d2.prompts.flip_words import swap_left_right

WORDS = ["left", "right", "Left", "RIGHT", "LEFT", "leftmost", "Right-hand", "bright", "a", "dog", "é", "😀", "LeFt"]
GLUE = [" ", "  ", ", ", ".", "-", "_", "\n", "\u202e", "'s "]


@pytest.mark.parametrize(
    ("caption", "mirrored"),
    [
        ("the left dog", "the right dog"),
        ("the right dog", "the left dog"),
        ("left of the man on the right", "right of the man on the left"),
        ("Left: a cat. RIGHT: a dog.", "Right: a cat. LEFT: a dog."),
        ("leftmost and rightmost", "rightmost and leftmost"),
        ("Rightmost, LEFTMOST", "Leftmost, RIGHTMOST"),
        ("on the left-hand side", "on the right-hand side"),
        ("the Right-Hand door", "the Left-Hand door"),
        ("lefthand righthanded lefthanders righthander", "righthand lefthanded lefthanders lefthander"),
        ("a left-handed pitcher", "a right-handed pitcher"),
        ("leftward, rightwards, leftside", "rightward, leftwards, rightside"),
        ("upper-left, lower_right", "upper-right, lower_left"),
        ("left/right", "right/left"),
        ("the man's left's", "the man's right's"),
        ("left", "right"),
    ],
)
def test_left_and_right_change_places(caption, mirrored):
    assert swap_left_right(caption, []) == (mirrored, [])


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a dog",
        "bright upright frightened",
        "leftover rightful righteous lefty",
        "cleft alright",
        "LeFt rIGHT",
        "left3 4right",
        "leftmosts",
        "link gauche droite",
        "écleft",
    ],
)
def test_other_words_stay(caption):
    assert swap_left_right(caption, [[(0, len(caption))]] if caption else [])[0] == caption


@pytest.mark.parametrize(
    ("caption", "spans", "moved"),
    [
        # the left dog -> the right dog: "left" is 4..8, "right" 4..9.
        ("the left dog", [[(4, 8)], [(9, 12)], [(0, 3)]], [[(4, 9)], [(10, 13)], [(0, 3)]]),
        ("the right dog", [[(4, 9)], [(10, 13)], [(0, 13)]], [[(4, 8)], [(9, 12)], [(0, 12)]]),
        # left cat, right dog -> right cat, left dog
        ("left cat, right dog", [[(0, 8), (10, 19)]], [[(0, 9), (11, 19)]]),
        # A range from inside a word to inside a word takes in both words.
        ("a left or right", [[(3, 12)], [(4, 5)], [(2, 3)]], [[(2, 15)], [(2, 7)], [(2, 7)]]),
        # The end of "left" inside "leftmost" is an edge of the exchanged word.
        ("leftmost", [[(0, 4)], [(4, 8)], [(0, 8)]], [[(0, 5)], [(5, 9)], [(0, 9)]]),
        # A phrase without a range, and no phrase at all.
        ("left dog", [[]], [[]]),
        ("left dog", [], []),
        ("a dog", [[(2, 5)]], [[(2, 5)]]),
    ],
)
def test_ranges_follow_their_words(caption, spans, moved):
    assert swap_left_right(caption, spans)[1] == moved


def test_ranges_may_be_lists_as_a_file_holds_them():
    assert swap_left_right("left dog", [[[5, 8]]]) == ("right dog", [[(6, 9)]])


some_caption = st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(GLUE)), min_size=2, max_size=8).map(
    lambda pairs: "".join(word + glue for word, glue in pairs)
)


def slow_swap(caption):
    """A second formulation: word by word, with a table written out."""
    forms = {"left": "right", "Left": "Right", "LEFT": "RIGHT", "right": "left", "Right": "Left", "RIGHT": "LEFT"}
    ends = ["", "most", "hand", "handed", "hander", "side", "ward", "wards"]
    swapped = []
    for piece in re.split(r"([^\W_]+)", caption):
        for old, new in forms.items():
            if piece.startswith(old) and piece[len(old) :].lower() in ends:
                piece = new + piece[len(old) :]
                break
        swapped.append(piece)
    return "".join(swapped)


@settings(max_examples=200)
@given(st.one_of(some_caption, st.text(max_size=30)))
@example("leftmost bright RIGHT-HAND left_side")
def test_caption_is_that_of_the_slow_form_and_a_second_swap_gives_it_back(caption):
    mirrored, _ = swap_left_right(caption, [])
    assert mirrored == slow_swap(caption)
    assert swap_left_right(mirrored, [])[0] == caption


@settings(max_examples=200)
@given(some_caption, st.data())
def test_ranges_of_whole_words_hold_the_mirrored_words_and_come_back(caption, data):
    words = [match.span() for match in re.finditer(r"[^\W_]+", caption)]
    spans = []
    for _ in range(data.draw(st.integers(0, 3)) if words else 0):
        first = data.draw(st.integers(0, len(words) - 1))
        last = data.draw(st.integers(first, len(words) - 1))
        spans.append([(words[first][0], words[last][1])])
    mirrored, moved = swap_left_right(caption, spans)
    for ((begin, end),), ((new_begin, new_end),) in zip(spans, moved, strict=True):
        assert mirrored[new_begin:new_end] == slow_swap(caption[begin:end])
    assert swap_left_right(mirrored, moved) == (caption, spans)


@settings(max_examples=200)
@given(some_caption, st.data())
def test_any_range_stays_one_and_keeps_its_place_among_the_others(caption, data):
    edges = sorted(data.draw(st.lists(st.integers(0, len(caption)), min_size=4, max_size=4, unique=True)))
    begin, inner_begin, inner_end, end = edges
    mirrored, [[outer], [inner]] = swap_left_right(caption, [[(begin, end)], [(inner_begin, inner_end)]])
    assert 0 <= outer[0] <= inner[0] < inner[1] <= outer[1] <= len(mirrored)
