"""Writes a data set of composed scenes: splits, pictures, COCO json, and a manifest by which a run can go on.

Layout, below the output folder::

    train/000001.jpg ...        annotations/train.json        manifest.json
    val/ val_24/ val_novel/     annotations/val.json ...      LICENSES.md

Every scene has its own random generator, seeded by (seed, split, index). So neither the number of worker processes
nor an interruption changes a single bit of the result.
"""

import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as rle
from tqdm import tqdm

from scene_composer import Background, Category, CutOut, Scene, SceneRules, compose_scene
from scene_text import Mention, ask, describe

# Raised whenever the same parameters give other files than before: data sets made by older code are then rebuilt.
FORMAT_VERSION = 1

# The number that each split puts into its seeds. A split that is added later gets a new number.
SPLIT_SEEDS = {"train": 0, "val": 1, "val_24": 2, "val_novel": 3}

SMALL_VOCABULARY = 24
VAL_BACKGROUND_SHARE = 0.2
CHUNK_SIZE = 25
JPEG_QUALITY = 90


@dataclass(frozen=True)
class DatasetParameters:
    """Everything that decides what the files hold; the number of workers is no part of it.

    Attributes:
        name: "stampworld" or "shapeworld".
        source_version: A text that changes when cut-outs or backgrounds do.
        num_names: Names in train and val; None for all that are not novel.
        num_val: Scenes in each of the val splits.
    """

    name: str
    source_version: str
    num_names: int | None
    num_novel: int
    num_train: int
    num_val: int
    seed: int
    rules: SceneRules = field(default_factory=SceneRules)

    def __post_init__(self):
        limits = {"num_names": (self.num_names, 1), "num_novel": (self.num_novel, 1), "seed": (self.seed, 0)}
        limits |= {"num_train": (self.num_train, 1), "num_val": (self.num_val, 1), "size": (self.rules.size, 32)}
        limits |= {"objects": (self.rules.min_objects, 1), "workers": (None, 1)}
        for key, (value, least) in limits.items():
            if value is not None and value < least:
                raise ValueError(f"{key} is {value}, at least {least} was expected")
        if self.rules.max_objects < self.rules.min_objects:
            low, high = self.rules.min_objects, self.rules.max_objects
            raise ValueError(f"objects is {low} {high}, the smaller number was expected first")


@dataclass(frozen=True)
class SceneSource:
    """What scenes are made of, and the text of ``LICENSES.md``."""

    cut_outs: Sequence[CutOut]
    backgrounds: Sequence[Background]
    description: str
    license_name: str
    license_text: str


@dataclass(frozen=True)
class Split:
    """One split: how many scenes, the cut-outs of each of its names, and its backgrounds."""

    name: str
    num_images: int
    cut_outs: dict[str, list[CutOut]]
    backgrounds: list[Background]

    @cached_property
    def categories(self) -> list[Category]:
        """Sorted by name; the id of a category is its place here plus one."""
        return [self.cut_outs[name][0].category for name in sorted(self.cut_outs)]


def plan_splits(source: SceneSource, parameters: DatasetParameters) -> list[Split]:
    """Share names and backgrounds out among the splits.

    Names are shuffled once by the seed. Seen names are taken from the front and novel ones from the back, so a
    smaller vocabulary is always part of a larger one, and ``val_24`` holds the names of ``--num-names 24``.

    Raises:
        ValueError: There are fewer names or backgrounds than asked for.
    """
    by_name: dict[str, list[CutOut]] = {}
    for cut_out in source.cut_outs:
        by_name.setdefault(cut_out.category.name, []).append(cut_out)
    num_names, num_novel = parameters.num_names, parameters.num_novel
    if num_names is None:
        num_names = max(1, len(by_name) - num_novel)
    if num_names + num_novel > len(by_name):
        raise ValueError(
            f"num_names {num_names} and num_novel {num_novel} need {num_names + num_novel} names, "
            f"{parameters.name} has {len(by_name)}"
        )
    if len(source.backgrounds) < 2:
        raise ValueError(f"{parameters.name} has {len(source.backgrounds)} backgrounds, at least 2 were expected")

    rng = np.random.default_rng([parameters.seed, len(SPLIT_SEEDS)])
    names = sorted(by_name)
    names = [names[index] for index in rng.permutation(len(names))]
    backgrounds = sorted(source.backgrounds, key=lambda background: background.identity)
    backgrounds = [backgrounds[index] for index in rng.permutation(len(backgrounds))]
    num_val_backgrounds = max(1, round(VAL_BACKGROUND_SHARE * len(backgrounds)))
    val_backgrounds, train_backgrounds = backgrounds[:num_val_backgrounds], backgrounds[num_val_backgrounds:]

    def split(name, num_images, split_names, split_backgrounds):
        return Split(name, num_images, {one: by_name[one] for one in split_names}, split_backgrounds)

    seen = names[:num_names]
    splits = [split("train", parameters.num_train, seen, train_backgrounds)]
    splits.append(split("val", parameters.num_val, seen, val_backgrounds))
    if num_names > SMALL_VOCABULARY:
        splits.append(split("val_24", parameters.num_val, seen[:SMALL_VOCABULARY], val_backgrounds))
    splits.append(split("val_novel", parameters.num_val, names[len(names) - num_novel :], val_backgrounds))
    return splits


def is_finished(output: Path, parameters: DatasetParameters) -> bool:
    """Whether ``output`` holds the whole data set of these parameters; reads the manifest and lists the folders."""
    manifest = _read_manifest(output)
    if manifest is None or not manifest["finished"] or manifest["parameters"] != _plain(parameters):
        return False
    return all((output / name).is_file() for name in manifest["files"]) and all(
        len(list((output / split).glob("*.jpg"))) == count for split, count in manifest["num_images"].items()
    )


def start(output: Path, parameters: DatasetParameters) -> None:
    """Make ``output`` ready: go on with an unfinished run of the same parameters, or clear an older data set.

    Raises:
        ValueError: The folder holds other things and no manifest: they are not ours to delete.
    """
    manifest = _read_manifest(output)
    if manifest is None and output.is_dir() and any(output.iterdir()):
        raise ValueError(f"{output}: not empty, and no manifest.json of a data set in it; name an empty folder")
    if manifest is not None and manifest["parameters"] != _plain(parameters):
        changed = _changes(manifest["parameters"], _plain(parameters))
        print(f"{output} was made with other parameters ({changed}): it is built again")
        _clear(output)
    elif manifest is not None and (output / ".partial").is_dir():
        print(f"{output} is unfinished: going on where it stopped")
    for folder in ("annotations", ".partial"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    write_json(output / "manifest.json", {"finished": False, "parameters": _plain(parameters)})


def write_splits(output: Path, source: SceneSource, parameters: DatasetParameters, workers: int = 1) -> list[Split]:
    """Draw all scenes that are not there yet, then write the annotation files and the licences."""
    splits = plan_splits(source, parameters)
    chunks = [
        (split.name, first) for split in splits for first in range(1, split.num_images + 1, CHUNK_SIZE)
    ]
    for split in splits:
        (output / split.name).mkdir(exist_ok=True)
    job = _Job(output, {split.name: split for split in splits}, parameters)
    total = sum(split.num_images for split in splits)
    with tqdm(total=total, desc=parameters.name, unit="scene", smoothing=0.1) as bar:
        for num_images in _run(job, chunks, workers):
            bar.update(num_images)
    for split in splits:
        write_json(output / "annotations" / f"{split.name}.json", _coco_json(job, split, source))
    write_atomically(output / "LICENSES.md", source.license_text.encode())
    return splits


def finish(output: Path, parameters: DatasetParameters, splits: Sequence[Split], num_extra: dict[str, int]) -> None:
    """Declare the data set whole: from now on :func:`is_finished` finds it.

    Args:
        num_extra: Number of pictures in folders beyond the splits, each with an annotation file of its name.
    """
    num_images = {split.name: split.num_images for split in splits} | num_extra
    manifest = {
        "finished": True,
        "parameters": _plain(parameters),
        "num_images": num_images,
        "files": [f"annotations/{name}.json" for name in num_images] + ["LICENSES.md"],
        "names": {split.name: [category.name for category in split.categories] for split in splits},
        "backgrounds": {split.name: sorted(one.identity for one in split.backgrounds) for split in splits},
    }
    write_json(output / "manifest.json", manifest)
    shutil.rmtree(output / ".partial", ignore_errors=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def write_json(path: Path, content: dict) -> None:
    """Write json atomically."""
    write_atomically(path, json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode())


def encode_jpeg(image: np.ndarray) -> bytes:
    """JPEG bytes of a BGR image."""
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


@dataclass(frozen=True)
class _Job:
    output: Path
    splits: dict[str, Split]
    parameters: DatasetParameters

    def partial(self, split: str, first: int) -> Path:
        """The records of the chunk that begins with picture ``first``."""
        return self.output / ".partial" / f"{split}-{first:06d}.json"

    def write_chunk(self, chunk: tuple[str, int]) -> int:
        """Draw the scenes of one chunk, unless they are all there; returns how many scenes it has."""
        name, first = chunk
        split = self.splits[name]
        indices = range(first, min(first + CHUNK_SIZE, split.num_images + 1))
        folder = self.output / name
        whole = self.partial(name, first).is_file() and all((folder / f"{i:06d}.jpg").is_file() for i in indices)
        if not whole:
            records = [self._write_scene(split, index) for index in indices]
            write_json(self.partial(name, first), {"records": records})
        return len(indices)

    def _write_scene(self, split: Split, index: int) -> dict:
        rng = np.random.default_rng([self.parameters.seed, SPLIT_SEEDS[split.name], index])
        scene = compose_scene(rng, split.cut_outs, split.backgrounds, self.parameters.rules)
        record = _record(rng, scene, split, index, self.parameters.rules.size)
        write_atomically(self.output / split.name / f"{index:06d}.jpg", encode_jpeg(scene.image))
        return record


def _run(job: _Job, chunks: list[tuple[str, int]], workers: int) -> Iterator[int]:
    if workers < 1:
        raise ValueError(f"workers is {workers}, at least 1 was expected")
    # Forked workers share the decoded cut-outs. Where a platform cannot fork, one process does the work.
    if workers == 1 or "fork" not in multiprocessing.get_all_start_methods() or sys.platform == "darwin":
        yield from map(job.write_chunk, chunks)
        return
    cv2.setNumThreads(0)  # OpenMP or pthread pools do not survive a fork
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        yield from pool.imap_unordered(job.write_chunk, chunks)


def _record(rng: np.random.Generator, scene: Scene, split: Split, index: int, size: int) -> dict:
    """The image and annotation entries of one scene; ids that count over the split are filled in at the end."""
    mentions = [Mention(one.cut_out.category, one.box) for one in scene.labelled]
    caption = describe(rng, mentions, scene.background.description, size)
    hidden = [one.cut_out.category for one in scene.hidden]
    questions = ask(rng, mentions, hidden, split.categories, size)
    image = {
        "id": index,
        "file_name": f"{index:06d}.jpg",
        "width": size,
        "height": size,
        "license": 1,
        "background": scene.background.identity,
        "caption": caption.text,
        "questions": questions,
    }
    annotations = [
        {
            "category": one.cut_out.category.name,
            "bbox": list(one.box),
            "area": int(np.count_nonzero(one.mask)),
            "iscrowd": 0,
            "segmentation": _encode(one.mask),
            "phrase": one.cut_out.category.name,
            "tokens_positive": [list(span)],
            "stamp": one.cut_out.identity,
        }
        for one, span in zip(scene.labelled, caption.spans)
    ]
    return {"image": image, "annotations": annotations}


def _encode(mask: np.ndarray) -> dict:
    encoded = rle.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def _coco_json(job: _Job, split: Split, source: SceneSource) -> dict:
    ids = {category.name: index for index, category in enumerate(split.categories, start=1)}
    images, annotations, num_questions = [], [], 0
    for first in range(1, split.num_images + 1, CHUNK_SIZE):
        for record in json.loads(job.partial(split.name, first).read_text("utf-8"))["records"]:
            image = record["image"]
            for question in image["questions"]:
                num_questions += 1
                question["question_id"] = num_questions
            images.append(image)
            for annotation in record["annotations"]:
                category_id = ids[annotation.pop("category")]
                head = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": category_id}
                annotations.append(head | annotation)
    return {
        "info": {"description": source.description, "split": split.name, "parameters": _plain(job.parameters)},
        "licenses": [{"id": 1, "name": source.license_name, "url": ""}],
        "categories": [
            {"id": ids[one.name], "name": one.name, "supercategory": one.group} for one in split.categories
        ],
        "images": images,
        "annotations": annotations,
    }


def _plain(parameters: DatasetParameters) -> dict:
    return {"format_version": FORMAT_VERSION} | asdict(parameters)


def _changes(old: dict, new: dict) -> str:
    keys = [key for key in new if old.get(key) != new[key]]
    return ", ".join(f"{key}: {old.get(key)} before, {new[key]} now" for key in keys) or "fewer keys now"


def _read_manifest(output: Path) -> dict | None:
    try:
        manifest = json.loads((output / "manifest.json").read_text("utf-8"))
        return manifest if {"finished", "parameters"} <= manifest.keys() else None
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, AttributeError):
        return None


def _clear(output: Path) -> None:
    """Delete what a data set consists of, and nothing else."""
    for folder in (*SPLIT_SEEDS, "real"):
        for pattern in ("*.jpg", "*.jpg.tmp*"):
            for path in (output / folder).glob(pattern):
                path.unlink()
        if (output / folder).is_dir() and not any((output / folder).iterdir()):
            (output / folder).rmdir()
        (output / "annotations" / f"{folder}.json").unlink(missing_ok=True)
    shutil.rmtree(output / ".partial", ignore_errors=True)
    (output / "LICENSES.md").unlink(missing_ok=True)
