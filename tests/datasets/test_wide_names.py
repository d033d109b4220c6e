import pytest
from scenes.composer import Category
from scenes.text import plural_of
from scenes.wide_names import KeptOut, Lexicon, Look, name_looks, wide_category
from scenes.wordnet import WordNet

ANIMAL, TOOL, FOOD = ("animal",), ("artifact",), ("food", "plant")


@pytest.fixture
def lexicon(make_wordnet) -> Lexicon:
    return Lexicon(WordNet(make_wordnet()))


def look(text, kinds=ANIMAL, form="name", source="emoji", number=0) -> Look:
    return Look(f"{source}/{text}{number}", source, text, kinds, form, read=lambda: None)


@pytest.mark.parametrize(
    ("text", "kinds", "form", "name"),
    [
        ("fox", ANIMAL, "name", "fox"),
        ("fox", TOOL, "name", None),  # not what the folder holds
        ("joy", ANIMAL + TOOL, "name", None),  # cannot be seen
        ("dogs", ANIMAL, "name", None),  # several of a thing are not one
        ("fox with a hat", ANIMAL, "name", None),
        ("fuel pump", TOOL, "name", None),
        ("aubergine", FOOD, "name", "eggplant"),
        ("happy fox", ANIMAL, "caption", "fox"),
        ("electric kettle", TOOL, "caption", "electric kettle"),  # WordNet lacks it: a kind of kettle
        ("a fox in the house", ANIMAL, "caption", None),
        ("two foxes", ANIMAL, "caption", None),
        ("fox ganson", ANIMAL, "file name", "fox"),
        ("fox somebody unknown", ANIMAL, "file name", "fox"),
        ("hot dog mateya", FOOD, "file name", None),  # a picture with text
        ("hot dog juliane", FOOD, "file name", "hot dog"),
        ("dog house", ANIMAL, "file name", None),  # a house, not a dog
        ("contour fox", ANIMAL, "file name", None),
        ("fox bw", ANIMAL, "file name", None),
        ("gufo architetto", ANIMAL, "file name", "owl"),
        ("map", TOOL, "name", None),  # by the table of unfair names
    ],
)
def test_a_text_gives_a_fair_name_or_none(lexicon, text, kinds, form, name):
    found = lexicon.name_in(look(text, kinds, form))
    assert (found and found[0]) == name


def test_a_name_of_two_meanings_keeps_the_commoner_and_a_tie_is_left_out(lexicon):
    animals = [look("bat", ANIMAL, number=number) for number in range(2)]
    tool = look("bat", TOOL, source="clip art")
    (named,) = name_looks([*animals, tool], lexicon, {})
    assert named.sense.kind == "animal" and [one.source for one in named.looks] == ["emoji", "emoji"]
    assert name_looks([animals[0], tool], lexicon, {}) == []


def test_names_of_one_meaning_become_one_with_the_looks_of_all(lexicon):
    looks = [look("dog"), look("domestic dog", source="cards"), look("fox")]
    named = {one.name: len(one.looks) for one in name_looks([*looks, look("dog", source="art")], lexicon, {})}
    assert named == {"dog": 3, "fox": 1}
    fixed = {"domestic dog": lexicon.sense_of("dog", ANIMAL)}
    assert {one.name for one in name_looks(looks, lexicon, fixed)} == {"domestic dog", "fox"}


def category(name, *others) -> Category:
    return Category(name, "", "", "a", plural_of(name), frozenset({name, name.split(" ")[-1], *others}))


@pytest.mark.parametrize(
    ("name", "is_kept_out"),
    [
        *(("dog", True), ("domestic dog", True), ("poodle", True), ("puppy", True), ("hot dog", True)),
        *(("electric saw", True), ("saw", True), ("fox", False), ("hammer", False), ("hound", True)),
        *(("owl", True), ("bird", False), ("crow", False), ("mouse", True), ("dormouse", False)),
    ],
)
def test_unseen_names_their_synonyms_kinds_and_compounds_are_kept_out(lexicon, name, is_kept_out):
    unseen = [category("dog", "hound"), category("old saws"), category("owl", "bird"), category("red mice")]
    kept_out = KeptOut(unseen, lexicon)
    sense = lexicon.sense_or_head(name, ("animal", "artifact", "food")) or lexicon.unknown(name)
    assert ((name, sense) in kept_out) == is_kept_out


def test_a_crow_may_be_called_a_bird_and_shares_its_parent(lexicon):
    names = {"crow", "bird", "owl"}
    crow_sense = lexicon.sense_of("crow", ANIMAL)
    crow = wide_category("crow", crow_sense, lexicon, names, None)
    assert (crow.group, crow.group_plural, crow.kinds) == ("bird", "birds", {"crow", "bird"})
    scissors = wide_category("scissors", lexicon.sense_of("scissors", TOOL), lexicon, names, None)
    assert (scissors.group, scissors.determiner, scissors.plural) == ("tool", "some", "")
    names_of_two = [wide_category(name, crow_sense, lexicon, names, None).plural for name in ("kitchen knife", "fox")]
    assert names_of_two == ["kitchen knives", "foxes"]
