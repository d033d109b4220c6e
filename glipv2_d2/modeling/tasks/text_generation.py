"""Beam search for the likeliest text under a model that rates one next token after the other."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...device_copies import to_device
from ...errors import InputError

_IMPOSSIBLE = float("-inf")
# Words after which a device is asked whether all texts are there.
_STEPS_BETWEEN_QUESTIONS = 8


State = TypeVar("State", bound="TextState")


class TextState(Protocol):
    """State that a step function keeps of B texts."""

    def select(self: State, rows: Tensor) -> State:
        """Continue with the texts ``rows``; a text may be selected several times."""


# Maps the last token of each of B texts, (B,) int64, and the state before it to the logits (B, V) of the next token and
# the state after it. The texts of one image stand side by side.
StepFunction = Callable[[Tensor, State], tuple[Tensor, State]]


@dataclass(frozen=True)
class GenerationRules:
    """Rules of the search, and which texts are allowed.

    Attributes:
        start_id: Token that every text begins with. It is not part of the result or of the lengths below.
        end_id: Token that ends a text. It is not part of the result or of the lengths below.
        banned_ids: Tokens that no text may hold, usually the special ones.
        beam_size: Texts kept at a time; 1 is greedy search.
        max_length: The most tokens in a text; a text of this length ends.
        min_length: The fewest tokens in a text. It gives way if the other rules allow no token.
        length_penalty: A text is rated by its log probability, end included, divided by the number of its tokens, end
            included, to this power. 0 favours short texts, 1 compares the means per token.
        no_repeat_ngram: A sequence of this many tokens occurs at most once in a text; 0: no limit.

    Raises:
        ValueError: A number is out of its range.
    """

    start_id: int
    end_id: int
    banned_ids: tuple[int, ...] = ()
    beam_size: int = 5
    max_length: int = 40
    min_length: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram: int = 3

    def __post_init__(self) -> None:
        key = "MODEL.GLIPV2.CAPTIONING"
        for name, least in (("beam_size", 1), ("max_length", 1), ("min_length", 0), ("no_repeat_ngram", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{key}.{name.upper()}: expected at least {least}, found {getattr(self, name)}")
        if self.min_length > self.max_length:
            raise InputError(
                f"{key}.MIN_LENGTH: expected at most MAX_LENGTH ({self.max_length}), found {self.min_length}"
            )
        if self.end_id in self.banned_ids:
            raise ValueError(f"banned_ids: found the end token {self.end_id}, without which no text ends")


class GeneratedText(NamedTuple):
    """A text and its rating.

    Attributes:
        token_ids: (T,) int64 on the CPU, without start and end; T may be 0.
        score: Log probability of the tokens and the end, divided as ``GenerationRules.length_penalty`` says; <= 0.
    """

    token_ids: Tensor
    score: float


def generate(
    step: StepFunction, state: State, num_images: int, rules: GenerationRules, device: torch.device | str = "cpu"
) -> list[GeneratedText]:
    """Write one text for each of N images, all at once, by beam search.

    The candidates of a step are all continuations of the texts of an image, and the likeliest ``beam_size`` are kept. A
    text that ends leaves the beam, which has one text less from then on; a beam of one is greedy search. An image is
    done when its beam is empty, or when no text in it can still be rated above the best that has ended. The result for
    an image does not depend on the others. On a device the CPU asks for that after every eighth token only, since it
    waits for the answer; a search that goes on finds nothing better.

    Args:
        step: Rates the next token. It is called with N texts first and with N * ``beam_size`` later, at most
            ``max_length`` + 1 times.
        state: State of N texts without any token.
        num_images: N >= 1.
        rules: How to search.
        device: Device of the logits.

    Returns:
        N texts, the best one found for each image.

    Raises:
        ValueError: The logits are not finite and leave no text, or an id in the rules is not a column of the logits.
    """
    beam = _Beam.begin(num_images, rules, device)
    for length in range(rules.max_length + 1):
        logits, state = step(beam.last_ids(rules), state)
        beam, rows = beam.advance(allowed_log_probs(logits, beam.texts, rules), length, rules)
        on_cpu, step_number = logits.device.type == "cpu", length + 1
        if (on_cpu or step_number % _STEPS_BETWEEN_QUESTIONS == 0) and beam.is_done(length, rules):
            break
        state = state.select(rows)
    columns = (beam.best_ratings[:, None], beam.best_lengths[:, None], beam.best_texts)
    # Ids and single precision are exact in it.
    found = torch.cat([one.double() for one in columns], dim=1).cpu()
    if not found.isfinite().all():
        raise ValueError("text generation: expected finite logits, found some that leave no text")
    return [GeneratedText(row[2 : 2 + int(row[1])].long(), float(row[0])) for row in found]


def allowed_log_probs(logits: Tensor, texts: Tensor, rules: GenerationRules) -> Tensor:
    """Return the log probabilities of the next tokens, minus infinity where the rules forbid one.

    The probabilities of allowed tokens stay as they are; they are not scaled up to a sum of 1.

    Args:
        logits: (B, V).
        texts: (B, t) int64, the tokens so far, without the start.
        rules: The rules. If a text has ``max_length`` tokens, or if the rules forbid every token, only the end is
            allowed.

    Returns:
        (B, V) float32.

    Raises:
        ValueError: An id in the rules is not a column of the logits.
    """
    length, vocab_size = texts.shape[1], logits.shape[1]
    banned = _banned_tokens(rules, vocab_size, logits.device)
    log_probs = logits.float().log_softmax(-1)
    forbidden = torch.zeros_like(log_probs, dtype=torch.bool)
    if length >= rules.max_length:
        forbidden[:] = True
    else:
        forbidden |= banned
        forbidden[:, rules.end_id] |= length < rules.min_length
        forbidden |= _repeating_tokens(texts, rules.no_repeat_ngram, vocab_size)
    forbidden[:, rules.end_id] &= ~forbidden.all(-1)
    return log_probs.masked_fill(forbidden, _IMPOSSIBLE)


@functools.lru_cache(maxsize=8)
def _banned_tokens(rules: GenerationRules, vocab_size: int, device: torch.device) -> Tensor:
    """Mark the tokens that no text may hold, (V,) bool; it is sent to a device once."""
    unknown = [index for index in (rules.end_id, *rules.banned_ids) if not 0 <= index < vocab_size]
    if unknown:
        raise ValueError(f"end_id and banned_ids: expected ids below {vocab_size}, found {unknown[0]}")
    banned = torch.zeros(vocab_size, dtype=torch.bool)
    banned[list(rules.banned_ids)] = True
    return to_device([banned], device)[0]


def _repeating_tokens(texts: Tensor, size: int, vocab_size: int) -> Tensor:
    """Mark the tokens that would repeat a sequence of ``size`` tokens of the text before them, (B, V) bool."""
    rows, length = texts.shape
    repeating = torch.zeros(rows, vocab_size + 1, dtype=torch.bool, device=texts.device)
    if 0 < size <= length:
        windows = texts.unfold(1, size, 1)  # (B, t - size + 1, size)
        same_start = (windows[..., :-1] == texts[:, None, length - size + 1 :]).all(-1)
        # Column V takes what repeats nothing.
        repeating.scatter_(1, windows[..., -1].where(same_start, vocab_size), True)
    return repeating[:, :vocab_size]


class _Beam(NamedTuple):
    """The state of a beam search for N images with K texts each; a text may be missing.

    Attributes:
        texts: (N * K, t), (N, 0) before the first token; those of an image side by side.
        totals: (N, K) log probabilities, minus infinity where a text is missing; (N, 1) before the first token.
        widths: (N,) number of texts that may still be in the beam.
        best_texts: (N, max_length), the best text that has ended.
        best_lengths: (N,).
        best_ratings: (N,), minus infinity if none has ended.
    """

    texts: Tensor
    totals: Tensor
    widths: Tensor
    best_texts: Tensor
    best_lengths: Tensor
    best_ratings: Tensor

    @classmethod
    def begin(cls, num_images: int, rules: GenerationRules, device: torch.device | str) -> _Beam:
        lengths = torch.zeros(num_images, dtype=torch.int64, device=device)
        totals = torch.zeros(num_images, 1, device=device)
        return cls(
            texts=lengths.new_zeros(num_images, 0),
            totals=totals,
            widths=torch.full_like(lengths, rules.beam_size),
            best_texts=lengths.new_zeros(num_images, rules.max_length),
            best_lengths=lengths,
            best_ratings=totals.new_full((num_images,), _IMPOSSIBLE),
        )

    def last_ids(self, rules: GenerationRules) -> Tensor:
        if self.texts.shape[1] == 0:
            return torch.full_like(self.texts.sum(1), rules.start_id)
        return self.texts[:, -1]

    def advance(self, log_probs: Tensor, length: int, rules: GenerationRules) -> tuple[_Beam, Tensor]:
        """Add a token to every text; return the new beam and the rows of the old that its texts come from."""
        num_images, width = self.totals.shape
        vocab_size = log_probs.shape[1]
        candidates = self.totals[..., None] + log_probs.unflatten(0, (num_images, width))  # (N, K, V)
        # A vocabulary smaller than the beam leaves it narrower.
        lacking = max(0, rules.beam_size - width * vocab_size)
        candidates = F.pad(candidates.flatten(1), (0, lacking), value=_IMPOSSIBLE)
        if rules.beam_size == 1:
            # The first of the likeliest next tokens, before the total rounds their differences away.
            columns = log_probs.argmax(1, keepdim=True)
        else:
            columns = candidates.topk(rules.beam_size).indices  # (N, K)
        totals = candidates.gather(1, columns)
        order = torch.arange(rules.beam_size, device=totals.device)
        valid = (order < self.widths[:, None]) & (totals > _IMPOSSIBLE)
        token_ids = columns % vocab_size
        first_rows = torch.arange(num_images, device=totals.device)[:, None] * width
        rows = (first_rows + (columns // vocab_size).clamp(max=width - 1)).flatten()  # (N * K,)
        ended = valid & (token_ids == rules.end_id)
        beam = self._keep_best(totals.masked_fill(~ended, _IMPOSSIBLE), rows, length, rules)
        texts = torch.cat([self.texts[rows], token_ids.flatten()[:, None]], dim=1)
        totals = totals.masked_fill(~valid | ended, _IMPOSSIBLE)
        return beam._replace(texts=texts, totals=totals, widths=self.widths - ended.sum(1)), rows

    def _keep_best(self, totals: Tensor, rows: Tensor, length: int, rules: GenerationRules) -> _Beam:
        """Keep the best text that has ended; the totals are minus infinity where none has."""
        ratings, ranks = (totals / (length + 1) ** rules.length_penalty).max(1)  # (N,)
        better = ratings > self.best_ratings
        ended = self.texts[rows].unflatten(0, totals.shape)  # (N, K, t)
        ended = ended[torch.arange(len(ended), device=ended.device), ranks]  # (N, t)
        best_texts = self.best_texts.clone()
        best_texts[:, :length] = ended.where(better[:, None], best_texts[:, :length])
        return self._replace(
            best_texts=best_texts,
            best_lengths=self.best_lengths.masked_fill(better, length),
            best_ratings=ratings.where(better, self.best_ratings),
        )

    def is_done(self, length: int, rules: GenerationRules) -> bool:
        """Tell whether no text can still become the best of its image, after a step that added token ``length``."""
        # A total only falls; what it is divided by is largest for the longest text, or for the next with a negative
        # penalty.
        most = max((length + 2) ** rules.length_penalty, (rules.max_length + 1) ** rules.length_penalty)
        return bool((self.totals.max(1).values / most <= self.best_ratings).all())
