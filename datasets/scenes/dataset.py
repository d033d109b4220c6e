"""Writes the splits of a dataset of composed scenes: images and COCO json.

Layout, below the output folder::

    train/000001.jpg ...        annotations/train.json        manifest.json
    val/ val_24/ val_novel/     annotations/val.json ...      LICENSES.md

Every scene has its own random generator, seeded by (seed, split, index). So neither the number of worker processes
nor an interruption changes a single bit of the result.
"""

import json
import multiprocessing
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import cv2
import numpy as np
from checked_files import write_atomically, write_json
from pycocotools import mask as rle
from tqdm import tqdm

from .composer import Background, Category, CutOut, Scene, compose_scene
from .folder import PARTIAL, SPLIT_SEEDS, DatasetParameters, finish, is_finished, plain, sole_writer, start
from .text import Mention, ask, describe

SMALL_VOCABULARY = 24
VAL_BACKGROUND_SHARE = 0.2
# The number that shuffling names and backgrounds puts into its seed. All figures so far belong to this one.
SHUFFLE_SEED = 4
CHUNK_SIZE = 25
JPEG_QUALITY = 90


@dataclass(frozen=True)
class Photograph:
    """A photograph of one named thing, each name once: a (h, w, 3) uint8 BGR image and where it comes from."""

    identity: str
    name: str
    pixels: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class SceneSource:
    """The material of scenes, and what the json files and ``LICENSES.md`` say about it.

    ``photographs`` are copied to the folder ``real``, for predictions on images that are not composites.
    """

    cut_outs: Sequence[CutOut]
    backgrounds: Sequence[Background]
    description: str
    license_name: str
    license_text: str
    photographs: Sequence[Photograph] = ()


@dataclass(frozen=True)
class Split:
    """One split: how many scenes, the cut-outs of each of its names, and its backgrounds.

    Attributes:
        kin: As ``compose_scene`` takes it.
        relatives: For each name others that its object may be called too, or is perhaps: a crow is a bird. They become
            ``not_exhaustive_category_ids`` of the images that show it. None: no image has such ids.
    """

    name: str
    num_images: int
    cut_outs: dict[str, list[CutOut]]
    backgrounds: list[Background]
    kin: Mapping[str, Sequence[str]] | None = None
    relatives: Mapping[str, Collection[str]] | None = None

    @cached_property
    def categories(self) -> list[Category]:
        """Sorted by name; the id of a category is its index here plus one."""
        return [self.cut_outs[name][0].category for name in sorted(self.cut_outs)]


def plan_splits(source: SceneSource, parameters: DatasetParameters) -> list[Split]:
    """Share names and backgrounds out among the splits.

    Names are shuffled once by the seed. Seen names are taken from the front and novel ones from the back, so a
    smaller vocabulary is always part of a larger one, and ``val_24`` has the names of ``--num-names 24``.

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
            f"num_names and num_novel: expected at most {len(by_name)} together, the names of {parameters.name}, "
            f"found {num_names} and {num_novel}"
        )
    if len(source.backgrounds) < 2:
        raise ValueError(f"{parameters.name}: expected at least 2 backgrounds, found {len(source.backgrounds)}")

    rng = np.random.default_rng([parameters.seed, SHUFFLE_SEED])
    names = sorted(by_name)
    names = [names[index] for index in rng.permutation(len(names))]
    backgrounds = sorted(source.backgrounds, key=lambda background: background.identity)
    backgrounds = [backgrounds[index] for index in rng.permutation(len(backgrounds))]
    num_val_backgrounds = max(1, round(VAL_BACKGROUND_SHARE * len(backgrounds)))
    val_backgrounds, train_backgrounds = backgrounds[:num_val_backgrounds], backgrounds[num_val_backgrounds:]

    def split(name: str, num_images: int, names_of_split: list[str], backgrounds_of_split: list[Background]) -> Split:
        return Split(name, num_images, {one: by_name[one] for one in names_of_split}, backgrounds_of_split)

    seen, novel = names[:num_names], names[len(names) - num_novel :]
    splits = [split("train", parameters.num_train, seen, train_backgrounds)]
    splits.append(split("val", parameters.num_val, seen, val_backgrounds))
    if num_names > SMALL_VOCABULARY:
        splits.append(split("val_24", parameters.num_val, seen[:SMALL_VOCABULARY], val_backgrounds))
    splits.append(split("val_novel", parameters.num_val, novel, val_backgrounds))
    return splits


def write_dataset(
    output: Path,
    source: SceneSource,
    parameters: DatasetParameters,
    workers: int,
    plan: Callable[[SceneSource, DatasetParameters], list[Split]] = plan_splits,
) -> None:
    """Draw all scenes that are not there yet, then write the annotation files, the licences and the manifest.

    Raises:
        ValueError: The folder holds something else, or there are too few names or backgrounds.
        OSError: Another run is writing there, or a file cannot be written.
    """
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, found {workers}")
    splits = plan(source, parameters)
    with sole_writer(output):
        start(output, parameters)
        for split in splits:
            (output / split.name).mkdir(exist_ok=True)
        job = _Job(output, {split.name: split for split in splits}, parameters)
        total = sum(split.num_images for split in splits)
        # None: no bar in a file.
        with tqdm(total=total, desc=parameters.name, unit="scene", delay=1, disable=None) as bar:
            for num_images in _run(job, workers):
                bar.update(num_images)
        for split in splits:
            write_json(output / "annotations" / f"{split.name}.json", _coco_json(job, split, source))
        if source.photographs:
            _write_photographs(output, source.photographs)
        write_atomically(output / "LICENSES.md", source.license_text.encode())
        num_images = {split.name: split.num_images for split in splits}
        num_images |= {"real": len(source.photographs)} if source.photographs else {}
        names = {split.name: [category.name for category in split.categories] for split in splits}
        backgrounds = {split.name: sorted(one.identity for one in split.backgrounds) for split in splits}
        finish(output, parameters, num_images, {"names": names, "backgrounds": backgrounds})
    counts = {name: f"{count} images" for name, count in num_images.items()}
    counts |= {name: f"{counts[name]} of {len(of_split)} names" for name, of_split in names.items()}
    print(f"{output}: " + ", ".join(f"{name} {count}" for name, count in counts.items()))


def found_finished(output: Path, parameters: DatasetParameters) -> bool:
    """True, and a line that says so, if the dataset is there already."""
    finished = is_finished(output, parameters)
    if finished:
        print(f"{output}: there already, with these parameters")
    return finished


def _write_photographs(output: Path, photographs: Sequence[Photograph]) -> None:
    (output / "real").mkdir(exist_ok=True)
    names = sorted({one.name for one in photographs})
    images = []
    for index, one in enumerate(photographs, start=1):
        file_name = f"{one.name.replace(' ', '_')}.jpg"
        write_atomically(output / "real" / file_name, _encode_jpeg(one.pixels))
        height, width = one.pixels.shape[:2]
        image = {"id": index, "file_name": file_name, "width": width, "height": height}
        images.append(image | {"names": [one.name], "background": one.identity})
    content = {
        "info": {"description": "Real photographs, without boxes; names: what each shows"},
        "categories": [{"id": index, "name": name} for index, name in enumerate(names, start=1)],
        "images": images,
        "annotations": [],
    }
    write_json(output / "annotations" / "real.json", content)


def _encode_jpeg(image: np.ndarray) -> bytes:
    """JPEG bytes of a BGR image."""
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


@dataclass(frozen=True)
class _Job:
    """The work, in chunks of a few scenes of one split, named by the split and its first scene."""

    output: Path
    splits: dict[str, Split]
    parameters: DatasetParameters

    def chunks(self, split: Split) -> list[tuple[str, int]]:
        return [(split.name, first) for first in range(1, split.num_images + 1, CHUNK_SIZE)]

    def records_file(self, chunk: tuple[str, int]) -> Path:
        return self.output / PARTIAL / f"{chunk[0]}-{chunk[1]:06d}.json"

    def write(self, chunk: tuple[str, int]) -> int:
        """Draw the scenes of a chunk, unless they are all there; returns how many it has."""
        split, first = self.splits[chunk[0]], chunk[1]
        indices = range(first, min(first + CHUNK_SIZE, split.num_images + 1))
        images = {index: self.output / split.name / f"{index:06d}.jpg" for index in indices}
        if not self.records_file(chunk).is_file() or not all(path.is_file() for path in images.values()):
            records = [self._write_scene(split, index, path) for index, path in images.items()]
            write_json(self.records_file(chunk), {"records": records})
        return len(indices)

    def _write_scene(self, split: Split, index: int, path: Path) -> dict:
        rng = np.random.default_rng([self.parameters.seed, SPLIT_SEEDS[split.name], index])
        scene = compose_scene(rng, split.cut_outs, split.backgrounds, self.parameters.rules, split.kin)
        write_atomically(path, _encode_jpeg(scene.image))
        return _record(rng, scene, split, index, self.parameters.rules.size)


def _run(job: _Job, workers: int) -> Iterator[int]:
    """Draw all chunks; yields the number of scenes of each one that is done, in any order."""
    chunks = [chunk for split in job.splits.values() for chunk in job.chunks(split)]
    # Where a platform cannot fork safely, one process does the work.
    if workers == 1 or "fork" not in multiprocessing.get_all_start_methods() or sys.platform == "darwin":
        yield from map(job.write, chunks)
        return
    num_threads = cv2.getNumThreads()
    cv2.setNumThreads(0)  # a pool of threads does not survive a fork
    context = multiprocessing.get_context("fork")
    running: dict[Connection, BaseProcess] = {}
    try:
        for worker in range(workers):
            # A forked process has the decoded cut-outs already. A Pool would pickle them again for every chunk.
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(job, chunks[worker::workers], sender), daemon=True)
            process.start()
            sender.close()
            running[receiver] = process
        while running:
            for receiver in wait(list(running)):
                yield from _received(receiver, running)
    finally:
        for process in running.values():
            process.terminate()
            process.join()
        cv2.setNumThreads(num_threads)


def _work(job: _Job, chunks: Sequence[tuple[str, int]], sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    try:
        for chunk in chunks:
            sender.send(job.write(chunk))
    except (OSError, ValueError) as error:
        sender.send(error)


def _received(receiver: Connection, running: dict[Connection, BaseProcess]) -> Iterator[int]:
    """The next message of a worker; forgets a worker that is done, and raises an error that it sent."""
    try:
        message = receiver.recv()
    except EOFError:
        process = running.pop(receiver)
        process.join()
        if process.exitcode:
            raise OSError(f"a worker process: expected exit status 0, found {process.exitcode}") from None
        return
    if isinstance(message, Exception):
        raise message
    yield message


def _record(rng: np.random.Generator, scene: Scene, split: Split, index: int, size: int) -> dict:
    """Image and annotations of one scene; ids that count over the whole split are filled in at the end."""
    mentions = [Mention(one.cut_out.category, one.box) for one in scene.labelled]
    caption = describe(rng, mentions, scene.background.setting, size)
    hidden = [one.cut_out.category for one in scene.hidden]
    image = {
        "id": index,
        "file_name": f"{index:06d}.jpg",
        "width": size,
        "height": size,
        "license": 1,
        "background": scene.background.identity,
        "caption": caption.text,
        "questions": ask(rng, mentions, hidden, split.categories, size),
    }
    if split.relatives is not None:
        labelled, covered = {one.category.name for one in mentions}, {one.name for one in hidden}
        perhaps = covered.union(*(split.relatives[name] for name in labelled | covered))
        image["relatives"] = sorted(perhaps - labelled)
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
    """Compressed RLE. Polygons would lose holes, and with them the exact extent; so all splits use this one form."""
    encoded = rle.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def _coco_json(job: _Job, split: Split, source: SceneSource) -> dict:
    ids = {category.name: index for index, category in enumerate(split.categories, start=1)}
    images, annotations, num_questions = [], [], 0
    for chunk in job.chunks(split):
        for record in json.loads(job.records_file(chunk).read_text("utf-8"))["records"]:
            image = record["image"]
            for question in image["questions"]:
                num_questions += 1
                question["question_id"] = num_questions
            if "relatives" in image:
                image["not_exhaustive_category_ids"] = [ids[name] for name in image.pop("relatives")]
            images.append(image)
            for annotation in record["annotations"]:
                category_id = ids[annotation.pop("category")]
                head = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": category_id}
                annotations.append(head | annotation)
    return {
        "info": {"description": source.description, "split": split.name, "parameters": plain(job.parameters)},
        "licenses": [{"id": 1, "name": source.license_name, "url": ""}],
        "categories": [{"id": ids[one.name], "name": one.name, "supercategory": one.group} for one in split.categories],
        "images": images,
        "annotations": annotations,
    }
