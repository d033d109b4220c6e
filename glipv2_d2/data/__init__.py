"""From dataset names to batches of model inputs. Importing it registers the datasets that the repository prepares."""

from .build import build_test_loader, build_train_loader
from .dataset_mappers.detection import DetectionDatasetMapper
from .datasets import builtin  # noqa: F401
from .datasets.formats import (
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
from .own_sets import find_own_sets, register_own_sets

__all__ = [
    "DetectionDatasetMapper",
    "build_test_loader",
    "build_train_loader",
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
]
