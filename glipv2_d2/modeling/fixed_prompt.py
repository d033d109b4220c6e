"""A detector with its prompt frozen in: images of one size in, boxes and names out, tensors alone."""

from __future__ import annotations

from typing import cast

import torch
from detectron2.structures import Boxes
from torch import Tensor, nn
from torchvision.ops import nms

from ..errors import InputError
from ..structures import LanguageFeatures, TokenizedPrompt
from .meta_arch.glipv2 import GLIPv2
from .tasks.detection import Detection
from .token_scoring import token_to_phrase_scores


class FixedPromptDetector(nn.Module):
    """Detect the phrases of one prompt in images of one size, as ``Detection`` does for one image.

    All shapes are constants, and the text is encoded once, here: ``torch.export`` can trace it.

    Args:
        model: The model, in eval mode. Its masks are left out.
        prompt: What is looked for.
        size: Height and width of the images, pixels; multiples of the largest stride of the model.

    Raises:
        InputError: ``size`` is not such a size.
    """

    hidden: Tensor
    embedded: Tensor
    mask: Tensor
    anchors: Tensor
    phrase_token_map: Tensor
    category_ids: Tensor
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model: GLIPv2, prompt: TokenizedPrompt, size: tuple[int, int]) -> None:
        super().__init__()
        divisor = model.backbone.size_divisibility
        if any(side < divisor or side % divisor for side in size):
            raise InputError(f"--size: expected height and width in multiples of {divisor}, found {size[0]} {size[1]}")
        task = cast(Detection, model.tasks[Detection.name])
        self._reading = task.test_reading
        self._max_detections = task.max_detections
        self._selector = model.head.selector
        self._level_names = model.head_in_features
        self.size = size
        # The text encoder is left behind.
        self.backbone, self.fusion_tower, self.head = model.backbone, model.fusion_tower, model.head
        self.register_buffer("pixel_mean", model.pixel_mean)
        self.register_buffer("pixel_std", model.pixel_std)
        with torch.no_grad():
            language = model.read_prompts([prompt], self._reading)
            if model.prompt_tuner is not None:
                language = model.prompt_tuner(language)
            features = self._features(torch.zeros(3, *size, device=model.device), torch.tensor(size))
            anchors = Boxes.cat(model.anchor_generator(features)).tensor
        self.register_buffer("hidden", language.hidden)
        self.register_buffer("embedded", language.embedded)
        self.register_buffer("mask", language.mask)
        self.register_buffer("anchors", anchors)
        self.register_buffer("phrase_token_map", prompt.phrase_token_map.to(model.device))
        self.register_buffer("category_ids", prompt.category_ids.to(model.device))

    def forward(self, image: Tensor, image_size: Tensor, original_size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect in one image.

        Args:
            image: (3, H, W) float32 in 0..255, channels in the order of ``INPUT.FORMAT``, the image in its upper left;
                what is right of it and below it does not count.
            image_size: (2,) int64, height and width of the image in it, pixels.
            original_size: (2,) int64, height and width of the image before it was resized, pixels.

        Returns:
            Boxes (K, 4) XYXY in pixels of the original image, half-open; scores (K,) in [0, 1], descending; and
            categories (K,) int64. K is ``TEST.DETECTIONS_PER_IMAGE``, or with 0 the number of all candidates; rows with
            the score 0 are empty.
        """
        features = self._features(image, image_size)
        encoded = LanguageFeatures(self.hidden, self.embedded, self.mask)
        levels, language = self.fusion_tower(features, encoded, self._reading)
        text = language.hidden if self.fusion_tower.fuses_text else language.embedded
        boxes, scores, phrases = self._candidates(*self.head(levels, text).of_image(0))
        # Their first and last pixel lie in the image, see clip_boxes_legacy.
        last_pixel = boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
        boxes = boxes.maximum(last_pixel).minimum(_corner(image_size) - 1 + last_pixel)
        # Phrases do not suppress each other: their boxes are moved apart, in a precision that this leaves exact.
        apart = phrases[:, None] * (max(self.size) + 1.0)
        kept = nms(boxes.double() + apart.double(), scores.double(), self._selector.nms_thresh)
        scores = torch.zeros_like(scores).index_copy(0, kept, scores[kept])
        scores, best = scores.topk(min(self._max_detections or len(scores), len(scores)))
        # See scale_boxes_legacy.
        boxes = (boxes[best] - last_pixel) * _corner(original_size / image_size) + last_pixel
        return boxes.clamp(min=0).minimum(_corner(original_size)), scores, self.category_ids[phrases[best]]

    def _features(self, image: Tensor, image_size: Tensor) -> list[Tensor]:
        """Normalize an image, blank what is outside, and return the levels."""
        height, width = self.size
        inside = (torch.arange(height, device=image.device) < image_size[0])[:, None]
        inside = inside & (torch.arange(width, device=image.device) < image_size[1])
        features = self.backbone(((image - self.pixel_mean) / self.pixel_std * inside)[None])
        return [features[name] for name in self._level_names]

    def _candidates(
        self, token_logits: list[Tensor], box_deltas: list[Tensor], centerness: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes, scores and phrases of the best pairs of an anchor and a phrase of each level.

        The score is 0 where a pair is no candidate, see ``DetectionSelector``.
        """
        boxes, scores, phrases = [], [], []
        anchors = self.anchors.split([len(deltas) for deltas in box_deltas])
        num_phrases = len(self.phrase_token_map)
        for logits, deltas, quality, own_anchors in zip(token_logits, box_deltas, centerness, anchors, strict=True):
            aggregation = self._selector.score_aggregation
            phrase_scores = token_to_phrase_scores(logits.float().sigmoid(), self.phrase_token_map, aggregation)
            quality = quality.float().sigmoid()[:, None]
            valid = deltas.isfinite().all(dim=1)[:, None] & ~quality.isnan()
            is_candidate = (phrase_scores > self._selector.score_thresh) & valid
            products = torch.where(is_candidate, phrase_scores * quality, 0.0).flatten()
            products, best = products.topk(min(self._selector.topk_candidates, len(products)))
            anchor = best // num_phrases
            deltas = torch.where(valid, deltas, 0.0)[anchor]
            boxes.append(self._selector.box2box_transform.apply_deltas(deltas, own_anchors[anchor]))
            scores.append(products.sqrt())
            phrases.append(best % num_phrases)
        return torch.cat(boxes), torch.cat(scores), torch.cat(phrases)


def _corner(size: Tensor) -> Tensor:
    """Return (width, height, width, height) of (height, width)."""
    return size.flip(0).repeat(2).float()
