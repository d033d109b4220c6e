"""A dictionary of a dozen nouns, written by hand in the form of the manual page wndb(5WN)."""

import pytest
from scenes.wordnet import WordNet


@pytest.fixture
def wordnet(make_wordnet) -> WordNet:
    return WordNet(make_wordnet())


def test_meanings_come_in_the_order_of_the_index_with_kind_and_words(wordnet):
    animal, stick = wordnet.senses("bat")
    assert (animal.kind, animal.words) == ("animal", ("bat", "chiropteran"))
    assert (stick.kind, stick.words) == ("artifact", ("bat",))
    assert wordnet.senses("hot dog")[0].kind == "food" and wordnet.senses("no such word") == []
    assert wordnet.senses("joy")[0].kind == ""  # nothing that can be seen


def test_ancestors_are_all_that_a_thing_is_a_kind_of_nearest_first(wordnet):
    (poodle,) = wordnet.senses("poodle")
    assert [one.words[0] for one in wordnet.ancestors(poodle)] == ["dog", "animal"]
    assert list(wordnet.ancestors(wordnet.senses("animal")[0])) == []


def test_single_things_are_marked(wordnet):
    assert wordnet.senses("paris")[0].is_single and not wordnet.senses("dog")[0].is_single


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        *(("dogs", "dog"), ("hot dogs", "hot dog"), ("foxes", "fox"), ("cherries", "cherry"), ("mice", "mouse")),
        *(("glass", "glass"), ("dog", "dog"), ("scissors", "scissors"), ("blobs", "blobs")),
    ],
)
def test_the_singular_is_found_by_the_list_of_exceptions_and_by_ending(wordnet, plural, singular):
    assert wordnet.singular(plural) == singular
    assert wordnet.is_plural(plural) == (plural != singular)


def test_a_missing_file_and_a_broken_line_are_named(make_wordnet):
    folder = make_wordnet()
    data = (folder / "data.noun").read_bytes()
    (folder / "data.noun").write_bytes(b"x" * 40 + data)
    with pytest.raises(ValueError, match=r"data.noun: expected a noun at byte \d+, found"):
        WordNet(folder).senses("dog")
    (folder / "noun.exc").unlink()
    with pytest.raises(ValueError, match="noun.exc: expected this file of WordNet, found none"):
        WordNet(folder)
