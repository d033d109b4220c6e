"""Two sets of weights in one model: the tuned one answers for the names it was tuned on, the base for all else."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..device_copies import to_device
from ..errors import InputError
from ..prompts.name_subsets import split_prompts
from ..structures import TokenizedPrompt
from .batch import InputImages
from .heads.class_words_head import CLASS_VECTORS
from .heads.table import HEADS
from .lora import remove_lora
from .postprocessing import rescale_boxes
from .tasks.base import Task
from .tasks.detection import Detection
from .trunk import Trunk

# Names of the tensors of a file that belong to ``ByName`` begin with this.
PREFIX = "by_name."
_BASE, _OWN_NAMES = f"{PREFIX}base.", f"{PREFIX}own_names"


class ByName(nn.Module):
    """The base of a tuned model. It answers for all names but those that were tuned, and for every other task.

    Own names and others never stand in one prompt: each side is asked as if it were alone, so that own names have the
    results of the tuned model and others those of the base, which may see images of another size (``of_base`` of a
    model input). The best detections of both together are kept, as many as of one model.

    Args:
        base: The base, which shares with the tuned model the parameters that are equal.
        own_names: Names that were tuned, at least one, as ``plain_name`` returns them, and after them their tokens, as
            ``token_name`` does.
        shared: Names of the tensors of the base that are those of the tuned model; they are no part of the state.
    """

    own_names: Tensor

    def __init__(self, base: Trunk, own_names: Collection[str], shared: Collection[str]) -> None:
        super().__init__()
        self.base = base
        self.names = frozenset(own_names)
        self.register_buffer("own_names", pack_names(own_names))
        self._shared = frozenset(shared)
        parts = {name for name in base.state_dict() if name.startswith("backbone.")}
        self._shares_backbone = parts <= self._shared
        self.register_state_dict_post_hook(_leave_shared_out)

    def split(
        self, prompts: Sequence[TokenizedPrompt], max_tokens: int
    ) -> tuple[list[TokenizedPrompt], list[TokenizedPrompt]]:
        """Return the prompts that the tuned model answers, and those of the base; see ``split_prompts``."""
        return split_prompts(prompts, self.names, max_tokens=max_tokens)

    def answer(self, model: Trunk, task: Task, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Answer N model inputs of one task and one padded size; on a device the CPU waits once for each side.

        The backbone runs once for both sides if they share its weights and see the same images.

        Args:
            model: The tuned model.
            task: What is asked for.
            inputs: See ``structures``.
        """
        if not isinstance(task, Detection) or task.name != Detection.name:
            return task.inference(self.base, [_as_base_sees(one) for one in inputs])
        asked = [self.split(model.prompts_of(one), task.max_tokens) for one in inputs]
        images = model.preprocess_image(inputs)
        sees_the_same = "of_base" not in inputs[0]
        shared = model.visual_features(images) if self._shares_backbone and sees_the_same else None
        found: list[list[Instances]] = [[] for _ in inputs]
        for side, prompts in zip((model, self.base), zip(*asked, strict=True), strict=True):
            rows = [row for row, of_image in enumerate(prompts) if of_image]
            if not rows:
                continue
            of_side, asked_prompts = [inputs[row] for row in rows], [prompts[row] for row in rows]
            if side is model or sees_the_same:
                part, features = _select(images, shared, rows)
            else:
                part, features = side.preprocess_image([_as_base_sees(one) for one in of_side]), None
            features = side.visual_features(part) if features is None else features
            detected = task.find(side, of_side, asked_prompts, part, features, [{} for _ in rows])
            for row, instances in zip(rows, detected, strict=True):
                found[row].append(instances)
        most = task.most_detections(inputs[0])
        return task.finish(model, inputs, [_merge(own, most) for own in found], [{} for _ in inputs])


def _leave_shared_out(by_name: ByName, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Leave what the tuned model has too out of a state."""
    for name in by_name._shared:
        state.pop(f"{prefix}base.{name}")


def add_base(model: Trunk, tensors: Mapping[str, Tensor], own_names: Collection[str]) -> None:
    """Give a tuned model the base that answers for all names but its own; low-rank updates are not merged yet.

    Args:
        model: A ``GLIPv2`` that holds the tuned weights.
        tensors: Those of the base that differ, by the names of the model, in the shapes of the model.
        own_names: See ``ByName``.
    """
    model.register_module("by_name", None)
    parameters = dict(model.named_parameters())
    updated = {name for name in parameters if f"{name.removesuffix('.weight')}.lora.up" in parameters}
    own = {*tensors, *updated}
    memo: dict[int, Any] = {id(one): one for name, one in parameters.items() if name not in own}
    base = copy.deepcopy(model, memo)
    remove_lora(base)
    shared = base.state_dict()
    if any(name.startswith("text_encoder.") for name in tensors):
        # Another encoder says something else.
        shared.pop(CLASS_VECTORS, None)
    base.load_state_dict({**shared, **tensors}, strict=False)
    if base.class_words_head is not None:
        base.class_words_head.become_base()
    model.by_name = ByName(base.eval(), own_names, base.state_dict().keys() - own)


def base_tensors(
    tuned: Mapping[str, Tensor], base: Mapping[str, Tensor], own_names: Collection[str]
) -> dict[str, Tensor]:
    """Return the tensors that a file of tuned weights has beside them: those of the base that differ, and the names."""
    differ = {f"{_BASE}{name}": one for name, one in base.items() if not torch.equal(one, tuned[name].to(one))}
    return {**differ, _OWN_NAMES: pack_names(own_names)}


def take_base(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None, Tensor | None]:
    """Split the tensors of a file into the tuned ones, those of the base, None without any, and the packed names."""
    tuned = {name: one for name, one in tensors.items() if not name.startswith(PREFIX)}
    base = {name.removeprefix(_BASE): one for name, one in tensors.items() if name.startswith(_BASE)}
    return tuned, base if len(tuned) < len(tensors) else None, tensors.get(_OWN_NAMES)


def without_missing_heads(base: Mapping[str, Tensor], expected: Collection[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Leave out the tensors of a base that belong to heads which a model does not have.

    Args:
        base: See ``take_base``.
        expected: Names of the tensors of the model.

    Returns:
        The tensors that stay, and the names of the others.
    """
    missing = HEADS.keys() - {name.partition(".")[0] for name in expected}
    left_out = [name for name in base if name.partition(".")[0] in missing]
    return {name: one for name, one in base.items() if name not in left_out}, left_out


def pack_names(names: Collection[str]) -> Tensor:
    """Return names as a tensor of bytes, their text in UTF-8 with a name on each line."""
    return torch.tensor(list("\n".join(names).encode(errors="surrogatepass")), dtype=torch.uint8)


def unpack_names(packed: Tensor) -> list[str]:
    """Return the names of ``pack_names``.

    Raises:
        InputError: The tensor holds no text, or no name.
    """
    try:
        if packed.dtype != torch.uint8:
            raise ValueError(f"{packed.dtype}")
        names = bytes(packed.flatten().tolist()).decode(errors="surrogatepass").split("\n")
    except ValueError as error:
        raise InputError(f"expected names as bytes of UTF-8, found {error}") from error
    if not any(names):
        raise InputError("expected at least one name, found none")
    return names


def _select(
    images: InputImages, features: list[Tensor] | None, rows: list[int]
) -> tuple[InputImages, list[Tensor] | None]:
    """Return some of N images with their features, L levels (N, C, Hl, Wl), where they are known."""
    if rows == list(range(len(images))):
        return images, features
    (index,) = to_device([torch.tensor(rows)], images.tensor.device)
    part = InputImages(images.tensor[index], [images.image_sizes[row] for row in rows])
    part.fine = None if images.fine is None else images.fine[index]
    return part, None if features is None else [level[index] for level in features]


def _as_base_sees(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return a model input with the versions of the image that the base sees."""
    if "of_base" not in inputs:
        return inputs
    rest = {key: value for key, value in inputs.items() if key not in ("image", "fine_image", "of_base")}
    return {**rest, **inputs["of_base"]}


def _in_image_of(found: Instances, size: tuple[int, int]) -> Instances:
    """Move detections to an image of another size, (height, width) in pixels."""
    moved = Instances(size, **found.get_fields())
    if size != found.image_size:
        moved.pred_boxes = Boxes(rescale_boxes(found.pred_boxes.tensor, found.image_size, size))
    return moved


def _merge(found: list[Instances], most: int) -> Instances:
    """Join the detections of both sides for an image, best first.

    Args:
        found: The detections of one side or both, as ``Detection.find`` returns them, in images of any size.
        most: Detections to keep; those that tie with the last of them stay too. 0 keeps all.
    """
    if len(found) == 1:
        return found[0]
    # Masks are on the device.
    masks = [one.get_fields().pop("mask_probabilities") for one in found if one.has("mask_probabilities")]
    merged = Instances.cat([_in_image_of(one, found[0].image_size) for one in found])
    order = merged.scores.argsort(descending=True, stable=True)
    if 0 < most < len(order):
        order = order[merged.scores[order] >= merged.scores[order[most - 1]]]
    merged = merged[order]
    if masks:
        (order,) = to_device([order], masks[0].device)
        merged.mask_probabilities = torch.cat(masks)[order]
    return merged
