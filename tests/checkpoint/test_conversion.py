import pytest
import torch
from conftest import make_tiny_cfg

from glipv2_d2.checkpoint.checkpointer import GLIPv2Checkpointer
from glipv2_d2.checkpoint.conversion import OWN_WEIGHTS, find_kind
from glipv2_d2.modeling import build_model
from glipv2_d2.tensor_files import write_tensors

SWIN = ["patch_embed.proj.weight", "layers.0.blocks.0.attn.qkv.weight"]
CLIP = ["text.positional_embedding", "text.token_embedding.weight"]
OWN = ["backbone.bottom_up.patch_embed.proj.weight", "fusion_tower.blocks.0.dyconv.offset.bias"]


def clip_cfg():
    cfg = make_tiny_cfg()
    cfg.MODEL.TEXT_ENCODER.NAME = "CLIPTextEncoder"
    cfg.MODEL.TEXT_ENCODER.MAX_POSITIONS = 256
    return cfg


@pytest.mark.parametrize(
    ("names", "is_own", "fills_detector"),
    [
        (["rpn.head.bias0"], False, True),
        (["bbox_head.head.dyhead_tower.0.offset.bias"], False, True),
        (SWIN, False, False),
        (CLIP, False, False),
        (["text_encoder.positional_embedding", "text_encoder.token_embedding.weight", *OWN], True, True),
        (OWN, True, True),
        (["mask_head.conv.weight"], True, True),
    ],
)
def test_the_kind_is_read_from_the_names(names, is_own, fills_detector):
    kind = find_kind(dict.fromkeys(names))
    assert (kind is OWN_WEIGHTS) is is_own and kind.fills_detector is fills_detector


def test_own_weights_keep_their_names_and_lose_heads_that_the_model_lacks():
    tensors = {name: torch.ones(1) for name in [*OWN, "mlm_head.dense.bias", "contrastive_head.log_scale", "odd"]}
    converted, report = OWN_WEIGHTS.convert(tensors, expected=None)
    assert converted == tensors and report.used == {name: name for name in tensors}
    converted, report = OWN_WEIGHTS.convert(tensors, expected={OWN[0]: torch.ones(1), "head.bias0": torch.ones(1)})
    assert converted.keys() == {*OWN, "odd"} and report.missing == ("head.bias0",)
    assert report.ignored.keys() == {"mlm_head.dense.bias", "contrastive_head.log_scale"}
    # A head that the model has is filled.
    expected = {"mlm_head.dense.bias": torch.ones(1)}
    assert "mlm_head.dense.bias" in OWN_WEIGHTS.convert(tensors, expected=expected)[0]


def test_a_unicl_file_as_weights_fills_image_and_text_of_a_model(tmp_path):
    torch.manual_seed(0)
    model = build_model(clip_cfg())
    unicl = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("text_encoder."):
            unicl[name.replace("text_encoder.", "text.")] = torch.randn_like(tensor)
        elif name.startswith("backbone.bottom_up.") and ".norm" not in name.removeprefix("backbone.bottom_up"):
            unicl[name.replace("backbone.bottom_up.", "image_encoder.")] = tensor + 1
    # Of 77 rows, as CLIP has them: all alike, so that resizing changes nothing.
    row = torch.randn(48)
    unicl["text.positional_embedding"] = row.expand(77, 48).clone()
    write_tensors(tmp_path / "unicl.safetensors", unicl)
    assert GLIPv2Checkpointer(model).load(str(tmp_path / "unicl.safetensors")) == {}
    state = model.state_dict()
    for name, tensor in unicl.items():
        ours = name.replace("text.", "text_encoder.", 1).replace("image_encoder.", "backbone.bottom_up.")
        if name == "text.positional_embedding":
            torch.testing.assert_close(state[ours], row.expand(256, 48))
        else:
            assert torch.equal(state[ours], tensor), name
