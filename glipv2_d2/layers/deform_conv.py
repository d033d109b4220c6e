"""Modulated deformable convolution in two equal forms: torchvision's operator, and a row gather with one product."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torchvision.ops import deform_conv2d

from ..errors import InputError
from .products import linear

DEFORM_FORMS = ("auto", "torchvision", "gather")

# Number of sampled values that the gather form holds at a time without gradients: 2 MiB in single precision, which the
# product finds in the cache of a CPU core.
CHUNK_ELEMENTS = 2**19

# Below this many numbers in an output map, torchvision's operator is faster on the CPU if no gradient is needed.
SMALL_OUTPUT = 4096


def choose_deform_form(form: str, device: torch.device, num_outputs: int) -> str:
    """Resolve "auto": the gather form on the CPU, except for small maps without gradients; elsewhere torchvision's.

    torchvision's operator is a serial scalar loop on the CPU, but the gather form has a fixed cost of a millisecond.
    Measured on one thread in float32, time of torchvision over time of gather, forward / forward and backward: 0.5 /
    0.8 (3 x 3 map, 32 channels), 1.0 / 2.5 (13 x 13, 32), 2.0 / 5.6 (25 x 25, 128), 2.2 / 4.9 (50 x 50, 256). Other
    devices have a kernel of torchvision; the gather form is not measured against it.

    Args:
        form: One of ``DEFORM_FORMS``.
        device: Device of the maps.
        num_outputs: Ho * Wo * Co. N is left out, so that an image alone and in a batch takes the same form.

    Raises:
        ValueError: An unknown form.
    """
    if form not in DEFORM_FORMS:
        raise InputError(f"deformable convolution form: expected one of {', '.join(DEFORM_FORMS)}, found {form!r}")
    if form != "auto":
        return form
    if device.type != "cpu" or (num_outputs < SMALL_OUTPUT and not torch.is_grad_enabled()):
        return "torchvision"
    return "gather"


def modulated_deform_conv2d(
    x: Tensor,
    offset: Tensor,
    modulation: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int = 1,
    padding: int = 1,
    form: str = "auto",
) -> Tensor:
    """Convolve with kernel taps that are displaced and weighted per output position.

    Args:
        x: (N, C, H, W).
        offset: (N, 2*K, Ho, Wo) pixels, K the taps of the kernel in row-major order; channel 2t is the row
            displacement of tap t, 2t+1 the column displacement. Ho x Wo is the output size of an ordinary convolution.
        modulation: (N, K, Ho, Wo), factor of each tap.
        weight: (Co, C, kh, kw).
        bias: (Co,) or None.
        stride: Stride of the undisplaced taps, pixels.
        padding: Padding of the undisplaced taps, pixels.
        form: "torchvision", "gather", or "auto", see ``choose_deform_form``.

    Returns:
        (N, Co, Ho, Wo). Taps are read bilinearly; pixels outside the map count as 0. Coordinates are computed in
        float32 at least; the torchvision form computes everything so.

    Raises:
        ValueError: An unknown form, or offsets or modulation of another shape.

    Source: Deformable ConvNets v2 (Zhu et al. 2019), one group, no dilation.
    """
    form = choose_deform_form(form, x.device, offset.shape[-2:].numel() * len(weight))
    _check_shapes(x, offset, modulation, weight, stride, padding)
    if form == "gather":
        return deform_conv_gather(x, offset, modulation, weight, bias, stride, padding)
    return deform_conv_torchvision(x, offset, modulation, weight, bias, stride, padding)


def deform_conv_torchvision(
    x: Tensor, offset: Tensor, modulation: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
) -> Tensor:
    """Run ``torchvision.ops.deform_conv2d`` in float32 at least (it has no bfloat16 kernel).

    Arguments and result as in ``modulated_deform_conv2d``; the result of half inputs is float32.
    """
    tensors = [_at_least_float32(tensor) for tensor in (x, offset, weight, modulation)]
    if bias is not None:
        bias = _at_least_float32(bias)
    x, offset, weight, modulation = tensors
    return deform_conv2d(x, offset, weight, bias, stride=stride, padding=padding, mask=modulation)


def deform_conv_gather(
    x: Tensor, offset: Tensor, modulation: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
) -> Tensor:
    """Gather the sampled rows with ``embedding_bag``, then multiply once.

    With one offset group, the four bilinear weights of a tap are the same for all channels. On channels-last data a tap
    is therefore a weighted sum of four rows of C numbers. ``embedding_bag`` computes it in parallel, with gradients for
    rows and weights.

    Arguments and result as in ``modulated_deform_conv2d``; the result is channels last in memory. Without gradients the
    sampled values are held in pieces of ``CHUNK_ELEMENTS``; with gradients all N*Ho*Wo*K*C of them are kept.
    """
    num_images, channels = x.shape[:2]
    out_channels, _, kernel_h, kernel_w = weight.shape
    out_h, out_w = offset.shape[-2:]
    taps = kernel_h * kernel_w
    rows = x.permute(0, 2, 3, 1).reshape(-1, channels)  # (N*H*W, C)
    matrix = weight.permute(0, 2, 3, 1).reshape(out_channels, taps * channels)  # (Co, K*C)
    find_corners = _corners if torch.is_grad_enabled() else _corners_by_planes
    index, corner_weight = find_corners(x.shape[-2:], offset, modulation, (kernel_h, kernel_w), stride, padding)
    corner_weight = corner_weight.to(rows.dtype)
    positions = max(1, CHUNK_ELEMENTS // (taps * channels))
    if torch.is_grad_enabled() or positions >= num_images * out_h * out_w:
        sampled = _weighted_rows(rows, index, corner_weight)  # (positions*K, C)
        output = linear(sampled.view(-1, taps * channels), matrix, bias)  # (positions, Co)
    else:
        output = rows.new_empty(num_images * out_h * out_w, out_channels)
        pieces = (index.split(positions * taps), corner_weight.split(positions * taps), output.split(positions))
        for piece_index, piece_weight, piece in zip(*pieces, strict=True):
            sampled = _weighted_rows(rows, piece_index, piece_weight)
            piece.copy_(linear(sampled.view(-1, taps * channels), matrix, bias))
    return output.view(num_images, out_h, out_w, out_channels).permute(0, 3, 1, 2)


class _ScatterToRows(torch.autograd.Function):
    """Pass weighted sums of rows through unchanged, and compute the gradient of the rows.

    The gradient of a row is a weighted sum too, over the samples that read the row. ``embedding_bag`` computes this sum
    1.5 to 2.2 times faster than its own backward pass on the CPU.
    """

    @staticmethod
    def forward(ctx, sampled: Tensor, rows: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        ctx.num_rows = len(rows)
        ctx.save_for_backward(index, weight)
        return sampled

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        index, weight = ctx.saved_tensors
        row_of_read, read = index.flatten().sort()
        first_read = torch.searchsorted(row_of_read, torch.arange(ctx.num_rows, device=index.device))
        sample = read.div(index.shape[1], rounding_mode="floor")
        row_gradient = F.embedding_bag(
            sample, gradient, first_read, mode="sum", per_sample_weights=weight.flatten()[read]
        )
        return gradient, row_gradient, None, None


def _weighted_rows(rows: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Sum rows with weights: (number of rows, C), index (B, 4), weight (B, 4) to (B, C)."""
    # The gradient of the weights comes from embedding_bag, that of the rows from _ScatterToRows.
    sampled = F.embedding_bag(index, rows.detach(), per_sample_weights=weight, mode="sum")
    return _ScatterToRows.apply(sampled, rows, index, weight.detach()) if torch.is_grad_enabled() else sampled


def reinterpret_flat(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Read maps as if their memory held maps of another size.

    The official operator ignores the size of its offsets. On the branch that convolves the coarser level, the offsets
    of the finer level are larger than the output. For each image, the first K*h*w numbers in row-major (channel, row,
    column) order are read as (K, h, w). Released weights were trained this way. Gradients flow to the same numbers.

    Args:
        maps: (N, K, H, W), in any memory format.
        size: (h, w).

    Returns:
        (N, K, h, w).

    Raises:
        ValueError: The maps hold fewer numbers than needed.

    Source: index arithmetic of the official CUDA operator, behaviour reported in the issues DynamicHead#25 and GLIP#62.
    """
    num_images, channels, height, width = maps.shape
    needed, plane = channels * size[0] * size[1], height * width
    if needed > channels * plane:
        raise ValueError(
            f"maps of {height}x{width} cannot be read as {size[0]}x{size[1]}: expected a level that is not larger"
        )
    if needed == channels * plane and width == size[1]:
        return maps
    # Only the channels that hold the first numbers are copied.
    flat = maps[:, : -(-needed // plane)].flatten(1)
    return flat[:, :needed].unflatten(1, (channels, *size))


def _corners(
    size: torch.Size, offset: Tensor, modulation: Tensor, kernel: tuple[int, int], stride: int, padding: int
) -> tuple[Tensor, Tensor]:
    """Return the four pixels around each sampling point: their rows in (N*H*W, C), and their weights.

    Returns:
        Index (N*Ho*Wo*K, 4) int64, in range even where the weight is 0, and weight (N*Ho*Wo*K, 4).
    """
    offset, modulation = _at_least_float32(offset), _at_least_float32(modulation)
    taps = kernel[0] * kernel[1]
    offset = offset.permute(0, 2, 3, 1).unflatten(-1, (taps, 2))  # (N, Ho, Wo, K, 2)
    modulation = modulation.permute(0, 2, 3, 1).unsqueeze(-1)  # (N, Ho, Wo, K, 1)
    position = offset + _tap_grid(offset, kernel, stride, padding)
    with torch.no_grad():
        low = position.floor()
        limit = low.new_tensor(size).unsqueeze(-1)  # (2, 1)
        corner = torch.stack((low, low + 1), dim=-1)  # (N, Ho, Wo, K, 2, 2): axis (row, column), then low and high
        inside = (corner >= 0) & (corner < limit)
        # Clamping integers keeps the index of a position that is not finite in range.
        pixel = torch.minimum(corner.long().clamp(min=0), limit.long() - 1)
        image = torch.arange(len(offset), device=offset.device).view(-1, 1, 1, 1, 1) * (size[0] * size[1])
        row, column = (pixel[..., 0, :] * size[1] + image), pixel[..., 1, :]
        index = (row.unsqueeze(-1) + column.unsqueeze(-2)).view(-1, 4)
    fraction = position - low
    share = torch.stack((1 - fraction, fraction), dim=-1) * inside  # (N, Ho, Wo, K, 2, 2)
    row_share, column_share = share[..., 0, :] * modulation, share[..., 1, :]
    weight = (row_share.unsqueeze(-1) * column_share.unsqueeze(-2)).view(-1, 4)
    return index, weight


def _corners_by_planes(
    size: torch.Size, offset: Tensor, modulation: Tensor, kernel: tuple[int, int], stride: int, padding: int
) -> tuple[Tensor, Tensor]:
    """Return what ``_corners`` does, the index as int32 where that is enough.

    Each step runs over planes, (N, K, Ho, Wo), which is several times faster, but has a slow backward pass.
    """
    offset, modulation = _at_least_float32(offset), _at_least_float32(modulation)
    num_images, taps = modulation.shape[:2]
    grid = _tap_grid(offset.permute(0, 2, 3, 1).unsqueeze(-1), kernel, stride, padding).permute(3, 2, 0, 1)
    is_small = num_images * size[0] * size[1] < torch.iinfo(torch.int32).max
    whole = torch.int32 if is_small else torch.int64

    def pixels(axis: int) -> tuple[list[Tensor], list[Tensor]]:
        """Return the lower and the higher pixel of each tap along an axis, and their shares, (N, K, Ho, Wo) each."""
        position = offset[:, axis::2] + grid[axis]
        low = position.floor()
        fraction = position.sub_(low)
        pixel = low.to(whole)
        inside = [(low >= 0) & (low < size[axis]), (low >= -1) & (low < size[axis] - 1)]
        shares = [(1 - fraction).mul_(inside[0]), fraction.mul_(inside[1])]
        # Clamping integers keeps the index of a position that is not finite in range.
        return [pixel.clamp(0, size[axis] - 1), pixel.clamp(-1, size[axis] - 2).add_(1)], shares

    (rows, row_shares), (columns, column_shares) = pixels(0), pixels(1)
    image = torch.arange(num_images, dtype=whole, device=offset.device).view(-1, 1, 1, 1) * (size[0] * size[1])
    rows = [row.mul_(size[1]).add_(image) for row in rows]
    row_shares = [share.mul_(modulation) for share in row_shares]
    index = torch.empty(num_images, *offset.shape[-2:], taps, 4, dtype=whole, device=offset.device)
    weight = offset.new_empty(index.shape)
    for corner in range(4):
        row, column = corner // 2, corner % 2
        index[..., corner] = (rows[row] + columns[column]).permute(0, 2, 3, 1)
        weight[..., corner] = (row_shares[row] * column_shares[column]).permute(0, 2, 3, 1)
    return index.view(-1, 4), weight.view(-1, 4)


def _tap_grid(offset: Tensor, kernel: tuple[int, int], stride: int, padding: int) -> Tensor:
    """Return the undisplaced (row, column) of each tap, (Ho, Wo, K, 2), for offsets (N, Ho, Wo, K, 2)."""
    lines = [
        torch.arange(length, dtype=offset.dtype, device=offset.device).unsqueeze(1) * stride
        + torch.arange(taps, dtype=offset.dtype, device=offset.device)
        - padding
        for length, taps in zip(offset.shape[1:3], kernel, strict=True)
    ]
    shape = (*offset.shape[1:3], *kernel)
    row = lines[0][:, None, :, None].expand(shape)
    column = lines[1][None, :, None, :].expand(shape)
    return torch.stack((row, column), dim=-1).flatten(2, 3)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _check_shapes(x: Tensor, offset: Tensor, modulation: Tensor, weight: Tensor, stride: int, padding: int) -> None:
    kernel = weight.shape[-2:]
    out = tuple((length + 2 * padding - taps) // stride + 1 for length, taps in zip(x.shape[-2:], kernel, strict=True))
    taps = kernel[0] * kernel[1]
    for name, tensor, channels in (("offset", offset, 2 * taps), ("modulation", modulation, taps)):
        expected = (len(x), channels, *out)
        if tuple(tensor.shape) != expected:
            raise ValueError(f"deformable convolution: {name} has shape {tuple(tensor.shape)}, expected {expected}")
