"""Prompt tuning: a table with a row for each token of a prompt, which is added to the text before fusion."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..device_copies import to_device
from ..errors import InputError
from ..structures import LanguageFeatures

# Rows of the official table. A shorter prompt leaves the last ones at zero.
PROMPT_ROWS = 1000
# What stands in place of a fingerprint: no prompt yet, and any prompt.
_UNBOUND, _ANY = 0, -1
_KEY = "MODEL.GLIPV2.TUNING.NUM_PROMPTS"


def fingerprint(input_ids: Sequence[int]) -> int:
    """Return a number of 63 bits, above 0, that tells the token ids of a prompt from those of others."""
    digest = hashlib.sha256(",".join(map(str, input_ids)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1 or 1


class PromptTuner(nn.Module):
    """Add a row of a table to each token, by its index in the prompt, the same row for all images.

    A table is made for one prompt, whose names have the same order in training and at test time: ``bind`` keeps the
    fingerprints of its token ids among the weights, and any other prompt is an error. A vocabulary that is cut into
    several prompts has a table for each. The tables of sentences, which all differ, are one table for any prompt. A
    table starts at zero, which changes nothing. Image and text are fused after it, so it changes the image features
    too. Rows past the end of the training prompts stay zero.

    Args:
        language_dim: D of the text.
        max_tokens: Rows of a table, the length of the longest prompt.
        num_prompts: Tables, one below the other in ``embeddings``.

    Source: GLIPv2, Sec. 3.3; ``tunable_linear`` of the official code, which has 1,000 rows.
    """

    prompt_ids: Tensor

    def __init__(self, language_dim: int, max_tokens: int = PROMPT_ROWS, num_prompts: int = 1) -> None:
        super().__init__()
        if max_tokens < 1:
            raise InputError(f"max_tokens: expected at least 1, found {max_tokens}")
        if num_prompts < 1:
            raise InputError(f"{_KEY}: expected at least 1, found {num_prompts}")
        self.embeddings = nn.Parameter(torch.zeros(num_prompts * max_tokens, language_dim))
        self.register_buffer("prompt_ids", torch.full((num_prompts,), _UNBOUND, dtype=torch.int64))
        self._known: tuple[tuple[int, int], list[int]] | None = None

    def bind(self, prompts: Sequence[Sequence[int]] | None) -> None:
        """Say which prompts the tables are for, by their token ids, in the order of the tables; None: for any prompt.

        Raises:
            InputError: There are more prompts than tables, or the tables are those of other prompts.
        """
        wanted = [_ANY] if prompts is None else [fingerprint(ids) for ids in prompts]
        known = self.prompt_ids.tolist()
        if len(wanted) > len(known):
            raise InputError(f"{_KEY}: expected {len(wanted)}, a table for each prompt of the data, found {len(known)}")
        wanted += [_UNBOUND] * (len(known) - len(wanted))
        if any(known) and known != wanted:
            raise InputError(
                "DATASETS.TRAIN: expected the prompts that the tuned prompt was begun with, found others; other names, "
                "another order, separator or chunk need a table of their own"
            )
        self.prompt_ids.copy_(torch.tensor(wanted))

    def forward(self, language: LanguageFeatures) -> LanguageFeatures:
        """Add the first T rows to ``hidden`` of N prompts, and to ``embedded`` except in the padding.

        Raises:
            InputError: T passes the number of rows, or a prompt is none of those that the tables are for.
        """
        max_tokens, num_tokens = len(self.embeddings) // len(self.prompt_ids), language.hidden.shape[1]
        if num_tokens > max_tokens:
            raise InputError(
                f"max_tokens: expected at least the {num_tokens} tokens of the longest prompt, found {max_tokens}"
            )
        tables = self.embeddings.view(len(self.prompt_ids), max_tokens, -1)
        chosen = self._tables_of(language.fingerprints)
        index = chosen[0] if len(set(chosen)) == 1 else to_device([torch.tensor(chosen)], tables.device)[0]
        rows = tables[index, :num_tokens]  # (N, T, D), or (T, D)
        embedded = (language.embedded + rows).masked_fill(~language.mask.unsqueeze(-1), 0.0)
        return language._replace(hidden=language.hidden + rows, embedded=embedded)

    def _tables_of(self, fingerprints: Sequence[int] | None) -> list[int]:
        """Return the table of each prompt, or one for all of them if the tables are not bound to any."""
        known = self._known_ids()
        if fingerprints is None or known[0] in (_UNBOUND, _ANY):
            return [0]
        foreign = [one for one in fingerprints if one not in known]
        if foreign:
            raise InputError(
                f"prompts: expected the prompt that was tuned (MODEL.GLIPV2.TUNING.MODE 'prompt'), found another one "
                f"(fingerprint {foreign[0]:x}); other names, another order, INPUT.PROMPT.SEPARATOR or chunk need a "
                f"table of their own, and the base model answers them"
            )
        return [known.index(one) for one in fingerprints]

    def _known_ids(self) -> list[int]:
        """Return ``prompt_ids``; a device is asked again only after they have changed."""
        state = (self.prompt_ids.data_ptr(), self.prompt_ids._version)
        if self._known is None or self._known[0] != state:
            self._known = (state, self.prompt_ids.tolist())
        return self._known[1]


def build_prompt_tuner(cfg: CfgNode, language_dim: int) -> PromptTuner | None:
    """Build the tables for text of width ``language_dim`` if the tuning mode needs it, and otherwise return None."""
    if cfg.MODEL.GLIPV2.TUNING.MODE != "prompt":
        return None
    rows = max(PROMPT_ROWS, cfg.MODEL.TEXT_ENCODER.MAX_TOKENS)
    return PromptTuner(language_dim, rows, cfg.MODEL.GLIPV2.TUNING.NUM_PROMPTS)
