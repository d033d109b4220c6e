"""Draws the four images that trainings in tests learn from."""

import json
from pathlib import Path

import cv2
import numpy as np

from glipv2_d2 import register_coco_grounding

# Colour in BGR, per name.
COLORS = {"red box": (30, 30, 220), "green box": (40, 200, 40), "blue box": (210, 60, 20)}


def draw_dataset(folder: Path, sizes: tuple[tuple[int, int], ...] = ((96, 64), (64, 96))) -> Path:
    """Write four images with three, two, one and no box; return the path of their json.

    Args:
        sizes: Heights and widths that the images take in turn.
    """
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for image_id in range(4):
        height, width = sizes[image_id % len(sizes)]
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


def register_drawn(folder: Path, **options) -> str:
    """Draw the images into a new folder; return the name of the dataset."""
    folder.mkdir(parents=True)
    name = f"drawn_{folder.parent.name}"
    register_coco_grounding(name, draw_dataset(folder, **options), folder)
    return name
