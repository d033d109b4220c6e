"""The chunked form against the whole matrix, number by number where it is small."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from glipv2_d2.modeling.losses import masked_logsumexp as module
from glipv2_d2.modeling.losses.masked_logsumexp import ignored_pairs, masked_logsumexp


def make_problem(num_rows, num_columns, dim, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (torch.randn(size, dim, generator=generator, dtype=dtype) for size in (num_rows, num_columns))
    groups = [torch.randint(-1, 3, (size,), generator=generator) for size in (num_rows, num_columns)]
    return rows, columns, *groups


def whole_matrix(rows, columns, row_groups, column_groups):
    """The same through torch's own softmax machinery; a row without a column has a constant value."""
    scores = (rows @ columns.T).masked_fill(ignored_pairs(row_groups, column_groups), -torch.inf)
    empty = ignored_pairs(row_groups, column_groups).all(dim=1)
    values = scores[~empty].logsumexp(dim=1)
    return torch.full((len(rows),), -torch.inf, dtype=rows.dtype).masked_scatter(~empty, values)


def test_a_pair_of_two_groups_is_ignored():
    groups = torch.tensor([-1, 0, 1])
    assert ignored_pairs(groups, groups).tolist() == [[False, False, False], [False, False, True], [False, True, False]]


def test_value_by_hand():
    rows, columns = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0], [3.0, 0.0]])
    result = masked_logsumexp(rows, columns, torch.tensor([-1, 4]), torch.tensor([4, 7]))
    assert result.tolist() == pytest.approx([math.log(math.exp(1) + math.exp(3)), 2.0])


@settings(max_examples=30)
@given(
    sizes=st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 9)),
    seed=st.integers(0, 2**31),
    chunk=st.integers(1, 60),
)
def test_chunks_equal_the_whole_matrix(sizes, seed, chunk):
    problem, generator = make_problem(*sizes, seed=seed), torch.Generator().manual_seed(seed)
    grad = torch.randn(sizes[0], generator=generator)
    results = []
    for function in (masked_logsumexp, whole_matrix):
        leaves = [vectors.clone().requires_grad_() for vectors in problem[:2]]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "CHUNK_PAIRS", chunk)
            value = function(*leaves, *problem[2:])
            torch.where(value == -torch.inf, 0.0, value).backward(grad)
        results.append((value.detach(), *(leaf.grad for leaf in leaves)))
    for actual, expected in zip(*results):
        assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def test_gradient_in_double_precision():
    rows, columns, *groups = make_problem(5, 4, 3, seed=2, dtype=torch.float64)
    assert (ignored_pairs(*groups).any(dim=1) & ~ignored_pairs(*groups).all(dim=1)).any()
    assert torch.autograd.gradcheck(
        lambda *vectors: masked_logsumexp(*vectors, *groups), (rows.requires_grad_(), columns.requires_grad_())
    )


def test_a_row_without_a_column_sends_back_nothing():
    rows, columns = torch.ones(2, 3, requires_grad=True), torch.ones(1, 3, requires_grad=True)
    value = masked_logsumexp(rows, columns, torch.tensor([0, 1]), torch.tensor([1]))
    assert value.tolist() == [-torch.inf, 3.0]
    value.sum().backward()
    assert rows.grad.tolist() == [[0.0] * 3, [1.0] * 3] and columns.grad.tolist() == [[1.0] * 3]


def test_large_scores_do_not_overflow():
    rows, columns = torch.tensor([[300.0]]), torch.tensor([[1.0], [1.0]])
    groups = torch.tensor([-1]), torch.tensor([-1, -1])
    assert masked_logsumexp(rows, columns, *groups).item() == pytest.approx(300 + math.log(2))


def test_the_graph_keeps_no_matrix():
    rows, columns, *groups = make_problem(300, 200, 4)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        masked_logsumexp(rows.requires_grad_(), columns.requires_grad_(), *groups)
    assert 0 < sum(kept) <= (300 + 200) * (4 + 2)


def test_strided_vectors_are_taken():
    rows, columns, *groups = make_problem(6, 5, 4)
    expected = masked_logsumexp(rows, columns, *groups)
    assert torch.equal(masked_logsumexp(rows.T.contiguous().T, columns.T.contiguous().T, *groups), expected)


@pytest.mark.parametrize(
    ("form", "dtype", "message"),
    [
        ("fast", torch.float32, "form: expected one of auto, chunked, triton, found 'fast'"),
        ("triton", torch.float64, "form 'triton' needs float32 vectors, found torch.float64"),
    ],
)
def test_bad_requests_are_refused(form, dtype, message):
    with pytest.raises(ValueError, match=message):
        masked_logsumexp(*make_problem(2, 2, 2, dtype=dtype), form)
