"""Two processes with two images each have the contrastive loss and gradients of one process with all four.

The file is also the program of such a process: ``python test_contrastive_ranks.py RANK FOLDER``.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.testing import assert_close

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    # pytest finds the shared helpers of the tests by its configuration.
    sys.path.insert(0, str(ROOT / "tests"))

from contrastive_samples import Image, make_instances, make_prompt  # noqa: E402

from glipv2_d2.distributed import gather_with_grad  # noqa: E402
from glipv2_d2.modeling.heads.anchor_head import AnchorTargets  # noqa: E402
from glipv2_d2.modeling.heads.contrastive_head import ContrastiveHead  # noqa: E402
from glipv2_d2.structures import LanguageFeatures, TokenBatch  # noqa: E402

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
CASES = [(name, form) for name in BATCHES for form in FORMS]


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
        return self.head.losses([self.visual(features)], language, prompts, targets, instances)["loss_contrastive"]


def train_once(model, name, rows):
    """Loss and gradients of one step on some of the images of a batch."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(4, 3, 2, 4, generator=generator)[rows]
    text = torch.randn(4, 4, 4, generator=generator)[rows]
    model.zero_grad()
    loss = model(BATCHES[name][rows], features, text)
    loss.backward()
    return loss.detach(), {key.removeprefix("module."): value.grad for key, value in model.named_parameters()}


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


def run_rank(rank, folder):
    """Be one of two processes: train on two images and save what came out."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results = {"gathered": gather_rows(rank)}
    for form in FORMS:
        model = nn.parallel.DistributedDataParallel(HeadWithLoss(form))
        for name in BATCHES:
            results[name, form] = train_once(model, name, slice(2 * rank, 2 * rank + 2))
    torch.save(results, f"{folder}/rank{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What the two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(Path(__file__).resolve())]
    processes = [subprocess.Popen([*command, str(rank), str(folder)], env=environment) for rank in range(2)]
    try:
        assert [process.wait(timeout=600) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize(("name", "form"), CASES)
def test_two_ranks_have_the_loss_and_gradients_of_the_whole_batch(ranks, name, form):
    loss, gradients = train_once(HeadWithLoss(form), name, slice(0, 4))
    first, second = (rank[name, form] for rank in ranks)
    assert loss.isfinite() and (loss > 0) == (name != "no region at all")
    assert_close((first[0] + second[0]) / 2, loss, atol=1e-5, rtol=0)
    for key, gradient in gradients.items():
        assert_close(first[1][key], gradient, atol=1e-5, rtol=0)
        assert torch.equal(first[1][key], second[1][key])
        assert gradient.isfinite().all()


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


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), sys.argv[2])
