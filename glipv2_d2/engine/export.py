"""Write a detector with its names frozen in as a file that runs without this package."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from detectron2.config import CfgNode

from ..checkpoint.checkpointer import build_for_results
from ..errors import InputError
from ..modeling.exported.fixed_prompt import FixedPromptDetector
from ..modeling.meta_arch.glipv2 import GLIPv2
from ..prompts.tokenizer import PromptTokenizer
from ..prompts.user_prompts import names_prompts
from ..prompts.vocabulary import build_default_prompts, dataset_names
from ..structures import TokenizedPrompt
from ..tensor_files import atomic_path, file_sha256, write_text


class Exported(NamedTuple):
    """The two files of an export, and the names in it, by category."""

    program: Path
    description: Path
    names: list[str]


def export_detector(
    cfg: CfgNode, output: Path, names: Sequence[str] = (), size: tuple[int, int] | None = None
) -> Exported:
    """Write a detector for some names and one size of images, by ``torch.export``, for the CPU.

    Beside ``output`` a json file of the same name says how an image is resized, which input is which, and what the
    categories are.

    Args:
        cfg: Config with ``MODEL.WEIGHTS``, on the CPU.
        output: File to write, .pt2.
        names: What it detects; none: the names of ``DATASETS.TEST[0]``.
        size: Height and width of its images; None: those of a photograph of 4:3 in ``INPUT.MIN_SIZE_TEST``.

    Raises:
        InputError: ``output`` has another ending, the names do not fit into one prompt, the size is no multiple of the
            model's stride, or the model is a detector without text.
        OSError: Weights cannot be read, or the file cannot be written.
    """
    if output.suffix != ".pt2":
        raise InputError(f"--output: expected a name that ends in .pt2, found {output}")
    prompt, names = _single_prompt(cfg, names)
    model = build_for_results(cfg)
    if not isinstance(model, GLIPv2):
        raise InputError("MODEL.META_ARCHITECTURE: expected 'GLIPv2' to freeze names in, found another")
    warn_of_left_out(cfg, model, output)
    cfg, model = _answering(cfg, model, prompt)
    size = size or _default_size(cfg, model.backbone.size_divisibility)
    detector = FixedPromptDetector(model, prompt, size).eval().requires_grad_(False)
    example = (torch.full((3, *size), 127.0), torch.tensor(size), torch.tensor(size))
    with torch.no_grad(), warnings.catch_warnings():
        # Of torch about its own parts, and of torchvision's form of a function of torch.
        warnings.simplefilter("ignore")
        exported = torch.export.export(detector, example)
        with atomic_path(output) as path:
            torch.export.save(exported, path)
    description = {
        "format": "torch.export",
        "torch": torch.__version__,
        "names": list(names),
        "size": list(size),
        "channels": cfg.INPUT.FORMAT,
        "resize": {"shortest": cfg.INPUT.MIN_SIZE_TEST, "longest": cfg.INPUT.MAX_SIZE_TEST},
        "inputs": {
            "image": "(3, size) float32, 0..255, the resized image in the upper left",
            "image_size": "(2,) int64, height and width of the resized image",
            "original_size": "(2,) int64, height and width of the image before",
        },
        "outputs": {
            "boxes": "(K, 4) left, top, right, bottom in pixels of the image before it was resized",
            "scores": "(K,) descending; rows with the score 0 are empty",
            "categories": "(K,) rows of names",
        },
        "weights": cfg.MODEL.WEIGHTS,
        "sha256": file_sha256(output),
    }
    described = output.with_suffix(".json")
    write_text(described, json.dumps(description, indent=2, ensure_ascii=False) + "\n")
    return Exported(output, described, list(names))


def warn_of_left_out(cfg: CfgNode, model: GLIPv2, output: Path) -> None:
    """Log a warning of each part of a model that no exported form of it has."""
    for is_on, text in (
        (model.mask_head is not None, "its masks are left out, boxes alone are exported"),
        (
            cfg.MODEL.GLIPV2.TEST.SHORTLIST,
            "MODEL.GLIPV2.TEST.SHORTLIST is left out, an exported model asks for all names",
        ),
        (model.class_words_head is not None, "MODEL.GLIPV2.CLASS_WORDS is left out, the alignment alone names boxes"),
        (cfg.TEST.AUG.ENABLED, "TEST.AUG is left out, an exported model sees one size, INPUT.MIN_SIZE_TEST"),
    ):
        if is_on:
            logging.getLogger(__name__).warning("%s: %s", output, text)


def _single_prompt(cfg: CfgNode, names: Sequence[str]) -> tuple[TokenizedPrompt, Sequence[str]]:
    """Return the prompt of names, and the names by category."""
    if names:
        separator, chunk_size = cfg.INPUT.PROMPT.SEPARATOR, cfg.MODEL.GLIPV2.TEST.PROMPT_CHUNK_SIZE
        tokenizer = PromptTokenizer.from_config(cfg)
        prompts = names_prompts(names, tokenizer=tokenizer, separator=separator, chunk_size=chunk_size)
    else:
        prompts = build_default_prompts(cfg)
        names = dataset_names(cfg.DATASETS.TEST[0])
    if len(prompts) > 1:
        raise InputError(
            f"--names: expected names that fit into one prompt, found {len(names)} that take {len(prompts)}; "
            "export them in parts"
        )
    return prompts[0], names


def _answering(cfg: CfgNode, model: GLIPv2, prompt: TokenizedPrompt) -> tuple[CfgNode, GLIPv2]:
    """Return the model whose weights answer for all names of a prompt, and the config with the size that it sees."""
    if model.by_name is None:
        return cfg, model
    own, others = model.by_name.split([prompt], len(prompt))
    if own and others:
        raise InputError(
            "--names: expected names that were tuned, or other names, found both, which two sets of weights answer for "
            f"({', '.join(map(repr, own[0].phrases[:3]))} and {', '.join(map(repr, others[0].phrases[:3]))}); export "
            "each kind into a file of its own"
        )
    if not others:
        return cfg, model
    cfg = cfg.clone()
    if size := cfg.MODEL.GLIPV2.TUNING.KEEP.SIZE_TEST:
        cfg.defrost()
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = size
    return cfg, cast(GLIPv2, model.by_name.base)


def _default_size(cfg: CfgNode, divisor: int) -> tuple[int, int]:
    """Return the size of a lying photograph of 4:3, with its padding."""
    height = min(cfg.INPUT.MIN_SIZE_TEST or cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    sides: Any = (height, min(round(height * 4 / 3), cfg.INPUT.MAX_SIZE_TEST))
    return tuple(-(-side // divisor) * divisor for side in sides)
