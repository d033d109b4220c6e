"""Writes a few drawn images in the folders of the official evaluation data, as datasets/README.md shows them."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin as detectron2_builtin
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from PIL import Image

from glipv2_d2.data.datasets import builtin
from glipv2_d2.data.datasets.odinw import ODINW_13, ODINW_SETS

WIDTH, HEIGHT = 64, 48
BOX = [4, 6, 30, 20]  # x, y, width, height
SENTENCES = "[/EN#1/people A man] near [/EN#2/scene a road] .\n[/EN#1/people Someone] waits .\n"
ENTITIES = (
    f"<annotation><size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    "<object><name>1</name><bndbox><xmin>5</xmin><ymin>7</ymin><xmax>34</xmax><ymax>26</ymax></bndbox></object>"
    "</annotation>"
)


def write_official_data(root: Path, num_images: int = 2) -> None:
    """Write COCO's val2017, LVIS minival, val and test of Flickr30K and ODinW-13, each of some images with a box."""
    things = [{"id": one["id"], "name": one["name"]} for one in COCO_CATEGORIES if one["isthing"]]
    coco = root / "coco"
    _write_json(coco / "annotations" / "instances_val2017.json", coco / "val2017", num_images, things)
    lvis = root / "lvis" / "lvis_v1_minival_inserted_image_name.json"
    _write_json(lvis, coco / "val2017", num_images, LVIS_CATEGORIES, is_lvis=True)
    entities = root / "flickr30k" / "flickr30k"
    for folder in ("Annotations", "Sentences"):
        (entities / folder).mkdir(parents=True)
    for first, split in ((0, "val"), (num_images, "test")):
        ids = range(first, first + num_images)
        (entities / f"{split}.txt").write_text("".join(f"{one}\n" for one in ids))
        for one in ids:
            (entities / "Annotations" / f"{one}.xml").write_text(ENTITIES)
            (entities / "Sentences" / f"{one}.txt").write_text(SENTENCES)
            _draw(root / "flickr30k" / "flickr30k_images" / split / f"{one}.jpg")
    for key in ODINW_13:
        one = ODINW_SETS[key]
        names = one.names or tuple(name for name, _, _ in one.contexts) or ("thing",)
        categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
        for split in ("val", "test"):
            json_file, images = (root / "odinw" / path for path in one.paths(split))
            _write_json(json_file, images, num_images, categories)


def _write_json(json_file: Path, folder: Path, num_images: int, names: list[dict], *, is_lvis: bool = False) -> None:
    images = [
        {"id": i + 1, "file_name": f"{i + 1:012}.jpg", "height": HEIGHT, "width": WIDTH} for i in range(num_images)
    ]
    for image in images:
        _draw(folder / image["file_name"])
        if is_lvis:
            image["coco_url"] = f"http://images.cocodataset.org/val2017/{image.pop('file_name')}"
            image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    annotations = [
        {"id": i + 1, "image_id": i + 1, "category_id": 1, "bbox": BOX, "area": 600, "iscrowd": 0}
        for i in range(num_images)
    ]
    content = {"images": images, "annotations": annotations, "categories": names}
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(json.dumps(content))


def _draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (HEIGHT, WIDTH, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def register_below(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Register all named datasets, those of detectron2 too, below a folder alone, as a new process would."""
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "data", {})
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    for module in (detectron2_builtin, builtin):
        importlib.reload(module)
