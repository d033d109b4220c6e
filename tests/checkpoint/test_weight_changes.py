import pytest
import torch
from conftest import make_tiny_cfg
from official_names import to_official
from torch import nn

from glipv2_d2.checkpoint.checkpointer import GLIPv2Checkpointer
from glipv2_d2.checkpoint.weight_changes import WeightChanges, interpolate_weights
from glipv2_d2.modeling import build_model
from glipv2_d2.modeling.lora import LoRASettings, add_lora
from glipv2_d2.modeling.prompt_tuning import PromptTuner
from glipv2_d2.tensor_files import CheckpointError, write_tensors


class Numbers(nn.Module):
    """Two weights and a counter."""

    def __init__(self, first, second, count=0):
        super().__init__()
        self.first = nn.Parameter(torch.tensor(first))
        self.register_buffer("second", torch.tensor(second))
        self.register_buffer("count", torch.tensor(count))


@pytest.mark.parametrize(
    ("share", "first", "second"), [(1.0, [2.0, 4.0], 8.0), (0.0, [1.0, 0.0], 0.0), (0.25, [1.25, 1.0], 2.0)]
)
def test_a_share_of_the_model_is_mixed_with_the_rest_of_the_base(share, first, second):
    model, base = Numbers([2.0, 4.0], 8.0, 5), Numbers([1.0, 0.0], 0.0, 3)
    interpolate_weights(model, base.state_dict(), share, "base")
    assert model.first.tolist() == first and model.second.item() == second
    # No number between two counts.
    assert model.count.item() == 5
    assert base.first.tolist() == [1.0, 0.0]


def test_the_ends_are_exact():
    model, base = nn.Linear(50, 50), nn.Linear(50, 50)
    tuned = model.weight.detach().clone()
    interpolate_weights(model, base.state_dict(), 1.0, "base")
    assert torch.equal(model.weight, tuned)
    interpolate_weights(model, base.state_dict(), 0.0, "base")
    assert torch.equal(model.weight, base.weight)


def test_weights_that_the_base_lacks_stay_and_are_named(caplog):
    model = Numbers([2.0, 4.0], 8.0)
    with caplog.at_level("WARNING"):
        interpolate_weights(model, {"first": torch.zeros(2), "odd": torch.zeros(1)}, 0.5, "base.pth")
    assert model.first.tolist() == [1.0, 2.0] and model.second.item() == 8.0
    assert caplog.messages == ["base.pth has no weights for second: nothing to interpolate with"]


def test_what_a_base_without_positions_is_interpolated_with_is_a_share_of_them(caplog):
    cfg = make_tiny_cfg()
    base = build_model(cfg).state_dict()
    cfg.MODEL.GLIPV2.FUSION.POSITIONS = True
    model = build_model(cfg)
    weight = model.fusion_tower.blocks[0].fusion.position_proj.weight
    before = weight.detach().clone()
    with caplog.at_level("WARNING"):
        interpolate_weights(model, base, 0.25, "base")
    assert torch.equal(weight, before / 4) and before.any() and not caplog.messages
    interpolate_weights(model, base, 0.0, "base")
    assert not weight.any()


def test_a_prompt_table_and_low_rank_updates_start_from_zero(caplog):
    torch.manual_seed(0)
    model = nn.ModuleDict({"backbone": nn.Sequential(nn.Linear(20, 20)), "prompt_tuner": PromptTuner(3, 4)})
    base = {name: one.clone() for name, one in model.state_dict().items() if not name.startswith("prompt_tuner")}
    add_lora(model, LoRASettings(2, 4.0, ("backbone",)))
    layer = model["backbone"][0]
    layer.lora.up.data.normal_()
    model["prompt_tuner"].embeddings.data.fill_(8.0)
    expected = 0.75 * base["backbone.0.weight"] + 0.25 * layer.weight.detach()
    with caplog.at_level("WARNING"):
        interpolate_weights(model, base, 0.25, "base")
    torch.testing.assert_close(layer.weight, expected)
    assert (model["prompt_tuner"].embeddings == 2.0).all()
    assert not caplog.messages


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_an_error(share):
    cfg = make_tiny_cfg()
    cfg.merge_from_list(["MODEL.GLIPV2.TUNING.INTERPOLATION", share, "MODEL.GLIPV2.TUNING.INTERPOLATE_WITH", "x"])
    with pytest.raises(ValueError, match="INTERPOLATION: expected"):
        WeightChanges.from_config(cfg)


def test_a_share_without_a_base_is_an_error():
    cfg = make_tiny_cfg()
    cfg.MODEL.GLIPV2.TUNING.INTERPOLATION = 0.5
    with pytest.raises(ValueError, match="INTERPOLATE_WITH: expected weights"):
        WeightChanges.from_config(cfg)


@pytest.mark.parametrize("convert", [dict, to_official], ids=["own", "GLIP"])
def test_the_checkpointer_interpolates_with_any_kind_of_file(tmp_path, convert):
    torch.manual_seed(0)
    base, tuned, model = (build_model(make_tiny_cfg()) for _ in range(3))
    write_tensors(tmp_path / "base.safetensors", convert(base.state_dict()))
    write_tensors(tmp_path / "tuned.safetensors", tuned.state_dict())
    changes = WeightChanges("", str(tmp_path / "base.safetensors"), 0.3)
    GLIPv2Checkpointer(model, changes=changes).load(str(tmp_path / "tuned.safetensors"))
    for name in (
        "head.text_projection.weight",
        "backbone.fpn_output3.weight",
        "fusion_tower.blocks.0.fusion.attention.visual_proj.weight",
    ):
        expected = 0.7 * base.state_dict()[name].double() + 0.3 * tuned.state_dict()[name].double()
        torch.testing.assert_close(model.state_dict()[name].double(), expected)


def test_a_base_of_another_size_is_refused(tmp_path):
    cfg = make_tiny_cfg()
    model = build_model(cfg)
    write_tensors(tmp_path / "tuned.safetensors", model.state_dict())
    write_tensors(tmp_path / "base.safetensors", {"head.bias_lang": torch.zeros(7)})
    changes = WeightChanges("", str(tmp_path / "base.safetensors"), 0.5)
    with pytest.raises(CheckpointError, match="base.safetensors: head.bias_lang: expected shape"):
        GLIPv2Checkpointer(model, changes=changes).load(str(tmp_path / "tuned.safetensors"))
