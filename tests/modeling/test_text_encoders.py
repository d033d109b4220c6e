"""Rules that hold for the text encoders of both kinds."""

import json

import pytest
import torch
from text_encoder_cases import (
    Payload,
    bert_folder,
    clip_folder,
    count_encoded_rows,
    small_bert,
    small_clip,
    some_tokens,
    token_embedding,
)

from glipv2_d2.modeling.text_encoder import build_text_encoder
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


@pytest.mark.parametrize("causal", [False, True])
def test_prompt_has_the_same_features_alone_and_beside_a_longer_one(make, causal):
    encoder = make().eval()
    both = some_tokens(4, 9)
    alone = encoder(TokenBatch(both.input_ids[:1, :4], both.mask[:1, :4]), causal=causal)
    torch.testing.assert_close(encoder(both, causal=causal).hidden[:1, :4], alone.hidden, **TOLERANCES[make])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_equal_prompts_are_encoded_once_where_nothing_is_dropped(make, training, causal):
    if training and make is small_bert:
        pytest.skip("every prompt has a pass of its own in training")
    encoder = make().train(training)
    tokens = some_tokens(4, 7, 5)
    order = [2, 0, 2, 1, 0]
    each = torch.cat(
        [encoder(TokenBatch(ids[None], mask[None]), causal).hidden for ids, mask in zip(tokens.input_ids, tokens.mask)]
    )
    rows = count_encoded_rows(encoder)
    language = encoder(TokenBatch(tokens.input_ids[order], tokens.mask[order]), causal)
    assert rows == [3]
    torch.testing.assert_close(language.hidden, each[order], **TOLERANCES[make])


def test_equal_prompts_are_dropped_apart_in_training(make):
    encoder, tokens = make(dropout=0.5).train(), some_tokens(6)
    repeated = TokenBatch(tokens.input_ids.repeat(16, 1), tokens.mask.repeat(16, 1))
    rows = count_encoded_rows(encoder)
    assert len(encoder(repeated).hidden.round(decimals=3).unique(dim=0)) > 1 and rows == [16]
    assert torch.equal(encoder.eval()(repeated).hidden.unique(dim=0), encoder(tokens).hidden)


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


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_reach_every_parameter_that_a_prompt_uses(make, causal):
    encoder, frozen, tokens = make().train(), make(freeze=True).train(), some_tokens(6)
    encoder(tokens, causal).hidden.pow(3).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
        assert "position" not in name or not parameter.grad[6:].any()
    assert not frozen(tokens, causal).hidden.requires_grad


@pytest.mark.parametrize("causal", [False, True])
def test_checkpointing_recomputes_in_training_alone_and_changes_no_gradient(make, causal):
    gradients = []
    for use_checkpoint in (False, True):
        encoder, calls = make(use_checkpoint=use_checkpoint).train(), []
        layer = encoder.bert.encoder.layer[0].attention.self.query if make is small_bert else encoder.resblocks[0].ln_1
        layer.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        encoder(some_tokens(6, 8), causal).hidden.pow(3).sum().backward()
        assert len(calls) == (2 if use_checkpoint else 1)
        gradients.append([parameter.grad for parameter in encoder.parameters()])
        calls.clear()
        encoder.eval()(some_tokens(6, 8), causal).hidden.sum().backward()
        assert len(calls) == 1
    for plain, recomputed in zip(*gradients):
        torch.testing.assert_close(recomputed, plain, **TOLERANCES[make])


# --- folders of the transformers library ------------------------------------------------------------------------------

SAVE = {small_bert: bert_folder, small_clip: clip_folder}


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def shorten(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def put_code_into(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Payload(folder / "executed")}, folder / "pytorch_model.bin")


def empty(folder):
    for file in folder.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (shorten, "no encoder could be read from"),
        # Which of the two depends on the version of the library.
        (put_code_into, "has a damaged file or one with more|no encoder could be read"),
        (lambda folder: change_config(folder, num_hidden_layers=3), "lacks 16 tensors of its encoder, as .*layer"),
        (lambda folder: change_config(folder, vocab_size=61), "no encoder could be read"),
        (empty, ""),
        (lambda folder: [empty(folder), folder.rmdir()], ""),
    ],
    ids=["cut off", "code", "lacks tensors", "other shapes", "empty", "absent"],
)
def test_folder_that_cannot_be_used_is_refused_in_one_line_with_its_key(make, tmp_path, damage, match):
    folder = tmp_path / "folder"
    SAVE[make](folder)
    damage(folder)
    with pytest.raises((FileNotFoundError, ValueError), match=f"^MODEL.TEXT_ENCODER.WEIGHTS: .*({match})") as caught:
        type(make())(weights=str(folder))
    assert "can still be loaded" not in str(caught.value) and "\n" not in str(caught.value)
    assert not (folder / "executed").exists()


def test_folder_with_fewer_ids_than_the_tokenizer_is_refused(make, tiny_cfg, tmp_path):
    SAVE[make](tmp_path)
    tiny_cfg.MODEL.TEXT_ENCODER.NAME = type(make()).__name__
    tiny_cfg.MODEL.TEXT_ENCODER.WEIGHTS = str(tmp_path)
    # 60 embeddings for the 30522 ids of the packaged vocabulary.
    with pytest.raises(ValueError, match="TOKENIZER: the tokenizer has 30522 ids, expected at most the 60"):
        build_text_encoder(tiny_cfg)
