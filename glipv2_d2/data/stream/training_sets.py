"""All datasets of DATASETS.TRAIN together: what can be drawn from them, and which samples may share a batch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ...errors import InputError
from ..dataset_mappers.base import BOX_TASKS
from ..dataset_mappers.build import dataset_task
from ..dataset_mappers.vqa import questions_by_image
from ..datasets.few_shot import few_shot_settings
from ..datasets.tar_shards import shard_urls_of
from ..loading import check_is_registered, load_training_dicts
from .order import draw_by_ratio, draw_by_size, shard_draw

# Kinds of samples that train more than boxes, by task and whether they train boxes too. A batch holds one of them.
_KINDS = (("vqa", False), ("vqa", True), ("captioning", False), ("captioning", True))


class TrainingSets(NamedTuple):
    """The training datasets.

    Attributes:
        tasks: Kind of data of each dataset, in the order of DATASETS.TRAIN.
        dicts: Dataset dicts of those that are no streams, one dataset after the other.
        shards: Addresses of the shards of the streams, by the place of their dataset.
        members: For each dataset what a draw from it can be: indices of ``dicts``, or its ``shard_draw``.
        ratios: Share of each dataset, up to a common factor; empty: by the number of members.
        kinds: (M,) of the M dicts, what their samples train: boxes alone (0), or a row of ``_KINDS`` plus one. Empty:
            boxes alone.
    """

    tasks: list[str]
    dicts: list[dict]
    shards: dict[int, list[str]]
    members: list[np.ndarray]
    ratios: list[float]
    kinds: np.ndarray = np.empty(0, dtype=np.int64)

    def draws(self, seed: int) -> Callable[[], Iterator[np.ndarray]]:
        """Return a function that begins the infinite sequence of draws of a seed."""
        if self.ratios:
            return functools.partial(draw_by_ratio, self.members, self.ratios, seed)
        return functools.partial(draw_by_size, self.members, seed)

    def groups(self, by_aspect_ratio: bool) -> tuple[np.ndarray, int]:
        """Return the groups that share no batch: (M,) of the M dicts, and that of all streamed samples.

        Dicts of two kinds are always apart.

        Args:
            by_aspect_ratio: Keep upright and wide images apart; one of unknown size counts as upright. The shape of a
                streamed image is not known before it is read: it goes with the larger group.
        """
        is_wide = [by_aspect_ratio and item.get("width", 0) > item.get("height", 0) for item in self.dicts]
        groups = np.array(is_wide, dtype=np.int64)
        kinds = self.kinds if len(self.kinds) else np.zeros_like(groups)
        of_boxes = groups[kinds == 0]
        return 2 * kinds + groups, int(of_boxes.mean() >= 0.5) if len(of_boxes) else 0


def load_training_sets(cfg: CfgNode) -> TrainingSets:
    """Load the datasets of DATASETS.TRAIN; of shards nothing is read.

    Raises:
        InputError: A dataset is not registered, its annotations break their format, nothing of it can be trained on, or
            DATASETS.TRAIN_RATIOS does not fit.
        FileNotFoundError: Annotations, images or shards of a dataset are not there.
    """
    names, ratios = cfg.DATASETS.TRAIN, list(cfg.DATASETS.TRAIN_RATIOS)
    if not names:
        raise InputError("DATASETS.TRAIN is empty, expected at least one dataset")
    check_ratios(ratios, len(names))
    if cfg.INPUT.QUESTIONS_PER_IMAGE < 1:
        raise InputError(f"INPUT.QUESTIONS_PER_IMAGE is {cfg.INPUT.QUESTIONS_PER_IMAGE}, expected at least 1")
    few_shot = few_shot_settings(cfg)
    dicts: list[dict] = []
    shards: dict[int, list[str]] = {}
    members: list[np.ndarray] = []
    for dataset, name in enumerate(names):
        check_is_registered(name)
        urls = shard_urls_of(name)
        if urls is None:
            own = load_training_dicts(
                [name],
                cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
                cfg.INPUT.PROMPT.MIN_PSEUDO_SCORE,
                with_masks=cfg.MODEL.MASK_ON,
                few_shot=few_shot,
            )
            if dataset_task(name) == "vqa" and cfg.INPUT.QUESTIONS_PER_IMAGE != 1:
                own = questions_by_image(own)
            members.append(len(dicts) + np.arange(len(own)))
            dicts += own
        else:
            if few_shot.shots:
                raise InputError(f"DATASETS.FEW_SHOT.SHOTS is {few_shot.shots} and {name!r} a stream, expected files")
            shards[dataset] = urls
            members.append(np.full(1 if ratios else _num_samples(name), shard_draw(dataset)))
    kinds = np.array([_kind(cfg, item) for item in dicts], dtype=np.int64)
    return TrainingSets([dataset_task(name) for name in names], dicts, shards, members, ratios, kinds)


def check_ratios(ratios: Sequence[float], num_datasets: int) -> None:
    """Check DATASETS.TRAIN_RATIOS; empty means "by size" and is fine.

    Raises:
        InputError: There is not one finite number above 0 for each dataset.
    """
    if ratios and len(ratios) != num_datasets:
        raise InputError(
            f"DATASETS.TRAIN_RATIOS: expected one number for each of the {num_datasets} datasets of DATASETS.TRAIN, or "
            f"none, found {len(ratios)}"
        )
    for ratio in ratios:
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio < math.inf:
            raise InputError(f"DATASETS.TRAIN_RATIOS: expected finite numbers above 0, found {ratio!r}")


def _kind(cfg: CfgNode, dataset_dict: dict) -> int:
    task = dataset_task(dataset_dict["dataset_name"])
    if task in BOX_TASKS:
        return 0
    part = cfg.MODEL.GLIPV2.VQA if task == "vqa" else cfg.MODEL.GLIPV2.CAPTIONING
    return 1 + _KINDS.index((task, part.GROUNDED and "annotations" in dataset_dict))


def _num_samples(name: str) -> int:
    number = MetadataCatalog.get(name).num_samples
    if number is None:
        raise InputError(
            f"DATASETS.TRAIN_RATIOS is empty, and the number of samples in the shards of {name!r} is not known: "
            f"expected ratios, or num_samples at register_shards"
        )
    return number
