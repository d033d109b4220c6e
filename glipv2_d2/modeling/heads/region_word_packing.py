"""Pack regions and words of a batch without padding, with their labels."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import torch
from detectron2.structures import Instances
from torch import Tensor

from ...device_copies import to_device
from ...layers.true_places import true_places
from ...structures import TokenizedPrompt


class PackedLabels(NamedTuple):
    """Labels of n regions, or words, of N images.

    Attributes:
        images: (n,) int64, index of the image in the batch.
        categories: (n,) int64, see ``LabelledVectors``.
        phrases: (2, m) int64, pairs of a region, or word, and a phrase, numbered across all images.
    """

    images: Tensor
    categories: Tensor
    phrases: Tensor


def take_regions(
    features: list[Tensor], matched_idxs: Tensor, chosen: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Take the features at chosen anchors, those of the first level first.

    Each region is looked for in every level: joining the levels would copy all of them, and counting the regions of
    each would wait for the device.

    Args:
        features: L levels (N, C, Hl, Wl), one anchor per position.
        matched_idxs: (N, R) int64, index of the matched box of the image.
        chosen: (N, R) bool.
        count: n, how many are chosen.

    Returns:
        (n, C) features, (n,) images and (n,) boxes of the images.
    """
    images, anchors = true_places(chosen, count)
    sizes = [level.shape[2] * level.shape[3] for level in features]
    starts = list(accumulate(sizes, initial=0))[:-1]
    level_of = torch.stack([anchors >= start for start in starts]).sum(dim=0)
    order = level_of.argsort(stable=True)
    images, anchors, level_of = images[order], anchors[order], level_of[order]
    visual = features[0].new_zeros(())
    for number, (level, start, size) in enumerate(zip(features, starts, sizes, strict=True), 1):
        found = level.flatten(2).transpose(1, 2)[images, (anchors - start).clamp(0, size - 1)]  # (n, C)
        visual = torch.where((level_of == number)[:, None], found, visual)
    return visual, images, matched_idxs[images, anchors]


def pack_region_labels(
    images: Tensor, boxes: Tensor, instances: list[Instances], prompts: list[TokenizedPrompt]
) -> PackedLabels:
    """Label regions by their boxes.

    Args:
        images: (n,) int64.
        boxes: (n,) int64, index among the boxes of the image.
        instances: N images with ``gt_classes`` and ``gt_category_ids``, on the CPU; an image may have no boxes.
        prompts: N prompts.
    """
    first_box = list(accumulate((len(image) for image in instances), initial=0))
    first_phrase = accumulate((len(prompt.phrases) for prompt in prompts), initial=0)
    phrases = torch.cat([image.gt_classes + first for image, first in zip(instances, first_phrase, strict=False)])
    categories = torch.cat([image.gt_category_ids for image in instances])
    first, phrases, categories = to_device([torch.tensor(first_box), phrases, categories], images.device)
    box = first[images] + boxes
    regions = torch.arange(len(images), device=images.device)
    return PackedLabels(images, categories[box], torch.stack((regions, phrases[box])))


def pack_word_labels(prompts: list[TokenizedPrompt], device: torch.device) -> PackedLabels:
    """Label the tokens of N prompts, special tokens included, one prompt after the other.

    The category of a word is that of the phrase that it helps to spell, -1 if it spells none. A word of several phrases
    has the largest of their categories; names of a detection prompt share no word.
    """
    images, categories, phrases = [], [], []
    first_word = first_phrase = 0
    for index, prompt in enumerate(prompts):
        phrase, token = prompt.phrase_token_map.nonzero(as_tuple=True)
        images.append(torch.full((len(prompt),), index))
        unknown = torch.full((len(prompt),), -1)
        categories.append(unknown.scatter_reduce(0, token, prompt.category_ids[phrase], "amax"))
        phrases.append(torch.stack((token + first_word, phrase + first_phrase)))
        first_word += len(prompt)
        first_phrase += len(prompt.phrases)
    return PackedLabels(*to_device([torch.cat(images), torch.cat(categories), torch.cat(phrases, dim=1)], device))
