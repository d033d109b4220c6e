"""Measure the time that each loss of pre-training adds to a training step.

    python tools/benchmark.py losses --config-file configs/pretrain/glipv2_micro.yaml

One model trains on the batches of its config's data. Every batch is run several times, with all losses and without one
of them, in an order that changes; the time of a step is that of the forward pass, the backward pass and the update.
Added time is the median over the batches of the difference within a batch, so drifts of the machine cancel.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from detectron2.config import CfgNode
from rich.table import Table
from torch import nn
from tqdm import tqdm

from glipv2_d2 import GLIPv2Trainer
from glipv2_d2.data import build_train_loader

from .measurement import clock, load_model, make_table, positive

CONFIG_KEYS = ()
# Loss: the part of the model that computes it.
LOSSES = {"loss_contrastive": "contrastive_head", "loss_mlm": "mlm_head"}
NUM_WARMUP_BATCHES = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this subcommand."""
    parser.add_argument("--num-batches", type=positive, default=40, metavar="N", help="default: 40")


def step_seconds(model: nn.Module, optimizer: torch.optim.Optimizer, batch: list[dict], without: str | None) -> float:
    """Time one training step, leaving out a part of the model."""
    part = getattr(model, without) if without else None
    if without:
        setattr(model, without, None)
    read = clock(next(model.parameters()).device)
    start = read()
    optimizer.zero_grad()
    sum(model(batch).values()).backward()
    optimizer.step()
    seconds = read() - start
    if without:
        setattr(model, without, part)
    return seconds


def measure(cfg: CfgNode, num_batches: int) -> dict[str, list[float]]:
    """Return the seconds of each batch's step with all losses ("all"), and without each of those that are on."""
    model = load_model(cfg).train()
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


def run(arguments: argparse.Namespace, cfg: CfgNode) -> tuple[dict[str, Any], dict[str, Any], list[Table]]:
    """Measure the losses that are on."""
    seconds = {name: torch.tensor(values) for name, values in measure(cfg, arguments.num_batches).items()}
    whole = seconds.pop("all")
    title = f"a training step with all losses: {whole.median():.3f} s, median of {len(whole)}"
    table = make_table(title, "loss", ["added s", "of the step without it"])
    results: dict[str, Any] = {"step": whole.median().item()}
    for name, without in seconds.items():
        added = (whole - without).median().item()
        results[name] = {"added": added, "share": added / without.median().item()}
        table.add_row(name, f"{added:.4f}", f"{results[name]['share']:.1%}")
    return {}, results, [table]
