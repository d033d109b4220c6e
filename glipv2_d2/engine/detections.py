"""The result for one image: detectron2's dict, and the other forms that people want it in."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..evaluation.mask_encoding import encode_masks
from ..visualizer import GroundingVisualizer
from .image_inputs import ImageInput, as_bgr


class Detections(dict[str, Any]):
    """What was found in one image: ``instances`` and ``phrases``, see ``GLIPv2Predictor``, and methods on them.

    Of an image that could not be read it holds ``error``, one line, and no instances.

    Attributes:
        source: Path or address of the image; None if it came as pixels.
    """

    def __init__(self, content: Mapping[str, Any], source: str | None = None) -> None:
        super().__init__(content)
        self.source = source

    @classmethod
    def failed(cls, error: str, phrases: Sequence[str], source: str | None = None) -> Detections:
        """Return the result for an image that could not be read."""
        return cls({"instances": no_instances((0, 0)), "phrases": list(phrases), "error": error}, source)

    @property
    def error(self) -> str | None:
        """Why there is no result, one line; None if there is one."""
        return self.get("error")

    def above(self, threshold: float) -> Detections:
        """Return the result with the detections of at least this score in [0, 1]."""
        instances = self["instances"]
        # The rows are counted once, not for each field.
        rows = (instances.scores >= threshold).nonzero().squeeze(1)
        return Detections({**self, "instances": instances[rows]}, self.source)

    def best(self, number: int) -> Detections:
        """Return the result with at most so many detections, those of the highest scores."""
        instances = self["instances"]
        if len(instances) > number:
            instances = instances[instances.scores.argsort(descending=True, stable=True)[:number]]
        return Detections({**self, "instances": instances}, self.source)

    def to_json(self) -> dict[str, Any]:
        """Return the result in plain types, for ``json.dumps``.

        Returns:
            ``source``; ``height`` and ``width`` of the image in pixels; ``detections``, see ``list_detections``; and
            ``error``, if there is one.
        """
        height, width = self["instances"].image_size
        content = {"source": self.source, "height": height, "width": width}
        content["detections"] = list_detections(self["instances"], self["phrases"])
        return content | ({"error": self.error} if self.error else {})

    def to_coco(
        self, image_id: int, category_ids: Sequence[int] | Mapping[str, int] | None = None
    ) -> list[dict[str, Any]]:
        """Return the detections as entries of a COCO results file.

        Args:
            image_id: Id of the image.
            category_ids: Id of each phrase, by its row or by its text; None: the row + 1.

        Returns:
            Dicts with ``image_id``, ``category_id``, ``bbox`` (left, top, width and height in pixels), ``score``, and
            with masks ``segmentation`` as compressed run lengths.

        Raises:
            InputError: A phrase that was found has no id.
        """
        instances = self["instances"].to("cpu")
        masks = list_masks(instances.pred_masks) if instances.has("pred_masks") else None
        entries = []
        for k, (row, score, box) in enumerate(_rows(instances)):
            entry = {
                "image_id": image_id,
                "category_id": self._category_id(row, category_ids),
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "score": score,
            }
            entries.append(entry if masks is None else {**entry, "segmentation": masks[k]})
        return entries

    def _category_id(self, row: int, category_ids: Sequence[int] | Mapping[str, int] | None) -> int:
        if category_ids is None:
            return row + 1
        phrase = self["phrases"][row]
        try:
            return category_ids[phrase] if isinstance(category_ids, Mapping) else category_ids[row]
        except LookupError:
            raise InputError(f"category_ids: expected an id for {phrase!r}, found none") from None

    def to_supervision(self) -> Any:
        """Return ``supervision.Detections``, with ``class_id`` the rows of ``phrases`` and ``data["class_name"]``.

        Raises:
            InputError: The package supervision is not installed.
        """
        try:
            import supervision
        except ModuleNotFoundError as error:
            if error.name != "supervision":
                raise
            raise InputError(
                "to_supervision: expected the package supervision, found none; pip install supervision"
            ) from None
        instances = self["instances"].to("cpu")
        rows = instances.pred_classes.numpy()
        return supervision.Detections(
            xyxy=instances.pred_boxes.tensor.numpy(),
            mask=instances.pred_masks.numpy() if instances.has("pred_masks") else None,
            confidence=instances.scores.numpy(),
            class_id=rows,
            data={"class_name": np.array([self["phrases"][row] for row in rows], dtype=str)},
        )

    def draw(
        self,
        image: ImageInput | None = None,
        *,
        caption: str | None = None,
        channel_order: str = "BGR",
        style: str = "auto",
    ) -> Image.Image:
        """Draw boxes, masks and phrases with scores.

        Args:
            image: The image that was given, in any form but an address; None: it is read from ``source``.
            caption: Text below the image.
            channel_order: See ``as_bgr``.
            style: See ``GroundingVisualizer``.

        Raises:
            InputError: There is no image, it cannot be read, or it has another size.
        """
        if image is None and self.source is None:
            raise InputError("draw: expected the image, since this one came as pixels, found none; draw(image)")
        pixels = as_bgr(self.source if image is None else image, channel_order=channel_order)  # type: ignore[arg-type]
        instances = self["instances"].to("cpu")
        if not self.error and pixels.shape[:2] != tuple(instances.image_size):
            raise InputError(f"draw: expected an image of {instances.image_size}, found {pixels.shape[:2]}")
        visualizer = GroundingVisualizer(pixels[:, :, ::-1].astype(np.uint8), style=style)
        return Image.fromarray(visualizer.draw_predictions(instances, self["phrases"], caption))

    def save(self, path: str | os.PathLike, image: ImageInput | None = None, **options: Any) -> None:
        """Write the drawing as an image file; for ``image`` and the options see ``draw``.

        Raises:
            InputError: As ``draw``, or the suffix of the path is that of no image.
        """
        suffix = Path(path).suffix.lower()
        if Image.registered_extensions().get(suffix) not in Image.SAVE:
            raise InputError(f"save: expected a path that ends as .png or .jpg, found {os.fspath(path)!r:.200}")
        self.draw(image, **options).save(path)


def no_instances(image_size: tuple[int, int]) -> Instances:
    """Return no detections, for an image of this height and width."""
    instances = Instances(image_size)
    instances.pred_boxes = Boxes(torch.zeros(0, 4))
    instances.scores = torch.zeros(0)
    instances.pred_classes = torch.zeros(0, dtype=torch.int64)
    return instances


def list_detections(instances: Instances, phrases: Sequence[str]) -> list[dict[str, Any]]:
    """Return each detection in plain types.

    Returns:
        Dicts with ``phrase``; ``score`` in [0, 1], rounded to 4 digits; ``box``, XYXY in pixels of the image, rounded
        to 2 digits; and with masks ``segmentation``, COCO's compressed run lengths.
    """
    detections = [{"phrase": phrases[row], **rounded_box(score, box)} for row, score, box in _rows(instances)]
    if not instances.has("pred_masks"):
        return detections
    masks = list_masks(instances.pred_masks)
    return [{**detection, "segmentation": mask} for detection, mask in zip(detections, masks, strict=True)]


def rounded_box(score: float, box: Sequence[float] | None) -> dict[str, Any]:
    """Return score and box, rounded for a JSON file; a word may have no box."""
    return {"score": round(score, 4), "box": None if box is None else [round(edge, 2) for edge in box]}


def list_masks(masks: Tensor) -> list[dict[str, Any]]:
    """Return masks (K, H, W) bool as COCO's compressed run lengths."""
    size = list(masks.shape[1:])
    return [{"size": size, "counts": counts.decode("ascii")} for counts in encode_masks(masks)]


def _rows(instances: Instances) -> list[tuple[int, float, list[float]]]:
    """Return class, score and box of each detection in plain types."""
    columns = (instances.pred_classes[:, None], instances.scores[:, None], instances.pred_boxes.tensor)
    # In one copy from a device; all of them are exact in double precision.
    rows = torch.cat([column.double() for column in columns], dim=1).tolist()
    return [(int(row[0]), row[1], row[2:]) for row in rows]
