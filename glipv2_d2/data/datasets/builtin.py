"""Named datasets under $DETECTRON2_DATASETS, registered at import; datasets/README.md has the folder tree of each.

Nothing is read here: a dataset that was not prepared fails when it is used, with the path that is missing.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from detectron2.data.datasets.lvis import get_lvis_instances_meta
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

from .formats import (
    register_captioning,
    register_coco_grounding,
    register_flickr30k,
    register_grounding_json,
    register_lvis,
    register_odinw,
    register_odvg,
    register_phrasecut,
    register_refcoco,
    register_referring_json,
    register_shards,
    register_vqa,
    register_vqa_json,
)

# Joins names to a folder.
Below = Callable[..., str]

# Folder, which is also the first part of the name: splits.
_WORLDS = {
    "stampworld": ("train", "val", "val_24", "val_novel"),
    "shapeworld": ("train", "val", "val_24", "val_novel"),
    "wideworld": ("train", "val_looks", "val_names", "val_source"),
}

# Folders below "small_sets", laid out as the sets of ODinW are, and what the splits are called there.
_SMALL_SETS = ("a", "b", "c", "all")
_SMALL_SPLITS = {"train": "train", "val": "valid", "test": "test"}

# Name: json in COCO's format and image directory. detectron2 registers COCO itself.
_DETECTION = {
    "objects365_v1_train": ("objects365_v1/annotations/objects365_train.json", "objects365_v1/train"),
    "objects365_v1_val": ("objects365_v1/annotations/objects365_val.json", "objects365_v1/val"),
    "objects365_v2_train": ("objects365_v2/annotations/zhiyuan_objv2_train.json", "objects365_v2/train"),
    "objects365_v2_val": ("objects365_v2/annotations/zhiyuan_objv2_val.json", "objects365_v2/val"),
    "openimages_train": ("openimages/annotations/train.json", "openimages/train"),
    "openimages_val": ("openimages/annotations/val.json", "openimages/val"),
    "vg_train": ("visual_genome/annotations/train.json", "visual_genome/images"),
    "imagenet_boxes_train": ("imagenet_boxes/annotations/train.json", "imagenet_boxes/train"),
}

_MDETR = "mdetr_annotations"
# Where the mixed data has its images; every source but COCO has those of GQA, which are Visual Genome's.
_MIXED_IMAGES = {"coco": "coco/train2014", "": "gqa/images"}

# Name: json in MDETR's format and the image directory of each source of images.
_GROUNDING = {
    "mixed_train": (f"{_MDETR}/final_mixed_train.json", _MIXED_IMAGES),
    "mixed_train_no_coco": (f"{_MDETR}/final_mixed_train_no_coco.json", {"": _MIXED_IMAGES[""]}),
}

# Folder: captions with pseudo boxes, in tar shards in NAME/shards, registered as NAME_pseudo, and how many there are
# (GLIPv2, Sec. 4: CC15M and SBU have 16 million together). The numbers only weigh the datasets in a training.
_CAPTIONS = {"cap4m": 4_000_000, "cc": 15_000_000, "sbu": 1_000_000}

_PHRASECUT = ("train", "miniv", "val", "test")

# First part of the name: folder, json of expressions, splits. RefCOCOg has two ways to be split.
_REFCOCO = {
    "refcoco": ("refcoco", "refs_unc.json", ("train", "val", "testA", "testB")),
    "refcoco+": ("refcoco+", "refs_unc.json", ("train", "val", "testA", "testB")),
    "refcocog": ("refcocog", "refs_umd.json", ("train", "val", "test")),
    "refcocog_google": ("refcocog", "refs_google.json", ("train", "val")),
}

# detectron2 registers train and val without "_grounding", with a reader that a polygon of two points stops. Minival is
# the part of val that MDETR and GLIP report on.
_LVIS = {
    "lvis_v1_train_grounding": "lvis_v1_train.json",
    "lvis_v1_val_grounding": "lvis_v1_val.json",
    "lvis_v1_minival": "lvis_v1_minival_inserted_image_name.json",
}

_DEV_IDS = {"image_ids_file": "dev2k_images.json"}
# Second part of the name: part of VQAv2, COCO's file with its images, whether its answers are public, and of val2014
# the images that are chosen or left out. VinVL and GLIPv2 train on train and restval, and try on dev2k.
_VQA: dict[str, tuple[str, str, bool, dict[str, Any]]] = {
    "train": ("train2014", "captions", True, {}),
    "val": ("val2014", "captions", True, {}),
    "restval": ("val2014", "captions", True, {**_DEV_IDS, "leave_out_ids": True}),
    "dev2k": ("val2014", "captions", True, _DEV_IDS),
    "testdev": ("test-dev2015", "image_info", False, {}),
    "test": ("test2015", "image_info", False, {}),
}


def register_builtin_datasets(root: str) -> None:
    """Register all named datasets below a folder."""
    below = functools.partial(os.path.join, root)
    for folder, splits in _WORLDS.items():
        _register_world(functools.partial(below, folder), folder, splits)
    for key in _SMALL_SETS:
        for split, folder in _SMALL_SPLITS.items():
            images = below("small_sets", key, folder)
            json_file = os.path.join(images, "annotations_without_background.json")
            register_coco_grounding(f"small_{key}_{split}", json_file, images)
    for name, (json_file, images) in _DETECTION.items():
        register_coco_grounding(name, below(json_file), below(images))
    for name, (json_file, directories) in _GROUNDING.items():
        register_grounding_json(name, below(json_file), {source: below(one) for source, one in directories.items()})
    for folder, number in _CAPTIONS.items():
        register_shards(f"{folder}_pseudo", below(folder, "shards", "*.tar"), num_samples=number)
    register_odinw(below("odinw"))
    _register_flickr30k(functools.partial(below, "flickr30k"), below(_MDETR))
    _register_masks(below)
    _register_questions(below)
    _register_captions_to_write(below)


def _register_flickr30k(below: Below, mdetr: str) -> None:
    """Register the splits to train on in MDETR's format, and those that are tested on as their own files have them."""
    images = functools.partial(below, "flickr30k_images")
    train_file = os.path.join(mdetr, "final_flickr_separateGT_train.json")
    register_grounding_json("flickr30k_train", train_file, images("train"))
    for split in ("val", "test"):
        register_flickr30k(f"flickr30k_{split}", below("flickr30k"), split, images(split))


def _register_questions(below: Below) -> None:
    """Register VQAv2: the questions and, where people's answers are public, these with and without pseudo boxes."""
    for name, (part, images, has_answers, ids) in _VQA.items():
        subtype = part.replace("-dev", "")
        options: dict[str, Any] = {"images_file": below("coco", "annotations", f"{images}_{subtype}.json"), **ids}
        if "image_ids_file" in options:
            options["image_ids_file"] = below("vqav2", options["image_ids_file"])
        questions_file = below("vqav2", f"v2_OpenEnded_mscoco_{part}_questions.json")
        annotations_file = below("vqav2", f"v2_mscoco_{part}_annotations.json") if has_answers else None
        files = (questions_file, annotations_file, below("coco", subtype))
        register_vqa(f"vqav2_{name}", *files, **options)
        if has_answers:
            boxes_file = below("vqav2", f"pseudo_boxes_{part}.jsonl")
            register_vqa(f"vqav2_{name}_grounded", *files, boxes_file=boxes_file, **options)


def _register_captions_to_write(below: Below) -> None:
    """Register Karpathy's splits of COCO and Flickr30K, and the captions whose phrases have boxes."""
    images_files = [below("coco", "annotations", f"captions_{part}2014.json") for part in ("train", "val")]
    for split in ("train", "val", "test"):
        # As everybody does: the part of val2014 that Karpathy left is for training.
        splits = ("train", "restval") if split == "train" else (split,)
        json_file, name = below("karpathy", "dataset_coco.json"), f"coco_captions_karpathy_{split}"
        register_captioning(name, json_file, below("coco"), splits=splits, images_files=images_files)
        json_file, images = below("karpathy", "dataset_flickr30k.json"), below("flickr30k", "flickr30k_images", split)
        register_captioning(f"flickr30k_karpathy_{split}", json_file, images, splits=(split,))
        json_file = below(_MDETR, f"final_flickr_separateGT_{split}.json")
        register_grounding_json(f"flickr30k_{split}_captioning", json_file, images, task="captioning")
    jsonl_file = below("coco", "annotations", "pseudo_boxes_captions.jsonl")
    register_odvg("coco_captions_pseudo", jsonl_file, below("coco"), task="captioning")


def _register_masks(below: Below) -> None:
    """Register what is there for its masks, but for COCO: LVIS and referring data."""
    for name, json_file in _LVIS.items():
        # The names of LVIS v1 without its file.
        metadata = get_lvis_instances_meta(name) | {"thing_classes": [one["name"] for one in LVIS_CATEGORIES]}
        register_lvis(name, below("lvis", json_file), below("coco"), **metadata)
    sizes_file, images = below("phrasecut", "image_data_split.json"), below("phrasecut", "images")
    for split in _PHRASECUT:
        register_phrasecut(f"phrasecut_{split}", below("phrasecut", f"refer_{split}.json"), sizes_file, images)
    for name, (folder, refs_file, splits) in _REFCOCO.items():
        refs, instances = (below("refcoco", folder, file) for file in (refs_file, "instances.json"))
        for split in splits:
            register_refcoco(f"{name}_{split}", refs, instances, below("coco", "train2014"), split)


def _register_world(below: Below, name: str, splits: tuple[str, ...]) -> None:
    """Register the splits of composed scenes as all kinds of data, and halves of ``train``.

    The halves are for training with pseudo boxes, as detection and grounding data alone.
    """
    for split, images in {**{split: split for split in splits}, "half": "train"}.items():
        files = below("annotations", f"{split}.json"), below(images)
        register_coco_grounding(f"{name}_{split}", *files)
        register_grounding_json(f"{name}_{split}_grounding", *files)
        if split in splits:
            register_referring_json(f"{name}_{split}_referring", *files)
            register_vqa_json(f"{name}_{split}_vqa", *files)
            register_grounding_json(f"{name}_{split}_captioning", *files, task="captioning")
    register_odvg(f"{name}_pseudo", below("annotations", "pseudo.jsonl"), below("train"), task="pseudo_grounding")


register_builtin_datasets(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))
