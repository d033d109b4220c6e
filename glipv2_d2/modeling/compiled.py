"""Backbone, tower and head at test time, compiled by torch.compile for the sizes that come first."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..layers.reading import Reading
from ..structures import GroundingPredictions, LanguageFeatures
from .fusion_tower import FusionTower

logger = logging.getLogger(__name__)

# Each size of images, and of images with a prompt, is compiled by itself. torch stops at as many.
MAX_SIZES = 8
# Prompts are padded to a multiple of this many tokens, so that prompts of similar lengths share a size.
TOKENS_STEP = 32


class CompiledParts:
    """Runs backbone, tower and head, compiled where gradients are off and a backend was chosen.

    The first ``MAX_SIZES`` sizes of each part are compiled when they come, which takes a while. Later ones run as
    without a compiler, and a line says so once. A copy of the model compiles anew. What "inductor" has compiled torch
    keeps for the next process, in the folder that the environment names as TORCHINDUCTOR_CACHE_DIR, by default below
    the folder for temporary files.

    Args:
        backend: A backend of torch.compile, such as "inductor"; "" compiles nothing.

    Raises:
        InputError: torch does not know the backend.
    """

    def __init__(self, backend: str = "") -> None:
        if backend:
            known = sorted({*torch.compiler.list_backends(), "eager"})
            if backend not in known:
                raise InputError(
                    f"MODEL.GLIPV2.TEST.COMPILER: expected one of {', '.join(known)}, or '' for none, found {backend!r}"
                )
        self.backend = backend
        self._compiled: dict[str, Callable[..., Any]] = {}
        self._sizes: dict[str, set[tuple[int, ...]]] = {}
        self._has_said_so = False

    def __reduce__(self) -> tuple[type[CompiledParts], tuple[str]]:
        # What is compiled belongs to one model.
        return CompiledParts, (self.backend,)

    def features(self, backbone: nn.Module, images: Tensor) -> dict[str, Tensor]:
        """Run the backbone on images (N, 3, H, W)."""
        return self._choose("backbone", backbone, tuple(images.shape))(images)

    def fuse(
        self, tower: FusionTower, features: list[Tensor], language: LanguageFeatures, reading: Reading, **options: Any
    ) -> tuple[list[Tensor], LanguageFeatures]:
        """Run the tower; arguments are those of ``FusionTower.forward``."""
        changes = options.get("with_levels", True) or tower.fuses_text
        if not (self._runs(tower) and changes):
            return tower(features, language, reading, **options)
        padded = _pad(language, -language.mask.shape[1] % TOKENS_STEP)
        kind = (reading.causal, reading.image_reads, options.get("with_levels", True), options.get("rows") is None)
        size = (*features[0].shape, *padded.hidden.shape, *kind)
        levels, fused = self._choose("tower", tower, size)(features, padded, reading, **options)
        return levels, language._replace(hidden=fused.hidden[:, : language.mask.shape[1]])

    def mix_levels(self, tower: FusionTower, features: list[Tensor]) -> list[Tensor]:
        """Run the levels of a tower without fusion, see ``FusionTower.mix_levels``."""
        return self._choose("levels", tower, tuple(features[0].shape), tower.mix_levels)(features)

    def predict(self, head: nn.Module, levels: list[Tensor], text: Tensor) -> GroundingPredictions:
        """Run the head; arguments are those of ``GroundingHead.forward``."""
        if not self._runs(head):
            return head(levels, text)
        missing = -text.shape[1] % TOKENS_STEP
        padded = F.pad(text, (0, 0, 0, missing))
        predictions = self._choose("head", head, (*levels[0].shape, *padded.shape))(levels, padded)
        if not missing:
            return predictions
        return predictions._replace(token_logits=[logits[..., :-missing] for logits in predictions.token_logits])

    def _runs(self, part: nn.Module) -> bool:
        return bool(self.backend) and not torch.is_grad_enabled() and not part.training

    def _choose(
        self, name: str, part: nn.Module, size: tuple[int, ...], method: Callable[..., Any] | None = None
    ) -> Callable[..., Any]:
        """Return the part, or a method of it, compiled if its size is among the first."""
        if not self._runs(part):
            return method or part
        sizes = self._sizes.setdefault(name, set())
        if size not in sizes and len(sizes) == MAX_SIZES:
            if not self._has_said_so:
                self._has_said_so = True
                logger.warning(
                    f"MODEL.GLIPV2.TEST.COMPILER: {MAX_SIZES} sizes of images and prompts are compiled; others run as "
                    "without a compiler; fewer sizes compile all of them (INPUT.MIN_SIZE_TEST, images of one shape)"
                )
            return method or part
        sizes.add(size)
        if name not in self._compiled:
            self._compiled[name] = torch.compile(method or part.forward, backend=self.backend, dynamic=False)
        return self._compiled[name]


def _pad(language: LanguageFeatures, missing: int) -> LanguageFeatures:
    """Pad N prompts (N, T, D) with tokens that the mask leaves out, and leave out what the tower does not read."""
    hidden = F.pad(language.hidden, (0, 0, 0, missing))
    return LanguageFeatures(hidden, hidden, F.pad(language.mask, (0, missing)))
