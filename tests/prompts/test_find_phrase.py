import pytest

from glipv2_d2.prompts.noun_phrases import find_phrase


def test_phrase_is_found_wherever_it_stands_in_any_case():
    assert find_phrase("A dog and a dog.", "a dog") == ("a dog", [(0, 5), (10, 15)])


def test_part_of_a_word_is_no_match():
    assert find_phrase("cats and a cat", "cat") == ("cat", [(11, 14)])


def test_phrase_may_begin_and_end_with_punctuation():
    assert find_phrase("a (big) dog", "(big)") == ("(big)", [(2, 7)])


def test_range_gives_its_text():
    assert find_phrase("a red ball", (2, 5)) == ("red", [(2, 5)])


@pytest.mark.parametrize("phrase", ["bird", "", "  "])
def test_words_that_are_not_there_are_an_error(phrase):
    with pytest.raises(ValueError, match="a cat"):
        find_phrase("a cat", phrase)


@pytest.mark.parametrize("span", [(0, 0), (3, 2), (-1, 2), (0, 6)])
def test_range_outside_the_caption_is_an_error(span):
    with pytest.raises(ValueError, match="5 characters"):
        find_phrase("a cat", span)
