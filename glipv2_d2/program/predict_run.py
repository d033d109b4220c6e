"""The loop of ``glipv2 predict`` over its inputs: read, predict, save; what fails is named, and the loop goes on."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from ..engine.image_inputs import as_bgr
from ..errors import InputError, memory_errors
from ..plurals import counted
from .predict_files import Item, ResultFolder
from .predict_sources import Frames, Source
from .predict_tasks import Detector


class Counts:
    """What was done and left out of each kind, "image", "frame" or "video", and what was found.

    A video, or a webcam, is done if one of its frames is.
    """

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.num_detections = 0

    def done_words(self) -> str:
        """Return "2 images and 30 frames of 1 video"."""
        words = [counted(self.done["image"], "image")] if self.done["image"] else []
        if self.done["video"]:
            words.append(f"{counted(self.done['frame'], 'frame')} of {counted(self.done['video'], 'video')}")
        return " and ".join(words)

    def skipped_words(self) -> list[str]:
        """Return "1 of 3 images skipped" for each kind of which one was."""
        kinds = [kind for kind in ("image", "frame", "video") if self.skipped[kind]]
        return [f"{self.skipped[kind]} of {counted((self.done + self.skipped)[kind], kind)} skipped" for kind in kinds]


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
    if not counts.done:
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
                _skip("image", file, error, counts)
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
    before, items = counts.done["frame"], folder.frames(name, frames.rate)
    try:
        for item, output in zip(items, task.outputs(images()), strict=False):
            _save(task, item, waiting.popleft(), output, folder, counts)
    except KeyboardInterrupt:
        if source.kind != "webcam":
            raise
    if counts.done["frame"] > before:
        counts.done["video"] += 1
        if frames.num_missing:
            lost = f"{frames.num_missing} of {counted(frames.number, 'frame')}"
            tqdm.write(f"{name}: {lost} cannot be read; the video is damaged", file=sys.stderr)
    else:
        _skip("video", name, InputError("no frame can be read"), counts)


def _save(
    task: Detector, item: Item, image: np.ndarray, output: dict[str, Any], folder: ResultFolder, counts: Counts
) -> None:
    """Save an output; one that could not be made, or needs too much memory to be drawn, is named."""
    kind = "image" if item.frame is None else "frame"
    try:
        if output.get("error"):
            raise InputError(output["error"])
        with memory_errors():
            drawing = task.draw(image, output) if folder.wants_drawings else None
            heat = task.draw_similarity(image) if folder.wants_similarity else None
            record = task.record(output)
    except (InputError, MemoryError) as error:
        name = item.file_name if item.frame is None else f"{item.file_name}, frame {item.frame}"
        _skip(kind, name, error, counts)
        return
    folder.add(item, image, output, record, drawing=drawing, heat=heat)
    counts.done[kind] += 1
    counts.num_detections += len(record.get("detections", ()))


def _skip(kind: str, name: str, error: BaseException, counts: Counts) -> None:
    reason = " ".join(str(error).split()).removeprefix(f"{name}: ") or "out of memory"
    tqdm.write(f"skipped {name}: {reason}", file=sys.stderr)
    counts.skipped[kind] += 1
