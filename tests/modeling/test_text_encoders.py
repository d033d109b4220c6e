"""Rules that hold for the text encoders of both kinds."""

import pytest
import torch
from text_encoder_cases import count_encoded_rows, small_bert, small_clip, some_tokens, token_embedding

from glipv2_d2.structures import TokenBatch

# The random weights of the second are larger.
TOLERANCES = {small_bert: {"rtol": 1e-5, "atol": 1e-6}, small_clip: {"rtol": 1e-4, "atol": 1e-5}}
GRADIENT_TOLERANCES = {small_bert: {"rtol": 1e-4, "atol": 1e-5}, small_clip: {"rtol": 1e-3, "atol": 1e-3}}

pytestmark = pytest.mark.parametrize("make", [small_bert, small_clip])


def test_padding_is_zero_in_embedded_and_the_mask_is_passed_on(make):
    tokens = some_tokens(2, 5)
    language = make().eval()(tokens)
    assert language.mask is tokens.mask
    assert language.hidden.shape == language.embedded.shape == (2, 5, 12)
    assert (language.embedded[0, 2:] == 0).all() and (language.hidden[0, 2:] != 0).all()
    assert torch.equal(language.embedded[tokens.mask], language.hidden[tokens.mask])


def test_prompt_has_the_same_features_alone_and_beside_a_longer_one(make):
    encoder = make().eval()
    both = some_tokens(4, 9)
    alone = encoder(TokenBatch(both.input_ids[:1, :4], both.mask[:1, :4]))
    torch.testing.assert_close(encoder(both).hidden[:1, :4], alone.hidden, **TOLERANCES[make])


@pytest.mark.parametrize("training", [False, True])
def test_equal_prompts_are_encoded_once_where_nothing_is_dropped(make, training):
    if training and make is small_bert:
        pytest.skip("every prompt has a pass of its own in training")
    encoder = make().train(training)
    tokens = some_tokens(4, 7, 5)
    order = [2, 0, 2, 1, 0]
    each = torch.cat([encoder(TokenBatch(ids[None], mask[None])).hidden for ids, mask in zip(*tokens)])
    rows = count_encoded_rows(encoder)
    language = encoder(TokenBatch(tokens.input_ids[order], tokens.mask[order]))
    assert rows == [3]
    torch.testing.assert_close(language.hidden, each[order], **TOLERANCES[make])


def test_prompts_that_differ_in_the_mask_alone_are_different(make):
    # The second has a real token with the id that also fills the padding.
    tokens = TokenBatch(torch.tensor([[5, 6, 0], [5, 6, 0]]), torch.tensor([[True, True, False], [True, True, True]]))
    hidden = make().eval()(tokens).hidden
    assert (hidden[0, :2] - hidden[1, :2]).abs().max() > 1e-3


def test_gradients_of_equal_prompts_add_up(make):
    encoder = make().eval()
    tokens = some_tokens(6)
    gradients = []
    for copies in (1, 3):
        hidden = encoder(TokenBatch(tokens.input_ids.repeat(copies, 1), tokens.mask.repeat(copies, 1))).hidden
        gradients.append(torch.autograd.grad(hidden.pow(3).sum(), token_embedding(encoder).weight)[0])
    torch.testing.assert_close(gradients[1], 3 * gradients[0], **GRADIENT_TOLERANCES[make])


@pytest.mark.parametrize("use_checkpoint", [False, True])
def test_frozen_encoder_stays_in_eval_mode_without_gradients(make, use_checkpoint):
    encoder = make(dropout=0.5, freeze=True, use_checkpoint=use_checkpoint)
    for frozen in (encoder, encoder.train()):
        assert not any(module.training for module in frozen.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    tokens = some_tokens(6)
    language = encoder(tokens)
    assert not language.hidden.requires_grad and language.hidden.grad_fn is None
    assert torch.equal(encoder(tokens).hidden, language.hidden)


def test_encoder_that_is_not_frozen_follows_the_mode(make):
    encoder = make()
    assert all(module.training for module in encoder.modules())
    assert not any(module.training for module in encoder.eval().modules())
