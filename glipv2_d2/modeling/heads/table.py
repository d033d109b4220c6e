"""The table of optional heads, one row each, which all code outside the heads reads."""

from __future__ import annotations

import functools
from typing import NamedTuple

from detectron2.config import CfgNode

from ...prompts.masking import trains_pretraining_losses
from ..batch import TrainingHead, TrunkShapes
from .captioning_head import CaptioningHead
from .class_words_head import ClassWordsHead
from .contrastive_head import ContrastiveHead
from .mask_head import HourglassMaskHead
from .mlm_head import MLMHead
from .phrase_center_head import PhraseCenterHead
from .vqa_head import VQAHead


class HeadEntry(NamedTuple):
    """A head.

    Attributes:
        key: The config key that switches it on.
        head: Its class, built from the config and the shapes of the trunk.
        starts_random: A plain detector has no weights for it, and ``SOLVER.HEAD_MULTIPLIER`` scales its learning rate.
        gives_results: Its output is a result. If a file lacks its weights, the model can be trained but not evaluated.
        of_pretraining: A tuning of less than the whole model has it only with ``TUNING.PRETRAINING_LOSSES``.
    """

    key: str
    head: type[TrainingHead]
    starts_random: bool = False
    gives_results: bool = False
    of_pretraining: bool = False

    def is_on(self, cfg: CfgNode) -> bool:
        """Say whether the config switches the head on."""
        is_on = bool(functools.reduce(getattr, self.key.split("."), cfg))
        return is_on and (not self.of_pretraining or trains_pretraining_losses(cfg))


# By the attribute that holds the head in the model, which is the prefix of its weights. Heads are built in this order,
# which random initial weights follow, and registered in it, which the states of optimizers follow.
HEADS = {
    "contrastive_head": HeadEntry("MODEL.GLIPV2.CONTRASTIVE.ENABLED", ContrastiveHead, of_pretraining=True),
    "mlm_head": HeadEntry("MODEL.GLIPV2.MLM.ENABLED", MLMHead, of_pretraining=True),
    "phrase_center_head": HeadEntry("MODEL.GLIPV2.PHRASE_CENTER.ENABLED", PhraseCenterHead, starts_random=True),
    "vqa_head": HeadEntry("MODEL.GLIPV2.VQA.ENABLED", VQAHead, starts_random=True, gives_results=True),
    "captioning_head": HeadEntry(
        "MODEL.GLIPV2.CAPTIONING.ENABLED", CaptioningHead, starts_random=True, gives_results=True
    ),
    "mask_head": HeadEntry("MODEL.MASK_ON", HourglassMaskHead, gives_results=True),
    "class_words_head": HeadEntry("MODEL.GLIPV2.CLASS_WORDS.ENABLED", ClassWordsHead),
}


def build_heads(cfg: CfgNode, shapes: TrunkShapes) -> dict[str, TrainingHead]:
    """Build the heads that the config switches on, by name."""
    return {name: entry.head(cfg, shapes) for name, entry in HEADS.items() if entry.is_on(cfg)}
