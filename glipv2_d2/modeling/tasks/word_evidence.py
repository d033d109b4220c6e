"""The evidence of an image classifier's classes for the names of prompts, added to what the detector says of them."""

from __future__ import annotations

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor
from torchvision.ops import nms

from ...device_copies import to_device
from ...structures import GroundingPredictions, TokenizedPrompt
from ..batch import InputImages, Pairs
from ..box_regression import clip_boxes_legacy
from ..class_evidence import name_evidence
from ..heads.class_words_head import mean_of_words, phrase_ids
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
        self._image_sizes = images.image_sizes
        self._cells = model.class_words_head.classify(images.tensor, images.fine)

    @torch.no_grad()
    def add(self, predictions: GroundingPredictions, anchors: list[Boxes], pairs: Pairs) -> GroundingPredictions:
        """Return the predictions for M pairs of an image and a prompt with other token logits.

        Args:
            predictions: For M pairs.
            anchors: L sets of anchors.
            pairs: The M pairs.
        """
        head, token_logits = self._model.class_words_head, torch.cat(predictions.token_logits, dim=1).float()
        for number, (row, prompt) in enumerate(zip(pairs.rows, pairs.prompts, strict=True)):
            ratios, weights, spelled = self._of_prompt(prompt)
            marked = spelled if prompt.phrase_token_map.any() else None
            boxes, places = self._choose_boxes(predictions.of_image(number), anchors, row, marked)
            evidence = name_evidence(head.probabilities(self._cells, row, boxes), ratios)
            token_logits[number, :, : len(prompt)] += (evidence @ weights)[places]
        sizes = [level.shape[1] for level in predictions.token_logits]
        return predictions._replace(token_logits=list(token_logits.split(sizes, dim=1)))

    def _choose_boxes(
        self, predictions: GroundingPredictions, anchors: list[Boxes], row: int, spelled: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the best boxes by any name, no two on one object, (K, 4), and for each anchor one of them, (R,).

        Evidence for a part of an object would speak for its name as loudly as that for the whole: each anchor has that
        of the best box that it overlaps most. ``spelled``, (T,) bool, marks the tokens of names; None: there are none.
        On a device the CPU waits once, for the suppression.
        """
        head, (token_logits, box_deltas, centerness_logits) = self._model.head, predictions
        deltas, centerness = torch.cat(box_deltas).float(), torch.cat(centerness_logits).float().sigmoid()
        scores = centerness
        if spelled is not None:
            of_tokens = torch.cat([level[:, : len(spelled)] for level in token_logits]).float().sigmoid()
            scores = of_tokens.where(spelled, 0.0).amax(dim=1) * centerness
        usable = deltas.isfinite().all(dim=1) & ~scores.isnan()
        deltas, scores = deltas.where(usable[:, None], 0.0), scores.where(usable, 0.0)
        boxes = head.box2box_transform.apply_deltas(deltas, Boxes.cat(anchors).tensor)
        boxes = clip_boxes_legacy(boxes, self._image_sizes[row])
        best = boxes[nms(boxes, scores, head.selector.nms_thresh)[: self._model.class_words_head.max_boxes]]
        return best, pairwise_iou(Boxes(boxes), Boxes(best)).argmax(dim=1)

    def _of_prompt(self, prompt: TokenizedPrompt) -> tuple[Tensor, Tensor, Tensor]:
        """Return what does not depend on the image, and is remembered: ratios, weights and the tokens of names.

        They are (K, P), (P, T) and (T,) bool.
        """
        head = self._model.class_words_head
        state = (head.class_vectors.data_ptr(), head.class_vectors._version, head.taught._version)
        key = ("class words", tuple(prompt.input_ids.tolist()), prompt.phrase_token_map.numpy().tobytes(), state)
        return self._model.remember(key, lambda: self._read(prompt))

    def _read(self, prompt: TokenizedPrompt) -> tuple[Tensor, Tensor, Tensor]:
        head = self._model.class_words_head
        vectors = [self._alone(prompt, name) for name in phrase_ids(prompt)]
        weights, spelled = to_device(
            [head.token_weights(prompt), prompt.phrase_token_map.any(dim=0)], self._model.device
        )
        return head.ratios(torch.stack(vectors)), weights, spelled

    def _alone(self, prompt: TokenizedPrompt, name: tuple[int, ...]) -> Tensor:
        """Encode a name between the special tokens of its prompt, as if nothing else had been asked for."""
        ids = torch.tensor([int(prompt.input_ids[0]), *name, int(prompt.input_ids[-1])])
        alone = TokenizedPrompt(ids, torch.ones(1, len(ids), dtype=torch.bool), torch.zeros(1).long(), ("",))
        # A phrase that was cut off has no tokens, and nothing is added for it.
        hidden = self._model.read_prompts([alone]).hidden[0]
        return mean_of_words(hidden) if name else torch.ones_like(hidden[0])
