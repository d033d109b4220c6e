"""Loaders: a training stream that resumes at any batch, and detectron2's test loader with prompts."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing.queues
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
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
from ..prompts.protocols import limits_of
from ..structures import DetectionLimits, TokenizedPrompt
from .dataset_mappers.build import build_train_mapper, mapper_of
from .dataset_mappers.detection import DetectionDatasetMapper
from .datasets.mask_checks import leave_out_masks
from .datasets.skip_report import DataReport
from .image_reading import UnreadableImageError, warn_of_truncated_images
from .loading import LoadedDataset
from .stream.order import TrainingBatchSampler
from .stream.samples import StoredSamples, StreamedSamples, TrainingSamples
from .stream.shards import ShardStream
from .stream.state import NotedConfig, StreamState, TrainLoader, resume_state
from .stream.training_sets import TrainingSets, load_training_sets

# What a test sample keeps of its dataset dict if its image cannot be read.
_KEPT_WITHOUT_IMAGE = ("file_name", "image_id", "height", "width", "question_id")
_OPEN_FILES = 65_536


def build_train_loader(cfg: CfgNode, start_iter: int = 0, saved: Mapping[str, Any] | None = None) -> TrainLoader:
    """Build the infinite loader of DATASETS.TRAIN; it yields lists of model inputs, one list per forward pass.

    With a SEED >= 0 the stream is a function of the seed alone: order, batches, augmentations and prompts are the same
    with any number of workers, and a loader that starts at iteration k goes on where k iterations had ended. With SEED
    -1 the seed is that of ``saved``, or is drawn here. What is streamed from shards depends on the number of processes
    and workers too. The shares of the datasets are those of DATASETS.TRAIN_RATIOS, or else of their sizes.

    A batch of all ranks together holds one kind of samples: boxes alone, questions, or captions to write, the last two
    with boxes or without. A batch of boxes alone never holds only images without boxes. A sample may report, under keys
    that are absent otherwise, what was left out on the way to it:

    * ``skipped_files``: a line for each image that could not be read, in whose place this sample stands;
    * ``truncated_files``: a line for the image of this sample, if its file was cut off;
    * ``damaged_shards``: a line for each shard that ended early;
    * ``skipped_records``: lines for the first few malformed records of shards;
    * ``dropped``: counts, see ``DROPPED_COUNTS``.

    Args:
        cfg: SOLVER.IMS_PER_BATCH is the number of images of a forward pass over all ranks.
        start_iter: Iterations to leave out, each of SOLVER.ACCUMULATION_STEPS batches. No image is read for them.
        saved: State of the loader of the run that is resumed, see ``StreamState``.

    Raises:
        InputError: A key of the config has a value that is not allowed, or annotations break their format.
        FileNotFoundError: Annotations, images or shards of a dataset are not there.
    """
    noted = NotedConfig(cfg)
    world_size = noted.note("number of processes", comm.get_world_size())
    batch_size = noted.SOLVER.IMS_PER_BATCH
    _check_keys(cfg, world_size)
    with DataReport.from_config(cfg):
        sets = load_training_sets(noted)
    # The number of processes that make samples for a rank.
    num_slots = max(1, cfg.DATALOADER.NUM_WORKERS)
    if sets.shards:
        noted.note("DATALOADER.NUM_WORKERS", num_slots)
    groups, shard_group = sets.groups(noted.DATALOADER.ASPECT_RATIO_GROUPING)
    start_batch = start_iter * noted.SOLVER.ACCUMULATION_STEPS
    state = resume_state(saved, _seed(cfg, saved), noted.layout, start_batch)
    samples = _training_samples(cfg, sets, groups, state, num_slots)
    sampler = TrainingBatchSampler(
        sets.draws(state.seed),
        groups,
        batch_size // world_size,
        seed=state.seed,
        is_empty=samples.stored.is_empty,
        shard_group=shard_group,
        streamed=list(sets.shards),
        kinds=sets.kinds,
        rank=comm.get_rank(),
        world_size=world_size,
        start_batch=start_batch,
        num_slots=num_slots,
        first_shard_batch=state.first_shard_batch,
    )
    loader = _data_loader(cfg, samples, sampler, state.seed)
    return TrainLoader(loader, state, num_images=0 if sets.shards else len(sets.dicts))


def build_test_loader(cfg: CfgNode, dataset: LoadedDataset) -> TestLoader:
    """Build the loader of a test dataset: each dataset dict once over all ranks, alone in its batch.

    All images of a detection dataset share the prompts that hold every name. A sentence with boxes is its own prompt,
    and so is a question; for captions to be written there is no prompt, and an image comes once, however many it has.
    A sample whose image cannot be read has no ``image``, but ``unreadable``, which says why.
    """
    mapper_class = mapper_of(dataset.name)
    mapper = mapper_class(**mapper_class.from_config(cfg, is_train=False, dataset_names=[dataset.name]))
    dicts = leave_out_masks(mapper.test_dicts(dataset.dicts))
    num_workers = cfg.DATALOADER.NUM_WORKERS
    if isinstance(mapper, DetectionDatasetMapper):
        loader = _test_samples(dicts, mapper.test_image, num_workers)
        return SharedPromptLoader(loader, mapper.test_prompts({}), limits_of(cfg, dataset.name))
    return TestLoader(_test_samples(dicts, mapper, num_workers))


def tuned_prompts(cfg: CfgNode) -> list[list[int]] | None:
    """Return the token ids of the prompts of all DATASETS.TRAIN, which a prompt tuning makes tables for.

    None stands for sentences, of which each image has its own.
    """
    prompts: list[list[int]] = []
    for name in cfg.DATASETS.TRAIN:
        mapper_class = mapper_of(name)
        if not mapper_class.has_category_names:
            return None
        mapper = mapper_class(**mapper_class.from_config(cfg, is_train=False, dataset_names=[name]))
        prompts += [prompt.input_ids.tolist() for prompt in mapper.test_prompts({})]
    return prompts


class TestLoader:
    """A loader that passes batches on, and warns once in a run, after the last, of the truncated images in them."""

    # No test of pytest.
    __test__ = False

    def __init__(self, loader: DataLoader):
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[dict]]:
        truncated: list[str] = []
        with _starting_workers():
            batches = iter(self.loader)
        for batch in batches:
            for sample in batch:
                truncated += sample.pop("truncated_files", ())
            yield batch
        if truncated:
            warn_of_truncated_images(truncated)


class SharedPromptLoader(TestLoader):
    """A loader that puts the same list of prompts, and the same limits of detections, into every sample.

    It does so in the main process: from a worker each sample would bring a copy of the whole vocabulary.
    """

    def __init__(self, loader: DataLoader, prompts: list[TokenizedPrompt], limits: DetectionLimits):
        super().__init__(loader)
        self.prompts = prompts
        self.limits = limits

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in super().__iter__():
            yield [{**sample, "prompts": self.prompts, "detection_limits": self.limits} for sample in batch]


def _check_keys(cfg: CfgNode, world_size: int) -> None:
    batch_size, loader = cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER
    if batch_size < 1 or batch_size % world_size:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH: expected a positive multiple of the {world_size} processes, found {batch_size}"
        )
    if loader.SAMPLER_TRAIN != "TrainingSampler":
        raise InputError(f"DATALOADER.SAMPLER_TRAIN: expected 'TrainingSampler', found {loader.SAMPLER_TRAIN!r}")
    if loader.SHUFFLE_BUFFER < 1:
        raise InputError(f"DATALOADER.SHUFFLE_BUFFER: expected at least 1, found {loader.SHUFFLE_BUFFER}")


class _QuietDataLoader(DataLoader):
    """A loader whose workers do not have a Ctrl-C that comes while they are being started."""

    def __iter__(self) -> Any:
        with _starting_workers():
            return super().__iter__()


def _data_loader(cfg: CfgNode, samples: TrainingSamples, sampler: TrainingBatchSampler, seed: int) -> DataLoader:
    _allow_open_files()
    return _QuietDataLoader(
        samples,
        batch_sampler=sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
        worker_init_fn=_start_worker,
        # Its own generator: starting the workers must not move the random state of the training.
        generator=torch.Generator().manual_seed(seed),
    )


def _test_samples(dicts: list[dict], make: Callable[[dict], dict], num_workers: int) -> DataLoader:
    _allow_open_files()
    loader = build_detection_test_loader(dicts, mapper=functools.partial(_readable, make), num_workers=num_workers)
    loader.worker_init_fn = _start_worker
    return loader


def _readable(make: Callable[[dict], dict], dataset_dict: dict) -> dict:
    """Make the model input of a dataset dict, or say why its image cannot be read."""
    try:
        return make(dataset_dict)
    except UnreadableImageError as error:
        kept = {key: value for key, value in dataset_dict.items() if key in _KEPT_WITHOUT_IMAGE}
        return {**kept, "unreadable": str(error)}


def _training_samples(
    cfg: CfgNode, sets: TrainingSets, groups: np.ndarray, state: StreamState, num_slots: int
) -> TrainingSamples:
    """Put samples of both kinds together, and make sure that there is something in the shards."""
    stored = StoredSamples(
        sets.dicts,
        groups,
        pseudo_datasets={name for name in cfg.DATASETS.TRAIN if mapper_of(name).has_pseudo_boxes},
        num_negative_captions=cfg.INPUT.PROMPT.NUM_NEGATIVE_CAPTIONS,
        needs_boxes=sets.kinds == 0,
    )
    shard_sets = {
        dataset: shards._replace(seed=state.seed, first_epoch=state.first_epoch)
        for dataset, shards in sets.shards.items()
    }
    for shards in shard_sets.values():
        ShardStream(shards, slot=0, num_slots=1).check()
    streamed = StreamedSamples(
        shard_sets,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        num_slots=num_slots,
        positions=state.positions,
    )
    return TrainingSamples(stored, streamed, build_train_mapper(cfg), state.seed)


def _seed(cfg: CfgNode, saved: Mapping[str, Any] | None) -> int:
    if cfg.SEED >= 0:
        return cfg.SEED
    return comm.shared_random_seed() if saved is None else saved["seed"]


def _allow_open_files() -> None:
    """Let this process and its workers have more open files than the usual 1,024: each tensor on its way is one."""
    # Windows has neither the module nor the limit.
    if os.name != "posix":
        return
    import resource

    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if most == resource.RLIM_INFINITY else min(_OPEN_FILES, most)
    # macOS may permit less than it says.
    with contextlib.suppress(ValueError, OSError):
        if now != resource.RLIM_INFINITY and now < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


@contextlib.contextmanager
def _starting_workers() -> Iterator[None]:
    """Keep Ctrl-C from the workers that are started in this time; before ``_start_worker`` each would show it."""
    # Windows has no signals that can be held.
    if os.name != "posix":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(worker_id: int) -> None:
    """Keep a worker to one core, since the workers together use the machine; the main process answers signals."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    # Left alone, two threads would drop the sample or its tensors, and the main process wait for them forever.
    sys.excepthook = lambda kind, error, traceback: _leave_undelivered(error, None)
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_leave_undelivered)  # type: ignore[attr-defined]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        # The first one went to the whole group, and the main process may still need samples. The next is its own, and a
        # worker that it ends must not look like one that has died.
        signal.signal(number, lambda number, frame: signal.signal(number, lambda *_: os._exit(0)))


def _end_with(main_process: int) -> None:
    """End a worker whose main process was killed; one with more samples than a pipe takes would wait forever."""
    while os.getppid() == main_process:
        time.sleep(2)
    os._exit(1)


def _leave_undelivered(error: BaseException, sample: Any) -> None:
    """End a worker that cannot pass on a sample, as where shared memory or the number of open files is at its end."""
    if isinstance(error, ConnectionError):
        # The main process is gone, or has dropped what it was about to take.
        return
    sys.stderr.write(f"data worker: expected to pass on a sample, found {error}\n")
    sys.stderr.flush()
    os._exit(1)
