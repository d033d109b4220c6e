"""Prompts of made-up token ids."""

import torch

from glipv2_d2.structures import TokenizedPrompt


def make_prompt(*phrase_tokens, category_ids=None, names=True):
    """A prompt of made-up token ids; each phrase, one of a list of names, is spelled by the given tokens."""
    length = 2 + max(max(tokens) for tokens in phrase_tokens)
    phrase_token_map = torch.zeros(len(phrase_tokens), length, dtype=torch.bool)
    for row, tokens in enumerate(phrase_tokens):
        phrase_token_map[row, list(tokens)] = True
    category_ids = range(len(phrase_tokens)) if category_ids is None else category_ids
    return TokenizedPrompt(
        torch.arange(1000, 1000 + length),
        phrase_token_map,
        torch.tensor(list(category_ids)),
        tuple(f"phrase {row}" for row in range(len(phrase_tokens))),
        name_ranges=tuple((min(tokens), max(tokens) + 1) for tokens in phrase_tokens) if names else (),
    )
