"""What text encoders share, and their registry: users of the package may add their own."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pickle import UnpicklingError
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.utils import logging as library_logging

from ...errors import InputError
from ...layers.products import library_layers
from ...layers.reading import KeyValues
from ...prompts.pretrained import resolve_pretrained
from ...prompts.tokenizer import PromptTokenizer
from ...structures import LanguageFeatures, TokenBatch

_WEIGHTS_KEY = "MODEL.TEXT_ENCODER.WEIGHTS"
TEXT_ENCODER_REGISTRY = Registry("TEXT_ENCODER")
TEXT_ENCODER_REGISTRY.__doc__ = """
Text encoders. An entry is called with a config and returns a ``TextEncoder``.
"""


class TextEncoder(nn.Module, ABC):
    """Encode prompts: ``hidden`` is the output of the last layer, ``embedded`` the same with zeros in the padding.

    Equal prompts of a batch are encoded once where that gives the same result.

    Attributes:
        vocab_size, max_positions: Limits of its prompts.
        hidden_size, num_heads, intermediate_size, dropout: Sizes of the text layers in the tower.
        language_layer_type: Kind of these layers, see ``FusionTower``.
        freeze: It stays in eval mode, without gradients.
    """

    vocab_size: int
    max_positions: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    dropout: float
    language_layer_type: str = "post_norm"
    freeze: bool = False

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Read the arguments that the encoders of the package share."""
        encoder = cfg.MODEL.TEXT_ENCODER
        return {
            "weights": encoder.WEIGHTS,
            "vocab_size": encoder.VOCAB_SIZE,
            "hidden_size": encoder.HIDDEN_SIZE,
            "num_layers": encoder.NUM_LAYERS,
            "num_heads": encoder.NUM_HEADS,
            "intermediate_size": encoder.INTERMEDIATE_SIZE,
            "max_positions": encoder.MAX_POSITIONS,
            "dropout": encoder.DROPOUT,
            "allow_download": encoder.ALLOW_DOWNLOAD,
            "freeze": encoder.FREEZE,
            "use_checkpoint": encoder.USE_CHECKPOINT,
        }

    @property
    def is_random(self) -> bool:
        """Two runs of one prompt differ."""
        return self.training and self.dropout > 0

    def train(self, mode: bool = True) -> TextEncoder:
        """Set the mode as usual; a frozen encoder stays in eval mode."""
        return super().train(mode and not self.freeze)

    def forward(self, tokens: TokenBatch, causal: bool = False) -> LanguageFeatures:
        """Encode N prompts of T tokens; with ``causal``, for captions, a token sees only tokens up to itself."""
        ids, mask = tokens.input_ids, tokens.mask
        with library_layers():
            if self.is_random:
                hidden = self.encode(ids, mask, causal)
            else:
                distinct, rows = tokens.compare()
                hidden = self.encode(ids[distinct], mask[distinct], causal)[rows]
        return LanguageFeatures(hidden, hidden.masked_fill(~mask.unsqueeze(-1), 0.0), mask)

    @abstractmethod
    def encode(self, input_ids: Tensor, mask: Tensor, causal: bool) -> Tensor:
        """Map token ids (N, T) and their mask (N, T) bool to features (N, T, D), each prompt by itself.

        Raises:
            InputError: ``causal`` is True, and the encoder cannot write captions.
        """

    @abstractmethod
    def step(self, input_ids: Tensor, past: list[KeyValues] | None) -> tuple[Tensor, list[KeyValues]]:
        """Encode the next token of B texts as the causal ``forward`` does, without running those before it again.

        Args:
            input_ids: (B,) int64.
            past: For each layer the keys and values of the tokens before; None before the first token.

        Returns:
            (B, 1, D), and the keys and values for the next token.

        Raises:
            InputError: The encoder has no position for another token, or cannot write captions.
        """


def read_library_model(
    model_class: Any, weights: str, allow_download: bool, check_config: Callable[[Any], Any]
) -> tuple[Any, Any]:
    """Read a text model of the transformers library; no code of its folder runs.

    Args:
        model_class: Class of the library that reads the model.
        weights: Directory, ``package://PACKAGE/DIRECTORY`` or hub name.
        allow_download: Fetch a hub name that is not in the local cache.
        check_config: Returns the part of the folder's config that is of the text, or raises ``InputError``.

    Returns:
        The model and this config.

    Raises:
        FileNotFoundError: Nothing is found at ``weights``.
        InputError: The files are damaged or not such a model, or lack tensors.
    """
    directory = resolve_pretrained(weights, _WEIGHTS_KEY, allow_download)
    safely: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = check_config(AutoConfig.from_pretrained(directory, **safely))
        with _without_progress_bar():
            model, info = model_class.from_pretrained(
                directory, config=config, weights_only=True, output_loading_info=True, **safely
            )
    except UnpicklingError as error:
        raise InputError(f"{_WEIGHTS_KEY}: {weights!r} has a damaged file or one with more than tensors") from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{_WEIGHTS_KEY}: no encoder could be read from {weights!r}: {reason}") from error
    # The library fills missing tensors with random numbers. Nothing here reads the pooler.
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)
    if missing:
        raise InputError(f"{_WEIGHTS_KEY}: {weights!r} lacks {len(missing)} tensors of its encoder, as {missing[0]!r}")
    return model, config


@contextlib.contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Within the context the transformers library draws no bar: reading a local file takes no time worth one."""
    shows = library_logging.is_progress_bar_enabled()
    library_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shows:
            library_logging.enable_progress_bar()


def build_text_encoder(cfg: CfgNode) -> TextEncoder:
    """Build the text encoder named by ``MODEL.TEXT_ENCODER.NAME``.

    Raises:
        InputError: The name is not registered, or the encoder cannot read every prompt that ``MODEL.TEXT_ENCODER``
            allows: its vocabulary is smaller than the tokenizer's, or MAX_TOKENS passes its positions.
    """
    settings = cfg.MODEL.TEXT_ENCODER
    if settings.NAME not in TEXT_ENCODER_REGISTRY:
        known = ", ".join(sorted(name for name, _ in TEXT_ENCODER_REGISTRY))
        raise InputError(f"MODEL.TEXT_ENCODER.NAME: {settings.NAME!r} is not registered, expected one of {known}")
    encoder = TEXT_ENCODER_REGISTRY.get(settings.NAME)(cfg)
    vocab_size = PromptTokenizer.from_config(cfg).vocab_size
    if vocab_size > encoder.vocab_size:
        raise InputError(
            f"MODEL.TEXT_ENCODER.TOKENIZER: the tokenizer has {vocab_size} ids, expected at most the "
            f"{encoder.vocab_size} that the encoder knows"
        )
    if settings.MAX_TOKENS > encoder.max_positions:
        raise InputError(
            f"MODEL.TEXT_ENCODER.MAX_TOKENS: found {settings.MAX_TOKENS}, expected at most the "
            f"{encoder.max_positions} positions of the encoder"
        )
    return encoder
