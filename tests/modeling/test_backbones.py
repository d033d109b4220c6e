import copy

import pytest
import timm
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from safetensors.torch import save_file

from glipv2_d2.modeling.backbone.fpn import DropBlock
from glipv2_d2.modeling.backbone.timm import TimmBackbone


def test_drop_block_is_the_identity_in_eval_mode_and_at_probability_zero():
    feature = torch.randn(2, 3, 8, 8)
    assert torch.equal(DropBlock(0.3, 3).eval()(feature), feature)
    assert torch.equal(DropBlock(0.0, 3).train()(feature), feature)


def test_drop_block_zeroes_whole_squares_of_all_channels_and_keeps_the_mean():
    torch.manual_seed(0)
    dropped = DropBlock(0.3, 3).train()(torch.ones(4, 5, 32, 32))
    zero = dropped == 0
    assert torch.equal(zero, zero[:, :1].expand_as(zero))
    # 0.3 / 9 of the cells start a square of nine; overlaps leave a little less than 1 - (1 - 0.3 / 9)^9 = 0.263.
    assert 0.2 < zero.float().mean() < 0.32
    assert dropped.mean() == pytest.approx(1.0, abs=1e-5)
    # A zero cell away from the border belongs to a 3 x 3 square of zeros.
    squares = -torch.nn.functional.max_pool2d(-zero[:, :1].float(), 3, stride=1)
    grown = torch.nn.functional.max_pool2d(squares, 3, stride=1)
    assert torch.equal(
        grown[..., 1:-1, 1:-1] > 0, zero[:, :1, 3:-3, 3:-3][..., : grown.shape[-2] - 2, : grown.shape[-1] - 2]
    )


@pytest.mark.parametrize(
    ("prob", "size", "where"), [(1.0, 3, "DROP_BLOCK_PROB"), (-0.1, 3, "DROP_BLOCK_PROB"), (0.3, 2, "DropBlock size")]
)
def test_drop_block_refuses_other_values(prob, size, where):
    with pytest.raises(ValueError, match=where):
        DropBlock(prob, size)


def test_swin_fpn_has_five_levels_and_p6_follows_the_p5_output(tiny_cfg):
    backbone = build_backbone(tiny_cfg, ShapeSpec(channels=3)).eval()
    features = backbone(torch.randn(1, 3, 64, 96))
    assert {name: tuple(map.shape[-2:]) for name, map in features.items()} == {
        "p3": (8, 12),
        "p4": (4, 6),
        "p5": (2, 3),
        "p6": (1, 2),
        "p7": (1, 1),
    }
    torch.testing.assert_close(features["p6"], backbone.top_block.p6(features["p5"]))
    torch.testing.assert_close(features["p7"], backbone.top_block.p7(features["p6"].relu()))


def test_drop_block_touches_p3_and_p4_but_not_p5(tiny_cfg):
    tiny_cfg.MODEL.SWIN.DROP_PATH_RATE = 0.0
    backbone = build_backbone(tiny_cfg, ShapeSpec(channels=3))
    image = torch.randn(1, 3, 256, 256)
    reference = backbone.eval()(image)
    torch.manual_seed(0)
    dropped = backbone.train()(image)
    assert torch.equal(reference["p5"], dropped["p5"])
    assert not torch.equal(reference["p3"], dropped["p3"])
    assert not torch.equal(reference["p4"], dropped["p4"])


def test_levels_without_p6_build_no_top_block(tiny_cfg):
    tiny_cfg.MODEL.GLIPV2.IN_FEATURES = ["p3", "p4", "p5"]
    assert build_backbone(tiny_cfg, ShapeSpec(channels=3)).top_block is None


def test_frozen_swin_stages_stay_in_eval_mode_and_do_not_train(tiny_cfg):
    tiny_cfg.MODEL.BACKBONE.FREEZE_AT = 2
    swin = build_backbone(tiny_cfg, ShapeSpec(channels=3)).train().bottom_up
    assert not swin.patch_embed.training and not swin.layers[0].training and swin.layers[1].training
    assert not any(parameter.requires_grad for parameter in swin.layers[0].parameters())
    assert all(parameter.requires_grad for parameter in swin.layers[1].parameters())


def test_p6_without_p7_is_refused(tiny_cfg):
    tiny_cfg.MODEL.GLIPV2.IN_FEATURES = ["p3", "p4", "p5", "p6"]
    with pytest.raises(ValueError, match=r"IN_FEATURES.*p6"):
        build_backbone(tiny_cfg, ShapeSpec(channels=3))


def test_a_copied_fpn_has_its_own_drop_block(tiny_cfg):
    backbone = build_backbone(tiny_cfg, ShapeSpec(channels=3)).train()
    copied = copy.deepcopy(backbone).eval()
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(copied(image)["p3"], copied(image)["p3"])


NAME = "tf_efficientnet_lite0"


@pytest.mark.parametrize(
    ("name", "freeze_at", "first_trained"),
    [
        ("resnet18", 1, "layer1."),
        ("resnet18", 2, "layer2."),
        ("convnext_atto", 1, "stages_1."),
        (NAME, 0, "conv_stem."),
    ],
)
def test_everything_before_the_end_of_the_last_frozen_feature_is_frozen(name, freeze_at, first_trained):
    body = TimmBackbone(name, (-3, -2, -1), freeze_at=freeze_at, freeze_norm=False).body
    names, trained = zip(*[(name, parameter.requires_grad) for name, parameter in body.named_parameters()])
    first = trained.index(True)
    assert names[first].startswith(first_trained) and all(trained[first:])


def test_more_frozen_features_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"MODEL\.BACKBONE\.FREEZE_AT.*found 6"):
        TimmBackbone(NAME, freeze_at=6)


def test_timm_backbone_names_its_levels_by_stride():
    backbone = TimmBackbone(NAME, (2, 3, 4))
    assert {name: (shape.channels, shape.stride) for name, shape in backbone.output_shape().items()} == {
        "c3": (40, 8),
        "c4": (112, 16),
        "c5": (320, 32),
    }
    assert [tuple(map.shape[-2:]) for map in backbone(torch.randn(1, 3, 64, 32)).values()] == [(8, 4), (4, 2), (2, 1)]


def test_frozen_timm_stages_and_norms_do_not_train():
    backbone = TimmBackbone(NAME, freeze_at=2, freeze_norm=True).train()
    trainable = [name for name, parameter in backbone.body.named_parameters() if parameter.requires_grad]
    assert trainable and all(
        name.startswith(("blocks.2.", "blocks.3.", "blocks.4.", "blocks.5.", "blocks.6.")) for name in trainable
    )
    assert not any(".bn" in name for name in trainable)
    assert not any(module.training for module in backbone.modules() if isinstance(module, torch.nn.BatchNorm2d))
    everything = TimmBackbone(NAME, freeze_at=0, freeze_norm=False).train()
    assert all(parameter.requires_grad for parameter in everything.parameters())


@pytest.mark.parametrize("rename", [False, True], ids=["by name", "by order and shape"])
def test_timm_weights_are_matched_by_name_or_by_order_and_shape(tmp_path, rename):
    torch.manual_seed(0)
    full = timm.create_model(NAME, pretrained=False).state_dict()
    full = {key: torch.randn_like(value) for key, value in full.items() if "num_batches" not in key}
    # safetensors sorts names, so that the order is kept by numbering them.
    saved = {f"{index:04d}": value for index, value in enumerate(full.values())} if rename else full
    save_file(saved, str(tmp_path / "weights.safetensors"))
    body = TimmBackbone(NAME, weights=str(tmp_path / "weights.safetensors")).body
    for key, value in body.state_dict().items():
        if "num_batches" not in key:
            assert torch.equal(value, full[key]), key


def test_timm_weights_reach_a_model_whose_features_flatten_its_names(tmp_path):
    full = {key: torch.randn_like(value) for key, value in timm.create_model("convnext_atto").state_dict().items()}
    save_file(full, str(tmp_path / "weights.safetensors"))
    body = TimmBackbone("convnext_atto", (1, 2, 3), weights=str(tmp_path / "weights.safetensors")).body
    flattened = {key.replace(".", "_"): value for key, value in full.items()}
    for key, value in body.state_dict().items():
        assert torch.equal(value, flattened[key.replace(".", "_")]), key


def test_timm_weights_of_another_model_are_refused(tmp_path):
    save_file({"a": torch.zeros(3)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(ValueError, match=r"MODEL\.TIMM\.WEIGHTS.*other\.safetensors.*1 tensors"):
        TimmBackbone(NAME, weights=str(tmp_path / "other.safetensors"))


def test_an_unknown_timm_name_is_refused():
    with pytest.raises(ValueError, match=r"MODEL\.TIMM\.NAME.*no_such_model"):
        TimmBackbone("no_such_model")
