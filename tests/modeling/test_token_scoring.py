"""Token probabilities to phrase scores."""

import json

import numpy as np
import pytest
import torch
from conftest import ASSETS
from hypothesis import given, settings
from hypothesis import strategies as st
from pretended_device import pretended_device
from torch.testing import assert_close

from glipv2_d2.modeling.token_scoring import SCORE_AGGREGATIONS, phrase_means, token_to_phrase_scores

UNITS = ASSETS / "parity" / "units"


def load():
    label_to_tokens = json.loads((UNITS / "scores_nms.json").read_text())["label_to_tokens"]
    token_map = torch.zeros(8, 256, dtype=torch.bool)
    for label, tokens in label_to_tokens.items():
        token_map[int(label) - 1, tokens] = True
    return np.load(UNITS / "scores_nms.npz"), token_map


@pytest.mark.parametrize("key", ["v1.MEAN", "v1.MAX", "v2.MEAN", "v2.POWER", "v2.MAX"])
def test_scores_equal_the_official_ones(key):
    arrays, token_map = load()
    scores = token_to_phrase_scores(torch.from_numpy(arrays["token_probabilities"]), token_map, key[3:].lower())
    assert_close(scores, torch.from_numpy(arrays[key]), atol=1e-6, rtol=1e-5)


# Tokens 1 and 2 spell the first phrase, token 3 the second, nothing the third. sqrt(0.5 * 0.02) = 0.1.
TOKEN_MAP = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)
TOKEN_SCORES = torch.tensor([0.9, 0.5, 0.02, 0.3])


@pytest.mark.parametrize(
    ("aggregation", "expected"), [("mean", [0.26, 0.3, 0]), ("max", [0.5, 0.3, 0]), ("power", [0.1, 0.3, 0])]
)
def test_hand_computed_scores(aggregation, expected):
    assert_close(token_to_phrase_scores(TOKEN_SCORES, TOKEN_MAP, aggregation), torch.tensor(expected))


@pytest.mark.parametrize("aggregation", SCORE_AGGREGATIONS)
def test_zero_and_one_are_kept(aggregation):
    token_map = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.bool)
    scores = token_to_phrase_scores(torch.tensor([0.0, 0.0, 1.0, 1.0]), token_map, aggregation)
    assert_close(scores, torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("aggregation", SCORE_AGGREGATIONS)
@pytest.mark.parametrize("num_phrases", [0, 2])
def test_phrases_without_tokens_score_zero(aggregation, num_phrases):
    scores = token_to_phrase_scores(torch.rand(2, 5, 4), torch.zeros(num_phrases, 4, dtype=torch.bool), aggregation)
    assert torch.equal(scores, torch.zeros(2, 5, num_phrases))


@pytest.mark.parametrize("aggregation", SCORE_AGGREGATIONS)
def test_nan_gives_no_score(aggregation):
    scores = token_to_phrase_scores(torch.tensor([0.9, float("nan"), 0.2, 0.3]), TOKEN_MAP, aggregation)
    assert scores[0].isnan() and scores[2] == 0


@pytest.mark.parametrize("aggregation", SCORE_AGGREGATIONS)
@settings(max_examples=25)
@given(data=st.data())
def test_scores_equal_a_phrase_by_phrase_formulation(aggregation, data):
    num_phrases, num_tokens = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 8))
    bits = data.draw(st.lists(st.booleans(), min_size=num_phrases * num_tokens, max_size=num_phrases * num_tokens))
    token_map = torch.tensor(bits).view(num_phrases, num_tokens)
    token_scores = torch.rand(2, 3, num_tokens, generator=torch.Generator().manual_seed(len(bits)))
    reduce = {
        "mean": lambda picked: picked.sum(-1) / picked.shape[-1],
        "max": lambda picked: picked.max(-1).values,
        "power": lambda picked: picked.prod(-1) ** (1 / picked.shape[-1]),
    }[aggregation]
    scores = token_to_phrase_scores(token_scores, token_map, aggregation)
    for phrase, row in enumerate(token_map):
        expected = reduce(token_scores[..., row]) if row.any() else torch.zeros(2, 3)
        assert_close(scores[..., phrase], expected)


def test_single_precision_under_autocast():
    token_scores = torch.rand(50, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = token_to_phrase_scores(token_scores, TOKEN_MAP, "mean")
    assert scores.dtype == torch.float32
    assert_close(scores[:, 0], (token_scores[:, 1] + token_scores[:, 2]) / 2)


@pytest.mark.parametrize("aggregation", SCORE_AGGREGATIONS)
def test_half_precision_probabilities_give_single_precision_scores(aggregation):
    token_scores = torch.rand(50, 4).half()
    scores = token_to_phrase_scores(token_scores, TOKEN_MAP, aggregation)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, token_to_phrase_scores(token_scores.float(), TOKEN_MAP, aggregation))


def test_unknown_aggregation_is_refused():
    with pytest.raises(ValueError, match="expected one of .* found 'median'"):
        token_to_phrase_scores(TOKEN_SCORES, TOKEN_MAP, "median")


def make_maps(*shapes):
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(shape, generator=generator) < 0.4 for shape in shapes]


@pytest.mark.parametrize("shapes", [[(3, 5)], [(2, 4), (0, 3), (4, 5)], [(0, 2), (0, 5)]], ids=["one", "three", "none"])
def test_means_of_phrases_of_all_prompts_are_those_of_each_phrase(shapes):
    text, maps = torch.randn(len(shapes), 5, 6, generator=torch.Generator().manual_seed(2)), make_maps(*shapes)
    maps[0][:1] = False
    for tokens, of_prompt in zip(text, maps, strict=True):
        tokens[of_prompt.shape[1] :] = torch.nan
    expected = [
        tokens[: len(row)][row].mean(dim=0) if row.any() else torch.zeros(6)
        for tokens, of_prompt in zip(text, maps, strict=True)
        for row in of_prompt
    ]
    text.requires_grad_()
    found = phrase_means(text, maps)
    assert_close(found, torch.stack(expected) if expected else torch.zeros(0, 6))
    found.sum().backward()
    assert text.grad is not None
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(phrase_means(text, maps), found, rtol=0, atol=0)


def test_means_of_phrases_of_more_prompts_take_no_more_kernels_and_nobody_waits():
    launches = []
    for count in (1, 8):
        with pretended_device() as traffic:
            text = torch.ones(count, 5, 6).to("cuda")
            traffic.clear()
            phrase_means(text, make_maps(*[(2, 5)] * count))
        assert not traffic.waits and not traffic.mixed and not traffic.unpinned, traffic
        launches.append(traffic.launches)
    assert launches[0] == launches[1]
