"""The optimizer: AdamW with the parameter groups of GLIP, and gradient clipping over the whole model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler as build_fixed_lr_scheduler
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.solver.lr_scheduler import LRMultiplier, WarmupParamScheduler
from fvcore.common.param_scheduler import LinearParamScheduler
from torch import Tensor, nn

from .errors import InputError
from .modeling.heads.table import HEADS

GradientClipper = Callable[[Sequence[nn.Parameter]], Tensor]

# The value of SOLVER.CLIP_GRADIENTS.CLIP_TYPE that detectron2 does not have.
FULL_MODEL = "full_model"
_CLIP_TYPES = (FULL_MODEL, "norm", "value")

_NORM_MODULES = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build AdamW over the trainable parameters, in as few groups as their settings allow.

    Clipping per parameter (``CLIP_TYPE`` "norm" or "value") happens in the optimizer's ``step``; clipping of the whole
    model is ``build_gradient_clipper``.

    Raises:
        InputError: No parameter is trainable, or ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE`` is unknown.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE not in _CLIP_TYPES:
        raise InputError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE: expected one of {_CLIP_TYPES}, found {clip.CLIP_TYPE!r}")
    groups = parameter_groups(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        prefix_lr_factors={
            "text_encoder.": cfg.SOLVER.TEXT_ENCODER_MULTIPLIER,
            "backbone.bottom_up.": cfg.SOLVER.BACKBONE_MULTIPLIER,
            "prompt_tuner.": cfg.SOLVER.PROMPT_MULTIPLIER,
            **{f"{name}.": cfg.SOLVER.HEAD_MULTIPLIER for name, entry in HEADS.items() if entry.starts_random},
        },
    )
    if not groups:
        raise InputError("model: expected at least one trainable parameter, found all of them frozen")
    # One pass over the memory per parameter: three times as fast as the default on a CPU.
    optimizer = torch.optim.AdamW(groups, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY, fused=True)
    if clip.ENABLED and clip.CLIP_TYPE != FULL_MODEL:
        optimizer = maybe_add_gradient_clipping(cfg, optimizer)
    return optimizer


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
    """Build detectron2's scheduler. With ``SOLVER.AUTO_STEP`` it only warms up, and a hook changes the rate later."""
    if not cfg.SOLVER.AUTO_STEP.ENABLED:
        return build_fixed_lr_scheduler(cfg, optimizer)
    warmup_share = min(cfg.SOLVER.WARMUP_ITERS / cfg.SOLVER.MAX_ITER, 1.0)
    # fvcore's constant scheduler has no value at the very end of a run.
    multiplier = WarmupParamScheduler(
        LinearParamScheduler(1.0, 1.0), cfg.SOLVER.WARMUP_FACTOR, warmup_share, cfg.SOLVER.WARMUP_METHOD
    )
    return LRMultiplier(optimizer, multiplier, cfg.SOLVER.MAX_ITER)


def parameter_groups(
    model: nn.Module,
    *,
    base_lr: float,
    weight_decay: float,
    weight_decay_norm: float | None,
    weight_decay_bias: float | None,
    bias_lr_factor: float,
    prefix_lr_factors: dict[str, float],
) -> list[dict]:
    """Group the trainable parameters by learning rate and weight decay.

    Args:
        base_lr: Learning rate of parameters that no other rule changes.
        weight_decay: Weight decay of parameters that no other rule changes.
        weight_decay_norm: Decay of the weights of normalization layers; None: ``weight_decay``.
        weight_decay_bias: Decay of every parameter with "bias" anywhere in its name, including the position tables of
            Swin and the token biases of the head; None: ``weight_decay``.
        bias_lr_factor: Factor on the learning rate of the same parameters.
        prefix_lr_factors: For a beginning of names, the factor on the learning rate of these parameters.

    Returns:
        Groups as ``torch.optim`` takes them, ordered by their first parameter.

    Source: ``make_optimizer`` of the official code.
    """
    norm_weights = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, _NORM_MODULES)
        for parameter in module.parameters(recurse=False)
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        lr, decay = base_lr, weight_decay
        for prefix, factor in prefix_lr_factors.items():
            if name.startswith(prefix):
                lr *= factor
        if "bias" in name:
            lr *= bias_lr_factor
            decay = decay if weight_decay_bias is None else weight_decay_bias
        elif id(parameter) in norm_weights and weight_decay_norm is not None:
            decay = weight_decay_norm
        groups.setdefault((lr, decay), []).append(parameter)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


def build_gradient_clipper(cfg: CfgNode) -> GradientClipper:
    """Build the function that is called with all parameters between the backward pass and the update.

    It returns the norm over all gradients before clipping. It clips only with the type "full_model" of
    ``SOLVER.CLIP_GRADIENTS``.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE == FULL_MODEL:
        return functools.partial(nn.utils.clip_grad_norm_, max_norm=clip.CLIP_VALUE, norm_type=clip.NORM_TYPE)
    return total_gradient_norm


def total_gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the 2-norm over the gradients of all parameters, a scalar tensor; parameters without one count as 0."""
    return nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
