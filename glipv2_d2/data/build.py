"""Loaders: a training stream that can be taken up at any batch, and detectron2's test loader with prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from torch.utils.data import DataLoader

from ..errors import InputError
from ..structures import TokenizedPrompt
from .dataset_mappers.build import SENTENCE_MAPPERS, build_train_mapper, dataset_task
from .dataset_mappers.detection import DetectionDatasetMapper
from .loading import load_dataset
from .stream.order import TrainingBatchSampler
from .stream.samples import StoredSamples, StreamedSamples, TrainingSamples
from .stream.shards import ShardSet, ShardStream
from .stream.state import StreamState, TrainLoader, resume_state
from .stream.training_sets import TrainingSets, load_training_sets


def build_train_loader(cfg: CfgNode, start_iter: int = 0, saved: Mapping[str, Any] | None = None) -> TrainLoader:
    """Build the infinite loader of DATASETS.TRAIN; it yields lists of model inputs, one list per forward pass.

    With a SEED >= 0 the stream is a function of the seed alone: order, batches, augmentations and prompts are the same
    with any number of workers, and a loader that starts at iteration k goes on where k iterations had ended. With SEED
    -1 the seed is that of ``saved``, or is drawn here. What is streamed from shards depends on the number of processes
    and workers too. The shares of the datasets are those of DATASETS.TRAIN_RATIOS, or else of their sizes.

    A batch of all ranks together holds one kind of samples: boxes alone, questions, or captions to write, the last two
    with boxes or without. None of the first kind holds only images without boxes. A sample may report, under keys that
    are absent otherwise, what was left out on the way to it:

    * ``skipped_files``: a line for each image that could not be read, in whose place this sample stands;
    * ``damaged_shards``: a line for each shard that ended early;
    * ``skipped_records``: lines for the first few malformed records of shards;
    * ``dropped``: counts, see ``DROPPED_COUNTS``.

    Args:
        cfg: SOLVER.IMS_PER_BATCH is the number of images of a forward pass over all ranks.
        start_iter: Iterations to leave out, each of SOLVER.ACCUMULATION_STEPS batches. No image is read for them.
        saved: State of the loader of the run that is resumed, see ``StreamState``.

    Raises:
        InputError: A key of the config has a value that cannot be, or annotations break their format.
        FileNotFoundError: Annotations, images or shards of a dataset are not there.
    """
    world_size = comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH < 1 or cfg.SOLVER.IMS_PER_BATCH % world_size:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, expected a positive multiple of the {world_size} "
            f"processes"
        )
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise InputError(f"DATALOADER.SAMPLER_TRAIN is {cfg.DATALOADER.SAMPLER_TRAIN!r}, expected 'TrainingSampler'")
    if cfg.DATALOADER.SHUFFLE_BUFFER < 1:
        raise InputError(f"DATALOADER.SHUFFLE_BUFFER is {cfg.DATALOADER.SHUFFLE_BUFFER}, expected at least 1")
    sets = load_training_sets(cfg)
    start_batch = start_iter * cfg.SOLVER.ACCUMULATION_STEPS
    state = resume_state(saved, _seed(cfg, saved), _layout(cfg, sets), start_batch)
    groups, shard_group = sets.groups(cfg.DATALOADER.ASPECT_RATIO_GROUPING)
    samples = _training_samples(cfg, sets, groups, state)
    sampler = TrainingBatchSampler(
        sets.draws(state.seed),
        groups,
        cfg.SOLVER.IMS_PER_BATCH // world_size,
        seed=state.seed,
        is_empty=samples.stored.is_empty,
        shard_group=shard_group,
        streamed=list(sets.shards),
        kinds=sets.kinds,
        rank=comm.get_rank(),
        world_size=world_size,
        start_batch=start_batch,
        num_slots=_num_slots(cfg),
        first_shard_batch=state.first_shard_batch,
    )
    loader = DataLoader(
        samples,
        batch_sampler=sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
        worker_init_fn=_use_one_thread,
        # Its own generator: starting the workers must not move the random state of the training.
        generator=torch.Generator().manual_seed(state.seed),
    )
    return TrainLoader(loader, state)


def build_test_loader(cfg: CfgNode, dataset_name: str) -> SharedPromptLoader | DataLoader:
    """Build the loader of a test dataset: each dataset dict once over all ranks, alone in its batch.

    All images of a detection dataset share the prompts that hold every name. A sentence with boxes is its own prompt, and so
    is a question; where captions are to be written there is no prompt, and an image comes once, however many it has.

    Raises:
        InputError: The dataset is not registered, or its annotations break the format.
        FileNotFoundError: Annotations or images of the dataset are not there.
    """
    dataset_dicts = load_dataset(dataset_name)
    num_workers = cfg.DATALOADER.NUM_WORKERS
    task = dataset_task(dataset_name)
    if task == "captioning":
        # The evaluator knows the captions of all.
        dataset_dicts = list({one["file_name"]: one for one in reversed(dataset_dicts)}.values())[::-1]
    if task != "detection":
        own_prompts = SENTENCE_MAPPERS[task](cfg, is_train=False)
        return build_detection_test_loader(dataset_dicts, mapper=own_prompts, num_workers=num_workers)
    mapper = DetectionDatasetMapper(cfg, is_train=False, dataset_names=(dataset_name,))
    loader = build_detection_test_loader(dataset_dicts, mapper=mapper.test_image, num_workers=num_workers)
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


def _training_samples(cfg: CfgNode, sets: TrainingSets, groups: np.ndarray, state: StreamState) -> TrainingSamples:
    """Put samples of both kinds together, and make sure that there is something in the shards."""
    num_negatives = cfg.INPUT.PROMPT.NUM_NEGATIVE_CAPTIONS
    stored = StoredSamples(
        sets.dicts,
        groups,
        pseudo_datasets={
            name for name, task in zip(cfg.DATASETS.TRAIN, sets.tasks, strict=True) if task == "pseudo_grounding"
        },
        num_negative_captions=num_negatives,
        needs_boxes=sets.kinds == 0,
    )
    shard_sets = {}
    for dataset, urls in sets.shards.items():
        is_pseudo = sets.tasks[dataset] == "pseudo_grounding"
        shard_sets[dataset] = ShardSet(
            cfg.DATASETS.TRAIN[dataset],
            tuple(urls),
            min_score=cfg.INPUT.PROMPT.MIN_PSEUDO_SCORE if is_pseudo else 0.0,
            num_negative_captions=num_negatives if is_pseudo else 0,
            dataset=dataset,
            seed=state.seed,
            buffer_size=cfg.DATALOADER.SHUFFLE_BUFFER,
            first_epoch=state.first_epoch,
        )
        ShardStream(shard_sets[dataset], slot=0, num_slots=1).check()
    streamed = StreamedSamples(
        shard_sets,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        num_slots=_num_slots(cfg),
        positions=state.positions,
    )
    return TrainingSamples(stored, streamed, build_train_mapper(cfg), state.seed)


def _seed(cfg: CfgNode, saved: Mapping[str, Any] | None) -> int:
    if cfg.SEED >= 0:
        return cfg.SEED
    return comm.shared_random_seed() if saved is None else saved["seed"]


def _num_slots(cfg: CfgNode) -> int:
    """Return the number of processes that make samples for a rank."""
    return max(1, cfg.DATALOADER.NUM_WORKERS)


def _layout(cfg: CfgNode, sets: TrainingSets) -> dict[str, Any]:
    """List all that the order of the samples depends on beside the seed, under the names that a user knows."""
    layout = {
        "DATASETS.TRAIN": list(cfg.DATASETS.TRAIN),
        "DATASETS.TRAIN_RATIOS": sets.ratios,
        "number of stored images": len(sets.dicts),
        "SOLVER.IMS_PER_BATCH": cfg.SOLVER.IMS_PER_BATCH,
        "SOLVER.ACCUMULATION_STEPS": cfg.SOLVER.ACCUMULATION_STEPS,
        "DATALOADER.ASPECT_RATIO_GROUPING": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "number of processes": comm.get_world_size(),
    }
    if cfg.DATASETS.FEW_SHOT.SHOTS:
        layout["DATASETS.FEW_SHOT.SHOTS"] = cfg.DATASETS.FEW_SHOT.SHOTS
        layout["DATASETS.FEW_SHOT.SEED"] = cfg.DATASETS.FEW_SHOT.SEED
    for task, part in (("vqa", "VQA"), ("captioning", "CAPTIONING")):
        if task in sets.tasks:
            layout[f"MODEL.GLIPV2.{part}.GROUNDED"] = cfg.MODEL.GLIPV2[part].GROUNDED
    if "vqa" in sets.tasks:
        layout["INPUT.QUESTIONS_PER_IMAGE"] = cfg.INPUT.QUESTIONS_PER_IMAGE
    if sets.shards:
        layout["number of shards"] = [len(urls) for urls in sets.shards.values()]
        layout["DATALOADER.NUM_WORKERS"] = _num_slots(cfg)
        layout["DATALOADER.SHUFFLE_BUFFER"] = cfg.DATALOADER.SHUFFLE_BUFFER
        layout["INPUT.PROMPT.MIN_PSEUDO_SCORE"] = cfg.INPUT.PROMPT.MIN_PSEUDO_SCORE
    return layout


def _use_one_thread(worker_id: int) -> None:
    """Keep a worker to one core: the workers together use the machine."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
