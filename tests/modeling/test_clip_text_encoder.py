"""The CLIP-type text encoder: values, loading, config, and the text layers of its tower.

``test_text_encoders.py`` has what both kinds share.
"""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from slow_clip import clip_text_encoder as slow_clip_text_encoder
from text_encoder_cases import CLIP_CONFIG, SIZES, Payload, clip_folder, scramble, some_tokens
from text_encoder_cases import small_clip as small_encoder
from timm.layers import DropPath
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel

from glipv2_d2.layers.language_layer import LanguageLayer
from glipv2_d2.layers.pre_norm_layer import PreNormLayer
from glipv2_d2.modeling.fusion_tower import FusionTower
from glipv2_d2.modeling.text_encoder import CLIPTextEncoder, build, build_text_encoder
from glipv2_d2.modeling.text_encoder.clip_weights import resize_positions
from glipv2_d2.structures import TokenBatch


def assert_equals_slow(encoder, tokens):
    weights = {name: tensor.double().numpy() for name, tensor in encoder.state_dict().items()}
    with torch.no_grad():
        hidden = encoder(tokens).hidden
    for row, (ids, mask) in enumerate(zip(tokens.input_ids, tokens.mask)):
        expected = slow_clip_text_encoder(ids.numpy(), mask.numpy(), weights, len(encoder.resblocks), 3)
        np.testing.assert_allclose(hidden[row], expected, rtol=1e-4, atol=1e-4)


def library_tensors(encoder, start):
    """The tensors of an encoder by the names that the transformers library writes to files, by hand."""
    own = encoder.state_dict()
    tensors = {
        "embeddings.token_embedding.weight": own["token_embedding.weight"],
        "embeddings.position_embedding.weight": own["positional_embedding"],
        "final_layer_norm.weight": own["ln_final.weight"],
        "final_layer_norm.bias": own["ln_final.bias"],
    }
    for layer in range(len(encoder.resblocks)):
        there, here = f"encoder.layers.{layer}", f"resblocks.{layer}"
        for kind in ("weight", "bias"):
            joined = own[f"{here}.attn.in_proj_{kind}"].chunk(3)
            for one, tensor in zip(("q", "k", "v"), joined):
                tensors[f"{there}.self_attn.{one}_proj.{kind}"] = tensor.clone()
            tensors[f"{there}.self_attn.out_proj.{kind}"] = own[f"{here}.attn.out_proj.{kind}"]
            tensors[f"{there}.layer_norm1.{kind}"] = own[f"{here}.ln_1.{kind}"]
            tensors[f"{there}.layer_norm2.{kind}"] = own[f"{here}.ln_2.{kind}"]
            tensors[f"{there}.mlp.fc1.{kind}"] = own[f"{here}.mlp.c_fc.{kind}"]
            tensors[f"{there}.mlp.fc2.{kind}"] = own[f"{here}.mlp.c_proj.{kind}"]
    return {start + name: tensor for name, tensor in tensors.items()}


def file_tensors(encoder, start="text.", inner=""):
    """The tensors of an encoder by the names of UniCL (start "text.") or CLIP (inner "transformer.")."""
    return {
        start + (inner if name.startswith("resblocks.") else "") + name: tensor
        for name, tensor in encoder.state_dict().items()
    }


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_features_equal_the_slow_formulation():
    assert_equals_slow(small_encoder().eval(), some_tokens(9, 4))


def test_last_norm_uses_the_small_epsilon():
    # Features near 1e-5: an epsilon of 1e-5 would swallow their variance.
    encoder = small_encoder(num_layers=0).eval()
    with torch.no_grad():
        encoder.token_embedding.weight.mul_(1e-5)
        encoder.positional_embedding.mul_(1e-5)
    assert_equals_slow(encoder, some_tokens(5))


def test_all_tokens_of_all_layers_are_those_of_the_library_without_its_causal_mask(tmp_path):
    model = clip_folder(tmp_path, num_hidden_layers=3)
    encoder = CLIPTextEncoder(weights=str(tmp_path), max_positions=16).eval()
    tokens = some_tokens(7, 7)
    # Some versions of the library wrap the transformer once more.
    transformer = getattr(model, "text_model", model)
    with torch.no_grad():
        hidden = transformer.embeddings(input_ids=tokens.input_ids)
        for layer in transformer.encoder.layers:
            hidden = layer(hidden, attention_mask=None)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        expected = transformer.final_layer_norm(hidden)
        torch.testing.assert_close(encoder(tokens).hidden, expected, rtol=1e-4, atol=1e-4)


def test_ids_in_the_padding_change_nothing():
    encoder = small_encoder().eval()
    tokens = some_tokens(4, 9)
    other = TokenBatch(tokens.input_ids.masked_fill(~tokens.mask, 7), tokens.mask)
    torch.testing.assert_close(encoder(other).embedded, encoder(tokens).embedded, rtol=1e-5, atol=1e-6)


# --- training ---------------------------------------------------------------------------------------------------------


def test_paths_are_dropped_more_often_from_layer_to_layer():
    encoder = small_encoder(num_layers=4, dropout=0.3)
    rates = [layer.drop_path.drop_prob for layer in encoder.resblocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert encoder.dropout == 0.3
    assert [layer.drop_path.drop_prob for layer in small_encoder(num_layers=1, dropout=0.3).resblocks] == [0.0]


# --- construction and loading -----------------------------------------------------------------------------------------


def test_state_holds_parameters_by_the_names_of_clip_and_nothing_else():
    encoder = small_encoder()
    assert set(encoder.state_dict()) == {name for name, _ in encoder.named_parameters()}
    outside = {name for name in encoder.state_dict() if not name.startswith(("resblocks.0.", "resblocks.1."))}
    assert outside == {"token_embedding.weight", "positional_embedding", "ln_final.weight", "ln_final.bias"}
    # Twelve tensors of each layer.
    assert len(encoder.state_dict()) == 4 + 2 * 12


def test_initial_embeddings_have_a_spread_of_two_hundredths():
    torch.manual_seed(0)
    encoder = CLIPTextEncoder(**SIZES, max_positions=100)
    assert encoder.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert encoder.positional_embedding.std().item() == pytest.approx(0.02, rel=0.1)


def test_defaults_are_the_sizes_of_clip():
    with torch.device("meta"):
        encoder = CLIPTextEncoder()
    assert (encoder.vocab_size, encoder.hidden_size, encoder.num_heads) == (49408, 512, 8)
    assert (encoder.intermediate_size, encoder.max_positions, len(encoder.resblocks)) == (2048, 256, 12)
    # By hand: embeddings, positions, last norm; a layer has 12 D^2 + 13 D.
    expected = 49408 * 512 + 256 * 512 + 2 * 512 + 12 * (12 * 512**2 + 13 * 512)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == expected


def test_positions_are_resized_bilinearly():
    # Three rows to six: row i reads place (i + 0.5) / 2 - 0.5 of the table, held at its ends.
    table = torch.tensor([[0.0, 10.0], [4.0, 20.0], [12.0, 40.0]])
    expected = [[0, 10], [1, 12.5], [3, 17.5], [6, 25], [10, 35], [12, 40]]
    assert resize_positions(table, 6).tolist() == expected
    assert torch.equal(resize_positions(table, 3), table)
    assert resize_positions(table.half(), 6).dtype == torch.float32


def test_pretrained_folder_brings_weights_and_sizes_but_keeps_the_positions_asked_for(tmp_path):
    model = clip_folder(tmp_path)
    encoder = CLIPTextEncoder(weights=str(tmp_path), max_positions=40, dropout=0.3)
    assert (encoder.vocab_size, encoder.hidden_size, encoder.num_heads, encoder.intermediate_size) == (60, 12, 3, 20)
    assert (encoder.max_positions, encoder.dropout, len(encoder.resblocks)) == (40, 0.3, 2)
    assert {module.drop_prob for module in encoder.modules() if isinstance(module, DropPath)} == {0.0, 0.3}
    library = library_tensors(encoder, "")
    state = {name.removeprefix("text_model."): tensor for name, tensor in model.state_dict().items()}
    positions = library.pop("embeddings.position_embedding.weight")
    assert torch.equal(positions, resize_positions(state["embeddings.position_embedding.weight"], 40))
    for name, tensor in library.items():
        assert torch.equal(tensor, state[name]), name
    assert_equals_slow(encoder.eval(), some_tokens(30, 5))


def test_text_model_of_a_whole_clip_is_read(tmp_path):
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision |= {"image_size": 8, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=CLIP_CONFIG, vision_config=vision, projection_dim=8))
    scramble(model)
    model.save_pretrained(tmp_path)
    encoder = CLIPTextEncoder(weights=str(tmp_path), max_positions=16)
    state = model.text_model.state_dict()
    for name, tensor in library_tensors(encoder, "").items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize(
    ("start", "inner", "wrap"),
    [
        ("text.", "", lambda tensors: {"model": tensors}),
        ("lang_encoder.", "", lambda tensors: tensors),
        ("", "transformer.", lambda tensors: {**tensors, "visual.positional_embedding": torch.zeros(3, 3)}),
        ("module.text.", "transformer.", lambda tensors: {**tensors, "module.text.text_projection": torch.zeros(3)}),
    ],
)
def test_file_with_the_names_of_unicl_or_clip_is_read(tmp_path, start, inner, wrap):
    expected = small_encoder()
    torch.save(wrap(file_tensors(expected, start, inner)), tmp_path / "weights.pth")
    encoder = CLIPTextEncoder(weights=str(tmp_path / "weights.pth"), num_heads=3, max_positions=16)
    assert encoder.num_heads == 3
    for name, tensor in expected.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], tensor), name


@pytest.mark.parametrize("start", ["", "text_model."])
def test_safetensors_file_with_the_names_of_the_library_is_read(tmp_path, start):
    expected = small_encoder()
    save_file(library_tensors(expected, start), tmp_path / "model.safetensors")
    encoder = CLIPTextEncoder(weights=str(tmp_path / "model.safetensors"), num_heads=3, max_positions=16)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], tensor), name


def test_weights_stored_in_half_precision_are_used_in_single(tmp_path):
    torch.save({name: tensor.half() for name, tensor in file_tensors(small_encoder()).items()}, tmp_path / "half.pth")
    encoder = CLIPTextEncoder(weights=str(tmp_path / "half.pth"), num_heads=3)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}


def assert_refused(error, path, match, **changes):
    with pytest.raises(error, match=match) as caught:
        CLIPTextEncoder(weights=str(path), **{"num_heads": 3, **changes})
    assert str(caught.value).startswith("MODEL.TEXT_ENCODER.WEIGHTS: ") and "\n" not in str(caught.value)


def test_code_in_a_weights_file_is_not_run(tmp_path):
    torch.save({"weight": Payload(tmp_path / "executed")}, tmp_path / "weights.pth")
    assert_refused(ValueError, tmp_path / "weights.pth", "expected only tensors and plain values, found _?io.open")
    assert not (tmp_path / "executed").exists()


def test_truncated_weights_file_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(library_tensors(small_encoder(), ""), path)
    path.write_bytes(path.read_bytes()[:-100])
    assert_refused(ValueError, path, "expected a whole safetensors file")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda tensors: tensors.pop("text.ln_final.bias"), "lacks 1 tensors of its encoder, as 'ln_final.bias'"),
        (lambda tensors: tensors.pop("text.resblocks.0.mlp.c_fc.bias"), "lacks 1 tensors .*, as 'resblocks.0.mlp.c_fc"),
        (lambda tensors: tensors.pop("text.token_embedding.weight"), "expected names of a CLIP-type text transformer"),
        (
            lambda tensors: tensors.update({"text.ln_final.bias": torch.zeros(13)}),
            r"ln_final.bias: expected shape \(12,\), found \(13,\)",
        ),
        (
            lambda tensors: tensors.update({"text.positional_embedding": torch.zeros(16, 11)}),
            r"positional_embedding: expected shape \(256, 12\), found \(256, 11\)",
        ),
        (
            lambda tensors: tensors.update({"text.positional_embedding": torch.zeros(16)}),
            r"positional_embedding: expected a table, found shape \(16,\)",
        ),
        (
            # A third layer, of which only one tensor and a far number are known.
            lambda tensors: tensors.update({"text.resblocks.99999999.ln_1.bias": torch.zeros(12)}),
            "lacks 12 tensors of its encoder, as 'resblocks.2.",
        ),
        (
            lambda tensors: [tensors.pop(name) for name in list(tensors) if ".resblocks." in name],
            "lacks 12 tensors of its encoder, as 'resblocks.0.",
        ),
    ],
)
def test_file_that_does_not_fit_is_refused_by_name(tmp_path, change, match):
    tensors = file_tensors(small_encoder())
    change(tensors)
    torch.save(tensors, tmp_path / "weights.pth")
    assert_refused(ValueError, tmp_path / "weights.pth", match)


def test_library_file_that_lacks_one_of_query_key_and_value_is_refused(tmp_path):
    tensors = library_tensors(small_encoder(), "text_model.")
    tensors.pop("text_model.encoder.layers.1.self_attn.k_proj.bias")
    save_file(tensors, tmp_path / "model.safetensors")
    assert_refused(ValueError, tmp_path / "model.safetensors", "lacks 1 tensors .* 'resblocks.1.attn.in_proj_bias'")


def test_folder_with_another_activation_is_refused(tmp_path):
    clip_folder(tmp_path, hidden_act="gelu")
    assert_refused(ValueError, tmp_path, "hidden_act 'gelu', expected 'quick_gelu'")


def test_encoder_of_another_type_is_refused(tmp_path):
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 20}
    BertModel(BertConfig(vocab_size=60, **sizes)).save_pretrained(tmp_path)
    assert_refused(ValueError, tmp_path, "a bert, expected a CLIP-type encoder")


def test_address_is_no_path(tmp_path):
    assert_refused(FileNotFoundError, "https://example.invalid/clip.pth", "ip.pth")


def test_hub_names_are_fetched_only_where_that_is_allowed(monkeypatch):
    asked = []

    def refuse(path, key, allow_download):
        asked.append((path, key, allow_download))
        raise FileNotFoundError

    monkeypatch.setattr(build, "resolve_pretrained", refuse)
    for allow_download in (False, True):
        with pytest.raises(FileNotFoundError):
            CLIPTextEncoder(weights="somebody/clip", allow_download=allow_download)
    assert asked == [("somebody/clip", "MODEL.TEXT_ENCODER.WEIGHTS", allowed) for allowed in (False, True)]


def test_number_of_heads_that_does_not_fit_the_file_is_refused(tmp_path):
    torch.save(file_tensors(small_encoder()), tmp_path / "weights.pth")
    with pytest.raises(
        ValueError, match="MODEL.TEXT_ENCODER.NUM_HEADS: expected a divisor of hidden_size 12, found 8$"
    ):
        CLIPTextEncoder(weights=str(tmp_path / "weights.pth"))


# --- config -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def clip_cfg(tiny_cfg):
    tiny_cfg.MODEL.TEXT_ENCODER.NAME = "CLIPTextEncoder"
    return tiny_cfg


def test_config_decides_everything(clip_cfg):
    settings = clip_cfg.MODEL.TEXT_ENCODER
    settings.VOCAB_SIZE, settings.MAX_POSITIONS, settings.DROPOUT, settings.USE_CHECKPOINT = 30600, 300, 0.4, True
    encoder = build_text_encoder(clip_cfg)
    assert isinstance(encoder, CLIPTextEncoder)
    assert (encoder.vocab_size, encoder.max_positions, encoder.dropout) == (30600, 300, 0.4)
    assert (encoder.hidden_size, encoder.num_heads, encoder.intermediate_size) == (48, 4, 96)
    assert len(encoder.resblocks) == 2 and encoder.use_checkpoint and not encoder.freeze
    settings.FREEZE = settings.ALLOW_DOWNLOAD = True
    assert build_text_encoder(clip_cfg).freeze and CLIPTextEncoder.from_config(clip_cfg)["allow_download"]


# --- the text layers of the tower -------------------------------------------------------------------------------------


def make_tower(layer_type=None, **changes):
    kind = {} if layer_type is None else {"language_layer_type": layer_type}
    sizes = {"num_blocks": 2, "channels": 8, "num_groups": 2, "deformable": False, "fusion_embed_dim": 8}
    sizes |= {"fusion_num_heads": 2, "language_num_heads": 3, "language_intermediate_size": 20, "language_dropout": 0.2}
    return FusionTower(8, 12, **{**sizes, **kind, **changes})


def test_tower_takes_the_kind_of_text_layer_that_the_encoder_names():
    encoder = small_encoder()
    for block in make_tower(encoder.language_layer_type).blocks:
        assert type(block.language_layer) is PreNormLayer
        assert block.language_layer.attn.num_heads == 3 and block.language_layer.mlp.c_fc.out_features == 20
        assert block.language_layer.drop_path.drop_prob == 0.2
    assert all(type(block.language_layer) is LanguageLayer for block in make_tower().blocks)


def test_tower_of_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="language_layer_type: expected one of post_norm, pre_norm, found 'sandwich'$"):
        make_tower("sandwich")


def test_fused_text_passes_through_the_pre_norm_layer_of_each_block():
    torch.manual_seed(0)
    tower = make_tower("pre_norm").eval()
    language = small_encoder().eval()(some_tokens(6, 4))
    features = [torch.randn(2, 8, size, size) for size in (8, 4)]
    with torch.no_grad():
        _, fused = tower(features, language)
        hidden = language.hidden
        for block in tower.blocks:
            levels, hidden = block.fusion(features, hidden, language.mask)
            hidden = block.language_layer(hidden, language.mask)
            features = block.dyconv(levels)
    assert torch.equal(fused.hidden, hidden) and fused.embedded is language.embedded


def test_padding_of_the_prompt_changes_no_level_and_no_real_token():
    torch.manual_seed(0)
    tower, encoder = make_tower("pre_norm").eval(), small_encoder().eval()
    features = [torch.randn(1, 8, size, size) for size in (8, 4)]
    short = some_tokens(5)
    long = TokenBatch(torch.nn.functional.pad(short.input_ids, (0, 4)), torch.nn.functional.pad(short.mask, (0, 4)))
    with torch.no_grad():
        levels, fused = tower(features, encoder(short))
        padded_levels, padded = tower(features, encoder(long))
    torch.testing.assert_close(padded.hidden[:, :5], fused.hidden, rtol=1e-4, atol=1e-5)
    for level, padded_level in zip(levels, padded_levels):
        torch.testing.assert_close(padded_level, level, rtol=1e-4, atol=1e-5)


def test_gradients_of_the_fused_text_reach_encoder_and_text_layers():
    tower, encoder = make_tower("pre_norm", language_dropout=0.0), small_encoder()
    _, fused = tower([torch.randn(2, 8, size, size) for size in (8, 4)], encoder(some_tokens(6, 4)))
    fused.hidden.pow(3).sum().backward()
    layers = [block.language_layer for block in tower.blocks]
    for module in (encoder, *layers):
        assert all(parameter.grad.abs().max() > 0 for parameter in module.parameters())
