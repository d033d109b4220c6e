import numpy as np
import pytest
import torch
from detectron2.modeling.backbone.swin import SwinTransformer
from transformers import CLIPConfig, CLIPModel

from glipv2_d2.checkpoint.clip_conversion import convert_clip_state_dict, is_clip_state_dict
from glipv2_d2.modeling.text_encoder.clip import CLIPTextEncoder
from glipv2_d2.tensor_files import CheckpointError

TEXT = {"vocab_size": 60, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 32}
SIZES = {"embed_dim": 12, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 4)}
COMPARISON = "comparison of whole images and texts"


@pytest.fixture(scope="module")
def text():
    torch.manual_seed(0)
    return CLIPTextEncoder(**TEXT, max_positions=10).state_dict()


@pytest.fixture(scope="module")
def swin():
    """An ImageNet Swin: no norms on the outputs of its stages."""
    state = SwinTransformer(**SIZES, window_size=7, drop_path_rate=0.0, out_indices=(1, 2, 3)).state_dict()
    return {name: tensor for name, tensor in state.items() if not name.startswith("norm")}


@pytest.fixture
def unicl(text, swin):
    extras = {"logit_scale": torch.ones(()), "text_projection": torch.ones(16, 8), "image_projection": torch.ones(2)}
    extras |= {"image_encoder.norm.weight": torch.ones(96), "image_encoder.layers.0.blocks.1.attn_mask": torch.ones(1)}
    texts = {f"text_encoder.{name}": tensor for name, tensor in text.items()}
    return texts | {f"image_encoder.{name}": tensor for name, tensor in swin.items()} | extras


def our_names(text, swin):
    return {f"text_encoder.{n}": t for n, t in text.items()} | {f"backbone.bottom_up.{n}": t for n, t in swin.items()}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("beginning", ["text_encoder.", "text.", "module.lang_encoder."])
def test_both_towers_of_unicl_are_used(text, swin, unicl, beginning):
    unicl = {name.replace("text_encoder.", beginning): tensor for name, tensor in unicl.items()}
    assert is_clip_state_dict(unicl)
    converted, report = convert_clip_state_dict(unicl)
    assert_same(converted, our_names(text, swin))
    assert report.unknown == () and set(report.used.values()) == converted.keys()
    assert report.used[f"{beginning}ln_final.bias"] == "text_encoder.ln_final.bias"
    assert report.ignored == {
        "logit_scale": COMPARISON,
        "text_projection": COMPARISON,
        "image_projection": COMPARISON,
        "image_encoder.norm.weight": "norm in front of the ImageNet classifier",
        "image_encoder.layers.0.blocks.1.attn_mask": "computed from the size of the image",
    }


def test_of_clip_the_text_is_used_and_another_image_tower_is_not(text):
    clip = {name.replace("resblocks.", "transformer.resblocks."): tensor for name, tensor in text.items()}
    others = ["visual.conv1.weight", "visual.transformer.resblocks.0.ln_1.weight", "visual.positional_embedding"]
    clip |= {name: torch.ones(2) for name in [*others, "novelty", "logit_scale", "text_projection"]}
    converted, report = convert_clip_state_dict(clip)
    assert_same(converted, {f"text_encoder.{name}": tensor for name, tensor in text.items()})
    assert report.used["transformer.resblocks.1.attn.in_proj_bias"] == "text_encoder.resblocks.1.attn.in_proj_bias"
    assert {report.ignored[name] for name in others} == {"image tower that is not a Swin Transformer"}
    assert report.unknown == ("novelty",)


def test_clip_of_the_transformers_library_joins_query_key_and_value():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**sizes, "vocab_size": 60, "max_position_embeddings": 10, "eos_token_id": 59},
        vision_config={**sizes, "image_size": 32, "patch_size": 16},
    )
    theirs = CLIPModel(config).state_dict() | {"text_model.embeddings.position_ids": torch.arange(10)[None]}
    assert is_clip_state_dict(theirs)
    converted, report = convert_clip_state_dict(theirs)
    layer = "text_model.encoder.layers.0."
    joined = torch.cat([theirs[f"{layer}self_attn.{part}_proj.weight"] for part in ("q", "k", "v")])
    assert torch.equal(converted["text_encoder.resblocks.0.attn.in_proj_weight"], joined)
    assert torch.equal(converted["text_encoder.ln_final.bias"], theirs["text_model.final_layer_norm.bias"])
    expected = CLIPTextEncoder(**{**TEXT, "num_layers": 1}, max_positions=10).state_dict()
    assert {n.removeprefix("text_encoder."): t.shape for n, t in converted.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
    for part in ("q", "k", "v"):
        for kind in ("weight", "bias"):
            name = f"text_encoder.resblocks.0.attn.in_proj_{kind}"
            assert report.used[f"{layer}self_attn.{part}_proj.{kind}"] == name
    assert report.used.keys() == {name for name in theirs if name.startswith("text_model.")} - {
        "text_model.embeddings.position_ids"
    }
    assert report.unknown == () and "vision_model.encoder.layers.0.self_attn.q_proj.weight" in report.ignored


def test_positions_are_resized_to_those_of_the_model(text, unicl, swin):
    expected = our_names(text | {"positional_embedding": torch.empty(24, 16)}, swin)
    converted, report = convert_clip_state_dict(unicl, expected=expected)
    found = converted["text_encoder.positional_embedding"]
    # The centre of cell k of 24 lies at (k + 1/2) * 10/24 - 1/2 of 10; past the ends the table stays level.
    places = (np.arange(24) + 0.5) * 10 / 24 - 0.5
    table = text["positional_embedding"].numpy()
    columns = [np.interp(places, np.arange(10), table[:, column]) for column in range(16)]
    np.testing.assert_allclose(found.numpy(), np.stack(columns, axis=1), atol=1e-6)
    assert report.missing == ()
    same, _ = convert_clip_state_dict(unicl, expected=our_names(text, swin))
    assert torch.equal(same["text_encoder.positional_embedding"], text["positional_embedding"])


def test_a_part_for_which_the_model_has_no_place_is_left_out(text, swin, unicl):
    no_text = {"text_encoder.bert.x": torch.ones(1)} | our_names({}, swin)
    converted, report = convert_clip_state_dict(unicl, expected=no_text)
    assert_same(converted, our_names({}, swin))
    assert report.ignored["text_encoder.ln_final.bias"] == "the model has a text encoder of another type"
    assert report.missing == ("text_encoder.bert.x",)
    no_swin = our_names(text, {}) | {"backbone.bottom_up.body.x": torch.ones(1)}
    converted, report = convert_clip_state_dict(unicl, expected=no_swin)
    assert_same(converted, our_names(text, {}))
    assert report.ignored["image_encoder.patch_embed.proj.bias"] == "the model has another backbone"
    with pytest.raises(CheckpointError) as caught:
        convert_clip_state_dict(unicl, expected={"head.bias0": torch.ones(1)}, source="x.pth")
    assert str(caught.value) == (
        "x.pth: expected weights for the model, found an image-text model, but the model has a text encoder of another "
        "type and the model has another backbone"
    )


def test_what_was_converted_converts_to_itself(text, swin):
    converted, report = convert_clip_state_dict(our_names(text, swin))
    assert_same(converted, our_names(text, swin))
    assert report.ignored == {} and report.unknown == ()


def test_positions_that_are_no_table_are_refused(text, swin, unicl):
    unicl["text_encoder.positional_embedding"] = torch.ones(10)
    with pytest.raises(CheckpointError) as caught:
        convert_clip_state_dict(unicl, expected=our_names(text, swin), source="x.pth")
    assert str(caught.value) == "x.pth: text_encoder.positional_embedding: expected a table, found shape (10,)"


@pytest.mark.parametrize(
    "names",
    [
        {"visual.positional_embedding", "visual.conv1.weight"},
        {"vision_model.embeddings.position_embedding.weight"},
        {"fusion_tower.blocks.0.x", "text_encoder.positional_embedding", "text_encoder.token_embedding.weight"},
        {"head.bias0"},
    ],
)
def test_other_weights_are_no_image_text_model(names):
    assert not is_clip_state_dict(names)
