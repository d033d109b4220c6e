"""Swin Transformer under an FPN: the backbone of GLIP and GLIPv2-T."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.swin import SwinTransformer
from torch import Tensor, nn

from ...layers.products import is_cpu_inference, library_layers
from .fpn import GroundingFPN, build_fpn
from .swin_stripes import run_stage


class FreezableSwin(SwinTransformer):
    """detectron2's Swin Transformer whose frozen stages stay in eval mode when the model is set to training.

    Without gradients its blocks run on a CPU by ``run_stage``, with equal results.

    Its features are named ``p{index}`` after the stage, 0..3; their strides are 4, 8, 16, 32. Arguments are those of
    ``SwinTransformer``.
    """

    def __init__(self, *, frozen_stages: int = -1, use_checkpoint: bool = False, **kwargs: Any) -> None:
        super().__init__(frozen_stages=frozen_stages, use_checkpoint=use_checkpoint, **kwargs)
        if use_checkpoint:
            # detectron2's checkpointing gives a block no gradient if the input of the block needs none, as is the case
            # after frozen stages or a fixed patch embedding.
            self.layers[max(frozen_stages - 1, 0)].register_forward_pre_hook(_require_gradient)

    def train(self, mode: bool = True) -> FreezableSwin:
        super().train(mode)
        self._freeze_stages()
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map (N, C, H, W) to the named features, (N, channels, H / stride, W / stride)."""
        if self.training or self.ape or not is_cpu_inference(images):
            return super().forward(images)
        tokens = self.patch_embed(images)  # (N, C, H, W)
        height, width = tokens.shape[-2:]
        tokens = tokens.flatten(2).transpose(1, 2)  # (N, H*W, C)
        features = {}
        for index, stage in enumerate(self.layers):
            tokens = run_stage(stage, tokens, height, width)
            if index in self.out_indices:
                feature = self.get_submodule(f"norm{index}")(tokens)
                features[f"p{index}"] = feature.transpose(1, 2).unflatten(2, (height, width))
            if stage.downsample is not None:
                with library_layers():
                    tokens = stage.downsample(tokens, height, width)
                height, width = (height + 1) // 2, (width + 1) // 2
        return features


def _require_gradient(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    tokens = inputs[0]
    if torch.is_grad_enabled() and not tokens.requires_grad:
        tokens = tokens.detach().requires_grad_()
    return (tokens, *inputs[1:])


def swin_options(cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
    """Read the arguments of ``FreezableSwin`` from ``MODEL.SWIN`` and ``MODEL.BACKBONE.FREEZE_AT``."""
    swin, freeze_at = cfg.MODEL.SWIN, cfg.MODEL.BACKBONE.FREEZE_AT
    return {
        "in_chans": input_shape.channels,
        "embed_dim": swin.EMBED_DIM,
        "depths": tuple(swin.DEPTHS),
        "num_heads": tuple(swin.NUM_HEADS),
        "window_size": swin.WINDOW_SIZE,
        "drop_path_rate": swin.DROP_PATH_RATE,
        "out_indices": tuple(swin.OUT_INDICES),
        # detectron2 counts the stem as 1; its Swin takes 0 for the patch embedding, and 2 for the first stage too.
        "frozen_stages": freeze_at if freeze_at > 1 else freeze_at - 1,
        "use_checkpoint": swin.USE_CHECKPOINT,
    }


@BACKBONE_REGISTRY.register()
def build_glipv2_swin_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> GroundingFPN:
    """Build Swin + FPN with levels P3..P7 from ``MODEL.SWIN`` and ``MODEL.FPN``."""
    return build_fpn(cfg, FreezableSwin(**swin_options(cfg, input_shape)))
