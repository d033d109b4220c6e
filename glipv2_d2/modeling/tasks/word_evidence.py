"""The evidence of an image classifier's classes for the names of prompts, added to what the detector says of them."""

from __future__ import annotations

import functools

import torch
from detectron2.structures import Boxes
from torch import Tensor

from ...device_copies import to_device
from ...structures import GroundingPredictions, TokenizedPrompt, pad_token_maps
from ..batch import InputImages, Pairs, take_rows
from ..box_regression import pixel_bounds
from ..class_evidence import name_evidence
from ..heads.batched_selection import best_apart
from ..heads.class_words_head import ClassCells, mean_of_words, phrase_ids
from ..trunk import Trunk


class WordEvidence:
    """The classes of the cells of N images, and what they say for names; for one call of the model.

    The logits of the tokens of a name get the evidence for the name in a predicted box, times a weight. Evidence for a
    name depends on no other name.

    Args:
        model: Has a ``ClassWordsHead``.
        images: Normalized and padded.
    """

    def __init__(self, model: Trunk, images: InputImages) -> None:
        self._model = model
        self._images = images
        self._image_sizes = images.image_sizes

    @functools.cached_property
    def _cells(self) -> ClassCells:
        return self._model.class_words_head.classify(self._images.tensor, self._images.fine)

    @torch.no_grad()
    def add(self, predictions: GroundingPredictions, anchors: list[Boxes], pairs: Pairs) -> GroundingPredictions:
        """Return the predictions for M pairs of an image and a prompt with other token logits.

        On a device the CPU does not wait.

        Args:
            predictions: For M pairs.
            anchors: L sets of anchors.
            pairs: The M pairs.
        """
        # Names are encoded and images classified as autocast says; they are compared in single precision.
        of_prompts = self._of_prompts(pairs.prompts)
        if of_prompts is None:
            return predictions
        ratios, weights, spelled = of_prompts
        head, cells = self._model.class_words_head, self._cells
        token_logits = torch.cat(predictions.token_logits, dim=1).float()  # (M, R, T)
        with torch.autocast(token_logits.device.type, enabled=False):
            of_names = token_logits[..., : spelled.shape[1]]
            # Where nothing is a name, nothing is added.
            scores = of_names.where(spelled[:, None], -torch.inf).amax(dim=2).sigmoid()
            boxes, nearest = self._choose_boxes(predictions, anchors, pairs.rows, scores)
            classes = head.probabilities(cells, pairs.rows, boxes)
            of_boxes = name_evidence(classes, ratios) @ weights  # (M, B, T)
            of_names += of_boxes.gather(1, nearest[..., None].expand_as(of_names))
        sizes = [level.shape[1] for level in predictions.token_logits]
        return predictions._replace(token_logits=list(token_logits.split(sizes, dim=1)))

    def _choose_boxes(
        self, predictions: GroundingPredictions, anchors: list[Boxes], rows: list[int], scores: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the best boxes by any name, no two on one object, (M, B, 4), and for each anchor one of them, (M, R).

        Evidence for a part of an object would speak for its name as loudly as that for the whole: each anchor has that
        of the best box that it overlaps most. ``scores``, (M, R), are those of the best token of a name.
        """
        head, places = self._model.head, Boxes.cat(anchors).tensor
        deltas, centerness = (torch.cat(levels, dim=1).float() for levels in predictions[1:])
        scores = scores * centerness.sigmoid()
        usable = deltas.isfinite().all(dim=2) & ~scores.isnan()
        deltas, scores = deltas.where(usable[..., None], 0.0), scores.where(usable, 0.0)
        # All M boxes of an anchor are decoded together.
        boxes = head.box2box_transform.apply_deltas(deltas.transpose(0, 1).flatten(1), places)
        boxes = boxes.view(-1, len(rows), 4).transpose(0, 1)
        (bounds,) = to_device([pixel_bounds([self._image_sizes[row] for row in rows])], boxes.device)
        boxes = boxes.maximum(bounds[:, :1]).minimum(bounds[:, 1:])
        return best_apart(boxes, scores, head.selector.nms_thresh, self._model.class_words_head.max_boxes)

    def _of_prompts(self, prompts: list[TokenizedPrompt]) -> list[Tensor] | None:
        """Return what does not depend on the images, and is remembered: ratios, weights and the tokens of names.

        They are (M, K, P), (M, P, T) and (M, T) bool; None where all weights are 0.
        """
        head = self._model.class_words_head
        vectors, factors = head.class_vectors, (head.weight, head.taught_weight, head.share)
        state = (vectors.data_ptr(), vectors._version, head.taught._version, factors)
        keys = [(tuple(one.input_ids.tolist()), one.phrase_token_map.numpy().tobytes()) for one in prompts]
        distinct = dict(zip(keys, prompts, strict=True))
        known = self._model.remember(
            ("class words", tuple(distinct), state), lambda: self._read(list(distinct.values()))
        )
        order = {key: row for row, key in enumerate(distinct)}
        return None if known is None else take_rows(known, [order[key] for key in keys])

    def _read(self, prompts: list[TokenizedPrompt]) -> list[Tensor] | None:
        head, token_map = self._model.class_words_head, pad_token_maps(prompts, max(map(len, prompts)))
        names, texts = [], []
        for prompt in prompts:
            # A phrase that was cut off has no tokens, as those of the padding, and nothing is added for it.
            own = phrase_ids(prompt)
            own += [()] * (token_map.shape[1] - len(own))
            names += own
            texts += [_alone(prompt, name) for name in own]
        weights = head.token_weights(names, token_map)
        # A device is not asked: the CPU would wait for it.
        if weights.is_cpu and not weights.any():
            return None
        language = self._model.read_prompts(texts)
        with torch.autocast(self._model.device.type, enabled=False):
            ratios = head.ratios(mean_of_words(language.hidden, language.mask))  # (K, M * P)
            (spelled,) = to_device([token_map.any(dim=1)], self._model.device)
            ratios = ratios.unflatten(1, token_map.shape[:2]).transpose(0, 1)
            return [ratios, weights, spelled]


def _alone(prompt: TokenizedPrompt, name: tuple[int, ...]) -> TokenizedPrompt:
    """Put a name between the special tokens of its prompt, as if nothing else had been asked for."""
    ids = torch.tensor([int(prompt.input_ids[0]), *name, int(prompt.input_ids[-1])])
    return TokenizedPrompt(ids, torch.ones(1, len(ids), dtype=torch.bool), torch.zeros(1).long(), ("",))
