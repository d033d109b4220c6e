"""Hourglasses: convolutions that see a map at several resolutions and give it back at its own."""

from __future__ import annotations

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.layers import Conv2d
from torch import Tensor, nn

from ..errors import InputError

# Dilations of the three convolutions of a residual unit.
_DILATIONS = (1, 3, 1)


class Residual(nn.Module):
    """Add to a map what three 3x3 convolutions make of it, the middle one dilated by 3.

    Each convolution follows a ReLU and keeps the size; the two inner maps have half the channels.

    Args:
        channels: C, even.
        num_groups: Groups of the GroupNorm after each convolution, which then has no bias; they must divide
            ``channels // 2``. 0: no GroupNorm.

    Raises:
        InputError: ``channels`` is odd, or the groups do not fit.

    Source: the ``Residual`` of the official hourglass, whose dilations are easily read as kernel sizes. There the
    channels could also change inside a unit; no hourglass does that.
    """

    def __init__(self, channels: int, num_groups: int = 0):
        super().__init__()
        inner = channels // 2
        if channels % 2 or (num_groups and inner % num_groups):
            raise InputError(
                "MODEL.GLIPV2.MASK_HEAD.CONV_DIM: expected an even number and groups that divide its half, "
                f"found {channels} channels and {num_groups} groups"
            )
        sizes = ((channels, inner), (inner, inner), (inner, channels))
        self.conv1, self.conv2, self.conv3 = (
            _make_conv(*size, dilation, num_groups) for size, dilation in zip(sizes, _DILATIONS, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (K, C, H, W) to the same shape."""
        y = x
        for conv in (self.conv1, self.conv2, self.conv3):
            y = conv(F.relu(y))
        return x + y


class Hourglass(nn.Module):
    """Add to a map, refined at its own resolution, what is seen of it at half the resolution, and so on.

    A side that is odd is halved upwards, and the last row or column of what comes back is cut off.

    Args:
        channels: C, see ``Residual``.
        depth: How often the resolution is halved, at least 1.
        num_groups: See ``Residual``; only the units behind the first one of the lower resolutions have GroupNorm.

    Raises:
        InputError: ``depth`` is below 1, or what ``Residual`` refuses.

    Source: Stacked hourglass networks (arXiv 1603.06937); the ``Hourglass`` of the official code, which fails where a
    side cannot be halved ``depth`` times.
    """

    def __init__(self, channels: int, depth: int = 1, num_groups: int = 0):
        super().__init__()
        if depth < 1:
            raise InputError(f"MODEL.GLIPV2.MASK_HEAD.HOURGLASS_DEPTH: expected at least 1, found {depth}")
        self.up1 = Residual(channels)
        self.low1 = Residual(channels)
        self.low2 = Hourglass(channels, depth - 1, num_groups) if depth > 1 else Residual(channels, num_groups)
        self.low3 = Residual(channels, num_groups)

    def forward(self, x: Tensor) -> Tensor:
        """Map (K, C, H, W) to the same shape; K may be 0."""
        low = F.max_pool2d(x, kernel_size=2, ceil_mode=True)
        low = self.low3(self.low2(self.low1(low)))  # (K, C, ceil(H / 2), ceil(W / 2))
        up = low.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)
        return self.up1(x) + up[..., : x.shape[-2], : x.shape[-1]]


def _make_conv(in_channels: int, out_channels: int, dilation: int, num_groups: int) -> Conv2d:
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size=3,
        padding=dilation,
        dilation=dilation,
        bias=not num_groups,
        norm=nn.GroupNorm(num_groups, out_channels) if num_groups else None,
    )
    weight_init.c2_msra_fill(conv)
    return conv
