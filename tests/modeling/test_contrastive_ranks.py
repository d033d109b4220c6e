"""Two processes with two images each have the contrastive loss and gradients of one process with all four."""

from unittest import mock

import pytest
import torch
from batch_samples import contrast_case
from contrastive_samples import Image, make_instances, make_prompt
from pretended_device import pretended_device
from rank_runs import assert_ranks_train_as_one, run_ranks, train_steps
from torch import nn

from glipv2_d2.device_copies import to_device
from glipv2_d2.distributed import gather_with_grad
from glipv2_d2.modeling.batch import AnchorTargets
from glipv2_d2.modeling.heads.contrastive_head import ContrastiveHead
from glipv2_d2.structures import LanguageFeatures, TokenBatch

NAMES, OTHER_NAMES = Image([None, 0, None, 1], [4, 9], [0, 1]), Image([0, 1, 1], [9, 2], [0])
SENTENCE, EMPTY = Image([None, 0, 0], [-1], [0]), Image([None, 0], [4], [])
# The first two images belong to rank 0.
BATCHES = {
    "both ranks have boxes": [NAMES, SENTENCE, OTHER_NAMES, NAMES],
    "the other rank has none": [NAMES, SENTENCE, EMPTY, OTHER_NAMES._replace(regions=[])],
    "the first rank has none": [EMPTY, EMPTY, OTHER_NAMES, SENTENCE],
    "a single region in all": [EMPTY, EMPTY, EMPTY, OTHER_NAMES],
    "no region at all": [EMPTY, EMPTY, EMPTY, EMPTY],
}
FORMS = ["auto", "dense"]


class HeadWithLoss(nn.Module):
    """A contrastive head, under layers that make its features, whose forward pass ends in its loss."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.visual = nn.Conv2d(3, 6, 1)
        self.text = nn.Linear(4, 5)
        self.head = ContrastiveHead(channels=6, language_dim=5, embed_dim=8, max_tokens=4, form=form)

    def forward(self, images, features, text):
        prompts = [make_prompt(image) for image in images]
        mask = TokenBatch.from_prompts(prompts, features.device).mask
        embedded = self.text(text[:, : mask.shape[1]])
        # The boxes of an image have the anchors 0, 1, ..., and the first of several also the last one.
        matched_idxs = torch.full((len(images), 8), -1)
        for row, image in zip(matched_idxs, images):
            row[: len(image.regions)] = torch.arange(len(image.regions))
            if len(image.regions) > 1:
                row[7] = 0
        (matched_idxs,) = to_device([matched_idxs], features.device)
        targets = AnchorTargets(matched_idxs, torch.empty(0), torch.empty(0))
        language = LanguageFeatures(embedded, embedded, mask)
        instances = [make_instances(image) for image in images]
        return self.head.losses(*contrast_case([self.visual(features)], language, prompts, targets, instances))[
            "loss_contrastive"
        ]


def make_inputs(name, rows):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(4, 3, 2, 4, generator=generator)[rows]
    return BATCHES[name][rows], features, torch.randn(4, 4, 4, generator=generator)[rows]


def train(form, rank=None):
    return train_steps(HeadWithLoss(form), make_inputs, BATCHES, rank)


def gather_rows(rank):
    """Rank 0 has three rows, rank 1 none; then the other way round with one row."""
    found = []
    for count in ((3, 0), (0, 1), (0, 0)):
        vectors = torch.arange(2.0 * count[rank]).reshape(-1, 2).requires_grad_()
        labels = torch.tensor([[2**30, -1, rank]]).expand(count[rank], -1)
        (gathered,) = gather_with_grad([(vectors, labels)], capacity=3)
        weights = torch.arange(1.0, 1 + gathered.vectors.numel()).reshape(-1, 2) * (1 + rank)
        (gathered.vectors * weights).sum().backward()
        found.append([gathered.vectors.tolist(), gathered.labels.tolist(), gathered.start, vectors.grad.tolist()])
    return found


def gather_sets(rank):
    """Two sets: rank 0 has two rows and one, rank 1 none and two."""
    sets = []
    for number, count in enumerate([(2, 1), (0, 2)][rank]):
        vectors = (torch.arange(2.0 * count).reshape(-1, 2) + 100 * number + 10 * rank).requires_grad_()
        sets.append((vectors, torch.tensor([[number, rank, 7]]).expand(count, -1)))
    gathered = gather_with_grad(sets, capacity=4)
    sum((1 + number) * (1 + rank) * one.vectors.sum() for number, one in enumerate(gathered)).backward()
    gradients = [vectors.grad.tolist() for vectors, _ in sets]
    return [(one.vectors.tolist(), one.labels.tolist(), one.start) for one in gathered], gradients


def train_and_gather(rank):
    found = {"gathered": gather_rows(rank), "sets": gather_sets(rank)}
    return found | {form: train(form, rank) for form in FORMS}


@pytest.fixture(scope="module")
def ranks():
    """What the two processes found."""
    return run_ranks(train_and_gather)


@pytest.mark.parametrize("form", FORMS)
def test_two_ranks_have_the_loss_and_gradients_of_the_whole_batch(ranks, form):
    whole = train(form)
    assert_ranks_train_as_one([rank[form] for rank in ranks], whole, rtol=0, gradient_rtol=0)
    for name, (loss, gradients) in whole.items():
        assert loss.isfinite() and (loss > 0) == (name != "no region at all")
        assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_rows_of_all_ranks_come_in_order_and_gradients_add_up_at_home(ranks):
    rows, labels = [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], [[2**30, -1, 0]] * 3
    # Rank 1 weighs twice: 1 + 2 times the weights 1, 2, ... of rank 0.
    assert ranks[0]["gathered"][0] == [rows, labels, 0, [[3.0, 6.0], [9.0, 12.0], [15.0, 18.0]]]
    assert ranks[1]["gathered"][0] == [rows, labels, 3, []]
    assert ranks[0]["gathered"][1] == [[[0.0, 1.0]], [[2**30, -1, 1]], 0, []]
    assert ranks[1]["gathered"][1] == [[[0.0, 1.0]], [[2**30, -1, 1]], 0, [[3.0, 6.0]]]
    assert ranks[0]["gathered"][2] == ranks[1]["gathered"][2] == [[], [], 0, []]


def test_sets_of_rows_travel_together_and_stay_apart(ranks):
    first = ([[0.0, 1.0], [2.0, 3.0]], [[0, 0, 7]] * 2)
    second = ([[100.0, 101.0], [110.0, 111.0], [112.0, 113.0]], [[1, 0, 7], [1, 1, 7], [1, 1, 7]])
    # 1 of rank 0 and 2 of rank 1, twice for the second set.
    assert ranks[0]["sets"] == ([(*first, 0), (*second, 0)], [[[3.0, 3.0]] * 2, [[6.0, 6.0]]])
    assert ranks[1]["sets"] == ([(*first, 2), (*second, 1)], [[], [[6.0, 6.0]] * 2])


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@mock.patch("glipv2_d2.distributed.distributed.all_reduce", lambda tensor: None)
@mock.patch(
    "glipv2_d2.distributed.distributed.all_gather_into_tensor", lambda whole, own: whole.copy_(own.repeat(2, 1))
)
@mock.patch("detectron2.utils.comm.get_world_size", lambda: 2)
def test_several_ranks_wait_for_a_device_once_more_for_the_rows_of_the_others():
    model, (images, features, text) = HeadWithLoss("auto"), make_inputs("both ranks have boxes", slice(0, 2))
    with pretended_device() as traffic:
        model.to("cuda")
        features, text = features.to("cuda"), text.to("cuda")
        traffic.clear()
        model(images, features, text).backward()
    # First for the numbers of positive anchors.
    assert traffic.waits.total() == 2 and not traffic.mixed and not traffic.unpinned, traffic


def test_gathering_in_a_single_process_changes_nothing():
    vectors, labels = torch.ones(2, 3, requires_grad=True), torch.ones(2, 1, dtype=torch.int64)
    (gathered,) = gather_with_grad([(vectors, labels)], capacity=2)
    assert gathered.vectors is vectors and gathered.labels is labels and gathered.start == 0


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (torch.ones(3, 2), "gather_with_grad: expected at most 2 rows, found 3"),
        (torch.ones(1, 2, dtype=torch.float64), "gather_with_grad: expected float32 vectors, found torch.float64"),
    ],
)
def test_rows_that_cannot_travel_are_refused(vectors, message):
    with pytest.raises(ValueError, match=message):
        gather_with_grad([(vectors, torch.zeros(len(vectors), 1, dtype=torch.int64))], capacity=2)
