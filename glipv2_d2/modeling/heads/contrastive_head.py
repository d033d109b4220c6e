"""The head that compares regions and words of different images before fusion, and its loss."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from torch import Tensor, nn

from ...device_copies import to_device
from ...distributed import gather_with_grad
from ...errors import InputError
from ..batch import Fused, TrainBatch, TrainingHead, TrunkShapes, boxes_on_cpu
from ..losses.contrastive_loss import CONTRASTIVE_FORMS, SharedVectors, contrastive_loss
from ..losses.region_word_targets import label_regions, label_words
from .region_word_packing import PackedLabels, pack_region_labels, pack_word_labels, take_regions


class ContrastiveHead(TrainingHead):
    """Pull regions towards the words that name them, in their own image and in all others of the batch.

    In training it gives a loss; at test time it can rank names, see ``tasks.shortlist``. Image features before fusion,
    at positive anchors, and the encoder's text are projected into one space and compared there by cosines divided by a
    learned temperature. Features after fusion would already contain their partner.

    Args:
        channels: C of the levels.
        language_dim: D of the text.
        embed_dim: E, width of the common space.
        log_scale: Initial log of the temperature.
        max_regions_per_image: Positive anchors of an image that take part, chosen at random where it has more.
        max_tokens: The most tokens in a prompt.
        loss_weight: Factor of ``loss_contrastive``.
        form: See ``contrastive_loss``.

    Raises:
        InputError: ``max_regions_per_image`` is below 1, or the form is unknown.

    Source: GLIPv2 (arXiv 2206.05836), Sec. 3.2; width and number of regions of the official code's shallow contrastive
    loss. Departures: that loss compares fused text and leaves out the anchors of the first box of each image.
    """

    needs: ClassVar[tuple[str, ...]] = ("backbone", "text_encoder")
    reads_boxes: ClassVar[bool] = True

    @configurable
    def __init__(
        self,
        *,
        channels: int,
        language_dim: int,
        embed_dim: int = 64,
        log_scale: float = -2.66,
        max_regions_per_image: int = 100,
        max_tokens: int = 256,
        loss_weight: float = 1.0,
        form: str = "auto",
    ):
        super().__init__()
        if max_regions_per_image < 1:
            raise InputError(
                f"MODEL.GLIPV2.CONTRASTIVE.MAX_REGIONS_PER_IMAGE: expected at least 1, found {max_regions_per_image}"
            )
        if form not in CONTRASTIVE_FORMS:
            raise InputError(f"form: expected one of {', '.join(CONTRASTIVE_FORMS)}, found {form!r}")
        self.image_projection = nn.Linear(channels, embed_dim)
        self.text_projection = nn.Linear(language_dim, embed_dim)
        self.log_scale = nn.Parameter(torch.tensor([log_scale]))
        for projection in (self.image_projection, self.text_projection):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)
        self.max_regions_per_image = max_regions_per_image
        self.max_tokens = max_tokens
        self.loss_weight = loss_weight
        self.form = form

    @classmethod
    def from_config(cls, cfg: CfgNode, shapes: TrunkShapes) -> dict[str, Any]:
        """Read the arguments that the config decides."""
        config = cfg.MODEL.GLIPV2.CONTRASTIVE
        return {
            "channels": shapes.levels[0].channels,
            "language_dim": shapes.language_dim,
            "embed_dim": config.EMBED_DIM,
            "log_scale": config.LOG_SCALE,
            "max_regions_per_image": config.MAX_REGIONS_PER_IMAGE,
            "max_tokens": cfg.MODEL.TEXT_ENCODER.MAX_TOKENS,
            "loss_weight": config.LOSS_WEIGHT,
        }

    def forward(self, regions: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Project regions (n, C) and words (m, D) into the common space, in single precision.

        Returns:
            (n, E) of unit length, and (m, E) of unit length divided by the temperature: their products are the logits.
        """
        return self.project_regions(regions), self.project_words(words)

    def project_regions(self, regions: Tensor) -> Tensor:
        """Project regions (..., C) alone, see ``forward``."""
        with torch.autocast(regions.device.type, enabled=False):
            return F.normalize(self.image_projection(regions.to(self.log_scale.dtype)), dim=-1)

    def project_words(self, words: Tensor) -> Tensor:
        """Project words (..., D) alone, see ``forward``."""
        with torch.autocast(words.device.type, enabled=False):
            return F.normalize(self.text_projection(words.to(self.log_scale.dtype)), dim=-1) / self.log_scale.exp()

    def regions_of(self, features: list[Tensor]) -> Tensor:
        """Project all positions of L levels (N, C, Hl, Wl), as (N, R, E) in the order of the anchors."""
        return self.project_regions(torch.cat([level.flatten(2).transpose(1, 2) for level in features], dim=1))

    def losses(self, fused: Fused, batch: TrainBatch) -> dict[str, Tensor]:
        """Compute the weighted loss of a batch, over the images of all ranks, in single precision.

        Regions are positive anchors, words all real tokens. The number of images N must be the same on all ranks, and
        every rank must call this, even if none of its images has a box.

        Args:
            fused: Its ``features`` and ``language``, before fusion, and its ``targets`` are read.
            batch: N images with one prompt each, ``gt_classes`` and ``gt_category_ids``.

        Returns:
            ``loss_contrastive``, 0 if no image has a positive anchor.
        """
        targets, prompts, language = fused.targets(batch), batch.prompts, fused.language
        chosen = self._choose_anchors(targets.matched_idxs)
        count = sum(min(count, self.max_regions_per_image) for count in targets.find_positives().counts)
        visual, images, boxes = take_regions(fused.features, targets.matched_idxs, chosen, count)
        region_labels = pack_region_labels(images, boxes, boxes_on_cpu(batch), prompts)
        word_labels = pack_word_labels(prompts, visual.device)
        (positions,) = to_device([torch.cat([torch.arange(len(prompt)) for prompt in prompts])], visual.device)
        regions, words = self(visual, language.embedded[word_labels.images, positions])
        with torch.autocast(regions.device.type, enabled=False):
            shared_regions, shared_words = self._share(regions, words, region_labels, word_labels, len(prompts))
            loss = contrastive_loss(shared_regions, shared_words, region_labels.phrases, word_labels.phrases, self.form)
        return {"loss_contrastive": loss * self.loss_weight}

    def _choose_anchors(self, matched_idxs: Tensor) -> Tensor:
        """Return (N, R) bool: positive anchors; in an image with too many, a random choice of them."""
        positive = matched_idxs >= 0
        if positive.shape[1] <= self.max_regions_per_image:
            return positive
        draws = torch.rand(positive.shape, device=positive.device).masked_fill(~positive, -1.0)
        best = draws.topk(self.max_regions_per_image, dim=1)
        return torch.zeros_like(positive).scatter(1, best.indices, best.values >= 0)

    def _share(
        self, regions: Tensor, words: Tensor, region_labels: PackedLabels, word_labels: PackedLabels, num_images: int
    ) -> tuple[SharedVectors, SharedVectors]:
        """Gather regions and words of all ranks in one collective operation, and separate them again."""
        if comm.get_world_size() == 1:
            locals_ = [
                join(vectors, own.images, own.categories)
                for join, vectors, own in ((label_regions, regions, region_labels), (label_words, words, word_labels))
            ]
            # Gradients of rows and of columns are summed apart, as those of several ranks are.
            shared = [SharedVectors(one, one._replace(vectors=one.vectors.view_as(one.vectors)), 0) for one in locals_]
            return shared[0], shared[1]
        labels = [
            torch.stack((own.images * comm.get_world_size() + comm.get_rank(), own.categories), dim=1)
            for own in (region_labels, word_labels)
        ]
        capacity = num_images * (self.max_regions_per_image + self.max_tokens)
        gathered = gather_with_grad(list(zip((regions, words), labels, strict=True)), capacity)
        shared = []
        for join, vectors, own, everywhere in zip(
            (label_regions, label_words), (regions, words), labels, gathered, strict=True
        ):
            columns = join(everywhere.vectors, *everywhere.labels.unbind(1))
            shared.append(SharedVectors(join(vectors, *own.unbind(1)), columns, everywhere.start))
        return shared[0], shared[1]
