"""Names and shapes of the weights of a config's model, without the memory or the time to make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn
from torch.overrides import TorchFunctionMode


def build_meta_model(cfg: CfgNode) -> nn.Module:
    """Build the model of a config with tensors that have a shape but no values.

    Files named in the config are not read. The text encoder must be given by its sizes: a directory in
    ``MODEL.TEXT_ENCODER.WEIGHTS`` is only known once it is read.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    cfg.MODEL.WEIGHTS = cfg.MODEL.TIMM.WEIGHTS = cfg.MODEL.GLIPV2.CLASS_WORDS.WEIGHTS = ""
    with torch.device("meta"), _RatesWithValues():
        return build_model(cfg)


class _RatesWithValues(TorchFunctionMode):
    """Keep ``torch.linspace`` on the CPU: detectron2's Swin reads its stochastic depth rates from it as numbers."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)
