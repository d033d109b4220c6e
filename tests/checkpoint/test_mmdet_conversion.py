import gzip
import re

import pytest
import torch
import torch.nn.functional as F
from conftest import ASSETS
from detectron2.modeling.backbone.swin import PatchMerging
from parity_weights import official_state_dict

from glipv2_d2 import convert_glip_state_dict
from glipv2_d2.checkpoint.mmdet_conversion import convert_mmdet_state_dict, is_mmdet_state_dict, official_name
from glipv2_d2.tensor_files import CheckpointError

# What mmdetection's converter does with an official name, one replacement after the other.
FORWARD = [
    (r"^backbone\.body\.patch_embed\.proj\.", "backbone.patch_embed.projection."),
    (r"^backbone\.body\.layers\.", "backbone.stages."),
    (r"^backbone\.body\.", "backbone."),
    (r"(blocks\.\d+)\.mlp\.fc1\.", r"\1.ffn.layers.0.0."),
    (r"(blocks\.\d+)\.mlp\.fc2\.", r"\1.ffn.layers.1."),
    (r"(blocks\.\d+)\.attn\.", r"\1.attn.w_msa."),
    (r"^backbone\.fpn\.fpn_inner2\.", "neck.lateral_convs.0.conv."),
    (r"^backbone\.fpn\.fpn_inner3\.", "neck.lateral_convs.1.conv."),
    (r"^backbone\.fpn\.fpn_inner4\.", "neck.lateral_convs.2.conv."),
    (r"^backbone\.fpn\.fpn_layer2\.", "neck.fpn_convs.0.conv."),
    (r"^backbone\.fpn\.fpn_layer3\.", "neck.fpn_convs.1.conv."),
    (r"^backbone\.fpn\.fpn_layer4\.", "neck.fpn_convs.2.conv."),
    (r"^backbone\.fpn\.top_blocks\.p6\.", "neck.fpn_convs.3.conv."),
    (r"^backbone\.fpn\.top_blocks\.p7\.", "neck.fpn_convs.4.conv."),
    (r"^language_backbone\.", "language_model.language_backbone."),
    (r"^rpn\.", "bbox_head."),
    (r"\.DyConv\.", ".dyconvs."),
    (r"\.AttnConv\.", ".attnconv."),
]
LEFT_OUT = ("anchor_generator", "resizer", "cls_logits")


def mmdet_name(name):
    for pattern, replacement in FORWARD:
        # As there, the blocks of the Swin alone are renamed: the tower has its own layers called "attn".
        if not pattern.startswith(r"(blocks") or name.startswith("backbone.stages."):
            name = re.sub(pattern, replacement, name)
    return name


def unfolded(tensor):
    """Inputs of a patch merging in the order of ``nn.Unfold``, number by number."""
    channels = tensor.shape[-1] // 4
    result = torch.empty_like(tensor)
    for channel in range(channels):
        for row in range(2):
            for column in range(2):
                result[..., channel * 4 + 2 * row + column] = tensor[..., (row + 2 * column) * channels + channel]
    return result


def as_mmdet(official):
    kept = {name: tensor for name, tensor in official.items() if not any(word in name for word in LEFT_OUT)}
    return {
        mmdet_name(name): unfolded(tensor) if ".downsample." in name and not tensor.is_meta else tensor
        for name, tensor in kept.items()
    }


def released_tensors(layout):
    text = gzip.decompress((ASSETS / "golden" / f"state_dict_{layout}.tsv.gz").read_bytes()).decode()
    rows = [line.split("\t") for line in text.splitlines()]
    shapes = {row[0]: tuple(int(size) for size in re.findall(r"\d+", row[1])) for row in rows}
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize("layout", ["A", "T", "L"])
def test_every_name_of_the_released_models_comes_back(layout):
    official = released_tensors(layout)
    theirs = as_mmdet(official)
    assert is_mmdet_state_dict(theirs) and not is_mmdet_state_dict(official)
    expected, _ = convert_glip_state_dict(official)
    converted, report = convert_mmdet_state_dict(theirs, expected=expected)
    assert converted.keys() == expected.keys()
    assert all(converted[name].shape == expected[name].shape for name in expected)
    assert report.missing == report.unknown == () and report.used.keys() | report.ignored.keys() == theirs.keys()
    assert report.source.startswith("mmdetection's GLIP, ")


@pytest.mark.parametrize(
    ("theirs", "official"),
    [
        ("backbone.patch_embed.projection.weight", "backbone.body.patch_embed.proj.weight"),
        ("backbone.patch_embed.norm.bias", "backbone.body.patch_embed.norm.bias"),
        ("backbone.norm3.weight", "backbone.body.norm3.weight"),
        ("backbone.stages.2.blocks.5.ffn.layers.0.0.bias", "backbone.body.layers.2.blocks.5.mlp.fc1.bias"),
        ("backbone.stages.2.blocks.5.ffn.layers.1.weight", "backbone.body.layers.2.blocks.5.mlp.fc2.weight"),
        (
            "backbone.stages.0.blocks.1.attn.w_msa.relative_position_bias_table",
            "backbone.body.layers.0.blocks.1.attn.relative_position_bias_table",
        ),
        ("neck.fpn_convs.4.conv.bias", "backbone.fpn.top_blocks.p7.bias"),
        ("bbox_head.head.dyhead_tower.2.dyconvs.1.bn.bias", "rpn.head.dyhead_tower.2.DyConv.1.bn.bias"),
        ("bbox_head.head.dyhead_tower.2.attnconv.1.bias", "rpn.head.dyhead_tower.2.AttnConv.1.bias"),
        ("bbox_head.head.scales.4.scale", "rpn.head.scales.4.scale"),
        (
            "language_model.language_backbone.body.model.encoder.layer.1.output.dense.bias",
            "language_backbone.body.model.encoder.layer.1.output.dense.bias",
        ),
        ("bbox_head.loss_cls.weight", None),
    ],
)
def test_a_name_means_what_mmdetection_means_by_it(theirs, official):
    assert official_name(theirs) == official


def test_the_weights_are_those_of_the_official_file():
    official = official_state_dict()
    expected, _ = convert_glip_state_dict(official)
    converted, _ = convert_mmdet_state_dict(as_mmdet(official))
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)
    merging = "backbone.bottom_up.layers.0.downsample.reduction.weight"
    assert not torch.equal(expected[merging], as_mmdet(official)["backbone.stages.0.downsample.reduction.weight"])


def test_patch_merging_computes_what_unfolding_does():
    torch.manual_seed(0)
    merging = "backbone.stages.0.downsample"
    theirs = as_mmdet(official_state_dict())
    channels = len(theirs[f"{merging}.norm.weight"]) // 4
    theirs[f"{merging}.norm.weight"], theirs[f"{merging}.norm.bias"] = torch.randn(2, 4 * channels)
    theirs[f"{merging}.reduction.weight"] = torch.randn(2 * channels, 4 * channels)
    image = torch.randn(1, channels, 6, 4)
    columns = F.unfold(image, kernel_size=2, stride=2).transpose(1, 2)  # (1, 6, 4C)
    normed = F.layer_norm(columns, (4 * channels,), theirs[f"{merging}.norm.weight"], theirs[f"{merging}.norm.bias"])
    expected = normed @ theirs[f"{merging}.reduction.weight"].T
    ours = PatchMerging(channels)
    converted, _ = convert_mmdet_state_dict(theirs)
    beginning = "backbone.bottom_up.layers.0.downsample."
    ours.load_state_dict({n.removeprefix(beginning): t for n, t in converted.items() if n.startswith(beginning)})
    with torch.no_grad():
        torch.testing.assert_close(ours(image.flatten(2).transpose(1, 2), 6, 4), expected, rtol=1e-5, atol=1e-5)


def test_names_outside_of_the_rules_are_unknown_by_their_own_name():
    theirs = as_mmdet(released_tensors("A"))
    theirs |= {"data_preprocessor.mean": torch.ones(3), "bbox_head.head.novelty": torch.ones(1)}
    _, report = convert_mmdet_state_dict(theirs)
    assert report.unknown == ("data_preprocessor.mean", "bbox_head.head.novelty")


def test_pooled_sentence_is_ignored_by_its_own_name():
    pooler = "language_model.language_backbone.body.model.pooler.dense.weight"
    _, report = convert_mmdet_state_dict(as_mmdet(released_tensors("A")) | {pooler: torch.ones(1)})
    assert report.ignored[pooler] == "pooled sentence that nothing reads"


@pytest.mark.parametrize("shape", [(4, 6), ()])
def test_a_merging_of_other_than_four_patches_is_refused(shape):
    name = "backbone.stages.0.downsample.reduction.weight"
    with pytest.raises(CheckpointError) as caught:
        convert_mmdet_state_dict(as_mmdet(released_tensors("A")) | {name: torch.ones(shape)}, source="x.pth")
    message = str(caught.value)
    assert message == f"x.pth: {name}: expected inputs of four patches, found shape {shape}"
