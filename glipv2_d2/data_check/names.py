"""Findings about names: the model reads them, so they have to be words that it knows and can tell apart."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from ..errors import InputError
from ..plurals import agreeing, counted
from ..prompts.builder import check_vocabulary, clean_name, namesakes
from ..prompts.tokenizer import PromptTokenizer
from .findings import Finding

# Words of one class in a yaml file of own data; see docs/own_data.md.
_SAY = "say it in words, in a yaml file of the set"


def name_findings(names: Sequence[str], prompts: Mapping[str, str], tokenizer: PromptTokenizer) -> Iterator[Finding]:
    """Yield what was found about the names of a set.

    Args:
        names: Its classes.
        prompts: What prompts say for some of them, which is then what counts.
        tokenizer: The tokenizer of the model's text encoder.
    """
    texts = [prompts.get(name, name) for name in names]
    yield from _unusable(texts)
    own = [name for name in names if name not in prompts]
    yield from _found(own, "warning", "names of numbers", "no words", _SAY, _is_number)
    yield from _found(
        own, "warning", "abbreviated names", "abbreviated", _SAY, lambda n: _is_abbreviation(n, tokenizer)
    )
    unknown = {text: tokenizer.unknown_pieces(clean_name(text)) for text in texts}
    yield from _found(
        texts,
        "warning",
        "unknown names",
        "not in the vocabulary of the model",
        "say it in English",
        lambda n: unknown[n],
    )
    foreign = [text for text in texts if not text.isascii() and not unknown[text]]
    advice = "say it in English, if it is not a name of its own"
    yield from _found(foreign, "note", "names with accents", "written with letters that English lacks", advice, bool)
    controls = [text for text in texts if not text.isprintable()]
    what, advice = "written with hidden characters", "write it without them"
    yield from _found(controls, "warning", "names with control characters", what, advice, bool)
    yield from _alike(texts, tokenizer)
    yield from _found(
        own, "note", "names with underscores", "written with underscores, which become spaces", "", lambda n: "_" in n
    )
    joined = [name for name in own if _parted(name) != name]
    if joined:
        shown = tuple(f'{name}: "{_parted(name)}"' for name in joined)
        text = f"{counted(len(joined), 'name')} {agreeing(len(joined), 'is', 'are')} words written as one"
        yield Finding(
            "note", "joined names", len(joined), text, f"{_SAY} ({_mapping(joined[0], _parted(joined[0]))})", shown
        )


def prompt_tokens(names: Sequence[str], tokenizer: PromptTokenizer, separator: str, chunk_size: int) -> list[int]:
    """Return the number of tokens of each prompt that asks for a part of the names; none if no prompt can."""
    try:
        prompts = tokenizer.tokenize_names(list(names), separator=separator, chunk_size=chunk_size, with_blank=True)
    except InputError:
        return []
    return [len(prompt) for prompt in prompts]


def prompt_findings(num_tokens: Sequence[int], names: Sequence[str], max_tokens: int) -> Iterator[Finding]:
    """Yield how the names fit into prompts."""
    if len(num_tokens) > 1:
        yield Finding(
            "note",
            "several prompts",
            len(num_tokens),
            f"the {len(names)} names take {len(num_tokens)} prompts of up to {max_tokens} tokens, so each image is "
            f"looked at {len(num_tokens)} times",
        )


def _unusable(texts: Sequence[str]) -> Iterator[Finding]:
    blank = [text for text in texts if not clean_name(text).strip()]
    if blank:
        number = counted(len(blank), "class")
        yield Finding("warning", "empty names", len(blank), f"{number} without a name cannot be learned", "name it")
    try:
        check_vocabulary([text for text in texts if clean_name(text).strip()] or ["object"])
    except InputError as error:
        yield Finding("stop", "unusable names", 1, str(error))


def _found(names: Sequence[str], severity: str, kind: str, what: str, advice: str, keep) -> Iterator[Finding]:
    kept = [name for name in names if name.strip() and keep(name)]
    if kept:
        number = counted(len(kept), "name")
        way_out = f"{advice} ({_mapping(kept[0], '...')})" if advice == _SAY else advice
        text = f"{number} {agreeing(len(kept), 'is', 'are')} {what}"
        yield Finding(severity, kind, len(kept), text, way_out, tuple(map(repr, kept)))


def _alike(texts: Sequence[str], tokenizer: PromptTokenizer) -> Iterator[Finding]:
    """Yield findings about names that the model, or a person, takes for the same."""
    cleaned = [clean_name(text) for text in texts]
    known = namesakes(texts)
    same = []
    for group in tokenizer.same_tokens(cleaned):
        if cleaned[group[0]].strip() and any(row not in known.get(group[0], ()) for row in group[1:]):
            same.append(group)
    if same:
        yield Finding(
            "stop",
            "names with equal tokens",
            len(same),
            "the model cannot tell some names apart",
            "rename them",
            tuple(" = ".join(repr(texts[row]) for row in group) for group in same),
        )
    told = {tuple(sorted(group)) for group in same}
    pairs = [pair for pair in alike_names(texts) if not any(set(pair) <= set(group) for group in told)]
    if pairs:
        yield Finding(
            "warning",
            "alike names",
            len(pairs),
            f"{len(pairs)} {agreeing(len(pairs), 'pair', 'pairs')} of names differ by spelling alone",
            "if they are one class, give them one name",
            tuple(f"{texts[one]!r} and {texts[other]!r}" for one, other in pairs),
        )


def alike_names(names: Sequence[str]) -> list[tuple[int, int]]:
    """Return pairs of rows whose names differ by case, separators, plural, one letter, or two letters exchanged.

    The last two count in names of at least six letters that begin with the same one: "house" and "mouse" are not alike.
    Numbers in names must be equal.
    """
    rows_of: dict[tuple[str, str, str], list[int]] = {}
    for row, name in enumerate(names):
        letters = re.sub(r"[\W\d_]", "", name.lower())
        digits = re.sub(r"\D", "", name)
        plurals = {letters, letters.removesuffix("s"), letters.removesuffix("es")} if len(letters) > 3 else {letters}
        forms = {("whole", form) for form in plurals if form}
        if len(letters) >= 6:
            forms |= {("part", letters), *(("part", letters[:k] + letters[k + 1 :]) for k in range(1, len(letters)))}
        for kind, form in forms:
            rows_of.setdefault((kind, form, digits), []).append(row)
    return sorted({(one, other) for rows in rows_of.values() for one in rows for other in rows if one < other})


def _parted(name: str) -> str:
    """Return a name like "trafficLight" as words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", name)


def _is_number(name: str) -> bool:
    return re.fullmatch(r"(class|label|category|obj|object)?[\W_]*\d+", name.strip(), re.IGNORECASE) is not None


def _is_abbreviation(name: str, tokenizer: PromptTokenizer) -> bool:
    """Tell whether a name has a word of two to five capitals, or one without a vowel, that the vocabulary lacks."""
    words = re.findall(r"[^\W\d_]+", name)
    # Where all words are capitals, only short ones may be abbreviations.
    longest = 4 if name.isupper() else 5
    return any(
        len(word) > 1
        and word.isascii()
        and ((len(word) <= longest and word.isupper()) or not re.search(r"[aeiouy]", word.lower()))
        and tokenizer.count_tokens(word) > 1
        for word in words
    )


def _mapping(name: str, text: str) -> str:
    return f"names: {{{name}: {text}}}"
