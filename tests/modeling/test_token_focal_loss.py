"""The focal loss over tokens: official values, the formula in autograd, and what padding may not do."""

import math

import numpy as np
import pytest
import torch
from conftest import ASSETS
from pretended_device import pretended_device
from torch.testing import assert_close

from glipv2_d2.modeling.losses.token_focal_loss import token_focal_loss


def autograd_formulation(logits, targets, mask, alpha, gamma):
    """-alpha_t (1 - p_t)^gamma log(p_t), summed over the real columns."""
    probability = logits.sigmoid()
    right = torch.where(targets, probability, 1 - probability)
    weight = (1 - alpha) + (2 * alpha - 1) * targets.to(logits.dtype)
    return (-weight * (1 - right) ** gamma * right.log() * mask[:, None]).sum()


def example(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 5, 7, generator=generator, dtype=dtype) * 2
    targets = torch.rand(3, 5, 7, generator=generator) < 0.2
    mask = torch.arange(7) < torch.tensor([[7], [3], [5]])
    return logits, targets, mask


def test_value_and_gradient_equal_the_official_ones():
    arrays = np.load(ASSETS / "parity" / "units" / "token_focal.npz")
    logits = torch.from_numpy(arrays["logits"]).requires_grad_()
    targets, mask = torch.from_numpy(arrays["targets"]).bool(), torch.from_numpy(arrays["text_mask"]).bool()
    loss = token_focal_loss(logits, targets, mask, alpha=0.25, gamma=2.0)
    loss.backward()
    assert_close(loss.item(), float(arrays["loss_sum"]), atol=0, rtol=1e-6)
    assert_close(logits.grad, torch.from_numpy(arrays["grad"]), atol=1e-6, rtol=1e-4)
    for image, expected in enumerate(arrays["loss_per_image"]):
        one = slice(image, image + 1)
        loss = token_focal_loss(logits[one], targets[one], mask[one], alpha=0.25, gamma=2.0)
        assert_close(loss.item(), float(expected), atol=0, rtol=1e-6)


def test_hand_computed_pairs():
    # Logit 0: p = 1/2. Target 1: 0.25 * 0.25 * ln 2; target 0: 0.75 * 0.25 * ln 2.
    logits, mask = torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool)
    for target, weight in [(True, 0.25), (False, 0.75)]:
        loss = token_focal_loss(logits, torch.tensor([[[target]]]), mask, alpha=0.25, gamma=2.0)
        assert_close(loss.item(), weight * 0.25 * math.log(2), atol=1e-7, rtol=0)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0), (0.9, 1.5)])
def test_value_and_gradient_equal_the_formula(alpha, gamma):
    logits, targets, mask = example()
    mine, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = token_focal_loss(mine, targets, mask, alpha, gamma)
    expected = autograd_formulation(plain, targets, mask, alpha, gamma)
    (3 * loss).backward()
    (3 * expected).backward()
    assert_close(loss, expected)
    assert_close(mine.grad, plain.grad, atol=1e-10, rtol=1e-10)


def test_gradient_equals_finite_differences():
    logits, targets, mask = example()
    logits.requires_grad_()
    torch.autograd.gradcheck(lambda x: token_focal_loss(x, targets, mask, 0.25, 2.0), (logits,))


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 7.0])
def test_padding_takes_no_part(garbage):
    logits, targets, mask = example()
    expected = token_focal_loss(logits, targets, mask, 0.25, 2.0)
    padding = ~mask[:, None].expand_as(logits)
    changed = logits.masked_fill(padding, garbage).requires_grad_()
    loss = token_focal_loss(changed, targets ^ padding, mask, 0.25, 2.0)
    loss.backward()
    assert torch.equal(loss, expected)
    assert torch.equal(changed.grad[padding], torch.zeros(int(padding.sum()), dtype=torch.float64))


def test_huge_logits_stay_finite():
    logits = torch.tensor([[[50_000.0, -50_000.0, 50_000.0, -50_000.0]]], requires_grad=True)
    targets = torch.tensor([[[True, True, False, False]]])
    loss = token_focal_loss(logits, targets, torch.ones(1, 4, dtype=torch.bool), 0.25, 2.0)
    loss.backward()
    # Right ones cost nothing; a wrong one costs its logit times its weight, and its slope is the weight.
    assert_close(loss.item(), 50_000 * (0.25 + 0.75))
    assert_close(logits.grad, torch.tensor([[[0.0, -0.25, 0.75, 0.0]]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_summed_in_single_precision(dtype):
    logits, targets, mask = example(torch.float32)
    half = logits.to(dtype).requires_grad_()
    single = half.detach().float().requires_grad_()
    loss, expected = (token_focal_loss(x, targets, mask, 0.25, 2.0) for x in (half, single))
    loss.backward()
    expected.backward()
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)
    assert half.grad.dtype == dtype and torch.equal(half.grad, single.grad.to(dtype))


def test_nothing_unmasked_is_zero_with_a_gradient():
    logits = torch.randn(2, 3, 4, requires_grad=True)
    loss = token_focal_loss(logits, torch.ones(2, 3, 4, dtype=torch.bool), torch.zeros(2, 4, dtype=torch.bool), 0.25, 2)
    loss.backward()
    assert loss.item() == 0 and torch.equal(logits.grad, torch.zeros(2, 3, 4))


def test_all_pairs_at_once_on_a_device_equal_the_few_positive_ones_apart():
    logits, targets, mask = example(torch.float32)
    logits.requires_grad_()
    loss = token_focal_loss(logits, targets, mask, alpha=0.25, gamma=2.0)
    (loss * 3).backward()
    with pretended_device() as traffic:
        there = logits.detach().to("cuda").requires_grad_()
        others = targets.to("cuda"), mask.to("cuda")
        traffic.clear()
        found = token_focal_loss(there, *others, alpha=0.25, gamma=2.0)
        (found * 3).backward()
        assert not traffic.waits
    assert_close(found.detach().numbers, loss.detach())
    assert_close(there.grad.numbers, logits.grad)
