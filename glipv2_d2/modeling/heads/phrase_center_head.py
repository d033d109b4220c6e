"""The head that predicts the centre of a phrase's box from its tokens, and its loss."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances
from torch import Tensor, nn

from ...device_copies import to_device
from ...distributed import mean_over_ranks
from ...layers.positions import relative_coordinates
from ...structures import TokenizedPrompt
from ..batch import Fused, TrainBatch, TrainingHead, TrunkShapes, boxes_on_cpu
from ..token_scoring import phrase_means

# Where the loss turns from quadratic to linear: a tenth of the image's longer side.
_SMOOTH_L1_BETA = 0.2


class PhraseCenterHead(TrainingHead):
    """Find the centre of a phrase's box in the fused text, by a linear layer on the normalized mean of its tokens.

    The text of a detector learns what things are, not where they are. Questions and captions compare positions ("to the
    left of"), so the tokens have to know them. The head is used in training only. It learns little unless the text can
    tell positions apart, see ``positions`` of ``BiAttentionBlock``.

    Args:
        language_dim: D of the text.
        loss_weight: Factor of ``loss_phrase_center``.

    Source: none; it is not from the paper.
    """

    # The trunk need not train, but this head has to: a fixed head would only pull the text towards itself.
    needs: ClassVar[tuple[str, ...]] = ()
    reads_boxes: ClassVar[bool] = True

    @configurable
    def __init__(self, *, language_dim: int, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(language_dim)
        self.center = nn.Linear(language_dim, 2)
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, shapes: TrunkShapes) -> dict[str, Any]:
        """Read the arguments that the config decides."""
        return {"language_dim": shapes.language_dim, "loss_weight": cfg.MODEL.GLIPV2.PHRASE_CENTER.LOSS_WEIGHT}

    def forward(self, text: Tensor) -> Tensor:
        """Return the centres (..., 2) of phrases, as ``relative_coordinates``, from their mean tokens (..., D)."""
        return self.center(self.norm(text))

    def losses(self, fused: Fused, batch: TrainBatch) -> dict[str, Tensor]:
        """Compute the weighted smooth L1 distance of the centres, in single precision.

        Phrases with a token and exactly one box count. Once gradients are averaged over the ranks, the loss is the mean
        over the phrases of all ranks and both coordinates. Without a phrase it is 0 and still reaches the parameters.

        Args:
            fused: Its ``hidden``, (M, T, D), is read.
            batch: M prompts with their boxes: ``gt_boxes`` in pixels of the padded images, and ``gt_classes``, rows of
                the phrase-token map.

        Returns:
            The scalar ``loss_phrase_center``.
        """
        hidden, image_size = fused.hidden, batch.images.tensor.shape[-2:]
        # Half types are too coarse for pixels.
        token_maps, centres = [], []
        for prompt, boxes in zip(batch.prompts, boxes_on_cpu(batch), strict=True):
            phrases, rows = _single_boxes(prompt, boxes)
            token_maps.append(prompt.phrase_token_map[phrases])
            centres.append(relative_coordinates(boxes.gt_boxes.get_centers()[rows].float(), tuple(image_size)))
        (expected,) = to_device([torch.cat(centres)], hidden.device)
        found = self(phrase_means(hidden, token_maps).to(hidden.dtype)).float()
        total = F.smooth_l1_loss(found, expected, beta=_SMOOTH_L1_BETA, reduction="sum")
        return {"loss_phrase_center": mean_over_ranks(total, expected.numel()) * self.loss_weight}


def _single_boxes(prompt: TokenizedPrompt, instances: Instances) -> tuple[Tensor, Tensor]:
    """Return the phrases that have a token and exactly one box, and the rows of these boxes."""
    classes = instances.gt_classes
    counts = classes.bincount(minlength=len(prompt.phrases))
    has_token = prompt.phrase_token_map.any(dim=1)
    rows = ((counts == 1) & has_token)[classes].nonzero().squeeze(1)
    return classes[rows], rows
