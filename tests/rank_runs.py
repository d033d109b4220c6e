"""Functions of a test file run by two processes that are one group, and the check that they train as one process."""

import importlib.util
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.testing import assert_close

# Processes are forked from one that has imported the model, the trainer and what they need, and done nothing else: a
# start takes no seconds. The package by itself imports nothing.
_IMPORTED = ["glipv2_d2.modeling", "glipv2_d2.engine.trainer"]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(_IMPORTED)


def run_ranks(function: Callable[[int], Any]) -> list:
    """What a function at the top of a test file returns for rank 0 and for rank 1, each in a process of its own.

    Args:
        function: Gets its rank, and returns what ``torch.load`` reads without running code. The processes are one
            gloo group while it runs.
    """
    with tempfile.TemporaryDirectory() as folder:
        where = (function.__code__.co_filename, function.__name__, folder)
        processes = [_CONTEXT.Process(target=_be_rank, args=(rank, *where), daemon=True) for rank in range(2)]
        for process in processes:
            process.start()
        try:
            for process in processes:
                process.join(timeout=600)
            assert [process.exitcode for process in processes] == [0, 0]
        finally:
            for process in processes:
                process.kill()
        return [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(2)]


def _be_rank(rank: int, file: str, name: str, folder: str) -> None:
    # The process that forks passes over what it cannot import.
    assert sys.modules.keys() >= set(_IMPORTED)
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    torch.save(getattr(module, name)(rank), f"{folder}/{rank}.pt")
    # All are done: none closes a connection that another reads. Threads of gloo that still wait when the interpreter
    # ends would abort it.
    distributed.barrier()
    os._exit(0)


def train_steps(
    model: nn.Module, make_inputs: Callable[[Any, slice], tuple], cases: Iterable, rank: int | None
) -> dict:
    """Loss and gradients of each case: of its four images, or of the two that belong to a rank.

    Args:
        model: Gives a loss. A rank's is wrapped here.
        make_inputs: The inputs of the model from a case and the images to take.
        cases: What ``make_inputs`` is asked for; the weights stay what they are in between.
        rank: None is one process with all four images.
    """
    rows = slice(0, 4) if rank is None else slice(2 * rank, 2 * rank + 2)
    trained = model if rank is None else nn.parallel.DistributedDataParallel(model)
    results: dict[Any, tuple[Tensor, dict[str, Tensor | None]]] = {}
    for case in cases:
        trained.zero_grad()
        loss = trained(*make_inputs(case, rows))
        loss.backward()
        results[case] = loss.detach(), {name: weight.grad for name, weight in model.named_parameters()}
    return results


def assert_ranks_train_as_one(ranks: list[dict], whole: dict, rtol: float = 1e-5, gradient_rtol: float = 1e-4) -> None:
    """Two ranks have the mean loss and, both of them, the gradients of one process with the whole batch."""
    first, second = ranks
    for case, (loss, gradients) in whole.items():
        assert_close((first[case][0] + second[case][0]) / 2, loss, atol=1e-5, rtol=rtol)
        for name, gradient in gradients.items():
            assert_close(first[case][1][name], gradient, atol=1e-5, rtol=gradient_rtol)
            assert torch.equal(second[case][1][name], first[case][1][name])
