"""Two processes with two images each have the contrastive loss and gradients of one process with all four."""

import pytest
import torch
from batch_samples import contrast_case
from contrastive_samples import Image, make_instances, make_prompt
from rank_runs import assert_ranks_train_as_one, run_ranks, train_steps
from torch import nn

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
        mask = TokenBatch.from_prompts(prompts).mask
        embedded = self.text(text[:, : mask.shape[1]])
        # The boxes of an image have the anchors 0, 1, ..., and the first of several also the last one.
        matched_idxs = torch.full((len(images), 8), -1)
        for row, image in zip(matched_idxs, images):
            row[: len(image.regions)] = torch.arange(len(image.regions))
            if len(image.regions) > 1:
                row[7] = 0
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
        gathered = gather_with_grad(vectors, labels, capacity=3)
        weights = torch.arange(1.0, 1 + gathered.vectors.numel()).reshape(-1, 2) * (1 + rank)
        (gathered.vectors * weights).sum().backward()
        found.append([gathered.vectors.tolist(), gathered.labels.tolist(), gathered.start, vectors.grad.tolist()])
    return found


def train_and_gather(rank):
    return {"gathered": gather_rows(rank)} | {form: train(form, rank) for form in FORMS}


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


def test_gathering_in_a_single_process_changes_nothing():
    vectors, labels = torch.ones(2, 3, requires_grad=True), torch.ones(2, 1, dtype=torch.int64)
    gathered = gather_with_grad(vectors, labels, capacity=2)
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
        gather_with_grad(vectors, torch.zeros(len(vectors), 1, dtype=torch.int64), capacity=2)
