"""Other names that a tuning keeps: those that are mixed into its prompts beside the names of its own data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

from ..errors import InputError
from ..structures import KEPT_NAME, TokenizedPrompt
from .builder import clean_name, plain_name
from .name_texts import NameText, prompt_from_texts
from .tokenizer import PromptTokenizer
from .vocabulary import dataset_names

_KEY = "MODEL.GLIPV2.TUNING.KEEP"


class KeptNames(NamedTuple):
    """Names to draw from, none of which the data of the tuning has.

    Attributes:
        names: The names, at least one, cleaned and each once.
        number: Names in a prompt, at least 1; fewer if there are no more, or if the prompt is full.
        share: Share of the training images whose prompt has any, in [0, 1].
    """

    names: tuple[str, ...]
    number: int
    share: float

    @classmethod
    def from_config(cls, cfg: CfgNode, own: Iterable[str]) -> KeptNames:
        """Read the names that the config asks for, without those of the data.

        Args:
            cfg: The config.
            own: The names of the data, of all datasets; case and spaces do not count.

        Raises:
            InputError: No name is left, the file is not text, or a number is out of range.
            FileNotFoundError: There is neither the file nor a dataset of this name.
        """
        keep = cfg.MODEL.GLIPV2.TUNING.KEEP
        if not 0 <= keep.IMAGES <= 1:
            raise InputError(f"{_KEY}.IMAGES: expected a share from 0 to 1, found {keep.IMAGES}")
        if keep.NUM_NAMES < 1:
            raise InputError(f"{_KEY}.NUM_NAMES: expected at least 1, found {keep.NUM_NAMES}")
        found = _read(keep.NAMES)
        taken = {plain_name(name) for name in own}
        names = {plain_name(name): " ".join(clean_name(name).split()) for name in found}
        left = tuple(name for key, name in names.items() if key and key not in taken)
        if not left:
            raise InputError(
                f"{_KEY}.NAMES: expected a name that the training data do not have, found none in "
                f"{keep.NAMES or 'the names of LVIS'}; name a text file with one on each line"
            )
        return cls(left, keep.NUM_NAMES, keep.IMAGES)

    def draw(self, rng: np.random.Generator) -> list[str]:
        """Draw the names of one training image, in random order; none for the images beyond the share."""
        return self.draw_some(rng) if rng.random() < self.share else []

    def draw_some(self, rng: np.random.Generator) -> list[str]:
        """Draw the names of one prompt, in random order."""
        rows = rng.choice(len(self.names), min(self.number, len(self.names)), replace=False)
        return [self.names[row] for row in rows.tolist()]

    def prompts(self, tokenizer: PromptTokenizer, separator: str, count: int) -> list[TokenizedPrompt]:
        """Return prompts of these names alone, always the same ones, to compare two models with."""
        rng = np.random.default_rng(0)
        drawn = [self.draw_some(rng) for _ in range(count)]
        texts = [[NameText(name) for name in names] for names in drawn]
        ids = [[KEPT_NAME] * len(names) for names in drawn]
        return [tokenizer(prompt_from_texts(*pair, separator=separator)) for pair in zip(texts, ids, strict=True)]


def mix_names(
    own: Sequence[tuple[NameText, int]], others: Sequence[str], rng: np.random.Generator
) -> tuple[list[tuple[NameText, int]], list[int]]:
    """Put other names at random places among own ones, whose order stays.

    Args:
        own: Texts of own names with their category ids.
        others: Other names; without any nothing is drawn.
        rng: Draws the places.

    Returns:
        Texts and category ids in the order of the prompt, and the rows of the own ones in it.
    """
    if not others:
        return list(own), list(range(len(own)))
    count = len(own) + len(others)
    own_rows = sorted(rng.choice(count, len(own), replace=False).tolist())
    is_own = set(own_rows)
    rest, kept = iter(own), ((NameText(name), KEPT_NAME) for name in others)
    return [next(rest if row in is_own else kept) for row in range(count)], own_rows


def _read(source: str) -> list[str]:
    """Return the lines of a text file, the names of a registered dataset, or those of LVIS for ""."""
    if not source:
        return [one["name"] for one in LVIS_CATEGORIES]
    if not Path(source).is_file():
        if source in DatasetCatalog.list():
            return dataset_names(source)
        raise FileNotFoundError(f"{_KEY}.NAMES: expected a text file or a registered dataset, found none: {source}")
    try:
        return Path(source).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{_KEY}.NAMES: expected text in UTF-8, found {source}: {error}") from error
