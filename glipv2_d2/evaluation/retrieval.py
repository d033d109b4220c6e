"""Region-to-word retrieval across images: how a region ranks its own name among all names of a dataset."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from detectron2.structures import Boxes
from torch import Tensor

from ..errors import InputError
from ..modeling.meta_arch.glipv2 import GLIPv2
from ..modeling.token_scoring import token_to_phrase_scores
from ..structures import TokenBatch, TokenizedPrompt


class RetrievalResult(NamedTuple):
    """Ranks of the true names of regions.

    Attributes:
        ranks: (K,) int64, from 1. Names with the same score as the true one rank before it.
        num_names: Number of names that compete.
        num_without_anchor: Number of boxes without a matched anchor, which have no rank.
    """

    ranks: Tensor
    num_names: int
    num_without_anchor: int

    def recall_at(self, top: int) -> float:
        """Return the share, in 0..100, of regions whose name is among the ``top`` best; NaN without regions."""
        return 100.0 * (self.ranks <= top).float().mean().item()


@torch.no_grad()
def rank_names(
    model: GLIPv2, samples: Iterable[dict[str, Any]], prompts: list[TokenizedPrompt], space: str = "fused"
) -> RetrievalResult:
    """Rank all names for each annotated region.

    The score of a name for a region is the mean over the anchors that are matched to the box of the region. The prompts
    hold the names of all images, not those of the image alone.

    Args:
        model: The model, in eval mode.
        samples: Model inputs of one image each, with ``gt_boxes`` (M, 4), XYXY in pixels of ``image``, and
            ``gt_category_ids`` (M,).
        prompts: Prompts that hold every name once.
        space: "fused", probabilities of the grounding head, or "contrastive", cosines before fusion.

    Raises:
        InputError: ``space`` is "contrastive" and the model has no contrastive head.
    """
    if space == "contrastive" and model.contrastive_head is None:
        raise InputError("space: expected 'fused' for a model without MODEL.GLIPV2.CONTRASTIVE, found 'contrastive'")
    category_ids = torch.cat([prompt.category_ids for prompt in prompts])
    ranks: list[Tensor] = []
    num_without_anchor = 0
    for sample in samples:
        levels = model.visual_features(model.preprocess_image([sample]))
        matched = model.head.matcher(model.anchor_generator(levels), Boxes(sample["gt_boxes"].to(model.device)))
        scores = _name_scores(model, levels, prompts, space)  # (R, P)
        for row, category_id in enumerate(sample["gt_category_ids"].tolist()):
            region = scores[matched == row].mean(dim=0).cpu()
            true = (category_ids == category_id).nonzero().squeeze(1)
            if region.isnan().any():
                num_without_anchor += 1
                continue
            ranks.append((region >= region[true].max()).sum().reshape(1))
    found = torch.cat(ranks) if ranks else torch.zeros(0, dtype=torch.int64)
    return RetrievalResult(found, len(category_ids), num_without_anchor)


def _name_scores(model: GLIPv2, levels: list[Tensor], prompts: list[TokenizedPrompt], space: str) -> Tensor:
    """Score all names for all anchors of one image, (R, P)."""
    scores = []
    for prompt in prompts:
        language = model.read(TokenBatch.from_prompts([prompt], model.device))
        if space == "fused":
            logits = model.fuse(levels, language).predictions.token_logits
            tokens = torch.cat(logits, dim=1)[0].sigmoid()  # (R, T)
        else:
            assert model.contrastive_head is not None
            regions = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)[0]  # (R, C)
            regions, words = model.contrastive_head(regions, language.embedded[0])
            tokens = regions @ words.T
        scores.append(token_to_phrase_scores(tokens, prompt.phrase_token_map.to(tokens.device)))
    return torch.cat(scores, dim=1)
