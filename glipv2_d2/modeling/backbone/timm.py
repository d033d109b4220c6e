"""Any timm model with ``features_only`` under the same FPN: small backbones, and pretrained ones."""

from __future__ import annotations

from typing import Any

import timm
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import InputError
from ...tensor_files import read_tensors
from .fpn import GroundingFPN, build_fpn


class TimmBackbone(Backbone):
    """The feature maps of a timm model as a detectron2 backbone.

    Features are named ``c{level}`` with stride 2**level.

    Args:
        name: timm model name.
        out_indices: Feature indices to return, fine to coarse.
        weights: Local file of ImageNet weights, or empty.
        freeze_at: Freeze all modules up to the end of this many features in timm's full list; 0 freezes none.
        freeze_norm: Batch normalization keeps its statistics and does not train.
        in_channels: Channels of the image.

    Raises:
        InputError: timm does not know the name, the strides do not double, ``freeze_at`` passes the number of
            features, or the weights do not fit.
    """

    def __init__(
        self,
        name: str,
        out_indices: tuple[int, ...] = (2, 3, 4),
        *,
        weights: str = "",
        freeze_at: int = 0,
        freeze_norm: bool = True,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise InputError(f"MODEL.TIMM.NAME: timm has no model {name!r}; timm.list_models() lists its names")
        self.body = timm.create_model(
            name, pretrained=False, features_only=True, out_indices=tuple(out_indices), in_chans=in_channels
        )
        # Channels last is the faster layout for narrow convolutions, on CPU and GPU alike.
        self.body.to(memory_format=torch.channels_last)
        # Some transformers of timm return (N, H, W, C).
        output_format = getattr(self.body, "output_fmt", "NCHW")
        self._channels_last_maps = getattr(output_format, "value", output_format) == "NHWC"
        self.freeze_norm = freeze_norm
        if weights:
            load_timm_weights(self.body, name, weights, "MODEL.TIMM.WEIGHTS")
        self._freeze(freeze_at)
        info: Any = self.body.feature_info
        strides = info.reduction()
        if any(stride != strides[0] * 2**i for i, stride in enumerate(strides)):
            raise InputError(f"MODEL.TIMM.OUT_INDICES: expected strides that double, found {strides} of {name}")
        channels = info.channels()
        self._out_features = [f"c{stride.bit_length() - 1}" for stride in strides]
        self._out_feature_strides = dict(zip(self._out_features, strides, strict=True))
        self._out_feature_channels = dict(zip(self._out_features, channels, strict=True))
        self.train(self.training)

    def _freeze(self, freeze_at: int) -> None:
        feature_info: Any = self.body.feature_info
        features = feature_info.info
        if not 0 <= freeze_at <= len(features):
            raise InputError(f"MODEL.BACKBONE.FREEZE_AT: expected 0 to {len(features)} features, found {freeze_at}")
        if freeze_at > 0:
            last_feature = _flat(features[freeze_at - 1]["module"])
            modules = [(_flat(name) + "_", module) for name, module in self.body.named_modules()]
            # Modules are registered in the order in which they run, so everything before the end of the last frozen
            # feature is frozen too.
            last = max(i for i, (name, _) in enumerate(modules) if name.startswith(last_feature + "_"))
            for _, module in modules[: last + 1]:
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)
        if self.freeze_norm:
            for module in self.body.modules():
                if isinstance(module, _BatchNorm):
                    for parameter in module.parameters():
                        parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> TimmBackbone:
        super().train(mode)
        if self.freeze_norm:
            for module in self.body.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map (N, 3, H, W), H and W multiples of the coarsest stride, to the named feature maps."""
        images = images.contiguous(memory_format=torch.channels_last)
        maps = self.body(images)
        if self._channels_last_maps:
            maps = [feature.permute(0, 3, 1, 2) for feature in maps]
        return dict(zip(self._out_features, maps, strict=True))


def _flat(name: str) -> str:
    return name.replace(".", "_")


def load_timm_weights(body: nn.Module, name: str, path: str, key: str) -> None:
    """Fill a timm model, whole or features_only, from a file of the full model's weights.

    Tensors are matched by name. For files with other names they are matched one by one, in order, if their number and
    all shapes agree with timm's full model.

    Args:
        body: The model.
        name: Its name in timm.
        path: The file.
        key: The config key that names the file.

    Raises:
        InputError: The tensors fit in neither way.
    """
    source, _ = read_tensors(path)
    source = {key: value for key, value in source.items() if not key.endswith("num_batches_tracked")}
    with torch.device("meta"):
        full = timm.create_model(name, pretrained=False).state_dict()
    expected = {key: value.shape for key, value in full.items() if not key.endswith("num_batches_tracked")}
    if not set(expected) <= set(source):
        if [value.shape for value in source.values()] != list(expected.values()):
            raise InputError(
                f"{key}: {path} has {len(source)} tensors that fit timm's {name} "
                f"({len(expected)} tensors) neither by name nor by order and shape"
            )
        source = dict(zip(expected, source.values(), strict=True))
    # A features_only model may flatten nested names of the full model: stages.0 becomes stages_0.
    names = {_flat(key): key for key in body.state_dict()}
    source = {names.get(_flat(key), key): value for key, value in source.items()}
    missing = body.load_state_dict(source, strict=False).missing_keys
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing:
        raise InputError(f"{key}: {path} lacks {len(missing)} tensors of {name}, for example {missing[0]}")


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> GroundingFPN:
    """Build timm model + FPN from ``MODEL.TIMM`` and ``MODEL.FPN``."""
    bottom_up = TimmBackbone(
        cfg.MODEL.TIMM.NAME,
        tuple(cfg.MODEL.TIMM.OUT_INDICES),
        weights=cfg.MODEL.TIMM.WEIGHTS,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        freeze_norm=cfg.MODEL.TIMM.FREEZE_NORM,
        in_channels=input_shape.channels,
    )
    return build_fpn(cfg, bottom_up)
