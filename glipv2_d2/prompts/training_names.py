"""Choose at random the names in a training prompt of detection data."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from .builder import SEPARATOR, clean_name
from .tokenizer import PromptTokenizer

NEGATIVE_SAMPLING = ("drawn", "total")


def sample_training_names(
    names: Sequence[str],
    positives: Collection[int],
    tokenizer: PromptTokenizer,
    *,
    num_negatives: int,
    full_negatives_prob: float,
    shuffle: bool,
    rng: np.random.Generator,
    separator: str = SEPARATOR,
    negative_sampling: str = "drawn",
    never_negatives: Collection[int] = (),
    siblings: Siblings | None = None,
) -> list[int]:
    """Choose the names of a detection dataset that one training prompt holds.

    The names of the image's boxes come first in the budget of tokens, in random order; one that does not fit, and all
    after it, are left out. Then negatives are added as long as tokens are left:

    * "drawn": names are drawn from all, and those that are positive are dropped again; ``num_negatives`` bounds what is
      drawn, not what is added;
    * "total": as many of the absent names as fill the prompt up to ``num_negatives`` names, the positive ones counted.
      An image with more positives has no negatives.

    Args:
        names: All names of the dataset.
        positives: Rows of the names that have a box in the image; none for an image without boxes.
        tokenizer: Counts the tokens and knows the limit.
        num_negatives: Names to draw, or names of the prompt; -1 takes all names, without any draw.
        full_negatives_prob: Probability of ``num_negatives`` names; otherwise a uniform number from 1 to it.
        shuffle: Random order in the prompt; otherwise the order of ``names``.
        rng: Source of every random choice.
        separator: Stands between two names.
        negative_sampling: "drawn" or "total".
        never_negatives: Rows of names that stay out of the prompt unless they are positive: what they name may be in
            the image without a box. They are dropped where positive names are, and change no other draw.
        siblings: Names that are often negatives; None, or a share of 0: every draw is what it was without them.

    Returns:
        Rows of ``names`` in the order of the prompt. The caller drops the boxes of absent rows. It holds a name at
        least if ``names`` has one that fits, one of ``never_negatives`` where there is no other.

    Raises:
        InputError: ``num_negatives`` is -1 and the names pass the token limit, or ``negative_sampling`` is unknown.

    Source: "drawn" is the official code, "total" the GLIP paper (arXiv 2112.03857), which speaks of 85 names in all.
    Four departures from the two converters of detection data in the official code: there is no background name;
    ``num_negatives`` 0 draws none, where officially it draws one; an image without boxes whose draw leaves no name gets
    one of the names, since a prompt without a phrase is empty; and officially any name can be a negative.
    """
    if negative_sampling not in NEGATIVE_SAMPLING:
        raise InputError(
            f"INPUT.PROMPT.NEGATIVE_SAMPLING: expected one of {list(NEGATIVE_SAMPLING)}, found {negative_sampling!r}"
        )
    excluded = set(never_negatives).difference(positives)
    costs = _Costs(names, tokenizer, separator)
    if num_negatives < 0:
        costs.check_all_fit()
        rows = [row for row in range(len(names)) if row not in excluded]
    else:
        # Sorted first: the order of a set must not enter the random stream.
        order = rng.permutation(sorted({int(row) for row in positives})).tolist()
        kept, budget = costs.fitting(order, tokenizer.max_content_tokens)
        count = _draw_count(min(num_negatives, len(names)), full_negatives_prob, rng)
        count -= len(kept) if negative_sampling == "total" else 0
        negatives = _draw_negatives(len(names), excluded.union(positives), count, negative_sampling, siblings, rng)
        rows = kept + costs.fitting(negatives, budget - 1)[0]  # One token stays free behind the last.
    if not any(names[row].strip() for row in rows):
        rows = [_draw_one(names, excluded, rng)]
    return rng.permutation(rows).tolist() if shuffle else sorted(rows)


def fit_one_prompt(names: Sequence[str], tokenizer: PromptTokenizer, separator: str = SEPARATOR) -> bool:
    """Tell whether a prompt holds all names, as ``num_negatives`` -1 needs."""
    return _Costs(names, tokenizer, separator).of_all() <= tokenizer.max_content_tokens


class Siblings(NamedTuple):
    """Names that are hard to tell from those in the image, and how many of the negatives they are.

    Attributes:
        rows: Rows of the names; positive ones may be among them.
        share: Probability in [0, 1] that a negative is one of them, as long as there are any left.
    """

    rows: Collection[int]
    share: float

    def draw(self, taken: Collection[int], count: int, rng: np.random.Generator) -> list[int]:
        """Draw those among ``count`` negatives, none of ``taken``; without any to draw, ``rng`` stays as it is."""
        # Sorted: the order of a set must not enter the random stream.
        free = sorted(set(self.rows).difference(taken))
        if not (free and self.share and count > 0):
            return []
        return rng.permutation(free)[: rng.binomial(count, self.share)].tolist()


class _Costs(NamedTuple):
    """How many tokens the names of a dataset take in a prompt."""

    names: Sequence[str]
    tokenizer: PromptTokenizer
    separator: str

    def of(self, row: int) -> int:
        """Count the tokens of a name and the separator behind it."""
        return self.tokenizer.count_tokens(clean_name(self.names[row]) + self.separator)

    def fitting(self, rows: Iterable[int], budget: int) -> tuple[list[int], int]:
        """Return the first rows that the budget holds, and what is left of it, below 0 if a row did not fit."""
        kept: list[int] = []
        for row in rows:
            budget -= self.of(row)
            if budget < 0:
                break
            kept.append(row)
        return kept, budget

    def of_all(self) -> int:
        """Count the tokens of a prompt of all names; no separator follows the last."""
        return sum(map(self.of, range(len(self.names)))) - self.tokenizer.count_tokens(self.separator)

    def check_all_fit(self) -> None:
        """Check that one prompt can hold all names."""
        limit, num_tokens = self.tokenizer.max_content_tokens, self.of_all()
        if num_tokens > limit:
            raise InputError(
                f"INPUT.PROMPT.NUM_NEGATIVES: -1 puts all {len(self.names)} names into one prompt, expected at most "
                f"{limit} tokens (MODEL.TEXT_ENCODER.MAX_TOKENS), found {num_tokens}; set a number of negatives"
            )


def _draw_count(full: int, full_negatives_prob: float, rng: np.random.Generator) -> int:
    if full == 0 or rng.random() < full_negatives_prob:
        return full
    return int(rng.integers(1, full + 1))


def _draw_one(names: Sequence[str], excluded: Collection[int], rng: np.random.Generator) -> int:
    """Draw a name for an empty prompt; a blank one is a phrase without tokens, which would leave it empty."""
    named = [row for row in range(len(names)) if names[row].strip()] or list(range(len(names)))
    others = [row for row in named if row not in excluded] or named
    return others[rng.integers(len(others))]


def _draw_negatives(
    num_names: int,
    excluded: Collection[int],
    count: int,
    sampling: str,
    siblings: Siblings | None,
    rng: np.random.Generator,
) -> list[int]:
    """Draw rows in random order, some of them siblings.

    "drawn" draws ``count`` and drops the excluded ones, "total" so many others.
    """
    near = [] if siblings is None else siblings.draw(excluded, count, rng)
    rows = np.delete(np.arange(num_names), near)
    count = max(count, 0) - len(near)
    order = rng.choice(rows, count, replace=False) if sampling == "drawn" else rng.permutation(rows)
    others = [row for row in order.tolist() if row not in excluded][:count]
    # Mixed, since the last ones may not fit into the prompt.
    return rng.permutation([*near, *others]).tolist() if near else others
