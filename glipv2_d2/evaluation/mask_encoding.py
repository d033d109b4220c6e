"""Masks as COCO's run lengths, which are found beside the thread that runs the model."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils
from torch import Tensor


def encode_masks(masks: Tensor) -> list[bytes]:
    """Encode masks as COCO's compressed run lengths.

    Args:
        masks: (K, H, W) bool.

    Returns:
        The ``counts`` of K masks; ``size`` is [H, W].
    """
    return _encode(masks.cpu().numpy(), tuple(masks.shape[1:]))


class MaskEncoder:
    """Encode the masks of one image after the other while the model goes on.

    It takes threads, not processes: a third of the work keeps other Python code waiting, 0.1 ms at a time, but nothing
    has to be sent, and no process outlives a run that is killed.

    Args:
        num_threads: How many images are encoded at the same time; 0: ``encode`` itself does it, with the same results.
    """

    def __init__(self, num_threads: int = 0) -> None:
        # A mask of bits takes an eighth of the memory; of so many images they wait at most.
        self._most_waiting = 2 * num_threads
        self._executor = ThreadPoolExecutor(num_threads) if num_threads else None
        self._waiting: deque[Future[None]] = deque()

    def encode(self, masks: Tensor, counts: np.ndarray, image_id: Any) -> None:
        """Write the run lengths of the masks of an image to ``counts``, now or before ``finish`` returns.

        Args:
            masks: (K, H, W) bool, which may change afterwards.
            counts: (K,) object.
            image_id: Names the image where its masks, or those of an earlier image, cannot be encoded.

        Raises:
            RuntimeError: Masks of this or an earlier image could not be encoded.
        """
        size = tuple(masks.shape[1:])
        pixels = masks.cpu().numpy()
        if self._executor is None:
            _fill(counts, pixels, size, image_id)
            return
        while len(self._waiting) >= self._most_waiting:
            self._waiting.popleft().result()
        packed = np.packbits(pixels.reshape(len(pixels), -1), axis=1)
        # One by one, so that no thread holds all masks of an image as bytes.
        unpacked = (np.unpackbits(bits, count=size[0] * size[1]).view(bool).reshape(size) for bits in packed)
        self._waiting.append(self._executor.submit(_fill, counts, unpacked, size, image_id))

    def finish(self) -> None:
        """Wait for all masks.

        Raises:
            RuntimeError: Those of an image could not be encoded.
        """
        while self._waiting:
            self._waiting.popleft().result()


def _fill(counts: np.ndarray, masks: Iterable[np.ndarray], size: tuple[int, ...], image_id: Any) -> None:
    try:
        counts[:] = _encode(masks, size)
    except Exception as error:
        raise RuntimeError(f"image {image_id!r}: its masks could not be encoded: {error}") from error


def _encode(masks: Iterable[np.ndarray], size: tuple[int, ...]) -> list[bytes]:
    # The encoder reads columns. Most masks fill a small part of their image, and only that is copied into columns.
    columns = np.zeros(size, dtype=np.uint8, order="F")
    counts = []
    for mask in masks:
        part = (_extent(np.any(mask, axis=1)), _extent(np.any(mask, axis=0)))
        columns[part] = mask[part]
        counts.append(mask_utils.encode(columns)["counts"])
        columns[part] = 0
    return counts


def _extent(marked: np.ndarray) -> slice:
    """Return the range from the first to the last place that is marked."""
    places = np.flatnonzero(marked)
    return slice(places[0], places[-1] + 1) if len(places) else slice(0)
