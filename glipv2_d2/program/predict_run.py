"""The loop of ``glipv2 predict`` over its inputs: read, predict, save; what fails is named, and the loop goes on."""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from ..engine.image_inputs import as_bgr
from ..errors import InputError, memory_errors
from ..plurals import counted
from .predict_files import Item, ResultFolder
from .predict_sources import Frames, Source
from .predict_tasks import Detector


@dataclass
class Counts:
    """Images done and left out, and what was found in those that were done."""

    num_images: int = 0
    num_skipped: int = 0
    num_detections: int = 0


def predict_sources(task: Detector, sources: Sequence[Source], folder: ResultFolder, allow_downloads: bool) -> Counts:
    """Run a task on all images, then on each video and webcam; Ctrl-C ends a webcam.

    Raises:
        InputError: No image could be read.
    """
    counts = Counts()
    files = [source.name for source in sources if source.kind == "image"]
    with contextlib.closing(folder):
        if files:
            _predict_images(task, files, folder, counts, allow_downloads)
        for source in sources:
            if source.kind != "image":
                _predict_frames(task, source, folder, counts)
    if not counts.num_images:
        if files:
            raise InputError(f"INPUT: expected readable images, found none among {counted(len(files), 'file')}")
        raise InputError(f"INPUT: expected a readable video, found no frame in {sources[0].name}")
    return counts


def _predict_images(
    task: Detector, files: Sequence[str], folder: ResultFolder, counts: Counts, allow_downloads: bool
) -> None:
    """Run a task on image files and addresses, in their order."""
    waiting: deque[tuple[str, np.ndarray]] = deque()

    def images() -> Iterator[np.ndarray]:
        for file in tqdm(files, unit="image", disable=None):
            truncated: list[str] = []
            try:
                image = as_bgr(file, allow_downloads=allow_downloads, truncated=truncated)
            except (InputError, MemoryError) as error:
                _skip(file, error, counts)
                continue
            for line in truncated:
                tqdm.write(f"{line}; decoded as far as it goes", file=sys.stderr)
            waiting.append((file, image))
            yield image

    for output in task.outputs(images()):
        file, image = waiting.popleft()
        _save(task, folder.item(file), image, output, folder, counts)


def _predict_frames(task: Detector, source: Source, folder: ResultFolder, counts: Counts) -> None:
    """Run a task on the frames of a video or webcam."""
    frames = Frames(source)
    waiting: deque[np.ndarray] = deque()

    def images() -> Iterator[np.ndarray]:
        for frame in tqdm(frames, total=frames.number or None, unit="frame", disable=None):
            waiting.append(frame)
            yield frame

    name = f"webcam {source.name}" if source.kind == "webcam" else source.name
    before, items = counts.num_images, folder.frames(name, frames.rate)
    try:
        for item, output in zip(items, task.outputs(images()), strict=False):
            _save(task, item, waiting.popleft(), output, folder, counts)
    except KeyboardInterrupt:
        if source.kind != "webcam":
            raise
    if counts.num_images == before:
        _skip(name, InputError("no frame can be read"), counts)


def _save(
    task: Detector, item: Item, image: np.ndarray, output: dict[str, Any], folder: ResultFolder, counts: Counts
) -> None:
    """Save an output; one that could not be made, or needs too much memory to be drawn, is named."""
    try:
        if output.get("error"):
            raise InputError(output["error"])
        with memory_errors():
            drawing = task.draw(image, output) if folder.wants_drawings else None
            heat = task.draw_similarity(image) if folder.wants_similarity else None
            record = task.record(output)
    except (InputError, MemoryError) as error:
        _skip(item.file_name if item.frame is None else f"{item.file_name}, frame {item.frame}", error, counts)
        return
    folder.add(item, image, output, record, drawing=drawing, heat=heat)
    counts.num_images += 1
    counts.num_detections += len(record.get("detections", ()))


def _skip(name: str, error: BaseException, counts: Counts) -> None:
    reason = " ".join(str(error).split()).removeprefix(f"{name}: ") or "out of memory"
    tqdm.write(f"skipped {name}: {reason}", file=sys.stderr)
    counts.num_skipped += 1
