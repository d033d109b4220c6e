import math

import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from glipv2_d2 import add_glipv2_config
from glipv2_d2.solver import build_gradient_clipper, build_optimizer


class NamedParts(nn.Module):
    """The names that the rules speak of, one parameter of one number each unless said otherwise."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.ModuleDict({"bottom_up": nn.Linear(1, 1), "fpn_lateral3": nn.Linear(1, 1)})
        self.backbone["bottom_up"].relative_position_bias_table = nn.Parameter(torch.ones(1))
        self.text_encoder = nn.Linear(1, 1)
        self.tower = nn.ModuleDict({"text_encoder": nn.Linear(1, 1, bias=False), "norm": nn.GroupNorm(1, 1)})
        self.head = nn.ParameterDict({"bias_lang": torch.ones(1), "bias0": torch.ones(1), "log_scale": torch.ones(1)})
        self.vqa_head, self.captioning_head, self.phrase_center_head = (nn.Linear(1, 1) for _ in range(3))
        self.frozen = nn.Linear(1, 1).requires_grad_(False)


def make_cfg(*options):
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.merge_from_list(
        [
            *("SOLVER.BASE_LR", 0.1, "SOLVER.WEIGHT_DECAY", 0.01, "SOLVER.WEIGHT_DECAY_NORM", 0.002),
            *("SOLVER.WEIGHT_DECAY_BIAS", 0.0, "SOLVER.BIAS_LR_FACTOR", 2.0),
            *("SOLVER.TEXT_ENCODER_MULTIPLIER", 0.5, "SOLVER.BACKBONE_MULTIPLIER", 0.25),
            *("SOLVER.HEAD_MULTIPLIER", 3.0, *options),
        ]
    )
    return cfg


def settings_by_name(model, optimizer):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_learning_rate_and_decay_follow_the_names():
    model = NamedParts()
    expected = {
        "backbone.bottom_up.weight": (0.025, 0.01),
        "backbone.bottom_up.bias": (0.05, 0.0),
        "backbone.bottom_up.relative_position_bias_table": (0.05, 0.0),
        "backbone.fpn_lateral3.weight": (0.1, 0.01),
        "backbone.fpn_lateral3.bias": (0.2, 0.0),
        "text_encoder.weight": (0.05, 0.01),
        "text_encoder.bias": (0.1, 0.0),
        "tower.text_encoder.weight": (0.1, 0.01),
        "tower.norm.weight": (0.1, 0.002),
        "tower.norm.bias": (0.2, 0.0),
        "head.bias_lang": (0.2, 0.0),
        "head.bias0": (0.2, 0.0),
        "head.log_scale": (0.1, 0.01),
        "vqa_head.weight": (0.3, 0.01),
        "vqa_head.bias": (0.6, 0.0),
        "captioning_head.weight": (0.3, 0.01),
        "captioning_head.bias": (0.6, 0.0),
        "phrase_center_head.weight": (0.3, 0.01),
        "phrase_center_head.bias": (0.6, 0.0),
    }
    found = settings_by_name(model, build_optimizer(make_cfg(), model))
    assert found.keys() == expected.keys()
    for name, pair in expected.items():
        assert found[name] == pytest.approx(pair), name


def test_parameters_with_equal_settings_share_a_group():
    model = nn.ModuleList([nn.Linear(2, 2) for _ in range(5)])
    optimizer = build_optimizer(make_cfg(), model)
    assert [len(group["params"]) for group in optimizer.param_groups] == [5, 5]


def test_unset_decays_are_those_of_everything_else():
    model = nn.Sequential(nn.LayerNorm(2))
    cfg = make_cfg("SOLVER.WEIGHT_DECAY_NORM", 0.01)
    cfg.SOLVER.WEIGHT_DECAY_BIAS = None
    found = settings_by_name(model, build_optimizer(cfg, model))
    assert found == {"0.weight": (0.1, 0.01), "0.bias": (0.2, 0.01)}


def test_optimizer_is_adam_with_decoupled_decay():
    # First step of AdamW: p * (1 - lr * decay) - lr * g / (|g| + eps) = 2 * 0.999 - 0.1.
    parameter = nn.Parameter(torch.tensor([2.0]))
    model = nn.ParameterDict({"weight": parameter})
    optimizer = build_optimizer(make_cfg(), model)
    parameter.grad = torch.tensor([0.3])
    optimizer.step()
    assert parameter.item() == pytest.approx(1.998 - 0.1, abs=1e-6)


def parameters_with_gradients():
    parameters = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))]
    parameters[0].grad = torch.tensor([3.0])
    parameters[1].grad = torch.tensor([0.0, 4.0])
    return parameters


def test_full_model_clipping_scales_all_gradients_to_one_norm():
    cfg = make_cfg(
        *("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model"),
        *("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1.0),
    )
    parameters = parameters_with_gradients()
    assert build_gradient_clipper(cfg)(parameters).item() == pytest.approx(5.0)
    assert parameters[0].grad.tolist() == pytest.approx([0.6], abs=1e-5)
    assert parameters[1].grad.tolist() == pytest.approx([0.0, 0.8], abs=1e-5)


def test_full_model_clipping_uses_the_configured_norm():
    cfg = make_cfg(
        *("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model"),
        *("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 2.0, "SOLVER.CLIP_GRADIENTS.NORM_TYPE", math.inf),
    )
    parameters = parameters_with_gradients()
    assert build_gradient_clipper(cfg)(parameters).item() == 4.0
    assert parameters[0].grad.tolist() == pytest.approx([1.5], abs=1e-5)


def test_without_clipping_the_norm_is_measured_and_gradients_stay():
    parameters = parameters_with_gradients()
    assert build_gradient_clipper(make_cfg())(parameters).item() == pytest.approx(5.0)
    assert parameters[0].grad.tolist() == [3.0]


def test_clipping_by_value_happens_in_the_step():
    cfg = make_cfg("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value")
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = build_optimizer(cfg, nn.ParameterDict({"weight": parameter}))
    parameter.grad = torch.tensor([3.0, -0.5])
    optimizer.step()
    assert parameter.grad.tolist() == [1.0, -0.5]


def test_unknown_clipping_names_key_and_value():
    cfg = make_cfg("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "global")
    with pytest.raises(ValueError, match="SOLVER.CLIP_GRADIENTS.CLIP_TYPE.*'global'"):
        build_optimizer(cfg, nn.Linear(1, 1))


def test_model_without_trainable_parameter_is_an_error():
    with pytest.raises(ValueError, match="trainable"):
        build_optimizer(make_cfg(), nn.Linear(1, 1).requires_grad_(False))
