"""Small datasets on disk: drawn images and a json in COCO's format, registered for the length of a test."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from PIL import Image

from glipv2_d2 import add_glipv2_config
from glipv2_d2.data import register_coco_grounding

NAMES = ("red dog", "cat", "fish")


def coco_content(sizes: list[tuple[int, int]], boxes: list[list[list]], names: tuple[str, ...] = NAMES) -> dict:
    """A json of images of (width, height), with boxes [row of the name, x, y, width, height] for each.

    Category ids are 10, 20, ...; image ids start at 100, annotation ids at 1000.
    """
    images = [
        {"id": 100 + i, "file_name": f"{100 + i}.png", "width": width, "height": height}
        for i, (width, height) in enumerate(sizes)
    ]
    annotations = [
        {"image_id": 100 + i, "category_id": 10 * (row + 1), "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, boxes_of_image in enumerate(boxes)
        for row, *box in boxes_of_image
    ]
    categories = [{"id": 10 * (row + 1), "name": name} for row, name in enumerate(names)]
    annotations = [{"id": 1000 + i, **annotation} for i, annotation in enumerate(annotations)]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., str]:
    """A function that writes a dataset, registers it under a new name and returns the name."""
    numbers = itertools.count()

    def make(
        sizes: list[tuple[int, int]], boxes: list[list[list]], names: tuple[str, ...] = NAMES, edit=None, **kwargs
    ) -> str:
        name = f"{tmp_path.name}_{next(numbers)}"
        folder = tmp_path / name
        folder.mkdir()
        content = coco_content(sizes, boxes, names)
        for image in content["images"]:
            pixels = np.random.default_rng(image["id"]).integers(0, 256, (image["height"], image["width"], 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / image["file_name"])
        if edit:
            edit(content)
        (folder / "boxes.json").write_text(json.dumps(content))
        register_coco_grounding(name, folder / "boxes.json", folder, **kwargs)
        return name

    return make


@pytest.fixture
def mixed_dataset(make_dataset: Callable[..., str]) -> str:
    """Nine images, three of them upright, with zero, one and two boxes in turn."""
    sizes = [(48, 64) if i % 3 == 1 else (64, 48) for i in range(9)]
    boxes = [[[i % 3, 4, 6, 20, 10]] * (i % 3 > 0) + [[(i + 1) % 3, 30, 20, 8, 16]] * (i % 3 > 1) for i in range(9)]
    return make_dataset(sizes, boxes)


@pytest.fixture
def data_cfg(tmp_path: Path) -> CfgNode:
    """Two images a batch, a short side of 48 to 96 pixels, seed 3, images without boxes included."""
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    cfg.merge_from_list(
        [
            *("SEED", 3, "DATALOADER.NUM_WORKERS", 0, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False),
            *("SOLVER.IMS_PER_BATCH", 2, "INPUT.MIN_SIZE_TRAIN", (48, 64, 96), "INPUT.MIN_SIZE_TEST", 96),
        ]
    )
    return cfg


@pytest.fixture
def new_name(tmp_path: Path) -> str:
    """A name for a dataset."""
    return f"{tmp_path.name}_registered"


@pytest.fixture
def images_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image file is taken to be there: for tests that load datasets and look at no image."""
    for module in ("registration", "coco"):
        monkeypatch.setattr(f"glipv2_d2.data.datasets.{module}.missing_files", lambda paths: set())
