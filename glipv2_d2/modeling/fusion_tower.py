"""The fusion tower: image and text read each other, block after block, before the heads."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import InputError
from ..layers.dyconv import DyConv
from ..layers.fusion import BiAttentionBlock, split_levels
from ..layers.language_layer import LanguageLayer
from ..layers.pre_norm_layer import PreNormLayer
from ..layers.reading import BOTH_WAYS, KeyValues, Reading
from ..structures import LanguageFeatures
from .text_encoder.build import TextEncoder

# Kinds of text layers: each is called with width, heads, inner width and dropout.
LANGUAGE_LAYERS: dict[str, type[LanguageLayer | PreNormLayer]] = {"post_norm": LanguageLayer, "pre_norm": PreNormLayer}


class TowerBlock(nn.Module):
    """A block of the tower: fusion, a text layer, an image layer; without fusion only the image layer.

    Args:
        dyconv: Image layer.
        fusion: Bi-directional attention, or None.
        language_layer: Transformer layer over the tokens; None without ``fusion``, because text that has not read the
            image is already contextual.
    """

    def __init__(
        self,
        dyconv: DyConv,
        fusion: BiAttentionBlock | None = None,
        language_layer: LanguageLayer | PreNormLayer | None = None,
    ) -> None:
        super().__init__()
        self.fusion = fusion
        self.language_layer = language_layer
        self.dyconv = dyconv

    def forward(
        self,
        features: list[Tensor],
        hidden: Tensor,
        mask: Tensor,
        reading: Reading = BOTH_WAYS,
        with_levels: bool = True,
        rows: Tensor | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Map L levels (N, C, Hl, Wl) and tokens (N, T, D) with their mask (N, T) to new ones; see ``FusionTower``.

        Without ``with_levels`` the image layer does not run.
        """
        if self.fusion is not None:
            features, hidden = self.fusion(features, hidden, mask, reading.image_reads, rows)
        if self.language_layer is not None:
            hidden = self.language_layer(hidden, mask, reading.causal)
        return self.dyconv(features) if with_levels else features, hidden

    @property
    def text_layers(self) -> tuple[BiAttentionBlock, LanguageLayer | PreNormLayer]:
        """What reads and changes the text, in a tower with fusion."""
        if self.fusion is None or self.language_layer is None:
            raise InputError("MODEL.GLIPV2.FUSION.ENABLED: expected True to write captions, found False")
        return self.fusion, self.language_layer

    def step(self, visual: Tensor, hidden: Tensor, past: KeyValues | None) -> tuple[Tensor, KeyValues]:
        """Fuse the next token (B, 1, D) of B texts with the positions (N, S, C) of N images."""
        fusion, language_layer = self.text_layers
        # Tokens of one image do not meet in the fusion: its texts are read as one. The folded form needs no more of
        # the positions than they are; the plain one would project them again for every token.
        texts = hidden.unflatten(0, (len(visual), -1)).squeeze(2)  # (N, B / N, D)
        hidden = fusion.read_image(visual, texts, form="folded").flatten(0, 1).unsqueeze(1)
        return language_layer.step(hidden, past)


class FusionTower(nn.Module):
    """Blocks of fusion, text layer and DyConv over a feature pyramid and the tokens of a prompt.

    Args:
        in_channels: Channels of the pyramid, C.
        language_dim: Width of a token, D.
        num_blocks: Number of blocks, at least 1.
        channels: Channels between and after the blocks.
        num_groups: Groups of the GroupNorm in DyConv; divides ``channels``.
        deformable, deform_form, dynamic_relu: See ``DyConv``.
        fusion: False builds the tower of GLIP-T (A), in which the text passes through unchanged.
        fusion_embed_dim, fusion_num_heads, fusion_dropout, fusion_form, fusion_positions: See ``BiAttentionBlock``.
        layer_scale: Initial residual scale of the fusion; 0 means 1 / num_blocks.
        language_num_heads, language_intermediate_size, language_dropout: Sizes of the text layers, those of the text
            encoder.
        language_layer_type: "post_norm" (``LanguageLayer``, beside BERT-type encoders) or "pre_norm"
            (``PreNormLayer``, beside CLIP-type ones).
        use_checkpoint: Recompute the activations of each block in the backward pass.

    Source: GLIP, Sec. 3.2 and ``VLDyHead``; GLIPv2, Sec. 4. In the official head, too, the text layers are of the
    encoder's kind.
    """

    def __init__(
        self,
        in_channels: int,
        language_dim: int,
        *,
        num_blocks: int = 6,
        channels: int = 256,
        num_groups: int = 16,
        deformable: bool = True,
        deform_form: str = "auto",
        dynamic_relu: bool = True,
        fusion: bool = True,
        fusion_embed_dim: int = 2048,
        fusion_num_heads: int = 8,
        fusion_dropout: float = 0.1,
        fusion_form: str = "auto",
        fusion_positions: bool = False,
        layer_scale: float = 0.0,
        language_num_heads: int = 12,
        language_intermediate_size: int = 3072,
        language_dropout: float = 0.1,
        language_layer_type: str = "post_norm",
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if num_blocks < 1:
            raise InputError(f"MODEL.GLIPV2.TOWER.NUM_BLOCKS: expected at least 1, found {num_blocks}")
        if channels % num_groups:
            raise InputError(f"MODEL.GLIPV2.TOWER.CHANNELS: expected a multiple of {num_groups}, found {channels}")
        if language_layer_type not in LANGUAGE_LAYERS:
            raise InputError(
                f"FusionTower language_layer_type: expected one of {', '.join(LANGUAGE_LAYERS)}, "
                f"found {language_layer_type!r}"
            )
        self.use_checkpoint = use_checkpoint
        self.out_channels = channels
        self.fuses_text = fusion
        self.blocks = nn.ModuleList()
        for index in range(num_blocks):
            block_in = in_channels if index == 0 else channels
            dyconv = DyConv(
                block_in,
                channels,
                num_groups=num_groups,
                deformable=deformable,
                dynamic_relu=dynamic_relu,
                deform_form=deform_form,
            )
            if not fusion:
                self.blocks.append(TowerBlock(dyconv))
                continue
            attention = BiAttentionBlock(
                block_in,
                language_dim,
                embed_dim=fusion_embed_dim,
                num_heads=fusion_num_heads,
                dropout=fusion_dropout,
                layer_scale=layer_scale or 1.0 / num_blocks,
                form=fusion_form,
                positions=fusion_positions,
            )
            language_layer = LANGUAGE_LAYERS[language_layer_type](
                language_dim, language_num_heads, language_intermediate_size, language_dropout
            )
            self.blocks.append(TowerBlock(dyconv, attention, language_layer))

    def forward(
        self,
        features: list[Tensor],
        language: LanguageFeatures,
        reading: Reading = BOTH_WAYS,
        *,
        with_levels: bool = True,
        rows: Tensor | None = None,
    ) -> tuple[list[Tensor], LanguageFeatures]:
        """Fuse L levels (N, C, Hl, Wl), fine to coarse, with the tokens of N prompts.

        Args:
            features: The levels.
            language: The prompts.
            reading: How image and text read each other.
            with_levels: Return the levels. Otherwise the last image layer, which does not change the tokens, is
                skipped.
            rows: (M,) int64, only if the image does not read the text: for each of M prompts its image. An image then
                passes the tower once for all its prompts.

        Returns:
            L levels (N or M, channels, Hl, Wl), an empty list without ``with_levels``, and the language features, whose
            ``hidden`` are the fused tokens.
        """
        hidden = language.hidden
        if not (with_levels or self.fuses_text):
            return [], language
        for number, block in enumerate(self.blocks, 1):
            inner_levels = with_levels or number < len(self.blocks)
            inputs = (features, hidden, language.mask, reading, inner_levels, rows)
            # Also where the tower itself is fixed: what is tuned before it has its gradients through it.
            if self.use_checkpoint and torch.is_grad_enabled():
                features, hidden = checkpoint(block, *inputs, use_reentrant=False)
            else:
                features, hidden = block(*inputs)
        language = language._replace(hidden=hidden)
        if not with_levels:
            return [], language
        return features if rows is None else [level[rows] for level in features], language

    @property
    def rounds(self) -> list[TowerBlock]:
        """The blocks."""
        return [block for block in self.blocks if isinstance(block, TowerBlock)]

    def mix_levels(self, features: list[Tensor]) -> list[Tensor]:
        """Run the levels of N images in a tower without fusion, where they are the same for all prompts."""
        for block in self.rounds:
            features = block.dyconv(features)
        return features

    def read_images(self, features: list[Tensor]) -> list[Tensor]:
        """Run the levels of N images as a causal ``forward`` does, for tokens that follow one by one.

        Returns:
            For each block the positions that tokens read, (N, S, C), all levels in one sequence.

        Raises:
            InputError: The tower has no fusion, so its tokens cannot read the image.
        """
        positions = []
        for block in self.rounds:
            fusion, _ = block.text_layers
            visual = fusion.normalize_image(features)
            positions.append(fusion.place(visual, features))
            if len(positions) < len(self.blocks):
                features = block.dyconv(split_levels(visual, features))
        return positions

    def step(
        self, positions: list[Tensor], hidden: Tensor, past: list[KeyValues] | None
    ) -> tuple[Tensor, list[KeyValues]]:
        """Fuse the next token of B texts as the causal ``forward`` does, without running those before it again.

        Args:
            positions: Output of ``read_images`` for N images; the B / N texts of an image are adjacent.
            hidden: (B, 1, D), output of the text encoder.
            past: For each block the keys and values of its text layer for the tokens before; None before the first.

        Returns:
            (B, 1, D), and the keys and values for the next token.
        """
        known = []
        for number, (block, visual) in enumerate(zip(self.rounds, positions, strict=True)):
            hidden, known_of_block = block.step(visual, hidden, None if past is None else past[number])
            known.append(known_of_block)
        return hidden, known


def build_tower(cfg: CfgNode, channels: int, text_encoder: TextEncoder | None = None) -> FusionTower:
    """Build the tower for levels of ``channels`` channels and the text of an encoder, if there is one.

    Raises:
        InputError: FUSION.POSITIONS or PHRASE_CENTER is on while FUSION is off.
    """
    tower, fusion = cfg.MODEL.GLIPV2.TOWER, cfg.MODEL.GLIPV2.FUSION
    needs_fusion = {
        "FUSION.POSITIONS": fusion.POSITIONS,
        "PHRASE_CENTER.ENABLED": cfg.MODEL.GLIPV2.PHRASE_CENTER.ENABLED,
    }
    if any(needs_fusion.values()) and not fusion.ENABLED:
        name = next(name for name, value in needs_fusion.items() if value)
        raise InputError(f"MODEL.GLIPV2.{name}: expected False where MODEL.GLIPV2.FUSION.ENABLED is False, found True")
    language: dict[str, Any] = {}
    if text_encoder is not None:
        language = {
            "fusion": fusion.ENABLED,
            "fusion_embed_dim": fusion.EMBED_DIM,
            "fusion_num_heads": fusion.NUM_HEADS,
            "fusion_dropout": fusion.DROPOUT,
            "fusion_positions": fusion.POSITIONS,
            "layer_scale": fusion.LAYER_SCALE,
            "language_num_heads": text_encoder.num_heads,
            "language_intermediate_size": text_encoder.intermediate_size,
            "language_dropout": text_encoder.dropout,
            "language_layer_type": getattr(text_encoder, "language_layer_type", "post_norm"),
        }
    return FusionTower(
        channels,
        text_encoder.hidden_size if text_encoder is not None else 0,
        num_blocks=tower.NUM_BLOCKS,
        channels=tower.CHANNELS,
        deformable=tower.DEFORMABLE,
        dynamic_relu=tower.DYNAMIC_RELU,
        use_checkpoint=tower.USE_CHECKPOINT,
        **(language or {"fusion": False}),
    )
