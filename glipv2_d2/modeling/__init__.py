"""The model and its parts; importing this module registers them with detectron2."""

from .backbone.coswin import build_glipv2_coswin_fpn_backbone
from .backbone.swin import build_glipv2_swin_fpn_backbone
from .backbone.timm import build_timm_fpn_backbone
from .build import build_model, choose_device
from .meta_arch.dyhead import DyHead
from .meta_arch.glipv2 import GLIPv2
from .text_encoder import TEXT_ENCODER_REGISTRY, build_text_encoder

__all__ = [
    "DyHead",
    "GLIPv2",
    "TEXT_ENCODER_REGISTRY",
    "build_glipv2_coswin_fpn_backbone",
    "build_glipv2_swin_fpn_backbone",
    "build_model",
    "build_text_encoder",
    "build_timm_fpn_backbone",
    "choose_device",
]
