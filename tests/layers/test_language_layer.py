import pytest
import torch
import torch.nn.functional as F
from parity_weights import load_tiny, official_state_dict
from text_layer_cases import assert_equals_slow, make_layer, make_mask

from glipv2_d2.layers.language_layer import LanguageLayer, padding_bias


def test_norms_use_the_small_epsilon_of_bert():
    # Variances near 1e-10: an epsilon of 1e-5 would swallow them, 1e-12 does not.
    layer = make_layer(LanguageLayer, spread=1e-5)
    assert_equals_slow(layer, torch.randn(2, 5, 6, dtype=torch.float64) * 1e-5, make_mask([5, 3], 5))


@pytest.mark.parametrize("name", ["query.weight", "intermediate.bias", "output.bias", "output_norm.weight"])
@pytest.mark.parametrize("factor", [1e6, -1e6])
def test_activations_are_clamped(name, factor):
    # One parameter is so large that what follows it passes 50,000, in both formulations.
    layer = make_layer(LanguageLayer)
    with torch.no_grad():
        layer.get_parameter(name).mul_(factor)
        layer.output.weight.mul_(1e-3)
        layer.output.weight[0, 0] = 0.5
    assert_equals_slow(layer, torch.randn(2, 5, 6, dtype=torch.float64), make_mask([5, 3], 5))


@pytest.mark.parametrize("causal", [False, True])
def test_prompt_without_real_tokens_stays_finite(causal):
    assert (
        make_layer(LanguageLayer, dtype=torch.float32)(torch.randn(1, 4, 6), make_mask([0], 4), causal).isfinite().all()
    )


def test_dropout_acts_on_weights_and_on_both_residual_branches(monkeypatch):
    layer = make_layer(LanguageLayer, drop=0.3)
    hidden, mask = torch.randn(1, 4, 6, dtype=torch.float64), make_mask([4], 4)
    calls = []

    def drop_weights(tensor, p, training):
        calls.append((tuple(tensor.shape), p, training))
        return torch.zeros_like(tensor) if tensor.ndim == 4 else tensor

    monkeypatch.setattr(F, "dropout", drop_weights)
    without_weights = layer(hidden, mask)
    assert calls == [((1, 3, 4, 4), 0.3, True), ((1, 4, 6), 0.3, True), ((1, 4, 6), 0.3, True)]
    monkeypatch.undo()
    # Without any attention weight only the bias of the output projection is left of the attention.
    with torch.no_grad():
        layer.attention_output.weight.zero_()
    torch.testing.assert_close(layer.eval()(hidden, mask), without_weights, rtol=0, atol=1e-12)


def test_with_all_dropped_only_the_norms_are_left():
    layer = make_layer(LanguageLayer, drop=1.0)
    hidden, mask = torch.randn(1, 4, 6, dtype=torch.float64), make_mask([4], 4)
    assert torch.equal(layer(hidden, mask), layer.output_norm(layer.attention_norm(hidden)))
    assert (layer.eval()(hidden, mask) - layer.output_norm(layer.attention_norm(hidden))).abs().max() > 0.01


def test_padding_bias_is_zero_at_real_tokens_and_single_precision_at_least():
    mask = torch.tensor([[True, False]])
    for dtype, expected in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        bias = padding_bias(mask, dtype)
        assert bias.dtype == expected
        assert bias[0, 0] == 0 and bias[0, 1] < -1e15


def test_every_parameter_but_the_key_bias_gets_a_gradient():
    layer = make_layer(LanguageLayer)
    (layer(torch.randn(2, 5, 6, dtype=torch.float64), make_mask([5, 3], 5)) ** 3).sum().backward()
    for name, parameter in layer.named_parameters():
        # The same number added to all scores of a row changes no weight.
        assert (parameter.grad.abs().max() > 1e-8) == (name != "key.bias"), name


def test_hidden_size_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="NUM_HEADS: expected a divisor of hidden_size 10, found 4"):
        LanguageLayer(10, 4, 20, 0.0)


OFFICIAL_NAMES = (
    ("attention.self.", ""),
    ("attention.output.dense", "attention_output"),
    ("attention.output.LayerNorm", "attention_norm"),
    ("intermediate.dense", "intermediate"),
    ("output.dense", "output"),
    ("output.LayerNorm", "output_norm"),
)


@pytest.mark.parametrize(("index", "tolerance"), [(1, 1e-4), (4, 3e-4)])
def test_layer_gives_the_official_numbers(index, tolerance):
    layer = LanguageLayer(48, 4, 192, 0.1).eval()
    prefix = f"rpn.head.dyhead_tower.{index}."
    layer.load_state_dict(official_state_dict(prefix=prefix, renamings=OFFICIAL_NAMES))
    mask = load_tiny("det_language.npz")["attention_mask"].bool().expand(2, -1)
    tower = load_tiny("det_tower.npz")
    with torch.no_grad():
        actual = layer(tower[f"tower.{index - 1}.fuse.hidden"], mask)
    expected = tower[f"tower.{index}.bert.hidden"]
    torch.testing.assert_close(actual[mask], expected[mask], rtol=1e-4, atol=tolerance)
