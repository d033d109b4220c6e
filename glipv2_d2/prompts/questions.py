"""From a question to its prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..errors import InputError
from ..structures import CharSpan, TokenizedPrompt
from .builder import prompt_from_caption
from .noun_phrases import noun_phrases
from .tokenizer import PromptTokenizer

# The phrase of the token that stands for the answer.
ANSWER_PHRASE = "[answer]"

# Last words of noun phrases that name nothing in the image.
_NO_THINGS = frozenset(
    """
    how why what which who whose where when many much yes no
    color colour kind type sort time name number picture image photo photograph scene
    higher lower further farther closer nearer larger bigger smaller taller shorter older younger
    """.split()
)


class AskedQuestion(NamedTuple):
    """A question as the model reads it, and what the token limit has cut off.

    Attributes:
        prompt: The prompt. Each of its phrases has a token; the ids of phrases are their rows.
        num_lost_tokens: Number of tokens of the question that were cut off.
        lost_phrases: Phrases of the question that were left out because they have no token.
    """

    prompt: TokenizedPrompt
    num_lost_tokens: int
    lost_phrases: tuple[str, ...]


def names_something(phrase: str) -> bool:
    """Tell whether a noun phrase of a question can name a thing in the image, unlike "what color" and "the picture".

    Args:
        phrase: Not blank.
    """
    return phrase.lower().split()[-1] not in _NO_THINGS


def question_prompt(
    question: str,
    tokenizer: PromptTokenizer,
    phrase_spans: Sequence[Sequence[CharSpan]] = (),
    *,
    names_answer: Sequence[bool] = (),
    with_mask: bool = False,
) -> TokenizedPrompt:
    """Make the prompt of a question.

    Args:
        question: The question. Text past the token limit is cut off.
        tokenizer: The tokenizer of the model's text encoder.
        phrase_spans: For each of P phrases its half-open character ranges of the question; a phrase may have none.
        names_answer: For each phrase whether it includes the mask token, which needs ``with_mask``; by default False.
        with_mask: Put the mask token, which stands for the answer, after the question; a long question is cut to make
            room for it.

    Returns:
        The prompt; ids of phrases are their rows. A phrase that is cut off has no token. A phrase that names only the
        answer is called ``ANSWER_PHRASE``.

    Raises:
        InputError: The question is blank, a range is not inside it, or the tokenizer has no mask token.

    Source: GLIPv2, App. D.2.
    """
    if not question.strip():
        raise InputError(f"question: expected some words, found {question!r}")
    names_answer = list(names_answer) or [False] * len(phrase_spans)
    phrases = [" ".join(question[begin:end] for begin, end in spans) or ANSWER_PHRASE for spans in phrase_spans]
    prompt = tokenizer(prompt_from_caption(question, phrase_spans, phrases))
    if not with_mask:
        return prompt
    # The last token is the end of the text.
    end = len(prompt) - 1
    num_kept = min(end, tokenizer.max_tokens - 2)
    mask_id = torch.tensor([tokenizer.mask_id])
    input_ids = torch.cat([prompt.input_ids[:num_kept], mask_id, prompt.input_ids[end:]])
    is_answer = torch.tensor(names_answer, dtype=torch.bool).reshape(-1, 1)  # (P, 1)
    token_map = prompt.phrase_token_map
    token_map = torch.cat([token_map[:, :num_kept], is_answer, token_map[:, end:]], dim=1)
    return dataclasses.replace(prompt, input_ids=input_ids, phrase_token_map=token_map)


def question_to_ground(question: str, tokenizer: PromptTokenizer) -> TokenizedPrompt:
    """Make the prompt of a question whose things, and the thing that is the answer, are to be found in the image.

    Its phrases are the noun phrases of the question, except for those like "what color" and "the picture". The last row
    is ``ANSWER_PHRASE``, the mask token.

    Raises:
        InputError: The question is blank, or the tokenizer has no mask token.
    """
    spans = [ranges for phrase, ranges in noun_phrases(question) if names_something(phrase)]
    names_answer = [False] * len(spans) + [True]
    return question_prompt(question, tokenizer, [*spans, ()], names_answer=names_answer, with_mask=True)


def question_to_answer(question: str, tokenizer: PromptTokenizer, *, grounded: bool) -> AskedQuestion:
    """Make the prompt that a question is answered from, and count the tokens that do not fit.

    Args:
        question: The question. Text past the token limit is cut off.
        tokenizer: The tokenizer of the model's text encoder.
        grounded: Also find things, see ``question_to_ground``; otherwise the prompt has no phrases.

    Raises:
        InputError: As ``question_to_ground``.
    """
    prompt = question_to_ground(question, tokenizer) if grounded else question_prompt(question, tokenizer)
    num_tokens = tokenizer.count_tokens(question) + int(grounded)
    has_tokens = prompt.phrase_token_map.any(dim=1)
    marked = list(zip(prompt.phrases, has_tokens.tolist(), strict=True))
    kept = tuple(phrase for phrase, has_token in marked if has_token)
    lost = tuple(phrase for phrase, has_token in marked if not has_token)
    prompt = dataclasses.replace(
        prompt,
        phrase_token_map=prompt.phrase_token_map[has_tokens],
        category_ids=torch.arange(len(kept)),
        phrases=kept,
    )
    return AskedQuestion(prompt, max(num_tokens - tokenizer.max_content_tokens, 0), lost)
