"""GLIPv2 as a detectron2 meta-architecture: images and prompts in, losses or results out."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from ...errors import InputError
from ...prompts.vocabulary import DefaultPrompts, build_default_prompts
from ..batch import TRUNK_PARTS
from ..by_name import ByName, add_base, take_base, unpack_names
from ..heads.class_words_head import CLASS_VECTORS, ClassWordsHead
from ..heads.grounding_head import GroundingHead
from ..heads.table import build_heads
from ..keeping import Keeping
from ..prompt_tuning import build_prompt_tuner
from ..tasks.base import Task
from ..tasks.build import build_tasks, choose_task
from ..tasks.detection import Detection
from ..tasks.prompt_passes import answer_by_size
from ..trunk import Trunk
from ..tuning import TuningSettings


@META_ARCH_REGISTRY.register()
class GLIPv2(Trunk):
    """Detect what a prompt names, answer questions, write captions: one trunk, several heads.

    Image and prompt are encoded apart, fused by the tower, and every anchor is then aligned with every token.
    The model has no tokenizer: prompts arrive as token ids (see ``structures``).

    At test time images run together only if they are padded to the same size, since the network does not mask padding:
    the result for an image does not depend on what else is in the batch.

    Args:
        tasks: What the model can be asked for; detection alone by default.
        trunk: See ``Trunk``; ``head`` is a ``GroundingHead``.

    Attributes:
        keeping: In a tuning that forgets nothing, the base that it is compared with; no part of the weights.
        by_name: The base that answers for all names but those that were tuned; None: the model answers for all.

    Source: GLIPv2, Sec. 3.1; GLIP, Sec. 3.
    """

    @configurable
    def __init__(self, *, tasks: Sequence[Task] = (), **trunk: Any) -> None:
        super().__init__(**trunk)
        self.tasks = {task.name: task for task in tasks or (Detection(),)}
        self.keeping: Keeping | None = None
        self.by_name: ByName | None
        self.register_module("by_name", None)
        self.register_load_state_dict_post_hook(_read_missing_classes)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts that the config describes."""
        options, shapes = cls.build_trunk(cfg, GroundingHead)
        heads = build_heads(cfg, shapes)
        words = heads.get("class_words_head")
        if isinstance(words, ClassWordsHead) and not words.is_filled_later:
            words.read_classes(options["text_encoder"])
        return {
            **options,
            "heads": heads,
            "prompt_tuner": build_prompt_tuner(cfg, shapes.language_dim),
            "tasks": build_tasks(cfg, shapes),
            "tuning": TuningSettings.from_config(cfg),
            "default_prompts": DefaultPrompts(functools.partial(build_default_prompts, cfg)),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **options: Any) -> Any:
        """Load weights as every module does, and the base that answers for other names where they are of both."""
        tuned, base, own_names = take_base(state_dict)
        if base is None or own_names is None:
            return super().load_state_dict(state_dict, *args, **options)
        self.by_name = None
        result = super().load_state_dict(tuned, *args, **options)
        add_base(self, base, unpack_names(own_names))
        return result

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Run N images with their prompts; see ``structures`` for the keys of inputs and outputs.

        Raises:
            InputError: An input lacks something, or asks for what the model cannot give.
        """
        if self.training:
            return self._losses(batched_inputs)
        return answer_by_size(batched_inputs, self.backbone.size_divisibility, self._answer)

    def _answer(self, group: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Answer model inputs that may run together."""
        task = choose_task(group, self.tasks)
        return task.inference(self, group) if self.by_name is None else self.by_name.answer(self, task, group)

    def _losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Ask the heads of the task for their losses, but those that neither train nor have a part below them train."""
        task = choose_task(batched_inputs, self.tasks)
        batch = self.train_batch(batched_inputs, task.name, task.needs_boxes)
        fused = self.fuse_batch(batch, task.reading)
        losses: dict[str, Tensor] = {}
        for name in task.heads:
            head = getattr(self, name)
            if head is None or not head.wants(batch):
                continue
            if self.tuning.trains(*TRUNK_PARTS, "head"):
                head.observe(batch)
            if self.tuning.trains(*head.needs, name):
                losses |= head.losses(fused, batch)
        if self.keeping is not None and batch.instances is not None:
            losses |= self.keeping.losses(self, fused, batch, task.reading)
        if not losses:
            raise InputError(
                f"MODEL.GLIPV2.TUNING.MODE: expected a mode that trains a part of the task {task.name!r}, "
                f"found {self.tuning.mode!r}"
            )
        return losses


def _read_missing_classes(model: Any, loaded: Any) -> None:
    """Encode the texts of classes where the weights that were loaded do not hold what they say."""
    words = model.class_words_head
    if isinstance(words, ClassWordsHead) and any(name.endswith(CLASS_VECTORS) for name in loaded.missing_keys):
        words.read_classes(model.text_encoder)
