"""Loading of registered datasets: their dicts, checked, and those that training cannot use left out."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog, print_instances_class_histogram
from detectron2.data.build import filter_images_with_only_crowd_annotations

from ..errors import InputError
from .dataset_mappers.base import BOX_TASKS, boxes_to_train_on
from .dataset_mappers.build import dataset_task
from .datasets.annotation_checks import check_dataset_dicts
from .datasets.few_shot import FewShot, take_few_shots
from .datasets.mask_checks import keep_usable_masks, leave_out_masks
from .datasets.registration import check_dataset_files

# What a dataset dict is trained with, where it is not its boxes.
_TARGETS = {"vqa": "answers", "captioning": "captions"}


def load_training_dicts(
    names: Sequence[str],
    filter_empty: bool,
    min_score: float = 0.0,
    with_masks: bool = False,
    few_shot: FewShot = FewShot(),
) -> list[dict]:
    """Load datasets one after the other; each dict says under ``dataset_name`` where it comes from.

    Args:
        names: Registered datasets, at least one.
        filter_empty: Leave out images without a box that is no crowd region; but for questions and for captions to
            write, which are learnt without boxes too.
        min_score: Leave out images of pseudo-box data none of whose boxes has a score from here on.
        with_masks: As of ``load_dataset``.
        few_shot: How many images of each dataset are taken.

    Raises:
        InputError: A dataset is not registered, annotations break their format, no image of a dataset is left, or few
            images are asked for of what is no detection data or has not that many.
        FileNotFoundError: Annotations or images of a dataset are not there.
    """
    if not names:
        raise InputError("DATASETS.TRAIN is empty, expected at least one dataset")
    loaded: list[dict] = []
    for name in names:
        dataset_dicts = load_dataset(name, with_masks)
        task = dataset_task(name)
        field = _TARGETS.get(task, "annotations")
        if not all(field in item or (task == "captioning" and "caption" in item) for item in dataset_dicts):
            raise InputError(f"dataset {name!r} has images without {field!r}, expected a dataset to train on")
        if few_shot.shots and task != "detection":
            raise InputError(
                f"DATASETS.FEW_SHOT.SHOTS is {few_shot.shots} and {name!r} is {task} data, expected detection data"
            )
        dataset_dicts = take_few_shots(name, dataset_dicts, few_shot)
        if filter_empty and task in BOX_TASKS:
            dataset_dicts = filter_images_with_only_crowd_annotations(dataset_dicts)
        if task == "pseudo_grounding":
            dataset_dicts = _with_sufficient_scores(name, dataset_dicts, min_score)
        if task == "detection":
            print_instances_class_histogram(dataset_dicts, MetadataCatalog.get(name).thing_classes)
        if not dataset_dicts:
            raise InputError(f"dataset {name!r} of DATASETS.TRAIN: found no image with boxes, expected at least one")
        loaded.extend({**item, "dataset_name": name} for item in dataset_dicts)
    return loaded


def load_dataset(name: str, with_masks: bool = False) -> list[dict]:
    """Load a dataset by its name and check it, whichever reader it was registered with.

    Args:
        name: A registered dataset.
        with_masks: Keep the masks of boxes that can be used; what cannot is counted in a warning. Otherwise, and with
            questions and captions to write, no annotation has a ``segmentation``.

    Raises:
        InputError: It is not registered, is empty, a detection dataset has no ``thing_classes``, or annotations break
            their format.
        FileNotFoundError: Annotations or images are not there.
    """
    check_is_registered(name)
    check_dataset_files(name)
    task = dataset_task(name)
    dataset_dicts = DatasetCatalog.get(name)
    names = MetadataCatalog.get(name).get("thing_classes")
    if not dataset_dicts or (task == "detection" and not names):
        found = f"{len(dataset_dicts)} images and thing_classes {names}"
        raise InputError(f"dataset {name!r}: found {found}, expected at least one of both")
    check_dataset_dicts(name, dataset_dicts, len(names or ()), task=task)
    if with_masks and task in BOX_TASKS:
        return keep_usable_masks(name, dataset_dicts)
    return leave_out_masks(dataset_dicts)


def check_is_registered(name: str) -> None:
    """Check that a dataset has a reader.

    Raises:
        InputError: It has none; the message names similar ones.
    """
    if name not in DatasetCatalog:
        similar = difflib.get_close_matches(name, DatasetCatalog.keys()) or ["a name given to register_coco_grounding"]
        raise InputError(f"dataset {name!r} is not registered, expected for example {', '.join(similar)}")


def _with_sufficient_scores(name: str, dataset_dicts: list[dict], min_score: float) -> list[dict]:
    kept = [item for item in dataset_dicts if boxes_to_train_on(item, min_score)]
    if len(kept) < len(dataset_dicts):
        logging.getLogger(__name__).info(
            "dataset %r: left out %d of %d images: no box with a score of at least %s (INPUT.PROMPT.MIN_PSEUDO_SCORE)",
            name,
            len(dataset_dicts) - len(kept),
            len(dataset_dicts),
            min_score,
        )
    return kept
