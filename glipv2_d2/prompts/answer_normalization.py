"""The form in which answers to visual questions are compared: without articles, numerals as digits, and so on."""

from __future__ import annotations

import re

_ARTICLES = frozenset(("a", "an", "the"))

_NUMERALS = {
    **{"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"},
    **{"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"},
}

# If one apostrophe of these is missing, it is put back. Contractions that become another word without it are left out
# ("well", "were", "its", "hell", "shed"), and so are those with a capital letter, since answers are in lower case.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
""".split()

_APOSTROPHES = {
    word[:position] + word[position + 1 :]: word
    for word in _CONTRACTIONS
    for position, character in enumerate(word)
    if character == "'"
}

# Apostrophes and colons stay: they tell possessives from plurals, and the time.
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# The point of a decimal stays.
_PERIOD = re.compile(r"\.(?!\d)")


def normalize_answer(answer: str) -> str:
    """Return the normal form of an answer; two answers are the same if and only if their normal forms are equal.

    The form is in lower case, without the articles "a", "an" and "the", with "none" and "zero" to "ten" as digits, with
    the apostrophes that contractions lack, and without periods that no digit follows. Every other mark of punctuation,
    except apostrophe and colon, becomes a space; it becomes nothing if the answer has a space beside such a mark, or a
    comma between two digits. Words are one space apart. Articles and punctuation alone give the empty string.

    Source: the evaluation of VQA (Antol et al., 2015; Goyal et al., 2017), ``processPunctuation`` and
    ``processDigitArticle`` of its code, with the marks in the order in which that code has them. Its table turns
    "somebody'd" into "somebodyd"; here it is the other way round, which makes the same answers equal. Its limit of 32
    periods is left out.
    """
    # Other white space than a blank would not count as a space beside a mark.
    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    has_number = _COMMA_IN_NUMBER.search(answer) is not None
    text = answer
    for mark in _PUNCTUATION:
        vanishes = has_number or f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if vanishes else " ")
    words = [_NUMERALS.get(word, word) for word in _PERIOD.sub("", text).lower().split()]
    return " ".join(_APOSTROPHES.get(word, word) for word in words if word not in _ARTICLES)
