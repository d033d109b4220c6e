"""Hourglasses against a slow formulation with dilated kernels written out, and what they do with odd sides."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from glipv2_d2.layers.hourglass import Hourglass, Residual


def slow_conv(x, conv, dilation):
    """A 3x3 convolution as a sum over its taps, each a shifted map."""
    height, width = x.shape[-2:]
    padded = F.pad(x, (dilation,) * 4)
    result = 0
    for row in range(3):
        for column in range(3):
            top, left = row * dilation, column * dilation
            shifted = padded[:, :, top : top + height, left : left + width]
            result = result + torch.einsum("kchw,oc->kohw", shifted, conv.weight[:, :, row, column])
    if conv.bias is not None:
        result = result + conv.bias[:, None, None]
    if conv.norm is not None:
        groups = result.reshape(len(x), conv.norm.num_groups, -1)
        mean, variance = groups.mean(2, keepdim=True), groups.var(2, correction=0, keepdim=True)
        normal = ((groups - mean) / (variance + 1e-5).sqrt()).view_as(result)
        result = normal * conv.norm.weight[:, None, None] + conv.norm.bias[:, None, None]
    return result


def slow_residual(x, unit):
    inner = slow_conv(x.clamp(min=0), unit.conv1, 1)
    inner = slow_conv(inner.clamp(min=0), unit.conv2, 3)
    return x + slow_conv(inner.clamp(min=0), unit.conv3, 1)


def slow_hourglass(x, glass):
    """Sides have to be even; a unit of the lower resolutions may be an hourglass."""
    low = x.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).amax((-3, -1))
    low = slow_residual(low, glass.low1)
    low = slow_hourglass(low, glass.low2) if isinstance(glass.low2, Hourglass) else slow_residual(low, glass.low2)
    low = slow_residual(low, glass.low3)
    return slow_residual(x, glass.up1) + F.interpolate(low, scale_factor=2, mode="nearest")


def randomize(module, seed=0):
    """Give every parameter a value, also those that start at 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3
    return module.double()


def random_map(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@torch.no_grad()
@pytest.mark.parametrize("num_groups", [0, 1, 2])
def test_residual_follows_the_formula(num_groups):
    unit = randomize(Residual(8, num_groups))
    x = random_map(2, 8, 5, 6)
    assert_close(unit(x), slow_residual(x, unit))


@torch.no_grad()
@pytest.mark.parametrize("depth, num_groups", [(1, 0), (1, 2), (2, 0), (2, 4), (3, 0)])
def test_hourglass_follows_the_formula(depth, num_groups):
    glass = randomize(Hourglass(8, depth, num_groups))
    x = random_map(2, 8, 8, 16)
    assert_close(glass(x), slow_hourglass(x, glass))


def test_only_the_later_units_of_the_lower_resolutions_are_normalized():
    names = {name.rsplit(".conv", 1)[0] for name in Hourglass(8, 2, 2).state_dict() if ".norm." in name}
    assert names == {"low2.low2", "low2.low3", "low3"}
    assert not any(".norm." in name for name in Hourglass(8, 2).state_dict())


def test_normalized_convolutions_have_no_bias_and_the_others_do():
    unit, plain = Residual(8, 2), Residual(8)
    for conv in (unit.conv1, unit.conv2, unit.conv3):
        assert conv.bias is None
    assert set(plain.state_dict()) == {f"conv{i}.{part}" for i in (1, 2, 3) for part in ("weight", "bias")}


@torch.no_grad()
@pytest.mark.parametrize("size", [(7, 7), (14, 14), (5, 8), (1, 1)])
def test_odd_sides_are_halved_upwards(size):
    glass = randomize(Hourglass(4, depth=2))
    x = random_map(1, 4, *size)
    # The low branch alone: the last row and column see what is left of their pairs.
    low = F.max_pool2d(F.pad(x, (0, size[1] % 2, 0, size[0] % 2), value=-torch.inf), 2)
    low = glass.low3(glass.low2(glass.low1(low)))
    for row in range(size[0]):
        for column in range(size[1]):
            expected = glass.up1(x)[..., row, column] + low[..., row // 2, column // 2]
            assert_close(glass(x)[..., row, column], expected)


def test_no_boxes_give_nothing_and_a_gradient_of_zero():
    glass = Hourglass(8, 2, 2)
    result = glass(torch.zeros(0, 8, 14, 14))
    assert result.shape == (0, 8, 14, 14)
    result.sum().backward()
    for parameter in glass.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


def test_gradient_reaches_every_parameter():
    glass = Hourglass(8, 2, 2)
    glass(torch.randn(2, 8, 8, 8)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in glass.parameters())


def test_weights_start_with_the_variance_of_kaiming_by_fan_out():
    torch.manual_seed(0)
    unit = Residual(128)
    for conv, fan_out in ((unit.conv1, 64 * 9), (unit.conv2, 64 * 9), (unit.conv3, 128 * 9)):
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.03)
        assert not conv.bias.any()


@pytest.mark.parametrize("arguments", [(7,), (8, 3), (6, 2)])
def test_channels_that_do_not_fit_are_an_error(arguments):
    with pytest.raises(ValueError, match="MASK_HEAD.CONV_DIM: expected an even number and groups"):
        Residual(*arguments)


def test_depth_below_one_is_an_error():
    with pytest.raises(ValueError, match="HOURGLASS_DEPTH: expected at least 1, found 0"):
        Hourglass(8, 0)
