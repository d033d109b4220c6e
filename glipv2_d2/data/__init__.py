"""From dataset names to batches of model inputs. Importing it registers the datasets that the repository prepares."""

from .build import build_test_loader, build_train_loader
from .dataset_mappers.detection import DetectionDatasetMapper
from .datasets import builtin  # noqa: F401
from .datasets.captioning import register_captioning
from .datasets.coco import register_coco_grounding
from .datasets.flickr30k import register_flickr30k
from .datasets.grounding_json import register_grounding_json
from .datasets.lvis import register_lvis
from .datasets.odvg import register_odvg
from .datasets.phrasecut import register_phrasecut
from .datasets.refcoco import register_refcoco
from .datasets.referring_json import register_referring_json
from .datasets.tar_shards import register_shards
from .datasets.tsv import register_tsv
from .datasets.vqa import register_vqa
from .datasets.vqa_json import register_vqa_json
from .datasets.vqa_jsonl import register_vqa_jsonl

__all__ = [
    "DetectionDatasetMapper",
    "build_test_loader",
    "build_train_loader",
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
