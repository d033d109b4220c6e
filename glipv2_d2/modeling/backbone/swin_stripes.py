"""Swin blocks on a CPU without gradients: stripe after stripe of a map, so that what they compute stays in cache."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.modeling.backbone.swin import BasicLayer, SwinTransformerBlock
from torch import Tensor

from ...layers.products import apply

# Positions of a stripe: as many as make this many numbers of queries, keys and values (2 MiB), but enough to make
# matrix products efficient.
STRIPE_NUMBERS = 2**19
MIN_POSITIONS = 1024
# What is added to the score of two positions that are neighbours only because the shifted map is closed to a ring.
APART = -100.0


class Stripe(NamedTuple):
    """Some rows of windows of a map, G windows of w x w positions.

    Attributes:
        rows: The rows of the map that they cover, as one or two ranges [begin, end); P positions in all.
        slots: (G*w*w,) int64, for each position of the windows its number among the P; 0 in the padding.
        padding: (positions in the padding,) int64, their numbers among G*w*w.
        places: (P,) int64, the inverse of ``slots``.
        regions: (G, w*w) int64; positions of a window attend to each other if their regions are equal. None: all do.
    """

    rows: tuple[tuple[int, int], ...]
    slots: Tensor
    padding: Tensor
    places: Tensor
    regions: Tensor | None


def run_stage(stage: BasicLayer, tokens: Tensor, height: int, width: int) -> Tensor:
    """Run the blocks of a stage as detectron2 does; the result may take the place of ``tokens`` in memory.

    Windows are not copied out of a padded, shifted map: each stripe of the map is projected where it is, and queries,
    keys and values are read from there.

    Args:
        stage: In eval mode.
        tokens: (N, height * width, C) float32 or float64.
        height, width: Sides of the map, in tokens.
    """
    tokens = tokens.contiguous()
    for block in stage.blocks:
        channels = tokens.shape[-1]
        positions = max(MIN_POSITIONS, STRIPE_NUMBERS // (3 * channels))
        stripes = cut_stripes(height, width, block.window_size, block.shift_size, positions)
        bias = _position_bias(block)
        for image in tokens.unflatten(1, (height, width)):
            for stripe in stripes:
                _attend(block, image, stripe, bias)
        positions = max(MIN_POSITIONS, STRIPE_NUMBERS // block.mlp.fc1.out_features)
        for rows in tokens.view(-1, channels).split(positions):
            rows.add_(apply(block.mlp.fc2, apply(block.mlp.fc1, block.norm2(rows), gelu=True)))
    return tokens


def _attend(block: SwinTransformerBlock, image: Tensor, stripe: Stripe, bias: Tensor) -> None:
    """Add to the stripe of a map (H, W, C) what its windows attend to; ``bias`` is (1, heads, w*w, w*w)."""
    attention, area = block.attn, bias.shape[-1]
    pieces = [image[begin:end].flatten(0, 1) for begin, end in stripe.rows]
    inputs = pieces[0] if len(pieces) == 1 else torch.cat(pieces)  # (P, C)
    projected = apply(attention.qkv, block.norm1(inputs))[stripe.slots]  # (G*w*w, 3 C)
    if len(stripe.padding):
        projected[stripe.padding] = 0.0 if attention.qkv.bias is None else attention.qkv.bias
    projected = projected.unflatten(0, (-1, area)).unflatten(-1, (3, attention.num_heads, -1))
    query, key, value = projected.permute(2, 0, 3, 1, 4).unbind()  # (G, heads, w*w, d)
    if stripe.regions is not None:
        apart = stripe.regions.unsqueeze(1) != stripe.regions.unsqueeze(2)  # (G, w*w, w*w)
        bias = bias + (apart * APART).unsqueeze(1)
    bias = bias.expand(len(query), -1, -1, -1)
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=attention.scale)
    attended = attended.transpose(1, 2).flatten(2).flatten(0, 1)[stripe.places]  # (P, C)
    update = apply(attention.proj, attended)
    for piece, piece_update in zip(pieces, update.split([len(piece) for piece in pieces]), strict=True):
        piece.add_(piece_update)


def _position_bias(block: SwinTransformerBlock) -> Tensor:
    attention = block.attn
    area = len(attention.relative_position_index)
    bias = attention.relative_position_bias_table[attention.relative_position_index.flatten()]
    return bias.view(area, area, -1).permute(2, 0, 1).unsqueeze(0).contiguous()  # (1, heads, w*w, w*w)


@functools.lru_cache(maxsize=32)
def cut_stripes(height: int, width: int, window: int, shift: int, positions: int) -> tuple[Stripe, ...]:
    """Cut a map into stripes of windows, at least one row of windows and about ``positions`` positions each.

    The map is padded at the bottom and on the right to a multiple of the window, closed to a ring, and read from row
    and column ``shift`` on.
    """
    across, down = -(-width // window), -(-height // window)
    columns = (torch.arange(across * window) + shift) % (across * window)
    step = max(1, round(positions / (across * window * window)))
    stripes = []
    for first in range(0, down, step):
        last = min(first + step, down)
        rows = (torch.arange(first * window, last * window) + shift) % (down * window)
        is_real = (rows < height)[:, None] & (columns < width)
        # Rows that follow the end of the map come from its begin.
        ranges = [(first * window + shift, min(last * window + shift, height))]
        if last == down and shift:
            ranges.append((0, min(shift, height)))
        ranges = [(begin, end) for begin, end in ranges if begin < end]
        known = torch.cat([torch.arange(begin, end) for begin, end in ranges])
        number_of_row = torch.zeros(down * window, dtype=torch.int64).index_put_((known,), torch.arange(len(known)))
        slots = (number_of_row[rows][:, None] * width + columns).where(is_real, torch.tensor(-1))
        slots = _by_window(slots, window).flatten()
        places = torch.empty(len(known) * width, dtype=torch.int64)
        real = (slots >= 0).nonzero().flatten()
        places[slots[real]] = real
        regions = None
        if shift:
            row_parts, column_parts = (_parts(count * window, window, shift) for count in (down, across))
            regions = _by_window(3 * row_parts[first * window : last * window, None] + column_parts, window)
        padding = (slots < 0).nonzero().flatten()
        stripes.append(Stripe(tuple(ranges), slots.clamp(min=0), padding, places, regions))
    return tuple(stripes)


def _by_window(numbers: Tensor, window: int) -> Tensor:
    """Cut a map (rows, columns) into windows, (G, w*w)."""
    grid = numbers.unflatten(1, (-1, window)).unflatten(0, (-1, window))
    return grid.transpose(1, 2).flatten(2).flatten(0, 1)


def _parts(length: int, window: int, shift: int) -> Tensor:
    """Number the parts of a shifted line: before its last window, and both sides of the seam in the last window."""
    line = torch.arange(length)
    return (line >= length - window).long() + (line >= length - shift).long()
