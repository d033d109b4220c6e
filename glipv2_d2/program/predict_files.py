"""What ``glipv2 predict`` writes; after each image every file is whole."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from detectron2.structures import Instances

from ..engine.detections import Detections
from ..errors import InputError, space_errors
from ..plurals import counted

# What may stand in the name of a folder; a phrase may be any text.
_NOT_IN_NAMES = re.compile(r"[^\w\- ]+")
_LONGEST_NAME = 60
# Bytes of a name, of the 255 that a disk takes; a number and a suffix stand behind it.
_MOST_BYTES = 200


class Item(NamedTuple):
    """An image to save results of.

    Attributes:
        file_name: Its path or address, or the video that it is a frame of.
        name: What its files are called, without suffix; no two are alike.
        frame: Number of the frame, from 0; None for an image.
        rate: Frames in a second.
        video: What the file of the drawn video is called, without suffix.
    """

    file_name: str
    name: str
    frame: int | None = None
    rate: float = 0.0
    video: str = ""


class ResultFolder:
    """The folder of results.

    Args:
        folder: Made with the first result.
        kinds: What to save: "images", drawings and drawn videos; "json", all records in one file; "jsonl", a record a
            line; "coco", a COCO results file beside one of the images and categories; "yolo", a text file an image;
            "crops", what is in the boxes, a folder a phrase; "similarity", where phrases fit, a heat map an image.
        asked: Fields of ``predictions.json`` beside the records.
    """

    def __init__(self, folder: Path, kinds: Sequence[str], asked: dict[str, Any]) -> None:
        self.folder = folder
        self.wants_drawings = "images" in kinds
        self.wants_similarity = "similarity" in kinds
        self._kinds = kinds
        self._asked = asked
        self._taken: set[str] = set()
        self._videos: dict[str, VideoSink] = {}
        self._arrays: dict[str, ArrayFile] = {}
        self._count = 0

    def item(self, file_name: str) -> Item:
        """Return an image with a name for its files."""
        stem = Path(file_name.split("?")[0]).stem or "image"
        return Item(file_name, free_name(_cut(stem), self._taken))

    def frames(self, file_name: str, rate: float) -> Iterator[Item]:
        """Yield the frames of a video, without end, with names for their files."""
        video = free_name(_cut(Path(file_name).stem), self._taken, is_of_frames=True)
        for number in itertools.count():
            yield Item(file_name, f"{video}_{number:06d}", number, rate, video)

    def add(
        self,
        item: Item,
        image: np.ndarray,
        output: dict[str, Any],
        record: dict[str, Any],
        *,
        drawing: np.ndarray | None = None,
        heat: np.ndarray | None = None,
    ) -> None:
        """Save the results of an image.

        Args:
            item: The image.
            image: (H, W, 3) in BGR order.
            output: What the predictor gave.
            record: The output in plain types.
            drawing: (H', W', 3) uint8 in RGB order, if drawings are saved.
            heat: The same of "similarity".

        Raises:
            InputError, OSError: A file cannot be written.
        """
        self._count += 1
        self.folder.mkdir(parents=True, exist_ok=True)
        where: dict[str, Any] = {"file_name": item.file_name}
        if item.frame is not None:
            where["frame"] = item.frame
        if drawing is not None:
            where |= self._save_drawing(item, drawing)
        if heat is not None:
            (self.folder / "similarity").mkdir(exist_ok=True)
            save_image(self.folder / "similarity" / f"{item.name}.png", heat)
            where["similarity"] = f"similarity/{item.name}.png"
        if "json" in self._kinds:
            self._array("predictions.json", {**self._asked, "predictions": []}).add({**where, **record})
        if "jsonl" in self._kinds:
            self._add_line({**where, **record})
        if "coco" in self._kinds:
            self._add_coco(item, image.shape[:2], output)
        if "yolo" in self._kinds:
            self._add_yolo(item, output)
        if "crops" in self._kinds:
            self._add_crops(item, image, output)

    def close(self) -> None:
        """End the videos."""
        for video in self._videos.values():
            video.close()

    def _save_drawing(self, item: Item, drawing: np.ndarray) -> dict[str, str]:
        """Write an image, or a frame of a video; return the name of the image's file, for its record."""
        if item.frame is None:
            save_image(self.folder / f"{item.name}.png", drawing)
            return {"drawing": f"{item.name}.png"}
        path = self.folder / f"{item.video}.mp4"
        self._videos.setdefault(item.video, VideoSink(path)).write(drawing[:, :, ::-1], item.rate)
        return {}

    def _array(self, name: str, head: dict[str, Any] | None = None) -> ArrayFile:
        if name not in self._arrays:
            self._arrays[name] = ArrayFile(self.folder / name, head)
        return self._arrays[name]

    def _add_line(self, record: dict[str, Any]) -> None:
        path = self.folder / "predictions.jsonl"
        if self._count == 1:
            path.unlink(missing_ok=True)
        with space_errors(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _add_coco(self, item: Item, size: tuple[int, int], output: dict[str, Any]) -> None:
        name = item.file_name if item.frame is None else f"{item.file_name}#{item.frame}"
        categories = [{"id": row + 1, "name": phrase} for row, phrase in enumerate(output["phrases"])]
        image = {"id": self._count, "file_name": name, "height": size[0], "width": size[1]}
        images = self._array("coco_images.json", {"categories": categories, "annotations": [], "images": []})
        images.add(image)
        results = self._array("coco_results.json")
        results.add(*Detections(output).to_coco(self._count))

    def _add_yolo(self, item: Item, output: dict[str, Any]) -> None:
        labels = self.folder / "labels"
        labels.mkdir(exist_ok=True)
        if self._count == 1:
            write_bytes(self.folder / "classes.txt", "".join(f"{phrase}\n" for phrase in output["phrases"]).encode())
        lines = "".join(f"{line}\n" for line in yolo_lines(output["instances"]))
        write_bytes(labels / f"{item.name}.txt", lines.encode())

    def _add_crops(self, item: Item, image: np.ndarray, output: dict[str, Any]) -> None:
        height, width = image.shape[:2]
        found = output["instances"]
        rows, boxes = found.pred_classes.tolist(), found.pred_boxes.tensor.tolist()
        for number, (row, box) in enumerate(zip(rows, boxes, strict=True)):
            left, top = max(0, int(box[0])), max(0, int(box[1]))
            right, bottom = min(width, int(np.ceil(box[2]))), min(height, int(np.ceil(box[3])))
            if right <= left or bottom <= top:
                continue
            folder = self.folder / "crops" / folder_name(output["phrases"][row])
            folder.mkdir(parents=True, exist_ok=True)
            save_image(folder / f"{item.name}_{number}.png", image[top:bottom, left:right, ::-1])


class ArrayFile:
    """A JSON file with a list that grows; after each addition it is whole.

    Args:
        path: The file is made with the first addition, in place of an older one.
        head: The file is this dict, whose last value is the empty list that grows; None: it is the list.
    """

    def __init__(self, path: Path, head: dict[str, Any] | None = None) -> None:
        text = "[]" if head is None else json.dumps(head)
        end = "]" if head is None else "]}"
        self.path = path
        self._start, self._end = text.removesuffix(end).encode() + b"\n", f"\n{end}\n".encode()
        self._is_open = self._has_entries = False

    def add(self, *entries: Any) -> None:
        """Write entries behind the last one."""
        text = b",\n".join(json.dumps(entry).encode() for entry in entries)
        if not self._is_open:
            write_bytes(self.path, self._start + text + self._end)
        elif entries:
            with space_errors(self.path), open(self.path, "r+b") as file:
                file.seek(-len(self._end), os.SEEK_END)
                file.write((b",\n" if self._has_entries else b"") + text + self._end)
        self._is_open = True
        self._has_entries = self._has_entries or bool(entries)


class VideoSink:
    """A video file. The first frame opens it and gives it its size."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer: cv2.VideoWriter | None = None
        self._num_frames = 0

    def write(self, frame: np.ndarray, rate: float) -> None:
        """Add a frame in BGR order."""
        if self.writer is None:
            size = (frame.shape[1], frame.shape[0])
            # As in ``write_bytes``.
            self.path.unlink(missing_ok=True)
            self.writer = cv2.VideoWriter(str(self.path), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
            if not self.writer.isOpened():
                raise InputError(f"--output: expected a folder with space for videos, found none at {self.path}")
        self.writer.write(frame)
        self._num_frames += 1

    def close(self) -> None:
        """End the file.

        Raises:
            InputError: It does not hold all frames, which OpenCV does not say.
        """
        if self.writer is None:
            return
        self.writer.release()
        written = cv2.VideoCapture(str(self.path))
        found = int(written.get(cv2.CAP_PROP_FRAME_COUNT))
        written.release()
        if found < self._num_frames:
            raise InputError(
                f"{self.path}: expected a video of {counted(self._num_frames, 'frame')}, found {max(0, found)} in the "
                "file; free space on the disk, or name a folder on another one"
            )


def free_name(stem: str, taken: set[str], *, is_of_frames: bool = False) -> str:
    """Return a name that no file has yet, also where upper and lower case are one, and add it to ``taken``.

    Args:
        stem: The name, if it is free.
        taken: Names of files, in lower case.
        is_of_frames: No file may have it with a number behind it either, as a frame has.
    """
    ends = [name.rpartition("_") for name in taken] if is_of_frames else []
    used = taken | {name for name, _, number in ends if number.isdecimal()}
    names = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
    name = next(name for name in names if name.casefold() not in used)
    taken.add(name.casefold())
    return name


def _cut(stem: str) -> str:
    """Return the beginning of a name, such as the end of an address, that a disk takes."""
    content = os.fsencode(stem)
    return stem if len(content) <= _MOST_BYTES else content[:_MOST_BYTES].decode(errors="ignore")


def folder_name(phrase: str) -> str:
    """Return a phrase as the name of a folder."""
    return _NOT_IN_NAMES.sub("_", phrase).strip()[:_LONGEST_NAME].strip() or "_"


def yolo_lines(instances: Instances) -> list[str]:
    """Return a line for each detection: class, and the centre, width and height of its box as shares of the image."""
    height, width = instances.image_size
    lines = []
    rows, boxes = instances.pred_classes.tolist(), instances.pred_boxes.tensor.tolist()
    for row, (left, top, right, bottom) in zip(rows, boxes, strict=True):
        edges = ((left + right) / 2 / width, (top + bottom) / 2 / height)
        sides = ((right - left) / width, (bottom - top) / height)
        lines.append(" ".join([str(row), *(f"{share:.6f}" for share in (*edges, *sides))]))
    return lines


def save_image(path: Path, image: np.ndarray) -> None:
    """Write an image (H, W, 3) in RGB order as PNG in place of an older one."""
    write_bytes(path, cv2.imencode(".png", image[:, :, ::-1])[1].tobytes())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in place of an older one.

    Raises:
        DiskFullError: There is no space.
    """
    # A link of that name is replaced, not followed.
    path.unlink(missing_ok=True)
    with space_errors(path):
        path.write_bytes(content)
