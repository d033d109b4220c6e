"""Write a detector as two ONNX graphs that stay open: any names, any size of images, no torch to run them."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
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

# Version of the operators. onnxruntime knows it since 1.17.
OPSET = 20
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


def export_onnx(cfg: CfgNode, output: Path, names: Sequence[str] = ()) -> ExportedOnnx:
    """Write the text encoder of a detector, and the rest of it, as ONNX graphs.

    Beside them a tokenizer for the library tokenizers, and a json file that says what else a program needs. Either all
    files are written or none.

    Args:
        cfg: Config with ``MODEL.WEIGHTS``, on the CPU.
        output: File of the detector, .onnx.
        names: Names that the description lists as those to find; none: the names of ``DATASETS.TEST[0]``.

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
    if model.mask_head is not None:
        logging.getLogger(__name__).warning("%s: its masks are left out, boxes alone are exported", output)
    files, tokenizer = files_of(output), PromptTokenizer.from_config(cfg)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        written = files_of(Path(folder, output.name))
        _write_graphs(model, written)
        tokenizer.save(written.tokenizer)
        description = _describe(cfg, model, files, names or _own_names(cfg), tokenizer)
        description["sha256"] = {path.name: file_sha256(path) for path in written[:2]}
        write_text(written.description, json.dumps(description, indent=2, ensure_ascii=False) + "\n")
        for path in sorted(Path(folder).iterdir()):
            os.replace(path, output.parent / path.name)
    return files


def _own_names(cfg: CfgNode) -> Sequence[str]:
    """Return the names of the first test set; none if there is no such set."""
    return dataset_names(cfg.DATASETS.TEST[0]) if cfg.DATASETS.TEST else []


def _describe(
    cfg: CfgNode, model: GLIPv2, files: ExportedOnnx, names: Sequence[str], tokenizer: PromptTokenizer
) -> dict[str, Any]:
    selector = model.head.selector
    return {
        "format": "onnx",
        "opset": OPSET,
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
    # The limits are those that torch derives from the graph; onnxruntime does not read them.
    tokens, phrases = Dim("tokens", min=2, max=model.text_encoder.max_positions), Dim("phrases")
    rows, columns, divisor = Dim("rows"), Dim("columns"), model.backbone.size_divisibility
    axes = {
        "image": {1: divisor * rows, 2: divisor * columns},
        "image_size": None,
        "text": {1: tokens},
        "phrase_token_map": {0: phrases, 1: tokens},
    }
    ids = torch.arange(_TOKENS)[None]
    write_graph(reader, {"input_ids": (ids, {1: tokens})}, ["text"], files.text_encoder)
    examples = _example(reader, ids, _PHRASES, (10 * divisor, 12 * divisor))
    inputs = {name: (one, axes[name]) for name, one in examples.items()}
    write_graph(detector, inputs, list(_OUTPUTS), files.detector)
    # One canvas stands, one lies.
    for number, size in ((2, (7 * divisor, 4 * divisor)), (5, (2 * divisor, 9 * divisor))):
        ids = torch.arange(3 + 2 * number)[None]
        _check(reader, files.text_encoder, {"input_ids": ids})
        _check(detector, files.detector, _example(reader, ids, number, size))


def _example(reader: PromptReader, ids: torch.Tensor, phrases: int, size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Return inputs of the detector: noise, and phrases of a token or more each."""
    generator = torch.Generator().manual_seed(0)
    token_map = torch.rand(phrases, ids.shape[1], generator=generator) > 0.5
    token_map[:, 1] = True
    with torch.no_grad():
        text = reader(ids)
    image = torch.rand(3, *size, generator=generator) * 255
    return {"image": image, "image_size": torch.tensor(size) - 3, "text": text, "phrase_token_map": token_map}


def write_graph(module: nn.Module, inputs: dict[str, tuple[Any, Any]], outputs: list[str], path: Path) -> None:
    """Write a module as an ONNX graph whose shapes are open where its inputs say so.

    Args:
        module: In eval mode, called with tensors alone.
        inputs: For each input an example, and the names of its open axes as ``torch.export`` wants them.
        outputs: Names of the outputs.
        path: File to write.

    Raises:
        InputError: A module of it cannot be exported; the message names the module.
    """
    examples = tuple(example for example, _ in inputs.values())
    shapes = tuple(shape for _, shape in inputs.values())
    with torch.no_grad(), warnings.catch_warnings(), _quiet("torch.onnx", "onnxscript"):
        # Of torch about its own parts.
        warnings.simplefilter("ignore")
        with _name_the_module(module):
            # What torch cannot prove about sizes is an assertion that a graph of ONNX has not; see _check.
            program = torch.export.export(
                module,
                examples,
                dynamic_shapes=shapes,
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
        try:
            graph: Any = torch.onnx.export(
                program, (), input_names=list(inputs), output_names=outputs, opset_version=OPSET, verbose=False
            )
        except torch.onnx.OnnxExporterError as error:
            raise InputError(_unknown_operation(program, error)) from error
        graph.save(str(path))


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


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Within the context these loggers are silent but for errors."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _Trace:
    """Which modules are running while a module is traced, and the first after which an open size was a number."""

    def __init__(self) -> None:
        self.running: list[str] = []
        self.fixed_by: str | None = None
        self._sizes: list[torch.SymInt] = []

    def enter(self, name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """A module is called."""
        if not self.running:
            sizes: Iterator[Any] = (size for one in inputs if isinstance(one, torch.Tensor) for size in one.shape)
            self._sizes = [size for size in sizes if isinstance(size, torch.SymInt)]
        self.running.append(name)

    def leave(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """A module has returned."""
        self.running.pop()
        if self.fixed_by is None and any(map(_is_fixed, self._sizes)):
            self.fixed_by = name


def _is_fixed(size: torch.SymInt) -> bool:
    """Tell whether a symbol stands for one number alone by now."""
    node: Any = size.node
    return node.maybe_as_int() is not None or node.shape_env.bound_sympy(node.expr).is_singleton()


@contextlib.contextmanager
def _name_the_module(root: nn.Module) -> Iterator[None]:
    """Turn the failure of a tracer within the context into an error that names the module."""
    trace, hooks = _Trace(), []
    for name, module in root.named_modules():
        hooks.append(module.register_forward_pre_hook(partial(trace.enter, name)))
        hooks.append(module.register_forward_hook(partial(trace.leave, name)))
    try:
        yield
    except (RuntimeError, ValueError, TypeError, AssertionError, SystemError) as error:
        if isinstance(error, InputError):
            raise
        name = (trace.running[-1] if trace.running else trace.fixed_by) or type(root).__name__
        lines = str(error).strip().split("\n")
        # Of sizes that became numbers torch says more below its first line.
        reason = next((line.strip(" -") for line in lines if "generated guard" in line), lines[0])
        raise InputError(
            f"{name}: expected a module that ONNX can hold, found one that the tracer cannot follow ({reason:.200}); "
            "export names and one size as .pt2"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


def _unknown_operation(program: torch.export.ExportedProgram, error: BaseException | None) -> str:
    """Say which module has the operation that a translation to ONNX failed at."""
    found = None
    while error is not None and found is None:
        found = re.search(r"target=([\w.]+)", str(error))
        error = error.__cause__
    operation = "an operation" if found is None else found[1].removeprefix("torch.ops.")
    # The translation sees the simpler operations that others consist of.
    nodes = [node for one in (program, program.run_decompositions()) for node in one.graph.nodes]
    stacks = [node.meta.get("nn_module_stack", {}) for node in nodes if str(node.target) == operation]
    names = [name for stack in stacks for name, _ in list(stack.values())[-1:]]
    return (
        f"{names[0] if names else 'model'}: expected a module that ONNX can hold, found {operation}, which has no form "
        "in it; export names and one size as .pt2"
    )
