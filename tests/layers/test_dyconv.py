import numpy as np
import pytest
import torch
import torch.nn.functional as F
from parity_weights import load_tiny, official_state_dict
from slow_layers import dyconv as slow_dyconv
from slow_layers import dynamic_relu, group_norm
from torch import Tensor

from glipv2_d2.layers import dyconv
from glipv2_d2.layers.dyconv import ConvUnit, DyConv, DynamicReLU

FORMS = ("torchvision", "gather")
SIZES = ((5, 7), (3, 4), (2, 2), (1, 1))


def randomize(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=1.5 / (parameter[0].numel() if parameter.ndim > 1 else 1) ** 0.5)


def make_dyconv(dtype=torch.float64, in_channels=4, out_channels=4, **options) -> DyConv:
    torch.manual_seed(0)
    layer = DyConv(in_channels, out_channels, num_groups=2, **options).to(dtype)
    randomize(layer)
    with torch.no_grad():
        # The scores of the branches are then between -2 and 5: some stopped by the ReLU, some by the hard sigmoid.
        layer.level_attention.bias.add_(4)
    return layer


def make_levels(sizes=SIZES, channels=4, dtype=torch.float64) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, channels, *size, dtype=dtype) for size in sizes]


def numpy_weights(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in module.named_parameters()}


@pytest.mark.parametrize("sizes", [SIZES, SIZES[:2], SIZES[:1]], ids=["four levels", "two levels", "one level"])
@pytest.mark.parametrize("options", [{"deform_form": "torchvision"}, {"deform_form": "gather"}, {"deformable": False}])
def test_layer_equals_the_slow_formulation(options, sizes):
    layer = make_dyconv(**options)
    features = make_levels(sizes)
    actual = layer(features)
    deformable = options.get("deformable", True)
    expected = slow_dyconv([level.numpy() for level in features], numpy_weights(layer), 2, deformable)
    assert len(actual) == len(expected)
    for level, slow in zip(actual, expected):
        np.testing.assert_allclose(level.detach().numpy(), slow, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("dtype", "forward", "backward"), [(torch.float32, 2e-5, 2e-4), (torch.float64, 1e-10, 1e-10)])
def test_both_forms_agree_with_all_gradients(dtype, forward, backward):
    results = {}
    for form in FORMS:
        torch.manual_seed(2)
        layer = DyConv(16, 16, num_groups=4, deform_form=form).to(dtype)
        features = [level.requires_grad_() for level in make_levels(((12, 9), (6, 5), (3, 3)), 16, dtype)]
        outputs = layer(features)
        torch.autograd.backward(outputs, [torch.cos(torch.arange(o.numel(), dtype=dtype)).view_as(o) for o in outputs])
        gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
        gradients |= {f"level {index}": level.grad for index, level in enumerate(features)}
        results[form] = outputs, gradients
    for one, other in zip(results["gather"][0], results["torchvision"][0]):
        assert (one - other).abs().max() <= forward
    for name, expected in results["torchvision"][1].items():
        difference = (results["gather"][1][name] - expected).abs().max()
        assert difference <= backward * max(expected.abs().max(), 1e-2), name


def test_parameter_names():
    names = set(DyConv(32, 32).state_dict())
    units = {f"convs.{i}.{part}.{kind}" for i in range(3) for part in ("conv", "norm") for kind in ("weight", "bias")}
    shared = {f"{part}.{kind}" for part in ("level_attention", "relu.fc.0", "relu.fc.2") for kind in ("weight", "bias")}
    assert names == units | shared | {"offset.weight", "offset.bias"}
    assert set(DyConv(32, 32, deformable=False).state_dict()) == units | shared
    plain_relu = DyConv(32, 32, dynamic_relu=False).state_dict()
    assert set(plain_relu) == {name for name in names if not name.startswith("relu.")}


def test_ordinary_relu_replaces_the_dynamic_one():
    layer, features = make_dyconv(dynamic_relu=False), make_levels()
    activated = layer(features)
    layer.relu = torch.nn.Identity()
    for actual, raw in zip(activated, layer(features)):
        assert torch.equal(actual, raw.clamp(min=0)) and raw.min() < 0


def test_channels_may_change():
    layer = make_dyconv(in_channels=4, out_channels=6)
    assert [tuple(level.shape) for level in layer(make_levels())] == [(2, 6, *size) for size in SIZES]


def test_layer_changes_none_of_its_inputs_and_ignores_their_memory_order():
    layer, features = make_dyconv(), make_levels()
    copies = [level.clone() for level in features]
    expected = layer(features)
    assert all(map(torch.equal, features, copies))
    actual = layer([level.contiguous(memory_format=torch.channels_last) for level in features])
    for one, other in zip(actual, expected):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_images_of_a_batch_do_not_mix():
    layer, features = make_dyconv(), make_levels()
    alone = layer([level[1:] for level in features])
    for one, other in zip(alone, layer(features)):
        torch.testing.assert_close(one[0], other[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"deformable": False}])
def test_every_parameter_gets_a_gradient(options):
    layer = make_dyconv(**options)
    sum((level**2).sum() for level in layer(make_levels())).backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.abs().max() > 1e-8, name


def test_offsets_are_computed_in_single_precision_under_autocast(monkeypatch):
    seen = []
    convolve = dyconv.modulated_deform_conv2d

    def spy(x, offset, modulation, *args):
        seen.append((offset, modulation))
        return convolve(x, offset, modulation, *args)

    monkeypatch.setattr(dyconv, "modulated_deform_conv2d", spy)
    layer, features = make_dyconv(torch.float32), make_levels(dtype=torch.float32)
    expected = layer(features)
    exact, seen = seen, []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = layer(features)
    assert len(seen) == len(exact) == 10
    for (offset, modulation), (exact_offset, exact_modulation) in zip(seen, exact):
        assert torch.equal(offset, exact_offset) and torch.equal(modulation, exact_modulation)
    for one, other in zip(actual, expected):
        torch.testing.assert_close(one.float(), other, rtol=0.05, atol=0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(level.isfinite().all() for level in layer([level.bfloat16() for level in features]))
    assert seen[-1][0].dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "memory_format"),
    [
        ({"deform_form": "gather"}, torch.channels_last),
        ({"deform_form": "torchvision"}, torch.contiguous_format),
        ({"deformable": False, "deform_form": "gather"}, torch.contiguous_format),
    ],
)
def test_convolutions_get_the_form_and_the_memory_order_that_suits_it(options, memory_format, monkeypatch):
    seen = []
    unit_forward = ConvUnit.forward

    def spy(self, x, offset, modulation, form):
        seen.append((x.is_contiguous(memory_format=memory_format), form))
        return unit_forward(self, x, offset, modulation, form)

    monkeypatch.setattr(ConvUnit, "forward", spy)
    features = make_levels(((5, 7), (3, 4)))
    features[1] = features[1].contiguous(memory_format=torch.channels_last)
    make_dyconv(**options)(features)
    assert seen == [(True, options["deform_form"])] * 4


def test_initial_weights():
    torch.manual_seed(0)
    layer = DyConv(64, 64)
    limit = (64 * 9) ** -0.5
    for unit in layer.convs:
        assert 0.99 * limit < unit.conv.weight.abs().max() <= limit
        assert unit.conv.bias.abs().max() == 0
    assert layer.offset.weight.abs().max() > 0.9 * limit
    assert layer.level_attention.bias.item() == 0
    assert 0.005 < layer.level_attention.weight.std() < 0.02
    assert layer.convs[0].norm.num_groups == 16


def test_unknown_form_is_named():
    with pytest.raises(ValueError, match="deform_form: expected one of auto, torchvision, gather, found 'fast'"):
        DyConv(16, 16, deform_form="fast")


def test_levels_that_do_not_halve_are_refused():
    with pytest.raises(ValueError, match=r"offset has shape \(2, 18, 4, 4\), expected \(2, 18, 3, 4\)"):
        make_dyconv()(make_levels(((5, 7), (4, 4))))


def test_unit_is_a_convolution_with_norm_and_without_activation():
    torch.manual_seed(0)
    unit = ConvUnit(3, 4, stride=2, num_groups=2).double()
    randomize(unit)
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    convolved = F.conv2d(x, unit.conv.weight, unit.conv.bias, stride=2, padding=1)
    expected = group_norm(convolved.detach().numpy(), 2, *(p.detach().numpy() for p in unit.norm.parameters()))
    actual = unit(x, None, None, "auto")
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=0, atol=1e-12)
    assert actual.min() < 0


def test_dynamic_relu_reads_slope_intercept_slope_intercept():
    relu = DynamicReLU(2).double()
    # Shares per channel by the bias alone, hard_sigmoid(6 t - 3) = t: a1, b1, a2, b2 of channels 0 and 1.
    shares = torch.tensor([0.5, 0.75, 0.6, 0.5, 0.25, 0.5, 0.5, 0.9], dtype=torch.float64)
    with torch.no_grad():
        relu.fc[2].weight.zero_()
        relu.fc[2].bias.copy_(6 * shares - 3)
    x = torch.tensor([-2.0, 1.0], dtype=torch.float64).view(1, 1, 1, 2).expand(1, 2, 1, 2)
    # Channel 0: max(x + 0.1, -0.5 x + 0); channel 1: max(1.5 x + 0, 0 x + 0.4).
    expected = [[1.0, 1.1], [0.4, 1.5]]
    np.testing.assert_allclose(relu(x)[0, :, 0].detach().numpy(), expected, rtol=0, atol=1e-12)


def test_dynamic_relu_depends_on_the_mean_of_each_image():
    torch.manual_seed(0)
    relu = DynamicReLU(8).double()
    randomize(relu)
    x = torch.randn(3, 8, 4, 5, dtype=torch.float64) + torch.randn(3, 8, 1, 1, dtype=torch.float64)
    weights = {f"relu.{name}": value for name, value in numpy_weights(relu).items()}
    np.testing.assert_allclose(relu(x).detach().numpy(), dynamic_relu(x.numpy(), weights), rtol=0, atol=1e-12)
    assert relu.fc[0].out_features == 2 and DynamicReLU(3).fc[0].out_features == 1


OFFICIAL_NAMES = (("DyConv.", "convs."), (".bn.", ".norm."), ("AttnConv.1", "level_attention"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("index", "tolerance"), [(2, 1e-4), (5, 3e-4)])
def test_layer_gives_the_official_numbers(index, tolerance, form):
    layer = DyConv(32, 32, deform_form=form)
    prefix = f"rpn.head.dyhead_tower.{index}."
    layer.load_state_dict(official_state_dict(prefix=prefix, renamings=OFFICIAL_NAMES))
    tower = load_tiny("det_tower.npz")
    with torch.no_grad():
        outputs = layer([tower[f"tower.{index - 2}.fuse.visual.p{level}"] for level in range(3, 8)])
    for level, actual in zip(range(3, 8), outputs):
        expected = tower[f"tower.{index}.dyconv.visual.p{level}"]
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=tolerance)
