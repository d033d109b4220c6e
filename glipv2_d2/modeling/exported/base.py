"""What the exported forms of the detector share: an image in, candidates out, of shapes that no number decides."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..meta_arch.glipv2 import GLIPv2
from ..token_scoring import token_to_phrase_scores


class ImageEncoder(nn.Module):
    """The backbone of a model, for one image that lies in a canvas.

    Args:
        model: The model, in eval mode. Its parts are used as they are, not copied.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model: GLIPv2) -> None:
        super().__init__()
        self._level_names = model.head_in_features
        self.backbone = model.backbone
        self.register_buffer("pixel_mean", model.pixel_mean)
        self.register_buffer("pixel_std", model.pixel_std)

    def forward(self, image: Tensor, image_size: Tensor) -> list[Tensor]:
        """Normalize a canvas (3, H, W), blank what is outside of ``image_size``, (2,) height and width, and encode it.

        Returns:
            L levels (1, C, Hl, Wl).
        """
        height, width = image.shape[-2:]
        inside = (torch.arange(height, device=image.device) < image_size[0])[:, None]
        inside = inside & (torch.arange(width, device=image.device) < image_size[1])
        features = self.backbone(((image - self.pixel_mean) / self.pixel_std * inside)[None])
        return [features[name] for name in self._level_names]


class CandidateChooser(nn.Module):
    """The head of a model, and the choice of the best pairs of an anchor and a phrase among its predictions.

    Args:
        model: The model, in eval mode. Its parts are used as they are, not copied.
    """

    def __init__(self, model: GLIPv2) -> None:
        super().__init__()
        self.head = model.head
        self.selector = model.head.selector

    def forward(
        self, levels: list[Tensor], text: Tensor, anchors: list[Tensor], phrase_token_map: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes, scores and phrases of the best pairs of each level.

        Args:
            levels: L levels (1, C, Hl, Wl) of the tower.
            text: (1, T, D), the text of one prompt as the head reads it.
            anchors: L sets (Hl * Wl, 4).
            phrase_token_map: (P, T) bool.

        Returns:
            (K, 4) XYXY in pixels of the canvas, not clipped; (K,); and (K,) int64, with K ``topk_candidates`` for each
            level. The score is 0 where a pair is no candidate, see ``DetectionSelector``.
        """
        boxes, scores, phrases = [], [], []
        predictions = self.head(levels, text).of_image(0)
        num_phrases, count = phrase_token_map.shape[0], self.selector.topk_candidates
        for logits, deltas, quality, own_anchors in zip(*predictions, anchors, strict=True):
            aggregation = self.selector.score_aggregation
            phrase_scores = token_to_phrase_scores(logits.float().sigmoid(), phrase_token_map, aggregation)
            quality = quality.float().sigmoid()[:, None]
            valid = deltas.isfinite().all(dim=1)[:, None] & ~quality.isnan()
            is_candidate = (phrase_scores > self.selector.score_thresh) & valid
            products = torch.where(is_candidate, phrase_scores * quality, 0.0).flatten()
            num_pairs = products.shape[0]
            # A small level may have fewer pairs than are asked for.
            products, best = torch.cat([products, products.new_zeros(count)]).topk(count)
            best = torch.where(best < num_pairs, best, 0)
            anchor = best // num_phrases
            phrases.append(best - anchor * num_phrases)
            deltas = torch.where(valid, deltas, 0.0)[anchor]
            boxes.append(self.selector.box2box_transform.apply_deltas(deltas, own_anchors[anchor]))
            scores.append(products.sqrt())
        return torch.cat(boxes), torch.cat(scores), torch.cat(phrases)


def clip_to_image(boxes: Tensor, image_size: Tensor) -> Tensor:
    """Clip boxes (K, 4) to an image of ``image_size``, (2,) height and width, as ``clip_boxes_legacy`` does."""
    last_pixel = boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
    return boxes.maximum(last_pixel).minimum(corner_of(image_size) - 1 + last_pixel)


def corner_of(size: Tensor) -> Tensor:
    """Return (width, height, width, height) of (height, width)."""
    return size.flip(0).repeat(2).float()
