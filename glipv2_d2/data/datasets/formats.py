"""The table of formats, and the functions that register a dataset in one of them.

All of them work alike:

* ``name`` is a new name for DATASETS.TRAIN and DATASETS.TEST; a name that is taken raises InputError.
* No file is read, or looked for, before the dataset is used.
* The other arguments are files and folders (``image_root``: the folder that paths of images in the file are relative
  to), and options of the reader. The metadata of the dataset holds them under the same names.
* ``task`` is the kind of data, one of those that ``FORMATS`` lists for the format.
* ``metadata`` are more entries of the metadata; they replace the default ``evaluator_type``.

A reader leaves out faulty entries, see ``skip_report``; the functions that ``FORMATS`` names describe each format.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ...errors import InputError
from .captioning import load_captioning
from .coco import load_coco_grounding, load_lvis
from .flickr30k import load_flickr30k
from .grounding_json import load_grounding_json
from .odinw import ODINW_SETS, SPLITS, dataset_of_set, load_odinw
from .odvg import load_odvg
from .questions import load_vqa, load_vqa_json, load_vqa_jsonl
from .referring import load_phrasecut, load_refcoco, load_referring_json
from .registration import register_dataset
from .tar_shards import expand_shard_urls, load_shards
from .tsv import load_tsv

Path = str | os.PathLike[str]


class Format(NamedTuple):
    """A format of annotations.

    Attributes:
        load: The reader; its arguments are the sources and the ``name`` of the dataset.
        sources: Names of the files, folders and options that it reads.
        tasks: Kinds of data that it can hold, with the evaluator of each, "" for none; the first is the default.
    """

    load: Callable[..., list[dict]]
    sources: tuple[str, ...]
    tasks: dict[str, str]


_DETECTION = {"detection": "coco"}
_QUESTIONS = {"vqa": "vqa"}
_SENTENCES = {"grounding": "", "pseudo_grounding": ""}
_CAPTIONS = {**_SENTENCES, "captioning": "grounded_captioning"}
_JSON = ("json_file", "image_root")

FORMATS: dict[str, Format] = {
    "coco": Format(load_coco_grounding, _JSON, _DETECTION),
    "lvis": Format(load_lvis, _JSON, {"detection": "lvis"}),
    "odinw": Format(load_odinw, (*_JSON, "odinw_set"), _DETECTION),
    "grounding_json": Format(load_grounding_json, _JSON, {**_CAPTIONS, "grounding": "flickr30k"}),
    "odvg": Format(load_odvg, ("jsonl_file", "image_root", "names_file"), {**_CAPTIONS, "detection": ""}),
    "tsv": Format(load_tsv, ("yaml_file",), {"detection": "", **_SENTENCES}),
    "shards": Format(load_shards, ("shard_urls", "num_samples"), {"pseudo_grounding": "", "grounding": ""}),
    "referring_json": Format(load_referring_json, _JSON, {"grounding": "phrasecut"}),
    "phrasecut": Format(load_phrasecut, ("json_file", "sizes_file", "image_root"), {"grounding": "phrasecut"}),
    "refcoco": Format(load_refcoco, ("json_file", "instances_file", "image_root", "split"), {"grounding": "refcoco"}),
    "flickr30k": Format(load_flickr30k, ("entities_root", "split", "image_root"), {"grounding": "flickr30k"}),
    "vqa": Format(
        load_vqa,
        (
            *("questions_file", "annotations_file", "image_root", "images_file", "boxes_file"),
            *("image_ids_file", "leave_out_ids"),
        ),
        _QUESTIONS,
    ),
    "vqa_json": Format(load_vqa_json, _JSON, _QUESTIONS),
    "vqa_jsonl": Format(load_vqa_jsonl, ("jsonl_file", "image_root"), _QUESTIONS),
    "captioning": Format(load_captioning, (*_JSON, "splits", "images_files"), {"captioning": "captioning"}),
}


def register(
    format_name: str, name: str, metadata: Mapping[str, Any], task: str | None = None, /, **sources: Any
) -> None:
    """Register a dataset in one of ``FORMATS``.

    Args:
        format_name: The format.
        name: New in the catalog.
        metadata: More entries of the metadata.
        task: Kind of data; None: the ``task`` of the metadata, or the default of the format.
        sources: The sources of the format.

    Raises:
        InputError: The name is taken, or the format does not hold such data.
    """
    one = FORMATS[format_name]
    task = task or metadata.get("task") or next(iter(one.tasks))
    if task not in one.tasks:
        raise InputError(f"dataset {name!r}: task: expected one of {list(one.tasks)}, found {task!r}")
    sources = {field: _plain(sources[field]) for field in one.sources}
    entries = {"evaluator_type": one.tasks[task]} if one.tasks[task] else {}
    load = functools.partial(one.load, **sources, name=name)
    register_dataset(name, load, **{**entries, **sources, **metadata, "task": task})


def register_coco_grounding(name: str, json_file: Path, image_root: Path, **metadata: Any) -> None:
    """Register boxes of categories in COCO's json format."""
    register("coco", name, metadata, json_file=json_file, image_root=image_root)


def register_lvis(name: str, json_file: Path, image_root: Path, **metadata: Any) -> None:
    """Register boxes of categories in LVIS's json format; ``image_root`` holds COCO's "train2017" and "val2017"."""
    register("lvis", name, metadata, json_file=json_file, image_root=image_root)


def register_odinw(root: Path) -> None:
    """Register all splits of all sets of ODinW, which lie in folders below ``root``."""
    for key, odinw_set in ODINW_SETS.items():
        for split in SPLITS:
            json_file, image_root = (os.path.join(root, path) for path in odinw_set.paths(split))
            name = dataset_of_set(key, split)
            register("odinw", name, {}, json_file=json_file, image_root=image_root, odinw_set=odinw_set)


def register_grounding_json(
    name: str,
    json_file: Path,
    image_root: Path | Mapping[str, Path],
    *,
    task: str = "grounding",
    **metadata: Any,
) -> None:
    """Register captions whose phrases have boxes, in MDETR's json format.

    Args:
        image_root: For images of several sources a folder for each value of ``data_source``; that of "" is for all
            other values.
        task: "grounding", "pseudo_grounding" to train on it with negative captions, or "captioning" to learn to write
            captions and to ground their words.
    """
    register("grounding_json", name, metadata, task, json_file=json_file, image_root=image_root)


def register_odvg(
    name: str,
    jsonl_file: Path,
    image_root: Path,
    *,
    names_file: Path | None = None,
    task: str | None = None,
    **metadata: Any,
) -> None:
    """Register json lines in ODVG's format.

    Args:
        names_file: For detection data: json that gives each label, as a string, its name. Without it the names are
            those that the boxes have as their ``category``.
        task: "detection", "grounding", "pseudo_grounding" for pseudo boxes, or "captioning" to learn to write captions
            and to ground their words. By default "detection" with a ``names_file``, else "grounding".
    """
    task = task or ("grounding" if names_file is None else "detection")
    sources = {"jsonl_file": jsonl_file, "image_root": image_root, "names_file": names_file}
    register("odvg", name, metadata, task, **sources)


def register_tsv(name: str, yaml_file: Path, *, task: str, **metadata: Any) -> None:
    """Register the official TSV format; the yaml file names the other files, relative to its own folder.

    Args:
        task: "detection" for classes and boxes, "grounding" or "pseudo_grounding" for captions with boxes.
    """
    register("tsv", name, metadata, task, yaml_file=yaml_file)


def register_shards(
    name: str,
    urls: str | Sequence[str],
    *,
    task: str = "pseudo_grounding",
    num_samples: int | None = None,
    **metadata: Any,
) -> None:
    """Register WebDataset tar shards for DATASETS.TRAIN; training reads them as a stream.

    A sample is ``KEY.jpg`` (or jpeg, png, webp) and ``KEY.json`` with a record of one image in ODVG's grounding format,
    see ``read_odvg_grounding``; its ``filename`` is not read. All other files are passed over.

    Args:
        urls: Paths or addresses of the shards. Braces like ``{000000..000099}`` are expanded, and in paths a ``*`` when
            the dataset is used. The shards are read in the order of their names.
        task: "pseudo_grounding" for boxes of a teacher with scores, "grounding" for annotated ones.
        num_samples: Samples in all shards together, needed only where DATASETS.TRAIN_RATIOS is empty.

    Raises:
        InputError: The name is taken, or an argument is not as expected.
    """
    if num_samples is not None and (type(num_samples) is not int or num_samples < 1):
        raise InputError(f"dataset {name!r}: num_samples: expected a positive integer or None, found {num_samples!r}")
    try:
        shard_urls = expand_shard_urls(urls)
    except InputError as error:
        raise InputError(f"dataset {name!r}: {error}") from error
    register("shards", name, metadata, task, shard_urls=shard_urls, num_samples=num_samples)


def register_referring_json(name: str, json_file: Path, image_root: Path, **metadata: Any) -> None:
    """Register json in COCO's format whose annotations have a ``phrase``: the demo datasets, or your own."""
    register("referring_json", name, metadata, json_file=json_file, image_root=image_root)


def register_phrasecut(name: str, json_file: Path, sizes_file: Path, image_root: Path, **metadata: Any) -> None:
    """Register a split of PhraseCut.

    Args:
        json_file: Tasks of the split, ``refer_train.json`` for example.
        sizes_file: ``image_data_split.json``, which has the sizes of all images.
        image_root: Folder of the images, named ``<image_id>.jpg``.
    """
    register("phrasecut", name, metadata, json_file=json_file, sizes_file=sizes_file, image_root=image_root)


def register_refcoco(
    name: str, json_file: Path, instances_file: Path, image_root: Path, split: str, **metadata: Any
) -> None:
    """Register a split of RefCOCO, RefCOCO+ or RefCOCOg.

    Args:
        json_file: The expressions, as ``datasets/prepare_refcoco.py`` writes them.
        instances_file: ``instances.json``, COCO's annotations of these images.
        image_root: Folder of COCO's images of 2014.
        split: "train", "val", "testA" for example.
    """
    files = {"json_file": json_file, "instances_file": instances_file, "image_root": image_root}
    register("refcoco", name, metadata, split=split, **files)


def register_flickr30k(name: str, entities_root: Path, split: str, image_root: Path, **metadata: Any) -> None:
    """Register a split of Flickr30K Entities.

    Args:
        entities_root: Folder of the release, with ``Annotations``, ``Sentences`` and the lists of the splits.
        split: "train", "val" or "test": the list ``<split>.txt``.
        image_root: Folder of the images, named ``<image id>.jpg``.
    """
    metadata = {"image_ids_file": os.path.join(entities_root, f"{split}.txt"), **metadata}
    register("flickr30k", name, metadata, entities_root=entities_root, split=split, image_root=image_root)


def register_vqa(
    name: str,
    questions_file: Path,
    annotations_file: Path | None,
    image_root: Path,
    *,
    images_file: Path | None = None,
    boxes_file: Path | None = None,
    image_ids_file: Path | None = None,
    leave_out_ids: bool = False,
    **metadata: Any,
) -> None:
    """Register visual questions in the official format of VQA.

    Args:
        questions_file: As v2_OpenEnded_mscoco_train2014_questions.json.
        annotations_file: As v2_mscoco_train2014_annotations.json; None for a test set.
        images_file: File in COCO's format with the paths and sizes of the images. Without it a path is made of the
            ``data_subtype`` of the questions, as "COCO_train2014_000000000009.jpg", and upright and wide images share
            batches.
        boxes_file: Boxes of the things that questions and answers name, to ground them: lines of
            ``tools/generate_pseudo_boxes.py --source vqa``.
        image_ids_file: Json list of ids: only questions about these images belong to the dataset.
        leave_out_ids: All questions about other images do instead.
    """
    files = {"questions_file": questions_file, "annotations_file": annotations_file, "image_root": image_root}
    others = {"images_file": images_file, "boxes_file": boxes_file, "image_ids_file": image_ids_file}
    register("vqa", name, metadata, leave_out_ids=leave_out_ids, **files, **others)


def register_vqa_json(name: str, json_file: Path, image_root: Path, **metadata: Any) -> None:
    """Register json in COCO's format whose images have ``questions``: the demo datasets, or your own."""
    register("vqa_json", name, metadata, json_file=json_file, image_root=image_root)


def register_vqa_jsonl(name: str, jsonl_file: Path, image_root: Path, **metadata: Any) -> None:
    """Register json lines of questions: files that the generator of pseudo boxes reads or writes, or your own."""
    register("vqa_jsonl", name, metadata, jsonl_file=jsonl_file, image_root=image_root)


def register_captioning(
    name: str,
    json_file: Path,
    image_root: Path,
    *,
    splits: Sequence[str] = (),
    images_files: Sequence[Path] = (),
    **metadata: Any,
) -> None:
    """Register images with captions to write.

    Captions whose phrases have boxes come from ``register_grounding_json`` and ``register_odvg`` with the task
    "captioning".

    Args:
        json_file: Karpathy's file, as dataset_coco.json; or one of COCO, as captions_val2014.json.
        splits: The splits of Karpathy's file that belong to the dataset, as "train" and "restval"; none for a file of
            COCO.
        images_files: Files in COCO's format with the sizes of the images, which Karpathy's file lacks. Without them
            upright and wide images share batches.
    """
    options = {"splits": tuple(splits), "images_files": tuple(images_files)}
    register("captioning", name, metadata, json_file=json_file, image_root=image_root, **options)


def _plain(value: Any) -> Any:
    """Return paths as strings, also those in a mapping or a sequence."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return value
