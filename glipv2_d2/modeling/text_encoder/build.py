"""The registry of text encoders: users of the package may add their own."""

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from ...errors import InputError
from ...layers.reading import KeyValues
from ...prompts.tokenizer import PromptTokenizer
from ...structures import LanguageFeatures, TokenBatch

TEXT_ENCODER_REGISTRY = Registry("TEXT_ENCODER")
TEXT_ENCODER_REGISTRY.__doc__ = """
Text encoders. An entry is called with a config and returns a module with the attributes and methods of ``TextEncoder``.
"""


class TextEncoder(nn.Module):
    """What a text encoder has.

    Attributes:
        vocab_size, max_positions: Limits of its prompts.
        hidden_size, num_heads, intermediate_size, dropout: Sizes of the text layers in the tower.
        language_layer_type: Kind of these layers, see ``FusionTower``; may be missing.
    """

    vocab_size: int
    max_positions: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    dropout: float
    language_layer_type: str = "post_norm"

    def forward(self, tokens: TokenBatch, causal: bool = False) -> LanguageFeatures:
        """Encode N prompts of T tokens; with ``causal``, which captions need, a token sees those up to itself only."""
        raise TypeError(f"{type(self).__name__}: expected a method forward, found none")

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
        raise InputError(
            f"MODEL.TEXT_ENCODER.NAME: expected an encoder that writes captions, found {type(self).__name__}"
        )


def read_encoder_arguments(cfg: CfgNode) -> dict[str, object]:
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
