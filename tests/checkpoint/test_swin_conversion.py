import pytest
import timm
import torch
from detectron2.modeling.backbone.swin import SwinTransformer

from glipv2_d2.checkpoint.swin_conversion import convert_swin_state_dict, is_swin_state_dict

SIZES = {"embed_dim": 12, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 4)}


@pytest.fixture
def bottom_up():
    torch.manual_seed(0)
    return SwinTransformer(**SIZES, window_size=7, drop_path_rate=0.0, out_indices=(1, 2, 3)).eval()


def test_weights_of_the_authors_keep_their_names_below_the_backbone(bottom_up):
    official = {name: tensor for name, tensor in bottom_up.state_dict().items() if name[:4] != "norm"}
    extra = ["norm.weight", "norm.bias", "head.weight", "head.bias", "layers.0.blocks.1.attn_mask"]
    assert is_swin_state_dict(official)
    converted, report = convert_swin_state_dict(official | {name: torch.ones(1) for name in extra})
    assert converted == {f"backbone.bottom_up.{name}": tensor for name, tensor in official.items()}
    assert list(report.ignored) == extra and report.unknown == ()


@torch.no_grad()
def test_weights_of_timm_give_the_features_that_timm_computes(bottom_up):
    torch.manual_seed(1)
    # Sides of two windows or more, and whole ones, in every stage: there, timm and the authors shift and pad alike.
    name, sizes = "swin_tiny_patch4_window7_224", {**SIZES, "img_size": 448}
    theirs = timm.create_model(name, **sizes, features_only=True).eval()
    weights = {key.replace("layers_", "layers."): tensor for key, tensor in theirs.state_dict().items()}
    classifier = timm.create_model(name, **sizes).state_dict()
    assert weights.keys() == {key for key in classifier if not key.startswith(("norm.", "head."))}
    for key, tensor in weights.items():
        tensor.copy_(torch.randn_like(tensor) * 0.2 + key.endswith("norm.weight"))
    converted, report = convert_swin_state_dict(weights)
    assert report.unknown == ()
    converted = {key.removeprefix("backbone.bottom_up."): tensor for key, tensor in converted.items()}
    missing, unexpected = bottom_up.load_state_dict(converted, strict=False)
    assert not unexpected
    assert all(key.startswith("norm") or key.endswith("relative_position_index") for key in missing)
    # timm has no norms on its features.
    bottom_up.norm1 = bottom_up.norm2 = bottom_up.norm3 = torch.nn.Identity()
    image = torch.randn(1, 3, 448, 448)
    for ours, expected in zip(bottom_up(image).values(), theirs(image)[1:]):
        torch.testing.assert_close(ours.permute(0, 2, 3, 1), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
