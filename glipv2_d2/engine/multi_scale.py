"""Test-time augmentation: one image at several sizes, also mirrored, with its detections merged."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_iou

from ..data.transforms import ImageVersions, ResizeShortestEdgeLegacy, channels_first
from ..device_copies import instances_to_device
from ..errors import InputError

MERGES = ("vote", "nms")
# A mirrored image has its sides exchanged, and with them the meaning of these words.
_SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)


class ScaleSettings(NamedTuple):
    """How an image is shown to the model, and how what was found is merged.

    Attributes:
        min_sizes: Short sides in pixels, at least one.
        max_size: Limit of the long side in pixels.
        flip: Each size is shown mirrored, too.
        size_ranges: For each size the least and the most square root of the area of a box, in pixels of the original
            image, that counts there; none: all boxes count.
        merge: "vote" or "nms", see ``merge_detections``.
        nms_thresh: IoU from which on two boxes of a class are one.
        per_image: Detections to keep of an input without ``detection_limits``; 0 keeps all.
    """

    min_sizes: tuple[int, ...]
    max_size: int
    flip: bool = True
    size_ranges: tuple[tuple[float, float], ...] = ()
    merge: str = "vote"
    nms_thresh: float = 0.6
    per_image: int = 100

    @classmethod
    def from_config(cls, cfg: CfgNode) -> ScaleSettings:
        """Read TEST.AUG.

        Raises:
            InputError: A key has a value that is not allowed.
        """
        config = cfg.TEST.AUG
        sizes, ranges = tuple(config.MIN_SIZES), tuple(tuple(one) for one in config.SIZE_RANGES)
        if not sizes or min(sizes) < 1:
            raise InputError(f"TEST.AUG.MIN_SIZES: expected sizes in pixels, found {list(sizes)}")
        if ranges and (len(ranges) != len(sizes) or any(len(one) != 2 for one in ranges)):
            raise InputError(
                f"TEST.AUG.SIZE_RANGES: expected none, or least and most for each of the {len(sizes)} "
                f"TEST.AUG.MIN_SIZES, found {list(ranges)}"
            )
        if config.MERGE not in MERGES:
            raise InputError(f"TEST.AUG.MERGE: expected one of {list(MERGES)}, found {config.MERGE!r}")
        limit = cfg.TEST.DETECTIONS_PER_IMAGE
        return cls(sizes, config.MAX_SIZE, config.FLIP, ranges, config.MERGE, config.NMS_THRESH, limit)


class MultiScaleModel(nn.Module):
    """A detector that looks at each image at all sizes of TEST.AUG, and mirrored; the interface is that of the model.

    It takes images in their original size. Images are not mirrored if a phrase says "left" or "right". A mask is that
    of the detection whose score and class are kept. Questions, and captions to be written, go to the model as they are.

    Args:
        model: Any detector of this package.
        settings: The sizes and the merging.
        image_versions: Adds further versions to the image at each size.

    Source: the starred rows of GLIPv2, Tables 1 and 2; the multi-scale test of the official code. Departure: detectron2
    averages the masks of all versions of an image, here the best one counts.
    """

    def __init__(self, model: nn.Module, settings: ScaleSettings, image_versions: ImageVersions | None = None) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.image_versions = image_versions or ImageVersions()

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Run N inputs at test time; see ``structures`` for the keys of inputs and outputs."""
        return [
            self._detect(inputs) if inputs.get("task", "detection") == "detection" else self.model([inputs])[0]
            for inputs in batched_inputs
        ]

    def _detect(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Detect in one image."""
        settings = self.settings
        phrases = [phrase for prompt in inputs.get("prompts") or () for phrase in prompt.phrases]
        flips = (False, True) if settings.flip and not any(map(_SIDES.search, phrases)) else (False,)
        pixels, found, masks = inputs["image"].permute(1, 2, 0).cpu().numpy(), [], []
        for index, size in enumerate(settings.min_sizes):
            shown = self._resize(pixels, size)
            for is_flipped in flips:
                version = {key: one.flip(2) for key, one in shown.items()} if is_flipped else shown
                instances = self.model([{**inputs, **version}])[0]["instances"]
                # They are merged one by one, and a device would have to be asked for each.
                device, instances = instances.scores.device, instances.to("cpu")
                if is_flipped:
                    _mirror(instances)
                if settings.size_ranges:
                    sides = instances.pred_boxes.area().sqrt()
                    least, most = settings.size_ranges[index]
                    instances = instances[(sides >= least) & (sides <= most)]
                if instances.has("pred_masks"):
                    # A bit for a pixel: dozens of versions have thousands of masks.
                    masks.append(np.packbits(instances.pred_masks.flatten(1).numpy(), axis=1))
                    instances.remove("pred_masks")
                found.append(instances)
        limits = inputs.get("detection_limits")
        limit = settings.per_image if limits is None else limits.per_image
        merged, rows = merge_detections(Instances.cat(found), settings.merge, settings.nms_thresh, limit)
        if masks:
            height, width = merged.image_size
            kept = np.unpackbits(np.concatenate(masks)[rows.numpy()], axis=1, count=height * width)
            merged.pred_masks = torch.from_numpy(kept.astype(bool)).view(-1, height, width)
        return {"instances": instances_to_device([merged], device)[0]}

    def _resize(self, pixels: np.ndarray, size: int) -> dict[str, Tensor]:
        """Resize an image (H, W, 3) as the loader does; return its entries of a model input."""
        resize = ResizeShortestEdgeLegacy(size, self.settings.max_size, "choice").get_transform(pixels)
        image = channels_first(resize.apply_image(pixels))
        return {"image": image, **self.image_versions(pixels, image.shape[1:])}


def single_scale(cfg: CfgNode) -> tuple[ResizeShortestEdgeLegacy, ImageVersions]:
    """Return the resizing of test images to the one size of INPUT, and that of their further versions."""
    resize = ResizeShortestEdgeLegacy(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")
    return resize, ImageVersions.from_config(cfg)


def multi_scale(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Return the model, inside of a ``MultiScaleModel`` if TEST.AUG.ENABLED asks for it."""
    if not cfg.TEST.AUG.ENABLED:
        return model
    return MultiScaleModel(model, ScaleSettings.from_config(cfg), ImageVersions.from_config(cfg))


def merge_detections(
    instances: Instances, merge: str, nms_thresh: float, max_detections: int
) -> tuple[Instances, Tensor]:
    """Merge the detections of one image, class by class.

    With "nms" a box goes if a better one of its class overlaps it by more than ``nms_thresh``. With "vote" the best box
    left takes all boxes that overlap it by at least ``nms_thresh``, and becomes their mean, weighted by their scores.

    Args:
        instances: ``pred_boxes``, ``scores``, ``pred_classes``, K of each; K may be 0.
        merge: "vote" or "nms".
        nms_thresh: An IoU.
        max_detections: The best to keep, with all that tie with the last of them; 0 keeps all.

    Returns:
        The detections that are kept, best first, and their rows in ``instances``.

    Source: ``bbox_vote`` of the official multi-scale test.
    """
    boxes, scores, classes = instances.pred_boxes.tensor, instances.scores, instances.pred_classes
    if merge == "nms":
        rows = batched_nms(boxes.double(), scores.double(), classes, nms_thresh)
        merged = boxes[rows]
    else:
        rows, merged = _vote(boxes, scores, classes, nms_thresh)
    if 0 < max_detections < len(rows):
        kept = scores[rows] >= scores[rows[max_detections - 1]]
        rows, merged = rows[kept], merged[kept]
    result = instances[rows]
    result.pred_boxes = Boxes(merged)
    return result, rows


def _vote(boxes: Tensor, scores: Tensor, classes: Tensor, thresh: float) -> tuple[Tensor, Tensor]:
    """Return the rows of the boxes that lead, best first, and the means (K, 4) of those that they take."""
    leaders, means = [], []
    for one in classes.unique():
        left = (classes == one).nonzero().squeeze(1)
        left = left[scores[left].argsort(descending=True, stable=True)]
        while len(left):
            taken = box_iou(boxes[left[:1]].double(), boxes[left].double())[0] >= thresh
            taken[0] = True  # A box without area overlaps not even itself.
            # Scores of 0 weigh alike.
            weights = scores[left[taken]].double().clamp(min=torch.finfo(torch.float64).tiny)
            means.append((boxes[left[taken]].double() * weights[:, None]).sum(dim=0) / weights.sum())
            leaders.append(left[0])
            left = left[~taken]
    if not leaders:
        return classes.new_zeros(0), boxes
    rows = torch.stack(leaders)
    order = scores[rows].argsort(descending=True, stable=True)
    return rows[order], torch.stack(means)[order].to(boxes)


def _mirror(instances: Instances) -> None:
    """Mirror boxes and masks in the original image, in place."""
    width = instances.image_size[1]
    left, top, right, bottom = instances.pred_boxes.tensor.unbind(dim=1)
    instances.pred_boxes = Boxes(torch.stack([width - right, top, width - left, bottom], dim=1))
    if instances.has("pred_masks"):
        instances.pred_masks = instances.pred_masks.flip(2)
