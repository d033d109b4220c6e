"""From a dataset dict to a model input: the steps that all tasks share."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances
from fvcore.transforms.transform import HFlipTransform

from ...errors import InputError
from ...prompts.masking import mask_tokens, trains_pretraining_losses
from ...prompts.tokenizer import PromptTokenizer
from ...structures import TokenizedPrompt
from ..image_reading import read_image
from ..mask_transforms import transform_masks
from ..transforms import ImageVersions, ResizeTransformLegacy, build_augmentations, least_side


class DroppedText(NamedTuple):
    """What the token limit of a prompt has cut off.

    Attributes:
        tokens: Tokens of the caption.
        phrases: Phrases that have a box, but no token any more.
        boxes: Boxes of these phrases.
    """

    tokens: int = 0
    phrases: int = 0
    boxes: int = 0


class PromptedBoxes(NamedTuple):
    """The prompt of a training sample and the boxes that its phrases name.

    Attributes:
        prompt: The prompt for the model; its ``category_ids`` are ids across images, -1 for none.
        annotations: The M boxes that stay, as the dataset has them; M may be 0.
        rows: (M,) int64, row of each box in ``prompt.phrase_token_map``.
        dropped: The text that did not fit into the prompt.
        own_tokens: (T,) bool, the tokens that speak of the image; None: all.
    """

    prompt: TokenizedPrompt
    annotations: list[dict]
    rows: np.ndarray
    dropped: DroppedText = DroppedText()
    own_tokens: torch.Tensor | None = None

    @classmethod
    def with_tokens(
        cls, prompt: TokenizedPrompt, annotations: list[dict], rows: np.ndarray, num_lost_tokens: int
    ) -> PromptedBoxes:
        """Keep those of M boxes whose phrase has a token, and count the others."""
        has_tokens = prompt.phrase_token_map.any(dim=1).numpy()
        kept = has_tokens[rows]
        return cls(
            prompt,
            [item for item, keep in zip(annotations, kept.tolist(), strict=True) if keep],
            rows[kept],
            DroppedText(num_lost_tokens, phrases=int((~has_tokens).sum()), boxes=int((~kept).sum())),
        )


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

    # The task in the metadata of the datasets whose samples it makes.
    task: ClassVar[str]
    # Every image that is trained on has one of these fields in its dataset dict.
    targets: ClassVar[tuple[str, ...]] = ("annotations",)
    # True: only boxes are learned. False: GROUNDED of the node ``config_node`` of MODEL.GLIPV2 says whether boxes are
    # learned too; without a node they are not.
    learns_boxes_alone: ClassVar[bool] = True
    config_node: ClassVar[str] = ""
    # The dataset has names, the same for all images.
    has_category_names: ClassVar[bool] = False
    # A teacher has predicted the boxes, and captions of other images make the prompt longer.
    has_pseudo_boxes: ClassVar[bool] = False

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: Sequence[T.Augmentation],
        image_format: str,
        tokenizer: PromptTokenizer,
        flip_words: bool = False,
        mask_prob: float | None = None,
        mask_only_positives: bool = True,
        with_masks: bool = False,
        least_side: int | None = None,
        image_versions: ImageVersions | None = None,
    ):
        """
        Args:
            is_train: Add ``instances``, and make a prompt for each sample.
            augmentations: Applied in this order.
            image_format: "BGR" or "RGB", as in INPUT.FORMAT.
            tokenizer: Tokenizer of the model's text encoder.
            flip_words: Swap "left" and "right" in the caption of an image that is mirrored in training.
            mask_prob: Probability that a token of a training prompt is masked; None: no masked language modelling.
            mask_only_positives: Only masked tokens of phrases with a box are to be restored.
            with_masks: Add ``gt_masks`` and ``gt_has_mask`` to ``instances``, from annotations as ``keep_usable_masks``
                leaves them.
            least_side: Images whose dict has their size may be decoded smaller, see ``read_image``.
            image_versions: Adds further versions to each test image.

        Raises:
            InputError: Tokens are to be masked, but the tokenizer has no mask token.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.tokenizer = tokenizer
        self.flip_words = flip_words
        self.mask_prob = mask_prob
        self.mask_only_positives = mask_only_positives
        self.with_masks = with_masks
        self.least_side = least_side
        self.image_versions = image_versions or ImageVersions()
        if mask_prob is not None:
            _ = tokenizer.mask_id  # An error here is one line before the first step, not one of a worker.

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        is_train: bool = True,
        tokenizer: PromptTokenizer | None = None,
        dataset_names: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Read the config.

        Args:
            cfg: The config.
            is_train: For training.
            tokenizer: A tokenizer to share; None builds one.
            dataset_names: The datasets that the samples come from; by default all of DATASETS.TRAIN or DATASETS.TEST.
        """
        mlm = cfg.MODEL.GLIPV2.MLM
        at_original_size = cfg.TEST.AUG.ENABLED and cls.learns_boxes_alone
        masks_words = is_train and mlm.ENABLED and trains_pretraining_losses(cfg) and cls.learns_boxes_alone
        return {
            "is_train": is_train,
            "augmentations": build_augmentations(cfg, is_train, at_original_size),
            "image_format": cfg.INPUT.FORMAT,
            "tokenizer": tokenizer or PromptTokenizer.from_config(cfg),
            "flip_words": cfg.INPUT.PROMPT.FLIP_WORDS,
            "mask_prob": mlm.MASK_PROB if masks_words else None,
            "mask_only_positives": False,
            "least_side": least_side(cfg) if is_train else None,
            "image_versions": None if is_train or at_original_size else ImageVersions.from_config(cfg),
            "with_masks": is_train and cfg.MODEL.MASK_ON and cls.learns_boxes_alone,
            **cls.own_options(cfg, dataset_names or (cfg.DATASETS.TRAIN if is_train else cfg.DATASETS.TEST)),
        }

    @classmethod
    def own_options(cls, cfg: CfgNode, dataset_names: Sequence[str]) -> dict[str, Any]:
        """Read the arguments that only this mapper has."""
        return {}

    @abstractmethod
    def training_target(self, dataset_dict: dict, rng: np.random.Generator) -> PromptedBoxes:
        """Choose the prompt of a training sample and the boxes that stay; all randomness comes from ``rng``."""

    @classmethod
    def test_dicts(cls, dataset_dicts: list[dict]) -> list[dict]:
        """Return those dicts of a dataset that are tested; by default all."""
        return dataset_dicts

    def test_sample(self, dataset_dict: dict) -> dict:
        """Make a model input for a test."""
        return {**self.test_image(dataset_dict), "prompts": self.test_prompts(dataset_dict)}

    def test_prompts(self, dataset_dict: dict) -> list[TokenizedPrompt]:
        """Return the prompts that an image is tested with, one per chunk of names; by default none."""
        return []

    def mirrored(self, dataset_dict: dict) -> dict:
        """Return a dataset dict whose text speaks of the mirrored image.

        By default it stays as it is: a changed word would turn the name of a category into that of another.
        """
        return dataset_dict

    def completed(self, sample: dict, dataset_dict: dict) -> dict:
        """Return a training sample with the fields that only this kind of data has.

        Args:
            sample: The finished sample, without the keys of the task.
            dataset_dict: Its text describes the image as it is in the sample, mirrored or not.
        """
        return sample

    def __call__(self, dataset_dict: dict) -> dict:
        """Make a model input (see ``structures``) from a dataset dict, which stays as it is.

        In training, text that the token limit cut off is counted under ``dropped``, a dict with those numbers of
        ``DroppedText`` that are not 0; without any it is absent.

        Raises:
            UnreadableImageError: The image cannot be read, or its size differs from the ``height`` and ``width`` given.
        """
        if not self.is_train:
            return self.test_sample(dataset_dict)
        seed = dataset_dict.get("sample_seed")
        if seed is None:
            seed = int(np.random.randint(2**31))
        with _seeded_numpy(seed):
            sample, transforms = self._read(dataset_dict)
        return self.training_sample(dataset_dict, sample, transforms, np.random.default_rng(seed))

    def training_sample(
        self, dataset_dict: dict, image_sample: dict, transforms: T.TransformList, rng: np.random.Generator
    ) -> dict:
        """Add prompt and boxes of a dataset dict to its image, which was read and augmented and stays as it is."""
        sample = dict(image_sample)
        if self.flip_words and _is_mirrored(transforms):
            dataset_dict = self.mirrored(dataset_dict)
        target = self.training_target(dataset_dict, rng)
        instances = self._instances(target, transforms, sample["image"].shape[1:])
        sample["prompts"] = [self._masked(target, instances, rng)]
        sample["instances"] = instances
        if any(target.dropped):
            sample["dropped"] = {key: number for key, number in target.dropped._asdict().items() if number}
        return self.completed(sample, dataset_dict)

    def test_image(self, dataset_dict: dict) -> dict:
        """Make a model input without prompts, for a loader that adds those that all images share."""
        return self._read(dataset_dict)[0]

    def _read(self, dataset_dict: dict) -> tuple[dict, T.TransformList]:
        sample = {key: dataset_dict[key] for key in ("file_name", "image_id", "height", "width") if key in dataset_dict}
        truncated: list[str] = []
        whole = (dataset_dict["height"], dataset_dict["width"]) if {"height", "width"} <= dataset_dict.keys() else None
        image = read_image(dataset_dict, self.image_format, truncated, self.least_side if whole else None)
        if truncated:
            sample["truncated_files"] = truncated
        sample.setdefault("height", image.shape[0])
        sample.setdefault("width", image.shape[1])
        shrink = T.TransformList([])
        if whole is not None and image.shape[:2] != whole:
            shrink = T.TransformList([ResizeTransformLegacy(*whole, *image.shape[:2])])
        aug_input = T.AugInput(image, boxes=shrink.apply_box(_boxes_of(boxes_to_train_on(dataset_dict))))
        transforms = shrink + self.augmentations(aug_input)
        sample["image"] = torch.from_numpy(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))  # (3, H, W)
        sample |= self.image_versions(image, sample["image"].shape[1:])
        return sample, transforms

    def _instances(self, target: PromptedBoxes, transforms: T.TransformList, image_size: Sequence[int]) -> Instances:
        moved = transforms.apply_box(_boxes_of(target.annotations))
        boxes = Boxes(torch.from_numpy(moved.astype(np.float32)))
        instances = Instances(tuple(image_size))
        boxes.clip(instances.image_size)
        instances.gt_boxes = boxes
        instances.gt_classes = torch.from_numpy(target.rows)
        instances.gt_category_ids = target.prompt.category_ids[instances.gt_classes]
        # A crop or a strong reduction can leave nothing of a box.
        is_left = boxes.nonempty()
        instances = instances[is_left]
        if self.with_masks:
            # Only for the boxes that are left: a mask can be as large as the image.
            left = [item for item, keep in zip(target.annotations, is_left.tolist(), strict=True) if keep]
            segmentations = [item.get("segmentation") for item in left]
            masks, has_mask = transform_masks(segmentations, transforms, instances.image_size)
            instances.gt_masks = masks
            instances.gt_has_mask = has_mask
        return instances

    def _masked(self, target: PromptedBoxes, instances: Instances, rng: np.random.Generator) -> TokenizedPrompt:
        prompt = target.prompt
        if self.mask_prob is None:
            return prompt
        has_box = torch.zeros(len(prompt.phrases), dtype=torch.bool)
        has_box[instances.gt_classes] = True
        return mask_tokens(
            prompt,
            has_box,
            self.tokenizer,
            mask_prob=self.mask_prob,
            only_positives=self.mask_only_positives,
            own_tokens=target.own_tokens,
            rng=rng,
        )


def boxes_to_train_on(dataset_dict: dict, min_score: float = 0.0) -> list[dict]:
    """Return the annotations that are boxes to learn from: crowd regions never are.

    Args:
        dataset_dict: May be without annotations.
        min_score: Pseudo boxes count from this score on; a box without a ``score`` was drawn by a person and always
            counts.
    """
    return [
        item
        for item in dataset_dict.get("annotations", ())
        if not item.get("iscrowd", 0) and item.get("score", 1.0) >= min_score
    ]


def image_of(dataset_dict: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what dataset dicts of one image have in common; copies of it in a shard have different names."""
    if "image_bytes" in dataset_dict:
        return (dataset_dict["image_bytes"],)
    return dataset_dict["file_name"], dataset_dict.get("tsv_offset")


def _boxes_of(annotations: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return the boxes of M annotations, (M, 4) XYXY in pixels."""
    boxes = [BoxMode.convert(item["bbox"], item["bbox_mode"], BoxMode.XYXY_ABS) for item in annotations]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def check_probability(key: str, value: float) -> None:
    """Check the value of a config key.

    Raises:
        InputError: It is outside [0, 1].
    """
    if not 0 <= value <= 1:
        raise InputError(f"{key}: expected a probability, found {value}")


def _is_mirrored(transforms: T.TransformList) -> bool:
    return sum(isinstance(transform, HFlipTransform) for transform in transforms.transforms) % 2 == 1
