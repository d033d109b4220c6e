"""Text encoders: from the token ids of N prompts to features of their tokens."""

from .bert import BertTextEncoder
from .build import TEXT_ENCODER_REGISTRY, build_text_encoder
from .clip import CLIPTextEncoder

__all__ = ["TEXT_ENCODER_REGISTRY", "BertTextEncoder", "CLIPTextEncoder", "build_text_encoder"]
