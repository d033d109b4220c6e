"""The table of tasks, and the choice of the one that a batch asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode

from ...errors import InputError
from ..batch import TrunkShapes
from ..heads.table import HEADS
from .base import Task
from .captions import Captions
from .detection import Detection
from .questions import Questions

TASKS: dict[str, type[Task]] = {task.name: task for task in (Detection, Questions, Captions)}


def enabled_tasks(cfg: CfgNode) -> list[str]:
    """Return the tasks of a model: detection, and those whose head the config switches on."""
    return [name for name, task in TASKS.items() if task.answered_by == "head" or HEADS[task.answered_by].is_on(cfg)]


def build_tasks(cfg: CfgNode, shapes: TrunkShapes) -> list[Task]:
    """Build the tasks of a model whose trunk has these shapes."""
    return [TASKS[name].from_config(cfg, shapes) for name in enabled_tasks(cfg)]


def choose_task(inputs: Sequence[Mapping[str, Any]], tasks: Mapping[str, Task]) -> Task:
    """Return the task that a batch of N >= 1 model inputs asks for, out of those of a model.

    Raises:
        InputError: The inputs ask for different or unknown tasks, or the model lacks the head of their task.
    """
    asked = sorted({one.get("task", Detection.name) for one in inputs})
    if len(asked) > 1 or asked[0] not in TASKS:
        raise InputError(f"model input: task: expected one of {list(TASKS)} for all of a batch, found {asked}")
    if asked[0] not in tasks:
        key = HEADS[TASKS[asked[0]].answered_by].key
        raise InputError(f"model input: task: expected {list(tasks)}, found {asked[0]!r}; it needs {key} True")
    return tasks[asked[0]]
