"""Prompts of what a user writes: names, class lists and captions."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ..errors import InputError
from ..structures import CharSpan, TokenizedPrompt
from .builder import prompt_from_caption
from .name_checks import check_names_differ, warn_about_unknown
from .noun_phrases import find_phrase, listed_names, noun_phrases
from .tokenizer import PromptTokenizer


def names_in(text: str) -> list[str]:
    """Return the names of a class list given as text, each once; empty for a caption."""
    return list(dict.fromkeys(text[begin:end] for begin, end in listed_names(text)))


def names_prompts(
    names: Sequence[str], *, tokenizer: PromptTokenizer, separator: str, chunk_size: int
) -> list[TokenizedPrompt]:
    """Tokenize names, see ``PromptTokenizer.tokenize_names``; warn of those that cannot be told apart."""
    prompts = tokenizer.tokenize_names(names, separator=separator, chunk_size=chunk_size)
    check_names_differ(names, tokenizer, "names", is_train=False)
    return prompts


def caption_prompt(
    caption: str, phrases: Sequence[str | CharSpan] | None, tokenizer: PromptTokenizer
) -> TokenizedPrompt:
    """Tokenize a caption with its noun phrases, or with phrases of the user; warn of those that are cut off.

    Raises:
        InputError: There is no phrase among ``phrases``, or the caption does not hold one of them.
    """
    if phrases is not None and not phrases:
        raise InputError("phrases: expected at least one, found none")
    if phrases is None:
        # A caption without noun phrases is grounded as one phrase.
        found = noun_phrases(caption) or [(caption, [(0, len(caption))])]
    else:
        found = [find_phrase(caption, phrase) for phrase in phrases]
    names, spans = zip(*found, strict=True)
    prompt = tokenizer(prompt_from_caption(caption, spans, names))
    warn_about_unknown([caption], tokenizer, "caption")
    lost = [name for name, marked in zip(names, prompt.phrase_token_map.any(dim=1), strict=True) if not marked]
    if lost:
        logging.getLogger(__name__).warning(
            "caption: %s cannot be found, the text passes the limit of %d tokens", lost, tokenizer.max_tokens
        )
    return prompt
