"""Registered datasets as checked dataset dicts, read once: for a test, and for training less what it cannot use."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, print_instances_class_histogram
from detectron2.data.build import filter_images_with_only_crowd_annotations

from ..errors import InputError
from ..likeness import likeliest
from .dataset_mappers.base import boxes_to_train_on
from .dataset_mappers.build import mapper_of
from .dataset_mappers.vqa import VQADatasetMapper
from .datasets.coco import Truth, keeping_truth, truth_of_dicts, truth_of_images
from .datasets.dict_checks import check_dataset_dicts, check_image_ids
from .datasets.few_shot import FewShot, take_few_shots
from .datasets.mask_checks import keep_usable_masks, leave_out_masks
from .datasets.registration import check_dataset_files, is_read_here, with_existing_images
from .datasets.skip_report import DataReport


class LoadedDataset(NamedTuple):
    """A dataset as it was read for a test; its loader and its evaluator get the same dicts.

    Attributes:
        name: Name in the catalog.
        dicts: Dataset dicts, checked; with masks if the model has them and the dataset is of sentences, and of
            detection data that come from no file in COCO's format.
        truth: What AP compares with, of the same images; None if they are no detection data, or come from a file in
            COCO's or LVIS's format that another reader than ``load_coco_grounding`` or ``load_lvis`` has read.
    """

    name: str
    dicts: list[dict]
    truth: Truth | None = None


def load_test_dataset(cfg: CfgNode, name: str) -> LoadedDataset:
    """Read a dataset that is tested on; see ``load_dataset`` and, but for questions, ``check_image_ids`` for errors."""
    mapper = mapper_of(name)
    is_detection = mapper.has_category_names
    is_converted = is_detection and MetadataCatalog.get(name).get("json_file") is None
    # Evaluators of AP check the masks of a file in COCO's format, which are part of the truth.
    with DataReport.from_config(cfg), keeping_truth() as truth:
        dicts = load_dataset(name, is_converted or (cfg.MODEL.MASK_ON and not is_detection))
    if is_converted and is_read_here(name):
        dicts = _each_once(name, dicts)
    if mapper is not VQADatasetMapper:
        check_image_ids(name, dicts, one_each=is_converted)
    if is_converted:
        return LoadedDataset(name, dicts, truth_of_dicts(name, dicts))
    if not truth or not is_read_here(name):
        return LoadedDataset(name, dicts)
    return LoadedDataset(name, dicts, truth_of_images(truth, {record["image_id"] for record in dicts}))


def _each_once(name: str, dicts: list[dict]) -> list[dict]:
    """Leave out repeats, by which the line list of a TSV set lets training see an image more often."""
    kept = list({record["image_id"]: record for record in dicts}.values())
    if len(kept) < len(dicts):
        logging.getLogger(__name__).info(
            "dataset %r: left out %d of %d images: repeats of others, each image is tested once",
            *(name, len(dicts) - len(kept), len(dicts)),
        )
    return kept


def training_names(cfg: CfgNode) -> Sequence[str]:
    """Return DATASETS.TRAIN.

    Raises:
        InputError: It is empty.
    """
    if not cfg.DATASETS.TRAIN:
        raise InputError("DATASETS.TRAIN: expected at least one dataset, found none")
    return cfg.DATASETS.TRAIN


def load_training_dicts(
    name: str,
    filter_empty: bool,
    min_score: float = 0.0,
    with_masks: bool = False,
    few_shot: FewShot | None = None,
) -> list[dict]:
    """Load a dataset to train on; each dict says under ``dataset_name`` where it comes from.

    Args:
        name: A registered dataset.
        filter_empty: Leave out images that have only crowd regions or no boxes, where boxes are all that is learned.
        min_score: Leave out images with pseudo boxes none of which has a score from here on.
        with_masks: See ``load_dataset``.
        few_shot: How many images are taken; by default all.

    Raises:
        InputError: It is not registered, its annotations break their format, no image is left, or few images are asked
            for of a dataset that is not detection data or does not have that many.
        FileNotFoundError: Annotations or images are not there.
    """
    dataset_dicts = load_dataset(name, with_masks)
    mapper = mapper_of(name)
    if not all(any(field in item for field in mapper.targets) for item in dataset_dicts):
        raise InputError(
            f"dataset {name!r}: expected a dataset to train on, found images without {mapper.targets[0]!r}"
        )
    if few_shot is not None and few_shot.shots:
        if not mapper.has_category_names:
            raise InputError(
                f"DATASETS.FEW_SHOT.SHOTS: expected 0 or detection data, found {few_shot.shots} and {name!r}, "
                f"{mapper.task} data"
            )
        dataset_dicts = take_few_shots(name, dataset_dicts, few_shot)
    if filter_empty and mapper.learns_boxes_alone:
        dataset_dicts = filter_images_with_only_crowd_annotations(dataset_dicts)
    if mapper.has_pseudo_boxes:
        dataset_dicts = _with_sufficient_scores(name, dataset_dicts, min_score)
    if mapper.has_category_names:
        print_instances_class_histogram(dataset_dicts, MetadataCatalog.get(name).thing_classes)
    if not dataset_dicts:
        raise InputError(f"dataset {name!r} of DATASETS.TRAIN: expected at least one image with boxes, found none")
    return [{**item, "dataset_name": name} for item in dataset_dicts]


def load_dataset(name: str, with_masks: bool = False) -> list[dict]:
    """Load a dataset by its name and check it, whichever reader it was registered with.

    Args:
        name: A registered dataset.
        with_masks: Keep the masks of boxes that can be used; the others are counted in a warning. Otherwise, and with
            questions and captions to write, no annotation has a ``segmentation``.

    Raises:
        InputError: It is not registered, is empty, a detection dataset has no ``thing_classes``, or annotations break
            their format.
        FileNotFoundError: Annotations or images are not there.
    """
    check_is_available(name)
    mapper = mapper_of(name)
    dataset_dicts = DatasetCatalog.get(name)
    names = MetadataCatalog.get(name).get("thing_classes")
    if not dataset_dicts or (mapper.has_category_names and not names):
        found = f"{len(dataset_dicts)} images and thing_classes {names}"
        raise InputError(f"dataset {name!r}: expected at least one image and one name, found {found}")
    if not is_read_here(name):
        check_dataset_dicts(name, dataset_dicts, len(names or ()), task=mapper.task)
    dataset_dicts = with_existing_images(name, dataset_dicts)
    if with_masks and mapper.learns_boxes_alone:
        return keep_usable_masks(name, dataset_dicts)
    return leave_out_masks(dataset_dicts)


def check_is_available(name: str) -> None:
    """Check that a dataset is registered and that its files are there.

    Raises:
        InputError: It is not registered; the message names similar ones.
        FileNotFoundError: Annotations or images are not there.
    """
    if name not in DatasetCatalog:
        similar = likeliest(name, DatasetCatalog.keys()) or ["a name given to register_coco_grounding"]
        raise InputError(f"dataset {name!r} is not registered, expected for example {', '.join(similar)}")
    check_dataset_files(name)


def _with_sufficient_scores(name: str, dataset_dicts: list[dict], min_score: float) -> list[dict]:
    kept = [item for item in dataset_dicts if boxes_to_train_on(item, min_score)]
    if len(kept) < len(dataset_dicts):
        logging.getLogger(__name__).info(
            "dataset %r: left out %d of %d images: no box with a score of at least %s (INPUT.PROMPT.MIN_PSEUDO_SCORE)",
            *(name, len(dataset_dicts) - len(kept), len(dataset_dicts), min_score),
        )
    return kept
