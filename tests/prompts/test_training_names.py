"""The choice of names for a training prompt."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ASSETS
from hypothesis import given
from hypothesis import strategies as st

from glipv2_d2.prompts.builder import prompt_from_names
from glipv2_d2.prompts.tokenizer import PromptTokenizer
from glipv2_d2.prompts.training_names import Siblings, sample_training_names

OD_PROMPTS = json.loads((ASSETS / "parity" / "text" / "od_prompts.json").read_text())

# Each is one word piece, two with the full stop.
SHORT_NAMES = ["cat", "dog", "bus", "cow", "car", "bird", "horse", "boat", "bench", "sheep"]


@pytest.fixture(scope="module")
def tokenizer():
    return PromptTokenizer()


def word_counter(max_content_tokens):
    """A tokenizer whose tokens are words and full stops."""
    return SimpleNamespace(
        max_content_tokens=max_content_tokens, count_tokens=lambda text: len(text.replace(".", " . ").split())
    )


def draw(
    names,
    positives,
    tokenizer,
    seed,
    num_negatives=85,
    full_negatives_prob=0.5,
    shuffle=True,
    sampling="drawn",
    never_negatives=(),
    **more,
):
    return sample_training_names(
        names,
        positives,
        tokenizer,
        num_negatives=num_negatives,
        full_negatives_prob=full_negatives_prob,
        shuffle=shuffle,
        rng=np.random.default_rng(seed),
        negative_sampling=sampling,
        never_negatives=never_negatives,
        **more,
    )


def test_all_names_in_order_give_the_official_prompt_of_fine_tuning(tokenizer):
    case = next(case for case in OD_PROMPTS["deterministic_cases"] if "simple converter" in case["why"])
    names = list(case["class_dictionary"].values())
    rows = draw(names, {0, 3, 4}, tokenizer, seed=0, num_negatives=-1, shuffle=False)
    prompt = prompt_from_names([names[row] for row in rows])
    assert prompt.caption == case["caption"]
    for label, span in case["label_to_span"].items():
        assert prompt.phrase_spans[rows.index(int(label) - 1)] == (tuple(span),)


def test_all_names_shuffled_are_a_permutation_that_the_seed_decides(tokenizer):
    orders = [draw(SHORT_NAMES, {1}, tokenizer, seed, num_negatives=-1) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[2]) == list(range(len(SHORT_NAMES)))


def test_all_names_must_fit():
    # Ten names of two tokens each, but none after the last: 19.
    assert len(draw(SHORT_NAMES, {1}, word_counter(19), 0, num_negatives=-1)) == 10
    with pytest.raises(
        ValueError, match="NUM_NEGATIVES: -1 puts all 10 names into one prompt, expected at most 18 tokens .*, found 19"
    ):
        draw(SHORT_NAMES, {1}, word_counter(18), 0, num_negatives=-1)


@pytest.mark.parametrize(
    "key, names",
    [
        ("small_dictionary", None),
        ("objects365_like", ["__background__", *(f"class number {i}" for i in range(1, 366))]),
        # The fixture abbreviates its names; these are the ones whose word pieces give its counts.
        ("objects365_like_short", ["__background__", *(f"class{i}" for i in range(1, 366))]),
        ("always_full", None),
    ],
)
def test_drawn_names_have_the_official_statistics(key, names, tokenizer):
    expected = OD_PROMPTS["statistics"][key]
    names = names or list(expected["class_dictionary"].values())
    positives = set(expected["labels"])
    probability = 1.0 if key == "always_full" else 0.5
    prompts = [draw(names, positives, tokenizer, seed, full_negatives_prob=probability) for seed in range(400)]
    negatives = np.array([len(set(rows) - positives) for rows in prompts])
    tokens = np.array([tokenizer.count_tokens(prompt_from_names([names[r] for r in rows]).caption) for rows in prompts])
    assert all(positives <= set(rows) and len(set(rows)) == len(rows) for rows in prompts)

    # Four standard errors of the difference between two means, of this and of the official number of runs.
    scale = 4 * np.sqrt(1 / 400 + 1 / expected["runs"])
    assert negatives.mean() == pytest.approx(expected["negatives_mean"], abs=scale * negatives.std() + 1e-9)
    assert tokens.mean() == pytest.approx(expected["tokens_mean"], abs=scale * tokens.std() + 1e-9)
    background = np.mean([0 in rows for rows in prompts])
    assert background == pytest.approx(expected["share_with_background_as_negative"], abs=scale * 0.5)
    full = np.mean(negatives == expected["negatives_max"])
    assert full == pytest.approx(expected["share_with_max_negatives"], abs=scale * 0.5)
    assert negatives.min() >= expected["negatives_min"]
    assert negatives.max() <= expected["negatives_max"]
    assert tokens.max() <= expected["tokens_max"]


def test_negatives_stop_at_the_first_that_does_not_fit():
    # Only the long name can be drawn first and end the walk; with it last, all three short ones are in.
    names = ["cat", "a b c d e f g h", "dog", "bus"]
    sizes = {len(draw(names, {0}, word_counter(10), seed, full_negatives_prob=1.0)) for seed in range(50)}
    assert sizes == {1, 2, 3}
    assert all(1 not in draw(names, {0}, word_counter(10), seed, full_negatives_prob=1.0) for seed in range(50))


def test_drawn_positives_reduce_the_negatives():
    # Two of two names are drawn, one of them is positive.
    assert sorted(draw(["cat", "dog"], {0}, word_counter(100), 0, 2, 1.0)) == [0, 1]
    assert {len(draw(SHORT_NAMES, {0, 1, 2, 3, 4}, word_counter(100), s, 5, 1.0)) for s in range(50)} > {7, 8}


def test_no_negatives_leave_the_positives_alone():
    for seed in range(10):
        assert draw(SHORT_NAMES, {2, 5}, word_counter(100), seed, num_negatives=0, shuffle=False) == [2, 5]


@pytest.mark.parametrize(
    ("num_positives", "num_names", "total"),
    [(0, 85, 85), (3, 85, 85), (84, 85, 85), (85, 85, 85), (90, 85, 90), (2, 0, 2), (2, 200, 120)],
)
def test_total_counts_the_positives_among_the_names_of_the_prompt(num_positives, num_names, total):
    names = [f"name{i}" for i in range(120)]
    positives = set(range(0, num_positives))
    rows = draw(names, positives, word_counter(1000), 0, num_names, 1.0, sampling="total")
    assert len(rows) == len(set(rows)) == total and positives <= set(rows)


# "drawn" counts the negatives, and the image has no other name; "total" counts the positive one too.
@pytest.mark.parametrize(("sampling", "positives"), [("drawn", ()), ("total", {2})])
def test_number_of_names_is_uniform_from_one_when_not_full(sampling, positives):
    def counts_of(probability):
        arguments = (SHORT_NAMES, positives, word_counter(100))
        return [len(draw(*arguments, seed, 4, probability, sampling=sampling)) for seed in range(400)]

    counts = counts_of(0.0)
    assert set(counts) == {1, 2, 3, 4}
    # Expected 100 each; 4 standard deviations are 35.
    assert all(65 < counts.count(size) < 135 for size in (1, 2, 3, 4))
    # 0.5 + 0.5 / 4 of them are full: 250 +- 39.
    assert 211 < counts_of(0.5).count(4) < 289


def test_total_takes_every_absent_name_equally_often():
    prompts = [draw(SHORT_NAMES, {2, 5}, word_counter(100), seed, 4, 1.0, sampling="total") for seed in range(800)]
    # Two of the eight absent names: 200 of each are expected; 4 standard deviations are 49.
    shares = [sum(row in rows for rows in prompts) for row in range(10)]
    assert shares[2] == shares[5] == 800
    assert all(151 < share < 249 for row, share in enumerate(shares) if row not in (2, 5))


@pytest.mark.parametrize("sampling", ["drawn", "total"])
def test_names_obey_the_token_limit(sampling):
    # The positive takes 2 of 8 tokens; negatives of 2 leave 4, 2 and 0: the third finds no token left over.
    rows = draw(SHORT_NAMES, {4}, word_counter(8), seed=0, full_negatives_prob=1.0, sampling=sampling)
    assert len(rows) == 3 and 4 in rows
    # Official case: "person." is 2 tokens, "traffic light." 3; of a budget of 3 one of them remains, by chance, without
    # negatives.
    arguments = (["person", "traffic light", "dog"], {0, 1}, word_counter(3))
    for number in (3, 85):
        found = {tuple(draw(*arguments, seed, number, 1.0, sampling=sampling)) for seed in range(30)}
        assert found == {(0,), (1,)}


@pytest.mark.parametrize("num_negatives", [-1, 4, 85])
@pytest.mark.parametrize("sampling", ["drawn", "total"])
def test_names_that_are_never_negatives_are_in_the_prompt_only_as_positives(sampling, num_negatives):
    options = {"sampling": sampling, "never_negatives": {2, 3, 5}}
    prompts = [draw(SHORT_NAMES, {2, 7}, word_counter(100), seed, num_negatives, 0.5, **options) for seed in range(100)]
    assert all({2, 7} <= set(rows) and not {3, 5} & set(rows) for rows in prompts)
    assert set().union(*prompts) == set(range(10)) - {3, 5}
    if num_negatives == 4:
        # Without them "total" still fills the prompt; "drawn" drops them as it drops positives.
        assert (max(len(rows) for rows in prompts) == 4) == (sampling == "total")


@pytest.mark.parametrize("num_negatives", [0, 1])
def test_image_without_boxes_gets_a_name_that_is_never_negative_only_for_want_of_others(num_negatives):
    arguments = (SHORT_NAMES, (), word_counter(100))
    prompts = [draw(*arguments, seed, num_negatives, never_negatives=range(8)) for seed in range(60)]
    assert {tuple(rows) for rows in prompts} == {(8,), (9,)}
    for number in (num_negatives, -1):
        assert len(draw(*arguments, 0, number, never_negatives=range(10))) == 1


def share_of_siblings(sampling, share, num_negatives=4, siblings=(0, 1, 2, 3, 4)):
    """The mean number of siblings and of all negatives in a full prompt of an image with name 0."""
    options = {"sampling": sampling, "siblings": Siblings(siblings, share)}
    arguments = (SHORT_NAMES, {0}, word_counter(100))
    prompts = [set(draw(*arguments, seed, num_negatives, 1.0, **options)) - {0} for seed in range(400)]
    counts = [(len(rows.intersection(siblings)), len(rows)) for rows in prompts]
    return tuple(np.mean(counts, axis=0))


def test_siblings_are_the_negatives_as_long_as_there_are_any():
    # Five names with the positive one: four siblings.
    assert share_of_siblings("drawn", 1.0, 4) == share_of_siblings("total", 1.0, 5) == (4.0, 4.0)
    # The sixth and seventh of "total" are others; of "drawn", two rows among the six others may be the positive one.
    assert share_of_siblings("total", 1.0, 7) == (4.0, 6.0)
    found, all_found = share_of_siblings("drawn", 1.0, 6)
    # Two of six rows are drawn, and one of these is positive: dropped in a third of the prompts, +- 0.1 (4 deviations).
    assert found == 4.0 and all_found == pytest.approx(6 - 1 / 3, abs=0.1)


def test_share_is_that_of_the_negatives_which_are_siblings_on_purpose():
    # "total" 4: of 3 negatives the number of siblings on purpose is binomial, 1.5; of the others, drawn from the 9 - s
    # absent names that are left, 4 - s are siblings. The sum over s of P(s) * (s + (3 - s) * (4 - s) / (9 - s)):
    chances = (1 / 8, 3 / 8, 3 / 8, 1 / 8)
    expected = sum(chance * (s + (3 - s) * (4 - s) / (9 - s)) for s, chance in enumerate(chances))
    # Four standard errors.
    assert share_of_siblings("total", 0.5) == (pytest.approx(expected, abs=0.18), 3.0)
    # Without a share 4 of the 9 absent names are siblings.
    assert share_of_siblings("total", 0.0) == (pytest.approx(3 * 4 / 9, abs=0.16), 3.0)


def test_every_sibling_comes_equally_often_and_anywhere_in_the_walk():
    options = {"sampling": "total", "siblings": Siblings(range(5), 0.5)}
    names = ["cat", "dog", "bus", "cow", "car", "bird", "horse", "boat", "bench"]
    rows = [draw(names, {0}, word_counter(7), seed, 9, 1.0, **options) for seed in range(800)]
    counts = [sum(row in one for one in rows) for row in range(9)]
    assert all(len(one) == 3 for one in rows)
    # All eight absent names are drawn, and two fit beside the positive one: each in a quarter of 800 prompts; 4
    # deviations are 49.
    assert all(151 < count < 249 for count in counts[1:])


@pytest.mark.parametrize("sampling", ["drawn", "total"])
def test_siblings_that_are_never_negatives_stay_out(sampling):
    options = {"sampling": sampling, "siblings": Siblings(range(5), 1.0), "never_negatives": {0, 1, 2}}
    prompts = [draw(SHORT_NAMES, {0}, word_counter(100), seed, 3, 1.0, **options) for seed in range(30)]
    assert all(set(rows) >= {0, 3, 4} and not {1, 2} & set(rows) for rows in prompts)


# The one sibling of the last is positive itself.
@pytest.mark.parametrize(("rows", "share"), [(range(10), 0.0), ((), 1.0), ({3}, 1.0)])
@pytest.mark.parametrize("sampling", ["drawn", "total"])
def test_without_share_or_siblings_every_draw_is_what_it_was(sampling, rows, share):
    for seed in range(20):
        arguments = (SHORT_NAMES, {3}, word_counter(12), seed, 6)
        found = draw(*arguments, sampling=sampling, siblings=Siblings(rows, share))
        assert found == draw(*arguments, sampling=sampling)


def test_prompts_of_all_names_do_not_ask_for_siblings():
    arguments = (SHORT_NAMES, {3}, word_counter(100), 0, -1)
    assert draw(*arguments, siblings=Siblings(range(5), 1.0)) == draw(*arguments)


@pytest.mark.parametrize(
    ("sampling", "positives", "rows", "next_number"),
    [
        ("drawn", {4}, [8, 4], 515325),
        ("drawn", (), [8], 468851),
        ("drawn", {1, 8}, [5, 8, 1, 3, 9], 48757),
        ("total", {4}, [4], 408473),
        ("total", (), [9], 408473),
        ("total", {1, 8}, [9, 3, 8, 1, 7], 190982),
    ],
)
def test_prompts_of_a_seed_stay_what_they_were(sampling, positives, rows, next_number):
    # Recorded: a change of the order of draws would change the training data of every seed.
    rng = np.random.default_rng(5)
    options = {"num_negatives": 6, "full_negatives_prob": 0.5, "shuffle": True, "rng": rng}
    names = [f"n{i}" for i in range(10)]
    assert sample_training_names(names, positives, word_counter(12), negative_sampling=sampling, **options) == rows
    assert rng.integers(10**6) == next_number


def test_unknown_negative_sampling_is_refused_with_its_key():
    with pytest.raises(ValueError, match="INPUT.PROMPT.NEGATIVE_SAMPLING: expected one of .*'total'.*, found 'all'"):
        draw(SHORT_NAMES, {4}, word_counter(8), seed=0, sampling="all")


def test_image_without_boxes_always_gets_a_name():
    assert all(len(draw(SHORT_NAMES, (), word_counter(100), seed, 0)) == 1 for seed in range(5))
    assert all(len(draw(SHORT_NAMES, (), word_counter(2), seed, 85, 1.0)) == 1 for seed in range(5))


def test_order_is_random_with_shuffle_and_that_of_the_names_without():
    shuffled = [draw(SHORT_NAMES, {7}, word_counter(100), seed) for seed in range(20)]
    assert any(rows != sorted(rows) for rows in shuffled)
    assert {rows.index(7) == 0 for rows in shuffled if len(rows) > 1} == {True, False}
    for seed in range(20):
        rows = draw(SHORT_NAMES, {7}, word_counter(100), seed, shuffle=False)
        assert rows == sorted(rows)


def test_order_in_which_positives_are_given_changes_nothing():
    assert draw(SHORT_NAMES, [8, 1, 3], word_counter(7), 5) == draw(SHORT_NAMES, [3, 8, 1, 1], word_counter(7), 5)


@given(
    positives=st.sets(st.integers(0, 9)),
    budget=st.integers(2, 30),
    num_negatives=st.integers(-1, 20),
    probability=st.floats(0, 1),
    sampling=st.sampled_from(["drawn", "total"]),
    siblings=st.sets(st.integers(0, 9)),
    share=st.floats(0, 1),
    barred=st.sets(st.integers(0, 8)),
    seed=st.integers(0, 1000),
)
def test_every_drawn_prompt_fits_and_holds_a_name(
    positives, budget, num_negatives, probability, sampling, siblings, share, barred, seed
):
    if num_negatives == -1 and budget < 19:
        return
    arguments = (SHORT_NAMES, positives, word_counter(budget), seed, num_negatives, probability)
    more = {"sampling": sampling, "siblings": Siblings(siblings, share), "never_negatives": barred}
    rows = draw(*arguments, **more)
    assert rows == draw(*arguments, **more)
    assert not barred.difference(positives).intersection(rows)
    if num_negatives >= 0:
        assert len(positives.intersection(rows)) == min(len(positives), budget // 2)
        assert len(set(rows) - positives) <= max(num_negatives, 1)
    caption = prompt_from_names([SHORT_NAMES[row] for row in rows]).caption
    assert 1 <= word_counter(0).count_tokens(caption) <= budget
    assert len(set(rows)) == len(rows)
