import pytest
import torch
import torch.nn.functional as F
from torch import nn

from glipv2_d2.layers import products


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gelu", [True, False])
@pytest.mark.parametrize("shape", [(2, 300, 64), (70, 64), (0, 64)])
def test_product_equals_that_of_torch_in_double_precision(shape, gelu, bias):
    torch.manual_seed(0)
    x, weight = torch.randn(shape), torch.randn(200, 64) / 8
    offset = torch.randn(200) if bias else None
    expected = F.linear(x.double(), weight.double(), None if offset is None else offset.double())
    expected = F.gelu(expected) if gelu else expected
    with torch.no_grad():
        torch.testing.assert_close(products.linear(x, weight, offset, gelu).double(), expected, rtol=0, atol=5e-6)
        with products.plain_forms():
            torch.testing.assert_close(products.linear(x, weight, offset, gelu).double(), expected, rtol=0, atol=5e-6)


def test_transposed_matrices_are_read_as_they_are():
    torch.manual_seed(0)
    x, weight = torch.randn(64, 300), torch.randn(64, 200)
    with torch.no_grad():
        torch.testing.assert_close(products.linear(x.t(), weight.t()), x.t() @ weight, rtol=0, atol=5e-5)


@pytest.mark.parametrize("tokens", [3, 500])
def test_each_head_is_multiplied_by_its_own_matrix(tokens):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, tokens, 64), torch.randn(64, 3, 48).transpose(0, 1).transpose(1, 2)  # (3, 48, 64)
    expected = torch.einsum("nhtk,hok->nhto", x.double(), weight.double())
    with torch.no_grad():
        torch.testing.assert_close(products.per_head(x, weight).double(), expected, rtol=0, atol=5e-5)
    assert torch.equal(products.per_head(x, weight), x @ weight.transpose(1, 2))


def test_gradients_are_those_of_torch_bit_for_bit():
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 200), torch.randn(300, 64)
    products.apply(layer, x).sum().backward()
    actual = layer.weight.grad.clone()
    layer.zero_grad()
    layer(x).sum().backward()
    assert torch.equal(layer.weight.grad, actual)


def test_fast_forms_need_single_precision_without_gradients_autocast_and_tracing():
    x = torch.zeros(2, 2)
    assert not products.is_cpu_inference(x)
    with torch.no_grad():
        assert products.is_cpu_inference(x)
        assert not products.is_cpu_inference(x.half())
        assert not products.is_cpu_inference(x.to("meta"))
        assert not products.uses_onednn(x, x)  # too small
        with products.plain_forms():
            assert not products.is_cpu_inference(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not products.is_cpu_inference(x)
