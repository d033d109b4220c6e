import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from slow_layers import deform_conv as slow_deform_conv
from slow_layers import read_flat
from torch import Tensor

from glipv2_d2.layers import deform_conv
from glipv2_d2.layers.deform_conv import choose_deform_form, modulated_deform_conv2d, reinterpret_flat

FORMS = ("torchvision", "gather")
NAMES = ("x", "offset", "modulation", "weight", "bias")


def make_inputs(
    size=(5, 7), stride=1, channels=3, out_channels=4, spread=1.5, dtype=torch.float64, kernel=(3, 3)
) -> dict[str, Tensor]:
    """Two random images, with offsets of ``spread`` pixels."""
    generator = torch.Generator().manual_seed(0)
    num_images = 2
    out = [(length + 2 - taps) // stride + 1 for length, taps in zip(size, kernel)]
    taps = kernel[0] * kernel[1]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "x": normal(num_images, channels, *size),
        "offset": normal(num_images, 2 * taps, *out) * spread,
        "modulation": normal(num_images, taps, *out),
        "weight": normal(out_channels, channels, *kernel) / (channels * taps) ** 0.5,
        "bias": normal(out_channels),
    }


def run_with_gradients(inputs: dict[str, Tensor], stride: int, form: str) -> tuple[Tensor, dict[str, Tensor]]:
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}
    output = modulated_deform_conv2d(**leaves, stride=stride, form=form)
    probe = torch.randn(output.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(output.dtype)
    output.backward(probe)
    return output.detach(), {name: leaf.grad for name, leaf in leaves.items()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("size", "stride", "spread", "kernel"),
    [
        ((4, 5), 1, 0.7, (3, 3)),
        ((5, 3), 2, 0.7, (3, 3)),
        ((4, 4), 2, 0.7, (3, 3)),
        ((3, 4), 1, 6.0, (3, 3)),
        ((1, 1), 1, 1.0, (3, 3)),
        ((4, 3), 1, 0.7, (1, 3)),
    ],
)
def test_each_form_equals_the_scalar_loop(form, size, stride, spread, kernel):
    inputs = make_inputs(size, stride, channels=2, out_channels=2, spread=spread, kernel=kernel)
    expected = slow_deform_conv(**{name: tensor.numpy() for name, tensor in inputs.items()}, stride=stride, padding=1)
    actual = modulated_deform_conv2d(**inputs, stride=stride, form=form)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_offsets_are_row_then_column_and_pixels_outside_count_as_zero(form):
    # A 1x1 kernel on the map [[1, 2], [3, 4]], padding 1: the output at (1, 1) reads pixel (0, 0), displaced.
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    weight, bias, modulation = torch.ones(1, 1, 1, 1), torch.tensor([10.0]), torch.full((1, 1, 4, 4), 2.0)
    inside = {(0.25, 0.0): 1.5, (0.0, 0.25): 1.25}
    outside = {(-0.25, 0.0): 0.75, (1.5, 0.0): 1.5, (2.0, 0.0): 0.0, (-1.0, 0.0): 0.0}
    for (row, column), value in (inside | outside).items():
        offset = torch.tensor([row, column]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
        output = modulated_deform_conv2d(x, offset, modulation, weight, bias, form=form)
        assert output[0, 0, 1, 1].item() == 10 + 2 * value


@pytest.mark.parametrize(("dtype", "forward", "backward"), [(torch.float32, 2e-5, 2e-4), (torch.float64, 1e-10, 1e-10)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("size", "stride", "channels", "spread"),
    [((9, 13), 1, 8, 1.0), ((9, 13), 2, 8, 1.0), ((12, 8), 2, 16, 3.0), ((6, 6), 1, 4, 200.0), ((2, 3), 1, 32, 1.0)],
)
def test_gather_equals_torchvision(dtype, forward, backward, memory_format, size, stride, channels, spread):
    inputs = make_inputs(size, stride, channels, 12, spread=spread, dtype=dtype)
    inputs["x"] = inputs["x"].contiguous(memory_format=memory_format)
    expected, expected_gradients = run_with_gradients(inputs, stride, "torchvision")
    actual, actual_gradients = run_with_gradients(inputs, stride, "gather")
    assert (actual - expected).abs().max() <= forward
    for name in NAMES:
        difference = (actual_gradients[name] - expected_gradients[name]).abs().max()
        assert difference <= backward * expected_gradients[name].abs().max(), name


def test_without_displacement_both_forms_are_a_convolution_and_have_equal_gradients():
    # Undisplaced taps lie exactly on pixels, those of the padding exactly one pixel outside, where gradients jump.
    inputs = make_inputs((5, 6), spread=0.0)
    inputs["modulation"] = torch.ones_like(inputs["modulation"])
    expected, expected_gradients = run_with_gradients(inputs, 1, "torchvision")
    actual, actual_gradients = run_with_gradients(inputs, 1, "gather")
    plain = F.conv2d(inputs["x"], inputs["weight"], inputs["bias"], padding=1)
    torch.testing.assert_close(actual, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(expected, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(actual_gradients, expected_gradients, rtol=0, atol=1e-12)


def test_gradients_of_the_gather_form_are_those_of_finite_differences():
    inputs = make_inputs((3, 4), 2, channels=2, out_channels=2, spread=0.8)
    leaves = tuple(tensor.requires_grad_() for tensor in inputs.values())
    # No sampling point is near an integer, where the derivative jumps.
    assert (inputs["offset"] - inputs["offset"].round()).abs().min() > 1e-4
    assert torch.autograd.gradcheck(lambda *args: modulated_deform_conv2d(*args, stride=2, form="gather"), leaves)


@pytest.mark.parametrize("name", NAMES)
def test_gather_form_gives_a_gradient_to_each_input_alone(name):
    inputs = make_inputs((3, 4))
    _, expected = run_with_gradients(inputs, 1, "torchvision")
    inputs[name].requires_grad_()
    output = modulated_deform_conv2d(**inputs, form="gather")
    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64))
    torch.testing.assert_close(inputs[name].grad, expected[name], rtol=0, atol=1e-11)


def test_gather_form_refuses_second_derivatives():
    inputs = make_inputs((3, 4))
    x = inputs["x"].requires_grad_()
    output = modulated_deform_conv2d(**inputs, form="gather")
    (gradient,) = torch.autograd.grad((output**2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_bias_is_optional():
    inputs = make_inputs((3, 4))
    with_bias = [modulated_deform_conv2d(**inputs, form=form) for form in FORMS]
    bias = inputs.pop("bias").view(1, -1, 1, 1)
    for form, expected in zip(FORMS, with_bias):
        actual = modulated_deform_conv2d(**inputs, bias=None, form=form)
        torch.testing.assert_close(actual + bias, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("stride", "spread"), [(1, 0.7), (2, 3.0), (1, 1e12), (1, float("nan"))])
def test_corners_by_planes_are_the_corners(stride, spread):
    inputs = make_inputs((5, 7), stride, dtype=torch.float32)
    arguments = ((5, 7), inputs["offset"] * spread, inputs["modulation"], (3, 3), stride, 1)
    index, weight = deform_conv._corners(*arguments)
    index_by_planes, weight_by_planes = deform_conv._corners_by_planes(*arguments)
    torch.testing.assert_close(weight_by_planes, weight, rtol=0, atol=0, equal_nan=True)
    # Where the weight is 0, the index only has to be in range.
    assert index_by_planes.min() >= 0 and index_by_planes.max() < 2 * 5 * 7
    assert torch.equal(index_by_planes[weight != 0].long(), index[weight != 0]) or not math.isfinite(spread)


def test_pieces_equal_the_whole_and_are_bounded(monkeypatch):
    inputs = make_inputs((9, 7))
    whole = modulated_deform_conv2d(**inputs, form="gather")
    held = []
    gather = deform_conv._weighted_rows

    def counting(*args):
        held.append(gather(*args))
        return held[-1]

    monkeypatch.setattr(deform_conv, "_weighted_rows", counting)
    monkeypatch.setattr(deform_conv, "CHUNK_ELEMENTS", 5 * 27 + 1)  # five positions of 9 taps and 3 channels
    with torch.no_grad():
        pieces = modulated_deform_conv2d(**inputs, form="gather")
    assert [len(part) for part in held] == [5 * 9] * 25 + [9]  # 2 * 9 * 7 = 126 positions
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-13)
    held.clear()
    modulated_deform_conv2d(**inputs, form="gather")
    assert [len(part) for part in held] == [126 * 9]  # a backward pass would hold all pieces anyway
    monkeypatch.setattr(deform_conv, "CHUNK_ELEMENTS", 1)
    with torch.no_grad():
        torch.testing.assert_close(modulated_deform_conv2d(**inputs, form="gather"), whole, rtol=0, atol=1e-13)


@pytest.mark.parametrize("value", [1e30, -1e30, float("inf"), float("nan")])
def test_an_absurd_offset_reads_nothing_else(value):
    inputs = make_inputs((4, 4))
    clean = modulated_deform_conv2d(**inputs, form="gather")
    inputs["offset"][0, 5, 2, 1] = value
    actual = modulated_deform_conv2d(**inputs, form="gather")
    untouched = torch.ones(4, 4, dtype=torch.bool)
    untouched[2, 1] = False
    assert torch.equal(actual[1], clean[1])
    assert torch.equal(actual[0, :, untouched], clean[0, :, untouched])
    if abs(value) == 1e30:
        expected = modulated_deform_conv2d(**inputs, form="torchvision")
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    else:
        assert actual[0, :, 2, 1].isnan().all()


@pytest.mark.parametrize("form", FORMS)
def test_coordinates_stay_single_precision_when_features_are_half(form):
    # Column 300.25 does not exist in bfloat16 (next to 300 is 302); the map is 1 at column 300 only.
    x = torch.zeros(1, 1, 1, 512, dtype=torch.bfloat16)
    x[..., 300] = 1
    offset = torch.zeros(1, 2, 1, 512)
    offset[:, 1] = 0.25
    modulation, weight = torch.ones(1, 1, 1, 512), torch.ones(1, 1, 1, 1, dtype=torch.bfloat16)
    bias = torch.ones(1, dtype=torch.bfloat16)
    output = modulated_deform_conv2d(x, offset, modulation, weight, bias, padding=0, form=form)
    assert output[0, 0, 0, 300].item() == 1.75
    assert output[0, 0, 0, 299].item() == 1.25


@pytest.mark.parametrize("form", FORMS)
def test_autocast_changes_results_by_rounding_only(form):
    inputs = make_inputs((6, 5), channels=8, dtype=torch.float32)
    expected, expected_gradients = run_with_gradients(inputs, 1, form)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, gradients = run_with_gradients(inputs, 1, form)
    assert actual.dtype == (torch.float32 if form == "torchvision" else torch.bfloat16)
    torch.testing.assert_close(actual.float(), expected, rtol=0, atol=0.05)
    for name in NAMES:
        difference = (gradients[name] - expected_gradients[name]).abs().max()
        assert difference <= 0.05 * expected_gradients[name].abs().max(), name


@pytest.mark.parametrize(
    ("form", "device", "num_outputs", "gradients", "expected"),
    [
        ("auto", "cpu", 4096, False, "gather"),
        ("auto", "cpu", 4095, False, "torchvision"),
        ("auto", "cpu", 1, True, "gather"),
        ("auto", "cuda", 10**7, True, "torchvision"),
        ("gather", "cuda", 1, False, "gather"),
        ("torchvision", "cpu", 10**7, True, "torchvision"),
    ],
)
def test_choice_of_the_form(form, device, num_outputs, gradients, expected):
    with torch.set_grad_enabled(gradients):
        assert choose_deform_form(form, torch.device(device), num_outputs) == expected


@pytest.mark.parametrize("form", ["auto", "gather", "torchvision"])
def test_the_form_that_runs_is_the_one_chosen(form, monkeypatch):
    ran = []
    for name in FORMS:
        original = getattr(deform_conv, f"deform_conv_{name}")
        spy = lambda *args, name=name, original=original: (ran.append(name), original(*args))[1]  # noqa: E731
        monkeypatch.setattr(deform_conv, f"deform_conv_{name}", spy)
    small = make_inputs((2, 2), dtype=torch.float32)  # 16 outputs
    large = make_inputs((32, 32), dtype=torch.float32)  # 4,096 outputs
    with torch.no_grad():
        modulated_deform_conv2d(**small, form=form)
        modulated_deform_conv2d(**large, form=form)
    assert ran == (["torchvision", "gather"] if form == "auto" else [form, form])


def test_unknown_form_is_named():
    with pytest.raises(ValueError, match="expected one of auto, torchvision, gather, found 'fast'"):
        modulated_deform_conv2d(**make_inputs(), form="fast")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["offset", "modulation"])
def test_maps_of_another_size_are_refused(form, name):
    inputs = make_inputs()
    inputs[name] = inputs[name][..., :-1]
    with pytest.raises(ValueError, match=rf"{name} has shape \(2, \d+, 5, 6\), expected \(2, \d+, 5, 7\)"):
        modulated_deform_conv2d(**inputs, form=form)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("old", "new"), [((5, 7), (3, 4)), ((4, 4), (2, 2)), ((2, 6), (3, 4)), ((1, 3), (1, 2))])
def test_maps_are_read_flat_in_memory_order(memory_format, old, new):
    maps = torch.arange(2 * 9 * old[0] * old[1], dtype=torch.float64).view(2, 9, *old)
    expected = read_flat(maps.numpy(), *new)
    actual = reinterpret_flat(maps.contiguous(memory_format=memory_format), new)
    assert actual.tolist() == expected.tolist()


def test_gradients_of_flat_reading_reach_the_first_numbers_only():
    maps = torch.zeros(1, 2, 3, 4, requires_grad=True)
    reinterpret_flat(maps, (2, 3)).backward(torch.arange(1.0, 13.0).view(1, 2, 2, 3))
    # 2 * 2 * 3 = 12 numbers are read: just the first plane of 3 x 4.
    assert maps.grad[0, 0].flatten().tolist() == list(range(1, 13))
    assert maps.grad[0, 1].abs().sum() == 0


def test_flat_reading_of_the_same_size_is_the_same_map():
    maps = torch.randn(1, 2, 3, 4)
    assert torch.equal(reinterpret_flat(maps, (3, 4)), maps)


def test_flat_reading_past_the_end_is_refused():
    with pytest.raises(ValueError, match="maps of 3x4 cannot be read as 4x4"):
        reinterpret_flat(torch.zeros(1, 2, 3, 4), (4, 4))
