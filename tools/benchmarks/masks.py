"""Measure memory and time of training the mask head: one map for each box, against the maps of all tokens.

    python tools/benchmark.py masks
    python tools/benchmark.py masks --boxes 400 --tokens 256 --dim 256

head    MiB, the most that is held at a time in a forward and backward pass from pooled features to the loss, beyond
        what was held before it; gradients of the parameters are included.
maps    MiB, of the same from the features of the pixels to the loss: what the forward pass keeps for the backward pass.
s       of the fastest of the timed passes of the head.

"one map" is the head as it trains. "all tokens" computes the map of every token for every box, as the official code
does; the loss then reads the mean over the tokens of the box's phrase. It keeps all activations. Memory is counted as
torch's allocator gives it out, on the CPU by torch's profiler.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from glipv2_d2.modeling.heads.grounding_head import MAX_LOGIT
from glipv2_d2.modeling.heads.mask_head import HourglassMaskHead

from .measurement import MIB, Cuts, fastest_pass, make_table, positive, summarize_memory, touch, trace_memory

CONFIG_KEYS = None
RESOLUTION = 14  # of what is pooled; the masks have twice as many pixels
LANGUAGE_DIM = 768
TOKENS_PER_PHRASE = 2
STRIDES = [8, 16, 32, 64, 128]


class Batch(NamedTuple):
    """The training data of the boxes of an image.

    Attributes:
        pooled: (K, C, S, S).
        text: (1, T, D).
        token_map: (K, T) bool.
        targets: (K, 2S, 2S), 0 or 1.
    """

    pooled: Tensor
    text: Tensor
    token_map: Tensor
    targets: Tensor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this subcommand."""
    parser.add_argument("--boxes", type=positive, default=100, metavar="K", help="default: 100")
    parser.add_argument("--tokens", type=positive, default=256, metavar="T", help="default: 256")
    parser.add_argument("--dim", type=positive, default=256, metavar="C", help="channels, even (default: 256)")
    parser.add_argument("--repeat", type=positive, default=1, metavar="N", help="timed passes (default: 1)")


def make_batch(num_boxes: int, num_tokens: int, dim: int, device: str) -> Batch:
    """Make random features and masks; every box has a phrase of a few tokens."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(max(1, num_tokens - TOKENS_PER_PHRASE + 1), (num_boxes, 1), generator=generator)
    position = torch.arange(num_tokens)
    side = 2 * RESOLUTION
    batch = Batch(
        torch.randn(num_boxes, dim, RESOLUTION, RESOLUTION, generator=generator),
        torch.randn(1, num_tokens, LANGUAGE_DIM, generator=generator),
        (position >= first) & (position < first + TOKENS_PER_PHRASE),
        torch.randint(2, (num_boxes, side, side), generator=generator).float(),
    )
    return Batch(*(tensor.to(device) for tensor in batch))


def make_head(dim: int, device: str) -> HourglassMaskHead:
    """Make the head of the small models."""
    torch.manual_seed(0)
    head = HourglassMaskHead(
        channels=dim, language_dim=LANGUAGE_DIM, strides=STRIDES, conv_dim=dim, pooler_resolution=RESOLUTION
    )
    return head.to(device)


def one_map(head: HourglassMaskHead, batch: Batch, pixels: Tensor | None = None) -> Tensor:
    """Compute one map for each box, (K, 2S, 2S) logits, from the pooled features or from the pixels."""
    words = head.project_phrases(batch.text, [batch.token_map])
    return head.draw(batch.pooled, *words) if pixels is None else head.align(pixels, *words)


def mean_of_all_token_maps(head: HourglassMaskHead, batch: Batch, pixels: Tensor | None = None) -> Tensor:
    """Compute the same by way of the maps of all tokens, (K, T, 2S, 2S)."""
    pixels = head.enlarge(head.extract(batch.pooled)) if pixels is None else pixels
    every_token = torch.eye(batch.text.shape[1], dtype=torch.bool, device=pixels.device)
    words, bias = head.project_phrases(batch.text, [every_token])
    logits = torch.einsum("kcp,tc->ktp", pixels.flatten(2), words) + bias[:, None]
    logits = logits.clamp(-MAX_LOGIT, MAX_LOGIT)
    weights = batch.token_map / batch.token_map.sum(dim=1, keepdim=True)
    return torch.einsum("ktp,kt->kp", logits, weights).view(-1, *pixels.shape[2:])


FORMS = {"one map": one_map, "all tokens": mean_of_all_token_maps}


def train_once(
    head: HourglassMaskHead, batch: Batch, form: str, pixels: Tensor | None, read: Callable[[], Any]
) -> Cuts:
    """Run one forward and backward pass, cut into the two of them."""
    head.zero_grad(set_to_none=True)
    if pixels is not None:
        pixels.grad = None
    touch(batch.text.device)
    begin = read()
    logits = FORMS[form](head, batch, pixels)
    loss = F.binary_cross_entropy_with_logits(logits, batch.targets)
    middle = read()
    loss.backward()
    return [(("head", "forward"), begin), (("head", "backward"), middle), (("other", "end"), read())]


def measure(form: str, head: HourglassMaskHead, batch: Batch, repeat: int) -> dict[str, float]:
    """Measure one form: MiB of the whole head and of the maps, and seconds of the head."""
    device = batch.text.device
    # The pass that is traced is the one that warms up: its memory is that of any other.
    whole = partial(train_once, head, batch, form, None)
    cuts = trace_memory(whole, device)
    seconds = fastest_pass(whole, device, repeat)
    side = batch.targets.shape[-1]
    pixels = torch.randn(len(batch.pooled), batch.pooled.shape[1], side, side, device=device, requires_grad=True)
    kept = summarize_memory(trace_memory(partial(train_once, head, batch, form, pixels), device))[1]
    head_mib, maps_mib = summarize_memory(cuts)[2] / MIB, kept["head", "forward"] / MIB
    return {"head_mib": head_mib, "maps_mib": maps_mib, "seconds": seconds}


def run(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, dict[str, float]], list[Table]]:
    """Measure both forms, and the first as a share of the second."""
    sizes = {name: getattr(arguments, name) for name in ("boxes", "tokens", "dim")}
    results = {}
    for form in tqdm(FORMS, desc="forms", unit="form"):
        head, batch = make_head(arguments.dim, arguments.device), make_batch(*sizes.values(), arguments.device)
        results[form] = measure(form, head, batch, arguments.repeat)
    side = 2 * RESOLUTION
    title = f"{arguments.boxes} boxes, {arguments.tokens} tokens, {side} x {side} pixels, {arguments.dim} channels"
    table = make_table(title, "form", ["head, MiB", "maps, MiB", "s"])
    for form, row in results.items():
        table.add_row(form, f"{row['head_mib']:.1f}", f"{row['maps_mib']:.1f}", f"{row['seconds']:.4f}")
    first, second = results.values()
    table.add_row("share", *(f"{first[key] / second[key]:.3f}" for key in first))
    return sizes, results, [table]
