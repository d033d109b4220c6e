"""DyHead as a detectron2 meta-architecture: the detector of GLIPv2 without text, for the classes of one dataset."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Instances
from torch import Tensor

from ...errors import InputError
from ...structures import TokenizedPrompt
from ..batch import TrainBatch, boxes_on_cpu
from ..heads.class_head import ClassHead
from ..heads.table import HEADS
from ..tasks.detection import Detection
from ..tasks.prompt_passes import answer_by_size
from ..trunk import Trunk
from ..tuning import TuningSettings


@META_ARCH_REGISTRY.register()
class DyHead(Trunk):
    """Detect objects of fixed classes with a trunk without text.

    Backbone, tower, matching, box losses and choice of detections are those of ``GLIPv2`` without fusion, and so are
    the names of their parameters. It takes the same inputs (see ``structures``). Of the prompts it reads only the
    number of names, which has to be K, the number of its classes. It learns the ``gt_category_ids``.

    Source: DyHead (arXiv 2106.08322); the baseline of GLIPv2, Tables 3 and 12.
    """

    # No limit here, because the head has already chosen the best detections of the only prompt.
    _detection = Detection(max_detections=0)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts that the config describes.

        Raises:
            InputError: The config asks for something that needs text.
        """
        settings = cfg.MODEL.GLIPV2
        needs_text: dict[str, bool | int] = {
            "MODEL.GLIPV2.FUSION.POSITIONS": settings.FUSION.POSITIONS,
            "MODEL.GLIPV2.TEST.SHORTLIST": settings.TEST.SHORTLIST,
        }
        needs_text |= {entry.key: entry.is_on(cfg) for entry in HEADS.values()}
        for key, value in needs_text.items():
            if value:
                raise InputError(
                    f"{key}: expected {type(value)()} for MODEL.META_ARCHITECTURE 'DyHead', which has no text, "
                    f"found {value}"
                )
        tuning = TuningSettings.from_config(cfg)
        if cfg.MODEL.GLIPV2.TUNING.WEIGHTS or tuning.mask_head:
            raise InputError("MODEL.GLIPV2.TUNING.WEIGHTS, MASK_HEAD: a DyHead takes neither, expected both empty")
        if tuning.mode != "full":
            raise InputError(
                f"MODEL.GLIPV2.TUNING.MODE: expected 'full' for MODEL.META_ARCHITECTURE 'DyHead', found {tuning.mode!r}"
            )
        return cls.build_trunk(cfg, ClassHead, with_text=False)[0]

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Run N images; see ``structures`` for the keys of inputs and outputs.

        At test time images run together only if they are padded to the same size: the network does not mask padding.

        Raises:
            InputError: An input has another task, a box of a category outside the K classes, or another number of
                names.
        """
        name = self._detection.name
        asked = sorted({one.get("task", name) for one in batched_inputs})
        if asked != [name]:
            raise InputError(f"model input: task: expected {name!r} for a model without text, found {asked}")
        if self.training:
            batch = self.train_batch(batched_inputs, name, needs_boxes=True)
            return self.head.losses(self.fuse_batch(batch, self._detection.reading), batch)
        divisor = self.backbone.size_divisibility
        return answer_by_size(batched_inputs, divisor, functools.partial(self._detection.inference, self))

    def train_batch(self, inputs: Sequence[Mapping[str, Any]], task: str, needs_boxes: bool) -> TrainBatch:
        """Put N model inputs together, with the classes as prompt and the category of a box as its phrase."""
        prompts = [self.head.class_prompt()]
        inputs = [{**one, "prompts": prompts} for one in inputs]
        batch = super().train_batch(inputs, task, needs_boxes)
        for image in boxes_on_cpu(batch):
            self._check_classes(image.gt_category_ids)
        return batch._replace(instances=[self._with_classes(instances) for instances in batch.instances or ()])

    def prompts_of(self, inputs: Mapping[str, Any]) -> list[TokenizedPrompt]:
        """Return the classes as one prompt; the prompts of the input have to name exactly these classes."""
        prompts = inputs.get("prompts") or [self.head.class_prompt()]
        num_names = sum(len(prompt.phrases) for prompt in prompts)
        if num_names != self.head.num_classes:
            raise InputError(
                f"model input: prompts: expected the names of all {self.head.num_classes} classes "
                f"(MODEL.GLIPV2.CLASS_HEAD.NUM_CLASSES), found {num_names} names"
            )
        return [self.head.class_prompt()]

    def _with_classes(self, instances: Instances) -> Instances:
        """Return the boxes of an image with their category as ``gt_classes``."""
        classes = instances.gt_category_ids
        return Instances(instances.image_size, gt_boxes=instances.gt_boxes, gt_classes=classes)

    def _check_classes(self, classes: Tensor) -> None:
        outside = classes[(classes < 0) | (classes >= self.head.num_classes)]
        if len(outside):
            raise InputError(
                f"model input: gt_category_ids: expected 0 to {self.head.num_classes - 1} "
                f"(MODEL.GLIPV2.CLASS_HEAD.NUM_CLASSES {self.head.num_classes}), found {int(outside[0])}"
            )
