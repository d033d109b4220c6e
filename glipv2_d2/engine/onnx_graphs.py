"""Turn modules into graphs of ONNX whose sizes stay open, and join graphs to one."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError

# Version of the operators. onnxruntime knows it since 1.17.
OPSET = 20
# Numbers of a constant that is computed when a graph is written, instead of whenever it is loaded.
_LARGEST_CONSTANT = 2**24


def translate(
    module: nn.Module,
    inputs: Mapping[str, Any],
    axes: Mapping[str, Any],
    outputs: Sequence[str],
    name_of: Callable[[nn.Module], str] | None = None,
) -> Any:
    """Translate a module to a graph whose shapes are open where ``axes`` says so.

    Args:
        module: In eval mode, called with the inputs in their order.
        inputs: For each input an example: a tensor, or a list of them, which becomes the inputs "NAME.0", "NAME.1" ...
        axes: For each input its open axes as ``torch.export`` wants them.
        outputs: Names of the outputs, those of a list among them as ``flat_names`` gives them.
        name_of: Gives the name of a module within ``module`` for messages; by default its path.

    Returns:
        A model of ``onnxscript.ir``.

    Raises:
        InputError: A module of it cannot be exported; the message names the module.
    """
    paths = {part: path for path, part in module.named_modules()}
    name_of = name_of or paths.__getitem__
    with torch.no_grad(), warnings.catch_warnings(), _quiet("torch.onnx", "onnxscript"):
        # Of torch about its own parts.
        warnings.simplefilter("ignore")
        with _name_the_module(module, name_of):
            # What torch cannot prove about sizes is an assertion that a graph of ONNX has not.
            program = torch.export.export(
                module,
                tuple(inputs.values()),
                dynamic_shapes=tuple(axes[name] for name in inputs),
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
        try:
            graph: Any = torch.onnx.export(
                program,
                (),
                input_names=flat_names(inputs),
                output_names=list(outputs),
                opset_version=OPSET,
                # Its search for patterns takes longer than all else, and gains nothing over that of ``save``.
                optimize=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise InputError(_unknown_operation(module, program, name_of, error)) from error
    return graph.model


def flat_names(values: Mapping[str, Any]) -> list[str]:
    """Return a name for each tensor: "NAME", and of a list "NAME.0", "NAME.1" and so on."""
    names: list[str] = []
    for name, value in values.items():
        names += [name] if isinstance(value, torch.Tensor) else [f"{name}.{number}" for number in range(len(value))]
    return names


def with_weights_of(model: Any, module: nn.Module) -> Any:
    """Return a copy of a graph with the weights of a module that is built like the one that was translated."""
    from onnxscript import ir

    copy, weights = model.clone(), module.state_dict()
    for name, value in copy.graph.initializers.items():
        if name in weights:
            value.const_value = ir.tensor(weights[name].numpy(), name=name)
    return copy


def join(models: Sequence[Any], outputs: Sequence[str]) -> Any:
    """Join graphs, each of which takes the last value of the name of its inputs from those before it.

    What none before it gives is an input of the whole.

    Args:
        models: Models of ``onnxscript.ir``; they are used up.
        outputs: Names of the outputs of the whole.
    """
    from onnxscript import ir

    whole = ir.Graph([], [], nodes=[], opset_imports=models[0].graph.opset_imports, name="detector")
    known: dict[str, Any] = {}
    for number, model in enumerate(models):
        graph = model.graph
        inputs, given, weights = list(graph.inputs), list(graph.outputs), list(graph.initializers.values())
        given_names = [value.name for value in given]
        nodes = list(graph)
        graph.inputs.clear()
        graph.outputs.clear()
        graph.initializers.clear()
        graph.remove(nodes)
        for value in inputs:
            if value.name in known:
                value.replace_all_uses_with(known[value.name])
            else:
                known[value.name] = value
                whole.inputs.append(value)
        for weight in weights:
            weight.name = f"{number}.{weight.name}"
            whole.register_initializer(weight)
        whole.extend(nodes)
        known |= zip(given_names, given, strict=True)
    whole.outputs.extend(known[name] for name in outputs)
    functions = {key: function for model in models for key, function in model.functions.items()}
    joined = ir.Model(whole, ir_version=models[0].ir_version, functions=list(functions.values()))
    ir.passes.common.NameFixPass()(joined)
    return joined


def save(model: Any, path: Path) -> None:
    """Simplify and write a model of ``onnxscript.ir``; weights of more than 2 GB go into a file beside it."""
    from onnxscript import ir, optimizer

    passes, limit = ir.passes.common, _LARGEST_CONSTANT
    # First, since a weight that is used for several levels is folded once for all of them.
    passes.CommonSubexpressionEliminationPass()(model)
    # Without it onnxruntime takes 1.6 times as long for an image.
    optimizer.fold_constants(model, onnx_shape_inference=True, input_size_limit=limit, output_size_limit=limit)
    passes.RemoveUnusedNodesPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.DeduplicateInitializersPass()(model)
    passes.CommonSubexpressionEliminationPass()(model)
    torch.onnx.ONNXProgram(model, None).save(str(path))


def quantize(path: Path) -> None:
    """Turn the products of a written graph with weights into products of integers of 8 bits, in place.

    Weights have a scale for each output, activations one for each tensor, which is found as they come. Convolutions
    stay as they are, and so do products with a matrix for each head, which onnxruntime cannot compute so.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(path)
    # Shapes that were noted for symbols contradict those that are inferred.
    del model.graph.value_info[:]
    matrices = {weight.name for weight in model.graph.initializer if len(weight.dims) == 2}
    products = [
        node.name for node in model.graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in matrices
    ]
    with _quiet("root"):
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            # Sums of products of 7 and 8 bits fit into the registers of every processor.
            reduce_range=True,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=products,
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
        self.running: list[nn.Module] = []
        self.fixed_by: nn.Module | None = None
        self._sizes: list[torch.SymInt] = []

    def enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """A module is called."""
        if not self.running:
            tensors = [value for one in inputs for value in (one if isinstance(one, list) else [one])]
            sizes: Iterator[Any] = (size for one in tensors if isinstance(one, torch.Tensor) for size in one.shape)
            self._sizes = [size for size in sizes if isinstance(size, torch.SymInt)]
        self.running.append(module)

    def leave(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """A module has returned."""
        self.running.pop()
        if self.fixed_by is None and any(map(_is_fixed, self._sizes)):
            self.fixed_by = module


def _is_fixed(size: torch.SymInt) -> bool:
    """Tell whether a symbol stands for one number alone by now."""
    node: Any = size.node
    return node.maybe_as_int() is not None or node.shape_env.bound_sympy(node.expr).is_singleton()


@contextlib.contextmanager
def _name_the_module(root: nn.Module, name_of: Callable[[nn.Module], str]) -> Iterator[None]:
    """Turn the failure of a tracer within the context into an error that names the module."""
    trace, hooks = _Trace(), []
    for module in root.modules():
        hooks.append(module.register_forward_pre_hook(trace.enter))
        hooks.append(module.register_forward_hook(trace.leave))
    try:
        yield
    except (RuntimeError, ValueError, TypeError, AssertionError, SystemError) as error:
        if isinstance(error, InputError):
            raise
        found = trace.running[-1] if trace.running else trace.fixed_by
        name = ("" if found is None else name_of(found)) or type(root).__name__
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


def _unknown_operation(
    root: nn.Module,
    program: torch.export.ExportedProgram,
    name_of: Callable[[nn.Module], str],
    error: BaseException | None,
) -> str:
    """Say which module has the operation that a translation to ONNX failed at."""
    found = None
    while error is not None and found is None:
        found = re.search(r"target=([\w.]+)", str(error))
        error = error.__cause__
    operation = "an operation" if found is None else found[1].removeprefix("torch.ops.")
    # The translation sees the simpler operations that others consist of.
    nodes = [node for one in (program, program.run_decompositions()) for node in one.graph.nodes]
    stacks = [node.meta.get("nn_module_stack", {}) for node in nodes if str(node.target) == operation]
    paths = [path for stack in stacks for path, _ in list(stack.values())[-1:]]
    name = name_of(root.get_submodule(paths[0])) if paths else ""
    return (
        f"{name or type(root).__name__}: expected a module that ONNX can hold, found {operation}, which has no form "
        "in it; export names and one size as .pt2"
    )
