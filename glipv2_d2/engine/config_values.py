"""Values of a config that detectron2, torch and transformers would refuse without the name of their key."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import get_norm
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY

from ..detectron2_keys import check_config
from ..errors import InputError
from ..modeling.build import choose_device
from ..prompts.masking import trains_pretraining_losses
from ..tensor_files import NO_WEIGHTS

# Numbers, and lists of numbers, by their lower limit.
_MODEL_LIMITS = {
    -1: "INPUT.PROMPT.NUM_NEGATIVES",
    0: "INPUT.MAX_SIZE_TEST INPUT.MIN_SIZE_TEST MODEL.ANCHOR_GENERATOR.OFFSET MODEL.SWIN.OUT_INDICES "
    "MODEL.TEXT_ENCODER.DROPOUT DATALOADER.NUM_WORKERS TEST.DETECTIONS_PER_IMAGE",
    1: "INPUT.MAX_SIZE_TRAIN INPUT.MIN_SIZE_TRAIN MODEL.FPN.OUT_CHANNELS MODEL.GLIPV2.FUSION.NUM_HEADS "
    "MODEL.GLIPV2.TOWER.CHANNELS MODEL.SWIN.DEPTHS MODEL.SWIN.EMBED_DIM MODEL.SWIN.NUM_HEADS MODEL.SWIN.WINDOW_SIZE "
    "MODEL.TEXT_ENCODER.HIDDEN_SIZE MODEL.TEXT_ENCODER.INTERMEDIATE_SIZE MODEL.TEXT_ENCODER.MAX_POSITIONS "
    "MODEL.TEXT_ENCODER.NUM_HEADS MODEL.TEXT_ENCODER.VOCAB_SIZE SOLVER.ACCUMULATION_STEPS SOLVER.IMS_PER_BATCH",
}
# Widths, by the number of heads that share each of them alike.
_WIDTHS = {
    "MODEL.TEXT_ENCODER.NUM_HEADS": "MODEL.TEXT_ENCODER.HIDDEN_SIZE",
    "MODEL.GLIPV2.FUSION.NUM_HEADS": "MODEL.GLIPV2.FUSION.EMBED_DIM",
}
_SOLVER_LIMITS = {
    0: "SOLVER.BASE_LR SOLVER.MAX_CHECKPOINTS SOLVER.REFERENCE_WORLD_SIZE SOLVER.WEIGHT_DECAY",
    1: "SOLVER.CHECKPOINT_PERIOD SOLVER.MAX_ITER SOLVER.STEPS",
}


def check_model_values(cfg: CfgNode) -> None:
    """Check the keys of the model, of its input and of batches.

    Raises:
        InputError: A name is unknown, a number is too low, numbers do not fit together, or there is no GPU.
    """
    _check_limits(cfg, _MODEL_LIMITS)
    _check_widths(cfg)
    _check_choice(cfg, "MODEL.META_ARCHITECTURE", (name for name, _ in META_ARCH_REGISTRY))
    _check_choice(cfg, "MODEL.BACKBONE.NAME", (name for name, _ in BACKBONE_REGISTRY))
    _check_choice(cfg, "MODEL.ANCHOR_GENERATOR.NAME", (name for name, _ in ANCHOR_GENERATOR_REGISTRY))
    _check_choice(cfg, "MODEL.FPN.FUSE_TYPE", ("sum", "avg"))
    try:
        get_norm(cfg.MODEL.FPN.NORM, 1)
    except (KeyError, ValueError):
        raise InputError(f"MODEL.FPN.NORM: expected a norm of detectron2, found {cfg.MODEL.FPN.NORM!r}") from None
    choose_device(cfg.MODEL.DEVICE)


def _check_widths(cfg: CfgNode) -> None:
    """Check that heads divide widths, and that lists have an entry for each stage or channel."""
    for key, width_key in _WIDTHS.items():
        number, width = _value(cfg, key), _value(cfg, width_key)
        if width % number:
            raise InputError(f"{key}: expected a divisor of {width_key} {width}, found {number}")
    swin = cfg.MODEL.SWIN
    for stage, number in enumerate(swin.NUM_HEADS):
        if swin.EMBED_DIM * 2**stage % number:
            expected = f"divisors of MODEL.SWIN.EMBED_DIM {swin.EMBED_DIM}, doubled at each stage"
            raise InputError(f"MODEL.SWIN.NUM_HEADS: expected {expected}, found {swin.NUM_HEADS}")
    for key, length in (
        *(("MODEL.SWIN.DEPTHS", 4), ("MODEL.SWIN.NUM_HEADS", 4)),
        *(("MODEL.PIXEL_MEAN", 3), ("MODEL.PIXEL_STD", 3)),
    ):
        if len(_value(cfg, key)) != length:
            raise InputError(f"{key}: expected {length} numbers, found {_value(cfg, key)}")


def check_solver_values(cfg: CfgNode) -> None:
    """Check the keys of a training, after ``check_config``.

    Raises:
        InputError: A key is changed that nothing reads, a name is unknown, a number is too low, the steps do not
            ascend, or expected results are malformed.
    """
    check_config(cfg)
    _check_limits(cfg, _SOLVER_LIMITS)
    _check_choice(
        cfg, "SOLVER.LR_SCHEDULER_NAME", ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")
    )
    _check_choice(cfg, "SOLVER.WARMUP_METHOD", ("linear", "constant"))
    steps = list(cfg.SOLVER.STEPS)
    if steps != sorted(set(steps)):
        raise InputError(f"SOLVER.STEPS: expected ascending numbers of iterations, found {steps}")
    for row in cfg.TEST.EXPECTED_RESULTS:
        kinds: tuple[Any, ...] = (str, str, (int, float), (int, float))
        is_row = isinstance(row, (list, tuple)) and len(row) == len(kinds)
        if not is_row or not all(isinstance(value, kind) for value, kind in zip(row, kinds, strict=True)):
            expected = "lists of task, metric, value and tolerance"
            raise InputError(f"TEST.EXPECTED_RESULTS: expected {expected}, found {row!r}")


def _check_limits(cfg: CfgNode, limits: dict[int, str]) -> None:
    for least, key in ((least, key) for least, keys in limits.items() for key in keys.split()):
        value = _value(cfg, key)
        numbers = value if isinstance(value, (list, tuple)) else [value]
        # NaN is not above any limit.
        if not all(isinstance(number, (int, float)) and number >= least for number in numbers):
            what = "numbers of at least" if numbers is value else "at least"
            raise InputError(f"{key}: expected {what} {least}, found {value}")


def _check_choice(cfg: CfgNode, key: str, choices: Iterable[str]) -> None:
    known = sorted(choices)
    value = _value(cfg, key)
    if value not in known:
        raise InputError(f"{key}: expected one of {', '.join(known)}, found {value!r}")


def warn_of_tuning(cfg: CfgNode) -> None:
    """Warn of settings with which a part that is tuned has little to learn from."""
    logger, tuning = logging.getLogger(__name__), cfg.MODEL.GLIPV2.TUNING.MODE
    if tuning != "full" and cfg.MODEL.WEIGHTS in NO_WEIGHTS:
        logger.warning(
            "MODEL.WEIGHTS names no file: with MODEL.GLIPV2.TUNING.MODE %r all weights but the tuned ones stay random",
            tuning,
        )
    _warn_of_pretraining_losses(cfg)


def _warn_of_pretraining_losses(cfg: CfgNode) -> None:
    """Warn of masked words and contrast in a tuning: those that are left out, and those that stay."""
    logger, part, prompt = logging.getLogger(__name__), cfg.MODEL.GLIPV2, cfg.INPUT.PROMPT
    keys = [f"MODEL.GLIPV2.{name}.ENABLED" for name in ("MLM", "CONTRASTIVE") if part[name].ENABLED]
    has_fixed_prompt = prompt.NUM_NEGATIVES == -1 and not prompt.SHUFFLE
    is_tuning = part.TUNING.MODE != "full" or cfg.DATASETS.FEW_SHOT.SHOTS or has_fixed_prompt
    if not keys or not is_tuning:
        return
    if trains_pretraining_losses(cfg):
        logger.warning(
            "%s: found True in a tuning; expected False, unless losses of pre-training are wanted: with MLM the model "
            "trains on prompts with masked words, which no test has",
            ", ".join(keys),
        )
    else:
        logger.warning(
            "%s: found True, without effect with MODEL.GLIPV2.TUNING.MODE %r; "
            "MODEL.GLIPV2.TUNING.PRETRAINING_LOSSES True keeps losses of pre-training",
            *(", ".join(keys), part.TUNING.MODE),
        )


def _value(cfg: CfgNode, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), cfg)
