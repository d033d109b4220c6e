"""Phrases of a text: the names of a class list, those that a user names, and the noun phrases of a caption."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from ..errors import InputError
from ..structures import CharSpan
from .caption_grammar import (
    ADJECTIVES,
    AMOUNTS,
    AUXILIARIES,
    BREAKS,
    DETERMINERS,
    PLACE_WORDS,
    PLACES,
    POSSESSIVES,
    PRONOUNS,
    find_words,
    parse_phrases,
)

# Between the names of a class list. Those that are clear do not end a sentence or join the parts of one.
_BETWEEN_NAMES = re.compile(
    r"(?P<clear>[;\n\r\v\f\x1c-\x1e\x85\u2028\u2029]|(?<=\s)\.(?=\s|\Z))|\.(?!\d)|(?<!\d)[.,]|,(?!\d{3}(?!\d))"
)
_REMARK = re.compile(r"\([^()]*\)")
_ABBREVIATION = re.compile(r"\b(?:[^\W\d_]\.){2,}|\b(?:St|Dr|Mr|Mrs|Ms|Jr)\.(?=\s)")
_LINE_NUMBER = re.compile(r"^[ \t]*\d{1,4}[.)][ \t]+", re.MULTILINE)
# A character that is neither a letter nor white space.
_MASK = "\u2060"
# Quotes, brackets and bullets.
_AROUND_NAMES = frozenset("\"'`“”‘’[]{}-–—•*·:!\u2060")
_MAX_NAME_WORDS = 8
_MAX_NAME_LENGTH = 100
_NEVER_IN_NAMES = (AUXILIARIES - {"can"}) | PRONOUNS | POSSESSIVES | (DETERMINERS - {"all", "both", "no"})
_RARE_IN_NAMES = _NEVER_IN_NAMES | (BREAKS - frozenset("of and or can saw not".split()))


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


def listed_names(text: str) -> list[CharSpan]:
    """Find the names of a class list that is given as text, such as "apple . orange . banana".

    Full stops, commas, semicolons and line breaks stand between names. A name may be a word that is an adjective or a
    verb elsewhere ("orange", "can"), hold underscores and a remark in parentheses, and stand in quotes or after a
    bullet.

    Returns:
        Half-open character ranges in the order of the text. Empty for a single name, and for what may be a caption or a
        question: a name has no article, possessive or pronoun, no form of "be" or "have", and at most 8 words. Where
        some names are kept apart by a comma, or by a full stop right behind a word, names have no preposition but "of"
        either, and no verb between two nouns.
    """
    masked = _mask(text)
    spans, is_clear = _cut(text, masked)
    if not is_clear and spans:
        spans = [*spans[:-1], *_cut_at_and(masked, spans[-1])]
    names = [masked[begin:end].replace(_MASK, " ") for begin, end in spans]
    if len(names) < 2 or "?" in masked or not all(_may_be_listed(name, is_clear) for name in names):
        return []
    kinds = [[word.text in ADJECTIVES for word in find_words(name)] for name in names]
    # "big, brown dog" is one thing.
    is_chain = all(map(all, kinds[:-1])) and kinds[-1][:1] == [True] and not all(kinds[-1])
    return [] if is_chain and not is_clear else spans


def noun_phrases(caption: str) -> list[tuple[str, list[CharSpan]]]:
    """Find the things that a caption names.

    A phrase is an optional determiner or number, adjectives, and nouns: "a red fire hydrant". It ends at prepositions,
    conjunctions, verbs, pronouns and punctuation; possessives are not part of it. Adjectives may be joined, as in "a
    black and white cat". Places in the image ("in the background") and bare amounts ("a lot of") are not phrases. In a
    class list every name is a phrase, see ``listed_names``.

    Args:
        caption: English text in any case.

    Returns:
        In the order of the caption, each phrase in the caption's own spelling with one half-open character range. A
        phrase that occurs twice comes twice. Empty for a caption without a noun.

    Source: stands in for the tagger and chunk grammar of the official demo, which then searches the lower-cased caption
    for every phrase; "two dogs" is one phrase here, where the official grammar leaves numbers out.
    """
    spans = listed_names(caption)
    if not spans:
        spans = parse_phrases(caption)
        pieces, is_clear = _cut(caption, _mask(caption))
        if is_clear and len(pieces) > 1:
            # "a red car . can . orange": what stands by itself is a name, whatever it is elsewhere.
            lost = [piece for piece in pieces if not any(piece[0] < end and begin < piece[1] for begin, end in spans)]
            spans = sorted([*spans, *(piece for piece in lost if _may_be_listed(caption[slice(*piece)], True))])
    return [(caption[begin:end], [(begin, end)]) for begin, end in spans]


def _mask(text: str) -> str:
    """Return a text of the same length in which remarks, abbreviations and numbers of lines separate nothing."""
    masked = _REMARK.sub(lambda match: _MASK * len(match.group()), text)
    masked = _ABBREVIATION.sub(lambda match: "x" * len(match.group()), masked)
    return _LINE_NUMBER.sub(lambda match: "\n" * len(match.group()), masked) if "\n" in text else masked


def _cut(text: str, masked: str) -> tuple[list[CharSpan], bool]:
    """Cut a text where names may end; tell whether all cuts are clear: line breaks, semicolons, or " . "."""
    spans: list[CharSpan] = []
    begin, is_clear, clear_here = 0, True, False
    for match in [*_BETWEEN_NAMES.finditer(masked), None]:
        end = len(text) if match is None else match.start()
        while begin < end and (text[begin].isspace() or text[begin] in _AROUND_NAMES):
            begin += 1
        while begin < end and (text[end - 1].isspace() or text[end - 1] in _AROUND_NAMES):
            end -= 1
        if begin < end:
            is_clear = is_clear and (clear_here or not spans)
            spans.append((begin, end))
            clear_here = False
        if match is not None:
            begin, clear_here = match.end(), clear_here or match["clear"] is not None
    return spans, is_clear


def _cut_at_and(masked: str, span: CharSpan) -> list[CharSpan]:
    """Cut the last of several names at "and" and "or", except between adjectives: "black and white cat"."""
    words = find_words(masked[: span[1]])
    words = [word for word in words if word.begin >= span[0]]
    spans, begin = [], span[0]
    for index, word in enumerate(words):
        if word.text not in ("and", "or") or index + 1 == len(words):
            continue
        before = [other for other in words[:index] if other.begin >= begin]
        joins = words[index + 1].text in ADJECTIVES and index + 2 < len(words)
        if before and joins and all(other.text in ADJECTIVES for other in before):
            continue
        if before:
            spans.append((begin, before[-1].end))
        begin = words[index + 1].begin
    return [*spans, (begin, span[1])]


def _may_be_listed(name: str, is_clear: bool) -> bool:
    """Tell whether a text without separators can be a name of a class list."""
    words = find_words(name)
    if not 1 <= len(words) <= _MAX_NAME_WORDS or len(name) > _MAX_NAME_LENGTH:
        # Pictographs are no words.
        return not words and any(unicodedata.category(letter) == "So" and letter != "\ufffd" for letter in name)
    texts = {word.text for word in words}
    if is_clear or "_" in name:
        return not texts & _NEVER_IN_NAMES
    return not texts & _RARE_IN_NAMES and (len(parse_phrases(name)) < 2 or bool(texts & {"of", "and", "or"}))


def names_no_thing(words: Sequence[str], following: str) -> bool:
    """Tell whether words are a place in the image ("the background") or a bare amount ("a lot" before "of").

    Every finder of phrases uses it, so that all leave out the same phrases.

    Args:
        words: The words of a noun phrase, at least one, in lower case.
        following: The word after them in lower case, "" at the end.
    """
    if words[-1] in AMOUNTS and following == "of":
        return True
    return words[-1] in PLACES and all(word in PLACE_WORDS for word in words[:-1])


def without_determiner(text: str, span: CharSpan) -> CharSpan:
    """Return a half-open character range of a text without a determiner at its beginning, unless that is all."""
    words = text[span[0] : span[1]].split(maxsplit=1)
    if len(words) < 2 or words[0].lower() not in DETERMINERS:
        return span
    return span[1] - len(words[1]), span[1]
