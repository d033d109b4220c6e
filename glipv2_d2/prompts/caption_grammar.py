"""The grammar of captions: noun phrases by closed word lists and the shape of words, without a tagger or a model.

English has few function words, and captions use few verbs. The words between two of them are a phrase. The lists below
hold the words that end a phrase, and a few shapes (-ing, -ed, -ly, -s before a determiner) tell verbs and adverbs from
nouns. An unknown word counts as a noun, so that rare objects are never lost.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from ..structures import CharSpan

DETERMINERS = frozenset("a an the this that these those some any each every another both all no".split())
POSSESSIVES = frozenset("my your his her its our their whose".split())
_NUMBERS = frozenset(
    "one two three four five six seven eight nine ten eleven twelve dozen several many few multiple various".split()
)
AUXILIARIES = frozenset(
    "is are was were be been being am has have had having do does did can could will would may might must should "
    "isn't aren't wasn't weren't don't doesn't didn't can't couldn't won't wouldn't hasn't haven't".split()
)
# Words after which a verb comes in its base form.
_BEFORE_BASE_VERB = frozenset("to can could will would may might must should do does did not i you we they".split())

_PREPOSITIONS = frozenset(
    """
    of in on at by with without within from to into onto upon over under above below beneath underneath beside besides
    between among amongst behind beyond before after during against along alongside across around about near through
    throughout toward towards off out outside inside up down atop aboard past via per like unlike as for than except
    despite until since next close adjacent opposite
    """.split()
)
PRONOUNS = frozenset(
    """
    i you he she it they we me him them us who whom which what there here it's he's she's they're there's that's who's
    how why
    himself herself itself themselves someone somebody something everyone everybody everything anyone anything
    """.split()
)
# Prepositions, conjunctions, pronouns, adverbs of place and time, and verb forms that are rarely nouns in a caption.
BREAKS = (
    AUXILIARIES
    | _PREPOSITIONS
    | PRONOUNS
    | frozenset(
        """
    and or but nor so yet while when where because if though although then whereas plus please
    not also just only still already even too again away together apart ahead nearby forward backward upward downward
    outdoors indoors overhead around almost maybe perhaps now today instead
    sat stood ran rode wore held ate went came flew lay lies threw caught took got gave made saw seen shown worn
    taken held hung built driven ridden thrown given eaten drawn laid kept stuck sits wears eats goes gets has let lets
    """.split()
    )
)

ADJECTIVES = frozenset(
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
_ADJECTIVES_OR_NOUNS = frozenset("light square orange male female antique violet".split())
# After an article any other word of ``BREAKS`` is a thing: "a saw", "a can", "the inside of a car".
_NEVER_NOUNS = frozenset("and or not also just only now almost perhaps".split())
# Before "can" they name what it holds or is made of; after another noun "can" is a verb: "a dog can swim".
_CANS = frozenset(
    "trash garbage rubbish beer soda pop cola coke tin tuna soup milk coffee oil gas paint spray aerosol watering "
    "metal steel aluminum aluminium".split()
)
# In capitals, before a noun, they are no pronouns: "US flag", "IT equipment".
_ACRONYMS = frozenset("us it who".split())
_DEGREES = frozenset("very really quite rather extremely somewhat fairly slightly mostly".split())
_LY_NOUNS = frozenset(
    "family butterfly dragonfly fly firefly belly jelly lily ally bully dolly holly supply grizzly doily assembly "
    "monopoly gully italy july".split()
)

_ING_NOUNS = frozenset(
    """
    building ceiling painting clothing wedding ring king string thing something nothing wing swing spring evening
    morning railing awning lightning earring icing duckling sling herring pudding stuffing topping opening siding
    flooring bedding drawing sibling dumpling seasoning frosting dressing piping wiring lighting meeting crossing ping
    legging
    """.split()
)
# In "living room" the first word names a kind of thing, also after another noun ("a wall vending machine").
_ING_MODIFIERS = frozenset("parking dining living vending bowling steering".split())
# These do so at the start of a phrase, but are what somebody does after a noun ("a woman washing dishes").
_ING_MODIFIERS_AT_START = _ING_MODIFIERS | frozenset(
    "running swimming fishing shopping boxing sleeping frying cutting washing sewing mixing measuring rolling skating "
    "ironing baking serving cooking hiking climbing wrapping sailing racing rowing rocking folding diving shaving "
    "watering knitting".split()
)
_ED_NOUNS = re.compile(r".*(?:eed|bed|shed|sled|moped|hundred)$|red$")

# Base forms; the forms in -s follow from them. As nouns most of these are rare in captions, or come after a determiner.
_VERBS = frozenset(
    """
    see sit stand walk run ride hold wear eat drink jump play look watch wait talk smile laugh pose carry pull push leap
    drive lean hang rest read write use make take get give go come fly catch throw kick hit swing swim surf ski skate
    climb cross enter leave reach touch feed graze sleep lie lay kneel crouch perform prepare cook bake serve cut
    chop pour wash brush clean fix build paint draw point stare gaze approach follow chase race compete celebrate dance
    sing speak work study enjoy share try attempt appear seem contain feature include show display surround cover
    overlook face decorate fill grow float sail row travel move turn bend stretch squat bite chew lick sniff bark hug
    kiss greet
    """.split()
)
# At the start of a text these ask for what follows: "find the dog".
_REQUESTS = frozenset("find locate detect identify segment".split())
# After a noun these are verbs before a determiner alone, or where the noun can act: "palm leaves", "a man drinks beer".
_PLURALS_OR_VERBS = frozenset("leaves skates skis watches drinks brushes swings covers flies works".split())
_ACTORS = frozenset(
    "man woman person boy girl child kid guy lady baby player rider skier surfer skater worker "
    "dog cat bird horse".split()
)
_VERBS_S = frozenset(
    verb[:-1] + "ies" if re.search("[^aeiou]y$", verb) else verb + ("es" if re.search("(s|sh|ch|x|o)$", verb) else "s")
    for verb in _VERBS
)
# In the plural, but no one who acts: "a sports watch".
_PLURAL_MODIFIERS = frozenset("sports news".split())
_PLURALS = frozenset("people men women children kids police cattle sheep geese mice feet teeth".split())

# "in the background", "in front of": places in the image, not things.
PLACES = frozenset(
    "front top side sides left right middle center centre back bottom background foreground distance rear midst".split()
)
PLACE_WORDS = frozenset("the left right other far front back upper lower".split())
# "a lot of people" are people.
AMOUNTS = frozenset("lot lots number variety kind kinds type types sort sorts bit couple pair bunch".split())

_WORD = re.compile(r"\d+(?:\.\d+)+|[^\W_]+(?:['’&-][^\W_]+)*(?:\+\+|#(?!\w))?")


class Word(NamedTuple):
    """A word of a text, with its half-open character range and what stands before it."""

    text: str  # lower case
    begin: int
    end: int
    mark: str  # punctuation between the word before and this one


class _Member(NamedTuple):
    kind: str  # determiner, number, adjective, adverb, join or noun
    word: Word


def parse_phrases(caption: str) -> list[CharSpan]:
    """Return the half-open character ranges of the noun phrases of sentences."""
    words = find_words(caption)
    # In a text of capitals alone "US" may be a pronoun.
    acronyms = _ACRONYMS if any(letter.islower() for letter in caption) else frozenset()
    spans: list[CharSpan] = []
    run: list[_Member] = []
    for index, word in enumerate(words):
        following = words[index + 1] if index + 1 < len(words) else None
        if word.mark and not (word.mark == "," and _may_join(run, word)):
            _close(run, spans)
        kind = _kind(words, index, run)
        if kind == "break" and following is not None and not following.mark:
            before_content = _is_content(following.text) or following.text in ("and", "or")
            if word.text in acronyms and caption[word.begin : word.end].isupper() and before_content:
                kind = "noun"
            elif word.text in ("and", "or") and _may_join(run, following):
                kind = "join"
        _extend(run, _Member(kind, word), spans)
    _close(run, spans)
    return spans


def find_words(caption: str) -> list[Word]:
    """Return the words of a text; an underscore is a space."""
    words = []
    end = 0
    for match in _WORD.finditer(caption):
        text = match.group().lower().replace("’", "'")
        words.append(Word(text, match.start(), match.end(), caption[end : match.start()].strip().strip("_")))
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


def _may_join(run: list[_Member], word: Word) -> bool:
    """Tell whether a comma or "and" before ``word`` joins two adjectives of one phrase."""
    if not run or _has_noun(run) or run[-1].kind != "adjective":
        return False
    return word.text in ADJECTIVES or word.text.endswith("ed")


def _kind(words: Sequence[Word], index: int, run: list[_Member]) -> str:
    """Classify a word by the lists, its shape, and its neighbours; ``run`` holds the words right before it."""
    word, text = words[index], words[index].text
    following = words[index + 1] if index + 1 < len(words) else None
    # "" at the start and after punctuation.
    previous = "" if index == 0 or word.mark else words[index - 1].text
    next_text = "" if following is None or following.mark else following.text
    before_content = _is_content(next_text)
    if text in DETERMINERS:
        return "determiner"
    if text in BREAKS or text in POSSESSIVES:
        return "noun" if text in BREAKS and _is_unusual_noun(text, previous, next_text, run) else "break"
    if text in _NUMBERS or text.isdigit():
        # "platform 9" and "iPhone 12" end in their number.
        return "noun" if text.isdigit() and _has_noun(run) and not before_content else "number"
    if text in AMOUNTS and next_text == "of":
        return "place"
    if text in PLACES and not before_content and all(member.word.text in PLACE_WORDS for member in run):
        return "place"
    if text in _ADJECTIVES_OR_NOUNS and not before_content and _ends_a_thing(words, index, run):
        return "noun"
    if text in ADJECTIVES or re.fullmatch(r".{2,}(?:ful|ous|less|'s)", text):
        return "adjective"
    if text in _DEGREES or (text.endswith("ly") and text not in _LY_NOUNS and "'" not in text):
        return "adverb"
    if _is_verb(text, previous, next_text, before_content, run):
        return "break"
    if re.fullmatch(r".{2,}(?:ing|ed)", text) and before_content and not _has_noun(run) and text not in _ING_NOUNS:
        return "noun" if _ED_NOUNS.fullmatch(text) else "adjective"
    return "noun"


def _is_unusual_noun(text: str, previous: str, next_text: str, run: list[_Member]) -> bool:
    """Tell whether a word that ends phrases nearly everywhere names a thing here: "a can of soda", "a hand saw"."""
    if previous in ("a", "an", "the"):
        return text not in _NEVER_NOUNS
    if text == "saw":
        ends = not next_text or next_text in BREAKS
        return ends and bool(run) and not _is_plural(run[-1].word.text) and run[-1].word.text not in _ACTORS
    if text == "can":
        starts = not previous and next_text in ("", "of", "opener")
        return previous in _CANS or starts or (bool(run) and not _has_noun(run))
    return False


def _ends_a_thing(words: Sequence[Word], index: int, run: list[_Member]) -> bool:
    """Tell whether a word that may be an adjective is the noun of its phrase: "a traffic light", "red light, ..."."""
    if _has_noun(run):
        return True
    if not run:
        return index == 0 or bool(words[index].mark)
    before = index - len(run) - 1
    # "the cat is orange", "the wall is dark orange"
    is_predicate = before >= 0 and words[before].text in AUXILIARIES and not (run and run[0].kind == "determiner")
    return not is_predicate


def _is_content(text: str) -> bool:
    """Tell whether a word can go on a phrase; "" cannot."""
    if not text or text in BREAKS or text in DETERMINERS or text in POSSESSIVES:
        return False
    return not text.endswith("ly") or text in _LY_NOUNS or text in ADJECTIVES


def _is_verb(text: str, previous: str, next_text: str, before_content: bool, run: list[_Member]) -> bool:
    after_noun = _has_noun(run)
    before_determiner = next_text in DETERMINERS or next_text in POSSESSIVES
    if text in _ING_NOUNS:
        # "a crossing", but "a man crossing the street".
        return before_determiner and (after_noun or previous.endswith("ly") or previous in AUXILIARIES)
    if len(text) > 4 and text.endswith("ing"):
        if after_noun:
            return not (before_content and text in _ING_MODIFIERS)
        if run:  # "a sleeping dog", "the crossing"
            return not before_content and run[0].kind != "determiner"
        starts_compound = text in _ING_MODIFIERS_AT_START and (before_content or next_text == "can")
        return previous in AUXILIARIES or not starts_compound
    if len(text) > 3 and text.endswith("ed") and not _ED_NOUNS.fullmatch(text):
        # "a parked car", "a snow covered mountain", but "a car parked on the street".
        return not before_content
    if text in _VERBS_S or _is_plural(text):
        # A noun does not stand between a noun and a determiner: "a cat licks the plate".
        is_verb = text in _VERBS_S and (text not in _PLURALS_OR_VERBS or (bool(run) and run[-1].word.text in _ACTORS))
        return after_noun and (is_verb or before_determiner)
    if previous in ("", "please") and (text in _REQUESTS or (text in _VERBS and before_determiner)):
        return bool(next_text)
    if text in _VERBS:
        after_subject = after_noun and _is_plural(run[-1].word.text) and previous not in _PLURAL_MODIFIERS
        return previous in _BEFORE_BASE_VERB or after_subject
    return False


def _is_plural(text: str) -> bool:
    return text in _PLURALS or (text.endswith("s") and not text.endswith(("ss", "us", "is")))
