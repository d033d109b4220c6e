"""Two processes teach the words of classes as one process with the whole batch, and note the names of both."""

import torch
from batch_samples import contrast_case
from class_words_samples import make_head
from conftest import make_tiny_cfg
from detectron2.structures import Boxes, ImageList, Instances
from prompt_samples import make_prompt
from rank_runs import assert_ranks_train_as_one, run_ranks, train_steps
from torch import nn

from glipv2_d2.engine.train_loop import has_idle_parts
from glipv2_d2.modeling.batch import AnchorTargets
from glipv2_d2.modeling.heads.class_words_head import place_of

# The boxes of the positive anchors of each image; the first two images belong to rank 0.
MATCHED = {
    "both ranks have boxes": [[0, -1, 0, 0], [0, -1, -1, -1], [-1, -1, -1, 0], [-1] * 4],
    "one rank has none": [[0, -1, 0, -1], [-1, 0, -1, -1], [-1] * 4, [-1] * 4],
}


class HeadWithLoss(nn.Module):
    """A head whose forward pass ends in its loss."""

    def __init__(self):
        super().__init__()
        self.head = make_head(temperature=2.0, kept=2)
        self.head.class_vectors.copy_(torch.randn(3, 5, generator=torch.Generator().manual_seed(2)))

    def forward(self, fused, batch):
        self.head.observe(batch)
        return self.head.losses(fused, batch)["loss_class_words"]


def make_inputs(name, images):
    generator = torch.Generator().manual_seed(1)
    features = [torch.randn(4, 6, 2, 2, generator=generator)[images]]
    pixels = torch.rand(4, 3, 32, 64, generator=generator)[images]
    prompts = [make_prompt([token]) for token in range(2, 6)][images]
    instances = []
    for matched in MATCHED[name][images]:
        one = Instances(
            (32, 64), gt_boxes=Boxes(torch.tensor([[0.0, 0.0, 40.0, 32.0]])), gt_classes=torch.zeros(1).long()
        )
        instances.append(one if max(matched) >= 0 else one[:0])
    targets = AnchorTargets(torch.tensor(MATCHED[name][images]), torch.empty(0), torch.empty(0))
    fused, batch = contrast_case(features, None, prompts, targets, instances)
    return fused, batch._replace(images=ImageList(pixels, [(32, 64)] * len(pixels)))


def train(rank=None):
    model = HeadWithLoss()
    return train_steps(model, make_inputs, MATCHED, rank), model.head.taught.nonzero().flatten()


def test_two_ranks_train_as_one_process_and_both_note_the_names_of_all():
    whole, taught = train()
    results, of_ranks = zip(*run_ranks(train), strict=True)
    assert_ranks_train_as_one(list(results), whole)
    assert taught.tolist() == sorted(place_of((1000 + token,)) for token in (2, 3, 4))
    assert all(torch.equal(one, taught) for one in of_ranks)


def test_without_its_loss_the_layer_that_learns_the_words_is_idle():
    cfg = make_tiny_cfg()
    words = cfg.MODEL.GLIPV2.CLASS_WORDS
    words.LOSS_WEIGHT = 0.0
    assert not has_idle_parts(cfg)
    words.ENABLED = True
    assert has_idle_parts(cfg)
    words.LOSS_WEIGHT = 0.5
    assert not has_idle_parts(cfg)
