"""Images with captions to learn to write: Karpathy's splits of COCO and Flickr30K, and COCO's own files."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from .coco_images import CocoImage, read_coco_images
from .grounding_records import EntryError, read_file_name, read_image_size, read_text
from .registration import check_dataset_files, register_dataset
from .skip_report import SkipReport, with_progress
from .value_checks import AnnotationError, is_integer, read_json_file, show


def register_captioning(
    name: str,
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    *,
    splits: Sequence[str] = (),
    images_files: Sequence[str | os.PathLike[str]] = (),
    **metadata: Any,
) -> None:
    """Register images with captions under a name for DATASETS.TRAIN and DATASETS.TEST.

    No file is read before the dataset is used. Captions whose phrases have boxes come from ``register_grounding_json``
    and ``register_odvg`` with the task "captioning".

    Args:
        name: New in the catalog.
        json_file: Karpathy's file, as dataset_coco.json; or one of COCO, as captions_val2014.json.
        image_root: Directory that the paths in the file are relative to.
        splits: Of Karpathy's file those that belong to the dataset, as "train" and "restval"; none for a file of COCO.
        images_files: Files in COCO's format with the sizes of the images, which Karpathy's file lacks. Without them
            upright and wide images share batches.
        metadata: More entries of the dataset's metadata.

    Raises:
        ValueError: The name is taken.
    """
    sources: dict[str, Any] = {"json_file": os.fspath(json_file), "image_root": os.fspath(image_root)}
    options = {"splits": tuple(splits), "images_files": tuple(map(os.fspath, images_files))}
    load = functools.partial(load_captioning, **sources, **options, name=name)
    entries = {"task": "captioning", "evaluator_type": "captioning", **sources, **options, **metadata}
    register_dataset(name, load, **entries)


def load_captioning(
    json_file: str, image_root: str, splits: tuple[str, ...], images_files: tuple[str, ...], name: str
) -> list[dict]:
    """Read a registered dataset: one dataset dict for each image.

    An image of Karpathy's file has ``filename``, perhaps a folder ``filepath``, ``cocoid`` or ``imgid``, a ``split``,
    and ``sentences`` with the text ``raw``. COCO's file has ``images`` and, but for a test set, ``annotations`` with
    ``image_id`` and ``caption``.

    What cannot be used is left out, and one warning counts it and names the first few: malformed images and captions,
    blank captions, and images without a caption.

    Returns:
        Dataset dicts in the order of the images, with ``captions``; without them if the file has no ``annotations``.

    Raises:
        FileNotFoundError: A file or the image directory does not exist.
        AnnotationError: A file is of no such format, two images have one id, or nothing is left.

    Source: Karpathy and Fei-Fei, arXiv 1412.2306, and its files; the format of COCO captions.
    """
    check_dataset_files(name)
    content = read_json_file(json_file)
    images = content.get("images")
    if not isinstance(images, list):
        raise AnnotationError(f"{json_file}: images is {show(images)}, expected a list")
    report = SkipReport(json_file)
    if splits:
        entries = _karpathy_entries(json_file, images, splits, read_coco_images(images_files), report)
    else:
        entries = _coco_entries(images, _coco_captions(json_file, content, report), report)
    records: dict[int, dict] = {}
    for image_id, path, size, captions in entries:
        if image_id in records:
            raise AnnotationError(f"{json_file}: two images have the id {image_id}, expected one")
        records[image_id] = {"file_name": os.path.join(image_root, path), "image_id": image_id}
        if size is not None:
            records[image_id]["height"], records[image_id]["width"] = size
        if captions is not None:
            records[image_id]["captions"] = captions
    usable = []
    for record in records.values():
        if record.get("captions") == []:
            report.skip("images", f"image id {record['image_id']}", "no caption, expected at least one")
        else:
            usable.append(record)
    report.close(usable, "images with captions" + (f" of the splits {show(list(splits))}" if splits else ""))
    return usable


# Id, path, size if it is known, and captions; None in a test set.
_Entry = tuple[int, str, Sequence[int] | None, list[str] | None]


def _karpathy_entries(
    json_file: str, images: list, splits: Sequence[str], sizes: Mapping[int, CocoImage], report: SkipReport
) -> list[_Entry]:
    found = {image["split"] for image in images if isinstance(image, dict) and isinstance(image.get("split"), str)}
    missing = [split for split in splits if split not in found]
    if missing:
        raise AnnotationError(f"{json_file}: splits are {show(sorted(found))}, expected {missing[0]!r} among them")
    entries: list[_Entry] = []
    for index, image in enumerate(with_progress(images, f"{json_file}: captions")):
        if isinstance(image, dict) and image.get("split") not in splits:
            continue
        where = f"images[{index}]"
        try:
            entries.append(_read_karpathy_image(image, sizes, report, where))
        except EntryError as error:
            report.skip("images", where, str(error))
    return entries


def _read_karpathy_image(image: Any, sizes: Mapping[int, CocoImage], report: SkipReport, where: str) -> _Entry:
    if not isinstance(image, dict):
        raise EntryError(f"found {show(image)}, expected an object")
    image_id = image.get("cocoid", image.get("imgid"))
    if not is_integer(image_id):
        raise EntryError(f"cocoid or imgid is {show(image_id)}, expected an integer")
    path = read_file_name(image, "filename")
    if image.get("filepath"):
        path = os.path.join(read_file_name(image, "filepath"), path)
    sentences = image.get("sentences")
    if not isinstance(sentences, list):
        raise EntryError(f"sentences is {show(sentences)}, expected a list")
    captions = []
    for place, sentence in enumerate(sentences):
        try:
            captions.append(_read_object(sentence, "raw"))
        except EntryError as error:
            report.skip("captions", f"{where}.sentences[{place}]", str(error))
    return image_id, path, sizes[image_id].size if image_id in sizes else None, captions


def _coco_entries(images: list, captions: Mapping[int, list[str]] | None, report: SkipReport) -> list[_Entry]:
    entries: list[_Entry] = []
    for index, image in enumerate(images):
        try:
            if not isinstance(image, dict) or not is_integer(image.get("id")):
                raise EntryError(f"found {show(image)}, expected an object with an integer as id")
            own = None if captions is None else captions.get(image["id"], [])
            entries.append((image["id"], read_file_name(image, "file_name"), read_image_size(image), own))
        except EntryError as error:
            report.skip("images", f"images[{index}]", str(error))
    return entries


def _coco_captions(json_file: str, content: dict, report: SkipReport) -> dict[int, list[str]] | None:
    """Return the captions by the ids of their images; None for a test set."""
    if "annotations" not in content:
        return None
    if not isinstance(content["annotations"], list):
        raise AnnotationError(f"{json_file}: annotations is {show(content['annotations'])}, expected a list")
    captions: dict[int, list[str]] = {}
    for index, item in enumerate(with_progress(content["annotations"], f"{json_file}: captions")):
        try:
            caption = _read_object(item, "caption")
            if not is_integer(item.get("image_id")):
                raise EntryError(f"image_id is {show(item.get('image_id'))}, expected an integer")
        except EntryError as error:
            report.skip("captions", f"annotations[{index}]", str(error))
            continue
        captions.setdefault(item["image_id"], []).append(caption)
    return captions


def _read_object(entry: Any, field: str) -> str:
    """Return a caption without the line breaks and spaces around it."""
    if not isinstance(entry, dict):
        raise EntryError(f"found {show(entry)}, expected an object with {field}")
    return read_text(entry, field).strip()
