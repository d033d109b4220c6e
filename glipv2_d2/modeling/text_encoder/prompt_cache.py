"""A cache of encoded prompts: a vocabulary is encoded once, not once for every image."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...device_copies import to_device
from ...structures import LanguageFeatures, TokenBatch, TokenizedPrompt

Value = TypeVar("Value")

# Values that follow from prompts and are kept: a vocabulary of 10,000 names takes 2.5 MiB.
_MOST_VALUES = 16
# Tokens, padding included, that are encoded together on a device: 32 prompts of 256.
_MOST_TOKENS = 8_192


class PromptCache:
    """Encode prompts at test time and keep the results, and values that follow from them.

    On a CPU each prompt is encoded by itself, which takes no padding. On a device those of a call that are new are
    encoded together, padded, because a prompt alone does not fill it: results are equal but for rounding.

    Results are kept for the token ids and the state of the encoder. If its weights change in place (a loaded
    checkpoint, a moving average), or its device or the autocast type, everything is computed again. A fused optimizer
    changes weights unnoticed: code that trains has to call ``clear``. Results never depend on earlier calls or, but for
    rounding on a device, on the other prompts of a call.

    Args:
        max_tokens: Number of tokens kept over all prompts; the least recently used prompts are dropped first. A token
            of BERT-base takes 3 KiB, so the default is 192 MiB, or a vocabulary of about 20,000 names.
    """

    def __init__(self, max_tokens: int = 65_536) -> None:
        self.max_tokens = max_tokens
        self._num_tokens = 0
        self._hidden: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
        self._values: OrderedDict[Hashable, Any] = OrderedDict()
        self._encoder_state: tuple = ()
        # Held while counter and prompts change, not while a prompt is encoded.
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        # A copy, in another process or not, starts empty and with a lock of its own.
        return {"max_tokens": self.max_tokens}

    def __setstate__(self, state: dict[str, Any]) -> None:
        PromptCache.__init__(self, **state)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._hidden.clear()
            self._values.clear()
            self._num_tokens = 0

    def encode(self, encoder: nn.Module, prompts: Sequence[TokenizedPrompt], device: torch.device) -> LanguageFeatures:
        """Return the output of ``encoder`` for N >= 1 prompts, padded to the longest, T tokens.

        Padding is zero in ``hidden`` and ``embedded``. With gradients enabled nothing is kept.
        """
        if torch.is_grad_enabled():
            return encoder(TokenBatch.from_prompts(prompts, device))
        self._forget_other_states(encoder, device)
        keys = [tuple(prompt.input_ids.tolist()) for prompt in prompts]
        rows = self._read(encoder, dict(zip(keys, prompts, strict=True)), device)
        firsts = dict(zip(rows, itertools.accumulate(map(len, rows), initial=0), strict=False))
        order = torch.arange(max(map(len, keys)))
        mask = order < torch.tensor([[len(key)] for key in keys])
        # The last of all tokens is that of the padding.
        places = (order + torch.tensor([[firsts[key]] for key in keys])).where(mask, sum(map(len, rows)))
        mask, places = to_device([mask, places], device)
        hidden = F.pad(torch.cat(list(rows.values())), (0, 0, 0, 1))[places]  # (N, T, D)
        return LanguageFeatures(hidden, hidden, mask)

    def derive(self, encoder: nn.Module, device: torch.device, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return ``make()``, a value that follows from encoded prompts; the last few values are kept.

        They are forgotten with the prompts, so ``key`` says only which prompts, and what else the value depends on.
        """
        self._forget_other_states(encoder, device)
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            self._values[key] = value
            while len(self._values) > _MOST_VALUES:
                self._values.popitem(last=False)
        return value

    def _read(
        self, encoder: nn.Module, prompts: dict[tuple[int, ...], TokenizedPrompt], device: torch.device
    ) -> dict[tuple[int, ...], Tensor]:
        """Return the features of each prompt, (T, D), without padding, in the order of the prompts."""
        with self._lock:
            found = {key: self._hidden[key] for key in prompts if key in self._hidden}
        new = [key for key in prompts if key not in found]
        for keys in [[key] for key in new] if device.type == "cpu" else _plan_passes(new):
            hidden = encoder(TokenBatch.from_prompts([prompts[key] for key in keys], device)).hidden
            # Copies: a view would keep the padding, and the other prompts of its pass.
            found |= {key: row[: len(key)].clone() for key, row in zip(keys, hidden, strict=True)}
        with self._lock:
            for key in prompts:
                # Another thread may have encoded it meanwhile, or dropped it.
                if self._hidden.pop(key, None) is None:
                    self._num_tokens += len(key)
                self._hidden[key] = found[key]
            while self._num_tokens > self.max_tokens:
                oldest, _ = self._hidden.popitem(last=False)
                self._num_tokens -= len(oldest)
        return {key: found[key] for key in prompts}

    def _forget_other_states(self, encoder: nn.Module, device: torch.device) -> None:
        autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
        weights = tuple((tensor.data_ptr(), tensor._version) for tensor in encoder.parameters())
        state = (id(encoder), encoder.training, autocast, weights)
        with self._lock:
            if state != self._encoder_state:
                self.clear()
                self._encoder_state = state


def _plan_passes(keys: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Put prompts of similar length together, in passes of at most ``_MOST_TOKENS`` with padding, or of one prompt."""
    passes: list[list[tuple[int, ...]]] = []
    for key in sorted(keys, key=len, reverse=True):
        # The first of a pass is the longest.
        if not passes or (len(passes[-1]) + 1) * len(passes[-1][0]) > _MOST_TOKENS:
            passes.append([])
        passes[-1].append(key)
    return passes
