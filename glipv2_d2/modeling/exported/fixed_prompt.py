"""A detector with its prompt frozen in: images of one size in, boxes and names out, tensors alone."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torchvision.ops import nms

from ...errors import InputError
from ...structures import LanguageFeatures, TokenizedPrompt
from ..meta_arch.glipv2 import GLIPv2
from ..tasks.detection import Detection
from .base import CandidateChooser, ImageEncoder, clip_to_image, corner_of


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

    def __init__(self, model: GLIPv2, prompt: TokenizedPrompt, size: tuple[int, int]) -> None:
        super().__init__()
        divisor = model.backbone.size_divisibility
        if any(side < divisor or side % divisor for side in size):
            raise InputError(f"--size: expected height and width in multiples of {divisor}, found {size[0]} {size[1]}")
        task = cast(Detection, model.tasks[Detection.name])
        self._max_detections, self._reading = task.max_detections, task.test_reading
        self.encoder, self.fusion_tower, self.chooser = ImageEncoder(model), model.fusion_tower, CandidateChooser(model)
        self.size = size
        with torch.no_grad():
            language = model.read_prompts([prompt], self._reading)
            if model.prompt_tuner is not None:
                language = model.prompt_tuner(language)
            anchors = model.anchor_generator(
                self.encoder(torch.zeros(3, *size, device=model.device), torch.tensor(size))
            )
        self._level_lengths = [len(level) for level in anchors]
        self.register_buffer("hidden", language.hidden)
        self.register_buffer("embedded", language.embedded)
        self.register_buffer("mask", language.mask)
        self.register_buffer("anchors", torch.cat([level.tensor for level in anchors]))
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
        encoded = LanguageFeatures(self.hidden, self.embedded, self.mask)
        levels, fused = self.fusion_tower(self.encoder(image, image_size), encoded, self._reading)
        text = fused.hidden if self.fusion_tower.fuses_text else fused.embedded
        anchors = list(self.anchors.split(self._level_lengths))
        boxes, scores, phrases = self.chooser(levels, text, anchors, self.phrase_token_map)
        boxes = clip_to_image(boxes, image_size)
        # Phrases do not suppress each other: their boxes are moved apart, in a precision that this leaves exact.
        apart = phrases[:, None] * (max(self.size) + 1.0)
        kept = nms(boxes.double() + apart.double(), scores.double(), self.chooser.selector.nms_thresh)
        scores = torch.zeros_like(scores).index_copy(0, kept, scores[kept])
        scores, best = scores.topk(min(self._max_detections or len(scores), len(scores)))
        # See scale_boxes_legacy.
        last_pixel = boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
        boxes = (boxes[best] - last_pixel) * corner_of(original_size / image_size) + last_pixel
        return boxes.clamp(min=0).minimum(corner_of(original_size)), scores, self.category_ids[phrases[best]]
