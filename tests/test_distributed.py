"""Two processes with unequal batches train as one process with both batches.

The file is also the program of such a process: ``python test_distributed.py RANK FOLDER``.
"""

import os
import subprocess
import sys
from pathlib import Path

import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from torch import distributed, nn
from torch.testing import assert_close

from glipv2_d2.distributed import reduce_mean
from glipv2_d2.modeling.heads.grounding_head import GroundingHead
from glipv2_d2.modeling.matcher import ATSSMatcher
from glipv2_d2.structures import TokenizedPrompt

# Boxes of each image; the first two images belong to rank 0, which has all the boxes in the second case.
BATCHES = {
    "both ranks have boxes": [
        [[4, 6, 60, 55], [20, 1, 63, 50]],
        [[1, 5, 63, 60]],
        [],
        [[9, 2, 58, 61], [0, 0, 64, 64], [5, 5, 40, 62], [3, 1, 57, 63]],
    ],
    "one rank has none": [[[4, 6, 60, 55]], [[1, 5, 63, 60]], [], []],
}


class HeadWithLosses(nn.Module):
    """A grounding head whose forward pass ends in the sum of its losses."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = GroundingHead(
            channels=8,
            language_dim=6,
            num_levels=2,
            box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
            matcher=ATSSMatcher(9),
        )

    def forward(self, boxes, features, text):
        prompt = TokenizedPrompt(torch.arange(5), torch.eye(2, 5, dtype=torch.bool), torch.arange(2), ("a", "b"))
        anchors = DefaultAnchorGenerator(sizes=[[64], [128]], aspect_ratios=[[1.0]], strides=[8, 16])(features)
        instances = [
            Instances(
                (64, 64),
                gt_boxes=Boxes(torch.tensor(image, dtype=torch.float32).reshape(-1, 4)),
                gt_classes=torch.arange(len(image)) % 2,
            )
            for image in boxes
        ]
        targets = self.head.label_anchors(anchors, instances, [prompt] * len(boxes), 5)
        mask = torch.ones(len(boxes), 5, dtype=torch.bool)
        return sum(self.head.losses(self.head(features, text), anchors, targets, mask).values())


def train_once(model, name, images):
    """Loss and gradients of one step on some of the images of a batch."""
    generator = torch.Generator().manual_seed(1)
    features = [torch.randn(4, 8, size, size, generator=generator)[images] for size in (8, 4)]
    text = torch.randn(4, 5, 6, generator=generator)[images]
    model.zero_grad()
    loss = model(BATCHES[name][images], features, text)
    loss.backward()
    return loss.detach(), {key.removeprefix("module."): value.grad for key, value in model.named_parameters()}


def run_rank(rank, folder):
    """Be one of two processes: train on two images and save what came out."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(HeadWithLosses())
    results = {name: train_once(model, name, slice(2 * rank, 2 * rank + 2)) for name in BATCHES}
    results["mean"] = reduce_mean(torch.tensor([1.0 + rank, 4.0]))
    torch.save(results, f"{folder}/rank{rank}.pt")
    distributed.destroy_process_group()


def test_two_ranks_train_as_one_process_on_the_whole_batch(tmp_path):
    root = Path(__file__).parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(Path(__file__).resolve())]
    ranks = [subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment) for rank in range(2)]
    try:
        assert [process.wait(timeout=300) for process in ranks] == [0, 0]
    finally:
        for process in ranks:
            process.kill()
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert first["mean"].tolist() == second["mean"].tolist() == [1.5, 4.0]
    for name in BATCHES:
        loss, gradients = train_once(HeadWithLosses(), name, slice(0, 4))
        assert_close((first[name][0] + second[name][0]) / 2, loss, atol=1e-5, rtol=1e-5)
        for key, gradient in gradients.items():
            assert_close(first[name][1][key], gradient, atol=1e-5, rtol=1e-4)
            assert torch.equal(second[name][1][key], first[name][1][key])


def test_mean_in_a_single_process_is_the_value_without_its_gradient():
    value = torch.tensor([1.0, 2.0], requires_grad=True)
    mean = reduce_mean(value)
    assert mean.tolist() == [1.0, 2.0] and not mean.requires_grad and mean.data_ptr() != value.data_ptr()


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), sys.argv[2])
