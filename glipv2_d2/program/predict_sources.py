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

from ..data.image_reading import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from ..engine.image_inputs import is_address
from ..errors import InputError
from ..plurals import counted

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
# Frames in a second of a video or webcam that does not say; streams may say how fine their clock is instead.
_DEFAULT_RATE, _MOST_RATE = 25.0, 1000.0
# By so much the number of frames that a video says may be wrong.
_UNSURE_SHARE = 0.02


class Source(NamedTuple):
    """An image, or something that has many.

    Attributes:
        name: Path, address, or number of a webcam.
        kind: "image", "video" or "webcam".
    """

    name: str
    kind: str


def find_sources(inputs: Sequence[str], video: str | None, allow_downloads: bool) -> tuple[list[Source], int]:
    """List what the command line names, the files of a folder or glob sorted, each once, and count what is not there.

    The latter is named on standard error, if there is anything else, and so is what a folder holds and is not used.

    Returns:
        The sources, and the number of inputs without any.

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
        raise FileNotFoundError(f"INPUT: expected image files at {missing[0]}, found {_unread(missing[0]) or 'none'}")
    for name in missing:
        sys.stderr.write(f"skipped {name}: {_unread(name) or 'no image files there'}\n")
    return list(dict.fromkeys(found)), len(missing)


def _sources_of(name: str) -> list[Source]:
    if is_address(name):
        return [Source(name, "image")]
    if os.path.isdir(name):
        images, left_out = list_images(name)
        if images and left_out:
            sys.stderr.write(f"{name}: left out {' and '.join(left_out)}; '{os.path.join(name, '**')}' takes all\n")
        if images and (unread := _unread(name)):
            sys.stderr.write(f"{name}: left out {unread}\n")
        return [Source(file, "image") for file in images]
    if os.path.isfile(name):
        return [Source(name, _kind_of(name))]
    if name.isdecimal():
        return [Source(name, "webcam")]
    files = sorted(file for file in glob.glob(os.path.expanduser(name), recursive=True) if os.path.isfile(file))
    named = [file for file in files if Path(file).suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)]
    return [Source(file, _kind_of(file)) for file in named or files]


def list_images(folder: str) -> tuple[list[str], list[str]]:
    """List the image files of a folder, sorted; if it has none, those of the folders below it that are not hidden.

    Returns:
        The images, and in words how many images and videos it leaves out.
    """
    files: list[Path] = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(root, name) for name in names]
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    videos = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
    taken = [file for file in images if file.parent == Path(folder)] or images
    below = len(images) - len(taken)
    left_out = [f"{counted(below, 'image')} in folders below it"] * (below > 0)
    left_out += [counted(len(videos), "video")] * bool(videos)
    return sorted(map(str, taken)), left_out


def _unread(folder: str) -> str:
    """Say how many images in other formats a folder holds, and what to do; "" for none."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    number = sum(name.lower().endswith(UNREAD_SUFFIXES) for name in names)
    return f"{counted(number, 'image')} in a format that is not read, such as HEIC; save as JPEG" if number else ""


def _kind_of(file: str) -> str:
    return "video" if Path(file).suffix.lower() in VIDEO_SUFFIXES else "image"


class Frames:
    """The frames of a video or webcam; a loop over it yields them in BGR order and closes it at the end.

    Attributes:
        rate: Frames in a second.
        number: How many there will be, as the file says; 0 if that is unknown.
        num_missing: How many of them could not be read, after the loop.
    """

    def __init__(self, source: Source) -> None:
        # What cannot be opened is named by the program; FFmpeg and OpenCV would add lines of their own.
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        cv2.utils.logging.setLogLevel(0)
        self._video = cv2.VideoCapture(int(source.name) if source.kind == "webcam" else source.name)
        rate = self._video.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate <= _MOST_RATE else _DEFAULT_RATE
        self.number = max(0, int(self._video.get(cv2.CAP_PROP_FRAME_COUNT))) if source.kind == "video" else 0
        self.num_missing = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        number = 0
        try:
            while True:
                success, frame = self._video.read()
                if not success:
                    # Of some files the number is an estimate.
                    missing = self.number - number
                    self.num_missing = missing if missing > max(1, _UNSURE_SHARE * self.number) else 0
                    return
                number += 1
                yield frame
        finally:
            self._video.release()
