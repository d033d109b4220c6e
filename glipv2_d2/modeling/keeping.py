"""Replay by self-distillation: a tuned model keeps saying what its base, frozen, says of other names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, ImageList
from torch import Tensor, nn

from ..device_copies import to_device
from ..distributed import reduce_mean
from ..layers.reading import Reading
from ..structures import KEPT_NAME, GroundingPredictions, LanguageFeatures, TokenBatch
from .batch import Fused, TrainBatch
from .losses.box_losses import giou_loss_legacy
from .trunk import Trunk

# The base's boxes count where it gives a name at least this probability.
CONFIDENT = 0.1


class KeepWeights(NamedTuple):
    """Factors of the two losses; one whose factor is 0 is absent."""

    names: float = 1.0
    boxes: float = 1.0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> KeepWeights:
        """Read the config."""
        keep = cfg.MODEL.GLIPV2.TUNING.KEEP
        return cls(0.0, 0.0) if keep.BY_NAME else cls(keep.NAMES_WEIGHT, keep.BOXES_WEIGHT)


class Keeping:
    """Compares a model that is tuned with its base, on the pairs of a batch whose prompt holds other names.

    It is no module: the weights of the base are not among those of the model.

    Args:
        base: The model before the tuning, in eval mode; nothing of it trains.
        weights: Factors of the losses.

    Source: learning without forgetting (Li & Hoiem 2016, arXiv 1606.09282), with names in the place of old classes.
    """

    def __init__(self, base: Trunk, weights: KeepWeights) -> None:
        self.base = base
        self.weights = weights

    def losses(self, model: Trunk, fused: Fused, batch: TrainBatch, reading: Reading) -> dict[str, Tensor]:
        """Compute the weighted losses of a batch, in single precision; 0 for a batch without other names.

        Args:
            model: The model that is tuned; what a part that never changes gives is not computed again for the base.
            fused: Its features, of all M pairs.
            batch: Its ``kept`` are the tokens that count.
            reading: How text and image read each other.

        Returns:
            ``loss_keep_names``, see ``names_divergence``, divided by the mass of the base, the sum of its
            probabilities, at least 1; and ``loss_keep_boxes``, see ``boxes_divergence``, a mean over the confident
            anchors, weighted by their confidence. Both are means over the ranks.
        """
        predictions = fused.predictions
        if batch.kept is None:
            # The parameters get gradients on every rank.
            levels = (*predictions.token_logits, *predictions.box_deltas)
            nothing = torch.stack([level.float().sum() for level in levels]).sum() * 0.0
            sums = [nothing, nothing.detach(), nothing, nothing.detach()]
        else:
            sums = self._sums(model, fused, batch, batch.kept, reading)
        names, boxes = sums[0], sums[2]
        mass, confidence = reduce_mean(torch.stack([sums[1], sums[3]])).clamp(min=1).unbind()
        weighted = {
            "loss_keep_names": (names / mass, self.weights.names),
            "loss_keep_boxes": (boxes / confidence, self.weights.boxes),
        }
        return {name: loss * weight for name, (loss, weight) in weighted.items() if weight}

    def _sums(self, model: Trunk, fused: Fused, batch: TrainBatch, kept: Tensor, reading: Reading) -> list[Tensor]:
        """Return both divergences with the sums that they are divided by."""
        rows = [row for row, prompt in enumerate(batch.prompts) if (prompt.category_ids == KEPT_NAME).any()]
        pairs, images = torch.tensor(rows), torch.tensor([batch.pairs.rows[row] for row in rows])
        # Prompts are compared with each other on the CPU.
        firsts, which = TokenBatch.from_prompts([batch.prompts[row] for row in rows]).compare()
        pairs, images, firsts, which = to_device([pairs, images, firsts, which], kept.device)
        sizes = [batch.images.image_sizes[batch.pairs.rows[row]] for row in rows]
        part = ImageList(batch.images.tensor[images], sizes)
        tokens = TokenBatch(batch.tokens.input_ids[pairs], batch.tokens.mask[pairs], (firsts, which))
        base = self._base_predictions(model, fused, pairs, part, tokens, reading)
        own = GroundingPredictions(*([level[pairs] for level in levels] for levels in fused.predictions))
        free = fused.targets(batch).matched_idxs[pairs] < 0
        names, mass, confidence = names_divergence(own.token_logits, base.token_logits, kept[pairs])
        weights = torch.where(free & (confidence >= CONFIDENT), confidence, 0.0)
        transform = self.base.head.box2box_transform
        boxes = boxes_divergence(own, base, Boxes.cat(fused.anchors).tensor, weights, transform)
        return [names, mass, boxes, weights.sum()]

    @torch.no_grad()
    def _base_predictions(
        self, model: Trunk, fused: Fused, pairs: Tensor, images: ImageList, tokens: TokenBatch, reading: Reading
    ) -> GroundingPredictions:
        """Return what the base predicts for some of the pairs, given their rows, their images and their prompts."""
        if is_fixed(model.backbone):
            features = [level[pairs] for level in fused.features]
        else:
            features = self.base.visual_features(images)
        if is_fixed(model.text_encoder):
            hidden, embedded, mask, _ = fused.language
            language = LanguageFeatures(hidden[pairs], embedded[pairs], mask[pairs])
        else:
            language = self.base.read(tokens, reading)
        return self.base.fuse(features, language, reading).predictions


def is_fixed(part: nn.Module) -> bool:
    """Say whether a part gives the same at every step: it is in eval mode, and none of its weights trains."""
    return not part.training and not any(parameter.requires_grad for parameter in part.parameters())


@torch.no_grad()
def predictions_of(model: Trunk, images: ImageList, tokens: TokenBatch, reading: Reading) -> GroundingPredictions:
    """Return what a model predicts for N pairs of an image and a prompt, without gradients."""
    return model.fuse(model.visual_features(images), model.read(tokens, reading), reading).predictions


def bernoulli_divergence(logits: Tensor, base_logits: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of yes-or-no answers from those of the base, elementwise, at least 0.

    Args:
        logits: Say the probability of yes; any shape.
        base_logits: Those of the base, in the same shape.
    """
    logits, base_logits = logits.float(), base_logits.float()
    # p log(p / q) + (1 - p) log((1 - p) / (1 - q)), without a logarithm of 0.
    return base_logits.sigmoid() * (base_logits - logits) + F.softplus(logits) - F.softplus(base_logits)


def names_divergence(
    token_logits: Sequence[Tensor], base_logits: Sequence[Tensor], kept: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the divergence over all anchors and kept tokens.

    Args:
        token_logits: L levels (N, Hl*Wl, T).
        base_logits: Those of the base.
        kept: (N, T) bool, the tokens that count.

    Returns:
        The sum; the sum of the base's probabilities; and the highest of them for each anchor, (N, R).
    """
    total, mass, confidence = [], [], []
    for logits, base in zip(token_logits, base_logits, strict=True):
        total.append(bernoulli_divergence(logits, base).mul(kept[:, None]).sum())
        scores = base.float().sigmoid() * kept[:, None]
        mass.append(scores.sum())
        confidence.append(scores.amax(dim=-1))
    return torch.stack(total).sum(), torch.stack(mass).sum(), torch.cat(confidence, dim=1)


def boxes_divergence(
    predictions: GroundingPredictions,
    base: GroundingPredictions,
    anchors: Tensor,
    weights: Tensor,
    transform: Box2BoxTransform,
) -> Tensor:
    """Sum 1 - GIoU with the base's box and the divergence of centerness over all anchors, each times its weight.

    Args:
        predictions, base: Those of N pairs.
        anchors: (R, 4) XYXY, half-open, pixels.
        weights: (N, R), at least 0.
        transform: Decodes boxes.
    """
    own_boxes, base_boxes = (
        transform.apply_deltas(
            torch.cat(one.box_deltas, dim=1).float().flatten(0, 1), anchors.repeat(len(weights), 1)
        ).view(*weights.shape, 4)
        for one in (predictions, base)
    )
    rating = bernoulli_divergence(*(torch.cat(one.centerness_logits, dim=1) for one in (predictions, base)))
    return ((giou_loss_legacy(own_boxes, base_boxes) + rating) * weights).sum()


@torch.no_grad()
def agreement(token_logits: Sequence[Tensor], base_logits: Sequence[Tensor], kept: Tensor) -> tuple[Tensor, Tensor]:
    """Compare what two models say of names, without labels.

    Args:
        token_logits, base_logits, kept: See ``names_divergence``.

    Returns:
        Two sums over anchors and kept tokens, of the smaller and of the larger of both probabilities; their quotient is
        1 for equal models.
    """
    least, most = kept.new_zeros((), dtype=torch.float64), kept.new_zeros((), dtype=torch.float64)
    for logits, base in zip(token_logits, base_logits, strict=True):
        scores, base_scores = (one.double().sigmoid() * kept[:, None] for one in (logits, base))
        least += torch.minimum(scores, base_scores).sum()
        most += torch.maximum(scores, base_scores).sum()
    return least, most
