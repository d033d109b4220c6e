"""Words of captions as the published scores count them: by rules like those of the Penn Treebank."""

from __future__ import annotations

import re

# Typographic characters, as the treebank writes them; quotes of any kind are left out in the end.
_CHARACTERS = str.maketrans(
    {
        **{"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "--", "\u2014": "--", "\u2026": "..."},
        **{"\u00a3": "#", "\u20ac": "$", "\u00a2": " cents "},
        **{"\u00bd": " 1/2 ", "\u00bc": " 1/4 ", "\u00be": " 3/4 "},
    }
)
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"'}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}

# Tokens that are left out. "!!" or "?!" is one token of its own, and stays.
_PUNCTUATION = frozenset(("''", "'", "``", "`", '"', ".", "?", "!", ",", ":", "-", "--", "...", ";"))

# Keep their period. "no" and "fig" do before a number only.
_ABBREVIATIONS = (
    "mr|mrs|ms|messrs|dr|drs|prof|rev|hon|sen|rep|gov|gen|col|capt|cpl|lt|sgt|cmdr|adm|pres|jr|sr|"
    "st|ave|blvd|rd|ft|mt|inc|co|corp|ltd|univ|bros|dept|assn|est|etc|vs|ph\\.d|"
    "jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tue|wed|thu|fri"
)

_TOKEN = re.compile(
    rf"""
      </?[a-z]+(?:\s[^<>]*)?>                                 # a tag of a markup language
    | (?:https?://|www\.)[^\s"<>|()]*[^\W_]
    | [\w.+-]+@\w+(?:\.\w+)+                                 # an address of mail
    | [@\#][a-z]\w*                                          # a handle, a hashtag
    | \.{{3,}} | -{{2,}} | [!?]+ | \*+ | _+                  # runs of one mark
    | (?<=[\w.])'(?:s|m|d|re|ve|ll)(?!\w)                    # it 's
    | [a-z]+?(?=n't(?!\w)) | n't(?!\w)                       # do n't
    | can(?=not\b) | (?:gon|wan)(?=na\b) | got(?=ta\b) | (?:lem|gim)(?=me\b)
    | '(?:n'|(?:em|cause|til|\d\ds?)(?!\w)|t(?=is\b|was\b))  # 'em, the '80s, 't is
    | [dol]'(?!(?:s|m|d|re|ve|ll)\b)[a-z]+ | ma'am\b | y'(?=all\b) | ol'
    | (?<!\w)(?:{_ABBREVIATIONS})\. | (?<!\w)(?:no|fig)\.(?=\s*\d)
    | [a-z](?:\.[a-z])+\.?(?!\w) | (?<![\w'])[a-z]\.(?![\w.])  # u.s., an initial
    | (?<!\S)[+-]\d*(?:[.,:]?\d)+
    | \d+(?:[.,:]\d+)+(?:-\d+(?:[.,]\d+)*)? | \.\d+          # 1,000.50, 2:30
    | [^\W_]+(?:[-/&@_][^\W_]+|(?<=[^\W\d_])[.!?](?=[^\W\d_])[^\W_]+)*
    | \S
    """,
    re.VERBOSE,
)


def tokenize_caption(caption: str) -> list[str]:
    """Split a caption into lower-case words, without punctuation; empty for a text of punctuation alone.

    Contractions come apart ("do n't", "man 's"); words with hyphens, decimals, times and abbreviations with their
    periods stay whole; brackets become "-lrb-" and the like, and stay.

    Source: ``PTBTokenizer`` of pycocoevalcap, which runs version 3.4.1 of the Stanford tokenizer and leaves the same
    marks out. For captions these rules give the same words; they differ from it in faces such as ":)", in the period of
    a rare abbreviation, in rare contractions ("more'n", "'n"), in a backquote for an apostrophe, in raised digits, and
    in some marks between words without a space.
    """
    text = caption.lower()
    for entity, character in _ENTITIES.items():
        text = text.replace(entity, character)
    tokens = _TOKEN.findall(text.translate(_CHARACTERS))
    tokens = ["..." if token.startswith("...") else "--" if token.startswith("--") else token for token in tokens]
    return [_BRACKETS.get(token, token) for token in tokens if token not in _PUNCTUATION]
