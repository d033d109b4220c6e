"""All datasets of DATASETS.TRAIN together: what can be drawn from them, and which samples may share a batch."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import MetadataCatalog

from ...errors import InputError
from ..dataset_mappers.base import PromptDatasetMapper
from ..dataset_mappers.build import MAPPERS, mapper_of
from ..dataset_mappers.vqa import VQADatasetMapper, questions_by_image
from ..datasets.few_shot import few_shot_settings
from ..datasets.tar_shards import shard_urls_of
from ..loading import check_is_available, load_training_dicts, training_names
from .order import draw_by_ratio, draw_by_size, shard_draw
from .shards import ShardSet
from .state import DIGEST_OF, NotedConfig


class TrainingSets(NamedTuple):
    """The training datasets.

    Attributes:
        dicts: Dataset dicts of those that are not streamed, one dataset after the other.
        shards: The streamed datasets, by their index in DATASETS.TRAIN; without seed and first epoch.
        members: For each dataset what a draw from it can be: indices of ``dicts``, or its ``shard_draw``.
        ratios: Share of each dataset, up to a common factor; empty: by the number of members.
        kinds: (M,) for the M dicts, what their samples train: 0, boxes alone; else 1 + 2 * the index of the task among
            those that train more, + 1 with boxes.
    """

    dicts: list[dict]
    shards: dict[int, ShardSet]
    members: list[np.ndarray]
    ratios: list[float]
    kinds: np.ndarray

    def draws(self, seed: int) -> Callable[[], Iterator[np.ndarray]]:
        """Return a function that begins the infinite sequence of draws of a seed."""
        if self.ratios:
            return functools.partial(draw_by_ratio, self.members, self.ratios, seed)
        return functools.partial(draw_by_size, self.members, seed)

    def groups(self, by_aspect_ratio: bool) -> tuple[np.ndarray, int]:
        """Return the groups that share no batch: (M,) for the M dicts, and the one of all streamed samples.

        Dicts of two kinds are always apart.

        Args:
            by_aspect_ratio: Keep upright and wide images apart; one of unknown size counts as upright. The shape of a
                streamed image is not known before it is read: it goes with the larger group.
        """
        is_wide = [by_aspect_ratio and item.get("width", 0) > item.get("height", 0) for item in self.dicts]
        groups = np.array(is_wide, dtype=np.int64)
        of_boxes = groups[self.kinds == 0]
        return 2 * self.kinds + groups, int(of_boxes.mean() >= 0.5) if len(of_boxes) else 0


def load_training_sets(cfg: NotedConfig) -> TrainingSets:
    """Load the datasets of DATASETS.TRAIN; nothing of a shard is read.

    Raises:
        InputError: A dataset is not registered, its annotations break their format, nothing of it can be trained on, or
            DATASETS.TRAIN_RATIOS or TRAIN_COPIES do not fit.
        FileNotFoundError: Annotations, images or shards of a dataset are not there.
    """
    names, ratios = list(training_names(cfg)), list(cfg.DATASETS.TRAIN_RATIOS)
    copies = list(cfg.DATASETS.TRAIN_COPIES)
    check_ratios("DATASETS.TRAIN_RATIOS", ratios, len(names))
    check_ratios("DATASETS.TRAIN_COPIES", copies, len(names))
    if ratios and copies:
        raise InputError("DATASETS.TRAIN_COPIES: expected none beside DATASETS.TRAIN_RATIOS, found both")
    if cfg.aside.INPUT.QUESTIONS_PER_IMAGE < 1:
        raise InputError(f"INPUT.QUESTIONS_PER_IMAGE: expected at least 1, found {cfg.aside.INPUT.QUESTIONS_PER_IMAGE}")
    dicts: list[dict] = []
    kinds: list[int] = []
    shards: dict[int, ShardSet] = {}
    members: list[np.ndarray] = []
    for dataset, name in enumerate(names):
        check_is_available(name)
        mapper = mapper_of(name)
        urls = shard_urls_of(name)
        if urls is None:
            own = _load_dicts(cfg, name, mapper)
            cfg.note(f"{DIGEST_OF}{name!r}", annotations_digest(name, own))
            members.append(len(dicts) + np.arange(len(own)))
            dicts += own
            kinds += _kinds(cfg, mapper, own)
        else:
            shards[dataset] = _shard_set(cfg, dataset, name, mapper, urls)
            members.append(np.full(1 if ratios or copies else _num_samples(name), shard_draw(dataset)))
    if copies:
        sizes = [_num_samples(names[row]) if row in shards else len(own) for row, own in enumerate(members)]
        ratios = [float(size * copy) for size, copy in zip(sizes, copies, strict=True)]
    cfg.note("number of stored images", len(dicts))
    if shards:
        cfg.note("number of shards", [len(one.urls) for one in shards.values()])
    return TrainingSets(dicts, shards, members, ratios, np.array(kinds, dtype=np.int64))


def annotations_digest(name: str, dicts: Sequence[dict]) -> str:
    """Return hexadecimal digits that change with the names of a dataset and all that its dicts hold, and their order.

    Names of files are left out, so that a folder may move.
    """
    digest = hashlib.blake2b(digest_size=8)
    digest.update(_as_json(MetadataCatalog.get(name).get("thing_classes", [])))
    for record in dicts:
        digest.update(_as_json({key: value for key, value in record.items() if not str(key).endswith("file_name")}))
    return digest.hexdigest()


def _as_json(value: Any) -> bytes:
    # What has no text of its own, such as an object, is told by its type alone: its address differs from run to run.
    return json.dumps(value, skipkeys=True, default=_plain).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    return value.tolist() if hasattr(value, "tolist") else type(value).__name__


def _load_dicts(cfg: NotedConfig, name: str, mapper: type[PromptDatasetMapper]) -> list[dict]:
    """Load one dataset that is not streamed; questions about one image together where several are asked for."""
    dicts = load_training_dicts(
        name,
        filter_empty=mapper.learns_boxes_alone and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_score=cfg.INPUT.PROMPT.MIN_PSEUDO_SCORE if mapper.has_pseudo_boxes else 0.0,
        with_masks=cfg.aside.MODEL.MASK_ON,
        few_shot=few_shot_settings(cfg if cfg.aside.DATASETS.FEW_SHOT.SHOTS else cfg.aside),
    )
    if mapper is VQADatasetMapper and cfg.INPUT.QUESTIONS_PER_IMAGE != 1:
        return questions_by_image(dicts)
    return dicts


def _kinds(cfg: NotedConfig, mapper: type[PromptDatasetMapper], dicts: list[dict]) -> list[int]:
    if mapper.learns_boxes_alone:
        return [0] * len(dicts)
    # A batch holds one of the tasks that train more than boxes, with boxes or without, or boxes alone.
    own_batches = [task for task, one in MAPPERS.items() if not one.learns_boxes_alone]
    is_grounded = bool(mapper.config_node) and cfg.MODEL.GLIPV2[mapper.config_node].GROUNDED
    first = 1 + 2 * own_batches.index(mapper.task)
    return [first + int(is_grounded and "annotations" in item) for item in dicts]


def _shard_set(
    cfg: NotedConfig, dataset: int, name: str, mapper: type[PromptDatasetMapper], urls: list[str]
) -> ShardSet:
    shots = cfg.aside.DATASETS.FEW_SHOT.SHOTS
    if shots:
        raise InputError(f"DATASETS.FEW_SHOT.SHOTS: expected 0 or files, found {shots} and {name!r}, a stream")
    return ShardSet(
        name,
        tuple(urls),
        min_score=cfg.INPUT.PROMPT.MIN_PSEUDO_SCORE if mapper.has_pseudo_boxes else 0.0,
        num_negative_captions=cfg.aside.INPUT.PROMPT.NUM_NEGATIVE_CAPTIONS if mapper.has_pseudo_boxes else 0,
        dataset=dataset,
        buffer_size=cfg.DATALOADER.SHUFFLE_BUFFER,
    )


def check_ratios(key: str, ratios: Sequence[float], num_datasets: int) -> None:
    """Check the numbers of a config key, one for each dataset; empty means "by size" and is fine.

    Raises:
        InputError: There is not one finite number above 0 for each dataset.
    """
    if ratios and len(ratios) != num_datasets:
        raise InputError(
            f"{key}: expected one number for each of the {num_datasets} datasets of DATASETS.TRAIN, or "
            f"none, found {len(ratios)}"
        )
    for ratio in ratios:
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio < math.inf:
            raise InputError(f"{key}: expected finite numbers above 0, found {ratio!r}")


def _num_samples(name: str) -> int:
    number = MetadataCatalog.get(name).num_samples
    if number is None:
        raise InputError(
            f"DATASETS.TRAIN_RATIOS: expected ratios, or num_samples at register_shards, found neither: the number of "
            f"samples in the shards of {name!r} is not known"
        )
    return number
