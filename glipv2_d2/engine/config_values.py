"""Values of a config that detectron2, torch and transformers would refuse without the name of their key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import get_norm
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY

from ..errors import InputError

# Lower limits of numbers, and of each number of a list.
_MODEL_LIMITS = {
    "INPUT.MAX_SIZE_TEST": 0,
    "INPUT.MAX_SIZE_TRAIN": 1,
    "INPUT.MIN_SIZE_TEST": 0,
    "INPUT.MIN_SIZE_TRAIN": 1,
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0,
    "MODEL.FPN.OUT_CHANNELS": 1,
    "MODEL.GLIPV2.FUSION.NUM_HEADS": 1,
    "MODEL.GLIPV2.TOWER.CHANNELS": 1,
    "MODEL.SWIN.DEPTHS": 1,
    "MODEL.SWIN.EMBED_DIM": 1,
    "MODEL.SWIN.NUM_HEADS": 1,
    "MODEL.SWIN.OUT_INDICES": 0,
    "MODEL.SWIN.WINDOW_SIZE": 1,
    "MODEL.TEXT_ENCODER.DROPOUT": 0,
    "MODEL.TEXT_ENCODER.HIDDEN_SIZE": 1,
    "MODEL.TEXT_ENCODER.INTERMEDIATE_SIZE": 1,
    "MODEL.TEXT_ENCODER.MAX_POSITIONS": 1,
    "MODEL.TEXT_ENCODER.NUM_HEADS": 1,
    "MODEL.TEXT_ENCODER.VOCAB_SIZE": 1,
}
_SOLVER_LIMITS = {
    "SOLVER.BASE_LR": 0,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "SOLVER.MAX_CHECKPOINTS": 0,
    "SOLVER.MAX_ITER": 1,
    "SOLVER.REFERENCE_WORLD_SIZE": 0,
    "SOLVER.STEPS": 1,
    "SOLVER.WEIGHT_DECAY": 0,
}
_SCHEDULERS = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")


def check_model_values(cfg: CfgNode) -> None:
    """Check the keys of the model and of its input.

    Raises:
        InputError: A name is unknown, or a number is too low.
    """
    _check_limits(cfg, _MODEL_LIMITS)
    _check_choice(cfg, "MODEL.META_ARCHITECTURE", (name for name, _ in META_ARCH_REGISTRY))
    _check_choice(cfg, "MODEL.BACKBONE.NAME", (name for name, _ in BACKBONE_REGISTRY))
    _check_choice(cfg, "MODEL.ANCHOR_GENERATOR.NAME", (name for name, _ in ANCHOR_GENERATOR_REGISTRY))
    _check_choice(cfg, "MODEL.FPN.FUSE_TYPE", ("sum", "avg"))
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError:
        raise InputError(f"MODEL.DEVICE: expected 'cpu', 'cuda' or 'cuda:NUMBER', found {cfg.MODEL.DEVICE!r}") from None
    try:
        get_norm(cfg.MODEL.FPN.NORM, 1)
    except (KeyError, ValueError):
        raise InputError(f"MODEL.FPN.NORM: expected a norm of detectron2, found {cfg.MODEL.FPN.NORM!r}") from None


def check_solver_values(cfg: CfgNode) -> None:
    """Check the keys of a training.

    Raises:
        InputError: A name is unknown, a number is too low, or the steps do not ascend.
    """
    _check_limits(cfg, _SOLVER_LIMITS)
    _check_choice(cfg, "SOLVER.LR_SCHEDULER_NAME", _SCHEDULERS)
    _check_choice(cfg, "SOLVER.WARMUP_METHOD", ("linear", "constant"))
    steps = list(cfg.SOLVER.STEPS)
    if steps != sorted(set(steps)):
        raise InputError(f"SOLVER.STEPS: expected ascending numbers of iterations, found {steps}")


def _check_limits(cfg: CfgNode, limits: Mapping[str, int]) -> None:
    for key, least in limits.items():
        value = _value(cfg, key)
        numbers = value if isinstance(value, (list, tuple)) else [value]
        # NaN is not above any limit.
        if not all(isinstance(number, (int, float)) and number >= least for number in numbers):
            what = "numbers of at least" if numbers is value else "at least"
            raise InputError(f"{key}: expected {what} {least}, found {value}")


def _check_choice(cfg: CfgNode, key: str, choices: Iterable[str]) -> None:
    known = sorted(choices)
    if _value(cfg, key) not in known:
        raise InputError(f"{key}: expected one of {', '.join(known)}, found {_value(cfg, key)!r}")


def _value(cfg: CfgNode, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg
