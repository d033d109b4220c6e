"""A training batch and its fused features, of which a test gives what its head reads."""

import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import ImageList

from glipv2_d2.modeling.batch import Fused, Pairs, TrainBatch, TrunkShapes
from glipv2_d2.structures import TokenBatch


def make_shapes(channels=0, tower_channels=0, language_dim=0, vocab_size=0, strides=(8, 16, 32, 64, 128)):
    """What a head is built from, beside the config."""
    levels = [ShapeSpec(channels=channels, stride=stride) for stride in strides]
    return TrunkShapes(levels, tower_channels, language_dim, vocab_size)


def make_batch(prompts=(), instances=None, mask=None, answer_scores=None, size=(64, 64), task="detection"):
    """A batch of one prompt for each image, on images of one size."""
    count = len(prompts) if mask is None else len(mask)
    if mask is None:
        longest = max(map(len, prompts), default=1)
        mask = torch.arange(longest) < torch.tensor([[len(prompt)] for prompt in prompts])
    images = ImageList(torch.zeros(count, 0, *size), [size] * count)
    pairs = Pairs(list(range(count)), [0] * count, list(prompts))
    return TrainBatch(task, images, pairs, TokenBatch(mask.long(), mask), instances, answer_scores)


def make_fused(features=None, language=None, levels=None, text=None, hidden=None, **made):
    """Fused features; ``made`` are the predictions, anchors, targets and proposals that are there already."""
    fused = Fused(features, language, levels, text, hidden, detector=None, predict=None, make_anchors=None)
    for name, value in made.items():
        asked = name in ("targets", "proposals")
        setattr(fused, name, (lambda batch, value=value: value) if asked else value)
    return fused


def anchor_case(predictions, anchors, targets, mask):
    """What a head that rates anchors reads."""
    return make_fused(predictions=predictions, anchors=anchors, targets=targets), make_batch(mask=mask)


def text_case(hidden, prompts, instances=None, size=(64, 64)):
    """What a head of words or phrases reads."""
    return make_fused(hidden=hidden), make_batch(prompts, instances, size=size)


def question_case(hidden, mask, answer_scores):
    """What a head that answers questions reads."""
    return make_fused(hidden=hidden), make_batch(mask=mask, answer_scores=answer_scores, task="vqa")


def mask_case(levels, text, proposals, instances, prompts):
    """What a mask head reads."""
    return make_fused(features=levels, text=text, proposals=proposals), make_batch(prompts, instances)


def contrast_case(features, language, prompts, targets, instances):
    """What a contrastive head reads."""
    return make_fused(features=features, language=language, targets=targets), make_batch(prompts, instances)
