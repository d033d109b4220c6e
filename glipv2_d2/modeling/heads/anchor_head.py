"""The base of the detection heads: boxes and centerness of every anchor, targets, losses and detections."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ...device_copies import to_device
from ...distributed import reduce_mean
from ...errors import InputError
from ...structures import GroundingPredictions, TokenizedPrompt
from ..batch import AnchorTargets, Fused, Positives, TrainBatch, TrainingHead, TrunkShapes, boxes_on_cpu
from ..box_regression import box_deltas
from ..losses.box_losses import centerness_targets, giou_loss_legacy
from ..losses.token_focal_loss import token_focal_loss
from ..matcher import ATSSMatcher
from .detection_selector import DetectionSelector
from .mask_proposals import select_proposals

# Keeps the box loss finite on a batch without positives; the centerness of a single positive anchor is far above it.
MIN_CENTERNESS_SUM = 1e-6
# Factors of the predicted box deltas (dx, dy, dw, dh), those of the official code.
REGRESSION_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


class LevelScale(nn.Module):
    """Multiply by one learned number.

    Args:
        initial_value: Its value before training.
    """

    def __init__(self, initial_value: float):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([initial_value]))

    def forward(self, x: Tensor) -> Tensor:
        """Scale a tensor of any shape."""
        return x * self.scale


class AnchorHead(TrainingHead):
    """Predict a box and a centerness for every anchor; a subclass adds the naming of anchors.

    All levels share the head, except for one scale of the box deltas per level. There is one anchor per position.

    Args:
        channels: C of the levels.
        num_levels: L.
        box2box_transform: Encodes boxes relative to anchors.
        matcher: Labels the anchors.
        level_scale: Initial factor of the box deltas.
        no_object_token: Index of a token that is the target of unmatched anchors; None for no such token. It has an
            effect only in prompts longer than this index.
        focal_alpha: See ``token_focal_loss``.
        focal_gamma: See ``token_focal_loss``.
        naming_loss_weight: Factor of the loss of the naming, whose key is ``naming_loss``.
        box_reg_loss_weight: Factor of ``loss_box_reg``.
        centerness_loss_weight: Factor of ``loss_centerness``.
        test_score_thresh: See ``DetectionSelector``, also for the following.
        test_topk_candidates: Pairs of anchor and phrase, per level.
        test_nms_thresh: IoU.
        test_score_aggregation: "mean", "max" or "power".
        test_detections_per_image: Detections per prompt, 0 for all.

    Raises:
        InputError: A value that ``DetectionSelector`` refuses.

    Source: ATSS (arXiv 1912.02424); ``VLDyHead`` and ``ATSSLossComputation`` of the official code.
    """

    reads_boxes: ClassVar[bool] = True
    # Key of the loss of what names the anchors.
    naming_loss: ClassVar[str]

    def __init__(
        self,
        *,
        channels: int,
        num_levels: int,
        box2box_transform: Box2BoxTransform,
        matcher: ATSSMatcher,
        level_scale: float = 1.0,
        no_object_token: int | None = None,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        naming_loss_weight: float = 1.0,
        box_reg_loss_weight: float = 2.0,
        centerness_loss_weight: float = 1.0,
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.6,
        test_score_aggregation: str = "mean",
        test_detections_per_image: int = 100,
    ):
        super().__init__()
        self.bbox_pred = nn.Conv2d(channels, 4, kernel_size=1)
        self.centerness = nn.Conv2d(channels, 1, kernel_size=1)
        self.scales = nn.ModuleList(LevelScale(level_scale) for _ in range(num_levels))
        self.box2box_transform = box2box_transform
        self.matcher = matcher
        self.no_object_token = no_object_token
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.naming_loss_weight = naming_loss_weight
        self.box_reg_loss_weight = box_reg_loss_weight
        self.centerness_loss_weight = centerness_loss_weight
        self.selector = DetectionSelector(
            box2box_transform=box2box_transform,
            score_thresh=test_score_thresh,
            topk_candidates=test_topk_candidates,
            nms_thresh=test_nms_thresh,
            score_aggregation=test_score_aggregation,
            detections_per_image=test_detections_per_image,
        )

    @staticmethod
    def shared_options(cfg: CfgNode, shapes: TrunkShapes) -> dict[str, Any]:
        """Read the arguments that the config and the shapes of the trunk decide for every head."""
        config = cfg.MODEL.GLIPV2
        return {
            "channels": shapes.tower_channels,
            "num_levels": len(shapes.levels),
            "box2box_transform": Box2BoxTransform(weights=REGRESSION_WEIGHTS),
            "matcher": ATSSMatcher(config.MATCHER.TOPK),
            "level_scale": config.BOX.LEVEL_SCALE,
            "focal_alpha": config.GROUNDING.FOCAL_ALPHA,
            "focal_gamma": config.GROUNDING.FOCAL_GAMMA,
            "box_reg_loss_weight": config.BOX.REG_LOSS_WEIGHT,
            "centerness_loss_weight": config.BOX.CENTERNESS_LOSS_WEIGHT,
            "test_score_thresh": config.TEST.SCORE_THRESH,
            "test_topk_candidates": config.TEST.TOPK_CANDIDATES,
            "test_nms_thresh": config.TEST.NMS_THRESH,
            "test_detections_per_image": max(config.TEST.DETECTIONS_PER_PROMPT, 0) or cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    def _place(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return box deltas (N, Hl*Wl, 4) and centerness logits (N, Hl*Wl) of L levels (N, C, Hl, Wl)."""
        deltas, centerness_logits = [], []
        for scale, feature in zip(self.scales, features, strict=True):
            deltas.append(scale(self.bbox_pred(feature)).flatten(2).transpose(1, 2))
            centerness_logits.append(self.centerness(feature).flatten(1))
        return deltas, centerness_logits

    def label_anchors(
        self, anchors: list[Boxes], instances: list[Instances], prompts: list[TokenizedPrompt], num_tokens: int
    ) -> AnchorTargets:
        """Label the anchors of a batch.

        Args:
            anchors: L sets of anchors, the same for all images.
            instances: N images with ``gt_boxes`` and ``gt_classes``, rows of the prompt's ``phrase_token_map``; an
                image without boxes has only negatives.
            prompts: N prompts.
            num_tokens: T, the length of the longest prompt or more.
        """
        device, counts = anchors[0].device, torch.tensor([len(image) for image in instances])
        token_maps = torch.cat([F.pad(one.phrase_token_map, (0, num_tokens - len(one))) for one in prompts])
        # The first box of each image, the first phrase of the prompt of each box, and the image of each box.
        first_box = counts.cumsum(0) - counts
        num_phrases = torch.tensor([len(prompt.phrases) for prompt in prompts])
        first_phrase = (num_phrases.cumsum(0) - num_phrases).repeat_interleave(counts)
        images = torch.arange(len(instances)).repeat_interleave(counts)
        sides = [token_maps, first_box, first_phrase, images]
        token_maps, first_box, first_phrase, images = to_device(sides, device)

        boxes = Boxes.cat([image.gt_boxes for image in instances])
        phrases = torch.cat([image.gt_classes for image in instances]) + first_phrase
        matched = self.matcher.match_images(anchors, boxes, images, len(instances))
        positives = Positives.find(matched >= 0)
        places = positives.images, positives.anchors
        matches = matched[places]
        gt_boxes = torch.zeros(*matched.shape, 4, device=device)
        token_targets = torch.zeros(*matched.shape, num_tokens, dtype=torch.bool, device=device)
        gt_boxes[places] = boxes.tensor[matches]
        token_targets[places] = token_maps[phrases[matches]]
        if self.no_object_token is not None and self.no_object_token < num_tokens:
            token_targets[..., self.no_object_token] |= matched < 0
        matched_idxs = torch.where(matched < 0, matched, matched - first_box[:, None])
        return AnchorTargets(matched_idxs, gt_boxes, token_targets, positives)

    def losses(self, fused: Fused, batch: TrainBatch) -> dict[str, Tensor]:
        """Compute the weighted losses of a batch, in single precision.

        The losses of names and centerness are divided by the number of positive anchors (at least 1), the box loss by
        the sum of their centerness targets; both are means over the ranks. A batch without positives has box and
        centerness losses of 0 that still reach the parameters.

        Args:
            fused: Its ``predictions``, ``anchors`` and ``targets`` are read.
            batch: Its ``annotated_tokens`` are read.

        Returns:
            Scalars ``naming_loss``, ``loss_box_reg`` and ``loss_centerness``, without those whose weight is 0.
        """
        predictions, anchors, targets = fused.predictions, fused.anchors, fused.targets(batch)
        image, anchor, _ = targets.find_positives()
        deltas = torch.cat(predictions.box_deltas, dim=1)[image, anchor]
        centerness_logits = torch.cat(predictions.centerness_logits, dim=1)[image, anchor].float()
        pos_anchors = Boxes.cat(anchors).tensor[anchor]
        gt_deltas = box_deltas(pos_anchors, targets.gt_boxes[image, anchor], self.box2box_transform.weights)
        gt_boxes = self.box2box_transform.apply_deltas(gt_deltas, pos_anchors)
        pred_boxes = self.box2box_transform.apply_deltas(deltas, pos_anchors)
        centerness = centerness_targets(pos_anchors, gt_boxes)

        sums = torch.stack((centerness.new_full((), len(anchor)), centerness.sum()))
        num_positive, centerness_sum = reduce_mean(sums).unbind()
        num_positive = num_positive.clamp(min=1)
        centerness_sum = centerness_sum.clamp(min=MIN_CENTERNESS_SUM)

        naming = self._naming_sum(predictions.token_logits, targets.token_targets, batch.annotated_tokens)
        box_reg = (giou_loss_legacy(pred_boxes, gt_boxes) * centerness).sum()
        rating = F.binary_cross_entropy_with_logits(centerness_logits, centerness, reduction="sum")
        weighted = {
            self.naming_loss: (naming / num_positive, self.naming_loss_weight),
            "loss_box_reg": (box_reg / centerness_sum, self.box_reg_loss_weight),
            "loss_centerness": (rating / num_positive, self.centerness_loss_weight),
        }
        return {name: loss * weight for name, (loss, weight) in weighted.items() if weight}

    def _naming_sum(self, token_logits: list[Tensor], token_targets: Tensor, text_mask: Tensor) -> Tensor:
        """Sum the token loss level by level: joining the levels would copy the largest tensor of the model."""
        targets = token_targets.split([level.shape[1] for level in token_logits], dim=1)
        per_level = [
            token_focal_loss(logits, level_targets, text_mask, self.focal_alpha, self.focal_gamma)
            for logits, level_targets in zip(token_logits, targets, strict=True)
        ]
        return torch.stack(per_level).sum()

    def proposals(self, fused: Fused, batch: TrainBatch) -> list[Boxes]:
        """Choose the boxes that train the mask head, see ``select_proposals``."""
        sizes, instances = batch.images.image_sizes, boxes_on_cpu(batch)
        return select_proposals(fused.predictions, fused.anchors, sizes, batch.prompts, instances, self.selector)

    def inference(
        self,
        predictions: GroundingPredictions,
        anchors: list[Boxes],
        image_sizes: list[tuple[int, int]],
        prompts: list[TokenizedPrompt],
        limit: int | None = None,
    ) -> list[Instances]:
        """Choose the detections of each image, independently of the others in the batch.

        Args:
            predictions: Output of ``forward``; NaN is never detected.
            anchors: L sets of anchors.
            image_sizes: N pairs of height and width without padding, pixels.
            prompts: N prompts.
            limit: Detections of a prompt that are kept, 0 for all; None: as the head was built.

        Returns:
            N ``Instances`` with ``pred_boxes`` in pixels of the network's input, ``scores``, ``pred_classes`` and
            ``phrase_ids``, see ``DetectionSelector``.
        """
        results = []
        for i, (image_size, prompt) in enumerate(zip(image_sizes, prompts, strict=True)):
            results.append(self.selector(predictions.of_image(i), anchors, image_size, prompt, limit))
        return results


def initialize_predictors(*convs: nn.Conv2d) -> None:
    """Start layers with small weights and no bias, as dense detectors do."""
    for conv in convs:
        nn.init.normal_(conv.weight, std=0.01)
        nn.init.zeros_(conv.get_parameter("bias"))


def prior_bias(prob: float) -> float:
    """Return the bias with which an untrained anchor gives a name the probability ``prob``.

    Raises:
        InputError: It is not in (0, 1).

    Source: RetinaNet (arXiv 1708.02002), Sec. 4.1.
    """
    if not 0 < prob < 1:
        raise InputError(f"MODEL.GLIPV2.GROUNDING.PRIOR_PROB: expected a number in (0, 1), found {prob}")
    return -math.log((1 - prob) / prob)
