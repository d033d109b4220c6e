import importlib
import os
import re
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from glipv2_d2.data.datasets import builtin

README = Path(__file__).parents[2] / "datasets" / "README.md"

# Name: kind of data, annotations and image directory below the root.
WORLDS = {
    f"{world}_{split}{ending}": (task, f"{world}/annotations/{split}.json", f"{world}/{images}")
    for world in ("stampworld", "shapeworld")
    for split, images in {**{one: one for one in ("train", "val", "val_24", "val_novel")}, "half": "train"}.items()
    for ending, task in (("", "detection"), ("_grounding", "grounding"))
}
PSEUDO = {
    f"{world}_pseudo": ("caption", f"{world}/annotations/pseudo.jsonl", f"{world}/train")
    for world in ("stampworld", "shapeworld")
} | {f"{name}_pseudo": ("caption", f"{name}/pseudo_boxes.jsonl", f"{name}/images") for name in ("cap4m", "cc", "sbu")}
MDETR = "mdetr_annotations/final_"
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
EXPECTED = WORLDS | PSEUDO | OTHERS


@pytest.fixture
def registered_in(monkeypatch):
    """A function that registers the named datasets anew below a root, until the end of the test."""

    def register(root) -> None:
        for catalog in (DatasetCatalog, MetadataCatalog):
            kept = {name: entry for name, entry in catalog.data.items() if name not in EXPECTED}
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
    assert metadata.get("evaluator_type") == ("coco" if task == "detection" else None)
    assert metadata.get("thing_classes") is None
    with pytest.raises(FileNotFoundError, match="DETECTRON2_DATASETS"):
        DatasetCatalog.get(name)


def test_names_are_registered_at_import():
    assert set(EXPECTED) <= set(DatasetCatalog.list())


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
    names = {name for line in listed for name in re.findall(r"`([a-z0-9_]+)`", line)}
    names = {name for name in names if not name.startswith("coco_")}
    assert names == set(EXPECTED)
