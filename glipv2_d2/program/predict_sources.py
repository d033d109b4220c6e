"""The inputs of ``glipv2 predict``: image files, addresses, videos and webcams, one image after the other."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ..data.image_reading import IMAGE_SUFFIXES
from ..engine.image_inputs import is_address
from ..errors import InputError

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
# Frames in a second of a video or webcam that does not say.
_DEFAULT_RATE = 25.0


class Source(NamedTuple):
    """An image, or something that has many.

    Attributes:
        name: Path, address, or number of a webcam.
        kind: "image", "video" or "webcam".
    """

    name: str
    kind: str


def find_sources(inputs: Sequence[str], video: str | None, allow_downloads: bool) -> list[Source]:
    """List what the command line names, the files of a folder or glob sorted, each once.

    What is not there is named on standard error, if there is anything else.

    Raises:
        InputError, FileNotFoundError: Nothing is named or there, a video is not a file, or an address may not be
            fetched.
    """
    if not inputs and video is None:
        raise InputError("INPUT: expected images, folders, globs, videos, addresses or a webcam number, found none")
    found: list[Source] = []
    missing: list[str] = []
    for name in inputs:
        if is_address(name) and not allow_downloads:
            raise InputError(f"INPUT: expected a file, found the address {name}; --allow-downloads fetches it")
        sources = _sources_of(name)
        found += sources
        missing += [] if sources else [name]
    if video is not None:
        if not os.path.isfile(video):
            raise FileNotFoundError(f"--video-input: expected a file, found none at {video}")
        found.append(Source(video, "video"))
    if not found:
        raise FileNotFoundError(f"INPUT: expected image files at {missing[0]}, found none")
    for name in missing:
        sys.stderr.write(f"skipped {name}: no image files there\n")
    return list(dict.fromkeys(found))


def _sources_of(name: str) -> list[Source]:
    if is_address(name):
        return [Source(name, "image")]
    if os.path.isdir(name):
        return [Source(file, "image") for file in list_images(name)]
    if os.path.isfile(name):
        return [Source(name, _kind_of(name))]
    if name.isdecimal():
        return [Source(name, "webcam")]
    files = sorted(file for file in glob.glob(os.path.expanduser(name), recursive=True) if os.path.isfile(file))
    return [Source(file, _kind_of(file)) for file in files]


def list_images(folder: str) -> list[str]:
    """List the image files of a folder, sorted; if it has none, those of the folders below it that are not hidden."""
    direct = [str(file) for file in Path(folder).iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]
    if direct:
        return sorted(direct)
    below: list[str] = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below += [os.path.join(root, name) for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    return sorted(below)


def _kind_of(file: str) -> str:
    return "video" if Path(file).suffix.lower() in VIDEO_SUFFIXES else "image"


class Frames:
    """The frames of a video or webcam; a loop over it yields them in BGR order and closes it at the end.

    Attributes:
        rate: Frames in a second.
        number: How many there will be; None if that is unknown.
    """

    def __init__(self, source: Source) -> None:
        self._video = cv2.VideoCapture(int(source.name) if source.kind == "webcam" else source.name)
        self.rate = self._video.get(cv2.CAP_PROP_FPS) or _DEFAULT_RATE
        self.number = int(self._video.get(cv2.CAP_PROP_FRAME_COUNT)) if source.kind == "video" else None

    def __iter__(self) -> Iterator[np.ndarray]:
        try:
            while True:
                success, frame = self._video.read()
                if not success:
                    return
                yield frame
        finally:
            self._video.release()
