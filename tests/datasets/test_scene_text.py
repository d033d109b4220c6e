import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes.composer import Category
from scenes.text import Mention, article_of, ask, colour_of, describe, plural_of, relation

SIZE = 100


def category(name, determiner=None, group="animal", plural=None, also=()):
    kinds = frozenset({name, name.split(" ")[-1], *also})
    plural = plural_of(name) if plural is None else plural
    return Category(name, group, f"{group}s", determiner or article_of(name), plural, kinds, colour_of(name))


CROW, SAW, LION, OWL = category("crow"), category("saw", group="tool"), category("lion"), category("owl")
PLIERS = category("pliers", "a pair of", "tool", "pairs of pliers")
BROCCOLI = category("broccoli", "some", "food", "")


def at(kind, x, y):
    """A mention of 10 by 10 pixels whose centre is (x, y)."""
    return Mention(kind, (x - 5, y - 5, 10, 10))


def captions(mentions, count=60):
    setting = "on a photo of a castle"
    return {describe(np.random.default_rng(seed), mentions, setting, SIZE).text for seed in range(count)}


def asked(mentions, hidden=(), vocabulary=(), count=60):
    """All questions of many draws, as (question, answer)."""
    found = set()
    for seed in range(count):
        for one in ask(np.random.default_rng(seed), mentions, hidden, vocabulary, SIZE):
            found.add((one["question"], one["answer"]))
    return found


@pytest.mark.parametrize(
    ("name", "plural"),
    [
        *(("crow", "crows"), ("church bell", "church bells"), ("lorry", "lorries"), ("donkey", "donkeys")),
        *(("fox", "foxes"), ("pipe wrench", "pipe wrenches"), ("green bus", "green buses"), ("brush", "brushes")),
        *(("mouse", "mice"), ("clownfish", "clownfish"), ("stripey fish", "stripey fish"), ("sheep", "sheep")),
    ],
)
def test_plurals(name, plural):
    assert plural_of(name) == plural


@pytest.mark.parametrize(
    ("name", "article"),
    [("crow", "a"), ("orange", "an"), ("electric guitar", "an"), ("uk post box", "a"), ("unicycle", "a")],
)
def test_articles(name, article):
    assert article_of(name) == article


@pytest.mark.parametrize(
    ("name", "colour"), [("red kangaroo", "red"), ("orange", ""), ("great blue heron", ""), ("orange cat", "orange")]
)
def test_a_colour_is_a_first_word_with_more_behind_it(name, colour):
    assert colour_of(name) == colour


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((20, 50), (60, 60), "to the left of"),
        ((60, 60), (20, 50), "to the right of"),
        ((50, 20), (60, 60), "above"),
        ((50, 60), (60, 20), "below"),
        ((50, 50), (60, 50), "to the left of"),  # a tenth of the image is clear
        ((50, 50), (59, 59), "near"),
    ],
)
def test_relation_follows_the_axis_on_which_the_centres_are_further_apart(a, b, expected):
    assert relation(at(CROW, *a), at(SAW, *b), SIZE) == expected


def test_two_objects_are_related_or_listed_in_either_order():
    end = "on a photo of a castle"
    assert captions([at(CROW, 20, 50), at(SAW, 80, 50)]) == {
        f"a crow to the left of a saw {end}",
        f"a saw to the right of a crow {end}",
        f"a crow and a saw {end}",
        f"a saw and a crow {end}",
    }


def test_three_and_four_objects_come_in_pairs():
    mentions = [at(CROW, 20, 20), at(SAW, 80, 20), at(LION, 20, 80), at(OWL, 20, 50)]
    three, four = captions(mentions[:3], 200), captions(mentions, 800)
    assert "a crow to the left of a saw, and a lion, on a photo of a castle" in three
    assert "a lion, a crow and a saw, on a photo of a castle" in three
    assert "a crow to the left of a saw, and a lion below an owl, on a photo of a castle" in four
    assert "a lion, an owl, a crow and a saw, on a photo of a castle" in four


def test_more_than_four_objects_go_on_in_pairs():
    mentions = [at(category(name), 20 * index, 50) for index, name in enumerate(("ant", "bee", "cat", "dog", "eel"))]
    pattern = r"an? \w+ to the \w+ of an? \w+, an? \w+ to the \w+ of an? \w+, and an? \w+, on a photo of a castle"
    assert any(re.fullmatch(pattern, text) for text in captions(mentions))


def test_one_object_and_none():
    assert captions([at(BROCCOLI, 50, 50)]) == {"some broccoli on a photo of a castle"}
    assert captions([]) == {"a photo of a castle"}


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (OWL, "an owl and another owl"),
        (PLIERS, "a pair of pliers and another pair of pliers"),
        (category("corn", "an ear of"), "an ear of corn and another ear of corn"),
        (BROCCOLI, "some broccoli and some more broccoli"),
    ],
)
def test_what_is_named_again_is_another(kind, text):
    assert f"{text} on a photo of a castle" in captions([at(kind, 20, 50), at(kind, 80, 50)])


NAMES = ("crow", "saw", "black crow", "red kangaroo", "kangaroo", "owl", "pliers")
MENTIONS = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(5, 95), st.integers(5, 95)), min_size=1, max_size=6)


def mentions_of(drawn):
    return [at(PLIERS if name == "pliers" else category(name), x, y) for name, x, y in drawn]


@settings(max_examples=60)
@given(MENTIONS, st.integers(0, 1000))
def test_spans_spell_the_names_and_never_meet(drawn, seed):
    caption = describe(np.random.default_rng(seed), mentions_of(drawn), "on a photo of a castle", SIZE)
    assert [caption.text[start:end] for start, end in caption.spans] == [name for name, _, _ in drawn]
    ordered = sorted(caption.spans)
    assert all(before[1] < after[0] for before, after in zip(ordered, ordered[1:]))


def may_be_called(name, thing):
    return thing == name or thing.split(" ")[-1] == name


def slow_answer(question, drawn):
    """The answer by looking at names and centres; counts whatever may be called what is asked for."""
    names = [name for name, _, _ in drawn]

    def position(thing, axis):
        found = [one[1 + axis] for one in drawn if may_be_called(thing, one[0])]
        assert len(found) == 1, "what is asked for is not the only one of its kind"
        return found[0]

    if question == "How many animals are there?":
        return str(len(names) - names.count("pliers"))
    if question in ("How many tools are there?", "How many pairs of pliers are there?"):
        return str(names.count("pliers"))
    if match := re.fullmatch(r"How many (.*)s are there\?", question):
        return str(sum(may_be_called(match[1], name) for name in names))
    if match := re.fullmatch(r"Is there (?:an?|a pair of) (\w+|red kangaroo|black crow) in the picture\?", question):
        return "yes" if any(may_be_called(match[1], name) or may_be_called(name, match[1]) for name in names) else "no"
    question = question.replace("the pair of", "the")
    if match := re.fullmatch(r"Which is (further to the left|higher up), the (.*) or the (.*)\?", question):
        axis = 0 if "left" in match[1] else 1
        return min(match[2], match[3], key=lambda thing: position(thing, axis))
    if match := re.fullmatch(r"Is the (.*) (to the left of|to the right of|above|below) the (.*)\?", question):
        axis = 0 if "to the" in match[2] else 1
        gap = position(match[3], axis) - position(match[1], axis)
        return "yes" if (gap > 0) == (match[2] in ("to the left of", "above")) else "no"
    match = re.fullmatch(r"What colour is the (.*)\?", question)
    found = [name for name in names if may_be_called(match[1], name)]
    assert len(found) == 1
    return found[0].split(" ")[0]


@settings(max_examples=150)
@given(MENTIONS, st.integers(0, 1000))
def test_every_answer_is_what_a_second_look_finds(drawn, seed):
    vocabulary = [at(category(name), 0, 0).category for name in ("lion", "crow", "black crow", "kangaroo", "bee")]
    for one in ask(np.random.default_rng(seed), mentions_of(drawn), [], vocabulary, SIZE):
        assert one["answer"] == slow_answer(one["question"], drawn), one


def test_all_types_of_questions_are_asked():
    mentions = [at(category("red kangaroo"), 20, 20), at(SAW, 80, 80)]
    types = Counter(one["type"] for one in ask(np.random.default_rng(0), mentions, [], [LION], SIZE))
    assert types == {"count": 2, "presence": 2, "spatial": 4, "colour": 1}


def test_a_name_is_not_counted_when_it_is_hidden_or_another_thing_may_be_called_so():
    animals = ("How many animals are there?", "1")
    crows = ("How many crows are there?", "1")
    assert {animals, crows} <= asked([at(CROW, 50, 50)])
    assert not {animals, crows} & asked([at(CROW, 50, 50)], hidden=[CROW])
    assert animals not in asked([at(CROW, 50, 50)], hidden=[LION])
    questions = {question for question, _ in asked([at(CROW, 20, 50), at(category("black crow"), 80, 50)])}
    assert not {"How many crows are there?", "How many black crows are there?"} & questions
    assert "How many animals are there?" in questions


def test_what_can_not_be_counted_is_not_counted():
    def counts(kind):
        return {question for question, _ in asked([at(kind, 50, 50)]) if "many" in question}

    assert counts(BROCCOLI) == {"How many foods are there?"}
    assert counts(Category("rock", "object", "", "a", "rocks", frozenset({"rock"}))) == {"How many rocks are there?"}


def test_no_is_only_said_of_what_nothing_in_the_image_may_be_called():
    vocabulary = [CROW, LION, category("drake", also=("duck",)), category("duck")]
    drake = at(vocabulary[2], 50, 50)
    said = {question for question, answer in asked([drake], hidden=[LION], vocabulary=vocabulary) if answer == "no"}
    assert said == {"Is there a crow in the picture?"}


def test_two_things_that_may_be_called_the_same_are_never_told_apart():
    def choices(mentions, hidden=()):
        return {question for question, _ in asked(mentions, hidden) if " or " in question}

    penguins = [at(category("penguin"), 20, 20), at(category("little penguin"), 80, 80)]
    assert choices([*penguins, at(SAW, 20, 80)]) == set()
    assert choices([at(CROW, 20, 20), at(SAW, 80, 80)]) != set()
    assert choices([at(CROW, 20, 20), at(SAW, 80, 80)], hidden=[CROW]) == set()


def test_positions_are_asked_for_only_where_they_are_clear():
    questions = {question for question, _ in asked([at(CROW, 20, 50), at(SAW, 80, 55)])}
    assert any("further to the left" in question for question in questions)
    assert not any("higher up" in question or "above" in question for question in questions)


def test_a_colour_is_asked_for_only_of_the_one_thing_that_may_be_meant():
    red, grey = category("red kangaroo"), category("grey kangaroo")
    assert ("What colour is the kangaroo?", "red") in asked([at(red, 20, 20)])
    assert not any("colour" in question for question, _ in asked([at(red, 20, 20), at(grey, 80, 80)]))
    assert not any("colour" in question for question, _ in asked([at(red, 20, 20)], hidden=[grey]))


def test_an_image_of_nothing_gets_a_no_and_nothing_else():
    assert asked([], vocabulary=[CROW]) == {("Is there a crow in the picture?", "no")}
