"""The registry of text encoders: users of the package may add their own."""

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import nn

from ...errors import InputError
from ...prompts.tokenizer import PromptTokenizer

TEXT_ENCODER_REGISTRY = Registry("TEXT_ENCODER")
TEXT_ENCODER_REGISTRY.__doc__ = """
Text encoders. An entry is called with a config and returns a module whose ``forward(tokens: TokenBatch)`` returns
``LanguageFeatures``. The module has the attributes ``vocab_size`` and ``max_positions``, the limits of its prompts, and
``hidden_size``, ``num_heads``, ``intermediate_size`` and ``dropout``, the sizes of the text layers in the tower. It may
have ``language_layer_type``, the kind of these layers, see ``FusionTower``. An encoder that can write captions also
accepts ``forward(tokens, causal=True)`` and has ``step(input_ids, past)``, like the encoders of the package.
"""


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


def build_text_encoder(cfg: CfgNode) -> nn.Module:
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
