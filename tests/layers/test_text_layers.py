"""Rules that hold for the text layers of both kinds."""

import numpy as np
import pytest
import torch
from text_layer_cases import SLOW, assert_equals_slow, make_layer, make_mask, slow_forward

pytestmark = pytest.mark.parametrize("kind", SLOW, ids=lambda kind: kind.__name__)


def test_layer_equals_the_slow_formulation(kind):
    assert_equals_slow(make_layer(kind), torch.randn(2, 5, 6, dtype=torch.float64), make_mask([5, 3], 5))


def test_real_tokens_do_not_see_the_padding(kind):
    layer = make_layer(kind)
    hidden, mask = torch.randn(2, 5, 6, dtype=torch.float64), make_mask([3, 3], 5)
    cut = layer(hidden[:, :3], mask[:, :3])
    torch.testing.assert_close(layer(hidden, mask)[:, :3], cut, rtol=0, atol=1e-12)
    hidden[:, 3:] = 50.0
    torch.testing.assert_close(layer(hidden, mask)[:, :3], cut, rtol=0, atol=1e-12)


def test_causal_token_is_updated_as_the_last_of_the_text_up_to_it(kind):
    layer, hidden = make_layer(kind), torch.randn(2, 5, 6, dtype=torch.float64)
    mask = torch.tensor([[True] * 5, [True, False, True, True, False]])
    actual = layer(hidden, mask, causal=True)
    for prompt in range(2):
        for token in mask[prompt].nonzero().flatten().tolist():
            expected = slow_forward(layer, hidden[prompt, : token + 1], mask[prompt, : token + 1])[-1]
            np.testing.assert_allclose(actual[prompt, token].detach().numpy(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_token_changes_none_before_it_exactly(kind, dtype):
    layer, hidden = make_layer(kind, dtype=dtype), torch.randn(1, 5, 6).to(dtype)
    before = layer(hidden, make_mask([5], 5), causal=True)
    hidden[0, 3] += torch.randn(6).to(dtype)
    after = layer(hidden, make_mask([5], 5), causal=True)
    assert torch.equal(after[:, :3], before[:, :3])
    assert (after - before)[:, 3:].abs().amax(-1).min() > 1e-3


def test_steps_equal_the_causal_layer(kind):
    layer, hidden, past = make_layer(kind), torch.randn(2, 5, 6, dtype=torch.float64), None
    expected = layer(hidden, make_mask([5, 5], 5), causal=True)
    for token in range(5):
        updated, past = layer.step(hidden[:, token : token + 1], past)
        torch.testing.assert_close(updated[:, 0], expected[:, token], rtol=0, atol=1e-12)
        assert past.keys.shape == past.values.shape == (2, 3, token + 1, 2)


def test_half_precision_stays_finite_and_close(kind):
    layer = make_layer(kind, dtype=torch.float32)
    hidden, mask = torch.randn(2, 5, 6), make_mask([5, 3], 5)
    expected = layer(hidden, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = layer(hidden, mask)
    torch.testing.assert_close(actual.float(), expected, rtol=0.05, atol=0.15)
    actual = layer.half()(hidden.half(), mask)
    assert actual.dtype == torch.float16
    torch.testing.assert_close(actual.float(), expected, rtol=0.01, atol=0.02)
