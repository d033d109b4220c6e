"""A few images of a dataset: the image-level choice of the few-shot experiments on ODinW."""

from __future__ import annotations

import logging
import os
import random
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager

from ...errors import InputError
from .value_checks import AnnotationError, is_text, list_of, read_json_file, show


class FewShot(NamedTuple):
    """What is taken of each training dataset.

    Attributes:
        shots: Images of each category; 0: everything is taken.
        seed: Order in which the images are looked at; 0: by ascending id.
        allow_fewer: Take all images of a category that has fewer, instead of an error.
    """

    shots: int = 0
    seed: int = 0
    allow_fewer: bool = False


def few_shot_settings(cfg: CfgNode) -> FewShot:
    """Read DATASETS.FEW_SHOT.

    Raises:
        InputError: A number is negative.
    """
    settings = FewShot(cfg.DATASETS.FEW_SHOT.SHOTS, cfg.DATASETS.FEW_SHOT.SEED, cfg.DATASETS.FEW_SHOT.ALLOW_FEWER)
    for key, value in (("SHOTS", settings.shots), ("SEED", settings.seed)):
        if value < 0:
            raise InputError(f"DATASETS.FEW_SHOT.{key}: expected at least 0, found {value}")
    return settings


def take_few_shots(name: str, dataset_dicts: list[dict], few_shot: FewShot) -> list[dict]:
    """Return the images of a registered detection dataset that are taken, in their order.

    Where ``fewshot_train_shotK_seedS.json`` lies beside the json of the dataset, it says which images these are; their
    boxes and names remain those of the dataset. Otherwise ``few_shot_dicts`` chooses.

    Raises:
        InputError: A category has too few images.
        AnnotationError: The prepared file breaks COCO's format, or names an image that the dataset does not have.
    """
    if not few_shot.shots:
        return dataset_dicts
    metadata = MetadataCatalog.get(name)
    file_name = f"fewshot_train_shot{few_shot.shots}_seed{few_shot.seed}.json"
    json_file = metadata.get("json_file")
    prepared = os.path.join(os.path.dirname(json_file), file_name) if json_file else ""
    if prepared and PathManager.isfile(prepared):
        chosen = _listed_dicts(prepared, metadata.image_root, dataset_dicts)
    else:
        chosen = few_shot_dicts(name, dataset_dicts, few_shot, metadata.thing_classes)
        prepared = "the order of the seed"
    logging.getLogger(__name__).info(
        "dataset %r: took %d of %d images for %d shots of seed %d, chosen by %s",
        *(name, len(chosen), len(dataset_dicts), few_shot.shots, few_shot.seed, prepared),
    )
    return chosen


def few_shot_dicts(source: str, dataset_dicts: Sequence[dict], few_shot: FewShot, names: Sequence[str]) -> list[dict]:
    """Choose images until every category has enough of them.

    Images are looked at one by one. An image is taken if a category of its boxes is still below the quota. Then all its
    categories count one more, however many boxes they have, so a category may end up with more images than ``shots``.
    Crowd regions do not count as boxes, because they train nothing.

    Args:
        source: Origin of the images, for messages.
        dataset_dicts: Images of detection data.
        few_shot: The quota, at least 1, and the order. Where fewer are allowed, categories that have fewer are logged.
        names: P names of the categories.

    Returns:
        The images that are taken, in their order in ``dataset_dicts``.

    Raises:
        InputError: A category has fewer images than ``shots``.

    Source: the few-shot rule of the official dataset class, which knows one order alone; its prepared splits, and the
    seeds 3, 30, 300 of the paper's three runs, are other orders of the images.
    """
    shots = few_shot.shots
    order = sorted(range(len(dataset_dicts)), key=lambda index: dataset_dicts[index]["image_id"])
    if few_shot.seed:
        random.Random(few_shot.seed).shuffle(order)
    counts: Counter[int] = Counter()
    taken = []
    for index in order:
        boxes = dataset_dicts[index]["annotations"]
        categories = {box["category_id"] for box in boxes if not box.get("iscrowd", 0)}
        if any(counts[category] < shots for category in categories):
            counts.update(categories)
            taken.append(index)
    # Nothing of a category below its quota is left out, so its count is all that the data has.
    # No prompt asks for a blank name.
    short = [(name, counts[row]) for row, name in enumerate(names) if name.strip() and counts[row] < shots]
    if short and not few_shot.allow_fewer:
        (name, found), more = short[0], f"; {len(short) - 1} more categories lack images" if len(short) > 1 else ""
        raise InputError(
            f"DATASETS.FEW_SHOT.SHOTS: dataset {source!r} has {found} images of {name!r}, expected at least {shots}"
            f"{more} (DATASETS.FEW_SHOT.ALLOW_FEWER takes what there is)"
        )
    if short:
        counted = ", ".join(f"{name} {count}" for name, count in short)
        logging.getLogger(__name__).warning("dataset %r: fewer images than %d shots: %s", source, shots, counted)
    return [dataset_dicts[index] for index in sorted(taken)]


def _listed_dicts(prepared: str, image_root: str, dataset_dicts: Sequence[dict]) -> list[dict]:
    entries = list_of(read_json_file(prepared), "images", prepared)
    names = [entry.get("file_name") for entry in entries if isinstance(entry, dict)]
    paths = {os.path.join(image_root, name) for name in names if is_text(name)}
    unknown = paths - {item["file_name"] for item in dataset_dicts}
    if unknown or not paths:
        found = show(min(unknown)) if unknown else "no image"
        raise AnnotationError(f"{prepared}: expected images of the dataset that it lies beside, found {found}")
    return [item for item in dataset_dicts if item["file_name"] in paths]
