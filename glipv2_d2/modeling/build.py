"""Models from a config, on the device that it asks for."""

from __future__ import annotations

import torch
from detectron2 import modeling
from detectron2.config import CfgNode
from torch import nn


def choose_device(name: str) -> torch.device:
    """Return the device that ``MODEL.DEVICE`` means: "auto" is the GPU where one can be used, otherwise the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def build_model(cfg: CfgNode) -> nn.Module:
    """Build the model of a config on its device, as detectron2's function of this name, which does not know "auto".

    Weights of ``MODEL.WEIGHTS`` are not loaded.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = str(choose_device(cfg.MODEL.DEVICE))
    return modeling.build_model(cfg)
