"""CLIP-type text encoders, those of GLIPv2-B and -H: pre-norm transformers over byte-pair tokens."""

from __future__ import annotations

import torch
from detectron2.config import configurable
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...layers.pre_norm_layer import PreNormLayer
from ...layers.reading import KeyValues, next_position
from .build import TEXT_ENCODER_REGISTRY, TextEncoder
from .clip_weights import check_clip_text, load_clip_text, resize_positions


@TEXT_ENCODER_REGISTRY.register()
class CLIPTextEncoder(TextEncoder):
    """Encode prompts with a CLIP-type transformer.

    The sum of token and position embeddings passes pre-norm layers and a last norm. Tokens see each other in both
    directions unless ``causal`` is True. The text layers of the fusion tower are of the same kind
    (``language_layer_type``).

    Source: the CLIP-type encoder of the official code; GLIPv2, App. D.1 and E. The official ``embedded`` keeps its
    padding, which does not affect any result.
    """

    # Kind of the text layers in the tower, see ``FusionTower``.
    language_layer_type = "pre_norm"

    @configurable
    def __init__(
        self,
        *,
        weights: str = "",
        vocab_size: int = 49408,
        hidden_size: int = 512,
        num_layers: int = 12,
        num_heads: int = 8,
        intermediate_size: int = 2048,
        max_positions: int = 256,
        dropout: float = 0.0,
        allow_download: bool = False,
        freeze: bool = False,
        use_checkpoint: bool = False,
    ) -> None:
        """Build the encoder.

        Args:
            weights: Pretrained encoder, see ``load_clip_text``, whose sizes are used, except ``max_positions``. Empty:
                random weights in the sizes that follow.
            vocab_size: Number of token ids.
            hidden_size: D.
            num_layers: Number of transformer layers.
            num_heads: Number of attention heads of a layer, also for a file of tensors, which does not show it.
            intermediate_size: Width between the two linear maps of a layer.
            max_positions: Longest prompt in tokens; pretrained positions are resized to this number.
            dropout: Probability that a residual branch of the last layer is left out for a prompt in training. It grows
                linearly from 0 over the layers (stochastic depth, the only dropout of these encoders).
            allow_download: Fetch a hub name that is not in the local cache.
            freeze: Keep the encoder in eval mode, without gradients.
            use_checkpoint: Recompute the activations of each layer in the backward pass.

        Raises:
            FileNotFoundError: Nothing is found at ``weights``.
            ValueError: The files are not a CLIP-type encoder, or ``num_heads`` does not divide D.
        """
        super().__init__()
        loaded = None
        if weights:
            loaded = load_clip_text(weights, allow_download)
            vocab_size, hidden_size, num_layers, intermediate_size = loaded.sizes()
            num_heads = num_heads if loaded.num_heads is None else loaded.num_heads
        self.token_embedding = nn.Embedding(vocab_size, hidden_size)
        self.positional_embedding = nn.Parameter(torch.empty(max_positions, hidden_size))
        self.resblocks = nn.ModuleList(
            PreNormLayer(hidden_size, num_heads, intermediate_size, dropout * index / max(num_layers - 1, 1))
            for index in range(num_layers)
        )
        self.ln_final = nn.LayerNorm(hidden_size, eps=1e-12)
        nn.init.trunc_normal_(self.token_embedding.weight, std=0.02)
        nn.init.trunc_normal_(self.positional_embedding, std=0.02)
        if loaded is not None:
            positions = resize_positions(loaded.tensors["positional_embedding"], max_positions)
            tensors = {**loaded.tensors, "positional_embedding": positions}
            check_clip_text(tensors, self.state_dict(), weights)
            self.load_state_dict(tensors, strict=False)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_heads = num_heads
        self.intermediate_size = intermediate_size
        self.max_positions = max_positions
        self.dropout = dropout
        self.freeze = freeze
        self.use_checkpoint = use_checkpoint
        if freeze:
            self.requires_grad_(False)
        self.train()

    def step(self, input_ids: Tensor, past: list[KeyValues] | None) -> tuple[Tensor, list[KeyValues]]:
        """See ``TextEncoder``."""
        position = next_position(past, self.max_positions)
        hidden = (self.token_embedding(input_ids) + self.positional_embedding[position]).unsqueeze(1)  # (B, 1, D)
        known = []
        for number, layer in enumerate(self.resblocks):
            assert isinstance(layer, PreNormLayer)
            hidden, known_of_layer = layer.step(hidden, None if past is None else past[number])
            known.append(known_of_layer)
        return self.ln_final(hidden), known

    def encode(self, input_ids: Tensor, mask: Tensor, causal: bool) -> Tensor:
        """See ``TextEncoder``."""
        hidden = self.token_embedding(input_ids) + self.positional_embedding[: input_ids.shape[1]]  # (N, T, D)
        for layer in self.resblocks:
            if self.use_checkpoint and self.training:
                hidden = checkpoint(layer, hidden, mask, causal, use_reentrant=False)
            else:
                hidden = layer(hidden, mask, causal)
        return self.ln_final(hidden)
