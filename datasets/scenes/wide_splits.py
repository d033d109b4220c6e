"""Shares names, looks and collections of the wide world out among its splits."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .composer import Background, Category, CutOut
from .dataset import Split
from .folder import DatasetParameters
from .wide_names import KeptOut, Lexicon
from .wordnet import Sense

# The number that shuffling puts into its seed.
_SHUFFLE_SEED = 7


@dataclass(frozen=True)
class WideParameters(DatasetParameters):
    """Everything that decides what the files of the wide world hold.

    Attributes:
        num_names: Names in train; None for all.
        num_novel: Names of val_names.
        max_looks: Looks of a name in train.
        num_held_looks: Names of which one look is kept for val_looks.
        held_source: The collection that is kept for val_source.
    """

    max_looks: int = 8
    num_held_looks: int = 150
    held_source: str = "drawn stamps"

    def __post_init__(self):
        super().__post_init__()
        for key, least in (("max_looks", 1), ("num_held_looks", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"{key}: expected at least {least}, found {getattr(self, key)}")


@dataclass(frozen=True)
class WideName:
    """A name of the wide world: its category and meaning, and the cut-outs of each collection that has some.

    ``is_fixed`` says that the name is one of StampWorld's train, and stays in every training vocabulary.
    """

    category: Category
    sense: Sense
    cut_outs: Mapping[str, Sequence[CutOut]]
    is_fixed: bool = False


def plan_wide_splits(
    names: Sequence[WideName],
    backgrounds: tuple[list[Background], list[Background]],
    parameters: WideParameters,
    lexicon: Lexicon,
) -> list[Split]:
    """Share names, looks and backgrounds out.

    * ``val_names``: names that train has not, nor their synonyms or kinds;
    * ``val_source``: the cut-outs of one whole collection, under names that train has from others;
    * ``val_looks``: one cut-out of names that have three or more, without those of that collection;
    * ``train``: everything else, at most ``max_looks`` cut-outs of a name.

    No two names of a val split may be said of one object.

    Args:
        backgrounds: Those of train, and those of the val splits.

    Raises:
        ValueError: There are fewer names than asked for.
    """
    rng = np.random.default_rng([parameters.seed, _SHUFFLE_SEED])
    names = [names[index] for index in rng.permutation(len(names))]
    relatives = relatives_of([one.category for one in names])
    fixed = {one.category.name for one in names if one.is_fixed}
    free = [one for one in names if not one.is_fixed and fixed.isdisjoint(relatives[one.category.name])]
    novel = _unrelated(free, relatives, parameters.num_novel)
    if len(novel) < parameters.num_novel:
        raise ValueError(f"num_novel: expected at most {len(novel)}, the unrelated names, found {parameters.num_novel}")
    kept_out = KeptOut([one.category for one in novel], lexicon)
    seen = [one for one in names if one.is_fixed or (one.category.name, one.sense) not in kept_out]
    pools = {
        one.category.name: [
            cut_out for key, some in one.cut_outs.items() if key != parameters.held_source for cut_out in some
        ]
        for one in seen
    }
    seen = [one for one in seen if pools[one.category.name]]
    # Names of StampWorld first: a smaller vocabulary is part of every larger one.
    seen = sorted(seen, key=lambda one: not one.is_fixed)[: parameters.num_names]
    rich = [one for one in seen if len(pools[one.category.name]) >= 3]
    held_looks = {}
    for one in _unrelated(rich, relatives, parameters.num_held_looks):
        pool = pools[one.category.name]
        held_looks[one.category.name] = [pool.pop(int(rng.integers(len(pool))))]
    train = {}
    for one in seen:
        pool = pools[one.category.name]
        chosen = rng.permutation(len(pool))[: parameters.max_looks]
        train[one.category.name] = [pool[index] for index in sorted(chosen)]
    of_source = _unrelated([one for one in seen if one.cut_outs.get(parameters.held_source)], relatives, len(seen))
    vals = {
        "val_looks": held_looks,
        "val_names": {
            one.category.name: [cut_out for some in one.cut_outs.values() for cut_out in some] for one in novel
        },
        "val_source": {one.category.name: list(one.cut_outs[parameters.held_source]) for one in of_source},
    }
    kin = kin_of([one.category for one in seen], relatives)
    splits = [Split("train", parameters.num_train, train, backgrounds[0], kin, _within(relatives, train))]
    for name, cut_outs in vals.items():
        if cut_outs:
            splits.append(Split(name, parameters.num_val, cut_outs, backgrounds[1]))
    return splits


def relatives_of(categories: Sequence[Category]) -> dict[str, frozenset[str]]:
    """Of each name, the others that its object may be called, and those that are perhaps its more exact name."""
    names = {category.name for category in categories}
    relatives = {category.name: set(category.kinds & names) - {category.name} for category in categories}
    people = {category.name for category in categories if category.group == "person"}
    for name in people:  # a pirate is a man, or a woman: no table says which
        relatives[name] |= people - {name}
    for name, others in [(name, set(others)) for name, others in relatives.items()]:
        for other in others:
            relatives[other].add(name)
    return {name: frozenset(others) for name, others in relatives.items()}


def kin_of(categories: Sequence[Category], relatives: Mapping[str, Collection[str]]) -> dict[str, tuple[str, ...]]:
    """Of each name, the others of its group that are not its relatives: a robin for a crow, but no bird."""
    members: dict[str, list[str]] = {}
    for category in sorted(categories, key=lambda category: category.name):
        members.setdefault(category.group, []).append(category.name)
    return {
        one.name: tuple(name for name in members[one.group] if name != one.name and name not in relatives[one.name])
        for one in categories
    }


def _unrelated(names: Sequence[WideName], relatives: Mapping[str, Collection[str]], number: int) -> list[WideName]:
    """The first names of which no two are relatives."""
    chosen: list[WideName] = []
    taken: set[str] = set()
    for one in names:
        if len(chosen) < number and one.category.name not in taken:
            chosen.append(one)
            taken |= relatives[one.category.name]
    return chosen


def _within(relatives: Mapping[str, Collection[str]], names: Collection[str]) -> dict[str, frozenset[str]]:
    return {name: frozenset(other for other in relatives[name] if other in names) for name in names}
