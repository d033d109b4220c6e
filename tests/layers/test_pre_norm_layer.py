import pytest
import torch
from text_layer_cases import assert_equals_slow, make_layer, make_mask

from glipv2_d2.layers.pre_norm_layer import PreNormLayer, QuickGELU


def test_both_norms_use_the_small_epsilon():
    # Variances near 1e-10: an epsilon of 1e-5 would swallow them, 1e-12 does not.
    layer = make_layer(PreNormLayer)
    assert_equals_slow(layer, torch.randn(2, 5, 6, dtype=torch.float64) * 1e-5, make_mask([5, 3], 5))
    with torch.no_grad():
        layer.attn.out_proj.weight.mul_(1e-5)
        layer.attn.out_proj.bias.mul_(1e-5)
    assert_equals_slow(layer, torch.randn(2, 5, 6, dtype=torch.float64) * 1e-5, make_mask([5, 3], 5))


def test_quick_gelu_by_hand():
    # 1.702 * 2 = 3.404; exp(-3.404) = 0.0332401, 1 / 1.0332401 = 0.9678293.
    actual = QuickGELU()(torch.tensor([0.0, 2.0, -2.0], dtype=torch.float64))
    assert actual.tolist() == pytest.approx([0.0, 1.9356586, -0.0643414], abs=1e-6)


def test_a_token_sees_those_after_it():
    layer = make_layer(PreNormLayer)
    hidden, mask = torch.randn(1, 4, 6, dtype=torch.float64), make_mask([4], 4)
    before = layer(hidden, mask)[0, 0]
    hidden[0, 3] += torch.randn(6, dtype=torch.float64)
    assert (layer(hidden, mask)[0, 0] - before).abs().max() > 1e-3


def test_causal_prompt_that_begins_with_padding_stays_finite():
    layer, hidden = make_layer(PreNormLayer, dtype=torch.float32), torch.randn(1, 4, 6, requires_grad=True)
    updated = layer(hidden, torch.tensor([[False, False, True, True]]), causal=True)
    updated.sum().backward()
    assert updated.isfinite().all() and hidden.grad.isfinite().all()


def test_prompt_without_real_tokens_sees_its_padding_and_changes_no_other():
    layer = make_layer(PreNormLayer, dtype=torch.float32)
    hidden = torch.randn(2, 4, 6, requires_grad=True)
    both = layer(hidden, make_mask([0, 3], 4))
    torch.testing.assert_close(both[:1], layer(hidden[:1], make_mask([4], 4)))
    torch.testing.assert_close(both[1:], layer(hidden[1:], make_mask([3], 4)))
    both.sum().backward()
    assert hidden.grad.isfinite().all()


def test_a_dropped_path_leaves_the_prompt_as_it_was():
    layer = make_layer(PreNormLayer, drop=1.0)
    hidden, mask = torch.randn(2, 4, 6, dtype=torch.float64), make_mask([4, 4], 4)
    assert torch.equal(layer(hidden, mask), hidden)
    assert (layer.eval()(hidden, mask) - hidden).abs().min(-1).values.max() > 0.01


def test_paths_are_dropped_prompt_by_prompt_in_both_branches_and_keep_their_mean():
    layer = make_layer(PreNormLayer, drop=0.5)
    hidden = torch.randn(1, 3, 6, dtype=torch.float64).repeat(400, 1, 1)
    mask = make_mask([3], 3).repeat(400, 1)
    with torch.no_grad():
        attention = layer.attn(layer.ln_1(hidden), mask)[0]
        # Four outcomes of a prompt: each branch is left out, or counts twice.
        expected = []
        for first in (hidden[0], hidden[0] + 2 * attention):
            expected += [first, first + 2 * layer.mlp(layer.ln_2(first))]
        actual = layer(hidden, mask)
    outcomes = [torch.isclose(actual, one).flatten(1).all(1).sum().item() for one in expected]
    assert sum(outcomes) == 400 and all(70 < count < 130 for count in outcomes)


def test_norms_of_half_precision_are_computed_in_single():
    # Squares of 300 and of 1e-4 are outside the range of half precision; the norm of either is the same.
    norm = PreNormLayer(4, 1, 8, 0.0).half().ln_1
    pattern = torch.tensor([1.0, -1.0, 1.0, -1.0])
    for size in (300.0, 1e-4):
        torch.testing.assert_close(norm((size * pattern).half()).float(), pattern, rtol=1e-2, atol=0)


def test_every_parameter_but_the_key_bias_gets_a_gradient():
    layer = make_layer(PreNormLayer)
    (layer(torch.randn(2, 5, 6, dtype=torch.float64), make_mask([5, 3], 5)) ** 3).sum().backward()
    for name, parameter in layer.named_parameters():
        if name == "attn.in_proj_bias":
            # The same number added to all scores of a row changes no weight.
            assert parameter.grad[6:12].abs().max() < 1e-8
            assert parameter.grad[:6].abs().min() > 1e-8 and parameter.grad[12:].abs().min() > 1e-8
        else:
            assert parameter.grad.abs().max() > 1e-8, name


def test_parameters_have_the_names_of_clip():
    shapes = {name: tuple(tensor.shape) for name, tensor in PreNormLayer(6, 3, 10, 0.1).state_dict().items()}
    assert shapes == {
        "attn.in_proj_weight": (18, 6),
        "attn.in_proj_bias": (18,),
        "attn.out_proj.weight": (6, 6),
        "attn.out_proj.bias": (6,),
        "ln_1.weight": (6,),
        "ln_1.bias": (6,),
        "mlp.c_fc.weight": (10, 6),
        "mlp.c_fc.bias": (10,),
        "mlp.c_proj.weight": (6, 10),
        "mlp.c_proj.bias": (6,),
        "ln_2.weight": (6,),
        "ln_2.bias": (6,),
    }


def test_initial_weights_have_a_spread_of_two_hundredths_and_no_bias():
    torch.manual_seed(0)
    for name, parameter in PreNormLayer(128, 4, 256, 0.0).named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif name.startswith("ln_"):
            assert (parameter == 1).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name


def test_hidden_size_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="TEXT_ENCODER.NUM_HEADS: expected a divisor of hidden_size 10, found 4"):
        PreNormLayer(10, 4, 20, 0.0)
