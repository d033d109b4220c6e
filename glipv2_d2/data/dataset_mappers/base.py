"""From a dataset dict to a model input: the steps that all tasks share."""

from __future__ import annotations

import contextlib
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances
from PIL import Image

from ...structures import TokenizedPrompt

# What PIL and its decoders raise for missing, truncated and broken files.
_DECODING_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)


class UnreadableImageError(RuntimeError):
    """An image file that is missing, broken, or not of the size its annotation says; the message is one line."""


class PromptedBoxes(NamedTuple):
    """The prompt of a training sample and the boxes that its phrases name.

    Attributes:
        prompt: What the model reads.
        boxes: (M, 4) float, XYXY in pixels of the original image; M may be 0.
        rows: (M,) int64, row of each box in ``prompt.phrase_token_map``.
        category_ids: (M,) int64, id of each box across images, -1 if none.
    """

    prompt: TokenizedPrompt
    boxes: np.ndarray
    rows: np.ndarray
    category_ids: np.ndarray


@contextlib.contextmanager
def _seeded_numpy(seed: int) -> Iterator[None]:
    """Seed the global generator of numpy, which detectron2's augmentations draw from, and restore it afterwards."""
    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(state)


class PromptDatasetMapper(ABC):
    """Read an image, augment it and put prompt and boxes beside it; a subclass says which prompt and which boxes.

    All randomness of a sample comes from the ``sample_seed`` in its dataset dict, so that a sample does not depend on
    the process that makes it. A dict without one draws it from ``np.random``.
    """

    def __init__(self, *, is_train: bool, augmentations: Sequence[T.Augmentation], image_format: str):
        """
        Args:
            is_train: Add ``instances``, and make a prompt for each sample.
            augmentations: Applied in this order.
            image_format: As INPUT.FORMAT, "BGR" or "RGB".
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format

    @abstractmethod
    def training_target(self, dataset_dict: dict, rng: np.random.Generator) -> PromptedBoxes:
        """Choose the prompt of a training sample and the boxes that stay; all randomness comes from ``rng``."""

    @abstractmethod
    def test_prompts(self, dataset_dict: dict) -> list[TokenizedPrompt]:
        """Return the prompts that an image is tested with, one per chunk of names."""

    def __call__(self, dataset_dict: dict) -> dict:
        """Make a model input (see ``structures``) from a dataset dict, which stays as it is.

        Raises:
            UnreadableImageError: The image cannot be read, or its size differs from the ``height`` and ``width`` given.
        """
        if not self.is_train:
            return {**self.test_image(dataset_dict), "prompts": self.test_prompts(dataset_dict)}
        seed = dataset_dict.get("sample_seed")
        if seed is None:
            seed = int(np.random.randint(2**31))
        with _seeded_numpy(seed):
            sample, transforms = self._read(dataset_dict)
        target = self.training_target(dataset_dict, np.random.default_rng(seed))
        sample["prompts"] = [target.prompt]
        sample["instances"] = self._instances(target, transforms, sample["image"].shape[1:])
        return sample

    def test_image(self, dataset_dict: dict) -> dict:
        """Make a model input without its prompts, for a loader that adds those that all images share."""
        return self._read(dataset_dict)[0]

    def _read(self, dataset_dict: dict) -> tuple[dict, T.TransformList]:
        sample = {key: dataset_dict[key] for key in ("file_name", "image_id", "height", "width") if key in dataset_dict}
        try:
            image = detection_utils.read_image(sample["file_name"], format=self.image_format)
            detection_utils.check_image_size(sample, image)
        except _DECODING_ERRORS as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UnreadableImageError(
                f"{sample['file_name']}: {reason}; expected a readable image of the size in its annotation"
            ) from error
        aug_input = T.AugInput(image)
        transforms = self.augmentations(aug_input)
        sample["image"] = torch.from_numpy(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))  # (3, H, W)
        return sample, transforms

    @staticmethod
    def _instances(target: PromptedBoxes, transforms: T.TransformList, image_size: Sequence[int]) -> Instances:
        boxes = Boxes(torch.from_numpy(transforms.apply_box(target.boxes.reshape(-1, 4)).astype(np.float32)))
        instances = Instances(tuple(image_size))
        boxes.clip(instances.image_size)
        instances.gt_boxes = boxes
        instances.gt_classes = torch.from_numpy(target.rows)
        instances.gt_category_ids = torch.from_numpy(target.category_ids)
        # A crop or a strong reduction can leave nothing of a box.
        return instances[boxes.nonempty()]
