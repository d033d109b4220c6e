"""Masked language modelling: choose the tokens of a prompt that are hidden from the model and have to be restored."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor

from ..errors import InputError
from ..structures import TokenizedPrompt
from .tokenizer import PromptTokenizer

# Label in ``mlm_labels`` of a token that does not have to be restored.
IGNORED_LABEL = -100

# A masked token becomes the mask token with the first probability, a random token with the second, or else stays.
_MASK_TOKEN_PROB = 0.8
_RANDOM_TOKEN_PROB = 0.1


def mask_tokens(
    prompt: TokenizedPrompt,
    positives: Tensor,
    tokenizer: PromptTokenizer,
    *,
    mask_prob: float,
    only_positives: bool,
    own_tokens: Tensor | None = None,
    rng: np.random.Generator,
) -> TokenizedPrompt:
    """Mask tokens of a prompt at random; its phrases keep their tokens.

    Every token is masked with the same probability, separators and special tokens at the ends included. Of the masked
    tokens 80 % become the mask token, 10 % a random token of the vocabulary, and 10 % stay as they are.

    Args:
        prompt: Stays as it is.
        positives: (P,) bool, the phrases that have a box.
        tokenizer: Knows the mask token and the size of the vocabulary.
        mask_prob: Probability that a token is masked, in [0, 1].
        only_positives: Only tokens of positive phrases have to be restored. Other tokens are masked all the same.
        own_tokens: (T,) bool, no other tokens have to be restored; None: all may.
        rng: Source of every random choice; the number of draws depends on the length of the prompt alone.

    Returns:
        The prompt with new ``input_ids`` and with ``mlm_labels``: the original id of a token that has to be restored,
        -100 elsewhere.

    Raises:
        ValueError: ``positives`` has another shape or type, ``mask_prob`` is no probability, or the tokenizer
            has no mask token.

    Source: BERT (arXiv 1810.04805), Sec. 3.1; the masking of the official GLIP code. It restores the tokens of
    ``positives`` in detection data, and every word of a caption in sentences. For these, ``only_positives`` False is
    closest; it restores special tokens too.
    """
    positives = positives if len(positives) else positives.bool()  # torch.tensor([]) is of floating point
    if positives.shape != (len(prompt.phrases),) or positives.dtype != torch.bool:
        raise ValueError(
            f"positives: expected shape ({len(prompt.phrases)},) and bool, found {tuple(positives.shape)} and "
            f"{positives.dtype}"
        )
    if not 0 <= mask_prob <= 1:
        raise InputError(f"MODEL.GLIPV2.MLM.MASK_PROB: expected a probability, found {mask_prob}")
    length = len(prompt)
    masked = torch.from_numpy(rng.random(length) < mask_prob)  # (T,)
    choice = torch.from_numpy(rng.random(length))
    random_ids = torch.from_numpy(rng.integers(tokenizer.vocab_size, size=length))

    becomes_mask = masked & (choice < _MASK_TOKEN_PROB)
    becomes_random = masked & ~becomes_mask & (choice < _MASK_TOKEN_PROB + _RANDOM_TOKEN_PROB)
    input_ids = prompt.input_ids.masked_fill(becomes_mask, tokenizer.mask_id)
    input_ids = torch.where(becomes_random, random_ids, input_ids)

    restored = masked & prompt.phrase_token_map[positives].any(dim=0) if only_positives else masked
    restored = restored if own_tokens is None else restored & own_tokens
    return dataclasses.replace(
        prompt, input_ids=input_ids, mlm_labels=prompt.input_ids.masked_fill(~restored, IGNORED_LABEL)
    )


def trains_pretraining_losses(cfg: CfgNode) -> bool:
    """Tell whether MLM.ENABLED and CONTRASTIVE.ENABLED have an effect: not in a tuning, unless it asks for them."""
    tuning = cfg.MODEL.GLIPV2.TUNING
    return tuning.MODE == "full" or tuning.PRETRAINING_LOSSES
