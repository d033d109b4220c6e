"""Choose the parameters that train, and fix the others."""

from __future__ import annotations

import re
from typing import NamedTuple

from detectron2.config import CfgNode
from torch import Tensor, nn

from ..errors import InputError
from .heads.table import HEADS
from .lora import LoRASettings, add_lora


class _Mode(NamedTuple):
    """A tuning mode: a pattern of parameter names, a part that trains as a whole, the config key that creates it."""

    pattern: str
    whole_part: str | None = None
    key: str = ""


# For each MODEL.GLIPV2.TUNING.MODE but "full" the parameters that train. The linear probe is that of the official code:
# the layers that read the tower, without the factors of the box deltas of each level.
_MODES = {
    "mask_head": _Mode(r"mask_head\..*", "mask_head", f"{HEADS['mask_head'].key} True"),
    "linear_probe": _Mode(r"head\.((bbox_pred|centerness|text_projection)\..*|log_scale|bias_lang|bias0)"),
    "prompt": _Mode(r"prompt_tuner\..*", "prompt_tuner", "a PromptTuner"),
    "text_encoder": _Mode(r"text_encoder\..*", "text_encoder", "a text encoder"),
    "lora": _Mode(r".*\.lora\.(down|up)"),
}
TUNING_MODES = ("full", *_MODES)


class Tuning(NamedTuple):
    """The result of applying a tuning mode to a model.

    Attributes:
        mode: One of ``TUNING_MODES``.
        fixed_parts: Parts that have to stay in eval mode; none with "full", even if other config keys freeze some.
        trained_parts: Names of the parts with parameters that train; all parts with "full".
        settings: Settings that a file of tuned weights has to agree with, in addition to the mode.
    """

    mode: str
    fixed_parts: tuple[nn.Module, ...]
    trained_parts: frozenset[str]
    settings: dict[str, str]

    def trains(self, *parts: str) -> bool:
        """Tell whether any of the parts trains."""
        return not self.trained_parts.isdisjoint(parts)


class TuningSettings(NamedTuple):
    """Settings of the tuning.

    Attributes:
        mode: One of ``TUNING_MODES``.
        mask_head: The mask head trains as well, in any mode.
        lora: The low-rank updates of the mode "lora".
    """

    mode: str = "full"
    mask_head: bool = False
    lora: LoRASettings = LoRASettings()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> TuningSettings:
        """Read the config.

        Raises:
            InputError: A prompt is to be tuned for captions, which have none of a fixed form.
        """
        config = cfg.MODEL.GLIPV2.TUNING
        if config.MODE == "prompt" and cfg.MODEL.GLIPV2.CAPTIONING.ENABLED:
            raise InputError(
                "MODEL.GLIPV2.TUNING.MODE: found 'prompt', which needs MODEL.GLIPV2.CAPTIONING.ENABLED False"
            )
        lora = LoRASettings(config.LORA.RANK, config.LORA.ALPHA, tuple(config.LORA.PARTS))
        return cls(config.MODE, config.MASK_HEAD, lora)


def apply_tuning(model: nn.Module, settings: TuningSettings) -> Tuning:
    """Take the parameters that do not train out of training, and add low-rank updates where they are what trains.

    Args:
        model: Its direct children are its parts. What is frozen already stays so.
        settings: What is to train.

    Raises:
        InputError: An unknown mode, the model lacks the part that is to train, or another key freezes it.
    """
    mode, lora = settings.mode, settings.lora
    if mode not in TUNING_MODES:
        raise InputError(f"MODEL.GLIPV2.TUNING.MODE: expected one of {list(TUNING_MODES)}, found {mode!r}")
    children = dict(model.named_children())
    modes = [] if mode == "full" else [_MODES[mode]]
    if settings.mask_head:
        if "mask_head" not in children:
            raise InputError(
                "MODEL.GLIPV2.TUNING.MASK_HEAD: found True without a mask head, expected MODEL.MASK_ON True"
            )
        modes += [_MODES["mask_head"]] if modes else []
    if not modes:
        return Tuning(mode, (), frozenset(children), {})
    for needed in modes:
        if needed.whole_part and needed.whole_part not in children:
            raise InputError(
                f"MODEL.GLIPV2.TUNING.MODE: found {mode!r} for a model without {needed.whole_part}; expected "
                f"{needed.key}"
            )
    agreed = {}
    if mode == "lora":
        add_lora(model, lora)
        agreed = {"rank": str(lora.rank), "alpha": str(float(lora.alpha)), "parts": ",".join(sorted(lora.parts))}
    pattern = re.compile("|".join(one.pattern for one in modes))
    for name, parameter in model.named_parameters():
        if not pattern.fullmatch(name):
            parameter.requires_grad_(False)
    trained = frozenset(name.partition(".")[0] for name, one in model.named_parameters() if one.requires_grad)
    frozen = [one.whole_part for one in modes if one.whole_part and one.whole_part not in trained]
    if frozen:
        raise InputError(
            f"MODEL.GLIPV2.TUNING.MODE: found {mode!r} for a frozen {frozen[0]}; expected "
            f"MODEL.{frozen[0].upper()}.FREEZE False"
        )
    whole_parts = {one.whole_part for one in modes}
    fixed = tuple(child for name, child in children.items() if name not in whole_parts)
    return Tuning(mode, fixed, trained, agreed)


def tuned_tensors(model: nn.Module, tuning: Tuning) -> dict[str, Tensor]:
    """Return what training moves, by name: parameters that train, and buffers.

    They are those of parts that train as a whole, and what heads note of the data, see ``noted_buffers``.

    Args:
        model: After ``apply_tuning``.
        tuning: What that has returned.
    """
    fixed = {id(part) for part in tuning.fixed_parts}
    whole_parts = {name for name, part in model.named_children() if id(part) not in fixed}
    parameters, noted = dict(model.named_parameters()), noted_buffers()
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if (parameters[name].requires_grad if name in parameters else name.partition(".")[0] in whole_parts)
        or name in noted
    }


def noted_buffers() -> frozenset[str]:
    """Return the names of the buffers in which heads note what data a training had."""
    return frozenset(f"{name}.{buffer}" for name, entry in HEADS.items() for buffer in entry.head.noted)
