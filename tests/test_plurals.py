import pytest

from glipv2_d2.plurals import agreeing, counted, singular


@pytest.mark.parametrize(
    ("number", "thing", "text"),
    [
        (0, "image", "0 images"),
        (1, "image", "1 image"),
        (2000, "image", "2,000 images"),
        (2, "box", "2 boxes"),
        (2, "class", "2 classes"),
        (2, "entry", "2 entries"),
        (2, "day", "2 days"),
        (1, "entry", "1 entry"),
    ],
)
def test_a_number_agrees_with_its_thing(number, thing, text):
    assert counted(number, thing) == text


def test_a_word_agrees_with_a_number():
    assert [agreeing(number, "is", "are") for number in (0, 1, 2)] == ["are", "is", "are"]


def test_one_of_many_things():
    many = ("images", "boxes", "classes", "entries", "annotation files")
    assert [singular(things) for things in many] == ["image", "box", "class", "entry", "annotation file"]
