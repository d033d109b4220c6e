"""The texts by which prompts ask for the names of a dataset: another word, or descriptive words around the name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..errors import InputError
from ..structures import Prompt, TokenizedPrompt
from .builder import clean_name, namesakes, prompt_from_names
from .tokenizer import PromptTokenizer

# For each name the text before it, the text in its place, and the text after it.
PromptTexts = Mapping[str, tuple[str, str, str]]


class NameText(NamedTuple):
    """The text of one name in a prompt; boxes are matched to ``name`` alone.

    Attributes:
        name: The word or words of the category.
        prefix: Text before the name, such as "there is a ".
        suffix: Text after the name, such as " , which is black and white".
    """

    name: str
    prefix: str = ""
    suffix: str = ""

    @property
    def full(self) -> str:
        """The whole text."""
        return self.prefix + self.name + self.suffix


def name_texts(names: Sequence[str], prompt_texts: PromptTexts) -> list[NameText]:
    """Look up the texts of the names of a dataset, in their order.

    Args:
        names: Names of the categories.
        prompt_texts: Prefix, text and suffix of some of the names; ``prompt_texts`` in the metadata of a dataset. All
            other names are their own texts.

    Raises:
        InputError: ``prompt_texts`` has an unknown name, an entry is not three strings, its text is blank or has white
            space at its ends, or cleaning (see ``clean_name``) would change it.

    Source: OVERRIDE_CATEGORY and CAPTION_PROMPT of the official code, which does not clean the entries.
    """
    known = set(names)
    for name, entry in prompt_texts.items():
        if name not in known:
            raise InputError(f"prompt_texts: found the name {name!r}, expected one of {', '.join(names[:6])}...")
        if not (isinstance(entry, (tuple, list)) and len(entry) == 3 and all(isinstance(part, str) for part in entry)):
            raise InputError(f"prompt_texts[{name!r}] is {entry!r}, expected three strings: prefix, text, suffix")
        prefix, text, suffix = entry
        if not text or text != text.strip() or clean_name(prefix + text + suffix) != prefix + text + suffix:
            raise InputError(
                f"prompt_texts[{name!r}] is {tuple(entry)!r}, expected words without underscores, parentheses, double "
                f"spaces, and white space around the text"
            )
    texts = []
    for name in names:
        prefix, text, suffix = prompt_texts.get(name, ("", name, ""))
        texts.append(NameText(text, prefix, suffix))
    return texts


def text_namesakes(texts: Sequence[NameText]) -> dict[int, list[int]]:
    """Return, for each row with the same whole text as other rows, those rows; see ``namesakes``."""
    return namesakes([text.full for text in texts])


def prompt_from_texts(texts: Sequence[NameText], category_ids: Sequence[int], *, separator: str) -> Prompt:
    """Join texts to a caption; each name is one phrase, and the words around it belong to no phrase.

    A name may be blank; its phrase has no token.

    Args:
        texts: P >= 1 texts, in the order of the caption.
        category_ids: P ids that detections get.
        separator: Stands between two texts.

    Raises:
        TypeError, ValueError: As ``prompt_from_names``.
    """
    whole = prompt_from_names([text.full for text in texts], category_ids, separator=separator, with_blank=True)
    spans = []
    for text, ranges in zip(texts, whole.phrase_spans, strict=True):
        spans.append(tuple((begin + len(text.prefix), end - len(text.suffix)) for begin, end in ranges))
    names = tuple(text.name for text in texts)
    return Prompt(whole.caption, names, tuple(spans), whole.category_ids, whole.name_spans)


def tokenize_texts(
    tokenizer: PromptTokenizer, texts: Sequence[NameText], *, separator: str, chunk_size: int
) -> list[TokenizedPrompt]:
    """Tokenize the texts of a whole vocabulary, one prompt per chunk; ids of detections are the rows 0..P-1.

    A blank name is a phrase without tokens, which is never detected.

    Args:
        tokenizer: The tokenizer of the model's text encoder.
        texts: P >= 1 texts.
        separator: Stands between two texts.
        chunk_size: Most texts of a chunk; 0: as many as fit.

    Raises:
        TypeError, ValueError: As ``PromptTokenizer.tokenize_names``.
    """
    wholes = [text.full for text in texts]
    if all(text.full == text.name for text in texts):
        return tokenizer.tokenize_names(wholes, separator=separator, chunk_size=chunk_size, with_blank=True)
    prompts = []
    for rows in tokenizer.chunk_names(wholes, chunk_size=chunk_size, separator=separator, with_blank=True):
        prompt = tokenizer(prompt_from_texts([texts[row] for row in rows], rows, separator=separator))
        for row, has_tokens in zip(rows, prompt.phrase_token_map.any(dim=1).tolist(), strict=True):
            if not has_tokens and texts[row].name.strip():
                raise InputError(f"names[{row}]: no token of the prompt was found for {texts[row].name!r}")
        prompts.append(prompt)
    return prompts
