"""Flickr30K Entities: every caption with the phrases that have boxes in its image, to be found there."""

from __future__ import annotations

import functools
import os
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from .flickr30k_files import ImageBoxes, Sentence, read_image_boxes, read_image_ids, read_sentences
from .grounding_records import EntryError
from .registration import check_dataset_files, register_dataset
from .skip_report import SkipReport, with_progress


def register_flickr30k(
    name: str,
    entities_root: str | os.PathLike[str],
    split: str,
    image_root: str | os.PathLike[str],
    **metadata: Any,
) -> None:
    """Register a split of Flickr30K Entities under a name for DATASETS.TEST (or TRAIN).

    No file is read before the dataset is used.

    Args:
        name: New in the catalog.
        entities_root: Folder of the release, with ``Annotations``, ``Sentences`` and the lists of the splits.
        split: "train", "val" or "test": the list ``<split>.txt``.
        image_root: Folder of the images, named ``<image id>.jpg``.
        metadata: More entries of the dataset's metadata.

    Raises:
        ValueError: The name is taken.
    """
    entities_root, image_root = os.fspath(entities_root), os.fspath(image_root)
    load = functools.partial(load_flickr30k, entities_root, split, image_root, name)
    entries = {"task": "grounding", "evaluator_type": "flickr30k", **metadata}
    ids_file = os.path.join(entities_root, f"{split}.txt")
    register_dataset(name, load, image_ids_file=ids_file, entities_root=entities_root, image_root=image_root, **entries)


def load_flickr30k(entities_root: str, split: str, image_root: str, name: str) -> list[dict]:
    """Read a registered split: one dataset dict for each caption.

    A phrase that is marked in the caption and has boxes in the image is to be found: an annotation for each of its
    boxes, in the order of the phrases, with the characters of the phrase in ``tokens_positive``. The same entity may be
    named by two phrases of a caption, and a phrase may have several boxes.

    Captions none of whose phrases has a box, and boxes that cannot be used, are left out; one warning counts them.

    Returns:
        Dataset dicts in the order of the list and of the captions. Their ``image_id`` is "<image id>_<row of the
        caption>", from 0.

    Raises:
        FileNotFoundError: A folder or file is missing.
        AnnotationError: A file breaks the format, or nothing is left.

    Source: Flickr30K Entities (Plummer et al., ICCV 2015); GLIP evaluates the same captions, phrases and boxes, its
    captions by way of MDETR's json.
    """
    check_dataset_files(name)
    for folder in ("Annotations", "Sentences"):
        path = os.path.join(entities_root, folder)
        if not PathManager.isdir(path):
            raise FileNotFoundError(f"dataset {name!r}: the folder {path} does not exist, expected that of the release")
    report = SkipReport(MetadataCatalog.get(name).image_ids_file)
    records: list[dict] = []
    image_ids = list(read_image_ids(os.path.join(entities_root, f"{split}.txt")))
    for image_id in with_progress(image_ids, f"{name}: captions"):
        sentences = read_sentences(os.path.join(entities_root, "Sentences", f"{image_id}.txt"))
        image = read_image_boxes(os.path.join(entities_root, "Annotations", f"{image_id}.xml"))
        for reason in image.left_out:
            report.skip("boxes", f"image {image_id}", reason)
        file_name = os.path.join(image_root, f"{image_id}.jpg")
        for row, sentence in enumerate(sentences):
            try:
                records.append(_make_record(sentence, image, file_name, f"{image_id}_{row}"))
            except EntryError as error:
                report.skip("captions", f"image {image_id}, caption {row}", str(error))
    report.close(records, f"captions of the split {split!r} with boxes")
    return records


def _make_record(sentence: Sentence, image: ImageBoxes, file_name: str, pair_id: str) -> dict:
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "tokens_positive": (span,)}
        for span, entity in sentence.phrases
        for box in image.boxes.get(entity, ())
    ]
    if not annotations:
        raise EntryError("no phrase has a box")
    return {
        "file_name": file_name,
        "height": image.height,
        "width": image.width,
        "image_id": pair_id,
        "caption": sentence.text,
        "annotations": annotations,
    }
