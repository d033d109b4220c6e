"""detectron2's FPN as GLIP uses it: extra levels from the P5 output, DropBlock while training."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from torch import Tensor, nn

from ...errors import InputError


class DropBlock(nn.Module):
    """Zero whole squares of a feature map during training and rescale the rest.

    Args:
        prob: Expected share of cells that start a square, times ``size`` squared; 0 switches it off.
        size: Side of a square in cells, odd.

    Source: DropBlock (Ghiasi et al., 2018); the official code: 0.3 and 3, one mask for all channels, drawn per image.
    """

    def __init__(self, prob: float, size: int) -> None:
        super().__init__()
        if not 0.0 <= prob < 1.0:
            raise InputError(f"MODEL.FPN.DROP_BLOCK_PROB: expected a number in [0, 1), found {prob}")
        if size % 2 == 0:
            raise ValueError(f"DropBlock size: expected an odd number, found {size}")
        self.prob = prob
        self.size = size

    def forward(self, feature: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape; identity in eval mode."""
        if not self.training or self.prob == 0.0:
            return feature
        n, _, height, width = feature.shape
        seeds = torch.rand(n, height, width, device=feature.device) < self.prob / self.size**2
        dropped = F.max_pool2d(seeds.float(), self.size, stride=1, padding=self.size // 2)
        kept = 1.0 - dropped
        # A map that lost every cell has nothing to rescale.
        scale = kept.numel() / kept.sum().clamp(min=1.0)
        return feature * (kept * scale).unsqueeze(1).to(feature.dtype)


class GroundingFPN(FPN):
    """detectron2's FPN with DropBlock in front of the output convolutions of the merged levels.

    The coarsest level, which nothing is merged into, is left alone. The next finer level receives the map before
    DropBlock. Names and shapes of the parameters are detectron2's.

    Args:
        drop_block_prob: See ``DropBlock``; its size is 3.
        args, kwargs: See ``detectron2.modeling.backbone.FPN``.

    Source: the FPN of the official code.
    """

    def __init__(self, *args, drop_block_prob: float = 0.3, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.drop_block = DropBlock(drop_block_prob, size=3)
        for conv in self.output_convs[1:]:
            conv.register_forward_pre_hook(functools.partial(_drop_input, self.drop_block))


def _drop_input(drop_block: DropBlock, _: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (drop_block(inputs[0]),)


def build_fpn(cfg: CfgNode, bottom_up: Backbone) -> GroundingFPN:
    """Put the FPN of the config on a bottom-up network with features of strides 8, 16, 32.

    If ``MODEL.FPN.IN_FEATURES`` is empty, all features of ``bottom_up`` are used. P6 and P7 are built if
    ``MODEL.GLIPV2.IN_FEATURES`` names them.

    Raises:
        InputError: It names only one of P6 and P7, or ``MODEL.FPN.IN_FEATURES`` names an unknown feature.
    """
    out_channels = cfg.MODEL.FPN.OUT_CHANNELS
    needs_top = {"p6", "p7"} & set(cfg.MODEL.GLIPV2.IN_FEATURES)
    if len(needs_top) == 1:
        raise InputError(f"MODEL.GLIPV2.IN_FEATURES: expected both or none of 'p6' and 'p7', found only {needs_top}")
    known = list(bottom_up.output_shape())
    in_features = list(cfg.MODEL.FPN.IN_FEATURES) or known
    if not set(in_features) <= set(known):
        raise InputError(f"MODEL.FPN.IN_FEATURES: expected some of the backbone's {known}, found {in_features}")
    return GroundingFPN(
        bottom_up=bottom_up,
        in_features=in_features,
        out_channels=out_channels,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
        # P6 comes from the P5 output, not from the bottom-up network's last feature.
        top_block=LastLevelP6P7(out_channels, out_channels, in_feature="p5") if needs_top else None,
        drop_block_prob=cfg.MODEL.FPN.DROP_BLOCK_PROB,
    )
