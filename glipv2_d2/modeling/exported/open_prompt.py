"""A detector whose image size and prompt stay open, in two graphs: one reads a prompt, one finds it in an image."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torch import Tensor, nn

from ...errors import InputError
from ...layers.reading import Reading
from ..fusion_tower import TowerBlock
from ..meta_arch.glipv2 import GLIPv2
from ..tasks.detection import Detection
from ..text_encoder.build import TextEncoder
from .base import CandidateChooser, ImageEncoder, clip_to_image
from .free_sizes import free_sizes


class PromptReader(nn.Module):
    """Encode one prompt, which is encoded once for all images.

    Args:
        encoder: Text encoder, in eval mode.
        reading: How text is read.
    """

    def __init__(self, encoder: TextEncoder, reading: Reading) -> None:
        super().__init__()
        self.encoder = encoder
        self._causal = reading.causal

    def forward(self, input_ids: Tensor) -> Tensor:
        """Map token ids (1, T) int64 with special tokens and without padding to features (1, T, D)."""
        return self.encoder.encode(input_ids, torch.ones_like(input_ids, dtype=torch.bool), self._causal)


class Part(NamedTuple):
    """A stretch of the way from an image to candidates.

    Attributes:
        module: What it does.
        inputs: Names of the values that the module is called with.
        outputs: Names of the values that it returns. A name that is given again stands for the new value from then on.
    """

    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class _FusedBlock(nn.Module):
    """A block of the tower, for one image and one prompt without padding."""

    def __init__(self, block: TowerBlock, reading: Reading) -> None:
        super().__init__()
        self.block = block
        self._reading = reading

    def forward(self, levels: list[Tensor], text: Tensor) -> tuple[list[Tensor], Tensor]:
        """Map L levels (1, C, Hl, Wl) and tokens (1, T, D) to new ones."""
        return self.block(levels, text, torch.ones_like(text[..., 0], dtype=torch.bool), self._reading)


class _UnfusedBlock(nn.Module):
    """A block of a tower without fusion, for one image."""

    def __init__(self, block: TowerBlock) -> None:
        super().__init__()
        self.dyconv = block.dyconv

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Map L levels (1, C, Hl, Wl) to new ones."""
        return self.dyconv(levels)


class _Candidates(nn.Module):
    """From fused levels and text to candidates, with anchors for levels of any size."""

    def __init__(self, model: GLIPv2) -> None:
        super().__init__()
        generator = model.anchor_generator
        if not isinstance(generator, DefaultAnchorGenerator) or set(generator.num_anchors) != {1}:
            raise InputError("anchor_generator: expected a DefaultAnchorGenerator with one anchor, found another")
        self.chooser = CandidateChooser(model)
        self._strides, self._offset = list(generator.strides), generator.offset
        self._cells = [cell[0].tolist() for cell in generator.cell_anchors]

    def forward(
        self, levels: list[Tensor], text: Tensor, phrase_token_map: Tensor, image_size: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``OpenPromptDetector.forward``."""
        anchors = [self._anchors(level, number) for number, level in enumerate(levels)]
        boxes, scores, phrases = self.chooser(levels, text, anchors, phrase_token_map)
        return clip_to_image(boxes, image_size), scores, phrases

    def _anchors(self, level: Tensor, number: int) -> Tensor:
        """Return the anchors (Hl * Wl, 4) of a level, as ``DefaultAnchorGenerator`` does."""
        height, width = level.shape[-2:]
        y, x = (
            ((torch.arange(side, device=level.device) + self._offset) * self._strides[number])
            for side in (height, width)
        )
        x, y = x.expand(height, width), y[:, None].expand(height, width)
        return torch.stack([x, y, x, y], dim=-1).flatten(0, 1) + level.new_tensor(self._cells[number])


class OpenPromptDetector(nn.Module):
    """Find the phrases of any prompt in an image of any size; overlapping boxes are left to the caller.

    Its layers are those of ``free_sizes``: a tracer can follow sizes that are not numbers yet. It consists of parts
    that pass levels on, so that no part needs to know how the sizes of levels follow from that of the image.

    Args:
        model: The model, in eval mode, whose layers are replaced in place. Its masks are left out.

    Raises:
        InputError: The model has a part that this form cannot hold.
    """

    def __init__(self, model: GLIPv2) -> None:
        if model.prompt_tuner is not None:
            raise InputError(
                "prompt_tuner: expected a model without a tuned prompt (MODEL.GLIPV2.TUNING.MODE 'prompt'), found one; "
                "export the names that it was tuned with as .pt2"
            )
        if model.by_name is not None:
            raise InputError(
                "MODEL.WEIGHTS: expected one set of weights for all names, found one for own names and one for others "
                "(MODEL.GLIPV2.TUNING.KEEP.BY_NAME); of the files beside it export model_best.pth, or "
                "keep_base.safetensors with INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST as in KEEP.SIZE_TEST, or fixed names "
                "as .pt2"
            )
        if model.head.selector.score_aggregation == "max":
            raise InputError(
                "head: expected MODEL.GLIPV2.TEST.SCORE_AGGREGATION 'mean' or 'power', whose graph does not depend on "
                "the prompt, found 'max'; export its names as .pt2"
            )
        super().__init__()
        free_sizes(model)
        self.reading = cast(Detection, model.tasks[Detection.name]).test_reading
        self.parts = [Part(ImageEncoder(model), ("image", "image_size"), ("levels",))]
        for block in model.fusion_tower.rounds:
            if block.fusion is None:
                self.parts.append(Part(_UnfusedBlock(block), ("levels",), ("levels",)))
            else:
                self.parts.append(Part(_FusedBlock(block, self.reading), ("levels", "text"), ("levels", "text")))
        inputs = "levels", "text", "phrase_token_map", "image_size"
        self.parts.append(Part(_Candidates(model), inputs, ("boxes", "scores", "phrases")))
        self.modules_of_parts = nn.ModuleList(part.module for part in self.parts)

    def forward(
        self, image: Tensor, image_size: Tensor, text: Tensor, phrase_token_map: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Find the candidates of one image.

        Args:
            image: (3, H, W) float32 in 0..255, channels in the order of ``INPUT.FORMAT``, the image in its upper left;
                what is right of it and below it does not count. H and W are multiples of the model's stride.
            image_size: (2,) int64, height and width of the image in it, pixels.
            text: (1, T, D), from ``PromptReader``.
            phrase_token_map: (P, T) bool, the tokens that spell each phrase.

        Returns:
            Boxes (K, 4) XYXY in pixels of the canvas, half-open and clipped to the image; scores (K,) in [0, 1]; and
            phrases (K,) int64, rows of ``phrase_token_map``. K is the same for all inputs; rows with the score 0 are
            empty. Boxes of a phrase overlap: non-maximum suppression is the next step.
        """
        values: dict[str, Any] = {
            "image": image,
            "image_size": image_size,
            "text": text,
            "phrase_token_map": phrase_token_map,
        }
        for module, inputs, outputs in self.parts:
            found = module(*(values[name] for name in inputs))
            values |= zip(outputs, [found] if len(outputs) == 1 else found, strict=True)
        return values["boxes"], values["scores"], values["phrases"]
