"""The speed of a training on this machine, measured before it begins."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage

from ..data.build import build_train_loader
from ..data.loading import load_test_dataset
from ..modeling.build import choose_device
from ..solver import build_optimizer
from .keep import give_base
from .train_loop import GroundingTrainLoop, amp_dtype
from .trainer import GLIPv2Trainer

# Updates and images that are timed, after as many that are not.
_TIMED_UPDATES = 8
_TIMED_IMAGES = 4


def measure_seconds(cfg: CfgNode, num_processes: int = 1) -> tuple[float, float]:
    """Time updates and test images on this machine, with a model that is thrown away.

    Args:
        cfg: Full config.
        num_processes: As many share batches and test images, each on a GPU of its own, which is timed alone; on CPUs
            they share the cores, too.

    Returns:
        Seconds of an update, and of a test image; 0 for the latter if none can be read.
    """
    num_processes = num_processes if choose_device(cfg.MODEL.DEVICE).type == "cuda" else 1
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.IMS_PER_BATCH //= num_processes
    cfg.freeze()
    model = GLIPv2Trainer.build_model(cfg)
    give_base(cfg, model)
    loop = GroundingTrainLoop(
        model,
        build_train_loader(cfg),
        build_optimizer(cfg, model),
        accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
        precision=amp_dtype(cfg),
    )
    with EventStorage(0):
        update = _seconds_of_second_half(loop.run_step, 2 * _TIMED_UPDATES)
    loader = GLIPv2Trainer.build_test_loader(cfg, load_test_dataset(cfg, cfg.DATASETS.TEST[0]))
    # A batch is one image, which may be unreadable.
    batches = (batch for batch in loader if "image" in batch[0])
    model.eval()
    with torch.no_grad():
        image = _seconds_of_second_half(lambda: model(next(batches)), 2 * _TIMED_IMAGES)
    return update, image / num_processes


def _seconds_of_second_half(step: Callable[[], object], count: int) -> float:
    """Call a function ``count`` times, or until its data end; return the mean time of the later calls."""
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        try:
            step()
        except StopIteration:
            break
        times.append(time.perf_counter() - begin)
    return statistics.fmean(times[len(times) // 2 :]) if times else 0.0
