"""Prompts of what a user writes: names, class lists and captions."""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection, Sequence

from detectron2.config import CfgNode

from ..errors import InputError
from ..structures import CharSpan, TokenizedPrompt
from .builder import prompt_from_caption
from .name_checks import check_names_differ, warn_about_unknown, warn_about_untrained
from .noun_phrases import find_phrase, listed_names, noun_phrases
from .tokenizer import PromptTokenizer
from .vocabulary import DefaultPrompts, build_default_prompts, only_names

# Names as a list or as one text, or a caption; None: the names of DATASETS.TEST[0].
NamesOrCaption = Sequence[str] | str | None


class UserPrompts:
    """Make prompts of what a user writes: names, a class list as text, a caption, or nothing.

    Args:
        tokenizer: Tokenizes them.
        separator: Text between names.
        chunk_size: Names of one prompt, see ``PromptTokenizer.tokenize_names``.
        default: Gives the prompts of nothing.
        only_names: All names that the model knows, see ``warn_about_untrained``.
    """

    def __init__(
        self,
        tokenizer: PromptTokenizer,
        *,
        separator: str,
        chunk_size: int,
        default: DefaultPrompts,
        only_names: Collection[str] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self._separator = separator
        self._chunk_size = chunk_size
        self._default = default
        self._only_names = only_names

    @classmethod
    def from_config(cls, cfg: CfgNode) -> UserPrompts:
        """Read the arguments that the config decides."""
        return cls(
            PromptTokenizer.from_config(cfg),
            separator=cfg.INPUT.PROMPT.SEPARATOR,
            chunk_size=cfg.MODEL.GLIPV2.TEST.PROMPT_CHUNK_SIZE,
            default=DefaultPrompts(functools.partial(build_default_prompts, cfg)),
            only_names=only_names(cfg),
        )

    def __call__(
        self, names_or_caption: NamesOrCaption, phrases: Sequence[str | CharSpan] | None = None
    ) -> list[TokenizedPrompt]:
        """Tokenize one prompt of a user, see ``GLIPv2Predictor.__call__``; many names give several prompts."""
        if phrases is not None and not isinstance(names_or_caption, str):
            raise InputError(f"phrases: expected a caption that holds them, found the prompt {names_or_caption!r:.100}")
        if names_or_caption is None:
            try:
                return self._default()
            except (InputError, OSError) as error:
                raise InputError(
                    f"names: expected some, since those of DATASETS.TEST are not known here, found none ({error})"
                ) from error
        if isinstance(names_or_caption, str):
            names = names_in(names_or_caption) if phrases is None else []
            if not names:
                return [caption_prompt(names_or_caption, phrases, self.tokenizer)]
            names_or_caption = names
        prompts = names_prompts(
            names_or_caption, tokenizer=self.tokenizer, separator=self._separator, chunk_size=self._chunk_size
        )
        warn_about_untrained(names_or_caption, self._only_names, self.tokenizer)
        return prompts


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
