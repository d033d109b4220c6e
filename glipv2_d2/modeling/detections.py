"""What becomes of the detections of an image: those of all its prompts are merged, get masks, and leave its frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..structures import TokenizedPrompt
from .box_regression import scale_boxes_legacy
from .heads.mask_head import HourglassMaskHead
from .heads.mask_pasting import paste_masks


class ChunkFeatures(NamedTuple):
    """What the mask head reads of the images that share a place in their lists of prompts.

    Attributes:
        rows: The images, by their place in the batch.
        levels: L tensors (len(rows), C, Hl, Wl).
        text: (len(rows), T, D).
        prompts: One for each of the images.
    """

    rows: list[int]
    levels: list[Tensor]
    text: Tensor
    prompts: list[TokenizedPrompt]


def merge_detections(instances: Sequence[Instances], max_detections: int) -> Instances:
    """Join the detections of one image under all its prompts, best first.

    Args:
        instances: For each prompt its detections, at least one prompt; those of a single one stay as they are.
        max_detections: Detections to keep; those that tie with the last of them stay too. 0 keeps all.
    """
    if len(instances) == 1:
        return instances[0]
    merged = Instances.cat(list(instances))
    if 0 < max_detections < len(merged):
        threshold = merged.scores.topk(max_detections).values[-1]
        merged = merged[merged.scores >= threshold]
    return merged[merged.scores.argsort(descending=True, stable=True)]


def predict_masks(
    mask_head: HourglassMaskHead, chunks: Sequence[ChunkFeatures], detections: Sequence[Instances]
) -> list[Tensor]:
    """Predict the masks of the detections that were kept, of N images, each with the words that found its box.

    Args:
        mask_head: The head.
        chunks: For each place in the lists of prompts its features.
        detections: Of each image, with ``pred_boxes`` in the frame of the features, ``phrase_ids``, and ``chunk_ids``,
            the place of the prompt that found them.

    Returns:
        N tensors (K, S, S) of probabilities, in the order of the detections.
    """
    masks: list[Tensor | None] = [None] * len(detections)
    for place, chunk in enumerate(chunks):
        own = [(detections[row].chunk_ids == place).nonzero().squeeze(1) for row in chunk.rows]
        instances = [detections[row][index] for row, index in zip(chunk.rows, own)]
        found = mask_head.inference(chunk.levels, chunk.text, instances, chunk.prompts)
        for row, index, probabilities in zip(chunk.rows, own, found):
            if masks[row] is None:
                masks[row] = probabilities.new_zeros(len(detections[row]), *probabilities.shape[1:])
            masks[row][index] = probabilities
    return masks


def rescale_instances(
    instances: Instances, height: int | None, width: int | None, mask_thresh: float = 0.5
) -> Instances:
    """Move detections from the pixels of the resized image to those of the original.

    Args:
        instances: Detections with ``image_size`` of the resized image. ``mask_probabilities``, (K, S, S) in the frames
            of their boxes, become ``pred_masks``, (K, height, width) bool.
        height, width: Of the original image; None keeps the size as it is.
        mask_thresh: Probability from which on a pixel belongs to a mask.

    Source: ``BoxList.resize`` of the official code, which multiplies corner pixels, not edges.
    """
    old_height, old_width = instances.image_size
    height = old_height if height is None else height
    width = old_width if width is None else width
    fields = dict(instances.get_fields())
    boxes = fields.pop("pred_boxes").tensor
    masks = fields.pop("mask_probabilities", None)
    result = Instances((height, width), **fields)
    result.pred_boxes = Boxes(scale_boxes_legacy(boxes, width / old_width, height / old_height))
    if masks is not None:
        result.pred_masks = paste_masks(masks, result.pred_boxes.tensor, (height, width), mask_thresh)
    return result
