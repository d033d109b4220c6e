"""Image augmentations: GLIP's resize rule, and the list of augmentations that a config asks for."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from fvcore.transforms.transform import CropTransform, Transform
from PIL import Image
from torch import Tensor

from ..errors import InputError


class ResizeTransformLegacy(T.ResizeTransform):
    """Resize an image as detectron2 does, and its boxes in the official one-pixel convention.

    The official code scales the coordinates of the first and the last pixel of a box. Half-open boxes that go through
    this transform and come back through the official rescaling of detections are unchanged.

    Source: ``BoxList.resize`` of the official code, on inclusive coordinates.
    """

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize an image (H, W) or (H, W, 3); floating point by the same filter as uint8, unlike detectron2's."""
        if img.ndim != 3 or not np.issubdtype(img.dtype, np.floating):
            return super().apply_image(img, interp)
        method = self.interp if interp is None else interp
        channels = [Image.fromarray(channel.astype(np.float32)) for channel in np.moveaxis(img, 2, 0)]
        resized = [np.asarray(channel.resize((self.new_w, self.new_h), method)) for channel in channels]
        return np.stack(resized, axis=2)

    def apply_box(self, box: np.ndarray) -> np.ndarray:
        """Scale boxes, (M, 4) half-open XYXY in pixels; a box under one pixel may come out without area."""
        factors = np.array([self.new_w / self.w, self.new_h / self.h])
        boxes = np.asarray(box, dtype=np.float64).reshape(-1, 4)
        return np.concatenate([boxes[:, :2] * factors, (boxes[:, 2:] - 1) * factors + 1], axis=1)


class ResizeShortestEdgeLegacy(T.Augmentation):
    """Resize the short side of an image to a sampled length, by the size rule that GLIP was trained with.

    It differs from detectron2's ``ResizeShortestEdge`` in the long side, which is cut to an integer, not rounded: all
    4:3 photographs come out one pixel smaller. Pixels are resampled by PIL (bilinear), as in both.

    Source: GLIP's test and training transform.
    """

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
    ):
        """
        Args:
            short_edge_length: Pixels. With "range" the smallest and the largest length, with "choice" all lengths to
                choose from; one number is that length always. 0 keeps the size of the image.
            max_size: Limit in pixels of the long side.
            sample_style: "range" or "choice".

        Raises:
            InputError: An unknown ``sample_style``, no length, or a range that is not two numbers.
        """
        super().__init__()
        lengths = (short_edge_length,) if isinstance(short_edge_length, int) else tuple(short_edge_length)
        if sample_style not in ("range", "choice"):
            raise InputError(f"INPUT.MIN_SIZE_TRAIN_SAMPLING is {sample_style!r}, expected 'range' or 'choice'")
        if not lengths or (sample_style == "range" and len(lengths) > 2):
            raise InputError(f"INPUT.MIN_SIZE_TRAIN is {lengths}, expected lengths in pixels; with 'range' one or two")
        self._init({"short_edge_length": lengths, "max_size": max_size, "sample_style": sample_style})

    def get_transform(self, image: np.ndarray) -> Transform:
        """Sample a length from ``np.random`` and return the transform of an image of (H, W, ...)."""
        if self.sample_style == "range":
            length = np.random.randint(self.short_edge_length[0], self.short_edge_length[-1] + 1)
        else:
            length = np.random.choice(self.short_edge_length)
        height, width = image.shape[:2]
        if length == 0:
            return T.NoOpTransform()
        new_height, new_width = self.get_output_shape(height, width, int(length), self.max_size)
        return ResizeTransformLegacy(height, width, new_height, new_width, Image.Resampling.BILINEAR)

    @staticmethod
    def get_output_shape(height: int, width: int, short_edge_length: int, max_size: int) -> tuple[int, int]:
        """Return the (height, width) that an image is resized to, in pixels.

        The long side passes ``max_size`` by a few pixels where the short side was rounded up.

        Source: GLIP's ``Resize.get_size``. Departure: where the short side would be rounded to 0 and the image be
        empty, it has one pixel, and the long side ``max_size``.
        """
        short, long = min(height, width), max(height, width)
        length = short_edge_length
        if long / short * length > max_size:
            length = round(max_size * short / long)
        if length == short:
            return height, width
        length, long = (length, int(length * long / short)) if length else (1, max_size)
        return (length, long) if height <= width else (long, length)


class ZoomWindow(T.Augmentation):
    """Show the network a window of the image at a sampled scale, so that objects come in more sizes than they have.

    The scale is that of the test times a zoom. An image that is larger than the window is cut to it at a random place
    where the middle of one of its boxes is in the window, of each box equally often; a smaller one stays whole.

    Args:
        zoom: Smallest and largest zoom, above 0; it is drawn log-uniformly.
        window: Short and long side of the window in pixels, laid as the image lies.
        test_size: Short side and limit of the long side of test images, see ``ResizeShortestEdgeLegacy``.
    """

    def __init__(self, zoom: tuple[float, float], window: tuple[int, int], test_size: tuple[int, int]) -> None:
        super().__init__()
        self._init({"zoom": zoom, "window": window, "test_size": test_size})

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None = None) -> Transform:
        """Sample zoom and place from ``np.random`` and return the transform of an image of (H, W, ...).

        Args:
            image: Its size counts alone.
            boxes: (M, 4) XYXY in pixels; without any the window lies anywhere.
        """
        height, width = image.shape[:2]
        test_height, _ = ResizeShortestEdgeLegacy.get_output_shape(height, width, *self.test_size)
        scale = test_height / height * np.exp(np.random.uniform(*np.log(self.zoom)))
        window = self.window if height <= width else self.window[::-1]
        size = [min(side, max(1, round(limit / scale))) for side, limit in zip((height, width), window, strict=True)]
        middle: tuple[float | None, float | None] = (None, None)
        if boxes is not None and len(boxes):
            x1, y1, x2, y2 = boxes[np.random.randint(len(boxes))]
            middle = ((y1 + y2) / 2, (x1 + x2) / 2)
        top, left = map(_random_begin, (height, width), size, middle)
        new_height, new_width = (max(1, round(part * scale)) for part in size)
        return T.TransformList(
            [
                CropTransform(left, top, size[1], size[0], width, height),
                ResizeTransformLegacy(*size, new_height, new_width, Image.Resampling.BILINEAR),
            ]
        )


def _random_begin(side: int, part: int, shown: float | None) -> int:
    """Sample where a part of a side of an image begins, in pixels, with a place in it that is to be shown, if any."""
    least, most = 0, side - part
    if shown is not None:
        pixel = min(max(math.floor(shown), 0), side - 1)
        least, most = max(least, pixel - part + 1), min(most, pixel)
    return int(np.random.randint(least, most + 1))


class ImageVersions:
    """Make further versions of a test image.

    One is finer, for a classifier that sees more of an object than the network does. The other is for the base of a
    tuning, which was trained on images of another size than the tuned weights.

    Args:
        scale: Sides of the finer version over those of the network's image; None: there is none.
        base_size: Short side and limit of the long side of the base's version; (): there is none.
        base_scale: ``scale`` of the base's version.
    """

    def __init__(
        self, scale: float | None = None, base_size: Sequence[int] = (), base_scale: float | None = None
    ) -> None:
        self.scale, self.base_size, self.base_scale = scale, tuple(base_size), base_scale
        self._base_resize: ResizeShortestEdgeLegacy | None = None
        if self.base_size:
            short, longest = self.base_size
            self._base_resize = ResizeShortestEdgeLegacy(short, longest, "choice")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> ImageVersions:
        """Read CLASS_WORDS and TUNING.KEEP; with TEST.AUG the base sees the sizes that the tuned weights see.

        Raises:
            InputError: The size of the base is not two numbers from 0 on.
        """
        words, keep = cfg.MODEL.GLIPV2.CLASS_WORDS, cfg.MODEL.GLIPV2.TUNING.KEEP
        size = tuple(keep.SIZE_TEST)
        if size and (len(size) != 2 or min(size) < 0):
            expected = "the short side and the limit of the long side, pixels, or nothing"
            raise InputError(f"MODEL.GLIPV2.TUNING.KEEP.SIZE_TEST: expected {expected}, found {size}")
        scales = (scale if words.ENABLED and scale > 1 else None for scale in (words.IMAGE_SCALE, keep.IMAGE_SCALE))
        return cls(next(scales), () if cfg.TEST.AUG.ENABLED else size, next(scales))

    def __call__(self, image: np.ndarray, size: Sequence[int]) -> dict[str, Any]:
        """Resize an image (H, W, 3), whose version for the network has the size (h, w).

        Returns:
            ``fine_image`` and ``of_base`` of a model input, those that there are, with the numbers of the image.
        """
        versions: dict[str, Any] = _finer(image, size, self.scale)
        if self._base_resize is not None:
            shown = channels_first(self._base_resize.get_transform(image).apply_image(image))
            versions["of_base"] = {"image": shown, **_finer(image, shown.shape[1:], self.base_scale)}
        return versions


def _finer(image: np.ndarray, size: Sequence[int], scale: float | None) -> dict[str, Tensor]:
    if scale is None:
        return {}
    height, width = (max(1, round(side * scale)) for side in size)
    resize = ResizeTransformLegacy(*image.shape[:2], height, width, Image.Resampling.BILINEAR)
    return {"fine_image": channels_first(resize.apply_image(image))}


def channels_first(image: np.ndarray) -> Tensor:
    """Return pixels (H, W, 3) as a tensor (3, H, W) of its own."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def least_side(cfg: CfgNode) -> int | None:
    """Return how many pixels the short side of a training image may be asked for, None where all may count.

    It is None without INPUT.REDUCED_DECODING, with crops, whose size is in pixels of the image, and where an image may
    keep its size.
    """
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if not cfg.INPUT.REDUCED_DECODING or cfg.INPUT.CROP.ENABLED or 0 in sizes:
        return None
    return math.ceil(cfg.INPUT.MIN_SIZE_TEST * cfg.INPUT.ZOOM[1]) if cfg.INPUT.ZOOM else max(sizes)


def build_augmentations(cfg: CfgNode, is_train: bool, at_original_size: bool = False) -> list[T.Augmentation]:
    """List the augmentations of INPUT: test images are resized as in GLIP.

    Training images are cropped if that is enabled, resized or zoomed (INPUT.ZOOM), flipped, and changed in colour.

    Args:
        cfg: The config.
        is_train: For training.
        at_original_size: Test images keep their size, as for ``MultiScaleModel``.

    Raises:
        InputError: A key of INPUT has none of its values.
    """
    if not is_train and at_original_size:
        return []
    if not is_train:
        return [ResizeShortestEdgeLegacy(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
    augmentations: list[T.Augmentation] = [
        ResizeShortestEdgeLegacy(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)
    ]
    if zoom := tuple(cfg.INPUT.ZOOM):
        if len(zoom) != 2 or not 0 < zoom[0] <= zoom[1]:
            raise InputError(f"INPUT.ZOOM: expected the least and the greatest zoom, above 0, found {zoom}")
        window = (cfg.INPUT.MIN_SIZE_TRAIN[-1], cfg.INPUT.MAX_SIZE_TRAIN)
        augmentations = [ZoomWindow(zoom, window, (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST))]
    if cfg.INPUT.CROP.ENABLED:
        augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
    flip = cfg.INPUT.RANDOM_FLIP
    if flip not in ("none", "horizontal", "vertical"):
        raise InputError(f"INPUT.RANDOM_FLIP is {flip!r}, expected 'horizontal', 'vertical' or 'none'")
    if flip != "none":
        augmentations.append(T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical"))
    jitter = cfg.INPUT.COLOR_JITTER
    if not 0 <= jitter < 1:
        raise InputError(f"INPUT.COLOR_JITTER: expected a number from 0 to below 1, found {jitter}")
    if jitter:
        for augmentation in (T.RandomBrightness, T.RandomContrast, T.RandomSaturation):
            augmentations.append(augmentation(1 - jitter, 1 + jitter))
    return augmentations
