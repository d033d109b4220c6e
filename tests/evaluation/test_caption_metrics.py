"""Scores of captions: against hand counts, recorded numbers of pycocoevalcap, and the package itself where it is."""

import contextlib
import io
import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glipv2_d2.evaluation.caption_metrics.tokenization import tokenize_caption
from glipv2_d2.evaluation.caption_metrics.word_metrics import (
    bleu_scores,
    cider_scores,
    common_subsequence_length,
    count_ngrams,
    rouge_l_scores,
)

METRICS = (bleu_scores, rouge_l_scores, cider_scores)


def words_of(captions, references):
    return [text.split() for text in captions], [[text.split() for text in texts] for texts in references]


def random_case(seed):
    """Captions near to their references and far from them, some without words."""
    draw = random.Random(seed)
    vocabulary = [f"w{number}" for number in range(draw.choice([3, 10, 40]))]

    def sentence(shortest):
        return [draw.choice(vocabulary) for _ in range(draw.randint(shortest, 15))]

    references = [[sentence(1) for _ in range(draw.randint(1, 5))] for _ in range(draw.randint(1, 12))]
    captions = []
    for sentences in references:
        caption = sentence(0) if draw.random() < 0.4 else list(draw.choice(sentences))
        if caption and draw.random() < 0.7:
            caption[draw.randrange(len(caption))] = draw.choice(vocabulary)
        captions.append(caption)
    return captions, references


@pytest.fixture(scope="module")
def recorded(request):
    return request.path.parents[1] / "assets" / "caption_metrics"


@pytest.mark.parametrize("number", range(6))
def test_scores_equal_the_recorded_ones_of_pycocoevalcap(recorded, number):
    case = json.loads((recorded / "scores.json").read_text())["cases"][number]
    captions, references = words_of(case["captions"], case["references"])
    assert bleu_scores(captions, references) == pytest.approx(case["bleu"], rel=1e-9, abs=0)
    assert rouge_l_scores(captions, references).tolist() == pytest.approx(case["rouge_l"], rel=1e-12)
    assert cider_scores(captions, references).tolist() == pytest.approx(case["cider"], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("seed", range(60))
def test_scores_equal_those_of_pycocoevalcap(seed):
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu")
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge")
    cider = pytest.importorskip("pycocoevalcap.cider.cider")
    captions, references = random_case(seed)
    found = {row: [" ".join(caption)] for row, caption in enumerate(captions)}
    wanted = {row: [" ".join(sentence) for sentence in sentences] for row, sentences in enumerate(references)}
    with contextlib.redirect_stdout(io.StringIO()):
        expected = bleu.Bleu(4).compute_score(wanted, found)[0]
    assert bleu_scores(captions, references) == pytest.approx(expected, rel=1e-9, abs=0)
    expected = rouge.Rouge().compute_score(wanted, found)[1].tolist()
    assert rouge_l_scores(captions, references).tolist() == pytest.approx(expected, rel=1e-12)
    expected = cider.Cider().compute_score(wanted, found)[1].tolist()
    assert cider_scores(captions, references).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_ngrams_are_counted_with_repetition():
    assert count_ngrams("a b a b".split(), 2) == {("a", "b"): 2, ("b", "a"): 1}
    assert count_ngrams(["a"], 2) == {}


def test_bleu_by_hand():
    captions, references = words_of(["a cat on a a red"], [["red cat", "a cat on a mat"]])
    # "a" is found twice, as in the second reference, "cat", "on" and "red"; the pairs "a cat", "cat on" and "on a"; the
    # triples "a cat on" and "cat on a"; and "a cat on a". Five words of a reference are not too many for six.
    precisions = [5 / 6, 3 / 5, 2 / 4, 1 / 3]
    expected = [math.prod(precisions[:order]) ** (1 / order) for order in (1, 2, 3, 4)]
    assert bleu_scores(captions, references) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(
    ("references", "expected"),
    [
        (["a b c d", "a b c d e f g"], math.exp(1 - 4 / 3)),  # One word away and four away.
        (["a b", "a b c d"], 1.0),  # Both one word away: the shorter, and so no penalty.
        (["a b c d e f"], math.exp(1 - 6 / 3)),
    ],
)
def test_bleu_of_a_short_caption_is_less(references, expected):
    captions, references = words_of(["a b c"], [references])
    assert bleu_scores(captions, references)[0] == pytest.approx(expected, rel=1e-7)


def test_rouge_by_hand():
    # Common: "a cat sits" of 4 and 5 words, "cat" of 4 and 1; the best precision is of one, the best recall of another.
    captions, references = words_of(["a cat sits down"], [["a black cat sits here", "cat"]])
    precision, recall, weight = 3 / 4, 1.0, 1.2**2
    expected = (1 + weight) * precision * recall / (recall + weight * precision)
    assert rouge_l_scores(captions, references).tolist() == pytest.approx([expected])


@given(st.lists(st.sampled_from("abc"), max_size=6), st.lists(st.sampled_from("abc"), max_size=6))
def test_common_subsequence_is_the_longest_of_all(first, second):
    def subsequences(words):
        return {tuple(w for k, w in enumerate(words) if mask >> k & 1) for mask in range(2 ** len(words))}

    expected = max(map(len, subsequences(first) & subsequences(second)))
    assert common_subsequence_length(first, second) == expected


def test_cider_by_hand():
    # Of two images, "x" is in both: it weighs nothing. "a" and "b" weigh log 2.
    captions, references = words_of(["a x", "b b x"], [["a x"], ["b x"]])
    # The first is its reference: 1 for words and pairs, 0 for longer runs, which are not there.
    first = 10 * (1 + 1) / 4
    # The second has "b" twice: clipped at 1, by norms of 2 and 1; its pairs "b b" and "b x" by "b x"; one word longer.
    second = 10 * (1 / 2 + 1 / math.sqrt(2)) / 4 * math.exp(-1 / (2 * 36))
    assert cider_scores(captions, references).tolist() == pytest.approx([first, second])


def test_cider_of_a_single_image_is_zero():
    captions, references = words_of(["a b c d"], [["a b c d"]])
    assert cider_scores(captions, references).tolist() == [0.0]


def test_captions_without_words_score_nothing():
    captions, references = [[], []], [[["a", "b"]], [["c"], []]]
    assert bleu_scores(captions, references) == pytest.approx([0.0] * 4, abs=1e-9)
    assert rouge_l_scores(captions, references).tolist() == [0.0, 0.0]
    assert cider_scores(captions, references).tolist() == [0.0, 0.0]
    assert rouge_l_scores([["a"]], [[[], ["a"]]]).tolist() == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A man's dog doesn't like the \"blue\" ball.", "a man 's dog does n't like the blue ball"),
        ("I can't; won't & don't: he'd've gone...", "i ca n't wo n't & do n't he 'd 've gone"),
        ("Gotta or cannot, gonna?", "got ta or can not gon na"),
        ("A black-and-white T-shirt (size XL)", "a black-and-white t-shirt -lrb- size xl -rrb-"),
        ("$5.99, 1,000 at 2:50pm -- 50% off!", "$ 5.99 1,000 at 2:50 pm 50 % off"),
        ("Mr. Smith of the U.S. at St. James", "mr. smith of the u.s. at st. james"),
        ("the girls’ “quoted” ‘words’ – it’s…", "the girls quoted words it 's"),
        ("what?! no!! yes! ok?", "what ?! no !! yes ok"),
        ("no. 5 and no. of the '90s", "no. 5 and no of the '90s"),
        ("man,woman;child", "man woman child"),
        (" a \n b ", "a b"),
        ("...", ""),
        ("", ""),
    ],
)
def test_caption_is_split_into_words(caption, expected):
    assert tokenize_caption(caption) == expected.split()


def test_words_are_those_of_the_treebank_but_for_known_departures(recorded):
    content = json.loads((recorded / "words.json").read_text())
    assert len(content["equal"]) > 100
    for row in content["equal"]:
        assert tokenize_caption(row["text"]) == row["words"], row["text"]
    assert [row["text"] for row in content["different"] if tokenize_caption(row["text"]) == row["words"]] == []


@given(st.text())
def test_any_text_has_words_without_space_and_case(text):
    words = tokenize_caption(text)
    assert all(word and not word.isspace() and word not in {".", ",", "'", '"', "!", "?", "-"} for word in words)
