"""Passes cut into segments of one module each: their time, memory and arithmetic; and other parts that tools share."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from glipv2_d2.checkpoint.checkpointer import GLIPv2Checkpointer
from glipv2_d2.modeling import build_model

# The modules that a segment can belong to, in order of the pass.
MODULES = (
    *("backbone", "text encoder", "fusion", "language layer", "dyconv", "head"),
    *("losses", "post-processing", "other"),
)

# Name of a cut in the trace of the profiler.
_MARK = "glipv2_measurement_cut"

MIB = 2**20

Segment = tuple[str, str]  # one of MODULES; "forward" or "backward"
Cuts = list[tuple[Segment, Any]]
# One pass: calls its argument at every cut, and returns the cuts with what that gave.
RunPass = Callable[[Callable[[], Any]], Cuts]


class Memory(NamedTuple):
    """Bytes held at a cut, and the peak since the cut before."""

    held: int
    most: int


def positive(text: str) -> int:
    """Read a whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text!r}")
    return int(text)


def make_table(title: str, rows: str, columns: Iterable[str]) -> Table:
    """Make an empty table with a column of names, ``rows``, and columns of numbers."""
    table = Table(rows, title=title or None, title_justify="left")
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def load_model(cfg: CfgNode) -> nn.Module:
    """Build the model with MODEL.WEIGHTS, or with the same random weights every time."""
    torch.manual_seed(0)
    model = build_model(cfg)
    GLIPv2Checkpointer(model).load(cfg.MODEL.WEIGHTS)
    return model


def noise_image(size: Sequence[int], generator: torch.Generator) -> dict[str, Any]:
    """Make the input of a model for an image of noise, without its prompts."""
    height, width = size
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return {"image": image, "height": height, "width": width}


class PassCutter:
    """Runs passes of a GLIPv2 and cuts them into segments, each of one module and direction.

    The calls of interest are wrapped on the model for good. A call begins a forward segment and ends it; its inputs and
    outputs are marked on the way, so that the backward pass is cut at the same points in reverse. The backward segment
    of a module lasts from the gradients of its outputs to those of its inputs; of a module whose inputs need none, to
    the next module.

    Args:
        model: Its mode decides: in training a pass is the sum of the losses and its backward pass, else the detection.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._read: Callable[[], Any] = lambda: None
        self._cuts: Cuts = []
        for module, owner, method in self._calls():
            setattr(owner, method, self._wrap(module, getattr(owner, method)))

    def run(self, inputs: list[dict[str, Any]], read: Callable[[], Any], known_prompts: bool = False) -> Cuts:
        """Run one pass.

        Args:
            inputs: For the model.
            read: Called at every cut.
            known_prompts: The text encoder runs only for prompts that no pass has read before.

        Returns:
            The cuts in order: the segment that begins there, and what ``read`` gave. The last one ends the pass.
        """
        self._read, self._cuts = read, []
        if not known_prompts:
            self.forget_prompts()
        self.model.zero_grad(set_to_none=True)
        self._cut("other", "forward")
        if self.model.training:
            total = sum(self.model(inputs).values())
            self._cut("other", "backward")
            total.backward()
        else:
            with torch.no_grad():
                self.model(inputs)
        self._cut("other", "end")
        return self._cuts

    def _calls(self) -> list[tuple[str, Any, str]]:
        """List the calls of interest: module, owner and name of the method."""
        model, head = self.model, self.model.head
        calls = [("backbone", model.backbone, "forward"), ("text encoder", model.text_encoder, "forward")]
        for block in model.fusion_tower.blocks:
            parts = (("fusion", block.fusion), ("language layer", block.language_layer), ("dyconv", block.dyconv))
            calls += [(module, part, "forward") for module, part in parts if part is not None]
        calls += [("head", head, "forward"), ("losses", head, "label_anchors"), ("losses", head, "losses")]
        return [*calls, ("post-processing", head, "inference")]

    def _cut(self, module: str, direction: str) -> None:
        self._cuts.append(((module, direction), self._read()))

    def _wrap(self, module: str, function: Callable) -> Callable:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = map_tensors((args, kwargs), self._mark("other"))
            self._cut(module, "forward")
            output = function(*args, **kwargs)
            self._cut("other", "forward")
            return map_tensors(output, self._mark(module))

        return wrapped

    def _mark(self, module: str) -> Callable[[Tensor], Tensor]:
        """Return what marks a tensor: once its gradient is known, the backward pass is in ``module``."""
        return lambda x: _Marked.apply(x, lambda: self._cut(module, "backward")) if x.requires_grad else x

    def forget_prompts(self) -> None:
        """Let the text encoder read all prompts again."""
        # The prompt cache of the model starts anew after a weight was changed in place, if only by nothing.
        with torch.no_grad():
            next(self.model.text_encoder.parameters()).mul_(1)


class _Marked(torch.autograd.Function):
    """The same tensor; calls a function when its gradient is known."""

    @staticmethod
    def forward(ctx, x: Tensor, callback: Callable[[], None]) -> Tensor:
        ctx.callback = callback
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.callback()
        return gradient, None


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to every tensor in nested tuples, named tuples, lists and dicts; the rest stays as it is."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(item, function) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [map_tensors(item, function) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def sum_segments(cuts: list[tuple[Segment, float]]) -> dict[Segment, float]:
    """Add up how far a number that only grows came in each segment."""
    sums: dict[Segment, float] = {}
    for (segment, begin), (_, end) in zip(cuts, cuts[1:]):
        sums[segment] = sums.get(segment, 0.0) + end - begin
    return sums


def count_macs(run_pass: RunPass) -> dict[Segment, float]:
    """Count the multiplications with addition of each segment of one pass.

    Counted are matrix products, convolutions, attention and bilinear sampling.
    """
    with FlopCounterMode(display=False, custom_mapping=_flop_formulas()) as counter:
        cuts = run_pass(counter.get_total_flops)
    return {segment: flops / 2 for segment, flops in sum_segments(cuts).items()}


def clock(device: torch.device, count: Callable[[], float] = time.perf_counter) -> Callable[[], float]:
    """Make a clock that first waits until the device has done what it was given."""

    def read() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return count()

    return read


def median_seconds(
    run_pass: RunPass, device: torch.device, passes: Iterable[int]
) -> tuple[dict[Segment, float], float]:
    """Time one pass for each item of ``passes``; return the medians of each segment and of the whole pass."""
    sums = [sum_segments(run_pass(clock(device))) for _ in passes]
    medians = {segment: statistics.median(one[segment] for one in sums) for segment in sums[0]}
    return medians, statistics.median(sum(one.values()) for one in sums)


def fastest_pass(run_pass: RunPass, device: torch.device, repeat: int) -> float:
    """Time some passes from their first cut to the last; return the seconds of the fastest."""
    passes = [run_pass(clock(device)) for _ in range(repeat)]
    return min(cuts[-1][1] - cuts[0][1] for cuts in passes)


def touch(device: torch.device) -> None:
    """Allocate a number: the profiler learns how much is held when something is allocated."""
    torch.empty(1, device=device)


def trace_memory(run_pass: RunPass, device: torch.device) -> list[tuple[Segment, Memory]]:
    """Return the cuts of one pass with the memory at each, in bytes.

    On CUDA the memory is what torch's allocator holds in all; elsewhere what it gave out during the pass, by torch's
    profiler, temporary buffers of kernels included. Buffers that MKL and oneDNN get elsewhere are not seen.
    """
    if device.type == "cuda":

        def look() -> Memory:
            memory = Memory(torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device))
            torch.cuda.reset_peak_memory_stats(device)
            return memory

        return run_pass(look)

    def mark() -> None:
        with record_function(_MARK):
            pass

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        cuts = run_pass(mark)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trace.json")
        profiler.export_chrome_trace(path)
        events = json.loads(Path(path).read_text(encoding="utf-8"))["traceEvents"]
    return [(segment, memory) for (segment, _), memory in zip(cuts, _read_trace(events), strict=True)]


def _read_trace(events: list[dict[str, Any]]) -> list[Memory]:
    """Return the memory at each mark among the events of the profiler's trace."""
    relevant = [event for event in events if event.get("name") in (_MARK, "[memory]")]
    memories, held, most = [], 0, 0
    for event in sorted(relevant, key=lambda event: event["ts"]):
        if event["name"] == _MARK:
            memories.append(Memory(held, most))
            most = held
        else:
            held = event["args"]["Total Allocated"]
            most = max(most, held)
    return memories


def summarize_memory(cuts: list[tuple[Segment, Memory]]) -> tuple[dict[Segment, int], dict[Segment, int], int]:
    """Summarize the memory of a pass, in bytes.

    Returns:
        For each segment, its peak above the level at its begin; for each segment, the bytes that all its calls together
        left behind; and the peak of the pass above the level before it.
    """
    most: dict[Segment, int] = {}
    kept: dict[Segment, int] = {}
    for (segment, begin), (_, end) in zip(cuts, cuts[1:]):
        most[segment] = max(most.get(segment, 0), end.most - begin.held)
        kept[segment] = kept.get(segment, 0) + end.held - begin.held
    return most, kept, max(memory.most for _, memory in cuts[1:]) - cuts[0][1].held


def _flop_formulas() -> dict[Any, Callable[..., int]]:
    """Formulas for what torch's counter lacks or gets wrong; arguments are shapes in place of tensors."""

    def sampled(x, weight, offset) -> int:
        taps = offset[0] * offset[2] * offset[3] * weight[2] * weight[3]
        return 2 * 4 * taps * x[1]  # four corners for each channel

    def convolved(weight, offset) -> int:
        return 2 * offset[0] * offset[2] * offset[3] * weight.numel()

    def deform(x, weight, offset, *args, **kwargs) -> int:
        return convolved(weight, offset) + sampled(x, weight, offset)

    def deform_backward(gradient, x, weight, offset, *args, **kwargs) -> int:
        # Gradients of weight and samples; the samples again, and the gradients of pixels and of positions.
        return 2 * convolved(weight, offset) + 3 * sampled(x, weight, offset)

    def convolution_backward(gradient, x, weight, *args, **kwargs) -> int:
        # torch's formula takes every channel to every channel, also in a depthwise convolution.
        transposed, wanted = args[4], args[7]
        positions = x if transposed else gradient
        return 2 * positions[0] * positions[2:].numel() * weight.numel() * sum(wanted[:2])

    def bags(rows, index, *args, **kwargs) -> int:
        return 2 * index.numel() * rows[1]

    def bags_backward(gradient, rows, index, *args, **kwargs) -> int:
        return 2 * index.numel() * rows[1]

    def attention(query, key, value, *args, **kwargs) -> int:
        return 2 * query[:3].numel() * key[2] * (query[3] + value[3])

    def attention_backward(gradient, query, key, value, *args, **kwargs) -> int:
        # The scores again; then the gradients of queries and keys, and of weights and values.
        return 2 * query[:3].numel() * key[2] * (3 * query[3] + 2 * value[3])

    def product(x, weight, *args, **kwargs) -> int:
        return 2 * x.numel() * weight[0]

    aten, vision = torch.ops.aten, torch.ops.torchvision
    return {
        vision.deform_conv2d: deform,
        vision._deform_conv2d_backward: deform_backward,
        aten.convolution_backward: convolution_backward,
        aten._embedding_bag: bags,
        aten._embedding_bag_forward_only: bags,
        aten._embedding_bag_per_sample_weights_backward: bags_backward,
        torch.ops.mkldnn._linear_pointwise: product,
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    }
