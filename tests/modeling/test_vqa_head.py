"""The head of answers: its formula, its loss, and its config."""

import math

import numpy as np
import pytest
import torch
from batch_samples import make_shapes, question_case
from detectron2.config import get_cfg
from slow_layers import gelu, layer_norm, linear, softmax
from torch.testing import assert_close

from glipv2_d2 import distributed
from glipv2_d2.config import add_glipv2_config
from glipv2_d2.modeling.heads.vqa_head import VQAHead


def make_head(dtype=torch.float64, num_answers=4, **arguments):
    torch.manual_seed(0)
    head = VQAHead(language_dim=5, num_answers=num_answers, **arguments).to(dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
    return head


def make_mask(*lengths, size=6):
    return torch.arange(size) < torch.tensor(lengths)[:, None]


def some_text(rows, dtype=torch.float64, seed=1):
    return torch.randn(rows, 6, 5, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def slow_logits(head, text, mask):
    """One question after the other, in double precision."""
    weights = {name: value.detach().numpy() for name, value in head.named_parameters()}
    results = []
    for tokens, real in zip(text.numpy(), mask.numpy()):
        share = softmax(linear(tokens[real], weights, "pooling")[:, 0], 0)
        pooled = sum(part * token for part, token in zip(share, tokens[real]))
        inner, with_norm = pooled, "layers.1.weight" in weights
        for place in (0, 3) if with_norm else (0, 2):
            inner = linear(inner, weights, f"layers.{place}")
            if with_norm:
                name = f"layers.{place + 1}"
                inner = layer_norm(inner, weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)
            inner = gelu(inner)
        results.append(linear(inner, weights, "classifier"))
    return np.stack(results)


@pytest.mark.parametrize("norm", ["", "LN"])
def test_logits_follow_the_formula(norm):
    head, text, mask = make_head(norm=norm), some_text(3), make_mask(6, 3, 1)
    np.testing.assert_allclose(head(text, mask).detach().numpy(), slow_logits(head, text, mask), rtol=0, atol=1e-12)


def test_padding_changes_nothing():
    head, text, mask = make_head(), some_text(2), make_mask(4, 2)
    cut = head(text[:, :4], mask[:, :4])
    text[~mask] = 50.0
    assert_close(head(text, mask), cut, rtol=0, atol=1e-12)


def test_question_without_real_tokens_stays_finite():
    assert make_head()(some_text(1), make_mask(0)).isfinite().all()


def test_sizes_of_the_layers():
    assert [tuple(p.shape) for n, p in make_head().named_parameters() if n.endswith("weight")] == [
        (1, 5),
        (10, 5),
        (10, 10),
        (4, 10),
    ]
    assert make_head(hidden_size=7).layers[2].weight.shape == (7, 7)


@pytest.mark.parametrize(("num_answers", "odds"), [(1, 1 / 2), (2, 1 / 2), (30, 1 / 30)])
def test_before_training_each_answer_is_as_likely_as_any_other_and_a_single_one_even(num_answers, odds):
    bias = VQAHead(language_dim=5, num_answers=num_answers).classifier.bias
    assert_close(bias.sigmoid(), torch.full((num_answers,), odds))


def test_frequencies_are_the_first_guess():
    bias = VQAHead(language_dim=5, num_answers=3, frequencies=(0.7, 0.25, 0.05)).classifier.bias
    assert_close(bias.sigmoid(), torch.tensor([0.7, 0.25, 0.05]))
    # An answer to everything could not be unlearned.
    assert VQAHead(language_dim=5, num_answers=1, frequencies=(1.0,)).classifier.bias.isfinite().all()


def test_loss_is_summed_over_answers_and_averaged_over_questions():
    head, text, mask = make_head(), some_text(2), make_mask(6, 2)
    scores = torch.tensor([[0.3, 1.0, 0.0, 0.9], [0.0, 0.0, 0.6, 0.0]])
    losses = head.losses(*question_case(text, mask, scores))
    assert losses.keys() == {"loss_vqa"}
    total = 0.0
    for logits, targets in zip(slow_logits(head, text, mask), scores.tolist()):
        for logit, target in zip(logits, targets):
            right = 1 / (1 + math.exp(-logit))
            total -= target * math.log(right) + (1 - target) * math.log(1 - right)
    assert losses["loss_vqa"].item() == pytest.approx(total / 2, rel=1e-5)
    weighted = make_head(loss_weight=0.5).losses(*question_case(text, mask, scores))["loss_vqa"]
    assert_close(weighted, losses["loss_vqa"] / 2)


def test_loss_is_divided_by_the_mean_number_of_questions_of_all_ranks(monkeypatch):
    head, text, mask, scores = make_head(), some_text(3), make_mask(6, 2, 4), torch.rand(3, 4)
    alone = head.losses(*question_case(text, mask, scores))["loss_vqa"]
    monkeypatch.setattr(distributed, "reduce_mean", lambda count: (count + 1) / 2)
    assert_close(head.losses(*question_case(text, mask, scores))["loss_vqa"], alone * 3 / 2)


def test_gradient_reaches_the_real_tokens_and_every_parameter():
    head, text, mask = make_head(), some_text(2).requires_grad_(), make_mask(6, 2)
    head.losses(*question_case(text, mask, torch.rand(2, 4)))["loss_vqa"].backward()
    assert torch.equal(text.grad.abs().sum(-1) > 0, mask)
    # The same number added to all ratings changes no weight.
    reached = {name for name, parameter in head.named_parameters() if parameter.grad.abs().max() > 1e-9}
    assert reached == {name for name, _ in head.named_parameters()} - {"pooling.bias"}


def test_answers_are_rated_by_independent_probabilities():
    head, text, mask = make_head(), some_text(2), make_mask(6, 2)
    scores = head.inference(text, mask)
    assert scores.dtype == torch.float32
    np.testing.assert_allclose(scores.detach(), 1 / (1 + np.exp(-slow_logits(head, text, mask))), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_and_scores_are_single_precision_under_autocast(dtype):
    head, text, mask = make_head(torch.float32), some_text(2, torch.float32), make_mask(6, 2)
    targets = torch.tensor([[0.3, 1.0, 0.0, 0.9], [0.0, 0.0, 0.6, 0.0]])
    with torch.autocast("cpu", dtype=dtype):
        loss, scores = head.losses(*question_case(text, mask, targets))["loss_vqa"], head.inference(text, mask)
    assert loss.dtype == scores.dtype == torch.float32
    assert_close(loss, head.losses(*question_case(text, mask, targets))["loss_vqa"], atol=0.3, rtol=0.05)
    assert_close(scores, head.inference(text, mask), atol=0.05, rtol=0.1)


@pytest.mark.parametrize("shape", [(2, 5), (1, 4), (4,)])
def test_scores_of_other_answers_or_questions_are_an_error(shape):
    with pytest.raises(ValueError, match=r"answer_scores: expected the shape \(2, 4\), found .*VQA.ANSWERS") as caught:
        make_head().losses(*question_case(some_text(2), make_mask(6, 2), torch.zeros(shape)))
    assert "\n" not in str(caught.value)


def test_another_norm_is_an_error():
    with pytest.raises(ValueError, match="VQA.NORM: expected '' or 'LN', found 'BN'"):
        make_head(norm="BN")


def test_list_without_answers_is_an_error():
    with pytest.raises(ValueError, match="VQA.ANSWERS: expected at least one answer, found 0"):
        make_head(num_answers=0)


def test_config_gives_answers_width_and_weight(tmp_path):
    cfg = get_cfg()
    add_glipv2_config(cfg)
    (tmp_path / "answers.txt").write_text("yes\nno\n2\n")
    cfg.MODEL.GLIPV2.VQA.ANSWERS = str(tmp_path / "answers.txt")
    assert VQAHead(cfg, make_shapes(language_dim=5)).classifier.weight.shape == (3, 10)
    cfg.MODEL.GLIPV2.VQA.LOSS_WEIGHT = 0.25
    cfg.MODEL.GLIPV2.VQA.HIDDEN_SIZE = 8
    cfg.MODEL.GLIPV2.VQA.NORM = "LN"
    head = VQAHead(cfg, make_shapes(language_dim=5))
    assert head.loss_weight == 0.25 and head.classifier.weight.shape == (3, 8)
    assert head.layers[1].normalized_shape == (8,)
