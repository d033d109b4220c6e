"""Named datasets under $DETECTRON2_DATASETS, registered at import; datasets/README.md has the folder tree of each.

Nothing is read here: a dataset that was not prepared fails when it is used, with the path that is missing.
"""

from __future__ import annotations

import os
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
    register_vqa,
    register_vqa_json,
)

# Folder, which is also the first part of the name: splits.
_WORLDS = {
    "stampworld": ("train", "val", "val_24", "val_novel"),
    "shapeworld": ("train", "val", "val_24", "val_novel"),
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

# Name: json in MDETR's format and image directory, or one for each source of images.
_GROUNDING: dict[str, tuple[str, str | dict[str, str]]] = {
    "flickr30k_train": (f"{_MDETR}/final_flickr_separateGT_train.json", "flickr30k/flickr30k_images/train"),
    "mixed_train": (f"{_MDETR}/final_mixed_train.json", _MIXED_IMAGES),
    "mixed_train_no_coco": (f"{_MDETR}/final_mixed_train_no_coco.json", {"": _MIXED_IMAGES[""]}),
}

# Folder: captions with pseudo boxes in NAME/pseudo_boxes.jsonl, images in NAME/images, registered as NAME_pseudo.
_CAPTIONS = ("cap4m", "cc", "sbu")

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
    for folder, splits in _WORLDS.items():
        _register_world(root, folder, splits)
    for key in _SMALL_SETS:
        for split, folder in _SMALL_SPLITS.items():
            images = os.path.join(root, "small_sets", key, folder)
            json_file = os.path.join(images, "annotations_without_background.json")
            register_coco_grounding(f"small_{key}_{split}", json_file, images)
    for name, (json_file, images) in _DETECTION.items():
        register_coco_grounding(name, os.path.join(root, json_file), os.path.join(root, images))
    for name, (json_file, directories) in _GROUNDING.items():
        if isinstance(directories, str):
            image_root: str | dict[str, str] = os.path.join(root, directories)
        else:
            image_root = {source: os.path.join(root, directory) for source, directory in directories.items()}
        register_grounding_json(name, os.path.join(root, json_file), image_root)
    for folder in _CAPTIONS:
        base = os.path.join(root, folder)
        jsonl_file = os.path.join(base, "pseudo_boxes.jsonl")
        register_odvg(f"{folder}_pseudo", jsonl_file, os.path.join(base, "images"), task="pseudo_grounding")
    _register_phrases(root)
    register_odinw(os.path.join(root, "odinw"))
    _register_masks(root)
    _register_questions(root)
    _register_captions_to_write(root)


def _register_phrases(root: str) -> None:
    """Register the splits of Flickr30K Entities that are tested on, as their own files have them."""
    base = os.path.join(root, "flickr30k")
    for split in ("val", "test"):
        images = os.path.join(base, "flickr30k_images", split)
        register_flickr30k(f"flickr30k_{split}", os.path.join(base, "flickr30k"), split, images)


def _register_questions(root: str) -> None:
    """Register VQAv2: the questions and, where people's answers are public, these with and without pseudo boxes."""
    base = os.path.join(root, "vqav2")
    for name, (part, images, has_answers, ids) in _VQA.items():
        subtype = part.replace("-dev", "")
        options: dict[str, Any] = {
            "images_file": os.path.join(root, "coco", "annotations", f"{images}_{subtype}.json"),
            **ids,
        }
        if "image_ids_file" in options:
            options["image_ids_file"] = os.path.join(base, options["image_ids_file"])
        questions_file = os.path.join(base, f"v2_OpenEnded_mscoco_{part}_questions.json")
        annotations_file = os.path.join(base, f"v2_mscoco_{part}_annotations.json") if has_answers else None
        files = (questions_file, annotations_file, os.path.join(root, "coco", subtype))
        register_vqa(f"vqav2_{name}", *files, **options)
        if has_answers:
            boxes_file = os.path.join(base, f"pseudo_boxes_{part}.jsonl")
            register_vqa(f"vqav2_{name}_grounded", *files, boxes_file=boxes_file, **options)


def _register_captions_to_write(root: str) -> None:
    """Register Karpathy's splits of COCO and Flickr30K, and the captions whose phrases have boxes."""
    coco = os.path.join(root, "coco")
    images_files = [os.path.join(coco, "annotations", f"captions_{part}2014.json") for part in ("train", "val")]
    for split in ("train", "val", "test"):
        # As everybody does: the part of val2014 that Karpathy left is for training.
        splits = ("train", "restval") if split == "train" else (split,)
        json_file = os.path.join(root, "karpathy", "dataset_coco.json")
        name = f"coco_captions_karpathy_{split}"
        register_captioning(name, json_file, coco, splits=splits, images_files=images_files)
        json_file = os.path.join(root, "karpathy", "dataset_flickr30k.json")
        flickr = os.path.join(root, "flickr30k", "flickr30k_images")
        register_captioning(f"flickr30k_karpathy_{split}", json_file, os.path.join(flickr, split), splits=(split,))
        json_file = os.path.join(root, _MDETR, f"final_flickr_separateGT_{split}.json")
        name = f"flickr30k_{split}_captioning"
        register_grounding_json(name, json_file, os.path.join(flickr, split), task="captioning")
    jsonl_file = os.path.join(coco, "annotations", "pseudo_boxes_captions.jsonl")
    register_odvg("coco_captions_pseudo", jsonl_file, coco, task="captioning")


def _register_masks(root: str) -> None:
    """Register what is there for its masks, but for COCO: LVIS and referring data."""
    for name, json_file in _LVIS.items():
        # The names of LVIS v1 without its file.
        metadata = get_lvis_instances_meta(name) | {"thing_classes": [one["name"] for one in LVIS_CATEGORIES]}
        register_lvis(name, os.path.join(root, "lvis", json_file), os.path.join(root, "coco"), **metadata)
    base = os.path.join(root, "phrasecut")
    for split in _PHRASECUT:
        json_file, sizes_file = os.path.join(base, f"refer_{split}.json"), os.path.join(base, "image_data_split.json")
        register_phrasecut(f"phrasecut_{split}", json_file, sizes_file, os.path.join(base, "images"))
    for name, (folder, refs_file, splits) in _REFCOCO.items():
        base = os.path.join(root, "refcoco", folder)
        files = (os.path.join(base, refs_file), os.path.join(base, "instances.json"), f"{root}/coco/train2014")
        for split in splits:
            register_refcoco(f"{name}_{split}", *files, split)


def _register_world(root: str, folder: str, splits: tuple[str, ...]) -> None:
    """Register the splits of composed scenes as all kinds of data, and halves of ``train``.

    The halves are for training with pseudo boxes, as detection and grounding data alone.
    """
    annotations = os.path.join(root, folder, "annotations")
    images_of_json = {split: split for split in splits} | {"half": "train"}
    for name, images in images_of_json.items():
        json_file, image_root = os.path.join(annotations, f"{name}.json"), os.path.join(root, folder, images)
        register_coco_grounding(f"{folder}_{name}", json_file, image_root)
        register_grounding_json(f"{folder}_{name}_grounding", json_file, image_root)
        if name in splits:
            register_referring_json(f"{folder}_{name}_referring", json_file, image_root)
            register_vqa_json(f"{folder}_{name}_vqa", json_file, image_root)
            register_grounding_json(f"{folder}_{name}_captioning", json_file, image_root, task="captioning")
    jsonl_file = os.path.join(annotations, "pseudo.jsonl")
    register_odvg(f"{folder}_pseudo", jsonl_file, os.path.join(root, folder, "train"), task="pseudo_grounding")


register_builtin_datasets(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))
