"""Anchors are those of detectron2's generator, made once for maps of one size."""

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from pretended_device import pretended_device

from glipv2_d2.modeling import anchors
from glipv2_d2.modeling.anchors import AnchorCache


def make_generator(offset=0.5):
    return DefaultAnchorGenerator(sizes=[[64], [128]], aspect_ratios=[[1.0]], strides=[8, 12], offset=offset)


def maps(*shapes, device="cpu"):
    return [torch.zeros(2, 3, *shape, device=device) for shape in shapes]


@pytest.mark.parametrize("offset", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("shapes", [[(7, 11), (4, 6)], [(1, 1), (1, 1)]])
def test_anchors_are_those_of_the_generator_bit_for_bit(offset, shapes):
    generator = make_generator(offset)
    for found, expected in zip(AnchorCache(generator)(maps(*shapes)), generator(maps(*shapes)), strict=True):
        assert torch.equal(found.tensor, expected.tensor)


def test_another_generator_makes_its_own():
    class Other(DefaultAnchorGenerator):
        def forward(self, features):
            return ["anchors"]

    other = Other(sizes=[[64]], aspect_ratios=[[1.0]], strides=[8])
    assert AnchorCache(other)(maps((2, 3))) == ["anchors"]


def test_anchors_of_a_size_are_made_once_and_those_of_the_oldest_sizes_are_forgotten(monkeypatch):
    monkeypatch.setattr(anchors, "_KEPT_SIZES", 2)
    cache = AnchorCache(make_generator())
    first = cache(maps((7, 11), (4, 6)))
    assert cache(maps((7, 11), (4, 6)))[0] is first[0]
    for size in (2, 3):
        cache(maps((size, size), (1, 1)))
    assert cache(maps((7, 11), (4, 6)))[0] is not first[0]


def test_on_a_device_they_are_made_there():
    generator = make_generator()
    with pretended_device() as traffic:
        cache, features = AnchorCache(generator.to("cuda")), maps((7, 11), (4, 6), device="cuda")
        traffic.clear()
        assert all(one.tensor.is_cuda for one in cache(features))
        assert not traffic.copies and not traffic.waits


def test_anchors_of_a_test_can_be_used_in_training():
    cache = AnchorCache(make_generator())
    with torch.inference_mode():
        cache(maps((7, 11), (4, 6)))
    weight = torch.ones(4, requires_grad=True)
    anchors_of_level = cache(maps((7, 11), (4, 6)))[0].tensor
    (anchors_of_level * weight).sum().backward()
    assert torch.equal(weight.grad, anchors_of_level.sum(dim=0))
