"""Tensors of any type arrive together, as they were."""

import pytest
import torch
from pretended_device import pretended_device

from glipv2_d2.device_copies import to_device

TENSORS = [
    torch.tensor([True, False, True]),
    torch.arange(6).view(2, 3),
    torch.zeros(0, 4),
    torch.tensor(2.5),
    torch.randn(3, 5).T,
    torch.randn(2, 2).double(),
    torch.arange(7, dtype=torch.uint8),
    torch.randn(3).bfloat16(),
]


def test_tensors_are_copied_in_one_piece_from_pinned_memory_and_nobody_waits():
    with pretended_device() as traffic:
        moved = to_device(TENSORS, "cuda")
        assert (traffic.copies.total(), traffic.waits.total(), traffic.unpinned.total()) == (1, 0, 0)
        again = to_device([TENSORS[0], moved[1]], "cuda")
        assert traffic.copies.total() == 2 and again[1] is moved[1]
    for tensor, found in zip(TENSORS, moved):
        assert found.is_cuda and found.dtype == tensor.dtype and torch.equal(found.numbers, tensor)


@pytest.mark.parametrize("tensors", [[], TENSORS])
def test_on_the_cpu_nothing_is_copied(tensors):
    assert all(found is tensor for found, tensor in zip(to_device(tensors, "cpu"), tensors, strict=True))
