"""Measure the time, the memory and the arithmetic of a model, module by module.

    python tools/benchmark.py model --config-file CONFIG --size 800 1333 --num-names 80
    python tools/benchmark.py model --config-file CONFIG --size 192 192 --batch 4 --train --prompt "person. bus"

Each form of the two heavy layers, FUSION/DEFORMABLE, gets a table, for the same weights, images of noise and prompt:

GMAC    multiplications with addition, in billions, of matrix products, convolutions, attention and bilinear sampling,
        by torch's FLOP counter. Norms, softmax and other elementwise work are not counted.
s       median over the passes, in single precision. The backward time of a module is that between the gradients of its
        outputs and those of its inputs. The text encoder runs in every pass here; in service a prompt is encoded once.
memory  MiB. Of a module: the most that one call held at a time, above what was held when it began. Of the whole: the
        most above weights and inputs. On the CPU: all that torch's allocator gave out during one more pass, by torch's
        profiler, temporary buffers of kernels included, but not those that MKL and oneDNN get elsewhere. On CUDA:
        torch.cuda.max_memory_allocated.
kept    MiB that the forward pass of a module leaves behind: its results, and what its backward pass needs.

Weights are those of MODEL.WEIGHTS, or random: then post-processing finds next to nothing to choose from.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from rich.table import Table
from torch import nn
from tqdm import tqdm

from glipv2_d2.errors import InputError
from glipv2_d2.layers.deform_conv import DEFORM_FORMS
from glipv2_d2.layers.fusion import FUSION_FORMS
from glipv2_d2.prompts.tokenizer import PromptTokenizer
from glipv2_d2.structures import TokenizedPrompt

from .measurement import (
    MIB,
    MODULES,
    PassCutter,
    count_macs,
    load_model,
    make_table,
    median_seconds,
    noise_image,
    positive,
    summarize_memory,
    trace_memory,
)

CONFIG_KEYS = ()
FORMS = f"{'|'.join(FUSION_FORMS)} / {'|'.join(DEFORM_FORMS)}"
# Their names answer --num-names: the first dataset that has enough of them.
NAMED_DATASETS = ("coco_2017_val", "lvis_v1_val")
BOXES_PER_IMAGE = 8

Rows = dict[str, dict[str, float]]  # module, column, number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this subcommand."""
    parser.add_argument("--size", nargs=2, type=positive, default=[800, 1333], metavar=("H", "W"), help="of the images")
    parser.add_argument("--batch", type=positive, default=1, metavar="N", help="images of a pass (default: 1)")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="A. B. C", help="names with full stops between them")
    prompt.add_argument(
        "--num-names", type=positive, default=80, metavar="K", help="the first K names of COCO or LVIS (default: 80)"
    )
    parser.add_argument(
        "--forms",
        nargs="+",
        type=form_pair,
        default=[("plain", "torchvision"), ("blocks", "gather")],
        metavar="FUSION/DEFORMABLE",
        help=f"{FORMS} (default: plain/torchvision blocks/gather)",
    )
    parser.add_argument("--train", action="store_true", help="losses and their backward pass, in training mode")
    parser.add_argument("--repeat", type=positive, default=5, metavar="N", help="timed passes (default: 5)")


def form_pair(text: str) -> tuple[str, str]:
    """Read FUSION/DEFORMABLE."""
    fusion, _, deform = text.partition("/")
    if fusion not in FUSION_FORMS or deform not in DEFORM_FORMS:
        raise argparse.ArgumentTypeError(f"expected {FORMS}, found {text!r}")
    return fusion, deform


def make_prompts(cfg: CfgNode, prompt: str | None, num_names: int) -> list[TokenizedPrompt]:
    """Tokenize the names of the command line, one prompt per chunk."""
    if prompt is not None:
        names = [name.strip() for name in prompt.split(".") if name.strip()]
        if not names:
            raise InputError(f"--prompt: expected names with full stops between them, found {prompt!r}")
    else:
        vocabularies = [MetadataCatalog.get(dataset).thing_classes for dataset in NAMED_DATASETS]
        if num_names > len(vocabularies[-1]):
            raise InputError(f"--num-names: expected at most {len(vocabularies[-1])}, found {num_names}")
        names = next(names[:num_names] for names in vocabularies if len(names) >= num_names)
    return PromptTokenizer.from_config(cfg).tokenize_names(
        names, separator=cfg.INPUT.PROMPT.SEPARATOR, chunk_size=cfg.MODEL.GLIPV2.TEST.PROMPT_CHUNK_SIZE
    )


def make_inputs(prompts: list[TokenizedPrompt], size: Sequence[int], batch: int) -> list[dict[str, Any]]:
    """Make images of noise with the same prompts and the same boxes, from small to large."""
    height, width = size
    generator = torch.Generator().manual_seed(0)
    shares = torch.linspace(0.1, 0.8, BOXES_PER_IMAGE)[:, None]  # of the sides
    corner = torch.rand(BOXES_PER_IMAGE, 2, generator=generator) * (1 - shares)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.cat((corner, corner + shares), dim=1) * torch.tensor([width, height] * 2))
    instances.gt_classes = torch.arange(BOXES_PER_IMAGE) % len(prompts[0].phrases)
    labels = {"prompts": prompts, "instances": instances}
    return [noise_image(size, generator) | labels for _ in range(batch)]


def make_model(cfg: CfgNode, forms: tuple[str, str], train: bool) -> nn.Module:
    """Build the model with one pair of forms; all pairs get the same weights."""
    model = load_model(cfg).train(train)
    set_forms(model, forms)
    return model


def set_forms(model: nn.Module, forms: tuple[str, str]) -> None:
    """Choose the forms of the two heavy layers of a model."""
    for block in model.fusion_tower.blocks:
        if block.fusion is not None:
            block.fusion.form = forms[0]
        block.dyconv.deform_form = forms[1]


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Count the numbers that each module has learned."""
    parts = {"backbone": [model.backbone], "text encoder": [model.text_encoder], "head": [model.head]}
    for module, attribute in (("fusion", "fusion"), ("language layer", "language_layer"), ("dyconv", "dyconv")):
        layers = (getattr(block, attribute) for block in model.fusion_tower.blocks)
        parts[module] = [layer for layer in layers if layer is not None]
    return {
        module: sum(parameter.numel() for part in group for parameter in part.parameters())
        for module, group in parts.items()
    }


def measure(model: nn.Module, inputs: list[dict[str, Any]], repeat: int, name: str) -> Rows:
    """Measure a model: for each module that ran, and for "total", the numbers of the table's columns."""
    parameters, run_pass = count_parameters(model), partial(PassCutter(model).run, inputs)
    macs = count_macs(run_pass)  # also the pass that warms up
    most, kept, most_of_all = summarize_memory(trace_memory(run_pass, model.device))
    passes = tqdm(range(repeat), desc=name, unit="pass", leave=False)
    seconds, seconds_of_all = median_seconds(run_pass, model.device, passes)
    directions = ("forward", "backward") if model.training else ("forward",)
    rows: Rows = {}
    for module in (module for module in MODULES if (module, "forward") in seconds):
        segments = [(module, direction) for direction in directions]
        rows[module] = {
            "parameters_m": parameters.get(module, 0) / 1e6,
            "gmac": sum(macs.get(segment, 0.0) for segment in segments) / 1e9,
            **{f"{direction}_s": seconds.get((module, direction), 0.0) for direction in directions},
            "memory_mib": max(most.get(segment, 0) for segment in segments) / MIB,
            "kept_mib": kept[segments[0]] / MIB,
        }
    rows["total"] = {column: sum(row[column] for row in rows.values()) for column in rows["other"]}
    rows["total"] |= {"memory_mib": most_of_all / MIB, "pass_s": seconds_of_all}
    return rows


def show(title: str, rows: Rows) -> Table:
    """Lay out the numbers of ``measure``."""
    trained = "backward_s" in rows["total"]
    columns = [("parameters_m", "parameters, M", 2), ("gmac", "GMAC", 2), ("forward_s", "forward, s", 4)]
    columns += [("backward_s", "backward, s", 4)] if trained else []
    columns += [("memory_mib", "memory, MiB", 1)]
    columns += [("kept_mib", "kept, MiB", 1)] if trained else []
    table = make_table(title, "module", [*(heading for _, heading, _ in columns), "share of time"])
    spent = {module: row["forward_s"] + row.get("backward_s", 0.0) for module, row in rows.items()}
    for module, row in rows.items():
        if module == "total":
            table.add_section()
        values = [f"{row[column]:.{digits}f}" for column, _, digits in columns]
        table.add_row(module, *values, f"{spent[module] / spent['total']:.1%}")
    return table


def run(arguments: argparse.Namespace, cfg: CfgNode) -> tuple[dict[str, Any], dict[str, Rows], list[Table]]:
    """Measure the model in each pair of forms."""
    prompts = make_prompts(cfg, arguments.prompt, arguments.num_names)
    if arguments.train and len(prompts) > 1:
        raise InputError(f"--train: expected names for one prompt, found names for {len(prompts)}; give fewer names")
    inputs = make_inputs(prompts, arguments.size, arguments.batch)
    facts = {
        "images": [arguments.batch, 3, *arguments.size],
        "names": sum(len(prompt.phrases) for prompt in prompts),
        "tokens": [len(prompt) for prompt in prompts],
        "training": arguments.train,
        "repeat": arguments.repeat,
    }
    results, tables = {}, []
    for forms in arguments.forms:
        name = "/".join(forms)
        rows = results[name] = measure(make_model(cfg, forms, arguments.train), inputs, arguments.repeat, name)
        title = f"fusion {forms[0]}, deformable convolution {forms[1]}: {rows['total']['pass_s']:.4f} s a pass"
        tables.append(show(title, rows))
    return facts, results, tables
