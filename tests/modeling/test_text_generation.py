"""Beam search, of which greedy search is the narrowest: tables by hand, and brute force over a tiny vocabulary."""

import itertools
import math

import pytest
import torch
from pretended_device import pretended_device

from glipv2_d2.modeling.tasks.text_generation import GenerationRules, allowed_log_probs, generate

END, START = 0, 9


class TableState:
    """The texts so far, whose images are told by their place."""

    def __init__(self, tables, texts):
        self.tables, self.texts = tables, texts

    def select(self, rows):
        return TableState(self.tables, [self.texts[row] for row in rows.tolist()])


def table_step(token_ids, state):
    """Rate by a function of image and text; texts of an image stand side by side."""
    texts = [(*text, token) for text, token in zip(state.texts, token_ids.tolist())]
    assert len(texts) % len(state.tables) == 0 and all(text[0] == START for text in texts)
    width = len(texts) // len(state.tables)
    logits = [state.tables[row // width](text[1:]) for row, text in enumerate(texts)]
    return torch.stack(logits), TableState(state.tables, texts)


def search_with(tables, **settings):
    rules = GenerationRules(**{"start_id": START, "end_id": END, "no_repeat_ngram": 0, **settings})
    found = generate(table_step, TableState(tables, [()] * len(tables)), len(tables), rules)
    return [(tuple(text.token_ids.tolist()), text.score) for text in found]


def random_table(seed, vocab_size=4, sharpness=1.5):
    """Logits that depend on the whole text."""

    def rate(text):
        number = seed
        for token in text:
            number = number * 31 + token + 1
        generator = torch.Generator().manual_seed(number)
        return sharpness * torch.randn(vocab_size, generator=generator)

    return rate


def log_table(probabilities):
    """Rate by a dict from texts to the probabilities of the next token; anything else ends for sure."""

    def rate(text):
        return torch.tensor(probabilities.get(text, (1.0, 0.0, 0.0))).log()

    return rate


# --- by hand ----------------------------------------------------------------------------------------------------------


def probable(row):
    """Tokens that are allowed."""
    return (row > -math.inf).nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("size", "text", "expected"),
    [
        (0, (1, 1, 1, 1), [0, 1, 2, 3]),
        (1, (1, 3), [0, 2]),
        (2, (1, 2, 1), [0, 1, 3]),  # after 1 came 2
        (2, (1, 2, 1, 3, 1), [0, 1]),  # after 1 came 2 and 3
        (2, (1, 2, 3), [0, 1, 2, 3]),
        (2, (3, 3), [0, 1, 2]),
        (2, (3,), [0, 1, 2, 3]),
        (3, (1, 2, 3, 1, 2), [0, 1, 2]),
        (3, (1, 2, 3, 2, 2), [0, 1, 2, 3]),
        (3, (1, 2), [0, 1, 2, 3]),
        (2, (), [0, 1, 2, 3]),
    ],
)
def test_no_sequence_of_tokens_comes_twice(size, text, expected):
    rules = GenerationRules(START, END, no_repeat_ngram=size)
    log_probs = allowed_log_probs(torch.zeros(1, 4), torch.tensor([text], dtype=torch.int64), rules)
    assert probable(log_probs[0]) == [index for index in expected if index != END or text]


def test_end_stays_allowed_where_nothing_else_is():
    rules = GenerationRules(START, END, banned_ids=(2,), min_length=5, no_repeat_ngram=1)
    assert probable(allowed_log_probs(torch.zeros(1, 3), torch.tensor([[1]]), rules)[0]) == [END]


def test_logits_in_half_precision_are_rated_in_single():
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    rules = GenerationRules(START, END, min_length=0)
    expected = logits.double().log_softmax(-1).float()
    torch.testing.assert_close(allowed_log_probs(logits, torch.zeros(2, 0, dtype=torch.int64), rules), expected)


# --- against slow twins -----------------------------------------------------------------------------------------------


def all_texts(table, vocab_size, rules):
    """Every allowed text with its score, one by one."""
    found = {}
    words = [token for token in range(vocab_size) if token != END and token not in rules.banned_ids]
    for length in range(rules.min_length, rules.max_length + 1):
        for text in itertools.product(words, repeat=length):
            size = rules.no_repeat_ngram
            grams = [text[begin : begin + size] for begin in range(length - size + 1)] if size else []
            if len(grams) == len(set(grams)):
                total = 0.0
                for place, token in enumerate((*text, END)):
                    total += table(text[:place]).double().log_softmax(-1)[token].item()
                found[text] = total / (length + 1) ** rules.length_penalty
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {"length_penalty": 0.0},
        {"length_penalty": 1.0},
        {"length_penalty": 2.0, "min_length": 2},
        {"length_penalty": 0.7, "no_repeat_ngram": 2},
        {"length_penalty": 1.5, "no_repeat_ngram": 1, "min_length": 0},
        {"length_penalty": 1.0, "banned_ids": (2,)},
        {"length_penalty": -0.5, "min_length": 0},
    ],
)
def test_a_beam_as_wide_as_all_texts_finds_the_best_of_all(settings):
    tables = [random_table(seed) for seed in range(6)]
    settings = {"max_length": 4, **settings}
    found = search_with(tables, beam_size=130, **settings)
    rules = GenerationRules(**{"start_id": START, "end_id": END, "no_repeat_ngram": 0, **settings})
    for table, (text, score) in zip(tables, found):
        ratings = all_texts(table, 4, rules)
        assert ratings[text] == max(ratings.values())
        assert score == pytest.approx(ratings[text], rel=1e-5)


def slow_beam(table, vocab_size, rules):
    """Beam search over lists, one text at a time, that never stops early."""
    beam, places, ended = [((), 0.0)], rules.beam_size, {}
    for length in range(rules.max_length + 1):
        candidates = []
        for text, total in beam:
            rated = table(text).double().log_softmax(-1).tolist()
            allowed = range(vocab_size) if length < rules.max_length else [END]
            allowed = [token for token in allowed if token not in rules.banned_ids]
            candidates += [
                (total + rated[token], text, token) for token in allowed if token != END or length >= rules.min_length
            ]
        candidates = sorted(candidates, reverse=True)[:places]
        beam = [((*text, token), total) for total, text, token in candidates if token != END]
        for total, text, token in candidates:
            if token == END:
                ended[text] = total / (length + 1) ** rules.length_penalty
        places = rules.beam_size - len(ended)
    return max(ended.items(), key=lambda item: item[1])


@pytest.mark.parametrize("beam_size", [1, 2, 3, 5])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 1.6, -1.0])
def test_beam_search_equals_the_slow_one_and_stops_early_without_loss(beam_size, penalty):
    tables = [random_table(seed, vocab_size=6, sharpness=2.0) for seed in range(8)]
    settings = {"beam_size": beam_size, "length_penalty": penalty, "max_length": 7, "banned_ids": (3,)}
    found = search_with(tables, **settings)
    rules = GenerationRules(**{"start_id": START, "end_id": END, "no_repeat_ngram": 0, **settings})
    for table, (text, score) in zip(tables, found):
        expected, expected_score = slow_beam(table, 6, rules)
        assert text == expected
        assert score == pytest.approx(expected_score, rel=1e-5)


def slow_greedy(table, rules):
    """The likeliest token at every step, the first of several."""
    text, total = (), 0.0
    while True:
        texts = torch.tensor([text], dtype=torch.int64).reshape(1, -1)
        rated = allowed_log_probs(table(text)[None], texts, rules)[0].tolist()
        token = rated.index(max(rated))
        total += rated[token]
        if token == END:
            return text, total / (len(text) + 1) ** rules.length_penalty
        text = (*text, token)


@pytest.mark.parametrize("settings", [{}, {"no_repeat_ngram": 2}, {"min_length": 3, "length_penalty": 0.0}])
@pytest.mark.parametrize("ties", [False, True])
def test_a_beam_of_one_is_greedy_search(settings, ties):
    tables = [random_table(seed, vocab_size=90 if ties else 7) for seed in range(20)]
    if ties:
        tables = [lambda text, table=table: table(text).round() for table in tables]
    settings = {"beam_size": 1, "max_length": 9, **settings}
    rules = GenerationRules(**{"start_id": START, "end_id": END, "no_repeat_ngram": 0, **settings})
    expected = [slow_greedy(table, rules) for table in tables]
    found = search_with(tables, **settings)
    assert [text for text, _ in found] == [text for text, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected])
    assert len({len(text) for text, _ in expected}) > (1 if ties else 2)


def test_a_beam_of_one_ranks_tokens_before_their_total_is_rounded():
    # Nine tokens of probability exp(-30), since token 3 is banned; then two that differ by less than the total shows.
    rare, near = torch.tensor([-60.0, 0.0, -9.0, 30.0]), torch.tensor([-60.0, 0.0, 1e-6, 0.0])
    assert (
        search_with([lambda text: rare if len(text) < 9 else near], beam_size=1, max_length=12, banned_ids=(3,))[0][0]
        == (1,) * 9 + (2,) * 3
    )


@pytest.mark.parametrize("beam_size", [1, 3])
def test_search_stops_when_all_texts_have_ended(beam_size):
    calls = []

    def step(token_ids, state):
        calls.append(len(token_ids))
        return table_step(token_ids, state)

    certain = log_table({(): (0.0, 1.0, 0.0)})
    rules = GenerationRules(START, END, beam_size=beam_size, max_length=30)
    found = generate(step, TableState([certain, certain], [(), ()]), 2, rules)
    assert [text.token_ids.tolist() for text in found] == [[1], [1]]
    assert calls == [2, 2 * beam_size]


@pytest.mark.parametrize("beam_size", [1, 3])
def test_texts_that_cannot_win_any_more_end_the_search(beam_size):
    # After token 1 the end has 0.9; what is left can never be rated above it without a penalty.
    table = log_table({(): (0.0, 1.0, 0.0), (1,): (0.9, 0.05, 0.05)} | {(1, k): (0.0, 0.5, 0.5) for k in (1, 2)})
    calls = []

    def step(token_ids, state):
        calls.append(len(token_ids))
        return table_step(token_ids, state)

    rules = GenerationRules(START, END, beam_size=beam_size, max_length=30, length_penalty=0.0)
    assert generate(step, TableState([table], [()]), 1, rules)[0].token_ids.tolist() == [1]
    assert len(calls) == 2


def test_a_beam_wider_than_the_vocabulary_leaves_places_empty():
    table = log_table({(): (0.0, 0.6, 0.4), (1,): (1.0, 0.0, 0.0), (2,): (1.0, 0.0, 0.0)})
    assert search_with([table], beam_size=10) == [((1,), pytest.approx(math.log(0.6) / 2))]


class NoState:
    """The next token depends on the last one alone."""

    def select(self, rows):
        return self


@pytest.mark.parametrize(("beam_size", "max_length", "waits"), [(1, 6, 1), (1, 30, 2), (3, 14, 2), (3, 30, 3)])
def test_a_device_is_asked_after_every_eighth_token_whether_all_texts_are_there(beam_size, max_length, waits):
    logits = torch.randn(12, 12, generator=torch.Generator().manual_seed(0))
    # Texts that end: all are there by the 8th step, in a wider beam by the 16th.
    logits[:, END] += 1.0
    rules = GenerationRules(START, END, banned_ids=(3, 4), beam_size=beam_size, max_length=max_length, min_length=6)

    def search(table):
        step = lambda token_ids, state: (table[token_ids], state)  # noqa: E731
        return [(text.token_ids.tolist(), text.score) for text in generate(step, NoState(), 3, rules, table.device)]

    expected = search(logits)
    with pretended_device() as traffic:
        table = logits.to("cuda")
        # The mask of banned tokens is sent once.
        search(table)
        traffic.clear()
        assert search(table) == expected
        assert traffic.waits.total() == waits and not traffic.mixed and not traffic.copies


# --- wrong input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beam_size", [1, 2])
def test_logits_without_numbers_are_an_error(beam_size):
    with pytest.raises(ValueError, match="expected finite logits"):
        search_with([lambda text: torch.full((3,), math.nan)], beam_size=beam_size, max_length=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beam_size": 0}, "MODEL.GLIPV2.CAPTIONING.BEAM_SIZE: expected at least 1, found 0"),
        ({"max_length": 0}, "MAX_LENGTH: expected at least 1, found 0"),
        ({"min_length": -1}, "MIN_LENGTH: expected at least 0, found -1"),
        ({"no_repeat_ngram": -1}, "NO_REPEAT_NGRAM: expected at least 0, found -1"),
        ({"min_length": 6, "max_length": 5}, r"MIN_LENGTH: expected at most MAX_LENGTH \(5\), found 6"),
        ({"banned_ids": (4, END)}, "banned_ids: found the end token 0"),
    ],
)
def test_numbers_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        GenerationRules(START, END, **settings)


@pytest.mark.parametrize(("end", "banned", "found"), [(4, (), 4), (0, (1, 7), 7), (0, (-1,), -1)])
def test_ids_outside_the_vocabulary_are_named(end, banned, found):
    rules = GenerationRules(START, end, banned_ids=banned)
    with pytest.raises(ValueError, match=f"expected ids below 4, found {found}"):
        allowed_log_probs(torch.zeros(1, 4), torch.zeros(1, 0, dtype=torch.int64), rules)
