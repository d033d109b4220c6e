"""The contract between data, prompts and model: the values that they hand to each other.

Shape letters, the same in every module: N images, C visual channels, D language width, L levels, Hl x Wl a level,
R anchors over all levels, M boxes of one image (or pairs of an image and a prompt), P phrases, T tokens, K detections,
A answers.

A **dataset dict** is detectron2's, with optional additions:

* ``dataset_name``: the registered dataset; the ``task`` in its metadata, "detection", "grounding", "pseudo_grounding",
  "vqa" or "captioning", chooses the mapper;
* ``caption`` (str) and, per annotation, ``tokens_positive`` (half-open character ranges of the caption) and, for pseudo
  boxes, ``score`` in [0, 1];
* ``negative_captions`` (list of str): captions of other images, drawn by the loader, for pseudo-box data;
* for each annotation ``segmentation``: a list of polygons, each a flat list of x, y in pixels of the original image, or
  a run-length code ``{"size": [height, width], "counts": ...}`` of COCO. A box without one trains no mask;
* ``never_negative_ids`` (list of int): contiguous ids of categories that are never negatives of the image, since not
  all of their objects have a box;
* ``question`` (str), ``question_id``, ``answers`` (list of str, or of dicts with ``answer``; absent in a test set) and
  ``answer_type`` (str), for questions; the boxes of a grounded one have ``tokens_positive``, ranges of the question,
  or ``answer_box`` True: the box is of the answer;
* ``captions`` (list of str): references of a caption to be written; without it, ``caption`` is the only reference;
* ``image_bytes`` (bytes): the encoded image, if it is not a file; ``file_name`` is then only a name. Or ``tsv_offset``
  (int): ``file_name`` is a TSV file, and the line at this offset holds the image in base64.

A **model input** is a dict with

* ``image``: (3, H, W) float or uint8 in ``INPUT.FORMAT`` order, 0..255, resized, not normalized;
* ``fine_image`` (optional, at test time): the same, larger by ``CLASS_WORDS.IMAGE_SCALE``, from the original pixels;
* ``of_base`` (optional, at test time): a dict of ``image`` and ``fine_image`` in the sizes of ``TUNING.KEEP``, for the
  weights that answer for names that were not tuned;
* ``height``, ``width``, ``image_id``, ``file_name``: of the original image, pixels;
* ``prompts``: list of ``TokenizedPrompt``: in training one, or the Q questions about the image; at test time one per
  chunk of names. At test time it may be absent: the model then answers with its default vocabulary;
* ``detection_limits`` (``DetectionLimits``, test time): how many detections are kept; absent: as the config says;
* ``task``: "detection" (also if it is absent), "vqa" or "captioning". All inputs of a training batch have one task. At
  test time a question is the only prompt of its input, and a caption to be written has none;
* for questions, in training ``answer_scores`` (Q, A) in [0, 1] and ``question_ids`` (list of Q), at test time
  ``question_id``;
* ``instances`` (training; not for plain questions and captions): ``gt_boxes`` XYXY in pixels of the resized
  image, ``gt_classes`` (M,) row of the box in the ``phrase_token_map`` of its prompt, ``gt_category_ids`` (M,) id
  across images, -1 if none, and beside several prompts ``gt_prompts`` (M,), the index of the prompt of the box. With
  ``MODEL.MASK_ON`` also ``gt_masks`` (``PolygonMasks`` or ``BitMasks`` of the resized image, within a pixel of the
  boxes) and ``gt_has_mask`` (M,) bool.

A **model output** is, in training, a dict of weighted scalar losses ``loss_grounding``, ``loss_box_reg``,
``loss_centerness``, ``loss_contrastive``, ``loss_mlm``, ``loss_phrase_center``, ``loss_mask``, ``loss_class_words``,
``loss_vqa``, ``loss_caption``, ``loss_keep_names``, ``loss_keep_boxes``: those that the config switches on and that the
batch has targets for (``DyHead`` has ``loss_class`` instead of ``loss_grounding``). At test time it is a list of dicts
with

* ``instances`` (not for captions): ``Instances`` with ``pred_boxes`` (XYXY, pixels of the original image),
  ``scores`` in [0, 1], ``pred_classes``, the ``category_ids`` of the phrases, and for a model with a mask head
  ``pred_masks`` (K, H, W) bool, in the resolution of the original image;
* ``answer_scores`` (A,) in [0, 1], for a question;
* ``caption_ids`` (T,) without start and end, and ``caption_score``, for a caption; for a grounded caption also
  ``token_boxes`` (T, k, 4), pixels of the original image, and ``token_scores`` (T, k), 0 where a token has fewer than k
  boxes; all on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .device_copies import to_device
from .errors import InputError

CharSpan = tuple[int, int]

# The category id of a name that a training prompt holds to keep what the model says of it: nobody has annotated it.
KEPT_NAME = -2


class DetectionLimits(NamedTuple):
    """How many of the best detections are kept, 0 for all; those that tie with the last of them are kept too.

    Attributes:
        per_prompt: The limit for each prompt of an image; 0: as many as ``per_image``.
        per_image: The limit for an image over all its prompts.
    """

    per_prompt: int = 0
    per_image: int = 0

    @property
    def of_a_prompt(self) -> int:
        """The detections of a prompt that can be among those that are kept, 0 for all."""
        return self.per_prompt or self.per_image


@dataclass(frozen=True)
class Prompt:
    """A caption and the phrases in it that a box can be matched to.

    Attributes:
        caption: The text the model reads.
        phrases: P strings, as the user wrote them.
        phrase_spans: For each phrase its half-open character ranges of ``caption``; a phrase may have several.
        category_ids: For each phrase the id that a detection of it gets: contiguous ids of ``thing_classes`` for
            a vocabulary, the phrase's own index for a free caption. In training, ids are the same in all images, -1 for
            the phrases of a sentence, and ``KEPT_NAME`` for names of ``TUNING.KEEP``.
        name_spans: For a list of names the half-open character range of each, with the words around it that a dataset
            may say; () for any other caption, whose phrases cannot be asked for one without the other.

    Raises:
        InputError: The sequences differ in length, or a range is empty or outside the caption.
    """

    caption: str
    phrases: tuple[str, ...]
    phrase_spans: tuple[tuple[CharSpan, ...], ...]
    category_ids: tuple[int, ...]
    name_spans: tuple[CharSpan, ...] = ()

    def __post_init__(self) -> None:
        sizes = (len(self.phrases), len(self.phrase_spans), len(self.category_ids))
        if len(set(sizes)) != 1:
            raise InputError(f"Prompt: expected equally many phrases, phrase_spans and category_ids, found {sizes}")
        if len(self.name_spans) not in (0, len(self.phrases)):
            raise InputError(f"Prompt name_spans: expected {sizes[0]} or none, found {len(self.name_spans)}")
        for phrase, spans in zip(self.phrases, self.phrase_spans, strict=True):
            for begin, end in spans:
                if not 0 <= begin < end <= len(self.caption):
                    raise InputError(
                        f"Prompt phrase_spans: expected non-empty ranges inside the caption of {len(self.caption)} "
                        f"characters, found span ({begin}, {end}) of phrase {phrase!r}"
                    )


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as token ids, at its real length: it holds special tokens but no padding.

    Attributes:
        input_ids: (T,) int64.
        phrase_token_map: (P, T) bool, the tokens that spell each phrase. In training a row is the target of a box, at
            test time it gives the phrase its score. An all-False row belongs to a phrase that was cut off.
        category_ids: (P,) int64, see ``Prompt``.
        phrases: P strings.
        mlm_labels: (T,) int64, the id that masked language modelling has to restore at a token, -100 elsewhere; None if
            the prompt was not masked.
        name_ranges: For a list of names the half-open range of tokens of each, special tokens and separators left out,
            (0, 0) for one without tokens; () for any other caption.
    """

    input_ids: Tensor
    phrase_token_map: Tensor
    category_ids: Tensor
    phrases: tuple[str, ...]
    mlm_labels: Tensor | None = None
    name_ranges: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.input_ids)

    def __reduce__(self) -> tuple:
        # Arrays, because each tensor that a data worker sends takes a file descriptor, and a vocabulary has thousands.
        tensors = [self.input_ids, self.phrase_token_map, self.category_ids]
        tensors += [] if self.mlm_labels is None else [self.mlm_labels]
        arrays = [tensor.numpy(force=True) for tensor in tensors]
        return _prompt_from_arrays, (arrays, self.phrases, self.name_ranges)


def _prompt_from_arrays(
    arrays: Sequence[np.ndarray], phrases: tuple[str, ...], name_ranges: tuple[tuple[int, int], ...]
) -> TokenizedPrompt:
    input_ids, phrase_token_map, category_ids, *mlm_labels = map(torch.from_numpy, arrays)
    labels = mlm_labels[0] if mlm_labels else None
    return TokenizedPrompt(input_ids, phrase_token_map, category_ids, phrases, labels, name_ranges)


def pad_token_maps(prompts: Sequence[TokenizedPrompt], num_tokens: int) -> Tensor:
    """Return the ``phrase_token_map`` of M >= 1 prompts, (M, P, T) bool, padded with False; P is at least 1."""
    token_maps = torch.zeros(len(prompts), max(1, *(len(one.phrase_token_map) for one in prompts)), num_tokens).bool()
    for padded, prompt in zip(token_maps, prompts, strict=True):
        padded[: len(prompt.phrase_token_map), : len(prompt)] = prompt.phrase_token_map
    return token_maps


class TokenBatch(NamedTuple):
    """Token ids of N prompts, padded to the longest.

    Attributes:
        input_ids: (N, T) int64, 0 in the padding.
        mask: (N, T) bool, True at real tokens.
        distinct: Indices (U,) of the U distinct prompts, and for each prompt its index (N,) among them; None if they
            were not compared.
    """

    input_ids: Tensor
    mask: Tensor
    distinct: tuple[Tensor, Tensor] | None = None

    @classmethod
    def from_prompts(cls, prompts: Sequence[TokenizedPrompt], device: torch.device | str = "cpu") -> TokenBatch:
        """Pad N >= 1 prompts to the longest real length among them.

        Real tokens never see padding anywhere in the model, so results at real tokens do not depend on the padding.
        """
        length = max(len(prompt) for prompt in prompts)
        input_ids = torch.zeros(len(prompts), length, dtype=torch.int64)
        mask = torch.zeros(len(prompts), length, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            input_ids[row, : len(prompt)] = prompt.input_ids
            mask[row, : len(prompt)] = True
        input_ids, mask, *distinct = to_device([input_ids, mask, *cls(input_ids, mask).compare()], device)
        return cls(input_ids, mask, (distinct[0], distinct[1]))

    def compare(self) -> tuple[Tensor, Tensor]:
        """Return ``distinct``, also where it is None; on a device this waits for the numbers."""
        if self.distinct is not None:
            return self.distinct
        # The mask is part of the key, because a real token may have the id that fills the padding.
        keys = torch.stack([self.input_ids, self.mask.long()], dim=1)
        distinct, rows = keys.unique(dim=0, return_inverse=True)
        return rows.new_zeros(len(distinct)).scatter_(0, rows, torch.arange(len(rows), device=rows.device)), rows


class LanguageFeatures(NamedTuple):
    """Features of the tokens of N prompts.

    Attributes:
        hidden: (N, T, D), replaced by the fused features as they pass through the fusion tower.
        embedded: (N, T, D), the encoder's output before fusion, zero in the padding.
        mask: (N, T) bool, True at real tokens.
        fingerprints: A number for the token ids of each prompt, for a model whose prompt is tuned; None otherwise.
    """

    hidden: Tensor
    embedded: Tensor
    mask: Tensor
    fingerprints: tuple[int, ...] | None = None


class PhraseMaps(NamedTuple):
    """How well every location of one image fits each of P phrases.

    Attributes:
        levels: L tensors (P, Hl, Wl) on the CPU; they reach into the padding of the image.
        strides: Side of a location of each level, in pixels of the image as the network saw it.
        image_size: Height and width of that image, without padding.
    """

    levels: list[Tensor]
    strides: list[int]
    image_size: tuple[int, int]

    def inside(self) -> Tensor:
        """Return the values (P, R') of the locations of all levels that lie in the image."""
        cut = [
            level[:, : -(-self.image_size[0] // stride), : -(-self.image_size[1] // stride)]
            for level, stride in zip(self.levels, self.strides, strict=True)
        ]
        return torch.cat([level.flatten(1) for level in cut], dim=1)

    def enlarged(self, row: int, size: tuple[int, int]) -> Tensor:
        """Return the best level of each pixel (H, W) of the image in another size, for one phrase."""
        best = torch.full(size, -torch.inf)
        for level, stride in zip(self.levels, self.strides, strict=True):
            # The padding goes after the enlargement: its border may lie inside a location.
            whole = [
                max(length, round(count * stride * length / side))
                for count, length, side in zip(level.shape[1:], size, self.image_size, strict=True)
            ]
            smooth = F.interpolate(level[None, row : row + 1].float(), whole, mode="bilinear")
            best = best.maximum(smooth[0, 0, : size[0], : size[1]])
        return best


class GroundingPredictions(NamedTuple):
    """Raw output of the grounding head, one tensor per level.

    Attributes:
        token_logits: L tensors (N, Hl*Wl, T).
        box_deltas: L tensors (N, Hl*Wl, 4).
        centerness_logits: L tensors (N, Hl*Wl).
    """

    token_logits: list[Tensor]
    box_deltas: list[Tensor]
    centerness_logits: list[Tensor]

    def of_image(self, row: int) -> GroundingPredictions:
        """Return the predictions for one image: its tensors lack the first dimension."""
        return GroundingPredictions(*([level[row] for level in levels] for levels in self))
