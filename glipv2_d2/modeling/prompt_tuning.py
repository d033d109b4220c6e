"""Prompt tuning: a table with a row for each token of a prompt, which is added to the text before fusion."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from torch import nn

from ..errors import InputError
from ..structures import LanguageFeatures

# Rows of the official table. A shorter prompt leaves the last ones at zero.
PROMPT_ROWS = 1000


class PromptTuner(nn.Module):
    """Add a row of a table to each token, by its index in the prompt, the same row for all images.

    A table is made for one task with one prompt, whose names have the same order in training and at test time. It
    starts at zero, which changes nothing. Image and text are fused after it, so it changes the image features too. Rows
    past the end of the training prompts stay zero.

    Args:
        language_dim: D of the text.
        max_tokens: Rows of the table, the length of the longest prompt.

    Source: GLIPv2, Sec. 3.3; ``tunable_linear`` of the official code, which has 1,000 rows.
    """

    def __init__(self, language_dim: int, max_tokens: int = PROMPT_ROWS) -> None:
        super().__init__()
        if max_tokens < 1:
            raise InputError(f"max_tokens: expected at least 1, found {max_tokens}")
        self.embeddings = nn.Parameter(torch.zeros(max_tokens, language_dim))

    def forward(self, language: LanguageFeatures) -> LanguageFeatures:
        """Add the first T rows to ``hidden`` of N prompts, and to ``embedded`` except in the padding.

        Raises:
            InputError: T passes the number of rows.
        """
        max_tokens, num_tokens = len(self.embeddings), language.hidden.shape[1]
        if num_tokens > max_tokens:
            raise InputError(
                f"max_tokens: expected at least the {num_tokens} tokens of the longest prompt, found {max_tokens}"
            )
        rows = self.embeddings[:num_tokens]
        embedded = (language.embedded + rows).masked_fill(~language.mask.unsqueeze(-1), 0.0)
        return language._replace(hidden=language.hidden + rows, embedded=embedded)


def build_prompt_tuner(cfg: CfgNode, language_dim: int) -> PromptTuner | None:
    """Build the table for text of width ``language_dim`` if the tuning mode needs it, and otherwise return None."""
    if cfg.MODEL.GLIPV2.TUNING.MODE != "prompt":
        return None
    return PromptTuner(language_dim, max(PROMPT_ROWS, cfg.MODEL.TEXT_ENCODER.MAX_TOKENS))
