"""Load weights of every accepted kind into a model; save and resume trainings."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import timm
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import Tensor

from .glip_conversion import convert_glip_state_dict, find_layout, is_glip_state_dict
from .name_rules import summarize_names
from .resume import LAST_CHECKPOINT, find_resume_file
from .swin_conversion import BOTTOM_UP, convert_swin_state_dict, is_swin_state_dict
from ..tensor_files import CheckpointError, read_checkpoint, unwrap_weights, write_checkpoint, write_text

_TIMM_PREFIX = "timm://"


class GLIPv2Checkpointer(DetectionCheckpointer):
    """detectron2's checkpointer for ``GLIPv2``, which runs no code from files and writes them whole or not at all.

    ``load`` accepts, as safetensors or as a file of ``torch.save``: weights and training checkpoints of this package,
    official GLIP checkpoints, ImageNet weights of a Swin Transformer; local or at any address that detectron2's
    ``PathManager`` knows, ``package://PACKAGE/FILE`` among them. ``timm://NAME`` fetches weights from timm's hub. What
    kind of file it is, is read from the names in it.

    Arguments are those of ``DetectionCheckpointer``.
    """

    # Parts that a file has to fill where the model has them.
    _needed_parts: Collection[str] = ()

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load weights, and the state of the named checkpointables where the file has it.

        Args:
            path: See the class; empty: nothing is loaded.
            checkpointables: Names to restore; None: all.

        Returns:
            What else a training checkpoint of this package holds, such as its ``iteration``.

        Raises:
            CheckpointError: The file is unreadable or refused, or is not for this model: none of its names fit, shapes
                differ, or its tower has another form.
            FileNotFoundError: There is no such file.
        """
        if not path:
            self.logger.info("No weights to load: the model keeps its initial ones.")
            return {}
        self.logger.info("Loading weights from %s", path)
        wanted = list(self.checkpointables) if checkpointables is None else checkpointables
        if path.startswith(_TIMM_PREFIX):
            content = self._fetch_from_timm(path)
        else:
            # The state of an optimizer may go on using the memory it is read into; weights are copied.
            content, _ = read_checkpoint(path, mmap=not wanted)
        tensors = unwrap_weights(content, path)
        self._load_weights(tensors, path)
        if "model" not in content or is_glip_state_dict(tensors) or is_swin_state_dict(tensors):
            return {}
        for name in wanted:
            if name in content:
                self.logger.info("Loading %s from %s", name, path)
                self.checkpointables[name].load_state_dict(content.pop(name))
            else:
                self.logger.warning("%s holds no state of %r: it starts anew", path, name)
        return {name: value for name, value in content.items() if name != "model"}

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name``.pth with weights, checkpointables and ``kwargs``; then note it as the last checkpoint.

        Raises:
            CheckpointError: Something is of a type that could not be read back without running code.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        if os.path.basename(name) != name:
            raise ValueError(f"checkpoint name: expected no folder in it, found {name!r}")
        content = {"model": self.model.state_dict()}
        content.update({key: checkpointable.state_dict() for key, checkpointable in self.checkpointables.items()})
        content.update(kwargs)
        os.makedirs(self.save_dir, exist_ok=True)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        write_checkpoint(path, content)
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note which file of the folder was saved last."""
        write_text(os.path.join(self.save_dir, LAST_CHECKPOINT), last_filename_basename)

    def has_checkpoint(self) -> bool:
        """Tell whether there is a checkpoint to resume from."""
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> str:
        """Return the newest checkpoint of the folder that is whole; "" if there is none."""
        return find_resume_file(self.save_dir)[0]

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Go on from the newest whole checkpoint of the folder, or load the weights at ``path`` if there is none.

        Every rank calls this.

        Raises:
            CheckpointError: See ``load``; or the ranks find different checkpoints.
        """
        found, damaged = find_resume_file(self.save_dir) if resume else ("", [])
        for file in damaged:
            self.logger.warning("%s is damaged and left out; resuming from %s", file, found or path or "nothing")
        found_by_rank = comm.all_gather(os.path.basename(found))
        if len(set(found_by_rank)) > 1:
            raise CheckpointError(
                f"{self.save_dir}: expected every rank to find the same checkpoint, found {found_by_rank}; "
                "OUTPUT_DIR has to be a folder that all machines share"
            )
        return self.load(found) if found else self.load(path, checkpointables=[])

    def _load_weights(self, tensors: dict[str, Tensor], source: str) -> None:
        """Copy tensors into the model, converting foreign names, and say once what did not meet."""
        model_tensors = self.model.state_dict()
        if is_glip_state_dict(tensors):
            tensors, report = convert_glip_state_dict(tensors, source=source)
            self.logger.info("%s", report)
        elif is_swin_state_dict(tensors):
            if f"{BOTTOM_UP}.patch_embed.proj.weight" not in model_tensors:
                raise CheckpointError(
                    f"{source}: holds a Swin Transformer, the backbone of this model (MODEL.BACKBONE.NAME) is another"
                )
            tensors, report = convert_swin_state_dict(tensors)
            self.logger.info("%s", report)
        check_fit(tensors, model_tensors, source)
        missing, unexpected = self.model.load_state_dict(tensors, strict=False)
        # These are computed from the window size; timm does not save them.
        missing = [name for name in missing if not name.endswith("relative_position_index")]
        if missing:
            self.logger.warning("%s has no weights for %s: they keep their values", source, summarize_names(missing))
        empty = sorted({name.partition(".")[0] for name in missing} & set(self._needed_parts))
        if empty:
            raise CheckpointError(
                f"{source}: expected weights for {empty[0]}, which the config switches on, found none"
            )
        if unexpected:
            self.logger.warning("%s: the model has no place for %s", source, summarize_names(unexpected))

    def _fetch_from_timm(self, address: str) -> dict[str, Tensor]:
        """Return ImageNet weights of timm under the names of the model's bottom-up network."""
        name = address.removeprefix(_TIMM_PREFIX)
        if not timm.is_model(name):
            raise CheckpointError(f"{address}: timm has no model {name!r}; timm.list_models() lists its names")
        bottom_up = getattr(getattr(self.model, "backbone", None), "bottom_up", None)
        body = getattr(bottom_up, "body", None)
        if body is None and not hasattr(bottom_up, "patch_embed"):
            raise CheckpointError(
                f"{address}: expected a model with a timm or Swin backbone (MODEL.BACKBONE.NAME), found "
                f"{type(bottom_up).__name__}"
            )
        # A Swin of timm is converted like one of its authors. All else fits the features the backbone was built for.
        features = {} if body is None else {"features_only": True, "out_indices": body.feature_info.out_indices}
        try:
            fetched = timm.create_model(name, pretrained=True, **features).state_dict()
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise CheckpointError(
                f"{address}: tried to fetch the pretrained weights of {name} through timm, found {reason!r}; without "
                "network, put the file on the disk and name it in MODEL.TIMM.WEIGHTS or MODEL.WEIGHTS"
            ) from error
        return fetched if body is None else {f"{BOTTOM_UP}.body.{key}": value for key, value in fetched.items()}


class InferenceCheckpointer(GLIPv2Checkpointer):
    """Loads what gives results as it is: a head of these results without weights in the file is a ``CheckpointError``.

    In training such a head starts from random weights; here its results would be noise.
    """

    _needed_parts = ("mask_head", "vqa_head", "captioning_head")


def check_fit(tensors: Mapping[str, Tensor], model_tensors: Mapping[str, Tensor], source: str) -> None:
    """Make sure that tensors belong to a model; parts that one of the two lacks altogether are fine.

    Raises:
        CheckpointError: No name is the model's; a shape differs; the towers differ in form; or a numbered sequence of
            modules has another length.
    """
    common = [name for name in tensors if name in model_tensors]
    if not common:
        raise CheckpointError(
            f"{source}: none of its {len(tensors)} names is the model's; expected names such as "
            f"{next(iter(model_tensors))!r}, found {next(iter(tensors), None)!r}"
        )
    layout, expected_layout = find_layout(tensors), find_layout(model_tensors)
    if layout.num_blocks and expected_layout.num_blocks and layout != expected_layout:
        raise CheckpointError(
            f"{source}: fusion tower: expected {expected_layout.num_blocks} blocks, fusion {expected_layout.fused} "
            f"(MODEL.GLIPV2.TOWER.NUM_BLOCKS, FUSION.ENABLED), found {layout.num_blocks} blocks, fusion {layout.fused}"
        )
    lengths, expected_lengths = _sequence_lengths(tensors), _sequence_lengths(model_tensors)
    for sequence in sorted(lengths.keys() & expected_lengths.keys()):
        if lengths[sequence] != expected_lengths[sequence]:
            raise CheckpointError(
                f"{source}: {sequence}: expected {expected_lengths[sequence]} entries, found {lengths[sequence]}"
            )
    different = [name for name in common if tensors[name].shape != model_tensors[name].shape]
    if different:
        name = different[0]
        more = f"; {len(different) - 1} more shapes differ" if len(different) > 1 else ""
        raise CheckpointError(
            f"{source}: {name}: expected shape {tuple(model_tensors[name].shape)}, found {tuple(tensors[name].shape)}"
            f"{more}"
        )


def _sequence_lengths(names: Iterable[str]) -> dict[str, int]:
    """Count the members of each numbered sequence of modules, such as the layers of a transformer."""
    members: dict[str, set[str]] = defaultdict(set)
    for name in names:
        for match in re.finditer(r"\.(\d+)\.", name):
            members[name[: match.start()]].add(match[1])
    return {sequence: len(numbers) for sequence, numbers in members.items()}
