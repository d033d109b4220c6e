"""GLIPv2 for detectron2: localization and vision-language understanding from one model.

The names below load on first use, and the first of them registers models, backbones and datasets with detectron2. A
program that uses detectron2's registries and none of these names imports ``glipv2_d2.registrations``.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .checkpoint.glip_conversion import convert_glip_state_dict as convert_glip_state_dict
    from .config import add_glipv2_config as add_glipv2_config
    from .config_files import get_config as get_config
    from .config_files import get_config_file as get_config_file
    from .data import find_own_sets as find_own_sets
    from .data import register_captioning as register_captioning
    from .data import register_coco_grounding as register_coco_grounding
    from .data import register_flickr30k as register_flickr30k
    from .data import register_grounding_json as register_grounding_json
    from .data import register_lvis as register_lvis
    from .data import register_odvg as register_odvg
    from .data import register_own_sets as register_own_sets
    from .data import register_phrasecut as register_phrasecut
    from .data import register_refcoco as register_refcoco
    from .data import register_referring_json as register_referring_json
    from .data import register_shards as register_shards
    from .data import register_tsv as register_tsv
    from .data import register_vqa as register_vqa
    from .data import register_vqa_json as register_vqa_json
    from .data import register_vqa_jsonl as register_vqa_jsonl
    from .engine.predictor import GLIPv2Predictor as GLIPv2Predictor
    from .engine.trainer import GLIPv2Trainer as GLIPv2Trainer
    from .modeling import GLIPv2 as GLIPv2
    from .modeling import build_model as build_model
    from .modeling import build_text_encoder as build_text_encoder
    from .prompts.tokenizer import PromptTokenizer as PromptTokenizer
    from .structures import Prompt as Prompt
    from .structures import TokenizedPrompt as TokenizedPrompt

# Public names by module.
_PUBLIC = {
    "checkpoint.glip_conversion": ("convert_glip_state_dict",),
    "config": ("add_glipv2_config",),
    "config_files": ("get_config", "get_config_file"),
    "data": (
        "find_own_sets",
        "register_captioning",
        "register_coco_grounding",
        "register_flickr30k",
        "register_grounding_json",
        "register_lvis",
        "register_odvg",
        "register_own_sets",
        "register_phrasecut",
        "register_refcoco",
        "register_referring_json",
        "register_shards",
        "register_tsv",
        "register_vqa",
        "register_vqa_json",
        "register_vqa_jsonl",
    ),
    "engine.predictor": ("GLIPv2Predictor",),
    "engine.trainer": ("GLIPv2Trainer",),
    "modeling": ("GLIPv2", "build_model", "build_text_encoder"),
    "prompts.tokenizer": ("PromptTokenizer",),
    "structures": ("Prompt", "TokenizedPrompt"),
}
__all__ = sorted(name for names in _PUBLIC.values() for name in names)


def __getattr__(name: str) -> Any:
    """Load a public name, after everything that detectron2's registries and catalogs should know."""
    module = next((module for module, names in _PUBLIC.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    importlib.import_module(".registrations", __name__)
    globals()[name] = getattr(importlib.import_module(f".{module}", __name__), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
