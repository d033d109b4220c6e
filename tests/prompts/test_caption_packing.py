"""Captions of other images in a prompt: how many, which, in what order, and where the own phrases stand."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glipv2_d2.prompts.builder import prompt_from_caption
from glipv2_d2.prompts.caption_packing import draw_num_negative_captions, pack_captions
from glipv2_d2.prompts.tokenizer import PromptTokenizer

NEGATIVES = [f"negative number {i}." for i in range(20)]


def word_counter(max_tokens):
    """A tokenizer whose tokens are words and full stops, with two special tokens in a prompt."""
    return SimpleNamespace(
        max_tokens=max_tokens,
        max_content_tokens=max_tokens - 2,
        count_tokens=lambda text: len(text.replace(".", " . ").split()),
    )


WORDS = word_counter(1000)


def pack(caption, spans, negatives, tokenizer=WORDS, seed=0, num_negatives=20, no_prob=0.0, full_prob=1.0):
    return pack_captions(
        caption,
        spans,
        negatives,
        tokenizer,
        num_negatives=num_negatives,
        no_prob=no_prob,
        full_prob=full_prob,
        rng=np.random.default_rng(seed),
    )


def texts(packed, ranges):
    return [[packed[begin:end] for begin, end in phrase] for phrase in ranges]


# --- how many ---------------------------------------------------------------------------------------------------------


def draw_counts(seed, runs, *arguments):
    rng = np.random.default_rng(seed)
    return [draw_num_negative_captions(*arguments, rng) for _ in range(runs)]


def test_numbers_have_the_official_distribution():
    # 0.4: none; 0.6 * 0.5 = 0.3: all 20; 0.3: uniform 0..19, so 0.415 none and 0.015 of each of 1..19.
    counts = np.bincount(draw_counts(0, 20_000, 20, 0.4, 0.5), minlength=21)
    expected = np.array([0.415, *[0.015] * 19, 0.3]) * 20_000
    assert len(counts) == 21
    # Four standard deviations.
    assert (np.abs(counts - expected) < 4 * np.sqrt(expected * (1 - expected / 20_000))).all()


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ((5, 1.0, 0.5), {0}),
        ((5, 0.0, 1.0), {5}),
        ((5, 0.0, 0.0), {0, 1, 2, 3, 4}),
        ((1, 0.0, 0.0), {0}),
        ((0, 0.0, 1.0), {0}),
    ],
)
def test_probabilities_of_zero_and_one_decide_the_number(arguments, found):
    assert set(draw_counts(1, 200, *arguments)) == found


def test_drawn_number_of_captions_joins_the_own_one():
    sizes = [pack("a dog.", [], NEGATIVES, seed=s, no_prob=0.4, full_prob=0.5)[0].count(".") - 1 for s in range(600)]
    # As above, with 600 draws: 249 +- 48 without and 180 +- 45 with all.
    assert sizes.count(0) == pytest.approx(249, abs=48) and sizes.count(20) == pytest.approx(180, abs=45)
    assert set(sizes) == set(range(21))


# --- how they are joined ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "negatives", "parts"),
    [
        ("a dog", ["a cat"], {"a dog. ", "a cat. "}),
        ("a dog.", ["a cat."], {"a dog. ", "a cat. "}),
        ("a dog. ", ["  a cat \n"], {"a dog.  ", "a cat. "}),
        ("a dog!", ["a cat?"], {"a dog!. ", "a cat?. "}),
        ("a dog", [], {"a dog. "}),
        ("a dog", ["", " \n"], {"a dog. "}),
        ("A dog", ["a dog.", "a dog", " A DOG. ", "a dog sits"], {"A dog. ", "a dog sits. "}),
    ],
)
def test_each_caption_is_ended_by_a_full_stop_and_a_space(caption, negatives, parts):
    packed = {pack(caption, [], negatives, seed=seed)[0] for seed in range(12)}
    first, *others = parts
    assert packed == ({first + others[0], others[0] + first} if others else {first})


def test_prompt_without_negatives_is_ended_in_the_same_way():
    # Otherwise the full stop would tell that there are negatives.
    assert pack("a dog", [[(2, 5)]], NEGATIVES, no_prob=1.0) == ("a dog. ", [[(2, 5)]], (0, 6))


def test_packing_that_is_off_leaves_the_caption_as_it_is_and_draws_nothing():
    rng = np.random.default_rng(3)
    arguments = {"num_negatives": 0, "no_prob": 0.4, "full_prob": 0.5, "rng": rng}
    packed = pack_captions("a dog", [[[2, 5]], []], NEGATIVES, word_counter(10), **arguments)
    assert packed == ("a dog", [[(2, 5)], []], (0, 5))
    assert rng.random() == np.random.default_rng(3).random()


def test_own_phrases_move_with_their_caption():
    # "a cat. " are seven characters.
    found = {
        pack("a dog, mostly white", [[(2, 5), (14, 19)], [(0, 1)], []], ["a cat"], seed=s)[1][0][0] for s in range(9)
    }
    assert found == {(2, 5), (9, 12)}
    for seed in range(20):
        packed, ranges, _ = pack("a dog, mostly white", [[(2, 5), (14, 19)], [(0, 1)], []], NEGATIVES, seed=seed)
        assert texts(packed, ranges) == [["dog", "white"], ["a"], []]


def test_own_caption_stands_at_every_place_and_negatives_in_every_order():
    packed = [pack("own", [[(0, 3)]], ["x", "y"], seed=seed) for seed in range(120)]
    orders = [tuple(text.replace(".", "").split()) for text, *_ in packed]
    assert len(set(orders)) == 6
    # 20 of each are expected; four standard deviations are 16.
    assert all(4 < orders.count(order) < 36 for order in set(orders))


def test_every_candidate_is_taken_equally_often():
    taken = [pack("own", [], NEGATIVES, seed=seed, num_negatives=2)[0] for seed in range(600)]
    assert all(text.count("negative") == 2 for text in taken)
    # 60 of each are expected; four standard deviations are 30.
    assert all(30 < sum(text in packed for packed in taken) < 90 for text in NEGATIVES)


# --- the token limit --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_tokens", "num_kept"),
    # The own caption takes 3 tokens and 2 special ones; a negative counts 4 with its full stop and 2 special ones, and
    # has to be below the room that is left.
    [(5, 0), (11, 0), (12, 1), (17, 1), (18, 2), (125, 19), (126, 20)],
)
def test_negatives_are_taken_while_they_are_below_the_room_left(max_tokens, num_kept):
    packed, *_ = pack("a dog", [], NEGATIVES, word_counter(max_tokens))
    assert packed.count("negative") == num_kept


def test_negatives_after_one_that_does_not_fit_are_still_taken():
    # With room for two short negatives, wherever the long one stands among the drawn.
    long = "a b c d e f g h i j"
    for seed in range(20):
        packed = pack("own", [], [long, "x", "y"], word_counter(14), seed=seed).text
        assert sorted(packed.split()) == ["own.", "x.", "y."]


def test_the_place_of_the_own_caption_is_known():
    for seed in range(10):
        packed = pack("a dog", [[(2, 5)]], NEGATIVES[:3], seed=seed)
        begin, end = packed.own
        assert packed.text[begin:end] == "a dog." and texts(packed.text, packed.spans) == [["dog"]]
    assert pack("a dog", [], NEGATIVES, num_negatives=0).own == (0, 5)


def test_own_caption_past_the_limit_stays_alone():
    caption = "dog " * 300
    packed, ranges, _ = pack(caption, [[(0, 3)]], NEGATIVES, PromptTokenizer())
    assert (packed, ranges) == (caption + ". ", [[(0, 3)]])


some_words = st.lists(st.sampled_from(["dog", "skateboarder", "東京", "x.", "é!", "\u202eab", "\t", "."]), max_size=12)
some_caption = some_words.map(" ".join)


@pytest.fixture(scope="module", params=[9, 40])
def tokenizer(request):
    return PromptTokenizer(max_tokens=request.param)


@settings(max_examples=80)
@given(
    words=some_words,
    negatives=st.lists(some_caption, max_size=6),
    num_negatives=st.integers(0, 6),
    probabilities=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 1000),
)
def test_negatives_never_cost_the_own_phrases_a_token(tokenizer, words, negatives, num_negatives, probabilities, seed):
    caption = " ".join(["own", *words])
    spans = [[(0, 3)], [(0, len(caption))]]
    no_prob, full_prob = probabilities
    results = [pack(caption, spans, negatives, tokenizer, seed, num_negatives, no_prob, full_prob) for _ in range(2)]
    packed, ranges, own = results[0]
    assert packed[slice(*own)].startswith(caption)
    assert results[0] == results[1]
    assert texts(packed, ranges) == [["own"], [caption]]
    alone = tokenizer(prompt_from_caption(caption, spans))
    prompt = tokenizer(prompt_from_caption(packed, ranges))
    own_ids = [ids.input_ids[ids.phrase_token_map[1]].tolist() for ids in (alone, prompt)]
    assert own_ids[0] == own_ids[1]
    if packed.count("own") == 1 and len(packed) > len(caption) + 2:
        # There is a negative: then nothing is cut off.
        assert tokenizer.count_tokens(packed) <= tokenizer.max_content_tokens
