import importlib
import json
import os
import re
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

from glipv2_d2.data.datasets import builtin
from glipv2_d2.data.datasets.odinw import ODINW_SETS
from glipv2_d2.data.datasets.value_checks import AnnotationError
from glipv2_d2.data.loading import load_dataset
from glipv2_d2.prompts.builder import check_vocabulary, prompt_from_names

README = Path(__file__).parents[2] / "datasets" / "README.md"

# Name: kind of data, annotations and image directory below the root.
WORLDS = {
    f"{world}_{split}{ending}": (task, f"{world}/annotations/{split}.json", f"{world}/{images}")
    for world in ("stampworld", "shapeworld")
    for split, images in {**{one: one for one in ("train", "val", "val_24", "val_novel")}, "half": "train"}.items()
    for ending, task in (("", "detection"), ("_grounding", "grounding"))
}
PSEUDO = {
    f"{world}_pseudo": ("pseudo_grounding", f"{world}/annotations/pseudo.jsonl", f"{world}/train")
    for world in ("stampworld", "shapeworld")
} | {
    f"{name}_pseudo": ("pseudo_grounding", f"{name}/pseudo_boxes.jsonl", f"{name}/images")
    for name in ("cap4m", "cc", "sbu")
}
MDETR = "mdetr_annotations/final_"
# Laid out as ODinW's: images and annotations of a split in one folder.
SMALL = {
    f"small_{key}_{split}": (
        "detection",
        f"small_sets/{key}/{folder}/annotations_without_background.json",
        f"small_sets/{key}/{folder}",
    )
    for key in ("a", "b", "c", "all")
    for split, folder in (("train", "train"), ("val", "valid"), ("test", "test"))
}
OTHERS = {
    "objects365_v1_train": ("detection", "objects365_v1/annotations/objects365_train.json", "objects365_v1/train"),
    "objects365_v1_val": ("detection", "objects365_v1/annotations/objects365_val.json", "objects365_v1/val"),
    "objects365_v2_train": ("detection", "objects365_v2/annotations/zhiyuan_objv2_train.json", "objects365_v2/train"),
    "objects365_v2_val": ("detection", "objects365_v2/annotations/zhiyuan_objv2_val.json", "objects365_v2/val"),
    "openimages_train": ("detection", "openimages/annotations/train.json", "openimages/train"),
    "openimages_val": ("detection", "openimages/annotations/val.json", "openimages/val"),
    "vg_train": ("detection", "visual_genome/annotations/train.json", "visual_genome/images"),
    "imagenet_boxes_train": ("detection", "imagenet_boxes/annotations/train.json", "imagenet_boxes/train"),
    "flickr30k_train": ("grounding", MDETR + "flickr_separateGT_train.json", "flickr30k/flickr30k_images/train"),
    "mixed_train": ("grounding", MDETR + "mixed_train.json", {"coco": "coco/train2014", "": "gqa/images"}),
    "mixed_train_no_coco": ("grounding", MDETR + "mixed_train_no_coco.json", {"": "gqa/images"}),
}
REFERRING = {
    f"{world}_{split}_referring": ("grounding", f"{world}/annotations/{split}.json", f"{world}/{split}")
    for world in ("stampworld", "shapeworld")
    for split in ("train", "val", "val_24", "val_novel")
} | {
    f"phrasecut_{split}": ("grounding", f"phrasecut/refer_{split}.json", "phrasecut/images")
    for split in ("train", "miniv", "val", "test")
}
# Name: the split in the annotations.
REFCOCO = {
    **{f"{name}_{split}": split for name in ("refcoco", "refcoco+") for split in ("train", "val", "testA", "testB")},
    **{f"refcocog_{split}": split for split in ("train", "val", "test")},
    **{f"refcocog_google_{split}": split for split in ("train", "val")},
}
REFCOCO_FILES = {
    "refcoco": ("refcoco/refcoco/refs_unc.json", "refcoco/refcoco/instances.json"),
    "refcoco+": ("refcoco/refcoco+/refs_unc.json", "refcoco/refcoco+/instances.json"),
    "refcocog": ("refcoco/refcocog/refs_umd.json", "refcoco/refcocog/instances.json"),
    "refcocog_google": ("refcoco/refcocog/refs_google.json", "refcoco/refcocog/instances.json"),
}
EXPECTED = WORLDS | PSEUDO | SMALL | OTHERS | REFERRING
LVIS = {
    "lvis_v1_train_grounding": "lvis_v1_train.json",
    "lvis_v1_val_grounding": "lvis_v1_val.json",
    "lvis_v1_minival": "lvis_v1_minival_inserted_image_name.json",
}
# Name: part of VQAv2, COCO's file of its images, folder of images, and whether the images of dev2k are left out.
VQA = {
    "vqav2_train": ("train2014", "captions_train2014", "train2014", None),
    "vqav2_val": ("val2014", "captions_val2014", "val2014", None),
    "vqav2_restval": ("val2014", "captions_val2014", "val2014", True),
    "vqav2_dev2k": ("val2014", "captions_val2014", "val2014", False),
    "vqav2_testdev": ("test-dev2015", "image_info_test2015", "test2015", None),
    "vqav2_test": ("test2015", "image_info_test2015", "test2015", None),
}
GROUNDED_VQA = {f"{name}_grounded": entry for name, entry in VQA.items() if "test" not in name}
WORLD_TEXTS = {
    f"{world}_{split}_{task}": (task, f"{world}/annotations/{split}.json", f"{world}/{split}")
    for world in ("stampworld", "shapeworld")
    for split in ("train", "val", "val_24", "val_novel")
    for task in ("vqa", "captioning")
}
# Name: json, image directory, splits.
KARPATHY = {
    f"{data}_karpathy_{split}": (f"karpathy/dataset_{json_name}.json", folder.format(split), splits)
    for data, json_name, folder in (
        ("coco_captions", "coco", "coco"),
        ("flickr30k", "flickr30k", "flickr30k/flickr30k_images/{}"),
    )
    for split, splits in (("train", ("train",)), ("val", ("val",)), ("test", ("test",)))
}
KARPATHY["coco_captions_karpathy_train"] = (*KARPATHY["coco_captions_karpathy_train"][:2], ("train", "restval"))
GROUNDED_CAPTIONS = {
    f"flickr30k_{split}_captioning": (f"{MDETR}flickr_separateGT_{split}.json", f"flickr30k/flickr30k_images/{split}")
    for split in ("train", "val", "test")
} | {"coco_captions_pseudo": ("coco/annotations/pseudo_boxes_captions.jsonl", "coco")}
TEXTS = {*VQA, *GROUNDED_VQA, *WORLD_TEXTS, *KARPATHY, *GROUNDED_CAPTIONS}
FLICKR = {"flickr30k_val": "val", "flickr30k_test": "test"}
ODINW = {f"odinw_{key}_{split}": key for key in ODINW_SETS for split in ("train", "val", "test")}
NAMES = {*EXPECTED, *REFCOCO, *LVIS, *TEXTS, *FLICKR, *ODINW}


@pytest.fixture
def registered_in(monkeypatch):
    """A function that registers the named datasets anew below a root, until the end of the test."""

    def register(root) -> None:
        for catalog in (DatasetCatalog, MetadataCatalog):
            kept = {name: entry for name, entry in catalog.data.items() if name not in NAMES}
            monkeypatch.setattr(catalog, "data", kept)
        monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
        importlib.reload(builtin)

    return register


@pytest.mark.parametrize("name", EXPECTED)
def test_every_name_leads_to_its_files_below_the_root(registered_in, tmp_path, name):
    registered_in(tmp_path)
    task, annotations, images = EXPECTED[name]
    metadata = MetadataCatalog.get(name)
    assert metadata.task == task
    assert metadata.get("json_file", metadata.get("jsonl_file")) == str(tmp_path / annotations)
    if isinstance(images, dict):
        assert metadata.image_root == {source: str(tmp_path / folder) for source, folder in images.items()}
    else:
        assert metadata.image_root == str(tmp_path / images)
    expected = "phrasecut" if name in REFERRING else "coco" if task == "detection" else None
    assert metadata.get("evaluator_type") == expected
    assert metadata.get("thing_classes") is None
    with pytest.raises(FileNotFoundError, match="DETECTRON2_DATASETS"):
        DatasetCatalog.get(name)


def test_names_are_registered_at_import():
    assert set(DatasetCatalog.list()) >= NAMES


def test_phrasecut_finds_the_sizes_of_its_images(registered_in, tmp_path):
    registered_in(tmp_path)
    for split in ("train", "miniv", "val", "test"):
        sizes_file = str(tmp_path / "phrasecut" / "image_data_split.json")
        assert MetadataCatalog.get(f"phrasecut_{split}").sizes_file == sizes_file


@pytest.mark.parametrize("name", REFCOCO)
def test_expressions_of_coco_have_two_files_a_split_and_images_of_2014(registered_in, tmp_path, name):
    registered_in(tmp_path)
    metadata = MetadataCatalog.get(name)
    json_file, instances_file = REFCOCO_FILES[name.rsplit("_", 1)[0]]
    assert (metadata.task, metadata.evaluator_type, metadata.split) == ("grounding", "refcoco", REFCOCO[name])
    assert metadata.json_file == str(tmp_path / json_file)
    assert metadata.instances_file == str(tmp_path / instances_file)
    assert metadata.image_root == str(tmp_path / "coco/train2014")
    with pytest.raises(FileNotFoundError, match="DETECTRON2_DATASETS"):
        DatasetCatalog.get(name)


@pytest.mark.parametrize("name", [*VQA, *GROUNDED_VQA])
def test_vqav2_has_its_files_and_those_of_coco(registered_in, tmp_path, name):
    registered_in(tmp_path)
    part, images_file, images, leave_out = (VQA | GROUNDED_VQA)[name]
    metadata = MetadataCatalog.get(name)
    assert (metadata.task, metadata.evaluator_type) == ("vqa", "vqa")
    assert metadata.questions_file == str(tmp_path / f"vqav2/v2_OpenEnded_mscoco_{part}_questions.json")
    annotations_file = None if "test" in part else str(tmp_path / f"vqav2/v2_mscoco_{part}_annotations.json")
    assert metadata.annotations_file == annotations_file
    assert metadata.images_file == str(tmp_path / f"coco/annotations/{images_file}.json")
    assert metadata.image_root == str(tmp_path / "coco" / images)
    image_ids_file = None if leave_out is None else str(tmp_path / "vqav2/dev2k_images.json")
    assert metadata.image_ids_file == image_ids_file and metadata.leave_out_ids is bool(leave_out)
    boxes_file = str(tmp_path / f"vqav2/pseudo_boxes_{part}.jsonl") if name in GROUNDED_VQA else None
    assert metadata.boxes_file == boxes_file
    with pytest.raises(FileNotFoundError, match="DETECTRON2_DATASETS"):
        DatasetCatalog.get(name)


@pytest.mark.parametrize("name", [*WORLD_TEXTS, *KARPATHY, *GROUNDED_CAPTIONS])
def test_questions_and_captions_to_write_lead_to_their_files(registered_in, tmp_path, name):
    registered_in(tmp_path)
    metadata = MetadataCatalog.get(name)
    if name in WORLD_TEXTS:
        task, annotations, images = WORLD_TEXTS[name]
        expected = task if task == "vqa" else "grounded_captioning"
    elif name in KARPATHY:
        annotations, images, splits = KARPATHY[name]
        task = expected = "captioning"
        assert metadata.splits == splits
        sizes = [f"coco/annotations/captions_{part}2014.json" for part in ("train", "val")] if "coco" in name else []
        assert metadata.images_files == tuple(str(tmp_path / path) for path in sizes)
    else:
        (annotations, images), task, expected = GROUNDED_CAPTIONS[name], "captioning", "grounded_captioning"
    assert (metadata.task, metadata.evaluator_type) == (task, expected)
    assert metadata.get("json_file", metadata.get("jsonl_file")) == str(tmp_path / annotations)
    assert metadata.image_root == str(tmp_path / images)
    with pytest.raises(FileNotFoundError, match="DETECTRON2_DATASETS"):
        DatasetCatalog.get(name)


@pytest.mark.parametrize("name", FLICKR)
def test_phrases_of_flickr30k_have_the_files_of_the_release(registered_in, tmp_path, name):
    registered_in(tmp_path)
    metadata = MetadataCatalog.get(name)
    assert (metadata.task, metadata.evaluator_type) == ("grounding", "flickr30k")
    assert metadata.entities_root == str(tmp_path / "flickr30k/flickr30k")
    assert metadata.image_ids_file == str(tmp_path / f"flickr30k/flickr30k/{FLICKR[name]}.txt")
    assert metadata.image_root == str(tmp_path / f"flickr30k/flickr30k_images/{FLICKR[name]}")
    with pytest.raises(FileNotFoundError, match="DETECTRON2_DATASETS"):
        DatasetCatalog.get(name)


def test_all_sets_of_odinw_lie_in_one_folder(registered_in, tmp_path):
    registered_in(tmp_path)
    for name, key in ODINW.items():
        assert MetadataCatalog.get(name).json_file.startswith(f"{tmp_path / 'odinw' / ODINW_SETS[key].folder}/")


LVIS_IMAGES = [
    {
        "id": 5,
        "coco_url": "http://images.cocodataset.org/val2017/000000000005.jpg",
        "height": 48,
        "width": 64,
        "not_exhaustive_category_ids": [3],
        "neg_category_ids": [7],
    }
]
LVIS_BOX = {"id": 1, "image_id": 5, "category_id": 1203, "bbox": [4, 6, 20, 10], "area": 100}


def write_lvis(root, name, boxes, categories=LVIS_CATEGORIES) -> None:
    for folder in ("coco", "lvis"):
        (root / folder).mkdir()
    content = {"images": LVIS_IMAGES, "annotations": boxes, "categories": categories}
    (root / "lvis" / LVIS[name]).write_text(json.dumps(content))


@pytest.mark.parametrize("name", LVIS)
def test_lvis_passes_through_the_loading_of_datasets(registered_in, images_exist, tmp_path, name):
    registered_in(tmp_path)
    write_lvis(tmp_path, name, [{**LVIS_BOX, "segmentation": [[4, 6, 24, 6, 24, 16]]}])
    metadata = MetadataCatalog.get(name)
    # The names and how many images have them are there before the file is read.
    assert metadata.thing_classes == [category["name"] for category in LVIS_CATEGORIES]
    # The one name that detectron2 replaces.
    assert metadata.thing_classes[161] == "bull" and "horned_cow" not in metadata.thing_classes
    assert [entry["id"] for entry in metadata.class_image_count] == list(range(1, 1204))
    (record,) = load_dataset(name, with_masks=True)
    assert record["file_name"] == str(tmp_path / "coco" / "val2017" / "000000000005.jpg")
    assert (record["not_exhaustive_category_ids"], record["neg_category_ids"]) == ([3], [7])
    (annotation,) = record["annotations"]
    assert annotation["category_id"] == 1202 and annotation["segmentation"] == [[4, 6, 24, 6, 24, 16]]
    assert record["never_negative_ids"] == [2]
    assert metadata.evaluator_type == "lvis" and len(metadata.thing_classes) == 1203


def test_other_categories_than_those_of_lvis_v1_are_refused(registered_in, tmp_path):
    registered_in(tmp_path)
    write_lvis(tmp_path, "lvis_v1_minival", [LVIS_BOX], LVIS_CATEGORIES[1:])
    with pytest.raises(AnnotationError, match="expected the 1203 thing_classes in the metadata of 'lvis_v1_minival'"):
        load_dataset("lvis_v1_minival")


@pytest.mark.parametrize("name", LVIS)
def test_a_missing_lvis_file_is_named_with_the_way_out(registered_in, tmp_path, name):
    registered_in(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{LVIS[name]} .*DETECTRON2_DATASETS"):
        load_dataset(name)


def test_the_names_of_detectron2_stay_its_own():
    assert {"lvis_v1_train", "lvis_v1_val"} <= set(DatasetCatalog.list())
    assert MetadataCatalog.get("lvis_v1_train").get("task") is None


def test_every_name_of_lvis_finds_its_place_in_a_prompt():
    names = MetadataCatalog.get("lvis_v1_minival").thing_classes
    detectron2s = MetadataCatalog.get("lvis_v1_val").thing_classes
    assert [pair for pair in zip(names, detectron2s, strict=True) if pair[0] != pair[1]] == [("bull", "horned_cow")]
    check_vocabulary(names)
    prompt = prompt_from_names(names)
    texts = [prompt.caption[begin:end] for ((begin, end),) in prompt.phrase_spans]
    assert len(texts) == 1203 and all(text.strip() for text in texts)
    assert not any(character in text for text in texts for character in "_()")
    # Names that differ in their parentheses alone read the same, and keep a row each.
    assert [row for row, name in enumerate(names) if name.startswith("bow_(")] == [
        row for row, text in enumerate(texts) if text.strip() == "bow"
    ]
    assert len(set(texts)) < len(texts)


def test_a_home_folder_is_found(registered_in, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    registered_in(os.path.join("~", "data"))
    assert MetadataCatalog.get("vg_train").json_file.startswith(str(tmp_path / "data"))


def test_boxes_of_public_detection_data_may_reach_past_their_images(registered_in, tmp_path):
    registered_in(tmp_path)
    folder = tmp_path / "visual_genome"
    for part in ("images", "annotations"):
        (folder / part).mkdir(parents=True)
    image = '{"id": 1, "file_name": "1.jpg", "width": 64, "height": 48}'
    box = '{"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 6, 90, 9], "iscrowd": 0, "area": 810}'
    content = f'{{"images": [{image}], "annotations": [{box}], "categories": [{{"id": 1, "name": "cat"}}]}}'
    (folder / "annotations" / "train.json").write_text(content)
    assert DatasetCatalog.get("vg_train")[0]["annotations"][0]["bbox"] == [4, 6, 64, 15]


def test_the_readme_names_every_dataset_and_no_other():
    text = README.read_text(encoding="utf-8")
    listed = set(re.findall(r"^Names?: (.+(?:\n.+)*)", text, re.MULTILINE))
    names = {name for line in listed for name in re.findall(r"`([A-Za-z0-9_+]+)`", line)}
    # One line for three splits of each set, whose names follow.
    patterns = {name for name in names if name.startswith("odinw_SET_")}
    (sets,) = re.findall(r"`SET` is one of (.+(?:\n.+)*)", text)
    names -= patterns
    names |= {pattern.replace("SET", key) for pattern in patterns for key in re.findall(r"`(\w+)`", sets)}
    by_detectron2 = {name for name in names - NAMES if name.startswith("coco_")}
    assert names - by_detectron2 == NAMES
