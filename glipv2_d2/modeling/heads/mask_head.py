"""The head that predicts the mask of a box from the words that name it."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...device_copies import to_device
from ...distributed import mean_over_ranks
from ...errors import InputError
from ...layers.hourglass import Hourglass
from ...structures import TokenizedPrompt
from ..batch import Fused, TrainBatch, TrainingHead, TrunkShapes, boxes_of, boxes_on_cpu
from ..token_scoring import phrase_means
from .grounding_head import MAX_LOGIT
from .mask_pooling import RegionPooler
from .mask_targets import crop_masks, match_proposals

# What the mask head reads: the pyramid before fusion, or the levels of the tower.
MASK_FEATURES = ("fpn", "fused")
# Training runs the boxes of a batch in so many slices, of no fewer boxes than that.
_SLICES = 12
_MIN_SLICE = 8
# Boxes of an image that are run at a time at test time.
_TEST_SLICE = 128
# Boxes that are run at a time on a device, of all images together.
_DEVICE_SLICE = 512


class HourglassMaskHead(TrainingHead):
    """Align every pixel of a box with the words that name it.

    ROIAlign, hourglasses with a ReLU behind each, a transposed convolution to twice the resolution with a ReLU, and a
    dot product of each pixel with the tokens: that of the grounding head, with weights of its own and no constant bias.
    The logit of a phrase is the mean of the logits of its tokens. The mean is linear, so the tokens are averaged first,
    and a box needs one map instead of one for every token.

    Activations would be far larger than the maps. They are not kept for the backward pass but computed again, one slice
    of boxes after the other.

    Args:
        channels: C of the levels.
        language_dim: D of the text.
        strides: L strides of the levels.
        hourglass_depth: Halvings of the resolution inside an hourglass.
        num_hourglasses: Hourglasses in a row, at least 1.
        conv_dim: Channels inside the head; if they are not C, a 1x1 convolution comes first.
        num_groups: Groups of the GroupNorm in the hourglasses, 0 for none.
        pooler_resolution: S, cells along a side of what is pooled.
        pooler_sampling_ratio: See ``RegionPooler``.
        log_scale: Initial log of the temperature.
        max_proposals: The most matched proposals of an image that train, in addition to its annotated boxes.
        reads: Levels that regions are pooled from, one of ``MASK_FEATURES``.
        threshold: Probability from which on a pixel belongs to a mask.
        loss_weight: Factor of ``loss_mask``.

    Raises:
        InputError: There is no hourglass, or a layer refuses a value.

    Source: GLIPv2, Sec. 3.1 and App. D.1; ``HourglassFPNFeatureExtractor`` and ``VLMaskRCNNC4Predictor`` of the
    official code. That code makes and clamps all token maps first, and C has to be ``conv_dim`` there.
    """

    reads_boxes: ClassVar[bool] = True

    @configurable
    def __init__(
        self,
        *,
        channels: int,
        language_dim: int,
        strides: list[int],
        hourglass_depth: int = 1,
        num_hourglasses: int = 1,
        conv_dim: int = 256,
        num_groups: int = 0,
        pooler_resolution: int = 14,
        pooler_sampling_ratio: int = 0,
        log_scale: float = 0.0,
        max_proposals: int = 100,
        reads: str = "fpn",
        threshold: float = 0.5,
        loss_weight: float = 1.0,
    ):
        super().__init__()
        if num_hourglasses < 1:
            raise InputError(f"MODEL.GLIPV2.MASK_HEAD.NUM_HOURGLASSES: expected at least 1, found {num_hourglasses}")
        if reads not in MASK_FEATURES:
            raise InputError(f"MODEL.GLIPV2.MASK_HEAD.FEATURES: expected one of {list(MASK_FEATURES)}, found {reads!r}")
        self.pooler = RegionPooler(strides=strides, resolution=pooler_resolution, sampling_ratio=pooler_sampling_ratio)
        self.input_projection = nn.Identity() if channels == conv_dim else nn.Conv2d(channels, conv_dim, kernel_size=1)
        self.hourglasses = nn.ModuleList(
            Hourglass(conv_dim, hourglass_depth, num_groups) for _ in range(num_hourglasses)
        )
        self.deconv = nn.ConvTranspose2d(conv_dim, conv_dim, kernel_size=2, stride=2)
        self.text_projection = nn.Linear(language_dim, conv_dim)
        self.log_scale = nn.Parameter(torch.tensor([log_scale]))
        self.bias_lang = nn.Parameter(torch.zeros(language_dim))
        for layer in (self.input_projection, self.deconv, self.text_projection):
            if not isinstance(layer, nn.Identity):
                weight_init.c2_msra_fill(layer)
        self.max_proposals = max_proposals
        self.reads = reads
        self.threshold = threshold
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, shapes: TrunkShapes) -> dict[str, Any]:
        """Read the arguments that the config decides."""
        config = cfg.MODEL.GLIPV2.MASK_HEAD
        return {
            "channels": shapes.levels[0].channels if config.FEATURES == "fpn" else shapes.tower_channels,
            "language_dim": shapes.language_dim,
            "strides": [level.stride for level in shapes.levels],
            "hourglass_depth": config.HOURGLASS_DEPTH,
            "num_hourglasses": config.NUM_HOURGLASSES,
            "conv_dim": config.CONV_DIM,
            "pooler_resolution": config.POOLER_RESOLUTION,
            "max_proposals": config.MAX_PROPOSALS,
            "reads": config.FEATURES,
            "threshold": cfg.MODEL.GLIPV2.TEST.MASK_THRESH,
            "loss_weight": config.LOSS_WEIGHT,
        }

    def forward(self, features: list[Tensor], boxes: list[Tensor], text: Tensor, token_maps: list[Tensor]) -> Tensor:
        """Predict one map for each box of N images.

        Args:
            features: L levels (N, C, Hl, Wl).
            boxes: N tensors (K, 4) XYXY, half-open, pixels of the padded input; K may be 0.
            text: (N, T, D), what the grounding head reads.
            token_maps: N tensors (K, T) bool, or narrower, on the CPU: the tokens that name each box.

        Returns:
            (sum of K, 2S, 2S) logits, each in the frame of its box, image after image.
        """
        return self.draw(self.pooler(features, boxes), *self.project_phrases(text, token_maps))

    def draw(self, pooled: Tensor, words: Tensor, bias: Tensor) -> Tensor:
        """Predict the maps of K boxes, in slices when gradients are wanted.

        Args:
            pooled: (K, C, S, S).
            words, bias: Output of ``project_phrases``.

        Returns:
            (K, 2S, 2S) logits.
        """
        size = max(_MIN_SLICE, math.ceil(len(pooled) / _SLICES))
        if len(pooled) <= size or not torch.is_grad_enabled():
            return self._draw_slice(pooled, words, bias)
        slices = zip(pooled.split(size), words.split(size), bias.split(size), strict=True)
        return torch.cat(
            [checkpoint(self._draw_slice, *part, use_reentrant=False, preserve_rng_state=False) for part in slices]
        )

    def extract(self, pooled: Tensor) -> Tensor:
        """Map pooled features (K, C, S, S) to those of the last hourglass, (K, conv_dim, S, S)."""
        x = self.input_projection(pooled)
        for hourglass in self.hourglasses:
            x = F.relu(hourglass(x))
        return x

    def project_phrases(self, text: Tensor, token_maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return what the pixels of each box are multiplied with, (sum of K, conv_dim), and its bias, (sum of K,)."""
        # The guard against a zero norm, 1e-12, does not exist in half precision; padding may well be all zero.
        embedding = F.normalize(text.float(), dim=-1, eps=1e-12)
        phrase = phrase_means(embedding, token_maps).to(self.bias_lang.dtype)
        return self.text_projection(phrase / 2) / self.log_scale.exp(), phrase @ self.bias_lang

    def enlarge(self, regions: Tensor) -> Tensor:
        """Map (K, conv_dim, S, S) to the features of the pixels of the masks, (K, conv_dim, 2S, 2S)."""
        return F.relu(self.deconv(regions))

    def align(self, pixels: Tensor, words: Tensor, bias: Tensor) -> Tensor:
        """Multiply the pixels of each box, (K, conv_dim, 2S, 2S), with its words: logits (K, 2S, 2S)."""
        # (K, 1, conv_dim) @ (K, conv_dim, 2S * 2S)
        logits = torch.baddbmm(bias[:, None, None], words[:, None], pixels.flatten(2))
        return logits.view(-1, *pixels.shape[2:]).clamp(-MAX_LOGIT, MAX_LOGIT)

    def _draw_slice(self, pooled: Tensor, words: Tensor, bias: Tensor) -> Tensor:
        return self.align(self.enlarge(self.extract(pooled)), words, bias)

    def levels_of(self, fused: Fused) -> list[Tensor]:
        """Return the L levels (M, C, Hl, Wl) that regions are pooled from."""
        return fused.features if self.reads == "fpn" else fused.levels

    def losses(self, fused: Fused, batch: TrainBatch) -> dict[str, Tensor]:
        """Compute the weighted cross-entropy of the masks of matched proposals and annotated boxes.

        It is computed in single precision and is the mean over the boxes of all ranks, once gradients are averaged over
        them; a batch without masks has a loss of 0 that still reaches the parameters.

        Args:
            fused: Levels, ``text`` and ``proposals``, predicted boxes in the frame of the annotated ones, are read.
            batch: N images with one prompt each, ``gt_boxes``, ``gt_classes``, ``gt_masks`` and ``gt_has_mask``. Boxes
                without a mask, or with a phrase that was cut off, do not train.

        Returns:
            The scalar ``loss_mask``.
        """
        features, text, resolution = self.levels_of(fused), fused.text, 2 * self.pooler.resolution
        boxes, token_maps, targets = [], [], []
        # Regions are chosen on the CPU, where the proposals are: a device would be waited for again and again.
        for image_proposals, image, there, prompt in zip(
            fused.proposals(batch), boxes_on_cpu(batch), boxes_of(batch), batch.prompts, strict=True
        ):
            rows = prompt.phrase_token_map[image.gt_classes]  # (M, real tokens)
            usable = image.gt_has_mask & rows.any(dim=1)
            regions = match_proposals(image_proposals, image, usable, self.max_proposals)
            boxes.append(regions.boxes)
            token_maps.append(rows[regions.matched_idxs])
            targets.append(crop_masks(there.gt_masks, regions, resolution))
        logits = self(features, boxes, text, token_maps).float()
        expected = torch.cat(to_device(targets, text.device))
        total = F.binary_cross_entropy_with_logits(logits, expected, reduction="sum") / resolution**2
        return {"loss_mask": mean_over_ranks(total, len(logits)) * self.loss_weight}

    @torch.no_grad()
    def inference(
        self, features: list[Tensor], text: Tensor, instances: list[Instances], prompts: list[TokenizedPrompt]
    ) -> list[Tensor]:
        """Predict the masks of the detections of N images.

        Args:
            features: L levels (N, C, Hl, Wl).
            text: (N, T, D).
            instances: N images with ``pred_boxes``, in pixels of the padded input, and ``phrase_ids``, rows of the
                prompt's ``phrase_token_map``; on the CPU.
            prompts: N prompts.

        Returns:
            N tensors (K, 2S, 2S) of probabilities, for ``paste_masks``.
        """
        boxes = [image.pred_boxes.tensor for image in instances]
        token_maps = [one.phrase_token_map[image.phrase_ids] for image, one in zip(instances, prompts, strict=True)]
        if text.device.type != "cpu":
            return self._predict_together(features, text, boxes, token_maps)
        masks = []
        for i, of_image in enumerate(zip(boxes, token_maps, strict=True)):
            levels = [level[i : i + 1] for level in features]
            parts = zip(*(one.split(_TEST_SLICE) for one in of_image), strict=True)
            logits = [self(levels, [part], text[i : i + 1], [token_map]) for part, token_map in parts]
            masks.append(torch.cat(logits).float().sigmoid())
        return masks

    def _predict_together(
        self, features: list[Tensor], text: Tensor, boxes: list[Tensor], token_maps: list[Tensor]
    ) -> list[Tensor]:
        """Predict as image by image, on a device; boxes and token maps are on the CPU."""
        inputs = self.pooler(features, boxes), *self.project_phrases(text, token_maps)
        parts = [one.split(_DEVICE_SLICE) for one in inputs]
        logits = torch.cat([self._draw_slice(*part) for part in zip(*parts, strict=True)])
        return list(logits.float().sigmoid().split([len(one) for one in boxes]))
