"""Text read in one direction: what a token depends on in the encoders, in the tower and in the whole model."""

import numpy as np
import pytest
import torch
from causal_samples import ENCODERS, make_encoder, make_features, make_parts, make_tokens
from detectron2.modeling import build_model
from slow_clip import pre_norm_layer as slow_pre_norm_layer
from slow_layers import layer_norm
from transformers import BertConfig, BertModel, ElectraConfig, ElectraModel

from glipv2_d2.layers.reading import CAUSAL, KeyValues, next_position, visible_tokens
from glipv2_d2.modeling.text_encoder import BertTextEncoder
from glipv2_d2.modeling.text_encoder.bert_causal import masked_pass
from glipv2_d2.structures import LanguageFeatures, TokenBatch

KINDS = sorted(ENCODERS)


def replace_word(tokens, place):
    ids = tokens.input_ids.clone()
    ids[:, place] = ids[:, place] % 39 + 1
    return TokenBatch(ids, tokens.mask)


# --- which tokens see which -------------------------------------------------------------------------------------------


def test_visible_tokens_are_the_real_ones_up_to_each():
    mask = torch.tensor([[True, True, True], [False, True, False]])
    assert visible_tokens(mask, causal=False)[:, 0].tolist() == [[[1, 1, 1]], [[0, 1, 0]]]
    expected = [[[1, 0, 0], [1, 1, 0], [1, 1, 1]], [[0, 0, 0], [0, 1, 0], [0, 1, 0]]]
    assert visible_tokens(mask, causal=True)[:, 0].tolist() == expected


def test_remembered_tokens_come_first_and_texts_can_be_taken_twice():
    first = KeyValues.extend(None, torch.tensor([[[[1.0]]], [[[2.0]]]]), torch.tensor([[[[3.0]]], [[[4.0]]]]))
    both = KeyValues.extend(first, torch.full((2, 1, 1, 1), 5.0), torch.full((2, 1, 1, 1), 6.0))
    assert both.keys.flatten(1).tolist() == [[1, 5], [2, 5]]
    assert both.values.flatten(1).tolist() == [[3, 6], [4, 6]]
    chosen = both.select(torch.tensor([1, 1, 0]))
    assert chosen.keys.flatten(1).tolist() == [[2, 5], [2, 5], [1, 5]]
    assert chosen.values.flatten(1).tolist() == [[4, 6], [4, 6], [3, 6]]


def test_position_past_the_last_is_an_error():
    past = [KeyValues(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2))]
    assert next_position(None, 1) == 0 and next_position(past, 5) == 4
    with pytest.raises(ValueError, match="CAPTIONING.MAX_LENGTH: a text of more than 4 tokens") as caught:
        next_position(past, 4)
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_layers_of_bert_with_a_mask_of_ours_are_the_model_of_the_library():
    encoder, tokens = make_encoder("bert").eval(), make_tokens(5, 8)
    found = masked_pass(encoder.bert, tokens.input_ids, tokens.mask, causal=False, use_checkpoint=False)
    expected = encoder.bert(input_ids=tokens.input_ids, attention_mask=tokens.mask.long()).last_hidden_state
    torch.testing.assert_close(found[tokens.mask], expected[tokens.mask], rtol=1e-6, atol=1e-6)


# --- the encoders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_encoder_keeps_all_tokens_before_a_changed_word_exactly(kind):
    encoder, tokens = make_encoder(kind).eval(), make_tokens(7, 7)
    before = encoder(tokens, causal=True).hidden
    for place in range(7):
        after = encoder(replace_word(tokens, place), causal=True).hidden
        assert torch.equal(after[:, :place], before[:, :place])
        assert (after[:, place:] - before[:, place:]).abs().amax(-1).min() > 1e-4
    # Both ways without it.
    assert (encoder(replace_word(tokens, 6)).hidden - encoder(tokens).hidden)[:, 0].abs().max() > 1e-4


@torch.no_grad()
def test_causal_bert_equals_the_decoder_of_transformers():
    encoder, tokens = make_encoder("bert").eval(), make_tokens(7, 4)
    config = BertConfig.from_dict({**encoder.bert.config.to_dict(), "is_decoder": True, "use_cache": False})
    decoder = BertModel(config, add_pooling_layer=False).eval()
    decoder.load_state_dict(encoder.bert.state_dict())
    expected = decoder(input_ids=tokens.input_ids, attention_mask=tokens.mask.long()).last_hidden_state
    language = encoder(tokens, causal=True)
    torch.testing.assert_close(language.hidden[tokens.mask], expected[tokens.mask], rtol=1e-5, atol=1e-5)
    assert (language.embedded[~tokens.mask] == 0).all() and language.mask is tokens.mask
    assert torch.equal(language.embedded[tokens.mask], language.hidden[tokens.mask])


def test_causal_clip_equals_the_slow_formulation():
    encoder, tokens = make_encoder("clip").double().eval(), make_tokens(6)
    weights = {name: value.detach().numpy() for name, value in encoder.named_parameters()}
    x = weights["token_embedding.weight"][tokens.input_ids[0].numpy()] + weights["positional_embedding"][:6]
    for index in range(2):
        start = f"resblocks.{index}."
        own = {name.removeprefix(start): value for name, value in weights.items() if name.startswith(start)}
        # A token and those before it are a prompt of their own, of which the last is kept.
        rows = [slow_pre_norm_layer(x[: t + 1], tokens.mask[0, : t + 1].numpy(), own, 3)[-1] for t in range(6)]
        x = np.stack(rows)
    expected = layer_norm(x, weights["ln_final.weight"], weights["ln_final.bias"], 1e-12)
    actual = encoder(tokens, causal=True).hidden[0].detach()
    torch.testing.assert_close(actual, torch.from_numpy(expected), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_token_that_may_see_nothing_stays_finite(kind):
    # A prompt that begins with padding.
    tokens = TokenBatch(torch.tensor([[0, 0, 5]]), torch.tensor([[False, False, True]]))
    encoder = make_encoder(kind).eval()
    hidden = encoder(tokens, causal=True).hidden
    assert hidden.isfinite().all()
    hidden.sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in encoder.parameters())


def test_dropout_of_bert_acts_on_weights_and_features_in_causal_training_only():
    tokens = make_tokens(6)
    encoder = make_encoder("bert", dropout=0.5).train()
    assert not torch.equal(encoder(tokens, causal=True).hidden, encoder(tokens, causal=True).hidden)
    encoder.eval()
    assert torch.equal(encoder(tokens, causal=True).hidden, encoder(tokens, causal=True).hidden)
    # Dropout of the attention weights alone.
    for module in encoder.bert.modules():
        if isinstance(module, torch.nn.Dropout):
            module.train(module is encoder.bert.encoder.layer[1].attention.self.dropout)
    assert not torch.equal(encoder(tokens, causal=True).hidden, encoder(tokens, causal=True).hidden)


def test_relatives_of_bert_are_refused_for_captions_only(tmp_path):
    config = ElectraConfig(
        vocab_size=40,
        hidden_size=12,
        embedding_size=12,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=9,
    )
    ElectraModel(config).save_pretrained(tmp_path)
    encoder, tokens = BertTextEncoder(weights=str(tmp_path)).eval(), make_tokens(4)
    assert encoder(tokens).hidden.shape == (1, 4, 12)
    for call in (lambda: encoder(tokens, causal=True), lambda: encoder.step(tokens.input_ids[:, 0], None)):
        with pytest.raises(ValueError, match="WEIGHTS: expected a BERT with absolute positions .* found a electra"):
            call()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_steps_of_an_encoder_give_the_features_of_the_whole_text(kind):
    encoder, tokens = make_encoder(kind).eval(), make_tokens(16, 16, 16)
    expected, past = encoder(tokens, causal=True).hidden, None
    for place in range(16):
        hidden, past = encoder.step(tokens.input_ids[:, place], past)
        torch.testing.assert_close(hidden[:, 0], expected[:, place], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="a text of more than 16 tokens"):
        encoder.step(tokens.input_ids[:, 0], past)


# --- the tower --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["plain", "folded"])
def test_causal_tower_keeps_levels_and_earlier_tokens_exactly(kind, form):
    _, tower, _ = make_parts(kind, form)
    features, mask = make_features(2), make_tokens(6, 6).mask
    hidden = torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(3))
    levels, language = tower(features, LanguageFeatures(hidden, hidden, mask), CAUSAL)
    for place in range(6):
        other = hidden.clone()
        other[:, place, 0] += 1.0
        other_levels, other_language = tower(features, LanguageFeatures(other, hidden, mask), CAUSAL)
        assert all(map(torch.equal, other_levels, levels))
        assert torch.equal(other_language.hidden[:, :place], language.hidden[:, :place])
        assert (other_language.hidden - language.hidden)[:, place:].abs().amax(-1).min() > 1e-4
    # Both ways without it.
    assert not torch.equal(tower(features, LanguageFeatures(hidden, hidden, mask))[0][0], levels[0])
    other_images, _ = tower(make_features(2, seed=1), LanguageFeatures(hidden, hidden, mask), CAUSAL)
    assert not torch.equal(other_images[0], levels[0])


@pytest.mark.parametrize("kind", KINDS)
def test_each_causal_token_reads_the_image(kind):
    _, tower, _ = make_parts(kind)
    hidden, mask = torch.zeros(1, 3, 12), make_tokens(3).mask
    tokens = [tower(make_features(1, seed), LanguageFeatures(hidden, hidden, mask), CAUSAL)[1] for seed in (0, 1)]
    assert (tokens[0].hidden - tokens[1].hidden).abs().amax(-1).min() > 1e-3


def test_checkpointing_changes_no_causal_result_of_the_tower():
    results = []
    for use_checkpoint in (False, True):
        _, tower, _ = make_parts("clip", use_checkpoint=use_checkpoint, fusion_dropout=0.0, language_dropout=0.0)
        hidden = torch.randn(1, 4, 12, generator=torch.Generator().manual_seed(3), requires_grad=True)
        mask = make_tokens(4).mask
        levels, language = tower.train()(make_features(1), LanguageFeatures(hidden, hidden, mask), CAUSAL)
        (language.hidden**2).sum().backward()
        results.append([*levels, language.hidden, hidden.grad])
    assert all(map(torch.equal, *results))


# --- the whole model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["BertTextEncoder", "CLIPTextEncoder"])
def test_changed_word_changes_no_logit_before_it_and_no_visual_feature(tiny_cfg, name):
    tiny_cfg.MODEL.TEXT_ENCODER.NAME = name
    tiny_cfg.MODEL.GLIPV2.TOWER.NUM_BLOCKS = 2
    torch.manual_seed(0)
    model = build_model(tiny_cfg).eval()
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    tokens = make_tokens(8, 8)

    @torch.no_grad()
    def run(tokens):
        features = model.backbone(images)
        features = [features[level] for level in model.head_in_features]
        language = model.text_encoder(tokens, causal=True)
        levels, language = model.fusion_tower(features, language, CAUSAL)
        predictions = model.head(levels, language.hidden)
        visual = [*levels, *predictions.box_deltas, *predictions.centerness_logits]
        return visual, language.hidden, torch.cat(predictions.token_logits, dim=1)

    visual, hidden, logits = run(tokens)
    for place in (1, 4, 7):
        other_visual, other_hidden, other_logits = run(replace_word(tokens, place))
        assert all(map(torch.equal, other_visual, visual))
        assert torch.equal(other_hidden[:, :place], hidden[:, :place])
        assert torch.equal(other_logits[..., :place], logits[..., :place])
        assert (other_hidden - hidden)[:, place:].abs().amax(-1).min() > 0
