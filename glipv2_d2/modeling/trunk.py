"""The trunk of the models: from images and prompts to fused features, below all heads and tasks."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import Backbone, build_anchor_generator, build_backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import ImageList
from torch import Tensor, nn

from ..device_copies import to_device
from ..errors import InputError
from ..layers.reading import BOTH_WAYS, Reading
from ..structures import LanguageFeatures, TokenBatch, TokenizedPrompt
from .anchors import AnchorCache
from .batch import Fused, InputImages, TrainBatch, TrainingHead, TrunkShapes
from .compiled import CompiledParts
from .fusion_tower import FusionTower, build_tower
from .heads.anchor_head import AnchorHead
from .heads.table import HEADS
from .prompt_tuning import PromptTuner, fingerprint
from .text_encoder import build_text_encoder
from .text_encoder.prompt_cache import PromptCache
from .tuning import TuningSettings, apply_tuning

Value = TypeVar("Value")


class Trunk(DenseDetector):
    """Backbone, text encoder and fusion tower, with the heads on top; a subclass says what is done with them.

    The order in which the parts are registered is that of the parameters, by which the states of optimizers are saved.

    Args:
        backbone: Returns the named levels.
        text_encoder: Maps a ``TokenBatch`` to ``LanguageFeatures``; None for a detector of fixed classes.
        tower: Fuses levels and tokens.
        head: Predicts names, boxes and centerness of anchors.
        heads: Further heads, by their names in ``HEADS``; the attribute of one that is missing is None.
        anchor_generator: One anchor per location and level.
        prompt_tuner: Adds its table to the encoded text; None for a model without prompt tuning.
        head_in_features: Levels that the tower reads, fine to coarse.
        tuning: Settings of what trains; None: everything that is not frozen.
        default_prompts: Called when an input at test time has no ``prompts``; None makes that an error.
        compiler: Backend of torch.compile at test time, see ``CompiledParts``; "" for none.
        pixel_mean, pixel_std: One number per channel, in ``INPUT.FORMAT`` order.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        text_encoder: nn.Module | None,
        tower: FusionTower,
        head: AnchorHead,
        anchor_generator: nn.Module,
        head_in_features: list[str],
        pixel_mean: list[float],
        pixel_std: list[float],
        heads: Mapping[str, TrainingHead] | None = None,
        prompt_tuner: PromptTuner | None = None,
        tuning: TuningSettings | None = None,
        default_prompts: Callable[[], list[TokenizedPrompt]] | None = None,
        compiler: str = "",
    ) -> None:
        super().__init__(backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.register_module("text_encoder", text_encoder)
        self.fusion_tower = tower
        for name in HEADS:
            self.register_module(name, (heads or {}).get(name))
        self.anchor_generator = anchor_generator
        self.anchors_of = AnchorCache(anchor_generator)
        self.register_module("prompt_tuner", prompt_tuner)
        self._default_prompts = default_prompts
        self._prompt_cache = PromptCache()
        self._compiled = CompiledParts(compiler)
        self.tuning = apply_tuning(self, tuning or TuningSettings())

    @staticmethod
    def build_trunk(
        cfg: CfgNode, head_class: Callable[[CfgNode, TrunkShapes], AnchorHead], with_text: bool = True
    ) -> tuple[dict[str, Any], TrunkShapes]:
        """Build the parts that every model has, in the order that random initial weights follow.

        Args:
            cfg: The config.
            head_class: Class of ``head``.
            with_text: Build a text encoder.

        Returns:
            Arguments of the constructor, and what further heads are built from.

        Raises:
            InputError: The backbone lacks a level of ``MODEL.GLIPV2.IN_FEATURES``, or a part refuses a value.
        """
        backbone = build_backbone(cfg)
        text_encoder = build_text_encoder(cfg) if with_text else None
        names, known = list(cfg.MODEL.GLIPV2.IN_FEATURES), backbone.output_shape()
        missing = [name for name in names if name not in known]
        if missing:
            raise InputError(f"MODEL.GLIPV2.IN_FEATURES: expected some of the levels {list(known)}, found {missing}")
        levels = [known[name] for name in names]
        tower = build_tower(cfg, levels[0].channels, text_encoder)
        shapes = TrunkShapes(levels, tower.out_channels)
        if text_encoder is not None:
            shapes = shapes._replace(language_dim=text_encoder.hidden_size, vocab_size=text_encoder.vocab_size)
        options = {
            "backbone": backbone,
            "text_encoder": text_encoder,
            "tower": tower,
            "head": head_class(cfg, shapes),
            "anchor_generator": build_anchor_generator(cfg, levels),
            "head_in_features": names,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "compiler": cfg.MODEL.GLIPV2.TEST.COMPILER,
        }
        return options, shapes

    def train(self, mode: bool = True) -> Trunk:
        """Set the mode as usual; parts that do not train stay in eval mode."""
        # A fused optimizer changes weights without counting it in Tensor._version.
        self._prompt_cache.clear()
        super().train(mode)
        for part in self.tuning.fixed_parts:
            part.eval()
        return self

    def preprocess_image(self, batched_inputs: Sequence[Mapping[str, Any]]) -> InputImages:
        """Normalize the images of N model inputs and pad them to one size, with zeros; so too their finer versions."""
        images = self._normalize([one["image"] for one in batched_inputs])
        fine = [one["fine_image"] for one in batched_inputs if "fine_image" in one]
        if len(fine) == len(batched_inputs):
            images.fine = self._normalize(fine).tensor
        return images

    def _normalize(self, images_of_inputs: list[Tensor]) -> InputImages:
        images = ImageList.from_tensors(
            images_of_inputs,
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )
        sizes = torch.tensor(images.image_sizes)
        pixels, limits = to_device([images.tensor, sizes], self.device)
        normalized = (pixels - self.pixel_mean).div_(self.pixel_std)
        size = normalized.shape[-2:]
        if self.device.type == "cpu":
            for image, (height, width) in zip(normalized, images.image_sizes, strict=True):
                image[:, height:] = 0.0
                image[:, :, width:] = 0.0
        elif any(one != size for one in images.image_sizes):
            row, column = (torch.arange(length, device=self.device) for length in size)
            outside = (row >= limits[:, :1])[:, :, None] | (column >= limits[:, 1:])[:, None]  # (N, H, W)
            normalized.masked_fill_(outside[:, None], 0.0)
        return InputImages(normalized, images.image_sizes)

    def visual_features(self, images: ImageList) -> list[Tensor]:
        """Return L levels (N, C, Hl, Wl) of N images, without gradients where the backbone does not train."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.tuning.trains("backbone")):
            features = self._compiled.features(self.backbone, images.tensor)
        return [features[level] for level in self.head_in_features]

    def mix_levels(self, features: list[Tensor]) -> list[Tensor]:
        """Run the L levels of N images in a tower without fusion, where they are the same for all prompts."""
        return self._compiled.mix_levels(self.fusion_tower, features)

    def read(self, tokens: TokenBatch, reading: Reading = BOTH_WAYS) -> LanguageFeatures:
        """Encode M prompts of T tokens, without gradients where the encoder does not train.

        Without a text encoder the M texts have no tokens.
        """
        if self.text_encoder is None:
            nothing = self.pixel_mean.new_zeros(len(tokens.mask), 0, 0)
            return LanguageFeatures(nothing, nothing, nothing.any(dim=-1))
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.tuning.trains("text_encoder")):
            return self.text_encoder(tokens, causal=reading.causal)

    def read_prompts(self, prompts: Sequence[TokenizedPrompt], reading: Reading = BOTH_WAYS) -> LanguageFeatures:
        """Encode M >= 1 prompts at test time, with the cache of ``PromptCache``; causal reading has no cache."""
        if self.text_encoder is None or reading.causal:
            language = self.read(TokenBatch.from_prompts(prompts, self.device), reading)
        else:
            language = self._prompt_cache.encode(self.text_encoder, prompts, self.device)
        return self._with_fingerprints(language, prompts)

    def remember(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return ``make()``, which follows from prompts that were read; it is kept as they are, see ``PromptCache``.

        Args:
            key: Says which prompts, and what else the value depends on.
            make: Makes the value, without gradients.
        """
        return self._prompt_cache.derive(self.text_encoder, self.device, key, make)

    def _with_fingerprints(self, language: LanguageFeatures, prompts: Sequence[TokenizedPrompt]) -> LanguageFeatures:
        """Say which prompts were read, for a model whose prompt is tuned."""
        if self.prompt_tuner is None:
            return language
        return language._replace(fingerprints=tuple(fingerprint(one.input_ids.tolist()) for one in prompts))

    def fuse(
        self,
        features: list[Tensor],
        language: LanguageFeatures,
        reading: Reading = BOTH_WAYS,
        *,
        with_levels: bool = True,
        rows: Tensor | None = None,
        levels: list[Tensor] | None = None,
    ) -> Fused:
        """Run the tower on L levels and M prompts.

        Args:
            features: L levels (M, C, Hl, Wl), or with ``rows`` those of N images.
            language: Output of ``read``.
            reading, with_levels, rows: See ``FusionTower.forward``.
            levels: Output levels of the tower, if they are known without the text.
        """
        tuned = language if self.prompt_tuner is None else self.prompt_tuner(language)
        mixed, tuned = self._compiled.fuse(
            self.fusion_tower, features, tuned, reading, with_levels=with_levels and levels is None, rows=rows
        )
        text = tuned.hidden if self.fusion_tower.fuses_text else tuned.embedded
        levels = mixed if levels is None else levels
        predict = partial(self._compiled.predict, self.head)
        return Fused(features, language, levels, text, tuned.hidden, self.head, predict, self.anchors_of)

    def train_batch(self, inputs: Sequence[Mapping[str, Any]], task: str, needs_boxes: bool) -> TrainBatch:
        """Make a batch of N model inputs of one task; see ``TrainBatch.from_inputs`` for arguments and errors."""
        return TrainBatch.from_inputs(inputs, task, self.preprocess_image(inputs), needs_boxes)

    def fuse_batch(self, batch: TrainBatch, reading: Reading) -> Fused:
        """Run backbone, text encoder and tower; a batch without boxes needs no levels and gets none."""
        features, rows = self.visual_features(batch.images), None
        if reading.image_reads:
            features = batch.pairs.select(features)
        elif batch.pairs.rows != list(range(len(batch.images))):
            # Images run once for all their prompts.
            (rows,) = to_device([torch.tensor(batch.pairs.rows)], self.device)
        language = self._with_fingerprints(self.read(batch.tokens, reading), batch.prompts)
        return self.fuse(features, language, reading, with_levels=batch.instances is not None, rows=rows)

    def prompts_of(self, inputs: Mapping[str, Any]) -> list[TokenizedPrompt]:
        """Return the prompts of a model input at test time, or the default prompts.

        Raises:
            InputError: There are no prompts.
        """
        prompts = inputs.get("prompts")
        if prompts is None and self._default_prompts is not None:
            prompts = self._default_prompts()
        if not prompts:
            raise InputError(
                "model input: prompts: expected at least one TokenizedPrompt, found none; a vocabulary to fall back on "
                "is taken from DATASETS.TEST"
            )
        return prompts
