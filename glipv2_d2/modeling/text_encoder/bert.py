"""BERT-type text encoders from Hugging Face transformers."""

from __future__ import annotations

from pickle import UnpicklingError
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, PreTrainedModel

from ...errors import InputError
from ...layers.reading import KeyValues, next_position
from ...prompts.pretrained import resolve_pretrained
from ...structures import LanguageFeatures, TokenBatch
from .bert_causal import causal_pass, causal_step
from .build import TEXT_ENCODER_REGISTRY, TextEncoder, read_encoder_arguments
from .distinct import encode_distinct

_WEIGHTS_KEY = "MODEL.TEXT_ENCODER.WEIGHTS"
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

    ``hidden`` is the output of its last layer, ``embedded`` the same with zeros in the padding. ``bert`` is the
    transformer of the transformers library, without a pooler.

    Equal prompts of a batch are encoded once if no dropout is active, which gives the same result.

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

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        return read_encoder_arguments(cfg)

    def train(self, mode: bool = True) -> BertTextEncoder:
        """Set the mode as usual; a frozen encoder stays in eval mode."""
        return super().train(mode and not self.freeze)

    def forward(self, tokens: TokenBatch, causal: bool = False) -> LanguageFeatures:
        """Encode N prompts of T tokens; with ``causal`` a token sees only tokens up to itself.

        Raises:
            InputError: ``causal`` is True and the pretrained encoder is not a plain BERT; see ``bert_causal``.
        """
        encode = self._encode_causal if causal else self._encode
        if self.training:
            hidden = encode(tokens.input_ids, tokens.mask)
        else:
            hidden = encode_distinct(encode, tokens)
        embedded = hidden.masked_fill(~tokens.mask.unsqueeze(-1), 0.0)
        return LanguageFeatures(hidden, embedded, tokens.mask)

    def step(self, input_ids: Tensor, past: list[KeyValues] | None) -> tuple[Tensor, list[KeyValues]]:
        """See ``TextEncoder``."""
        return causal_step(self.bert, input_ids, next_position(past, self.max_positions), past)

    def _encode(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            return self.bert(input_ids=input_ids, attention_mask=mask.long()).last_hidden_state

    def _encode_causal(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            return causal_pass(self.bert, input_ids, mask, self.use_checkpoint and self.training)


def _load_pretrained(weights: str, dropout: float, allow_download: bool) -> PreTrainedModel:
    directory = resolve_pretrained(weights, _WEIGHTS_KEY, allow_download)
    safely: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(directory, **safely)
        lacking = [name for name in _BERT_CONFIG if not hasattr(config, name)]
        if lacking:
            raise InputError(f"a {config.model_type} without {lacking[0]} in its config, expected a BERT-type encoder")
        config.hidden_dropout_prob = dropout
        config.attention_probs_dropout_prob = dropout
        bert, info = AutoModel.from_pretrained(
            directory, config=config, weights_only=True, output_loading_info=True, **safely
        )
    except UnpicklingError as error:
        raise InputError(f"{_WEIGHTS_KEY}: {weights!r} has a damaged file or one with more than tensors") from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{_WEIGHTS_KEY}: no encoder could be read from {weights!r}: {reason}") from error
    bert.pooler = None
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)
    if missing:
        raise InputError(f"{_WEIGHTS_KEY}: {weights!r} lacks {len(missing)} tensors of its encoder, as {missing[0]!r}")
    return bert.float()
