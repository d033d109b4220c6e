"""Decode captions word by word: the image is computed once, and no step computes earlier words again."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ...layers.reading import KeyValues
from ..fusion_tower import FusionTower
from ..heads.captioning_head import CaptioningHead
from ..text_encoder.build import TextEncoder


class DecoderState(NamedTuple):
    """State of a decoder for N images and B texts about them; the B / N texts of an image are adjacent.

    Attributes:
        positions: For each block of the tower the image positions that tokens read, (N, S, C).
        encoder: For each layer of the text encoder the keys and values of the tokens so far; None before the first.
        tower: The same for the text layers in the tower.
    """

    positions: list[Tensor]
    encoder: list[KeyValues] | None = None
    tower: list[KeyValues] | None = None

    def select(self, rows: Tensor) -> DecoderState:
        """Continue with the texts ``rows``, int64, a multiple of N; a text may be selected several times.

        The text at index i of ``rows`` must be about image i // (len(rows) / N).
        """
        encoder, tower = (past and [layer.select(rows) for layer in past] for past in (self.encoder, self.tower))
        return DecoderState(self.positions, encoder, tower)


class CaptionDecoder:
    """Rate the next token of captions with the causal model, as a causal pass over the whole text would.

    The image does not depend on the text, so its levels pass the tower once. For each token only keys and values are
    kept, in all text layers. The decoder has no weights. Its parts should be in eval mode, and the caller decides on
    gradients.

    Args:
        text_encoder: Has ``step(input_ids, past)``, like the encoders of the package.
        tower: A tower with fusion.
        head: Rates the next token.

    Source: GLIPv2, App. D.2: uni-directional text, and no attention from the image to the text.
    """

    def __init__(self, text_encoder: TextEncoder, tower: FusionTower, head: CaptioningHead) -> None:
        self.text_encoder = text_encoder
        self.tower = tower
        self.head = head

    def prepare(self, features: list[Tensor]) -> DecoderState:
        """Read the L levels (N, C, Hl, Wl) of N images before the tower, and begin one empty text for each image.

        Raises:
            ValueError: The tower was built without fusion.
        """
        return DecoderState(self.tower.read_images(features))

    def step(self, input_ids: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Add a token to each of B texts; the first token has to be the start token.

        Args:
            input_ids: (B,) int64 on the device of the model, B a multiple of the number of images.
            state: Output of ``prepare`` or of the step before; it is not changed.

        Returns:
            The logits (B, V) of the next token, and the state that includes the added token.

        Raises:
            ValueError: The text encoder has no position for another token.
        """
        hidden, encoder = self.text_encoder.step(input_ids, state.encoder)
        hidden, tower = self.tower.step(state.positions, hidden, state.tower)
        return self.head(hidden.squeeze(1)), DecoderState(state.positions, encoder, tower)
