"""The one layer of a detector without text that belongs to the classes of its data."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

# Of DyHead; models that read text have no such layer.
_CLASS_LAYER = "head.cls_logits."


def without_other_classes(tensors: Mapping[str, Tensor], model_tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the layer of the classes if the model has another number of them.

    Args:
        tensors: Of a file, by our names.
        model_tensors: Of the model.

    Returns:
        All others; that layer too unless it differs from the model's in the number of classes and in nothing else.
    """
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith(_CLASS_LAYER)
        or name not in model_tensors
        or len(tensor) == len(model_tensors[name])
        or tensor.shape[1:] != model_tensors[name].shape[1:]
    }
