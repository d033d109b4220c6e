"""CoSwin under an FPN: a Swin Transformer that embeds and reduces with convolutions, the image encoder of GLIPv2-H."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn

from .fpn import GroundingFPN, build_fpn
from .swin import FreezableSwin, swin_options


class ConvEmbedding(nn.Module):
    """A strided convolution whose windows overlap, then a LayerNorm over the channels of each position.

    Args:
        in_channels, out_channels: Channels before and after.
        kernel_size, stride, padding: Arguments of the convolution.

    Source: CvT (arXiv 2103.15808), Sec. 3.1. Its code also pads the map to a multiple of the window, 7; here the blocks
    of Swin pad it themselves.
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int, stride: int, padding: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, image: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        positions = self.proj(image).permute(0, 2, 3, 1)  # (N, H', W', C')
        return self.norm(positions).permute(0, 3, 1, 2)


class ConvDownsampling(ConvEmbedding):
    """Halve a map and double its channels: a 3x3 convolution in place of Swin's patch merging.

    Args:
        channels: C of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 2 * channels, kernel_size=3, stride=2, padding=1)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:  # type: ignore[override]  # as Swin calls it
        """Map (N, height * width, C) to (N, ceil(height / 2) * ceil(width / 2), 2C), row by row."""
        image = tokens.transpose(1, 2).unflatten(2, (height, width))
        return super().forward(image).flatten(2).transpose(1, 2)


class CoSwin(FreezableSwin):
    """``FreezableSwin`` with convolutions for the embedding of patches and between the stages.

    Patches are embedded by a 7x7 convolution of stride 4, stages are joined by 3x3 convolutions of stride 2. Blocks,
    output norms, names of the features and arguments are those of ``FreezableSwin``.

    Source: Florence (arXiv 2111.11432), which says only that these two parts of Swin are replaced by those of CvT.
    Kernels and strides are those of "v2" of the Swin Transformer in the official code of GLIP. Its layer scale, off by
    default, is left out.
    """

    def __init__(self, *, in_chans: int = 3, embed_dim: int, **kwargs: Any) -> None:
        super().__init__(in_chans=in_chans, embed_dim=embed_dim, **kwargs)
        self.patch_embed = ConvEmbedding(in_chans, embed_dim, kernel_size=7, stride=4, padding=2)
        for stage in self.layers:
            if stage.downsample is not None:
                stage.downsample = ConvDownsampling(stage.downsample.dim)
        # Again, because the frozen modules have been replaced.
        self._freeze_stages()


@BACKBONE_REGISTRY.register()
def build_glipv2_coswin_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> GroundingFPN:
    """Build CoSwin + FPN with levels P3..P7 from ``MODEL.SWIN`` and ``MODEL.FPN``."""
    return build_fpn(cfg, CoSwin(**swin_options(cfg, input_shape)))
