"""Which sample comes next: infinite sequences of draws from several datasets, pure functions of the seed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from ..errors import InputError

# Draws between two of which the shares of the datasets are met to within one draw.
ROUND_LENGTH = 8192
# Shorter pieces would cost more time than they hold draws.
_MIN_PIECE = 1024
# Last words of the seeds, so that no two uses of a seed meet. Seeds of two words end in zero.
_DATASETS, _ORDER = 1, 2


def draw_by_size(members: Sequence[np.ndarray], seed: int) -> Iterator[np.ndarray]:
    """Draw every member of all datasets once, in random order, epoch after epoch.

    Args:
        members: For each dataset its members, any integers; at least one in all.
        seed: Not negative.

    Yields:
        The draws of one epoch or, of a small dataset, of several, int64.
    """
    table = np.concatenate(members)
    num_epochs = math.ceil(_MIN_PIECE / len(table))
    for first in itertools.count(step=num_epochs):
        epochs = range(first, first + num_epochs)
        yield table[np.concatenate([np.random.default_rng((seed, e)).permutation(len(table)) for e in epochs])]


def draw_by_ratio(members: Sequence[np.ndarray], ratios: Sequence[float], seed: int) -> Iterator[np.ndarray]:
    """Draw from each dataset its share; within a dataset every member once, in random order, pass after pass.

    Args:
        members: For each dataset its members, any integers; each at least one.
        ratios: For each dataset its share of the draws, up to a common factor.
        seed: Not negative.

    Yields:
        ``ROUND_LENGTH`` draws, int64. In them a dataset has its share, rounded up or down at random.
    """
    bounds = np.cumsum(ratios) / math.fsum(ratios)
    passes = [_Passes(own, seed, dataset) for dataset, own in enumerate(members)]
    for number in itertools.count():
        rng = np.random.default_rng((seed, number, 0, _DATASETS))
        # Equally spaced points with one random offset: no share is off by more than one draw.
        points = (np.arange(ROUND_LENGTH) + rng.random()) / ROUND_LENGTH
        datasets = rng.permutation(np.searchsorted(bounds[:-1], points, side="right"))
        draws = np.empty(ROUND_LENGTH, dtype=np.int64)
        for dataset, own in enumerate(passes):
            chosen = datasets == dataset
            draws[chosen] = own.take(int(chosen.sum()))
        yield draws


def check_ratios(ratios: Sequence[float], num_datasets: int) -> None:
    """Check DATASETS.TRAIN_RATIOS; empty means "by size" and is fine.

    Raises:
        InputError: There is not one finite number above 0 for each dataset.
    """
    if ratios and len(ratios) != num_datasets:
        raise InputError(
            f"DATASETS.TRAIN_RATIOS has {len(ratios)} numbers, expected one for each of the {num_datasets} datasets of "
            f"DATASETS.TRAIN, or none"
        )
    for ratio in ratios:
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio < math.inf:
            raise InputError(f"DATASETS.TRAIN_RATIOS holds {ratio!r}, expected finite numbers above 0")


class _Passes:
    """The members of one dataset, shuffled anew for each pass."""

    def __init__(self, members: np.ndarray, seed: int, dataset: int):
        self._members = members
        self._rng = np.random.default_rng((seed, dataset, 0, _ORDER))
        self._waiting = members[:0]

    def take(self, count: int) -> np.ndarray:
        """Return the next ``count`` members."""
        num_passes = max(0, math.ceil((count - len(self._waiting)) / len(self._members)))
        passes = self._rng.permuted(np.tile(self._members, (num_passes, 1)), axis=1)
        taken = np.concatenate([self._waiting, passes.ravel()])
        self._waiting = taken[count:]
        return taken[:count]
