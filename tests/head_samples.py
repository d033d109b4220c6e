"""A grounding head, a head of fixed classes, prompts and images small enough to follow, for the tests of the heads."""

import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances

from glipv2_d2.modeling.heads.class_head import ClassHead
from glipv2_d2.modeling.heads.grounding_head import GroundingHead
from glipv2_d2.modeling.matcher import ATSSMatcher
from glipv2_d2.structures import TokenizedPrompt

# Levels of an image of 64 x 64 pixels; a prompt of two phrases and five tokens.
SHAPES = [(8, 8), (4, 4)]
TOKEN_MAP = [[0, 1, 1, 0, 0], [0, 0, 0, 1, 0]]


def make_head(channels=8, language_dim=6, num_levels=2, **changes):
    return GroundingHead(
        channels=channels,
        language_dim=language_dim,
        num_levels=num_levels,
        box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
        matcher=ATSSMatcher(9),
        **changes,
    )


def make_class_head(num_classes=3, **changes):
    torch.manual_seed(0)
    return ClassHead(
        channels=8,
        num_levels=2,
        num_classes=num_classes,
        box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
        matcher=ATSSMatcher(9),
        **changes,
    )


def make_prompt(token_map, categories=None):
    token_map = torch.as_tensor(token_map, dtype=torch.bool)
    num_phrases, num_tokens = token_map.shape
    ids = torch.arange(num_phrases) if categories is None else torch.tensor(categories)
    return TokenizedPrompt(torch.arange(num_tokens), token_map, ids, ("phrase",) * num_phrases)


def make_instances(boxes, rows, size=(64, 64)):
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Instances(size, gt_boxes=Boxes(boxes), gt_classes=torch.tensor(rows, dtype=torch.int64))


def make_anchors(shapes, strides=(8, 16, 32, 64, 128)):
    sizes = [[8 * stride] for stride in strides[: len(shapes)]]
    generator = DefaultAnchorGenerator(sizes=sizes, aspect_ratios=[[1.0]], strides=strides[: len(shapes)])
    return generator([torch.zeros(1, 1, *shape) for shape in shapes])


def small_batch(head, instances, prompts, seed=0):
    """Predictions, anchors, targets and mask for images of 64 x 64."""
    generator = torch.Generator().manual_seed(seed)
    features = [torch.randn(len(prompts), 8, *shape, generator=generator) for shape in SHAPES]
    num_tokens = max(len(prompt) for prompt in prompts)
    text = torch.randn(len(prompts), num_tokens, 6, generator=generator)
    mask = torch.arange(num_tokens) < torch.tensor([[len(prompt)] for prompt in prompts])
    anchors = make_anchors(SHAPES)
    targets = head.label_anchors(anchors, instances, prompts, num_tokens)
    return head(features, text), anchors, targets, mask
