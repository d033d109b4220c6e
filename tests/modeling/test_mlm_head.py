"""The head of masked language modelling: its formula, its loss, and two processes as one."""

import math

import pytest
import torch
from batch_samples import make_shapes, text_case
from detectron2.config import get_cfg
from rank_runs import assert_ranks_train_as_one, run_ranks, train_steps
from torch import nn
from torch.testing import assert_close

from glipv2_d2.config import add_glipv2_config
from glipv2_d2.modeling.heads.mlm_head import MLMHead
from glipv2_d2.structures import TokenizedPrompt

NO_LABEL = -100


def make_head(language_dim=6, vocab_size=9, seed=0, **arguments):
    torch.manual_seed(seed)
    return MLMHead(language_dim=language_dim, vocab_size=vocab_size, **arguments)


def prompt_with(labels):
    """A prompt whose labels are given, None for one that was not masked, with three tokens then."""
    length = 3 if labels is None else len(labels)
    labels = labels if labels is None else torch.tensor(labels, dtype=torch.int64)
    empty = torch.zeros(0, dtype=torch.int64)
    return TokenizedPrompt(torch.zeros(length, dtype=torch.int64), empty.bool().reshape(0, length), empty, (), labels)


# --- the formula ------------------------------------------------------------------------------------------------------


def gelu(x):
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def test_logits_follow_the_formula():
    # Dense: (1, 2) -> (1 + 0.5, 2 * 2 - 0.5) = (1.5, 3.5); after LayerNorm two numbers are -1 and 1.
    head = make_head(language_dim=2, vocab_size=2)
    with torch.no_grad():
        head.dense.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        head.dense.bias.copy_(torch.tensor([0.5, -0.5]))
        head.norm.weight.copy_(torch.tensor([2.0, 3.0]))
        head.norm.bias.copy_(torch.tensor([0.0, 10.0]))
        # After the norm: (-2, 13).
        head.decoder.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, -1.0]]))
        head.decoder.bias.copy_(torch.tensor([0.25, 0.0]))
        assert_close(head(torch.tensor([[1.0, 2.0]])), torch.tensor([[11.25, -13.0]]))


def test_activation_is_the_exact_gelu():
    # With three numbers the norm shows what the activation does: dense is the identity, decoder too.
    head = make_head(language_dim=3, vocab_size=3)
    values = [-1.0, 0.5, 2.0]
    with torch.no_grad():
        for layer in (head.dense, head.decoder):
            layer.weight.copy_(torch.eye(3))
        logits = head(torch.tensor(values))
    active = torch.tensor([gelu(value) for value in values], dtype=torch.float64)
    expected = (active - active.mean()) / active.std(correction=0)
    assert_close(logits, expected.float(), atol=1e-6, rtol=1e-6)


def test_norm_keeps_differences_far_below_one():
    # Variance 1e-10: an epsilon of 1e-5 would leave 0.003 of it, that of BERT 0.995.
    head = make_head(language_dim=2, vocab_size=2)
    with torch.no_grad():
        head.decoder.weight.copy_(torch.eye(2))
        head.dense.weight.copy_(torch.eye(2))
        logits = head(torch.tensor([-1e-5, 3e-5]))
    assert 0.99 < logits[1] < 1


def test_untrained_head_has_small_weights_and_no_bias():
    head = make_head(language_dim=64, vocab_size=500)
    for layer in (head.dense, head.decoder):
        assert not layer.bias.any()
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert abs(layer.weight.mean().item()) < 0.002
    assert {name: tuple(value.shape) for name, value in head.named_parameters()} == {
        "dense.weight": (64, 64),
        "dense.bias": (64,),
        "norm.weight": (64,),
        "norm.bias": (64,),
        "decoder.weight": (500, 64),
        "decoder.bias": (500,),
    }


# --- the loss ---------------------------------------------------------------------------------------------------------


def slow_loss(head, hidden, prompts):
    """A second formulation: logits of all tokens, one label after the other."""
    log_probs = head(hidden).log_softmax(-1)
    labelled = [
        (row, place, label)
        for row, prompt in enumerate(prompts)
        if prompt.mlm_labels is not None
        for place, label in enumerate(prompt.mlm_labels.tolist())
        if label != NO_LABEL
    ]
    return -sum(log_probs[row, place, label] for row, place, label in labelled) / len(labelled)


@pytest.mark.parametrize(
    "labels",
    [[[NO_LABEL, 3, NO_LABEL, 8], [0, NO_LABEL]], [None, [NO_LABEL, 5, 5]], [[NO_LABEL] * 4, [1], None]],
    ids=["both", "one not masked", "one without labels"],
)
def test_loss_is_the_mean_over_the_labelled_tokens(labels):
    head = make_head()
    prompts = [prompt_with(each) for each in labels]
    hidden = torch.randn(len(prompts), 5, 6)
    losses = head.losses(*text_case(hidden, prompts))
    assert losses.keys() == {"loss_mlm"}
    assert_close(losses["loss_mlm"], slow_loss(head, hidden, prompts))
    weighted = make_head(loss_weight=2.5).losses(*text_case(hidden, prompts))["loss_mlm"]
    assert_close(weighted, losses["loss_mlm"] * 2.5)


def test_uniform_logits_lose_the_log_of_the_vocabulary():
    head = make_head(vocab_size=50)
    nn.init.zeros_(head.decoder.weight)
    loss = head.losses(*text_case(torch.randn(1, 3, 6), [prompt_with([4, NO_LABEL, 49])]))["loss_mlm"]
    assert loss.item() == pytest.approx(math.log(50), rel=1e-6)


def test_gradient_reaches_the_labelled_text_and_every_parameter():
    head = make_head()
    hidden = torch.randn(2, 4, 6, requires_grad=True)
    head.losses(*text_case(hidden, [prompt_with([NO_LABEL, 3, NO_LABEL]), prompt_with([7, NO_LABEL])]))[
        "loss_mlm"
    ].backward()
    reached = hidden.grad.abs().sum(-1) > 0
    assert reached.tolist() == [[False, True, False, False], [True, False, False, False]]
    assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())


@pytest.mark.parametrize("labels", [[None, None], [[NO_LABEL, NO_LABEL], None], [[], [NO_LABEL]]])
def test_nothing_masked_is_a_loss_of_zero_that_touches_every_parameter(labels):
    head = make_head()
    hidden = torch.randn(2, 3, 6, requires_grad=True)
    loss = head.losses(*text_case(hidden, [prompt_with(each) for each in labels]))["loss_mlm"]
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))
    for parameter in head.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


def test_logits_are_made_at_labelled_tokens_only():
    head = make_head()
    seen = []
    head.decoder.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    head.losses(*text_case(torch.randn(2, 50, 6), [prompt_with([NO_LABEL] * 40 + [1]), prompt_with([2, 3])]))
    assert seen == [(3, 9)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_is_single_precision_under_autocast(dtype):
    head = make_head(language_dim=16, vocab_size=40)
    hidden = torch.randn(1, 4, 16)
    prompts = [prompt_with([5, NO_LABEL, 39])]
    with torch.autocast("cpu", dtype=dtype):
        loss = head.losses(*text_case(hidden, prompts))["loss_mlm"]
    assert loss.dtype == torch.float32
    assert_close(loss, head.losses(*text_case(hidden, prompts))["loss_mlm"], atol=0.01, rtol=0.01)


@pytest.mark.parametrize("labels", [[NO_LABEL, 9], [-1, 3]])
def test_label_outside_the_vocabulary_is_an_error(labels):
    with pytest.raises(ValueError, match="mlm_labels: expected token ids below 9, found .*VOCAB_SIZE") as caught:
        make_head().losses(*text_case(torch.randn(1, 2, 6), [prompt_with(labels)]))
    assert "\n" not in str(caught.value)


def test_config_gives_the_weight_of_the_loss():
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.MODEL.GLIPV2.MLM.LOSS_WEIGHT = 0.25
    head = MLMHead(cfg, make_shapes(language_dim=6, vocab_size=9))
    assert head.loss_weight == 0.25 and head.decoder.weight.shape == (9, 6)


# --- two processes ----------------------------------------------------------------------------------------------------

# Labels of four prompts; the first two belong to rank 0.
BATCHES = {
    "both ranks have labels": [[1, NO_LABEL, 4], [NO_LABEL], [2, 2, 8], [7, 0]],
    "one rank has none": [[1, 3], [NO_LABEL], [NO_LABEL], None],
    "a single label": [None, None, [NO_LABEL, 6], None],
    "no label": [None, [NO_LABEL], None, None],
}


class HeadWithLoss(nn.Module):
    """A head whose forward pass ends in its loss."""

    def __init__(self):
        super().__init__()
        self.head = make_head()

    def forward(self, hidden, prompts):
        return self.head.losses(*text_case(hidden, prompts))["loss_mlm"]


def make_inputs(name, rows):
    hidden = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(1))[rows]
    return hidden, [prompt_with(labels) for labels in BATCHES[name][rows]]


def train(rank=None):
    return train_steps(HeadWithLoss(), make_inputs, BATCHES, rank)


def test_two_ranks_train_as_one_process_on_the_whole_batch():
    assert_ranks_train_as_one(run_ranks(train), train())
