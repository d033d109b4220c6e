import copy

import pytest
import timm
import torch
from timm.layers import Conv2dSame

from glipv2_d2.layers.deform_conv import modulated_deform_conv2d
from glipv2_d2.layers.dyconv import DyConv
from glipv2_d2.modeling.backbone.coswin import CoSwin
from glipv2_d2.modeling.backbone.swin import FreezableSwin
from glipv2_d2.modeling.exported.free_sizes import FreeConvSame, FreeDyConv, FreeSwin, deform_conv_of_gathers

# Windows that fit, that are padded on one side or on both, and a map smaller than a window.
SIZES = [(224, 224), (224, 96), (96, 160), (32, 32)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [FreezableSwin, CoSwin])
def test_windows_of_one_gather_give_the_maps_of_swin(kind, size):
    torch.manual_seed(0)
    swin = kind(embed_dim=8, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4), out_indices=(1, 2, 3)).eval()
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        found, expected = FreeSwin(copy.deepcopy(swin))(image), swin(image)
    assert list(found) == list(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (64, 96)])
def test_a_constant_padding_is_same_padding_where_sides_are_multiples_of_the_stride(size):
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0", features_only=True).eval()
    convs = [module for module in model.modules() if isinstance(module, Conv2dSame)]
    assert {conv.kernel_size for conv in convs} == {(3, 3), (5, 5)}
    for conv in convs:
        x = torch.randn(1, conv.in_channels, *size)
        with torch.no_grad():
            torch.testing.assert_close(FreeConvSame(conv)(x), conv(x))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_deformable_convolution_of_gathers_is_that_of_torchvision(stride):
    torch.manual_seed(0)
    x = torch.randn(1, 5, 8, 6)
    weight, bias = torch.randn(4, 5, 3, 3), torch.randn(4)
    # Some taps are far outside.
    offset, modulation = torch.randn(18, 8 // stride, 6 // stride) * 4, torch.rand(9, 8 // stride, 6 // stride)
    found = deform_conv_of_gathers(x, offset, modulation, weight, bias, stride)
    expected = modulated_deform_conv2d(x, offset[None], modulation[None], weight, bias, stride, 1, "torchvision")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_an_offset_that_is_not_finite_is_no_error():
    offset = torch.zeros(18, 4, 4)
    offset[0, 0, 0], offset[1, 0, 1], offset[2, 1, 0] = float("nan"), float("inf"), -float("inf")
    args = torch.ones(9, 4, 4), torch.ones(2, 3, 3, 3), torch.zeros(2), 1
    found = deform_conv_of_gathers(torch.ones(1, 3, 4, 4), offset, *args)
    assert found[0, 0, 0, 0].isnan() and found[0, 0, 3, 3] == 12.0


@pytest.mark.parametrize("options", [{}, {"deformable": False}, {"dynamic_relu": False}])
def test_free_dyconv_mixes_levels_as_dyconv(options):
    torch.manual_seed(0)
    layer = DyConv(8, 8, num_groups=2, **options).eval()
    for parameter in layer.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    # A level of odd sides, then one that it is not twice as large as.
    features = [torch.randn(1, 8, *size) for size in [(10, 14), (5, 7), (3, 4), (2, 2)]]
    with torch.no_grad():
        for found, expected in zip(FreeDyConv(layer)(features), layer(features)):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
