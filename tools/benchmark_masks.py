#!/usr/bin/env python
"""Measure the memory and the time of training the mask head: one map for each box, against the maps of all tokens.

    python tools/benchmark_masks.py
    python tools/benchmark_masks.py --boxes 400 --tokens 256 --dim 256

head    MiB, the most that is held at a time in a forward and backward pass from pooled features to the loss, beyond
        what was held before it; gradients of the parameters are included.
maps    MiB, of the same from the features of the pixels to the loss: what the forward pass keeps for the backward pass.
s       of the fastest of the timed passes of the head.

"one map" is the head as it trains. "all tokens" computes what the official code computes, the map of every token for
every box, of which the loss then reads the mean over the tokens of the box's phrase; it keeps all activations. Memory
is what torch's allocator gave out, on the CPU by torch's profiler.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from glipv2_d2.engine.command_line import one_line_errors
from glipv2_d2.engine.measurement import Memory, Segment, summarize_memory, trace_memory
from glipv2_d2.modeling.heads.grounding_head import MAX_LOGIT
from glipv2_d2.modeling.heads.mask_head import HourglassMaskHead

MIB = 2**20
RESOLUTION = 14  # of what is pooled; the masks have twice as many pixels
LANGUAGE_DIM = 768
TOKENS_PER_PHRASE = 2
STRIDES = [8, 16, 32, 64, 128]


class Batch(NamedTuple):
    """What the boxes of an image train on.

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


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=positive, default=100, metavar="K", help="default: 100")
    parser.add_argument("--tokens", type=positive, default=256, metavar="T", help="default: 256")
    parser.add_argument("--dim", type=positive, default=256, metavar="C", help="channels, even (default: 256)")
    parser.add_argument("--repeat", type=positive, default=1, metavar="N", help="timed passes (default: 1)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", metavar="DEVICE")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers there")
    return parser.parse_args(argv)


def positive(text: str) -> int:
    """Read a whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text!r}")
    return int(text)


def make_batch(num_boxes: int, num_tokens: int, dim: int, device: str) -> Batch:
    """Make random features and masks; every box has a phrase of a few tokens."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(max(1, num_tokens - TOKENS_PER_PHRASE + 1), (num_boxes, 1), generator=generator)
    place = torch.arange(num_tokens)
    side = 2 * RESOLUTION
    batch = Batch(
        torch.randn(num_boxes, dim, RESOLUTION, RESOLUTION, generator=generator),
        torch.randn(1, num_tokens, LANGUAGE_DIM, generator=generator),
        (place >= first) & (place < first + TOKENS_PER_PHRASE),
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
    """Compute one map for each box, (K, 2S, 2S) logits, from what was pooled or else from the pixels."""
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


class TrainingPass:
    """Forward and backward pass of the head, cut for ``trace_memory`` into the two of them."""

    def __init__(self, head: HourglassMaskHead, batch: Batch, form: str, pixels: Tensor | None = None) -> None:
        self.head, self.batch, self.form, self.pixels = head, batch, form, pixels

    def run(self, inputs: Any, read: Callable[[], Any]) -> list[tuple[Segment, Any]]:
        """Run one pass; ``inputs`` is not looked at."""
        self.head.zero_grad(set_to_none=True)
        if self.pixels is not None:
            self.pixels.grad = None
        # The profiler learns how much is held when something is allocated.
        torch.empty(1, device=self.batch.text.device)
        begin = read()
        logits = FORMS[self.form](self.head, self.batch, self.pixels)
        loss = F.binary_cross_entropy_with_logits(logits, self.batch.targets)
        middle = read()
        loss.backward()
        return [(("head", "forward"), begin), (("head", "backward"), middle), (("other", "end"), read())]


def measure(form: str, head: HourglassMaskHead, batch: Batch, repeat: int) -> dict[str, float]:
    """Measure one form: MiB of the whole head and of the maps, and seconds of the head."""
    device = batch.text.device

    def read() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    # The pass that is traced is the one that warms up: its memory is that of any other.
    whole = TrainingPass(head, batch, form)
    cuts: list[tuple[Segment, Memory]] = trace_memory(whole, None, device)
    times = [[cut for _, cut in whole.run(None, read)] for _ in range(repeat)]
    side = batch.targets.shape[-1]
    pixels = torch.randn(len(batch.pooled), batch.pooled.shape[1], side, side, device=device, requires_grad=True)
    kept = summarize_memory(trace_memory(TrainingPass(head, batch, form, pixels), None, device))[1]
    return {
        "head_mib": summarize_memory(cuts)[2] / MIB,
        "maps_mib": kept["head", "forward"] / MIB,
        "seconds": min(cut[-1] - cut[0] for cut in times),
    }


def make_table(results: dict[str, dict[str, float]], arguments: argparse.Namespace) -> Table:
    """Lay out the numbers of both forms, and the first as a share of the second."""
    side = 2 * RESOLUTION
    title = f"{arguments.boxes} boxes, {arguments.tokens} tokens, {side} x {side} pixels, {arguments.dim} channels"
    table = Table("form", title=f"{title}, {arguments.device}", title_justify="left")
    for heading in ("head, MiB", "maps, MiB", "s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for form, row in results.items():
        table.add_row(form, f"{row['head_mib']:.1f}", f"{row['maps_mib']:.1f}", f"{row['seconds']:.4f}")
    first, second = results.values()
    table.add_row("share", *(f"{first[key] / second[key]:.3f}" for key in first))
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    arguments = parse_arguments(argv)
    # The library under the profiler reports on itself unless it is told not to.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    sizes = {name: getattr(arguments, name) for name in ("boxes", "tokens", "dim", "device")}
    results = {}
    with one_line_errors():
        for form in tqdm(FORMS, desc="forms", unit="form"):
            batch = make_batch(*sizes.values())
            results[form] = measure(form, make_head(arguments.dim, arguments.device), batch, arguments.repeat)
    Console(highlight=False).print(make_table(results, arguments))
    if arguments.json:
        facts = {**sizes, "threads": torch.get_num_threads(), "torch": torch.__version__, "forms": results}
        Path(arguments.json).write_text(json.dumps(facts, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
