"""Annotations and detections for the tests of evaluators: by hand, and at random with many ties."""

import json
from contextlib import contextmanager

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_utils

HEIGHT, WIDTH = 104, 120


def box_mask(box, height=HEIGHT, width=WIDTH):
    """Mask of the pixels of an XYWH box with whole numbers."""
    left, top, box_width, box_height = box
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top : top + box_height, left : left + box_width] = True
    return mask


def run_lengths(mask):
    encoded = mask_utils.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}


def plain_run_lengths(mask):
    """Counts in a list: runs in column order, the first one outside."""
    pixels = mask.numpy().T.reshape(-1)
    edges = np.flatnonzero(np.diff(pixels)) + 1
    runs = np.diff(np.concatenate(([0], edges, [len(pixels)]))).tolist()
    return {"size": list(mask.shape), "counts": ([0] if pixels[0] else []) + runs}


def make_annotation(image_id, category_id, box, mask=None, **more):
    """Annotation with an XYWH box; its mask is the box or what is given."""
    mask = box_mask(box) if mask is None else mask
    values = {"image_id": image_id, "category_id": category_id, "bbox": list(box), "area": int(mask.sum())}
    return {**values, "segmentation": run_lengths(mask), **more}


def make_content(annotations, images=(1,), categories=((1, "f"),), negative=(), not_exhaustive=()):
    """Content of a file of annotations in LVIS's format.

    Args:
        annotations: They get ids from 1.
        negative: Pairs of an image and a category that is known to be absent.
        not_exhaustive: Pairs of an image and a category of which not all objects are annotated.
    """
    return {
        "images": [
            {
                "id": image_id,
                "file_name": f"{image_id}.jpg",
                "height": HEIGHT,
                "width": WIDTH,
                "neg_category_ids": [category for image, category in negative if image == image_id],
                "not_exhaustive_category_ids": [category for image, category in not_exhaustive if image == image_id],
            }
            for image_id in images
        ],
        "categories": [{"id": id_, "name": f"name {id_}", "frequency": frequency} for id_, frequency in categories],
        "annotations": [{"id": number, **item} for number, item in enumerate(annotations, 1)],
    }


def make_instances(detections, category_ids=(1,), with_masks=True):
    """Detections of an image, each (category id, score, XYWH box) and, if it is not the box, a mask."""
    instances = Instances((HEIGHT, WIDTH))
    boxes = torch.tensor([item[2] for item in detections], dtype=torch.float32).reshape(-1, 4)
    instances.pred_boxes = Boxes(torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), dim=1))
    instances.scores = torch.tensor([item[1] for item in detections], dtype=torch.float32)
    instances.pred_classes = torch.tensor([category_ids.index(item[0]) for item in detections], dtype=torch.int64)
    if with_masks:
        masks = [item[3] if len(item) > 3 else box_mask(item[2]) for item in detections]
        instances.pred_masks = torch.stack(masks) if masks else torch.zeros(0, HEIGHT, WIDTH, dtype=torch.bool)
    return instances


def process(evaluator, detections, category_ids=(1,), with_masks=True):
    """Hand detections, by image id, to an evaluator, one image after the other."""
    evaluator.reset()
    for image_id, found in detections.items():
        sample = {"image_id": image_id, "height": HEIGHT, "width": WIDTH, "file_name": f"{image_id}.jpg"}
        evaluator.process([sample], [{"instances": make_instances(found, category_ids, with_masks)}])
    return evaluator.evaluate()


@contextmanager
def dataset_of(content, json_file, name="evaluated"):
    """A dataset of a file of annotations, while it is evaluated."""
    json_file.write_text(json.dumps(content))
    ids = [category["id"] for category in content["categories"]]
    MetadataCatalog.get(name).set(
        json_file=str(json_file),
        thing_classes=[category["name"] for category in content["categories"]],
        thing_dataset_id_to_contiguous_id={id_: row for row, id_ in enumerate(ids)},
    )
    try:
        yield name
    finally:
        MetadataCatalog.remove(name)


def _random_box(draw):
    # On a grid, so that boxes are often equal; from small to large by COCO's areas.
    sides = [8, 16, 24, 40, 64, 96, 104]
    width, height = (int(side) for side in draw.choice(sides, 2))
    return [int(draw.integers(0, (WIDTH - width) // 8 + 1)) * 8, int(draw.integers(0, (HEIGHT - height) // 8 + 1)) * 8,
            width, height]  # fmt: skip


def _random_mask(draw, box):
    """A box without one of its corners, or with it."""
    mask = box_mask(box)
    left, top, width, height = box
    mask[top : top + height // 2, left : left + int(draw.integers(0, 3)) * width // 3] = False
    return mask


def _random_annotation(draw, image_id, category_id, crowds):
    box = _random_box(draw)
    left, top, width, height = box
    mask = _random_mask(draw, box)
    forms = [
        run_lengths(mask),
        plain_run_lengths(mask),
        [[left, top, left + width, top, left + width, top + height, left, top + height]],
        [
            [left, top, left + width, top, left, top + height],
            [left + 2, top + 3.5, left + width, top + 5, left, top + 7],
        ],
    ]
    annotation = make_annotation(image_id, category_id, box, mask, segmentation=forms[draw.integers(4)])
    if crowds:
        annotation["iscrowd"] = int(draw.random() < 0.2)
    return annotation


def random_case(seed, crowds=False):
    """Content of a file of annotations, and detections by image id.

    Among the images are some without annotations, without detections, and with neither. Categories may be annotated in
    part (not exhaustive), known to be absent, or neither; scores and boxes are often equal.
    """
    draw = np.random.default_rng(seed)
    image_ids = [int(value) for value in draw.permutation(40)[:4] + 1]
    categories = [(3, "f"), (5, "c"), (8, "r"), (9, "f")][: draw.integers(1, 5)]
    ids = [category_id for category_id, _ in categories]
    annotations, detections, negative, not_exhaustive = [], {}, [], []
    for image_id in image_ids:
        own = [
            _random_annotation(draw, image_id, int(draw.choice(ids)), crowds) for _ in range(draw.choice([0, 1, 3, 6]))
        ]
        annotations += own
        present = {annotation["category_id"] for annotation in own}
        negative += [(image_id, value) for value in ids if value not in present and draw.random() < 0.5]
        not_exhaustive += [(image_id, value) for value in sorted(present) if draw.random() < 0.3]
        detections[image_id] = []
        for _ in range(draw.choice([0, 2, 5, 9])):
            near = own[draw.integers(len(own))] if own and draw.random() < 0.7 else None
            box = list(near["bbox"]) if near else _random_box(draw)
            shift = int(draw.choice([0, 0, 1, 3]))
            box = [max(box[0] - shift, 0), max(box[1] - shift, 0), *box[2:]]
            category_id = near["category_id"] if near and draw.random() < 0.8 else int(draw.choice(ids))
            score = float(draw.choice([0.2, 0.4, 0.5, 0.7, 0.9]))
            detections[image_id].append((category_id, score, box, _random_mask(draw, box)))
    content = make_content(annotations, image_ids, categories, negative, not_exhaustive)
    return content, detections, tuple(ids)


def as_results(detections, task):
    """Detections in the order given, in the format for results."""
    results = []
    for image_id, found in detections.items():
        for category_id, score, box, mask in found:
            result = {"image_id": image_id, "category_id": category_id, "score": float(np.float32(score))}
            shape = {"bbox": [float(value) for value in box]} if task == "bbox" else {"segmentation": run_lengths(mask)}
            results.append({**result, **shape})
    return results


def comparable(scores):
    """Scores of which those that are NaN are equal."""
    return {name: None if np.isnan(value) else value for name, value in scores.items()}
