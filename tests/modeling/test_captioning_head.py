"""The head of the next word: what it predicts from what, its loss, and its config.

``test_mlm_head.py`` has the rules of the base that both heads share: precision, and the mean over ranks.
"""

import pytest
import torch
from batch_samples import make_shapes, text_case
from detectron2.config import get_cfg
from torch import nn
from torch.testing import assert_close

from glipv2_d2.config import add_glipv2_config
from glipv2_d2.modeling.heads.captioning_head import CaptioningHead
from glipv2_d2.modeling.heads.mlm_head import MLMHead
from glipv2_d2.structures import TokenizedPrompt


def make_head(seed=0, **arguments):
    torch.manual_seed(seed)
    head = CaptioningHead(language_dim=6, vocab_size=9, **arguments)
    nn.init.normal_(head.decoder.weight)
    nn.init.normal_(head.decoder.bias)
    return head


def caption(*ids):
    empty = torch.zeros(0, dtype=torch.int64)
    return TokenizedPrompt(torch.tensor(ids, dtype=torch.int64), empty.bool().reshape(0, len(ids)), empty, ())


def some_text(rows, tokens, seed=1):
    return torch.randn(rows, tokens, 6, generator=torch.Generator().manual_seed(seed))


def slow_loss(head, hidden, prompts, smoothing=0.0):
    """A second formulation: token after token, with the smoothed target written out."""
    found = []
    for row, prompt in enumerate(prompts):
        for place in range(len(prompt) - 1):
            log_probs = head(hidden[row, place]).log_softmax(-1)
            right = log_probs[prompt.input_ids[place + 1]]
            found.append(-(1 - smoothing) * right - smoothing * log_probs.mean())
    return torch.stack(found).mean()


CAPTIONS = [caption(1, 4, 5, 2), caption(1, 2), caption(1, 7, 7, 8, 0, 2)]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_loss_is_the_mean_over_the_tokens_after_the_first_of_all_captions(smoothing):
    head, hidden = make_head(label_smoothing=smoothing), some_text(3, 6)
    losses = head.losses(*text_case(hidden, CAPTIONS))
    assert losses.keys() == {"loss_caption"}
    assert_close(losses["loss_caption"], slow_loss(head, hidden, CAPTIONS, smoothing))
    weighted = make_head(label_smoothing=smoothing, loss_weight=2.5).losses(*text_case(hidden, CAPTIONS))[
        "loss_caption"
    ]
    assert_close(weighted, losses["loss_caption"] * 2.5)


def test_each_token_is_predicted_from_the_one_before_it():
    # The decoder is the identity over four ids: a feature that is largest at an id predicts that id.
    head = CaptioningHead(language_dim=4, vocab_size=4)
    with torch.no_grad():
        for layer in (head.dense, head.decoder):
            layer.weight.copy_(torch.eye(4))
        head.norm.weight.fill_(20.0)
    text = torch.eye(4)[[2, 3, 1, 0]][None]  # predicts 2, 3, 1, 0
    assert head.losses(*text_case(text, [caption(0, 2, 3, 1)]))["loss_caption"] < 1e-6
    assert head.losses(*text_case(text, [caption(2, 3, 1, 0)]))["loss_caption"] > 10


def test_padding_and_the_last_token_predict_nothing():
    head, hidden = make_head(), some_text(3, 7).requires_grad_()
    head.losses(*text_case(hidden, CAPTIONS))["loss_caption"].backward()
    reached = hidden.grad.abs().sum(-1) > 0
    assert reached.tolist() == [[1, 1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0]]
    assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())


def test_nothing_to_predict_is_a_loss_of_zero_that_touches_every_parameter():
    head, hidden = make_head(label_smoothing=0.1), some_text(2, 1).requires_grad_()
    loss = head.losses(*text_case(hidden, [caption(1), caption(1)]))["loss_caption"]
    assert loss.item() == 0
    loss.backward()
    assert not hidden.grad.any()
    assert all(torch.equal(parameter.grad, torch.zeros_like(parameter)) for parameter in head.parameters())


@pytest.mark.parametrize("ids", [(1, 9), (1, -1, 3)])
def test_token_outside_the_vocabulary_is_an_error(ids):
    with pytest.raises(ValueError, match="caption: expected token ids below 9, found .*VOCAB_SIZE") as caught:
        make_head().losses(*text_case(some_text(1, 3), [caption(*ids)]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_smoothing_out_of_range_is_named(smoothing):
    with pytest.raises(ValueError, match=r"CAPTIONING.LABEL_SMOOTHING: expected a number in \[0, 1\), found"):
        make_head(label_smoothing=smoothing)


def test_config_gives_weight_and_smoothing():
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.MODEL.GLIPV2.CAPTIONING.LOSS_WEIGHT = 0.25
    cfg.MODEL.GLIPV2.CAPTIONING.LABEL_SMOOTHING = 0.2
    head = CaptioningHead(cfg, make_shapes(language_dim=6, vocab_size=9))
    assert (head.loss_weight, head.label_smoothing) == (0.25, 0.2)
    assert head(torch.zeros(2, 5, 6)).shape == (2, 5, 9)


def test_weights_of_the_head_for_masked_words_fit():
    # Fine-tuning may begin from them: same names, same shapes.
    masked = MLMHead(language_dim=6, vocab_size=9)
    assert not any(make_head().load_state_dict(masked.state_dict()))
