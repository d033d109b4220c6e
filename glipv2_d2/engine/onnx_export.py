"""Write a detector as two ONNX graphs that stay open: any names, any size of images, no torch to run them."""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import nn
from torch.export import Dim

from ..checkpoint.checkpointer import build_for_results
from ..errors import InputError
from ..modeling.exported.open_prompt import OpenPromptDetector, PromptReader
from ..modeling.meta_arch.glipv2 import GLIPv2
from ..prompts.tokenizer import PromptTokenizer
from ..prompts.vocabulary import dataset_names
from ..tensor_files import file_sha256, write_text
from .export import warn_of_left_out
from .onnx_graphs import OPSET, flat_names, join, quantize, save, translate, with_weights_of

_NEEDED = ("onnx", "onnxscript", "onnxruntime")
# Sizes that a graph is traced with; it is not bound to them. Equal ones could be taken for one.
_TOKENS, _PHRASES = 11, 3
# Largest difference to the model that rounding explains, of features and of the best scores.
_TOLERANCE, _BEST = 1e-3, 100

_INPUTS = {
    "image": "(3, H, W) float32, 0..255; H and W multiples of multiple_of, the resized image in the upper left",
    "image_size": "(2,) int64, height and width of the resized image",
    "text": "(1, T, D) float32, the output of the text encoder for input_ids (1, T) int64",
    "phrase_token_map": "(P, T) bool, the tokens that spell each name",
}
_OUTPUTS = {
    "boxes": "(K, 4) float32: left, top, right, bottom in pixels of the resized image",
    "scores": "(K,) float32; rows with the score 0 are empty",
    "phrases": "(K,) int64, rows of phrase_token_map",
}


class ExportedOnnx(NamedTuple):
    """The files of an export."""

    detector: Path
    text_encoder: Path
    tokenizer: Path
    description: Path


def files_of(output: Path) -> ExportedOnnx:
    """Return the files that belong to the graph ``output``, all beside it."""
    return ExportedOnnx(
        output,
        output.with_name(f"{output.stem}_text.onnx"),
        output.with_name(f"{output.stem}_tokenizer.json"),
        output.with_suffix(".json"),
    )


def export_onnx(cfg: CfgNode, output: Path, names: Sequence[str] = (), *, int8: bool = False) -> ExportedOnnx:
    """Write the text encoder of a detector, and the rest of it, as ONNX graphs.

    Beside them a tokenizer for the library tokenizers, and a json file that says what else a program needs. Either all
    files are written or none.

    Args:
        cfg: Config with ``MODEL.WEIGHTS``, on the CPU.
        output: File of the detector, .onnx.
        names: Names that the description lists as those to find; none: the names of ``DATASETS.TEST[0]``.
        int8: Quantize the products with weights, see ``quantize``; the graphs are compared with the model before.

    Raises:
        InputError: A package is missing, the model is a detector without text, or a module cannot be exported.
        OSError: Weights cannot be read, or a file cannot be written.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f'--output: {output.name} needs {" and ".join(missing)}, expected them; pip install ".[onnx]"')
    if not output.parent.is_dir():
        raise FileNotFoundError(f"{output}: expected the folder {output.parent}, found none")
    model = build_for_results(cfg)
    if not isinstance(model, GLIPv2):
        raise InputError("MODEL.META_ARCHITECTURE: expected 'GLIPv2' to export it, found another")
    warn_of_left_out(cfg, model, output)
    files, tokenizer = files_of(output), PromptTokenizer.from_config(cfg)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        written = files_of(Path(folder, output.name))
        _write_graphs(model, written)
        if int8:
            for path in written[:2]:
                quantize(path)
        tokenizer.save(written.tokenizer)
        description = _describe(cfg, model, files, names or _own_names(cfg), tokenizer, int8)
        description["sha256"] = {path.name: file_sha256(path) for path in written[:2]}
        write_text(written.description, json.dumps(description, indent=2, ensure_ascii=False) + "\n")
        for path in sorted(Path(folder).iterdir()):
            os.replace(path, output.parent / path.name)
    return files


def _own_names(cfg: CfgNode) -> Sequence[str]:
    """Return the names of the first test set; none if there is no such set."""
    return dataset_names(cfg.DATASETS.TEST[0]) if cfg.DATASETS.TEST else []


def _describe(
    cfg: CfgNode, model: GLIPv2, files: ExportedOnnx, names: Sequence[str], tokenizer: PromptTokenizer, int8: bool
) -> dict[str, Any]:
    selector = model.head.selector
    return {
        "format": "onnx",
        "opset": OPSET,
        "int8": int8,
        "detector": files.detector.name,
        "text_encoder": files.text_encoder.name,
        "tokenizer": files.tokenizer.name,
        "names": list(names),
        "separator": cfg.INPUT.PROMPT.SEPARATOR,
        "max_tokens": tokenizer.max_tokens,
        "names_of_a_prompt": cfg.MODEL.GLIPV2.TEST.PROMPT_CHUNK_SIZE,
        "channels": cfg.INPUT.FORMAT,
        "multiple_of": model.backbone.size_divisibility,
        "resize": {"shortest": cfg.INPUT.MIN_SIZE_TEST, "longest": cfg.INPUT.MAX_SIZE_TEST},
        "nms_threshold": selector.nms_thresh,
        "detections": {"of_a_prompt": selector.detections_per_image, "of_an_image": cfg.TEST.DETECTIONS_PER_IMAGE},
        "inputs": _INPUTS,
        "outputs": _OUTPUTS,
        "weights": cfg.MODEL.WEIGHTS,
    }


def _write_graphs(model: GLIPv2, files: ExportedOnnx) -> None:
    detector = OpenPromptDetector(model).eval().requires_grad_(False)
    reader = PromptReader(model.text_encoder, detector.reading).eval().requires_grad_(False)
    divisor = model.backbone.size_divisibility
    # The limits are those that torch derives from the graph; onnxruntime does not read them.
    tokens = Dim("tokens", min=2, max=model.text_encoder.max_positions)
    ids = torch.arange(_TOKENS)[None]
    names = {module: name for name, module in model.named_modules()}

    def name_of(module: nn.Module) -> str:
        return names.get(module, "")

    save(translate(reader, {"input_ids": ids}, {"input_ids": {1: tokens}}, ["text"], name_of), files.text_encoder)
    examples = _example(reader, ids, _PHRASES, (10 * divisor, 12 * divisor))
    save(_join_parts(detector, examples, tokens, divisor, name_of), files.detector)
    # One canvas stands, one lies.
    for number, size in ((2, (7 * divisor, 4 * divisor)), (5, (2 * divisor, 9 * divisor))):
        ids = torch.arange(3 + 2 * number)[None]
        _check(reader, files.text_encoder, {"input_ids": ids})
        _check(detector, files.detector, _example(reader, ids, number, size))


def _join_parts(
    detector: OpenPromptDetector,
    examples: dict[str, torch.Tensor],
    tokens: Any,
    divisor: int,
    name_of: Callable[[nn.Module], str],
) -> Any:
    """Translate the parts of a detector one by one, each for levels of any sizes, and join them.

    In one graph torch would follow the sizes of all levels as functions of the size of the image.
    """
    values: dict[str, Any] = dict(examples)
    axes: dict[str, Any] = {
        "image": {1: divisor * Dim("rows"), 2: divisor * Dim("columns")},
        "image_size": None,
        "text": {1: tokens},
        "phrase_token_map": {0: Dim("phrases"), 1: tokens},
    }
    graphs: list[Any] = []
    like: dict[str, Any] = {}
    for module, inputs, outputs in detector.parts:
        given = {name: values[name] for name in inputs}
        with torch.no_grad():
            found = module(*given.values())
        found = dict(zip(outputs, [found] if len(outputs) == 1 else found, strict=True))
        # Blocks of the tower are built alike: one is traced for all of them.
        kind = f"{module} {[(name, tuple(weight.shape)) for name, weight in module.state_dict().items()]}"
        if kind in like:
            graphs.append(with_weights_of(like[kind], module))
        else:
            like[kind] = translate(module, given, axes, flat_names(found), name_of)
            graphs.append(like[kind].clone())
        if "levels" in found:
            found["levels"] = [level.contiguous() for level in found["levels"]]
            axes["levels"] = [
                {2: Dim(f"rows_{number}"), 3: Dim(f"columns_{number}")} for number in range(len(found["levels"]))
            ]
        values |= found
    return join(graphs, list(_OUTPUTS))


def _example(reader: PromptReader, ids: torch.Tensor, phrases: int, size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Return inputs of the detector: noise, and phrases of a token or more each."""
    generator = torch.Generator().manual_seed(0)
    token_map = torch.rand(phrases, ids.shape[1], generator=generator) > 0.5
    token_map[:, 1] = True
    with torch.no_grad():
        text = reader(ids)
    image = torch.rand(3, *size, generator=generator) * 255
    return {"image": image, "image_size": torch.tensor(size) - 3, "text": text, "phrase_token_map": token_map}


def _check(module: nn.Module, path: Path, inputs: dict[str, torch.Tensor]) -> None:
    """Compare a graph with its module, for inputs of other sizes than those that it was traced with.

    Raises:
        InputError: They differ: the module decides something by a size.
    """
    import onnxruntime

    found = onnxruntime.InferenceSession(path).run(None, {name: one.numpy() for name, one in inputs.items()})
    with torch.no_grad():
        expected = module(*inputs.values())
    # Of a detector the best scores: rows without a score are empty, and equal scores have no order.
    one, other = (
        (found[0], expected.numpy())
        if isinstance(expected, torch.Tensor)
        else (np.sort(found[1])[-_BEST:], np.sort(expected[1].numpy())[-_BEST:])
    )
    if one.shape != other.shape or not np.abs(one - other).max(initial=0) <= _TOLERANCE:
        shapes = ", ".join(f"{name} {tuple(one.shape)}" for name, one in inputs.items())
        raise InputError(
            f"{type(module).__name__}: expected a graph that gives the values of the model, found others for {shapes}; "
            "export names and one size as .pt2"
        )
