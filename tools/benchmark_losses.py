#!/usr/bin/env python
"""Measure what each loss of pre-training adds to a training step.

    python tools/benchmark_losses.py --config-file configs/pretrain/glipv2_micro.yaml

One model trains on the batches of its config's data. Every batch is run several times, with all losses and without one
of them, in an order that changes; the time of a step is that of the forward pass, the backward pass and the update.
Added time is the median over the batches of the difference within a batch, so drifts of the machine cancel.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from tqdm import tqdm

from glipv2_d2 import GLIPv2Trainer
from glipv2_d2.checkpoint.checkpointer import GLIPv2Checkpointer
from glipv2_d2.data import build_train_loader
from glipv2_d2.engine.command_line import build_config, one_line_errors
from glipv2_d2.errors import InputError

# Loss: the part of the model that computes it.
LOSSES = {"loss_contrastive": "contrastive_head", "loss_mlm": "mlm_head"}
NUM_WARMUP_BATCHES = 3


def step_seconds(model: nn.Module, optimizer: torch.optim.Optimizer, batch: list[dict], without: str | None) -> float:
    """Time one training step, leaving out a part of the model."""
    part = getattr(model, without) if without else None
    if without:
        setattr(model, without, None)
    _synchronize()
    start = time.perf_counter()
    optimizer.zero_grad()
    sum(model(batch).values()).backward()
    optimizer.step()
    _synchronize()
    seconds = time.perf_counter() - start
    if without:
        setattr(model, without, part)
    return seconds


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(config_file: str, opts: Sequence[str], num_batches: int) -> dict[str, list[float]]:
    """Return the seconds of each batch's step with all losses ("all"), and without each of those that are on."""
    cfg = build_config(config_file, opts)
    torch.manual_seed(0)
    model = GLIPv2Trainer.build_model(cfg).train()
    GLIPv2Checkpointer(model).load(cfg.MODEL.WEIGHTS)
    optimizer = GLIPv2Trainer.build_optimizer(cfg, model)
    parts = {loss: part for loss, part in LOSSES.items() if getattr(model, part) is not None}
    variants: list[tuple[str, str | None]] = [("all", None), *parts.items()]
    batches = iter(build_train_loader(cfg))
    seconds: dict[str, list[float]] = {name: [] for name, _ in variants}
    for index in tqdm(range(NUM_WARMUP_BATCHES + num_batches), unit="batch"):
        batch = next(batches)
        turn = index % len(variants)
        for name, part in variants[turn:] + variants[:turn]:
            taken = step_seconds(model, optimizer, batch, part)
            if index >= NUM_WARMUP_BATCHES:
                seconds[name].append(taken)
    return seconds


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--num-batches", type=int, default=40, help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the config")
    arguments = parser.parse_args(argv)
    with one_line_errors():
        if arguments.num_batches < 1:
            raise InputError(f"--num-batches: expected at least 1, found {arguments.num_batches}")
        seconds = measure(arguments.config_file, arguments.opts, arguments.num_batches)
    whole = torch.tensor(seconds.pop("all"))
    table = Table(title=f"a training step with all losses: {whole.median():.3f} s, median of {len(whole)}")
    for title in ("loss", "added s", "of the step without it"):
        table.add_column(title, justify="right")
    result = {"step": round(whole.median().item(), 4)}
    for name, without in ((name, torch.tensor(values)) for name, values in seconds.items()):
        added = (whole - without).median()
        share = (added / without.median()).item()
        table.add_row(name, f"{added:.4f}", f"{100 * share:.1f} %")
        result[name] = {"added": round(added.item(), 4), "share": round(share, 4)}
    Console().print(table)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
