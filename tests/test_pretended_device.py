"""The pretended device itself: it computes what the CPU does, and misses nothing that a GPU would wait for."""

import pytest
import torch
from pretended_device import DEVICE, DeviceTensor, pretended_device

WAITING = {
    "a number": lambda x: float(x.sum()),
    "a condition": lambda x: bool((x > 0).all()),
    "a list": lambda x: x.tolist(),
    "a copy to the CPU": lambda x: x.cpu(),
    "a copy into a tensor of the CPU": lambda x: torch.zeros(2, 3).copy_(x),
    "places": lambda x: (x > 2).nonzero(),
    "rows by a mask": lambda x: x[x > 2],
    "values behind a mask": lambda x: x.__setitem__(x > 2, torch.arange(3.0, device=x.device)),
    "distinct rows": lambda x: x.unique(dim=0),
    "equality": lambda x: torch.equal(x, x),
    "repetitions": lambda x: x.repeat_interleave(torch.ones(2, dtype=torch.int64, device=x.device), dim=0),
}
COPYING = {
    "numbers of a list": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "numbers like a tensor": lambda x: x.new_tensor([1.0, 2.0]),
    "a tensor": lambda x: torch.ones(3).to(x.device),
    "places in a list": lambda x: x[[1, 0]],
    "places on the CPU": lambda x: x[torch.tensor([1])],
}
FREE = {
    "a number filled in behind a mask": lambda x: x.__setitem__(x > 2, 0.0),
    "arithmetic with a number": lambda x: x * 2 + torch.tensor(1.0),
    "a move to where it is": lambda x: x.to(x.device).to(torch.float64).to(x),
    "a copy from pinned memory": lambda x: torch.ones(3).pin_memory().to(x.device, non_blocking=True),
    "repetitions of known length": lambda x: x.repeat_interleave(
        torch.ones(2, dtype=torch.int64, device=x.device), dim=0, output_size=2
    ),
}


def run(what):
    with pretended_device() as traffic:
        x = torch.arange(6.0).view(2, 3).to("cuda")
        traffic.clear()
        what(x)
    return traffic


@pytest.mark.parametrize("what", WAITING)
def test_what_waits_for_the_device_is_counted(what):
    traffic = run(WAITING[what])
    assert traffic.waits.total() == 1 and not traffic.copies


@pytest.mark.parametrize("what", COPYING)
def test_what_copies_to_the_device_is_counted_and_waits(what):
    traffic = run(COPYING[what])
    assert traffic.copies.total() == traffic.waits.total() == traffic.unpinned.total() == 1


@pytest.mark.parametrize("what", FREE)
def test_what_a_device_does_alone_is_not(what):
    traffic = run(FREE[what])
    assert not traffic.waits and not traffic.mixed and not traffic.unpinned


def test_tensors_of_two_devices_are_counted():
    assert run(lambda x: x + torch.ones(3)).mixed.total() == 1
    assert not run(lambda x: x + x).mixed


def test_views_launch_nothing():
    assert run(lambda x: x.T[0].view(2)).launches == 0
    assert run(lambda x: x + 1).launches == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_that_of_a_gpu(dtype):
    with pretended_device(), torch.autocast("cuda", dtype):
        x = torch.ones(2, 3, device="cuda")
        product, exponential = x @ x.T, x.half().exp()
        both = torch.addcmul(product.half(), product, x[:, :2])
    assert (product.dtype, exponential.dtype, both.dtype) == (dtype, torch.float32, torch.float32)


def test_results_and_gradients_are_those_of_the_cpu():
    def loss(weight, x):
        y = x.clone()
        y[:, [0, 2]] += 1
        y.unsqueeze_(0)
        places, ones = torch.tensor([[0, 1], [1, 0]], device=x.device), torch.ones(2, device=x.device)
        entries = torch.sparse_coo_tensor(places, ones, (2, 2), check_invariants=False)
        return torch.sparse.mm(entries, (y[0] @ weight).softmax(1)).square().sum()

    torch.manual_seed(0)
    weight, x = torch.nn.Parameter(torch.randn(3, 4)), torch.randn(2, 3)
    loss(weight, x).backward()
    module = torch.nn.ParameterList([weight.detach().clone()])
    with pretended_device():
        moved = module.to("cuda")[0]
        result = loss(moved, x.to("cuda"))
        result.backward()
        assert isinstance(moved.grad, DeviceTensor) and moved.device == moved.grad.device == result.device == DEVICE
        assert torch.equal(moved.grad.numbers, weight.grad)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_afterwards_there_is_no_such_device():
    with pretended_device():
        assert torch.ones(1, device="cuda").is_cuda
    with pytest.raises((RuntimeError, AssertionError)):
        torch.ones(1, device="cuda")
