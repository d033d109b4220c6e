"""What of a model trains, and what is fixed."""

from __future__ import annotations

from torch import nn

# For each value of MODEL.GLIPV2.TUNING the parts of the model that train; None: all.
TRAINED_PARTS: dict[str, tuple[str, ...] | None] = {"full": None, "mask_head": ("mask_head",)}


def fixed_parts(model: nn.Module, tuning: str) -> list[nn.Module]:
    """Return the parts of a model that do not train; their parameters are taken out of training.

    Args:
        model: Its direct children are its parts.
        tuning: A key of ``TRAINED_PARTS``.

    Returns:
        The parts that have to stay in eval mode; with "full" none, whatever other keys of the config freeze.

    Raises:
        ValueError: An unknown ``tuning``, or the model lacks the part that is to train.
    """
    if tuning not in TRAINED_PARTS:
        raise ValueError(f"MODEL.GLIPV2.TUNING: expected one of {list(TRAINED_PARTS)}, found {tuning!r}")
    trained = TRAINED_PARTS[tuning]
    if trained is None:
        return []
    children = dict(model.named_children())
    missing = [part for part in trained if part not in children]
    if missing:
        raise ValueError(
            f"MODEL.GLIPV2.TUNING: found {tuning!r} for a model without {missing[0]}; expected MODEL.MASK_ON True"
        )
    fixed = [child for name, child in children.items() if name not in trained]
    for part in fixed:
        part.requires_grad_(False)
    return fixed
