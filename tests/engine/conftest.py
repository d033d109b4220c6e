"""A dataset of four drawn images, and the tiny model set up to train on it."""

import itertools
import json

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from glipv2_d2 import register_coco_grounding

_NUMBERS = itertools.count()
# Colour in BGR, per name.
COLORS = {"red box": (30, 30, 220), "green box": (40, 200, 40), "blue box": (210, 60, 20)}


def draw_dataset(folder):
    """Write four images, landscape and portrait, with one to three boxes each; the last has none. Return the json."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for image_id in range(4):
        height, width = (64, 96) if image_id % 2 else (96, 64)
        image = rng.integers(90, 160, (height, width, 3), dtype=np.uint8)
        for category_id, color in enumerate(list(COLORS.values())[: 3 - image_id], 1):
            left, top = 4 + 20 * (category_id - 1), 6 + 10 * category_id
            cv2.rectangle(image, (left, top), (left + 15, top + 23), color, -1)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": [left, top, 16, 24],
                    "area": 16 * 24,
                    "iscrowd": 0,
                }
            )
        cv2.imwrite(str(folder / f"{image_id}.png"), image)
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": height, "width": width})
    categories = [{"id": number, "name": name} for number, name in enumerate(COLORS, 1)]
    json_file = folder / "annotations.json"
    json_file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return json_file


@pytest.fixture
def drawn_dataset(tmp_path):
    """The name of a registered dataset of four images."""
    folder = tmp_path / "drawn"
    folder.mkdir()
    name = f"drawn_{next(_NUMBERS)}"
    register_coco_grounding(name, draw_dataset(folder), folder)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.fixture
def train_cfg(tiny_cfg, drawn_dataset, tmp_path):
    """A run of four steps that evaluates at its end."""
    tiny_cfg.merge_from_list(
        [
            *("DATASETS.TRAIN", (drawn_dataset,), "DATASETS.TEST", (drawn_dataset,)),
            *("OUTPUT_DIR", str(tmp_path / "output"), "SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2),
            *("SOLVER.WARMUP_ITERS", 2, "SOLVER.STEPS", (3,), "TEST.EVAL_PERIOD", 0),
        ]
    )
    return tiny_cfg
