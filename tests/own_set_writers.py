"""Small writers of one set in several formats, which share no code with the readers."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image


class Photo(NamedTuple):
    """An image: its name, its size, and objects as (class, left, top, right, bottom)."""

    name: str
    width: int
    height: int
    objects: list[tuple]


def save_image(path: Path, width: int, height: int, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The content tells names apart: equal files stay together in a split.
    color = sum(path.stem.encode()) % 251
    pixels = np.full((height, width, 3), color, np.uint8)
    pixels[0, 0] = [len(path.stem) % 251, color, 7]
    Image.fromarray(pixels).save(path, **options)


def write_coco(root: Path, splits: dict[str, list[Photo]], names: list[str]) -> Path:
    """As Roboflow: a json beside the images of each split, ids from 7 in an order of its own."""
    for split, photos in splits.items():
        content = {"images": [], "annotations": [], "categories": []}
        content["categories"] = [{"id": 7 + i, "name": name} for i, name in enumerate(reversed(names))]
        for i, photo in enumerate(reversed(photos)):
            save_image(root / split / photo.name, photo.width, photo.height)
            size = {"width": photo.width, "height": photo.height}
            content["images"].append({"id": 50 + i, "file_name": photo.name, **size})
            for name, left, top, right, bottom in photo.objects:
                item = {
                    "id": len(content["annotations"]),
                    "image_id": 50 + i,
                    "bbox": [left, top, right - left, bottom - top],
                }
                content["annotations"].append({**item, "category_id": 7 + list(reversed(names)).index(name)})
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))
    return root


def write_voc(root: Path, splits: dict[str, list[Photo]], names: list[str]) -> Path:
    """Annotations, JPEGImages, ImageSets; sizes are 0 x 0."""
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split, photos in splits.items():
        stems = [photo.name.rsplit(".", 1)[0] for photo in photos]
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
        for photo, stem in zip(photos, stems):
            save_image(root / "JPEGImages" / photo.name, photo.width, photo.height)
            objects = "".join(
                f"<object><name> {name} </name><difficult>0</difficult><bndbox><xmin>{left}</xmin><ymin>{top}</ymin>"
                f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
                for name, left, top, right, bottom in photo.objects
            )
            size = "<size><width>0</width><height>0</height></size>"
            text = f"<annotation><filename>other.jpg</filename>{size}{objects}</annotation>"
            (root / "Annotations" / f"{stem}.xml").write_text(text)
    return root


def write_yolo(root: Path, splits: dict[str, list[Photo]], names: list[str]) -> Path:
    """images/SPLIT, labels/SPLIT, data.yaml with a list of names, centers and sides with six digits."""
    for split, photos in splits.items():
        (root / "labels" / split).mkdir(parents=True)
        for photo in photos:
            save_image(root / "images" / split / photo.name, photo.width, photo.height)
            lines = []
            for name, left, top, right, bottom in photo.objects:
                center = (left + right) / 2 / photo.width, (top + bottom) / 2 / photo.height
                sides = (right - left) / photo.width, (bottom - top) / photo.height
                lines.append(" ".join([str(names.index(name)), *(f"{value:.6f}" for value in (*center, *sides))]))
            if lines:
                stem = photo.name.rsplit(".", 1)[0]
                (root / "labels" / split / f"{stem}.txt").write_text("\n".join(lines) + "\n")
    paths = "".join(f"{split}: images/{split}\n" for split in splits)
    (root / "data.yaml").write_text(f"path: .\n{paths}nc: {len(names)}\nnames: {json.dumps(names)}\n")
    return root


def write_labelme(root: Path, splits: dict[str, list[Photo]], names: list[str]) -> Path:
    """A json beside each image, with rectangles whose second point is the first corner."""
    for split, photos in splits.items():
        for photo in photos:
            path = root / split / photo.name
            save_image(path, photo.width, photo.height)
            shapes = [
                {"label": name, "shape_type": "rectangle", "points": [[right, bottom], [left, top]], "group_id": None}
                for name, left, top, right, bottom in photo.objects
            ]
            content = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": photo.name, "imageData": None}
            size = {"imageHeight": photo.height, "imageWidth": photo.width}
            path.with_suffix(".json").write_text(json.dumps({**content, **size}))
    return root
