"""The command line that both demo datasets share."""

import argparse
import os
from pathlib import Path
from typing import Any, TypeVar

from .composer import SceneRules
from .folder import DatasetParameters

Parameters = TypeVar("Parameters", bound=DatasetParameters)


def add_dataset_options(parser: argparse.ArgumentParser, name: str, num_names: int | None, num_novel: int) -> None:
    """Add the options of a dataset of composed scenes; ``name`` is also the name of its folder."""
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()
    parser.add_argument("--output", type=Path, default=root / name, help=f"default: $DETECTRON2_DATASETS/{name}")
    every = "all that are not novel" if num_names is None else num_names
    parser.add_argument(
        "--num-names", type=int, default=num_names, metavar="K", help=f"names in train and val (default: {every})"
    )
    parser.add_argument("--num-novel", type=int, default=num_novel, help="names not in train (default: %(default)s)")
    parser.add_argument("--num-train", type=int, default=4000, help="training scenes (default: %(default)s)")
    parser.add_argument("--num-val", type=int, default=150, help="scenes in each val split (default: %(default)s)")
    parser.add_argument("--size", type=int, default=320, help="side of a scene in pixels (default: %(default)s)")
    parser.add_argument(
        "--objects", type=int, nargs=2, default=(2, 4), metavar=("MIN", "MAX"), help="objects in a scene (default: 2 4)"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides everything drawn (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="processes (default: %(default)s)")


def add_cache_option(parser: argparse.ArgumentParser, what: str = "folder of the packages") -> None:
    """Add the option of the folder of StampWorld's packages, which the other datasets made of them share."""
    cache = Path(os.environ.get("GLIPV2_D2_CACHE", "~/.cache/glipv2_d2")) / "stampworld"
    text = f"{what} (default: %(default)s; variable GLIPV2_D2_CACHE)"
    parser.add_argument("--cache", type=Path, default=cache, help=text)


def usable_cores() -> int:
    """The cores that this process may use, which in a job of a cluster are few of the machine's."""
    # macOS leaves all to everyone.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parameters_from(
    options: argparse.Namespace, name: str, source_version: str, kind: type[Parameters] = DatasetParameters, **more: Any
) -> Parameters:
    """What the command line asks for, and ``more`` fields of the kind.

    Raises:
        ValueError: A number is out of range.
    """
    return kind(
        name=name,
        source_version=source_version,
        num_names=options.num_names,
        num_novel=options.num_novel,
        num_train=options.num_train,
        num_val=options.num_val,
        seed=options.seed,
        rules=rules_from(options),
        **more,
    )


def rules_from(options: argparse.Namespace) -> SceneRules:
    """How the command line asks scenes to be laid out."""
    low, high = options.objects
    return SceneRules(size=options.size, min_objects=low, max_objects=high)
