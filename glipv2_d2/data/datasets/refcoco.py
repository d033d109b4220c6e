"""RefCOCO, RefCOCO+ and RefCOCOg: expressions of COCO's images that each mean one object."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .grounding_records import EntryError, read_box, read_file_name, read_image_size, read_text
from .referring_records import referring_annotation, referring_record, register_referring
from .registration import check_dataset_files
from .skip_report import SkipReport, with_progress
from .value_checks import AnnotationError, is_integer, read_json_file, show


def register_refcoco(
    name: str,
    json_file: str | os.PathLike[str],
    instances_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    split: str,
    **metadata: Any,
) -> None:
    """Register a split of RefCOCO, RefCOCO+ or RefCOCOg under a name for DATASETS.TRAIN and DATASETS.TEST.

    No file is read before the dataset is used.

    Args:
        name: New in the catalog.
        json_file: The expressions, as ``datasets/prepare_refcoco.py`` writes them.
        instances_file: ``instances.json``, COCO's annotations of these images.
        image_root: Folder of COCO's images of 2014.
        split: "train", "val", "testA" for example.
        metadata: More entries of the dataset's metadata.

    Raises:
        ValueError: The name is taken.
    """
    files = {"json_file": json_file, "instances_file": instances_file, "image_root": image_root, "split": split}
    register_referring(name, load_refcoco, "refcoco", files, metadata)


def load_refcoco(json_file: str, instances_file: str, image_root: str, split: str, name: str) -> list[dict]:
    """Read a registered split: one dataset dict for each expression.

    The json holds ``refs``, each an object in an image: ``ann_id``, ``image_id``, ``split`` and ``sentences`` with
    ``sent_id`` and ``sent``. Box, mask, size and name of the image come from COCO's file; a file name in ``refs`` would
    have a suffix that the images do not have. Masks are passed on as they are.

    What cannot be used is left out, and one warning counts it and names the first few: malformed objects and
    expressions, and objects whose image or annotation is not in COCO's file or is unusable there.

    Returns:
        Dataset dicts in the order of the file, with one annotation. Their ``image_id`` is the ``sent_id``.

    Raises:
        FileNotFoundError: A file or the image directory does not exist.
        AnnotationError: A file is not of this format, or has no expression of the split.

    Source: the files of refer (Yu et al., arXiv 1608.00272; Mao et al., arXiv 1511.02283). As there, the text is
    ``sent``, in lower case and without punctuation, not ``raw``.
    """
    check_dataset_files(name)
    refs = _list_of(read_json_file(json_file), "refs", json_file)
    splits = sorted({ref["split"] for ref in refs if isinstance(ref, dict) and isinstance(ref.get("split"), str)})
    if split not in splits:
        raise AnnotationError(f"{json_file}: splits are {show(splits)}, expected {split!r} among them")
    instances = read_json_file(instances_file)
    images = _by_id(_list_of(instances, "images", instances_file))
    annotations = _by_id(_list_of(instances, "annotations", instances_file))
    report = SkipReport(json_file)
    records: dict[int, dict] = {}
    for index, ref in enumerate(with_progress(refs, f"{json_file}: objects")):
        if isinstance(ref, dict) and ref.get("split") != split:
            continue
        where = f"refs[{index}]"
        try:
            found, left_out = _read_ref(ref, images, annotations, image_root, records)
        except EntryError as error:
            report.skip("objects", where, str(error))
            continue
        for reason in left_out:
            report.skip("expressions", where, reason)
        records.update(found)
    report.close(records, f"expressions of the split {split!r}")
    return list(records.values())


def _list_of(content: dict, kind: str, json_file: str) -> list:
    if not isinstance(content.get(kind), list):
        raise AnnotationError(f"{json_file}: {kind} is {show(content.get(kind))}, expected a list")
    return content[kind]


def _by_id(entries: list) -> dict[int, dict]:
    return {entry["id"]: entry for entry in entries if isinstance(entry, dict) and is_integer(entry.get("id"))}


def _read_ref(
    ref: Any, images: Mapping[int, dict], annotations: Mapping[int, dict], image_root: str, known: Mapping[int, dict]
) -> tuple[dict[int, dict], list[str]]:
    """Return the dataset dicts of an object by their ids, none of them in ``known``, and a line for each left out."""
    if not isinstance(ref, dict):
        raise EntryError(f"found {show(ref)}, expected an object")
    image = _entry(ref, "image_id", images, "images")
    annotation = _entry(ref, "ann_id", annotations, "annotations")
    if annotation.get("image_id") != image["id"]:
        found = f"ann_id is {annotation['id']}, of image {show(annotation.get('image_id'))}"
        raise EntryError(f"{found}, expected an annotation of image {image['id']}")
    if annotation.get("iscrowd", 0) not in (0, False):
        raise EntryError(f"iscrowd is {show(annotation['iscrowd'])} in annotation {annotation['id']}, expected 0")
    size, file_name = read_image_size(image), os.path.join(image_root, read_file_name(image, "file_name"))
    box = read_box(annotation.get("bbox"), *size, has_sides=True)
    sentences = ref.get("sentences")
    if not isinstance(sentences, list) or not sentences:
        raise EntryError(f"sentences is {show(sentences)}, expected a list of sentences")
    found: dict[int, dict] = {}
    left_out: list[str] = []
    for sentence in sentences:
        try:
            sent_id, text = _read_sentence(sentence)
            if sent_id in known or sent_id in found:
                raise EntryError(f"sent_id is {sent_id}, expected an id that no other sentence has")
        except EntryError as error:
            left_out.append(str(error))
            continue
        target = referring_annotation(box, text, annotation.get("segmentation"))
        found[sent_id] = referring_record(file_name, size, sent_id, text, [target])
    return found, left_out


def _entry(ref: Mapping[str, Any], field: str, entries: Mapping[int, dict], kind: str) -> dict:
    if not is_integer(ref.get(field)) or ref[field] not in entries:
        raise EntryError(f"{field} is {show(ref.get(field))}, expected an id that stands in {kind} of COCO's file")
    return entries[ref[field]]


def _read_sentence(sentence: Any) -> tuple[int, str]:
    if not isinstance(sentence, dict) or not is_integer(sentence.get("sent_id")):
        raise EntryError(f"sentence is {show(sentence)}, expected an object with an integer as sent_id")
    return sentence["sent_id"], read_text(sentence, "sent")
