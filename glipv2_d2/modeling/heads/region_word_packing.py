"""Pack regions and words of a batch without padding, with their labels."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import torch
from detectron2.structures import Instances
from torch import Tensor

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


def take_regions(features: list[Tensor], matched_idxs: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Take the features at chosen anchors, level by level, because joining the levels would copy all of them.

    Args:
        features: L levels (N, C, Hl, Wl), one anchor per position.
        matched_idxs: (N, R) int64, index of the matched box of the image.
        chosen: (N, R) bool.

    Returns:
        (n, C) features, (n,) images and (n,) boxes of the images.
    """
    sizes = [level.shape[2] * level.shape[3] for level in features]
    taken = []
    for level, matched, mask in zip(features, matched_idxs.split(sizes, 1), chosen.split(sizes, 1), strict=True):
        image, position = mask.nonzero(as_tuple=True)
        visual = level.flatten(2).transpose(1, 2)[image, position]  # (n of the level, C)
        taken.append((visual, image, matched[image, position]))
    visual, images, boxes = (torch.cat(parts) for parts in zip(*taken, strict=True))
    return visual, images, boxes


def pack_region_labels(
    images: Tensor, boxes: Tensor, instances: list[Instances], prompts: list[TokenizedPrompt]
) -> PackedLabels:
    """Label regions by their boxes.

    Args:
        images: (n,) int64.
        boxes: (n,) int64, index among the boxes of the image.
        instances: N images with ``gt_classes`` and ``gt_category_ids``; an image may have no boxes.
        prompts: N prompts.
    """
    first_box = list(accumulate((len(image) for image in instances), initial=0))
    first_phrase = accumulate((len(prompt.phrases) for prompt in prompts), initial=0)
    phrases = torch.cat([image.gt_classes + first for image, first in zip(instances, first_phrase, strict=False)])
    categories = torch.cat([image.gt_category_ids for image in instances])
    box = torch.tensor(first_box, device=images.device)[images] + boxes
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
    return PackedLabels(
        torch.cat(images).to(device), torch.cat(categories).to(device), torch.cat(phrases, dim=1).to(device)
    )
