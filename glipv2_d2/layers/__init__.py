"""Layers that know tensors only: no config, no registry, no notion of detection."""

from .deform_conv import modulated_deform_conv2d, reinterpret_flat
from .dyconv import ConvUnit, DyConv, DynamicReLU
from .fusion import BiAttentionBlock, BiMultiHeadAttention
from .hourglass import Hourglass, Residual
from .language_layer import LanguageLayer
from .pre_norm_layer import PreNormLayer

__all__ = [
    "BiAttentionBlock",
    "BiMultiHeadAttention",
    "ConvUnit",
    "DyConv",
    "DynamicReLU",
    "Hourglass",
    "LanguageLayer",
    "PreNormLayer",
    "Residual",
    "modulated_deform_conv2d",
    "reinterpret_flat",
]
