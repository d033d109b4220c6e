"""DyHead as a detectron2 meta-architecture: the detector of GLIPv2 without text, for the classes of one dataset."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_anchor_generator, build_backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Instances
from torch import Tensor, nn

from ...errors import InputError
from ...structures import GroundingPredictions, LanguageFeatures
from ..detections import rescale_instances
from ..fusion_tower import FusionTower
from ..heads.class_head import ClassHead
from ..parts import build_tower


@META_ARCH_REGISTRY.register()
class DyHead(DenseDetector):
    """Detect objects of fixed classes: what a model knows that was never pre-trained on text.

    Backbone, tower, matching, losses of boxes and choice of detections are those of ``GLIPv2`` without fusion, and so
    are the names of their parameters. It takes the same inputs (see ``structures``) and reads nothing of the prompts
    but the number of their names: they have to be all K of its classes. What it learns is the ``gt_category_ids``.

    Args:
        backbone: Returns the named levels.
        tower: A tower without fusion.
        head: Classifies anchors, regresses boxes.
        anchor_generator: One anchor per location and level.
        head_in_features: Levels that the tower reads, fine to coarse.
        pixel_mean, pixel_std: One number per channel, in ``INPUT.FORMAT`` order.

    Source: DyHead (arXiv 2106.08322); the baseline of GLIPv2, Tables 3 and 12.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        tower: FusionTower,
        head: ClassHead,
        anchor_generator: nn.Module,
        head_in_features: list[str],
        pixel_mean: list[float],
        pixel_std: list[float],
    ) -> None:
        super().__init__(backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.fusion_tower = tower
        self.anchor_generator = anchor_generator
        self._class_prompt = head.class_prompt()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        config = cfg.MODEL.GLIPV2
        needs_text = {
            "MODEL.MASK_ON": cfg.MODEL.MASK_ON,
            "MODEL.GLIPV2.FUSION.POSITIONS": config.FUSION.POSITIONS,
            "MODEL.GLIPV2.CONTRASTIVE.ENABLED": config.CONTRASTIVE.ENABLED,
            "MODEL.GLIPV2.MLM.ENABLED": config.MLM.ENABLED,
            "MODEL.GLIPV2.PHRASE_CENTER.ENABLED": config.PHRASE_CENTER.ENABLED,
            "MODEL.GLIPV2.VQA.ENABLED": config.VQA.ENABLED,
            "MODEL.GLIPV2.CAPTIONING.ENABLED": config.CAPTIONING.ENABLED,
        }
        for key, value in needs_text.items():
            if value:
                raise InputError(f"{key}: expected False for MODEL.META_ARCHITECTURE 'DyHead', which has no text")
        if config.TUNING.WEIGHTS or config.TUNING.MASK_HEAD:
            raise InputError("MODEL.GLIPV2.TUNING.WEIGHTS, MASK_HEAD: a DyHead takes neither, expected both empty")
        if config.TUNING.MODE != "full":
            raise InputError(
                f"MODEL.GLIPV2.TUNING.MODE: expected 'full' for MODEL.META_ARCHITECTURE 'DyHead', "
                f"found {config.TUNING.MODE!r}"
            )
        backbone = build_backbone(cfg)
        levels, shapes = list(config.IN_FEATURES), backbone.output_shape()
        missing = [level for level in levels if level not in shapes]
        if missing:
            raise InputError(f"MODEL.GLIPV2.IN_FEATURES: the backbone has the levels {list(shapes)}, not {missing}")
        tower = build_tower(cfg, shapes[levels[0]].channels)
        return {
            "backbone": backbone,
            "tower": tower,
            "head": ClassHead(cfg, channels=tower.out_channels, num_levels=len(levels)),
            "anchor_generator": build_anchor_generator(cfg, [shapes[level] for level in levels]),
            "head_in_features": levels,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Run N images; see ``structures`` for the keys of inputs and outputs.

        At test time images run one by one: the network does not mask padding.

        Raises:
            InputError: An input asks for something else than detection, has a box of another category than the K
                classes, or prompts with another number of names.
        """
        tasks = sorted({inputs.get("task", "detection") for inputs in batched_inputs})
        if tasks != ["detection"]:
            raise InputError(f"model input: task is {tasks}, expected 'detection' for a model without text")
        if self.training:
            return self._forward_losses(batched_inputs)
        return [self._detect(inputs) for inputs in batched_inputs]

    def _forward_losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        if not all("instances" in inputs for inputs in batched_inputs):
            raise InputError("model input: expected 'instances' in training, found none; use glipv2_d2.data's loaders")
        instances = [self._with_classes(inputs["instances"].to(self.device)) for inputs in batched_inputs]
        images = self.preprocess_image(batched_inputs)
        features, predictions = self._predict(images.tensor)
        anchors = self.anchor_generator(features)
        prompts = [self._class_prompt] * len(instances)
        targets = self.head.label_anchors(anchors, instances, prompts, self.head.num_classes)
        all_classes = self.pixel_mean.new_ones(len(instances), self.head.num_classes).bool()
        return self.head.losses(predictions, anchors, targets, all_classes)

    def _with_classes(self, instances: Instances) -> Instances:
        """Return the boxes of an image with their category as ``gt_classes``."""
        classes = instances.gt_category_ids
        outside = classes[(classes < 0) | (classes >= self.head.num_classes)]
        if len(outside):
            raise InputError(
                f"model input: gt_category_ids: expected 0 to {self.head.num_classes - 1} "
                f"(MODEL.GLIPV2.CLASS_HEAD.NUM_CLASSES {self.head.num_classes}), found {int(outside[0])}"
            )
        return Instances(instances.image_size, gt_boxes=instances.gt_boxes, gt_classes=classes)

    def _predict(self, images: Tensor) -> tuple[list[Tensor], GroundingPredictions]:
        """Return the levels of the pyramid, and the predictions for N images (N, 3, H, W)."""
        maps = self.backbone(images)
        features = [maps[level] for level in self.head_in_features]
        no_tokens = images.new_zeros(len(images), 0, 0)
        no_text = LanguageFeatures(no_tokens, no_tokens, no_tokens.any(dim=-1))
        levels, _ = self.fusion_tower(features, no_text)
        return features, self.head(levels)

    def _detect(self, inputs: dict[str, Any]) -> dict[str, Any]:
        prompts = inputs.get("prompts") or [self._class_prompt]
        num_names = sum(len(prompt.phrases) for prompt in prompts)
        if num_names != self.head.num_classes:
            raise InputError(
                f"model input: prompts: expected the names of all {self.head.num_classes} classes "
                f"(MODEL.GLIPV2.CLASS_HEAD.NUM_CLASSES), found {num_names} names"
            )
        images = self.preprocess_image([inputs])
        features, predictions = self._predict(images.tensor)
        anchors = self.anchor_generator(features)
        (instances,) = self.head.inference(predictions, anchors, images.image_sizes, [self._class_prompt])
        return {"instances": rescale_instances(instances, inputs.get("height"), inputs.get("width"))}
