import copy

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from glipv2_d2.modeling.backbone.coswin import ConvDownsampling, ConvEmbedding, CoSwin
from glipv2_d2.modeling.backbone.swin import FreezableSwin

SIZES = {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "window_size": 4}


def make_coswin(kind=CoSwin, **changes):
    torch.manual_seed(0)
    return kind(**{**SIZES, "out_indices": (1, 2, 3), **changes}).eval()


def slow_convolution(image, weight, bias, stride, padding):
    """One output position after the other, over a map with a border of zeros."""
    image = F.pad(image, (padding,) * 4)
    size = weight.shape[-1]
    rows = range(0, image.shape[2] - size + 1, stride)
    columns = range(0, image.shape[3] - size + 1, stride)
    windows = [[image[:, :, row : row + size, column : column + size] for column in columns] for row in rows]
    found = [[torch.einsum("nchw,ochw->no", window, weight) + bias for window in line] for line in windows]
    return torch.stack([torch.stack(line, dim=-1) for line in found], dim=-2)  # (N, O, H', W')


def slow_norm(image, norm):
    """LayerNorm over the channels of each position."""
    mean, variance = image.mean(dim=1, keepdim=True), image.var(dim=1, keepdim=True, correction=0)
    scaled = (image - mean) / (variance + 1e-5).sqrt()
    return scaled * norm.weight[:, None, None] + norm.bias[:, None, None]


def randomize(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)


def test_patches_are_embedded_by_overlapping_windows_and_normalized():
    embedding = make_coswin().patch_embed
    randomize(embedding)
    image = torch.randn(2, 3, 8, 12)
    expected = slow_norm(slow_convolution(image, embedding.proj.weight, embedding.proj.bias, 4, 2), embedding.norm)
    assert embedding.proj.weight.shape == (12, 3, 7, 7) and expected.shape == (2, 12, 2, 3)
    torch.testing.assert_close(embedding(image), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 3)])
def test_stages_are_joined_by_a_convolution_that_halves_the_map_rounded_up(height, width):
    downsampling = make_coswin().layers[0].downsample
    randomize(downsampling)
    tokens = torch.randn(2, height * width, 12)
    image = tokens.reshape(2, height, width, 12).permute(0, 3, 1, 2)
    expected = slow_norm(
        slow_convolution(image, downsampling.proj.weight, downsampling.proj.bias, 2, 1), downsampling.norm
    )
    assert downsampling.proj.weight.shape == (24, 12, 3, 3)
    assert expected.shape == (2, 24, -(-height // 2), -(-width // 2))
    expected = expected.permute(0, 2, 3, 1).reshape(2, -1, 24)
    torch.testing.assert_close(downsampling(tokens, height, width), expected, atol=1e-4, rtol=1e-4)


def test_all_stages_but_the_last_are_followed_by_a_convolution():
    model = make_coswin()
    kinds = [type(stage.downsample) for stage in model.layers]
    assert kinds == [ConvDownsampling] * 3 + [type(None)] and type(model.patch_embed) is ConvEmbedding


def test_features_of_an_image_that_no_window_divides_have_the_sizes_of_a_pyramid():
    features = make_coswin()(torch.randn(1, 3, 96, 160))
    sizes = {name: tuple(feature.shape) for name, feature in features.items()}
    assert sizes == {"p1": (1, 24, 12, 20), "p2": (1, 48, 6, 10), "p3": (1, 96, 3, 5)}


@pytest.mark.parametrize("kind", [CoSwin, FreezableSwin])
@pytest.mark.parametrize(("freeze_at", "frozen_layers"), [(-1, []), (0, []), (2, [0]), (3, [0, 1])])
def test_frozen_stages_do_not_train_and_stay_in_eval_mode(kind, freeze_at, frozen_layers):
    model = make_coswin(kind, frozen_stages=freeze_at).train()
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any(name.startswith("patch_embed.") for name in trains) is (freeze_at < 0)
    assert model.patch_embed.training is (freeze_at < 0)
    for index, stage in enumerate(model.layers):
        assert stage.training is (index not in frozen_layers)
        assert any(name.startswith(f"layers.{index}.") for name in trains) is (index not in frozen_layers)


@pytest.mark.parametrize("kind", [CoSwin, FreezableSwin])
@pytest.mark.parametrize("freeze_at", [-1, 0, 2])
def test_recomputed_activations_change_no_gradient(kind, freeze_at):
    model = make_coswin(kind, frozen_stages=freeze_at, drop_path_rate=0.0).train()
    recomputing = make_coswin(kind, frozen_stages=freeze_at, drop_path_rate=0.0, use_checkpoint=True).train()
    recomputing.load_state_dict(model.state_dict())
    image = torch.randn(1, 3, 32, 32)
    for one in (model, recomputing):
        sum(feature.square().sum() for feature in one(image).values()).backward()
    for (name, ours), (_, plain) in zip(recomputing.named_parameters(), model.named_parameters()):
        assert (ours.grad is None) == (plain.grad is None), name
        if plain.grad is not None:
            torch.testing.assert_close(ours.grad, plain.grad, msg=name)


def test_config_builds_it_under_the_pyramid_with_the_keys_of_swin(tiny_cfg):
    tiny_cfg.MODEL.BACKBONE.NAME, tiny_cfg.MODEL.BACKBONE.FREEZE_AT = "build_glipv2_coswin_fpn_backbone", 1
    tiny_cfg.MODEL.SWIN.WINDOW_SIZE = 4
    backbone = build_backbone(tiny_cfg, ShapeSpec(channels=3)).eval()
    swin = backbone.bottom_up
    assert isinstance(swin, CoSwin) and swin.frozen_stages == 0
    assert swin.patch_embed.proj.out_channels == 24
    assert [stage.blocks[0].attn.num_heads for stage in swin.layers] == [2, 2, 4, 4]
    assert {stage.window_size for stage in swin.layers} == {4}
    levels = backbone(torch.randn(1, 3, 64, 96))
    assert {name: tuple(level.shape[1:]) for name, level in levels.items()} == {
        "p3": (32, 8, 12),
        "p4": (32, 4, 6),
        "p5": (32, 2, 3),
        "p6": (32, 1, 2),
        "p7": (32, 1, 1),
    }


def test_a_copy_gives_the_same_features():
    model = make_coswin()
    image = torch.randn(1, 3, 32, 64)
    for name, feature in copy.deepcopy(model)(image).items():
        assert torch.equal(feature, model(image)[name])
