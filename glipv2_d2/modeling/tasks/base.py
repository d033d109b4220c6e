"""The base class of tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from detectron2.config import CfgNode

from ...layers.reading import BOTH_WAYS, Reading
from ..batch import TrunkShapes
from ..trunk import Trunk


class Task(ABC):
    """Something that a model input may ask for. It names heads of the model and holds no weights.

    Args:
        reading: How image and text read each other in the tower.
    """

    # The ``task`` of a model input.
    name: ClassVar[str]
    # Heads that are asked for losses, in this order; those that a model does not have are left out.
    heads: ClassVar[tuple[str, ...]]
    # The head that gives the answer: a model without it does not have the task.
    answered_by: ClassVar[str] = "head"
    # In training every input has boxes. Otherwise all inputs of a batch have them, or none.
    needs_boxes: ClassVar[bool] = False

    def __init__(self, reading: Reading = BOTH_WAYS) -> None:
        self.reading = reading

    @classmethod
    @abstractmethod
    def from_config(cls, cfg: CfgNode, shapes: TrunkShapes) -> Task:
        """Build the task of a model whose trunk has these shapes."""

    @abstractmethod
    def inference(self, model: Trunk, inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Answer N model inputs whose images are padded to one size; see ``structures`` for inputs and outputs."""
