"""Which kind of weights a file holds, by their names, and how they get the names of this package."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from .clip_conversion import convert_clip_state_dict, is_clip_state_dict
from .glip_conversion import OPTIONAL_PARTS, convert_glip_state_dict, is_glip_state_dict
from .mmdet_conversion import convert_mmdet_state_dict, is_mmdet_state_dict
from .name_rules import ConversionReport, convert_names
from .swin_conversion import convert_swin_state_dict, is_swin_state_dict


class WeightsKind(NamedTuple):
    """A kind of weights.

    Attributes:
        matches: Tells from the names of a state dict whether it is of this kind.
        convert: Renames tensors by name to ours, and returns them with a report on every name. ``expected`` are the
            tensors of the model, or None where it is not known: with them the report lists missing names, and parts
            that the model does not have are left out. ``source`` is the name of the file for errors. It raises
            ``CheckpointError`` for weights that are not of the form that their names promise.
        fills_detector: Whether the weights fill a whole detector, not only parts of one.
    """

    matches: Callable[[Collection[str]], bool]
    convert: Callable[..., tuple[dict[str, Tensor], ConversionReport]]
    fills_detector: bool


def find_kind(names: Collection[str]) -> WeightsKind:
    """Return the kind of a state dict by its names; ``OWN_WEIGHTS`` if no other kind matches."""
    return next((kind for kind in _FOREIGN if kind.matches(names)), OWN_WEIGHTS)


def _keep_own_names(
    state_dict: Mapping[str, Tensor], *, expected: Collection[str] | None, **_: Any
) -> tuple[dict[str, Tensor], ConversionReport]:
    parts = {part: part for part in (name.partition(".")[0] for name in state_dict)}
    return convert_names(state_dict, parts, (), source="glipv2_d2", expected=expected, optional_parts=OPTIONAL_PARTS)


OWN_WEIGHTS = WeightsKind(lambda names: True, _keep_own_names, fills_detector=True)
_FOREIGN = (
    WeightsKind(is_glip_state_dict, convert_glip_state_dict, fills_detector=True),
    WeightsKind(is_mmdet_state_dict, convert_mmdet_state_dict, fills_detector=True),
    WeightsKind(is_swin_state_dict, convert_swin_state_dict, fills_detector=False),
    WeightsKind(is_clip_state_dict, convert_clip_state_dict, fills_detector=False),
)
