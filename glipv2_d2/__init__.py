"""GLIPv2 for detectron2: localization and vision-language understanding from one model.

Importing the package registers its models, backbones and datasets with detectron2.
"""

__version__ = "0.1.0"

from .paths import register_path_handlers

register_path_handlers()

from . import data  # noqa: E402,F401  registers datasets
from .checkpoint.glip_conversion import convert_glip_state_dict  # noqa: E402
from .config import add_glipv2_config  # noqa: E402
from .data import (  # noqa: E402
    register_captioning,
    register_coco_grounding,
    register_flickr30k,
    register_grounding_json,
    register_lvis,
    register_odvg,
    register_phrasecut,
    register_refcoco,
    register_referring_json,
    register_shards,
    register_tsv,
    register_vqa,
    register_vqa_json,
    register_vqa_jsonl,
)
from .engine.predictor import GLIPv2Predictor  # noqa: E402
from .engine.trainer import GLIPv2Trainer  # noqa: E402
from .modeling import GLIPv2, build_text_encoder  # noqa: E402
from .prompts.tokenizer import PromptTokenizer  # noqa: E402
from .structures import Prompt, TokenizedPrompt  # noqa: E402

__all__ = [
    "GLIPv2",
    "GLIPv2Predictor",
    "GLIPv2Trainer",
    "Prompt",
    "PromptTokenizer",
    "TokenizedPrompt",
    "add_glipv2_config",
    "build_text_encoder",
    "convert_glip_state_dict",
    "register_captioning",
    "register_coco_grounding",
    "register_flickr30k",
    "register_grounding_json",
    "register_lvis",
    "register_odvg",
    "register_phrasecut",
    "register_refcoco",
    "register_referring_json",
    "register_shards",
    "register_tsv",
    "register_vqa",
    "register_vqa_json",
    "register_vqa_jsonl",
]
