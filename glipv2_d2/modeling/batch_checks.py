"""What a batch of model inputs asks for, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from ..errors import InputError

# What a model input may ask for.
MODEL_TASKS = ("detection", "vqa", "captioning")


def task_of_batch(batched_inputs: Sequence[Mapping[str, Any]], heads: Mapping[str, nn.Module | None]) -> str:
    """Return what a batch asks for, one of ``MODEL_TASKS``.

    Args:
        batched_inputs: N >= 1 model inputs.
        heads: For each task the head that answers it, None where the model has none.

    Raises:
        InputError: The inputs ask for different or unknown things, or for what the model has no head for.
    """
    tasks = {inputs.get("task", "detection") for inputs in batched_inputs}
    task = next(iter(tasks))
    if len(tasks) > 1 or task not in MODEL_TASKS:
        raise InputError(f"model input: task is {sorted(tasks)}, expected one of {list(MODEL_TASKS)} in a batch")
    if heads[task] is None:
        raise InputError(f"model input: task is {task!r}, expected MODEL.GLIPV2.{task.upper()}.ENABLED True")
    return task


def training_instances(batched_inputs: Sequence[Mapping[str, Any]], task: str, device: torch.device) -> list[Instances]:
    """Return the ``instances`` of N inputs on a device; none for questions and captions that come without boxes.

    Raises:
        InputError: There are no prompts, or only some of the inputs have boxes.
    """
    if not all(inputs.get("prompts") for inputs in batched_inputs):
        raise InputError("model input: expected 'prompts' in training, found none; use glipv2_d2.data's loaders")
    instances = [inputs["instances"].to(device) for inputs in batched_inputs if "instances" in inputs]
    allowed = {len(batched_inputs)} if task == "detection" else {0, len(batched_inputs)}
    if len(instances) not in allowed:
        raise InputError(
            f"model input: expected 'instances' in each of a batch or, for questions and captions, in none, found "
            f"{len(instances)} of {len(batched_inputs)}"
        )
    return instances


def rows_of_questions(pictures: Sequence[Mapping[str, Any]], device: torch.device) -> Tensor | None:
    """Return of each question of N pictures, in their order, the picture (M,) int64; None if each has one question."""
    counts = torch.tensor([1 + len(inputs.get("more_questions", ())) for inputs in pictures], device=device)
    if counts.max() == 1:
        return None
    return torch.arange(len(pictures), device=device).repeat_interleave(counts)
