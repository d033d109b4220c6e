"""Models from a config, on the device that it asks for."""

from __future__ import annotations

import torch
from detectron2 import modeling
from detectron2.config import CfgNode
from torch import nn

from ..errors import InputError


def choose_device(name: str) -> torch.device:
    """Return the device that ``MODEL.DEVICE`` means: "auto" is the GPU where one can be used, otherwise the CPU.

    Raises:
        InputError: It is no device, or a GPU on a machine without one that can be used.
    """
    has_gpu = torch.cuda.is_available()
    try:
        device = torch.device(("cuda" if has_gpu else "cpu") if name == "auto" else name)
    except RuntimeError:
        raise InputError(f"MODEL.DEVICE: expected 'auto', 'cpu', 'cuda' or 'cuda:NUMBER', found {name!r}") from None
    if device.type == "cuda" and not has_gpu:
        raise InputError(f"MODEL.DEVICE: expected 'auto' or 'cpu' on a machine without a usable GPU, found {name!r}")
    return device


def build_model(cfg: CfgNode) -> nn.Module:
    """Build the model of a config on its device, as detectron2's function of this name, which does not know "auto".

    Weights of ``MODEL.WEIGHTS`` are not loaded.

    Raises:
        InputError: See ``choose_device``; or a part refuses a value of the config.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = str(choose_device(cfg.MODEL.DEVICE))
    return modeling.build_model(cfg)
