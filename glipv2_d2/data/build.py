"""Loaders: a training stream that can be taken up at any batch, and detectron2's test loader with shared prompts."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    MetadataCatalog,
    build_detection_test_loader,
    print_instances_class_histogram,
)
from detectron2.data.build import filter_images_with_only_crowd_annotations, trivial_batch_collator
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from .dataset_mappers.base import PromptDatasetMapper, UnreadableImageError
from .dataset_mappers.detection import DetectionDatasetMapper
from .datasets.annotation_checks import check_dataset_dicts
from .datasets.coco import check_dataset_files
from .samplers import StreamEntry, TrainingBatchSampler, sample_seed
from ..structures import TokenizedPrompt

# Images in a row that may be unreadable before a sample gives up: far more than single bad files explain.
_MAX_REPLACEMENTS = 10


def build_train_loader(cfg: CfgNode, start_iter: int = 0) -> DataLoader:
    """Build the infinite loader of DATASETS.TRAIN; it yields lists of model inputs, one list per forward pass.

    With a SEED >= 0 the stream is a function of the seed alone: order, batches, augmentations and prompts are the same
    with any number of workers, and a loader that starts at iteration k goes on where k iterations had ended. With SEED
    -1 a seed is drawn here.

    A sample whose image could not be read is replaced by another, and says so under ``skipped_files``, a list of one
    line per file.

    Args:
        cfg: SOLVER.IMS_PER_BATCH is the number of images of a forward pass over all ranks.
        start_iter: Iterations to leave out, each of SOLVER.ACCUMULATION_STEPS batches. No image is read for them.

    Raises:
        ValueError: A key of the config has a value that cannot be, or annotations break their format.
        FileNotFoundError: Annotations or images of a dataset are not there.
    """
    world_size = comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH < 1 or cfg.SOLVER.IMS_PER_BATCH % world_size:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, expected a positive multiple of the {world_size} "
            f"processes"
        )
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise ValueError(f"DATALOADER.SAMPLER_TRAIN is {cfg.DATALOADER.SAMPLER_TRAIN!r}, expected 'TrainingSampler'")
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    dataset_dicts = load_training_dicts(cfg.DATASETS.TRAIN, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    groups = np.array([int(item["width"] > item["height"]) for item in dataset_dicts])
    if not cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        groups[:] = 0
    sampler = TrainingBatchSampler(
        groups,
        cfg.SOLVER.IMS_PER_BATCH // world_size,
        seed=seed,
        rank=comm.get_rank(),
        world_size=world_size,
        start_batch=start_iter * cfg.SOLVER.ACCUMULATION_STEPS,
    )
    return DataLoader(
        TrainingSamples(dataset_dicts, groups, DetectionDatasetMapper(cfg), seed),
        batch_sampler=sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
        worker_init_fn=_use_one_thread,
        # Its own generator: starting the workers must not move the random state of the training.
        generator=torch.Generator().manual_seed(seed),
    )


def build_test_loader(cfg: CfgNode, dataset_name: str) -> SharedPromptLoader:
    """Build the loader of a test dataset: each image once over all ranks, alone in its batch, with all prompts.

    Raises:
        ValueError: The dataset is not registered, or its annotations break the format.
        FileNotFoundError: Annotations or images of the dataset are not there.
    """
    dataset_dicts = _load_dataset(dataset_name)
    mapper = DetectionDatasetMapper(cfg, is_train=False, dataset_names=(dataset_name,))
    loader = build_detection_test_loader(
        dataset_dicts, mapper=mapper.test_image, num_workers=cfg.DATALOADER.NUM_WORKERS
    )
    return SharedPromptLoader(loader, mapper.test_prompts({}))


class SharedPromptLoader:
    """A loader that puts the same list of prompts into every sample.

    It does so in the main process: from a worker each sample would bring a copy of the whole vocabulary.
    """

    def __init__(self, loader: DataLoader, prompts: list[TokenizedPrompt]):
        self.loader = loader
        self.prompts = prompts

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in self.loader:
            yield [{**sample, "prompts": self.prompts} for sample in batch]


class TrainingSamples(Dataset):
    """The samples of the training stream, each made from nothing but its entry in the stream and the seed."""

    def __init__(self, dataset_dicts: list[dict], groups: np.ndarray, mapper: PromptDatasetMapper, seed: int):
        """
        Args:
            dataset_dicts: At least one.
            groups: For each of them the group that its replacement comes from.
            mapper: Makes the model inputs.
            seed: Of the stream, not negative.
        """
        self.dataset_dicts = DatasetFromList(dataset_dicts, copy=False)
        self.groups = groups
        self.mapper = mapper
        self.seed = seed

    def __getitem__(self, entry: StreamEntry) -> dict:
        """Make the sample of a stream entry; see ``build_train_loader`` for images that cannot be read.

        Raises:
            UnreadableImageError: Too many images in a row could not be read.
        """
        seed = sample_seed(self.seed, entry.position)
        skipped: list[str] = []
        for index in self._candidates(entry.index, seed):
            try:
                sample = self.mapper({**self.dataset_dicts[index], "sample_seed": seed})
            except UnreadableImageError as error:
                logging.getLogger(__name__).warning("skipped %s", error)
                skipped.append(str(error))
                continue
            return {**sample, "skipped_files": skipped} if skipped else sample
        raise UnreadableImageError(f"{len(skipped)} images in a row could not be read; the last: {skipped[-1]}")

    def _candidates(self, index: int, seed: int) -> Iterator[int]:
        """Yield the sample itself, then others of its group, drawn by the sample's own seed."""
        yield index
        others = np.flatnonzero(self.groups == self.groups[index])
        others = others[others != index]
        rng = np.random.default_rng(seed)
        yield from rng.choice(others, min(_MAX_REPLACEMENTS, len(others)), replace=False).tolist()


def load_training_dicts(names: Sequence[str], filter_empty: bool) -> list[dict]:
    """Load datasets one after the other; each dict says under ``dataset_name`` where it comes from.

    Args:
        names: Registered datasets, at least one.
        filter_empty: Leave out images without a box that is no crowd region.

    Raises:
        ValueError: A dataset is not registered, annotations break their format, or no image is left.
        FileNotFoundError: Annotations or images of a dataset are not there.
    """
    if not names:
        raise ValueError("DATASETS.TRAIN is empty, expected at least one dataset")
    loaded: list[dict] = []
    for name in names:
        dataset_dicts = _load_dataset(name)
        if any("annotations" not in item for item in dataset_dicts):
            raise ValueError(f"dataset {name!r} has images without 'annotations', expected a dataset to train on")
        if filter_empty:
            dataset_dicts = filter_images_with_only_crowd_annotations(dataset_dicts)
        print_instances_class_histogram(dataset_dicts, MetadataCatalog.get(name).thing_classes)
        loaded.extend({**item, "dataset_name": name} for item in dataset_dicts)
    if not loaded:
        raise ValueError(f"DATASETS.TRAIN {tuple(names)}: found no image with boxes, expected at least one")
    return loaded


def _load_dataset(name: str) -> list[dict]:
    """Load a dataset by its name and check it, whichever reader it was registered with."""
    if name not in DatasetCatalog:
        similar = difflib.get_close_matches(name, DatasetCatalog.keys()) or ["a name given to register_coco_grounding"]
        raise ValueError(f"dataset {name!r} is not registered, expected for example {', '.join(similar)}")
    check_dataset_files(name)
    dataset_dicts = DatasetCatalog.get(name)
    names = MetadataCatalog.get(name).get("thing_classes")
    if not names or not dataset_dicts:
        found = f"{len(dataset_dicts)} images and thing_classes {names}"
        raise ValueError(f"dataset {name!r}: found {found}, expected at least one of both")
    check_dataset_dicts(name, dataset_dicts, len(names))
    return dataset_dicts


def _use_one_thread(worker_id: int) -> None:
    """Keep a worker to one core: the workers together use the machine."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
