"""The BERT-type text encoder: official numbers, loading, config. ``test_text_encoders.py`` holds for both kinds."""

import numpy as np
import pytest
import torch
from conftest import ASSETS
from parity_weights import tensor_for
from text_encoder_cases import bert_folder, some_tokens
from text_encoder_cases import small_bert as small_encoder
from transformers import DistilBertConfig, DistilBertModel

from glipv2_d2.modeling.text_encoder import TEXT_ENCODER_REGISTRY, BertTextEncoder, build_text_encoder
from glipv2_d2.prompts.builder import prompt_from_names
from glipv2_d2.prompts.tokenizer import PromptTokenizer
from glipv2_d2.structures import TokenBatch

TINY = ASSETS / "parity" / "tiny"
OFFICIAL_PREFIX = "language_backbone.body.model."


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def official_encoder():
    encoder = BertTextEncoder(hidden_size=48, num_layers=2, num_heads=4, intermediate_size=192, dropout=0.0)
    shapes = {name: tensor.shape for name, tensor in encoder.bert.state_dict().items()}
    weights = {name: tensor_for(OFFICIAL_PREFIX + name, shape, "tiny-24:") for name, shape in shapes.items()}
    encoder.bert.load_state_dict({name: torch.as_tensor(weight) for name, weight in weights.items()})
    return encoder.eval()


@pytest.mark.parametrize("num_tokens", [18, 40, 256])
def test_features_are_the_official_ones_at_any_padding(official_encoder, num_tokens):
    expected = np.load(TINY / "det_language.npz")
    ids = torch.as_tensor(expected["input_ids"])[:, :num_tokens]
    mask = torch.as_tensor(expected["attention_mask"])[:, :num_tokens].bool()
    with torch.no_grad():
        language = official_encoder(TokenBatch(ids, mask))
    assert int(mask.sum()) == 18
    np.testing.assert_allclose(language.hidden[:, :18], expected["hidden"][:, :18], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(language.embedded, expected["embedded"][:, :num_tokens], rtol=1e-4, atol=2e-5)


def test_tokenizer_and_encoder_together_read_the_official_prompt(official_encoder):
    expected = np.load(TINY / "det_language.npz")
    names = ["person", "traffic light", "hair drier", "mouse_(computer_equipment)", "cell phone", "teddy bear"]
    tokens = TokenBatch.from_prompts([PromptTokenizer()(prompt_from_names(names))])
    with torch.no_grad():
        hidden = official_encoder(tokens).hidden
    np.testing.assert_allclose(hidden, expected["hidden"][:, :18], rtol=1e-4, atol=2e-5)


def test_both_attention_kernels_give_the_same_features():
    encoder = small_encoder().eval()
    tokens = some_tokens(5, 9)
    fused = encoder(tokens)
    encoder.bert.set_attn_implementation("eager")
    plain = encoder(tokens)
    torch.testing.assert_close(fused.embedded, plain.embedded, rtol=1e-5, atol=1e-6)


# --- construction and loading -----------------------------------------------------------------------------------------


def test_sizes_are_those_asked_for():
    encoder = small_encoder(dropout=0.25)
    assert (encoder.vocab_size, encoder.max_positions) == (60, 16)
    assert (encoder.hidden_size, encoder.num_heads, encoder.intermediate_size) == (12, 3, 20)
    assert encoder.dropout == 0.25
    assert {module.p for module in encoder.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}


def test_state_holds_parameters_under_bert_and_nothing_else():
    encoder = small_encoder()
    assert set(encoder.state_dict()) == {name for name, _ in encoder.named_parameters()}
    assert all(name.startswith("bert.") and "pooler" not in name for name in encoder.state_dict())
    # 3 embeddings and a norm, then 16 tensors of each layer.
    assert len(encoder.state_dict()) == 5 + 2 * 16


def test_pretrained_folder_brings_weights_and_sizes_without_the_pooler(tmp_path):
    model = bert_folder(tmp_path, max_position_embeddings=20)
    encoder = BertTextEncoder(weights=str(tmp_path), dropout=0.3).eval()
    assert (encoder.hidden_size, encoder.num_heads, encoder.max_positions, encoder.dropout) == (12, 3, 20, 0.3)
    assert {module.p for module in encoder.modules() if isinstance(module, torch.nn.Dropout)} == {0.3}
    assert set(encoder.state_dict()) == set(small_encoder().state_dict())
    tokens = some_tokens(6)
    torch.testing.assert_close(encoder(tokens).hidden, model(tokens.input_ids).last_hidden_state)


def test_weights_stored_in_half_precision_are_used_in_single(tmp_path):
    bert_folder(tmp_path).half().save_pretrained(tmp_path)
    encoder = BertTextEncoder(weights=str(tmp_path))
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}


def test_tensors_in_the_old_format_are_read(tmp_path):
    model = bert_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    encoder = BertTextEncoder(weights=str(tmp_path)).eval()
    tokens = some_tokens(6)
    torch.testing.assert_close(encoder(tokens).hidden, model(tokens.input_ids).last_hidden_state)


def test_encoder_of_another_type_is_refused(tmp_path):
    config = DistilBertConfig(vocab_size=60, dim=12, n_layers=1, n_heads=3, hidden_dim=20)
    DistilBertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a distilbert without intermediate_size in its config, expected a BERT-type"):
        BertTextEncoder(weights=str(tmp_path))


# --- config -----------------------------------------------------------------------------------------------------------


def test_config_decides_everything(tiny_cfg):
    settings = tiny_cfg.MODEL.TEXT_ENCODER
    settings.VOCAB_SIZE, settings.MAX_POSITIONS, settings.DROPOUT, settings.FREEZE = 30600, 300, 0.4, True
    encoder = build_text_encoder(tiny_cfg)
    assert (encoder.vocab_size, encoder.max_positions, encoder.dropout, encoder.freeze) == (30600, 300, 0.4, True)
    assert (encoder.hidden_size, encoder.num_heads, encoder.intermediate_size) == (48, 4, 96)
    assert len(encoder.bert.encoder.layer) == 2


def test_config_switches_checkpointing_on(tiny_cfg):
    tiny_cfg.MODEL.TEXT_ENCODER.USE_CHECKPOINT = True
    bert = build_text_encoder(tiny_cfg).bert
    assert all(layer.gradient_checkpointing for layer in bert.encoder.layer)
    # A cache would make the library warn at every step.
    assert not bert.config.use_cache


def test_prompts_may_not_pass_the_positions_of_the_encoder(tiny_cfg):
    tiny_cfg.MODEL.TEXT_ENCODER.MAX_POSITIONS = 255
    with pytest.raises(ValueError, match="MAX_TOKENS: found 256, expected at most the 255 positions"):
        build_text_encoder(tiny_cfg)


def test_unknown_encoder_is_refused_with_the_known_names(tiny_cfg):
    tiny_cfg.MODEL.TEXT_ENCODER.NAME = "Telepathy"
    with pytest.raises(ValueError, match="MODEL.TEXT_ENCODER.NAME: 'Telepathy' .* BertTextEncoder"):
        build_text_encoder(tiny_cfg)


def test_encoder_of_a_user_is_built_from_the_registry(tiny_cfg, monkeypatch):
    def build(cfg):
        return small_encoder(vocab_size=30522, max_positions=256)

    monkeypatch.setitem(TEXT_ENCODER_REGISTRY._obj_map, "Own", build)
    tiny_cfg.MODEL.TEXT_ENCODER.NAME = "Own"
    assert build_text_encoder(tiny_cfg).hidden_size == 12
