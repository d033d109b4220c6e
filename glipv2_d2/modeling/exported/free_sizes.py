"""Layers for a graph whose image size is not known when it is traced, equal to those that they stand for.

A tracer follows a size as a symbol. It gets lost where Python decides by a size, and it has no operation for a
deformable convolution. The layers here have the weights of the model's own, and read sizes only to count positions:
what depends on a size is computed by tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from detectron2.modeling.backbone.swin import PatchEmbed, PatchMerging, SwinTransformer, SwinTransformerBlock
from timm.layers import Conv2dSame
from torch import Tensor, nn

from ...errors import InputError
from ...layers.dyconv import NUM_OFFSETS, ConvUnit, DyConv
from ...layers.fusion import BiAttentionBlock
from ..backbone.coswin import ConvEmbedding
from ..meta_arch.glipv2 import GLIPv2


class FreeConvSame(nn.Module):
    """TensorFlow's convolution with padding "same", for maps whose sides are multiples of its stride.

    Such a side needs the same padding, whatever its length.

    Args:
        conv: The layer that it stands for.
    """

    def __init__(self, conv: Conv2dSame) -> None:
        super().__init__()
        self.conv = conv
        self._padding: list[int] = []
        for size, stride, dilation in zip(conv.kernel_size[::-1], conv.stride[::-1], conv.dilation[::-1], strict=True):
            total = max((size - 1) * dilation + 1 - stride, 0)
            self._padding += [total // 2, total - total // 2]

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H / stride, W / stride)."""
        conv = self.conv
        return F.conv2d(F.pad(x, self._padding), conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)


class FreeSwin(nn.Module):
    """A Swin Transformer that cuts an image of any size into windows by one gather.

    Where a shifted window leaves the map on one side it goes on at the other, and a mask keeps the parts apart. Padding
    is a position of zeros that windows past the map read.

    Args:
        swin: The backbone that it stands for.
    """

    def __init__(self, swin: SwinTransformer) -> None:
        super().__init__()
        self.swin = swin

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Map an image (1, 3, H, W), in multiples of 32, to the named maps."""
        swin = self.swin
        embedded = swin.patch_embed.proj(image)
        height, width = embedded.shape[-2:]
        tokens = _normed(swin.patch_embed, embedded)
        maps = {}
        for number, stage in enumerate(swin.layers):
            for block in stage.blocks:
                tokens = _swin_block(block, tokens, height, width)
            if number in swin.out_indices:
                normed = getattr(swin, f"norm{number}")(tokens)
                maps[f"p{number}"] = normed.transpose(1, 2).unflatten(2, (height, width))
            if stage.downsample is not None:
                tokens = _halve(stage.downsample, tokens, height, width)
                height, width = height // 2, width // 2
        return maps


def _normed(embedding: PatchEmbed | ConvEmbedding, image: Tensor) -> Tensor:
    """Return the tokens (1, H*W, C) of an embedded image (1, C, H, W), with the norm of the embedding if it has one."""
    tokens = image.flatten(2).transpose(1, 2)
    return tokens if embedding.norm is None else embedding.norm(tokens)


def _halve(downsampling: PatchMerging | ConvEmbedding, tokens: Tensor, height: int, width: int) -> Tensor:
    """Join each square of 2 x 2 tokens (1, H*W, C), with H and W even, to one of (1, H*W / 4, 2C)."""
    if not isinstance(downsampling, PatchMerging):
        return _normed(downsampling, downsampling.proj(tokens.transpose(1, 2).unflatten(2, (height, width))))
    image = tokens.unflatten(1, (height, width))
    squares = torch.cat([image[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=-1)
    return downsampling.reduction(downsampling.norm(squares.flatten(1, 2)))


def _swin_block(block: SwinTransformerBlock, tokens: Tensor, height: int, width: int) -> Tensor:
    """Run a block on tokens (1, H*W, C)."""
    attention, size, shift = block.attn, block.window_size, block.shift_size
    rows, columns = (height + size - 1) // size, (width + size - 1) // size
    positions, places, mask = _windows(tokens, (height, width), (rows, columns), size, shift)
    padded = torch.cat([torch.zeros_like(tokens[:, :1]), block.norm1(tokens)], dim=1)
    windows = padded[0].index_select(0, positions).view(rows * columns, size * size, -1)
    projected = attention.qkv(windows).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    query, key, value = projected.unbind(0)  # (windows, heads, size*size, d)
    index = attention.relative_position_index.flatten()
    bias = attention.relative_position_bias_table[index].view(size * size, size * size, -1).permute(2, 0, 1)
    scores = (query * attention.scale) @ key.transpose(-2, -1) + bias
    if shift:
        scores = scores + mask[:, None]
    attended = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
    attended = attention.proj(attended).flatten(0, 1).index_select(0, places)[None]
    tokens = tokens + attended
    return tokens + block.mlp(block.norm2(tokens))


def _windows(
    tokens: Tensor, size: tuple[int, int], counts: tuple[int, int], window: int, shift: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Say where the windows of a map are.

    Args:
        tokens: On the device.
        size: H and W of the map.
        counts: Windows in a column and in a row.
        window, shift: Side of a window, and how far they are shifted.

    Returns:
        For each place of each window its position in the map, from 1, and 0 for the padding, (windows * window**2,);
        for each position its place, (H*W,); and what is added to the scores of a window, (windows, window**2,
        window**2).
    """
    sides, lines, regions = [], [], []
    for side, count in zip(size, counts, strict=True):
        total = count * window
        line = torch.arange(total, device=tokens.device)
        origin = line + shift
        origin = torch.where(origin < total, origin, origin - total)
        sides.append(torch.where(origin < side, origin, -1).view(count, window))
        # Where a line of the map is among the shifted ones.
        shifted = torch.arange(side, device=tokens.device) - shift
        lines.append(torch.where(shifted < 0, shifted + total, shifted))
        region = (line >= total - window).long() + (line >= total - shift).long()
        regions.append(region.view(count, window))
    row, column = sides[0][:, None, :, None], sides[1][None, :, None, :]
    positions = torch.where((row >= 0) & (column >= 0), row * size[1] + column + 1, 0).flatten()
    row, column = lines[0][:, None], lines[1]
    number = (row // window) * counts[1] + column // window
    places = (number * window**2 + (row % window) * window + column % window).flatten()
    region = (regions[0][:, None, :, None] * 3 + regions[1][None, :, None, :]).view(counts[0] * counts[1], window**2)
    mask = torch.where(region[:, None] == region[..., None], 0.0, -100.0)
    return positions, places, mask


class FreeDyConv(nn.Module):
    """``DyConv`` for one image, with its deformable convolutions in gathers and one product.

    Args:
        layer: The layer that it stands for.
    """

    def __init__(self, layer: DyConv) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Mix L levels (1, C, Hl, Wl); see ``DyConv``."""
        return [self.layer.relu(self._mix(features, index)) for index in range(len(features))]

    def _mix(self, features: list[Tensor], index: int) -> Tensor:
        level, convs = features[index], cast(list[ConvUnit], list(self.layer.convs))
        coarse, same, fine = convs
        maps = None if self.layer.offset is None else self.layer.offset(level)
        branches = [_convolve(same, level, maps, level)]
        if index > 0:
            branches.append(_convolve(fine, features[index - 1], maps, level))
        if index < len(features) - 1:
            up = _convolve(coarse, features[index + 1], maps, features[index + 1])
            branches.append(F.interpolate(up, size=level.shape[-2:], mode="bilinear", align_corners=True))
        mixed = torch.zeros_like(branches[0])
        for branch in branches:
            importance = F.hardsigmoid(F.relu(self.layer.level_attention(branch.mean((2, 3), keepdim=True))))
            mixed = mixed + branch * (importance / len(branches))
        return mixed


def _convolve(unit: ConvUnit, x: Tensor, maps: Tensor | None, like: Tensor) -> Tensor:
    """Run a ``ConvUnit`` on (1, C, H, W) with the offsets and modulations (1, 27, H', W') of a level, read flat.

    The result has the rows and columns of ``like``.
    """
    conv, norm = unit.conv, unit.norm
    height, width = like.shape[-2:]
    if maps is None:
        # A level has the size of one twice as large after a stride of 2, which a tracer need not know.
        mixed = _read_flat(conv(x), height, width)[None]
    else:
        offset, modulation = maps[:, :NUM_OFFSETS], maps[:, NUM_OFFSETS:].sigmoid()
        offset, modulation = (_read_flat(one, height, width) for one in (offset, modulation))
        mixed = deform_conv_of_gathers(x, offset, modulation, conv.weight, conv.get_parameter("bias"), conv.stride[0])
    # The function of torch.nn compares sizes first.
    return torch.group_norm(mixed, norm.num_groups, norm.weight, norm.bias, norm.eps)


def _read_flat(maps: Tensor, height: int, width: int) -> Tensor:
    """Read maps (1, K, H, W) as (K, height, width), see ``reinterpret_flat``."""
    count = maps.shape[1] * height * width
    return maps.flatten().index_select(0, torch.arange(count, device=maps.device)).view(-1, height, width)


def deform_conv_of_gathers(
    x: Tensor, offset: Tensor, modulation: Tensor, weight: Tensor, bias: Tensor, stride: int
) -> Tensor:
    """Convolve a map with displaced taps of a 3x3 kernel with padding 1, in operations that every runtime knows.

    The four pixels around each tap are gathered as rows of C numbers and added with their weights; one product with the
    kernel follows.

    Args:
        x: (1, C, H, W).
        offset: (18, Ho, Wo), see ``modulated_deform_conv2d``.
        modulation: (9, Ho, Wo).
        weight: (Co, C, 3, 3).
        bias: (Co,).
        stride: Stride of the undisplaced taps.

    Returns:
        (1, Co, Ho, Wo).
    """
    height, width = x.shape[-2:]
    out_height, out_width = offset.shape[-2:]
    tap = torch.arange(9, device=x.device)
    starts = (torch.arange(side, device=x.device) * stride - 1 for side in (out_height, out_width))
    down, right = starts
    # (Ho, Wo, 9)
    row = offset[0::2].permute(1, 2, 0) + (down[:, None, None] + tap // 3)
    column = offset[1::2].permute(1, 2, 0) + (right[:, None] + tap % 3)
    share = modulation.permute(1, 2, 0)
    top, left = row.floor(), column.floor()
    below, after = row - top, column - left
    rows = x[0].flatten(1).t().contiguous()  # (H*W, C)
    corners = []
    for step_down, share_down in ((0, 1 - below), (1, below)):
        for step_right, share_right in ((0, 1 - after), (1, after)):
            pixel_row, pixel_column = top + step_down, left + step_right
            inside = (pixel_row >= 0) & (pixel_row < height) & (pixel_column >= 0) & (pixel_column < width)
            # A position may not be finite.
            index = torch.where(inside, pixel_row.long() * width + pixel_column.long(), 0)
            part = (share_down * share_right * share * inside).flatten()
            corners.append(rows.index_select(0, index.flatten()) * part[:, None])
    sampled = (corners[0] + corners[1]) + (corners[2] + corners[3])  # (Ho*Wo*9, C)
    matrix = weight.permute(2, 3, 1, 0).flatten(0, 2)  # (9*C, Co)
    convolved = sampled.view(out_height * out_width, -1) @ matrix + bias
    return convolved.t().view(1, -1, out_height, out_width)


# For each kind of layer what stands for it.
_FREE: list[tuple[type[nn.Module], Callable[..., nn.Module]]] = [
    (Conv2dSame, FreeConvSame),
    (SwinTransformer, FreeSwin),
    (DyConv, FreeDyConv),
]


def free_sizes(model: GLIPv2) -> GLIPv2:
    """Replace layers of a model in eval mode, in place, by those of this module; return the model.

    Raises:
        InputError: A layer reads sizes, and nothing stands for it.
    """
    for path, module in list(model.named_modules()):
        for name, child in module.named_children():
            for kind, make in _FREE:
                if isinstance(child, kind):
                    setattr(module, name, make(child))
        if isinstance(module, BiAttentionBlock):
            if module.position_proj is not None:
                raise InputError(
                    f"{path}: expected MODEL.GLIPV2.FUSION.POSITIONS False for images of any size, found True; export "
                    "names and one size as .pt2"
                )
            # The choice between the forms reads sizes. With more positions than tokens this one is faster.
            module.form = "folded"
    return model
