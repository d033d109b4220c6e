import copy

import pytest
import torch
from detectron2.layers import Conv2d
from torch import nn

from glipv2_d2.layers.fusion import BiMultiHeadAttention
from glipv2_d2.modeling.lora import LoRASettings, add_lora, merge_lora


class Parts(nn.Module):
    """A model with the two parts that get updates, and one that gets none."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(8, 12, 3), Conv2d(12, 12, 3, bias=False), nn.BatchNorm2d(12))
        self.fusion_tower = nn.Sequential(nn.Linear(12, 20), nn.LayerNorm(20), nn.Linear(20, 1))
        self.head = nn.Linear(20, 20)

    def forward(self, x):
        return self.fusion_tower(self.backbone(x).mean((2, 3)))


ALL = ["fusion_tower.0", "backbone.0", "backbone.1"]
SETTINGS = LoRASettings(2, 6.0)


def fill_updates(model):
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora." in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)


def test_layers_of_the_parts_get_thin_matrices_beside_their_own_names():
    model, plain = Parts(), Parts()
    assert add_lora(model, SETTINGS) == ALL
    shapes = {name: tuple(one.shape) for name, one in model.named_parameters() if ".lora." in name}
    assert shapes == {
        "fusion_tower.0.lora.down": (2, 12),
        "fusion_tower.0.lora.up": (20, 2),
        "backbone.0.lora.down": (2, 72),
        "backbone.0.lora.up": (12, 2),
        "backbone.1.lora.down": (2, 108),
        "backbone.1.lora.up": (12, 2),
    }
    # A file of the plain model fits.
    factors = {f"{name}.lora.scale": SETTINGS.alpha / SETTINGS.rank for name in ALL}
    assert set(model.state_dict()) - set(plain.state_dict()) == set(shapes) | set(factors)
    assert {name: float(model.state_dict()[name]) for name in factors} == factors


def test_new_updates_change_nothing_and_trained_ones_add_their_product():
    model, plain = Parts().eval(), Parts().eval()
    x = torch.randn(2, 8, 7, 7)
    add_lora(model, SETTINGS)
    assert torch.equal(model(x), plain(x))
    fill_updates(model)
    layer = model.backbone[0]
    # alpha / rank = 3.
    expected = plain.backbone[0].weight + 3 * (layer.lora.up @ layer.lora.down).reshape(12, 8, 3, 3)
    torch.testing.assert_close(layer.weight, expected)
    torch.testing.assert_close(layer(x), torch.nn.functional.conv2d(x, expected, plain.backbone[0].bias))


@torch.no_grad()
def test_a_merged_model_equals_the_unmerged_one_and_is_a_plain_one():
    model, x = Parts().eval(), torch.randn(2, 8, 7, 7)
    classes = [type(module) for module in model.modules()]
    add_lora(model, SETTINGS)
    fill_updates(model)
    expected = model(x)
    merge_lora(model)
    torch.testing.assert_close(model(x), expected)
    assert [type(module) for module in model.modules()] == classes
    assert set(model.state_dict()) == set(Parts().state_dict())
    merge_lora(model)
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("form", ["plain", "folded"])
def test_code_that_reads_the_weight_of_a_layer_sees_the_update(form):
    torch.manual_seed(0)
    model = nn.ModuleDict({"fusion_tower": BiMultiHeadAttention(8, 12, embed_dim=16, num_heads=2).eval()})
    add_lora(model, LoRASettings(2, 2.0, ("fusion_tower",)))
    fill_updates(model)
    inputs = torch.randn(1, 5, 8), torch.randn(1, 3, 12), torch.ones(1, 3, dtype=torch.bool)
    expected = model["fusion_tower"](*inputs, form)
    merge_lora(model)
    for actual, one in zip(model["fusion_tower"](*inputs, form), expected):
        torch.testing.assert_close(actual, one, rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_updates_and_not_a_fixed_weight():
    model = Parts()
    add_lora(model, SETTINGS)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora." in name)
    fill_updates(model)
    model(torch.randn(2, 8, 7, 7)).sum().backward()
    assert {name for name, one in model.named_parameters() if one.grad is not None} == {
        f"{layer}.lora.{side}" for layer in ALL for side in ("up", "down")
    }


def test_a_frozen_layer_and_one_smaller_than_its_update_are_left_as_they_are():
    model = Parts()
    model.backbone[0].requires_grad_(False)
    # fusion_tower.2 has 20 weights, less than the 2 * 21 of an update; so has fusion_tower.0 with rank 8: 240, 8 * 32.
    assert add_lora(model, LoRASettings(2, 1.0)) == ["fusion_tower.0", "backbone.1"]
    with pytest.raises(ValueError, match="LORA: found no layer of fusion_tower .* rank 8"):
        add_lora(Parts(), LoRASettings(8, 1.0))


def test_a_copy_of_a_model_with_updates_is_independent():
    model, x = Parts().eval(), torch.randn(1, 8, 5, 5)
    add_lora(model, SETTINGS)
    twin = copy.deepcopy(model)
    fill_updates(model)
    assert torch.equal(twin(x), Parts().eval()(x)) and not torch.equal(model(x), twin(x))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (LoRASettings(0, 1.0), "LORA.RANK: expected at least 1, found 0"),
        (LoRASettings(2, 0.0), "LORA.ALPHA: expected a number above 0, found 0.0"),
        (LoRASettings(2, float("nan")), "LORA.ALPHA: .* found nan"),
        (LoRASettings(2, 1.0, ("head",)), "LORA.PARTS: expected some of .*fusion_tower.* found .*head"),
        (LoRASettings(2, 1.0, ()), "LORA.PARTS: expected some of"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        add_lora(Parts(), settings)
