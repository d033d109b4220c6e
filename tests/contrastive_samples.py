"""Small batches of images with prompts and regions, for the tests of the contrastive loss."""

from typing import NamedTuple

import torch
from detectron2.structures import Instances

from glipv2_d2.modeling.heads.region_word_packing import pack_region_labels, pack_word_labels
from glipv2_d2.modeling.losses.contrastive_loss import SharedVectors
from glipv2_d2.modeling.losses.region_word_targets import label_regions, label_words
from glipv2_d2.structures import TokenizedPrompt


class Image(NamedTuple):
    """An image of a batch.

    Attributes:
        words: For each token of its prompt the phrase that it spells, None for none.
        categories: For each phrase its id, -1 in a sentence.
        regions: For each region its phrase.
        known: False: the regions' own categories are unknown whatever the phrases say.
    """

    words: list
    categories: list
    regions: list
    known: bool = True


class Batch(NamedTuple):
    regions: SharedVectors
    words: SharedVectors
    region_phrases: torch.Tensor
    word_phrases: torch.Tensor


def make_prompt(image):
    token_map = torch.zeros(len(image.categories), len(image.words), dtype=torch.bool)
    for token, phrase in enumerate(image.words):
        if phrase is not None:
            token_map[phrase, token] = True
    categories = torch.tensor(image.categories, dtype=torch.int64)
    return TokenizedPrompt(torch.arange(len(image.words)), token_map, categories, ("phrase",) * len(image.categories))


def make_instances(image):
    """One box for each region."""
    instances = Instances((32, 32))
    instances.gt_classes = torch.tensor(image.regions, dtype=torch.int64)
    categories = torch.tensor(image.categories, dtype=torch.int64)[instances.gt_classes]
    instances.gt_category_ids = categories if image.known else torch.full_like(categories, -1)
    return instances


def make_batch(images, dim=4, seed=None, dtype=torch.float32, requires_grad=False):
    """Pack images in a single process, with random vectors, or zeros without a seed."""
    prompts, instances = [make_prompt(image) for image in images], [make_instances(image) for image in images]
    boxes = torch.cat([torch.arange(len(image.regions)) for image in images])
    owners = torch.cat([torch.full((len(image.regions),), index) for index, image in enumerate(images)])
    regions = pack_region_labels(owners, boxes, instances, prompts)
    words = pack_word_labels(prompts, torch.device("cpu"))
    vectors = []
    generator = torch.Generator().manual_seed(seed or 0)
    for labels in (regions, words):
        shape = (len(labels.images), dim)
        values = torch.zeros(shape) if seed is None else torch.randn(shape, generator=generator)
        vectors.append(values.to(dtype).requires_grad_(requires_grad))
    labelled = (
        label_regions(vectors[0], regions.images, regions.categories),
        label_words(vectors[1], words.images, words.categories),
    )
    return Batch(*(SharedVectors(one, one, 0) for one in labelled), regions.phrases, words.phrases)


def random_images(generator, num_images, most_regions=6, most_words=7):
    """Images with sentences and names, repeated names, words of several phrases, and nothing at all."""

    def draw(below):
        return int(torch.randint(below, (1,), generator=generator))

    images = []
    for _ in range(num_images):
        num_phrases = draw(4)
        sentence = draw(3) == 0
        categories = [-1 if sentence else draw(3) for _ in range(num_phrases)]
        words = [draw(num_phrases) if num_phrases and draw(3) else None for _ in range(draw(most_words + 1))]
        regions = [draw(num_phrases) for _ in range(draw(most_regions + 1))] if num_phrases else []
        images.append(Image(words, categories, regions, known=draw(4) > 0))
    return images
