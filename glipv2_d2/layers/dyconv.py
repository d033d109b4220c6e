"""The image layer of the tower: deformable convolutions across neighbouring levels, weighted by their content."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from .deform_conv import DEFORM_FORMS, choose_deform_form, modulated_deform_conv2d, reinterpret_flat
from .products import is_cpu_inference

# Channels of the offset maps: two displacements for each of the nine taps, followed by nine modulations.
NUM_OFFSETS = 18
NUM_MODULATIONS = 9

# The hidden layer of the dynamic ReLU is this many times narrower than the maps.
SQUEEZE = 4


class DynamicReLU(nn.Module):
    """The larger of two lines per channel, whose slopes and intercepts depend on the mean of the map.

    A channel becomes max(a1 x + b1, a2 x + b2) with slopes a1 in [0, 2] and a2 in [-1, 1] and intercepts b1 and b2 in
    [-0.5, 0.5]. Each comes from a number in [0, 1]; these are computed in the blocks a1, b1, a2, b2.

    Args:
        channels: C.

    Source: Dynamic ReLU (Chen et al. 2020), form B; ``DYReLU`` of Dynamic Head (Dai et al. 2021).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // SQUEEZE)
        self.fc = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, 4 * channels))

    def forward(self, x: Tensor) -> Tensor:
        """Apply to a map (N, C, H, W)."""
        shares = F.hardsigmoid(self.fc(x.mean((2, 3)))).unflatten(1, (4, -1))[..., None, None]  # (N, 4, C, 1, 1)
        slope1, intercept1, slope2, intercept2 = shares.unbind(1)
        second = torch.addcmul(intercept2 - 0.5, x, 2 * slope2 - 1)
        # second + relu(first - second) is max(first, second), whose own backward pass would also search for ties.
        difference = torch.addcmul(intercept1 - intercept2, x, 2 * (slope1 - slope2) + 1)
        if not is_cpu_inference(x):
            return second + F.relu(difference)
        return second.add_(difference.relu_())


class ConvUnit(nn.Module):
    """A 3x3 convolution with bias, deformable when it gets offsets, followed by GroupNorm and no activation.

    Args:
        in_channels: C of the input.
        out_channels: C of the output, a multiple of ``num_groups``.
        stride: 1 or 2; the output has ceil(size / stride) rows and columns.
        num_groups: Groups of the GroupNorm.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, num_groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        nn.init.zeros_(self.conv.get_parameter("bias"))
        self.norm = nn.GroupNorm(num_groups, out_channels)

    def forward(self, x: Tensor, offset: Tensor | None, modulation: Tensor | None, form: str) -> Tensor:
        """Apply to a map.

        Args:
            x: (N, C, H, W).
            offset: (N, 18, Ho, Wo), or None for a plain convolution.
            modulation: (N, 9, Ho, Wo), or None with ``offset``.
            form: See ``modulated_deform_conv2d``.
        """
        if offset is None or modulation is None:
            return self.norm(self.conv(x))
        weight, bias, stride = self.conv.weight, self.conv.bias, self.conv.stride[0]
        x = modulated_deform_conv2d(x, offset, modulation, weight, bias, stride, 1, form)
        return self.norm(x)


class DyConv(nn.Module):
    """Mix each level of the pyramid with its neighbours.

    For a level, ``convs[1]`` reads the level itself, ``convs[2]`` the finer one with stride 2, and ``convs[0]`` the
    coarser one, whose result is then enlarged (bilinear, corners aligned). All read the input of the layer. Each result
    is weighted by a number in [0.5, 1] that depends on its mean; the dynamic ReLU is applied to the weighted mean.

    The offsets and modulation of a level apply to all of its convolutions. The output on the coarser level is smaller:
    there they are read flat, see ``reinterpret_flat``. They are computed in float32 at least.

    Args:
        in_channels: C of the input.
        out_channels: C of the output.
        num_groups: Groups of each GroupNorm.
        deformable: False: plain 3x3 convolutions under the same names, and no ``offset``.
        dynamic_relu: False: an ordinary ReLU at the end.
        deform_form: Form of the deformable convolutions, see ``modulated_deform_conv2d``.

    Source: Dynamic Head (Dai et al. 2021); ``DyConv`` of the official GLIP code.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_groups: int = 16,
        deformable: bool = True,
        dynamic_relu: bool = True,
        deform_form: str = "auto",
    ) -> None:
        super().__init__()
        if deform_form not in DEFORM_FORMS:
            raise InputError(f"DyConv deform_form: expected one of {', '.join(DEFORM_FORMS)}, found {deform_form!r}")
        self.deform_form = deform_form
        self.convs = nn.ModuleList(ConvUnit(in_channels, out_channels, stride, num_groups) for stride in (1, 1, 2))
        self.offset = nn.Conv2d(in_channels, NUM_OFFSETS + NUM_MODULATIONS, 3, padding=1) if deformable else None
        self.level_attention = nn.Conv2d(out_channels, 1, 1)
        nn.init.normal_(self.level_attention.weight, std=0.01)
        nn.init.zeros_(self.level_attention.get_parameter("bias"))
        self.relu = DynamicReLU(out_channels) if dynamic_relu else nn.ReLU()

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Mix the levels of a pyramid.

        Args:
            features: L >= 1 maps (N, C, Hl, Wl), finest first; each level has ceil(half) the rows and columns of the
                one before.

        Returns:
            L maps (N, C, Hl, Wl).
        """
        # Converted once, because each level is read up to three times. The gather form reads rows of channels. The
        # other convolutions are 5 to 30 % faster on planes on the CPU, and torchvision's operator reads only planes.
        memory_format = torch.channels_last if self._gathers(features[0]) else torch.contiguous_format
        features = [level.contiguous(memory_format=memory_format) for level in features]
        return [self.relu(self._mix(features, index)) for index in range(len(features))]

    def _gathers(self, finest: Tensor) -> bool:
        num_outputs = finest.shape[-2:].numel() * self.level_attention.in_channels
        return self.offset is not None and choose_deform_form(self.deform_form, finest.device, num_outputs) == "gather"

    def _mix(self, features: list[Tensor], index: int) -> Tensor:
        level = features[index]
        offset, modulation = self._offsets(level)
        branches = [self.convs[1](level, offset, modulation, self.deform_form)]
        if index > 0:
            branches.append(self.convs[2](features[index - 1], offset, modulation, self.deform_form))
        if index < len(features) - 1:
            coarser = features[index + 1]
            if offset is not None and modulation is not None:
                height, width = coarser.shape[-2:]
                offset = reinterpret_flat(offset, (height, width))
                modulation = reinterpret_flat(modulation, (height, width))
            up = self.convs[0](coarser, offset, modulation, self.deform_form)
            branches.append(F.interpolate(up, size=level.shape[-2:], mode="bilinear", align_corners=True))
        mixed = branches[0] * self._importance(branches[0], len(branches))
        for branch in branches[1:]:
            target = mixed if is_cpu_inference(mixed) else None
            mixed = torch.addcmul(mixed, branch, self._importance(branch, len(branches)), out=target)
        return mixed

    def _offsets(self, level: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if self.offset is None:
            return None, None
        with torch.autocast(level.device.type, enabled=False):
            maps = self.offset(level.to(self.offset.weight.dtype))
        return maps[:, :NUM_OFFSETS], maps[:, NUM_OFFSETS:].sigmoid()

    def _importance(self, branch: Tensor, count: int) -> Tensor:
        """Return the weight of a branch in the mean of ``count`` branches, (N, 1, 1, 1)."""
        pooled = branch.mean((2, 3), keepdim=True)
        return F.hardsigmoid(F.relu(self.level_attention(pooled))) / count
