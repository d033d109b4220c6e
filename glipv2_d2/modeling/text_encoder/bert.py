"""BERT-type text encoders from Hugging Face transformers."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import configurable
from torch import Tensor
from transformers import AutoModel, BertConfig, BertModel, PreTrainedModel

from ...errors import InputError
from ...layers.reading import KeyValues, next_position
from .bert_causal import can_be_run, causal_step, masked_pass
from .build import TEXT_ENCODER_REGISTRY, TextEncoder, read_library_model

# Fields that the config of a pretrained encoder must have: the text layers of the tower have the same sizes.
_BERT_CONFIG = (
    "vocab_size",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
)


@TEXT_ENCODER_REGISTRY.register()
class BertTextEncoder(TextEncoder):
    """Encode prompts with a BERT-type transformer.

    ``bert`` is the transformer of the transformers library, without a pooler.

    Source: the language encoder of the official GLIP code with one averaged layer, as in all released models.
    """

    @configurable
    def __init__(
        self,
        *,
        weights: str = "",
        vocab_size: int = 30522,
        hidden_size: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        intermediate_size: int = 3072,
        max_positions: int = 512,
        dropout: float = 0.1,
        allow_download: bool = False,
        freeze: bool = False,
        use_checkpoint: bool = False,
    ) -> None:
        """Build the encoder.

        Args:
            weights: Directory, ``package://PACKAGE/DIRECTORY`` or hub name of a pretrained encoder, whose sizes are
                used. Empty: random weights in the sizes that follow.
            vocab_size: Number of token ids.
            hidden_size: D.
            num_layers: Number of transformer layers.
            num_heads: Number of attention heads of a layer.
            intermediate_size: Width between the two linear maps of a layer.
            max_positions: Longest prompt in tokens.
            dropout: Probability in features and attention, for a pretrained encoder too.
            allow_download: Fetch a hub name that is not in the local cache.
            freeze: Keep the encoder in eval mode, without gradients.
            use_checkpoint: Recompute activations in the backward pass.

        Raises:
            FileNotFoundError: Nothing is found at ``weights``.
            InputError: The files are not a BERT-type encoder.
        """
        super().__init__()
        if weights:
            self.bert = _load_pretrained(weights, dropout, allow_download)
        else:
            self.bert = BertModel(
                BertConfig(
                    vocab_size=vocab_size,
                    hidden_size=hidden_size,
                    num_hidden_layers=num_layers,
                    num_attention_heads=num_heads,
                    intermediate_size=intermediate_size,
                    max_position_embeddings=max_positions,
                    hidden_dropout_prob=dropout,
                    attention_probs_dropout_prob=dropout,
                ),
                add_pooling_layer=False,
            )
        # An encoder has nothing to cache, but with this flag checkpointing would warn.
        self.bert.config.use_cache = False
        self.vocab_size: int = self.bert.config.vocab_size
        self.hidden_size: int = self.bert.config.hidden_size
        self.num_heads: int = self.bert.config.num_attention_heads
        self.intermediate_size: int = self.bert.config.intermediate_size
        self.max_positions: int = self.bert.config.max_position_embeddings
        self.dropout = dropout
        self.freeze = freeze
        if freeze:
            self.requires_grad_(False)
        self.use_checkpoint = use_checkpoint and not freeze
        if self.use_checkpoint:
            # transformers 4 and 5 have different names for this method, and version 5 warns about the older one.
            newer = getattr(self.bert, "activation_checkpointing_enable", None)
            enable = newer or self.bert.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        self.train()

    @property
    def is_random(self) -> bool:
        """A BERT in training mode has dropout in every layer."""
        return self.training

    def step(self, input_ids: Tensor, past: list[KeyValues] | None) -> tuple[Tensor, list[KeyValues]]:
        """See ``TextEncoder``."""
        return causal_step(self.bert, input_ids, next_position(past, self.max_positions), past)

    def encode(self, input_ids: Tensor, mask: Tensor, causal: bool) -> Tensor:
        """See ``TextEncoder``; only a plain BERT can be causal, see ``bert_causal``."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            if causal or (mask.device.type != "cpu" and can_be_run(self.bert)):
                return masked_pass(self.bert, input_ids, mask, causal, self.use_checkpoint and self.training)
            return self.bert(input_ids=input_ids, attention_mask=mask.long()).last_hidden_state


def _load_pretrained(weights: str, dropout: float, allow_download: bool) -> PreTrainedModel:
    def check(config: Any) -> Any:
        lacking = [name for name in _BERT_CONFIG if not hasattr(config, name)]
        if lacking:
            raise InputError(f"a {config.model_type} without {lacking[0]} in its config, expected a BERT-type encoder")
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
        return config

    bert, _ = read_library_model(AutoModel, weights, allow_download, check)
    bert.pooler = None
    return bert.float()
