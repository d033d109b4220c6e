"""Two processes with unequal batches train as one process with both batches."""

import torch
from batch_samples import anchor_case
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from rank_runs import assert_ranks_train_as_one, run_ranks, train_steps
from torch import nn

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
        return sum(self.head.losses(*anchor_case(self.head(features, text), anchors, targets, mask)).values())


def make_inputs(name, images):
    generator = torch.Generator().manual_seed(1)
    features = [torch.randn(4, 8, size, size, generator=generator)[images] for size in (8, 4)]
    return BATCHES[name][images], features, torch.randn(4, 5, 6, generator=generator)[images]


def train(rank=None):
    return train_steps(HeadWithLosses(), make_inputs, BATCHES, rank)


def train_and_reduce(rank):
    return train(rank), reduce_mean(torch.tensor([1.0 + rank, 4.0]))


def test_two_ranks_train_as_one_process_on_the_whole_batch():
    ranks = run_ranks(train_and_reduce)
    assert [mean.tolist() for _, mean in ranks] == [[1.5, 4.0]] * 2
    assert_ranks_train_as_one([results for results, _ in ranks], train())


def test_mean_in_a_single_process_is_the_value_without_its_gradient():
    value = torch.tensor([1.0, 2.0], requires_grad=True)
    mean = reduce_mean(value)
    assert mean.tolist() == [1.0, 2.0] and not mean.requires_grad and mean.data_ptr() != value.data_ptr()
