"""The Triton kernels against the whole matrix, on any machine by Triton's interpreter, which has a process of its own.

The file is also the program of that process: ``python test_contrastive_kernel.py FILE``. Its products are rounded as
tensor cores round them.
"""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from glipv2_d2.modeling.losses.masked_logsumexp import masked_logsumexp

ROOT = Path(__file__).parents[2]
# Rows, columns, width: within one tile, several tiles with a rest on each side, wide vectors, nothing on one side.
SIZES = [(1, 1, 1), (5, 70, 16), (130, 3, 24), (67, 65, 100), (0, 3, 4), (3, 0, 4)]
SPECIAL = ["ignored row", "large scores", "strided", "one tensor"]
NAMES = [*("{}x{}x{}".format(*sizes) for sizes in SIZES), *SPECIAL]

needs_triton = pytest.mark.skipif(sys.platform != "linux", reason="Triton is there on Linux only")


def make_problem(name):
    """Rows, columns, their groups, and the gradient of the result."""
    sizes = (9, 8, 5) if name in SPECIAL else tuple(map(int, name.split("x")))
    generator = torch.Generator().manual_seed(NAMES.index(name))
    rows, columns = (torch.randn(size, sizes[2], generator=generator) for size in sizes[:2])
    row_groups, column_groups = (torch.randint(-1, 3, (size,), generator=generator) for size in sizes[:2])
    grad = torch.randn(sizes[0], generator=generator)
    if name == "ignored row":
        row_groups[4], column_groups[:] = 7, 2
    elif name == "large scores":
        rows *= 1000
    elif name == "strided":
        rows, columns = rows.T.contiguous().T, columns.T.contiguous().T
        grad = grad[:1].expand(len(grad))
    elif name == "one tensor":
        columns, column_groups = rows, row_groups.roll(1)
    return rows, columns, row_groups, column_groups, grad


def run(name, function, device="cpu"):
    """Value and gradients."""
    *vectors, row_groups, column_groups, grad = (tensor.to(device) for tensor in make_problem(name))
    leaves = [vectors[0].detach().requires_grad_(), vectors[1].detach().requires_grad_()]
    if name == "one tensor":
        leaves[1] = leaves[0]
    value = function(*leaves, row_groups, column_groups)
    value.backward(grad)
    return [value.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves)]


def whole_matrix(rows, columns, row_groups, column_groups):
    """In double precision, with one large finite number in place of minus infinity."""
    groups = row_groups[:, None], column_groups[None]
    ignored = (groups[0] >= 0) & (groups[1] >= 0) & (groups[0] != groups[1])
    scores = (rows.double() @ columns.double().T).masked_fill(ignored, -torch.inf)
    empty = ignored.all(dim=1)
    value = torch.where(empty[:, None], 0.0, scores).logsumexp(dim=1)
    return torch.where(empty, -torch.inf, value).float()


def assert_equals_the_matrix(name, result):
    for actual, expected in zip(result, run(name, whole_matrix), strict=True):
        finite = expected[expected.isfinite()].abs()
        scale = finite.max().item() if finite.numel() else 0.0
        assert_close(actual, expected, atol=1e-5 * max(1.0, scale), rtol=0.0)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """Results of all problems, by the interpreter."""
    file = tmp_path_factory.mktemp("kernel") / "results.pt"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, str(Path(__file__).resolve()), str(file)], env=environment, check=True, timeout=300)
    return torch.load(file, weights_only=True)


@needs_triton
@pytest.mark.parametrize("name", NAMES)
def test_kernel_equals_the_whole_matrix(interpreted, name):
    assert_equals_the_matrix(name, interpreted[name])


@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter takes any tensor")
def test_tensors_off_the_gpu_are_refused_without_the_interpreter():
    with pytest.raises(ValueError, match="form 'triton' needs tensors on a CUDA device, found cpu"):
        masked_logsumexp(*make_problem("5x70x16")[:4], "triton")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("form", ["triton", "auto", "chunked"])
@pytest.mark.parametrize("name", NAMES)
def test_gpu_equals_the_whole_matrix(name, form):
    assert_equals_the_matrix(name, run(name, lambda *problem: masked_logsumexp(*problem, form), "cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_repeats_bit_for_bit_and_takes_the_kernel_by_itself():
    results = [run("67x65x100", partial(masked_logsumexp, form=form), "cuda") for form in ("triton", "auto")]
    assert all(torch.equal(one, other) for one, other in zip(*results))


def round_mantissa(numbers, nearest):
    """The 11 leading bits of float32 numbers, which tensor cores multiply: the nearest ones, or the rest cut off."""
    bits = numbers.view(np.uint32) + np.uint32(0x1000 if nearest else 0)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


def multiply_by_tensor_cores(builder, one, other, total, *precision):
    """``tl.dot`` of the interpreter as tf32x3: the parts that rounding leaves over are multiplied in their own turn."""
    assert precision[0].name == "TF32x3", precision
    parts = [(round_mantissa(matrix.data, True), matrix.data) for matrix in (one, other)]
    (large, small), (other_large, other_small) = ((big, round_mantissa(all_ - big, False)) for big, all_ in parts)
    products = small @ other_large + large @ other_small + large @ other_large
    return type(total)(products + total.data, total.dtype.scalar)


if __name__ == "__main__":
    from triton.runtime.interpreter import InterpreterBuilder

    InterpreterBuilder.create_dot = multiply_by_tensor_cores
    torch.save({name: run(name, lambda *problem: masked_logsumexp(*problem, "triton")) for name in NAMES}, sys.argv[1])
