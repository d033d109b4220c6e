"""Targets and value of the inter-image contrastive loss: label propagation case by case, and equal forms."""

import math
from itertools import product

import pytest
import torch
from contrastive_samples import Image, make_batch, random_images
from hypothesis import given, settings
from hypothesis import strategies as st
from pretended_device import pretended_device
from torch.testing import assert_close

from glipv2_d2.modeling.losses import masked_logsumexp as masked_logsumexp_module
from glipv2_d2.modeling.losses.contrastive_loss import contrastive_loss, soft_cross_entropy
from glipv2_d2.modeling.losses.masked_logsumexp import ignored_pairs
from glipv2_d2.modeling.losses.region_word_targets import dense_targets, factor_targets, factor_without_counting

PERSON, DOG, CAT = 0, 16, 15

# Prompts of two names with a full stop between them, and a sentence: "a person runs".
PERSON_DOG = Image([0, None, 1], [PERSON, DOG], [0])
DOG_PERSON = Image([0, None, 1], [DOG, PERSON], [0])
SENTENCE = Image([None, 0, None], [-1], [0])

# One line for each region, one sign for each word: + belongs to it, - does not, . takes no part. Images are set apart.
PROPAGATION = {
    "a class in another detection prompt is positive": ([PERSON_DOG, DOG_PERSON], ["+-- --+", "--+ +--"]),
    "a sentence gets no labels and a region of unknown class spares the names": (
        [PERSON_DOG, SENTENCE],
        ["+-- ---", ".-. -+-"],
    ),
    "the same phrase in two sentences is negative": ([SENTENCE, SENTENCE], ["-+- ---", "--- -+-"]),
    "a class that the other prompt does not name is negative": (
        [PERSON_DOG, Image([0, None, 1], [DOG, CAT], [1])],
        ["+-- ---", "--- --+"],
    ),
    "a class in several images": (
        [PERSON_DOG, DOG_PERSON, Image([0, 1], [PERSON, CAT], [0, 1])],
        ["+-- --+ +-", "--+ +-- --", "+-- --+ +-", "--- --- -+"],
    ),
    "the same name twice: its own map counts in the image, both names elsewhere": (
        [Image([0, None, 1], [PERSON, PERSON], [1]), PERSON_DOG],
        ["--+ +--", "+-+ +--"],
    ),
    "a name of two word pieces": (
        [Image([0, 0, None, 1], [PERSON, DOG], [0, 1]), Image([None, 0, 0], [PERSON], [])],
        ["++-- -++", "---+ ---"],
    ),
    "regions of one box share their words": (
        [Image([0, None, 1], [PERSON, DOG], [0, 0]), SENTENCE],
        ["+-- ---", "+-- ---", ".-. -+-"],
    ),
    "a region of unknown class keeps its own map": (
        [PERSON_DOG._replace(known=False), DOG_PERSON],
        ["+-- .-.", "--+ +--"],
    ),
    "words that spell two phrases of a sentence": (
        [Image([0, 0], [-1, -1], [0]), Image([None, 1, 0], [-1, -1], [0, 1])],
        ["++ ---", "-- --+", "-- -+-"],
    ),
    "a phrase without tokens has no own word": (
        [Image([1, None], [PERSON, DOG], [0]), Image([0], [PERSON], [])],
        ["-- +"],
    ),
    "an image without boxes": ([Image([0], [DOG], []), DOG_PERSON], ["+ +--"]),
    "no regions": ([Image([0], [DOG], []), Image([None], [], [])], []),
}


def as_signs(targets, ignored, images):
    """Render matrices as lines like those of the table."""
    signs = [
        ["+" if target else "." if skipped else "-" for target, skipped in zip(*lines)]
        for lines in zip(targets.tolist(), ignored.tolist())
    ]
    widths = [len(image.words) for image in images]
    cuts = [sum(widths[:index]) for index in range(len(widths) + 1)]
    return [" ".join("".join(line[a:b]) for a, b in zip(cuts, cuts[1:])) for line in signs]


def as_matrix(factored, num_rows, num_columns):
    """Multiply factored targets out, entry by entry."""
    matrix = torch.zeros(num_rows, num_columns, dtype=torch.int64)
    for (hub, row), sign in zip(factored.row_entries.T.tolist(), factored.row_signs.tolist()):
        for (other_hub, column), factor in zip(factored.column_entries.T.tolist(), factored.column_signs.tolist()):
            matrix[row, column] += sign * factor * (hub == other_hub)
    return matrix


@pytest.mark.parametrize("name", PROPAGATION)
def test_labels_are_propagated_as_in_figure_2(name):
    images, expected = PROPAGATION[name]
    regions, words, region_phrases, word_phrases = make_batch(images)
    rows, columns = (regions.local, region_phrases), (words.local, word_phrases)
    targets = dense_targets(rows[0], columns[0], rows[1], columns[1])
    ignored = ignored_pairs(rows[0].groups, columns[0].groups)
    assert as_signs(targets, ignored, images) == expected
    for ((one, one_phrases), (other, other_phrases), wanted), factor in product(
        ((rows, columns, targets), (columns, rows, targets.T)), (factor_targets, factor_without_counting)
    ):
        factored = factor(one, other, one_phrases, other_phrases)
        assert torch.equal(as_matrix(factored, len(one.images), len(other.images)), wanted.long())
        assert factored.positives_per_row(len(one.images)).tolist() == wanted.sum(1).tolist()
        assert torch.equal(dense_targets(one, other, one_phrases, other_phrases), wanted)


def test_hubs_have_both_sides():
    regions, words, region_phrases, word_phrases = make_batch([PERSON_DOG, Image([0], [CAT], [0])])
    factored = factor_targets(regions.local, words.local, region_phrases, word_phrases)
    # Phrase, category and category of the image, of the person and of the cat; nothing of the dog.
    assert factored.num_hubs == 6 and factored.column_entries.shape == (2, 6)


@pytest.mark.parametrize("form", ["dense", "chunked", "auto"])
def test_loss_of_equal_scores_is_the_log_of_what_is_compared(form):
    images, _ = PROPAGATION["a sentence gets no labels and a region of unknown class spares the names"]
    loss = contrastive_loss(*make_batch(images), form)
    # The person is compared with 6 words, the unknown region with 4 of them. Of the words that have a region, "person"
    # of the names is compared with the person only, that of the sentence with both regions.
    assert loss.item() == pytest.approx((math.log(6) + math.log(4)) / 2 + (math.log(1) + math.log(2)) / 2)


def slow_axis(rows, columns, scores, targets, ignored):
    """Mean cross entropy with soft targets, number by number."""
    values = []
    for row in range(rows):
        used = [column for column in range(columns) if not ignored(row, column)]
        positive = [column for column in used if targets(row, column)]
        if positive:
            log_sum = math.log(sum(math.exp(scores(row, column)) for column in used))
            values.append(sum(log_sum - scores(row, column) for column in positive) / len(positive))
    return sum(values) / max(1, len(values))


def slow_loss(images, regions, words):
    """Eq. 4 and 5, from the images themselves."""
    region_list = [(index, phrase) for index, image in enumerate(images) for phrase in image.regions]
    word_list = [(index, phrase) for index, image in enumerate(images) for phrase in image.words]

    def category(image, phrase):
        return -1 if phrase is None else images[image].categories[phrase]

    def known(image, phrase):
        return category(image, phrase) if images[image].known else -1

    def target(region, word):
        region, word = region_list[region], word_list[word]
        return region == word if region[0] == word[0] else known(*region) == category(*word) >= 0

    def ignored(region, word):
        region, word = region_list[region], word_list[word]
        return region[0] != word[0] and known(*region) < 0 <= category(*word)

    scores = (regions.double() @ words.double().T).tolist()
    sizes = len(region_list), len(word_list)
    to_words = slow_axis(*sizes, lambda r, w: scores[r][w], target, ignored)
    to_regions = slow_axis(
        *sizes[::-1], lambda w, r: scores[r][w], lambda w, r: target(r, w), lambda w, r: ignored(r, w)
    )
    return to_words + to_regions


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), num_images=st.integers(1, 6))
def test_forms_are_equal_and_follow_the_formula(seed, num_images):
    images = random_images(torch.Generator().manual_seed(seed), num_images)
    results = []
    for form in ("dense", "chunked"):
        batch = make_batch(images, seed=seed, requires_grad=True)
        leaves = batch.regions.local.vectors, batch.words.local.vectors
        loss = contrastive_loss(*batch, form)
        loss.backward()
        results.append((loss.detach(), *(leaf.grad for leaf in leaves)))
    assert_close(results[0][0].double(), torch.tensor(slow_loss(images, *leaves)).double(), atol=1e-5, rtol=1e-5)
    assert_close(results[1][0], results[0][0], atol=1e-5, rtol=1e-5)
    for actual, expected in zip(results[1][1:], results[0][1:]):
        scale = expected.abs().max().item() if expected.numel() else 0.0
        assert_close(actual, expected, atol=1e-4 * scale + 1e-6, rtol=0.0)


def test_many_chunks_equal_the_matrix(monkeypatch):
    monkeypatch.setattr(masked_logsumexp_module, "CHUNK_PAIRS", 100)
    images = random_images(torch.Generator().manual_seed(5), 30)
    losses = [contrastive_loss(*make_batch(images, seed=3), form) for form in ("dense", "chunked")]
    assert_close(*losses, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["dense", "chunked"])
def test_gradient_in_double_precision(form):
    images = [PERSON_DOG, DOG_PERSON, SENTENCE, Image([0, 0, None], [DOG], [0, 0])]
    batch = make_batch(images, dim=3, seed=1, dtype=torch.float64, requires_grad=True)

    def loss(regions, words):
        shared = []
        for side, vectors in ((batch.regions, regions), (batch.words, words)):
            labelled = side.local._replace(vectors=vectors)
            shared.append(side._replace(local=labelled, everywhere=labelled))
        return contrastive_loss(*shared, batch.region_phrases, batch.word_phrases, form)

    assert torch.autograd.gradcheck(loss, (batch.regions.local.vectors, batch.words.local.vectors))


@pytest.mark.parametrize("form", ["dense", "chunked"])
@pytest.mark.parametrize(
    "images",
    [[Image([0, None], [DOG], [])], [Image([], [DOG], [0])], [Image([], [], [])], [Image([None], [DOG], [0])]],
    ids=["no regions", "no words", "nothing", "no positive"],
)
def test_nothing_to_compare_is_zero_and_reaches_the_vectors(images, form):
    batch = make_batch(images, seed=1, requires_grad=True)
    loss = contrastive_loss(*batch, form)
    loss.backward()
    assert loss.item() == 0.0
    for side in (batch.regions, batch.words):
        assert side.local.vectors.grad.abs().sum() == 0


def test_sum_and_number_of_rows_can_be_normalized_otherwise():
    images, _ = PROPAGATION["a class in several images"]
    regions, words, region_phrases, word_phrases = make_batch(images)
    for form in ("dense", "chunked"):
        total, count = soft_cross_entropy(regions.local, words.local, region_phrases, word_phrases, form)
        assert count == 4 and total.item() == pytest.approx(4 * math.log(8), rel=1e-6)
        total, count = soft_cross_entropy(words.local, regions.local, word_phrases, region_phrases, form)
        assert count == 6 and total.item() == pytest.approx(6 * math.log(4), rel=1e-6)


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="form: expected one of auto, chunked, triton, found 'fast'"):
        contrastive_loss(*make_batch([PERSON_DOG]), "fast")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("form", ["auto", "chunked", "triton"])
def test_gpu_equals_the_matrix(form):
    images = random_images(torch.Generator().manual_seed(7), 40)
    results = []
    for form_, device in ((form, "cuda"), ("dense", "cpu")):
        batch = make_batch(images, dim=16, seed=2)
        sides, leaves = [], []
        for side in (batch.regions, batch.words):
            local = type(side.local)(*(tensor.to(device) for tensor in side.local))
            leaves.append(local.vectors.requires_grad_())
            sides.append(side._replace(local=local, everywhere=local))
        loss = contrastive_loss(*sides, *(phrases.to(device) for phrases in batch[2:]), form_)
        loss.backward()
        results.append([loss.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves)])
    for actual, expected in zip(*results):
        assert_close(actual, expected, atol=1e-4 * expected.abs().max().item(), rtol=0)


def test_a_device_computes_the_same_without_counting():
    images = random_images(torch.Generator().manual_seed(3), 12)
    results = []
    for form, device in (("dense", "cpu"), ("auto", "cuda")):
        with pretended_device() as traffic:
            batch = make_batch(images, dim=16, seed=2)
            leaves = [side.local.vectors.to(device).requires_grad_() for side in (batch.regions, batch.words)]
            sides = []
            for side, leaf in zip((batch.regions, batch.words), leaves):
                local = side.local._replace(
                    vectors=leaf,
                    **{name: getattr(side.local, name).to(device) for name in ("images", "categories", "groups")},
                )
                sides.append(side._replace(local=local, everywhere=local))
            phrases = [one.to(device) for one in batch[2:]]
            traffic.clear()
            loss = contrastive_loss(*sides, *phrases, form)
            loss.backward()
            assert device == "cpu" or not (traffic.waits or traffic.copies)
            results.append([getattr(one, "numbers", one) for one in (loss.detach(), *(leaf.grad for leaf in leaves))])
    for found, expected in zip(*results):
        assert_close(found, expected, atol=1e-5, rtol=1e-4)
