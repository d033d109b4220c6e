"""Masked language modelling: which tokens are masked, what they become, and which are to be restored."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ASSETS
from hypothesis import given, settings
from hypothesis import strategies as st

from glipv2_d2.prompts.builder import prompt_from_caption, prompt_from_names
from glipv2_d2.prompts.masking import mask_tokens
from glipv2_d2.prompts.tokenizer import PromptTokenizer
from glipv2_d2.structures import TokenizedPrompt

VOCABULARY = SimpleNamespace(mask_id=103, vocab_size=1000)
NO_LABEL = -100


@pytest.fixture(scope="module")
def tokenizer():
    return PromptTokenizer()


def prompt_of(ids, token_map=()):
    """A prompt of given ids; a row of the map lists the tokens of a phrase."""
    rows = torch.zeros(len(token_map), len(ids), dtype=torch.bool)
    for row, tokens in enumerate(token_map):
        rows[row, list(tokens)] = True
    phrases = tuple(f"phrase {row}" for row in range(len(token_map)))
    return TokenizedPrompt(torch.tensor(ids), rows, torch.arange(len(token_map)), phrases)


def mask(prompt, positives=None, mask_prob=0.15, only_positives=False, seed=0, tokenizer=VOCABULARY):
    positives = torch.ones(len(prompt.phrases), dtype=torch.bool) if positives is None else torch.tensor(positives)
    rng = np.random.default_rng(seed)
    return mask_tokens(prompt, positives, tokenizer, mask_prob=mask_prob, only_positives=only_positives, rng=rng)


class RecordedChoices:
    """A generator that gives recorded choices, in the order in which the masking asks for them."""

    def __init__(self, masked, choice, random_ids):
        self.uniform = [np.asarray(masked, dtype=np.float64), np.asarray(choice, dtype=np.float64)]
        self.random_ids = np.asarray(random_ids, dtype=np.int64)

    def random(self, size):
        return self.uniform.pop(0)

    def integers(self, high, size):
        assert high == VOCABULARY.vocab_size
        return self.random_ids


# --- what a masked token becomes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draw", "choice", "becomes", "label"),
    [
        (0.0, 0.0, 103, 7),
        (0.149, 0.799, 103, 7),
        (0.149, 0.8, 500, 7),
        (0.149, 0.899, 500, 7),
        (0.149, 0.9, 7, 7),
        (0.149, 0.999, 7, 7),
        (0.15, 0.0, 7, NO_LABEL),
        (0.9, 0.85, 7, NO_LABEL),
    ],
)
def test_token_becomes_the_mask_a_random_id_or_stays(draw, choice, becomes, label):
    rng = RecordedChoices([draw], [choice], [500])
    masked = mask_tokens(
        prompt_of([7]), torch.zeros(0, dtype=torch.bool), VOCABULARY, mask_prob=0.15, only_positives=False, rng=rng
    )
    assert (masked.input_ids.tolist(), masked.mlm_labels.tolist()) == ([becomes], [label])


def test_masking_has_the_shares_of_bert():
    # 400,000 tokens with an id beyond the vocabulary, so that a random id differs from it.
    prompt = prompt_of([1000] * 400_000)
    masked = mask(prompt)
    labelled = masked.mlm_labels != NO_LABEL
    assert torch.equal(masked.mlm_labels[labelled], prompt.input_ids[labelled])
    assert torch.equal(masked.input_ids[~labelled], prompt.input_ids[~labelled])
    # Four standard deviations: 0.15 of 400,000 is 60,000 +- 904; of these 80, 10 and 10 % +- 0.65, 0.49 and 0.49 %.
    assert labelled.sum().item() == pytest.approx(60_000, abs=904)
    ids = masked.input_ids[labelled]
    num_masked = len(ids)
    as_mask, kept = (ids == 103).sum().item(), (ids == 1000).sum().item()
    # One random id in a thousand is that of the mask.
    assert as_mask / num_masked == pytest.approx(0.8, abs=0.0068)
    assert kept / num_masked == pytest.approx(0.1, abs=0.005)
    random_ids = ids[(ids != 103) & (ids != 1000)]
    assert len(random_ids) / num_masked == pytest.approx(0.1, abs=0.005)
    # About 6,000 uniform ids of 0..999: all but 2 or 3 are met; their mean is 499.5 +- 4 * 288.7 / sqrt(6000).
    assert len(random_ids.unique()) > 980 and 0 <= random_ids.min() and random_ids.max() <= 999
    assert random_ids.double().mean().item() == pytest.approx(499.5, abs=15)


def test_every_place_is_masked_equally_often_special_tokens_too(tokenizer):
    prompt = tokenizer(prompt_from_names(["cat", "traffic light", "dog"]))
    labels = torch.stack([mask(prompt, seed=seed, tokenizer=tokenizer).mlm_labels for seed in range(2000)])
    shares = (labels != NO_LABEL).double().mean(dim=0)
    # Four standard deviations of 2,000 trials at 0.15: 0.032.
    assert len(prompt) == 8 and ((shares - 0.15).abs() < 0.032).all()
    # Neighbours are masked independently.
    both = ((labels[:, 1:] != NO_LABEL) & (labels[:, :-1] != NO_LABEL)).double().mean().item()
    assert both == pytest.approx(0.0225, abs=0.006)


@pytest.mark.parametrize("mask_prob", [0.0, 1.0])
def test_probability_of_zero_masks_nothing_and_of_one_everything(mask_prob):
    prompt = prompt_of(list(range(200, 300)), [[1, 2]])
    masked = mask(prompt, mask_prob=mask_prob)
    expected = prompt.input_ids if mask_prob else torch.full_like(prompt.input_ids, NO_LABEL)
    assert torch.equal(masked.mlm_labels, expected)
    assert torch.equal(masked.input_ids, prompt.input_ids) == (mask_prob == 0)


# --- which tokens are to be restored ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("positives", "restored"),
    [
        ([True, False], [2, 3]),
        ([False, True], [5]),
        ([True, True], [2, 3, 5]),
        ([False, False], []),
    ],
)
def test_only_tokens_of_phrases_with_a_box_are_restored_but_all_are_masked(positives, restored):
    prompt = prompt_of([101, 11, 12, 13, 14, 15, 102], [[2, 3], [5]])
    alone = mask(prompt, positives, mask_prob=1.0, only_positives=True)
    everything = mask(prompt, positives, mask_prob=1.0, only_positives=False)
    assert (alone.mlm_labels != NO_LABEL).nonzero().flatten().tolist() == restored
    assert alone.mlm_labels[restored].tolist() == prompt.input_ids[restored].tolist()
    assert everything.mlm_labels.tolist() == prompt.input_ids.tolist()
    assert torch.equal(alone.input_ids, everything.input_ids)


def test_prompt_without_phrases_has_nothing_to_restore_among_positives():
    prompt = prompt_of([101, 11, 102])
    assert mask(prompt, mask_prob=1.0, only_positives=True).mlm_labels.tolist() == [NO_LABEL] * 3
    assert mask(prompt, mask_prob=1.0).mlm_labels.tolist() == [101, 11, 102]


def recorded(name):
    with np.load(ASSETS / "parity" / "v2" / f"{name}.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


@pytest.mark.parametrize("name", ["mlm_all", "mlm_only_positives"])
@pytest.mark.parametrize("row", [0, 1])
def test_the_choices_of_the_official_code_give_its_ids_and_labels(name, row, tokenizer):
    facts = json.loads((ASSETS / "parity" / "v2" / f"{name}.json").read_text())
    arrays = {key: array[row] for key, array in recorded(name).items() if len(array) == 2}
    prompt = tokenizer(prompt_from_caption(facts["captions"][row], []))
    length = len(prompt)
    assert prompt.input_ids.tolist() == arrays["original_ids"][:length].tolist()
    assert not arrays["original_ids"][length:].any() and (arrays["labels"][length:] == NO_LABEL).all()
    # The greenlight is the tokens of the phrases that have a box: here one phrase of them all.
    greenlight = arrays["greenlight"][:length] == 1
    prompt = prompt_of(prompt.input_ids.tolist(), [np.flatnonzero(greenlight)])
    # Both files come from one seed, so that the file without greenlight tells what was masked.
    masked = recorded("mlm_all")["labels"][row, :length] != NO_LABEL
    ids = arrays["masked_ids"][:length]
    original = arrays["original_ids"][:length]
    choice = np.where(ids == original, 0.95, np.where(ids == VOCABULARY.mask_id, 0.1, 0.85))
    result = mask_tokens(
        prompt,
        torch.tensor([True]),
        VOCABULARY,
        mask_prob=0.15,
        only_positives=facts["only_positives"],
        rng=RecordedChoices(~masked, choice, ids),
    )
    assert result.input_ids.tolist() == ids.tolist()
    assert result.mlm_labels.tolist() == arrays["labels"][:length].tolist()


# --- what the caller relies on ----------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    ids=st.lists(st.integers(200, 999), min_size=2, max_size=12),
    positives=st.lists(st.booleans(), max_size=4),
    mask_prob=st.floats(0, 1),
    only_positives=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_masking_follows_the_seed_and_changes_nothing_but_ids_and_labels(
    ids, positives, mask_prob, only_positives, seed
):
    prompt = prompt_of(ids, [[row % len(ids)] for row in range(len(positives))])
    before = prompt.input_ids.clone()
    first, second = (mask(prompt, positives, mask_prob, only_positives, seed) for _ in range(2))
    assert torch.equal(first.input_ids, second.input_ids) and torch.equal(first.mlm_labels, second.mlm_labels)
    assert torch.equal(prompt.input_ids, before) and prompt.mlm_labels is None
    assert first.phrase_token_map is prompt.phrase_token_map and first.phrases == prompt.phrases
    assert first.category_ids is prompt.category_ids
    assert first.input_ids.dtype == first.mlm_labels.dtype == torch.int64
    assert first.input_ids.shape == first.mlm_labels.shape == prompt.input_ids.shape
    labelled = first.mlm_labels != NO_LABEL
    assert torch.equal(first.mlm_labels[labelled], prompt.input_ids[labelled])
    if not only_positives:
        assert torch.equal(first.input_ids[~labelled], prompt.input_ids[~labelled])


def test_boxes_do_not_change_what_is_masked_nor_the_stream_that_follows():
    prompt = prompt_of(list(range(200, 240)), [[1], [2, 3]])
    results = []
    for positives in ([True, False], [False, False]):
        rng = np.random.default_rng(4)
        masked = mask_tokens(prompt, torch.tensor(positives), VOCABULARY, mask_prob=0.5, only_positives=True, rng=rng)
        results.append((masked.input_ids.tolist(), rng.random()))
    assert results[0] == results[1]


def test_random_ids_and_mask_come_from_the_tokenizer(tokenizer):
    prompt = tokenizer(prompt_from_caption("a dog " * 100, []))
    ids = torch.cat([mask(prompt, mask_prob=1.0, seed=seed, tokenizer=tokenizer).input_ids for seed in range(20)])
    assert (ids == 103).double().mean().item() == pytest.approx(0.8, abs=0.03)
    # Some 400 random ids: the largest of them is near the end of the vocabulary.
    assert 30_000 < ids.max() < 30_522


@pytest.mark.parametrize(
    ("positives", "message"),
    [
        (torch.ones(1, dtype=torch.bool), r"positives: expected shape \(2,\) and bool, found \(1,\) and torch.bool"),
        (torch.ones(2), r"positives: expected shape \(2,\) and bool, found \(2,\) and torch.float32"),
    ],
)
def test_positives_are_one_truth_value_for_each_phrase(positives, message):
    with pytest.raises(ValueError, match=message):
        mask_tokens(
            prompt_of([1, 2], [[0], [1]]),
            positives,
            VOCABULARY,
            mask_prob=0.15,
            only_positives=True,
            rng=np.random.default_rng(0),
        )


@pytest.mark.parametrize("mask_prob", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability_is_refused_with_its_key(mask_prob):
    with pytest.raises(ValueError, match="MODEL.GLIPV2.MLM.MASK_PROB: expected a probability, found"):
        mask(prompt_of([1, 2]), mask_prob=mask_prob)
