"""Load weights of every accepted kind into a model; save and resume trainings."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import timm
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.utils import comm
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor, nn

from ..distributed import is_sharded, placed_like, whole_tensors
from ..errors import InputError
from ..modeling.build import build_model
from ..modeling.by_name import add_base, take_base, unpack_names, without_missing_heads
from ..modeling.heads.table import HEADS
from ..modeling.lora import merge_lora
from ..modeling.meta_arch.glipv2 import GLIPv2
from ..tensor_files import (
    NO_WEIGHTS,
    RANDOM_WEIGHTS,
    CheckpointError,
    plain_content,
    read_checkpoint,
    unwrap_weights,
    write_checkpoint,
    write_text,
)
from .background import BackgroundWriter, copied
from .conversion import OWN_WEIGHTS, find_kind
from .fit_check import check_fit, check_update_scales, check_values, is_position_weight, without_other_classes
from .name_rules import summarize_names
from .resume import BASE_WEIGHTS, BEST_WEIGHTS, FINAL_WEIGHTS, LAST_CHECKPOINT, find_resume_file
from .swin_conversion import BOTTOM_UP
from .weight_changes import WeightChanges, interpolate_weights

_TIMM_PREFIX = "timm://"
# The last is that of the HTTP library of the hub's client.
_TIMM_ERRORS: tuple[type[Exception], ...] = (OSError, RuntimeError, ValueError, *HfHubHTTPError.__bases__)
# Names of the weights that only a model of that tuning has.
_TUNED_NAMES = {"prompt": re.compile(r"prompt_tuner\..*"), "lora": re.compile(r".*\.lora\.(up|down|scale)")}


def build_for_results(cfg: CfgNode) -> nn.Module:
    """Build the model of a config, in evaluation mode, with ``MODEL.WEIGHTS`` changed as the config says.

    Raises:
        CheckpointError, FileNotFoundError: See ``GLIPv2Checkpointer.load``.
        InputError: ``MODEL.WEIGHTS`` is empty; or see ``WeightChanges``.
    """
    model = build_model(cfg).eval()
    GLIPv2Checkpointer.from_config(model, cfg, for_results=True).load(cfg.MODEL.WEIGHTS)
    return model


class GLIPv2Checkpointer(DetectionCheckpointer):
    """detectron2's checkpointer for ``GLIPv2``, which runs no code from files and writes them whole or not at all.

    ``load`` accepts, as safetensors or as a file of ``torch.save``: weights and training checkpoints of this package,
    official GLIP checkpoints and those of mmdetection, ImageNet weights of a Swin Transformer, image-text models (CLIP,
    UniCL); local or at any address that detectron2's ``PathManager`` knows, ``package://PACKAGE/FILE`` among them.
    ``timm://NAME`` fetches weights from timm's hub. What kind of file it is, is read from the names in it.

    Args:
        model: The model.
        save_dir: Folder of its checkpoints.
        for_results: No training follows. A file has to fill the heads that give results, low-rank updates become part
            of the weights that they belong to, and a checkpoint of the folder is changed as other weights are. Before a
            training, some weights may be initial ones: heads (with a warning), positions that train, the class layer
            for other classes, prompt tables and low-rank updates.
        ranks_names: Results need the contrastive head, which is for training otherwise.
        changes: What becomes of loaded weights; a checkpoint that a training is resumed from is never changed.
        in_background: ``save`` copies what it writes to the memory of the CPU, and returns while it is written.
        options: See ``DetectionCheckpointer``.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        for_results: bool = False,
        ranks_names: bool = False,
        changes: WeightChanges | None = None,
        in_background: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(model, save_dir, **options)
        self._writer = BackgroundWriter() if in_background else None
        self._for_results = for_results
        results = {name for name, entry in HEADS.items() if entry.gives_results}
        self._heads_of_results = results | ({"contrastive_head"} if ranks_names else set())
        self._changes = changes or WeightChanges()

    @classmethod
    def from_config(cls, model: nn.Module, cfg: CfgNode, save_dir: str = "", **options: Any) -> GLIPv2Checkpointer:
        """Return a checkpointer that changes loaded weights as the config says; see the class for the arguments."""
        ranks_names = cfg.MODEL.GLIPV2.TEST.SHORTLIST > 0
        return cls(model, save_dir, changes=WeightChanges.from_config(cfg), ranks_names=ranks_names, **options)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load weights, and the state of the named checkpointables where the file has it.

        Args:
            path: See the class. Empty: nothing is loaded, which is an error for results; "random": nothing is loaded.
            checkpointables: Names to restore; None: all.

        Returns:
            What else a training checkpoint of this package holds, such as its ``iteration``.

        Raises:
            CheckpointError: The file is unreadable or refused, is not for this model (no name fits, shapes differ, or
                its tower has another form), or lacks weights that results need.
            FileNotFoundError: There is no such file.
            InputError: Results are wanted, and the path is empty.
        """
        rest = self._load(path, checkpointables)
        self._finish()
        return rest

    def _load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        if not path and self._for_results:
            raise InputError(
                "MODEL.WEIGHTS: expected weights, since a random model finds nothing, found none; name a file, or the "
                f"config.yaml of a run, or give MODEL.WEIGHTS {RANDOM_WEIGHTS} if that is what you want"
            )
        if path in NO_WEIGHTS:
            self.logger.info("No weights to load: the model keeps its initial ones.")
            return {}
        self.logger.info("Loading weights from %s", path)
        wanted = list(self.checkpointables) if checkpointables is None else checkpointables
        content, tensors = self._read(path, mmap=not wanted)
        tensors, base, own_names = take_base(tensors)
        if isinstance(self.model, GLIPv2):
            self.model.by_name = None
        tensors, is_own = self._convert(tensors, path)
        self._fill_model(tensors, path)
        if base is not None:
            self._fill_base(base, own_names, path)
        if "model" not in content or not is_own:
            return {}
        for name in wanted:
            if name in content:
                self.logger.info("Loading %s from %s", name, path)
                self.checkpointables[name].load_state_dict(content.pop(name))
            else:
                self.logger.warning("%s holds no state of %r: it starts anew", path, name)
        return {name: value for name, value in content.items() if name != "model"}

    def _read(self, path: str, mmap: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return all that a file or an address holds, and its weights."""
        if path.startswith(_TIMM_PREFIX):
            content = self._fetch_from_timm(path)
        else:
            # The state of an optimizer may go on using the memory it is read into; weights are copied.
            content, _ = read_checkpoint(path, mmap=mmap)
        return content, unwrap_weights(content, path)

    def _finish(self) -> None:
        """Change the weights that were loaded, and merge low-rank updates that no longer train."""
        changes = self._changes
        if changes.tuned_weights:
            self.logger.info("Applying tuned weights from %s", changes.tuned_weights)
            changes.apply_tuned(self.model)
        if base := changes.interpolate_with:
            self.logger.info("Interpolating: %s of the weights loaded, the rest from %s", changes.interpolation, base)
            tensors, of_others, _ = take_base(self._read(base, mmap=True)[1])
            if of_others is not None:
                raise CheckpointError(_two_sets(base, "to interpolate with (MODEL.GLIPV2.TUNING.INTERPOLATE_WITH)"))
            tensors, _ = self._convert(tensors, base)
            check_fit(tensors, self.model.state_dict(), base)
            interpolate_weights(self.model, tensors, changes.interpolation, base)
        if self._for_results:
            merge_lora(self.model)

    def save(self, name: str, *, replaced: Collection[Path] = (), **kwargs: Any) -> None:
        """Write ``name``.pth with weights, checkpointables and ``kwargs``; then note it as the last checkpoint.

        Every rank calls this for a sharded model, and the file is the same as without shards. In the background one
        file is written at a time: the next ``save`` waits for it.

        Args:
            name: Without a folder.
            replaced: Files that are removed as soon as the new one is whole.
            kwargs: What else to save.

        Raises:
            CheckpointError: Something is of a type that could not be read back without running code.
            OSError: The file cannot be written, or that of the last ``save`` in the background could not.
        """
        sharded = is_sharded(self.model)
        if not self.save_dir or not (self.save_to_disk or sharded):
            return
        if os.path.basename(name) != name:
            raise InputError(f"checkpoint name: expected no folder in it, found {name!r}")
        # Two copies at a time might be more than the memory holds.
        self.finish_saving()
        content = {"model": self.model.state_dict()}
        content.update({key: checkpointable.state_dict() for key, checkpointable in self.checkpointables.items()})
        content.update(kwargs)
        if sharded:
            content = whole_tensors(content)
            if not self.save_to_disk:
                return
        os.makedirs(self.save_dir, exist_ok=True)
        path = Path(self.save_dir, f"{name}.pth")
        content = plain_content(path, content)
        self.logger.info("Saving checkpoint to %s", path)
        if self._writer is None:
            self._write(path, content, replaced)
        else:
            content = copied(content)
            self._writer.start(lambda: self._write(path, content, replaced))

    def _write(self, path: Path, content: dict[str, Any], replaced: Collection[Path]) -> None:
        write_checkpoint(path, content)
        self.tag_last_checkpoint(path.name)
        for old in replaced:
            if old != path:
                old.unlink(missing_ok=True)

    def check_saving(self) -> None:
        """Raise what has kept the last file of ``save`` from being written, if that is known already."""
        if self._writer is not None:
            self._writer.check()

    def finish_saving(self) -> None:
        """Wait until the last file of ``save`` is whole.

        Raises:
            OSError: It could not be written; this is said once.
        """
        if self._writer is not None:
            self._writer.finish()

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note which file of the folder was saved last."""
        write_text(os.path.join(self.save_dir, LAST_CHECKPOINT), last_filename_basename)

    def has_checkpoint(self) -> bool:
        """Tell whether there is a checkpoint to resume from."""
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> str:
        """Return the newest checkpoint of the folder that is whole, after that of ``save``; "" if there is none."""
        self.finish_saving()
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
        if not found:
            return self.load(path, checkpointables=[])
        rest = self._load(found)
        if self._for_results:
            self._finish()
        return rest

    def _convert(self, tensors: dict[str, Tensor], source: str) -> tuple[dict[str, Tensor], bool]:
        """Return tensors of any kind under the names of the model, and whether they had them already."""
        kind = find_kind(tensors)
        if kind is OWN_WEIGHTS:
            return tensors, True
        tensors, report = kind.convert(tensors, expected=self.model.state_dict(), source=source)
        self.logger.info("%s", report)
        return tensors, False

    def _fill_model(self, tensors: dict[str, Tensor], source: str) -> None:
        """Copy tensors into the model if they are enough; log names that did not meet."""
        expected = self.model.state_dict()
        if not self._for_results:
            tensors = without_other_classes(tensors, expected)
        check_fit(tensors, expected, source)
        check_update_scales(tensors, expected, source)
        unexpected = [name for name in tensors if name not in expected]
        for mode, pattern in _TUNED_NAMES.items():
            if any(pattern.fullmatch(name) for name in unexpected):
                raise CheckpointError(
                    f"{source}: MODEL.GLIPV2.TUNING.MODE: expected {mode!r}, the tuning of these weights, found another"
                )
        check_values(tensors, expected, source)
        missing = self._check_missing([name for name in expected if name not in tensors], source)
        placed = {name: placed_like(tensor, expected[name]) for name, tensor in tensors.items() if name in expected}
        self.model.load_state_dict(placed, strict=False)
        if missing:
            self.logger.warning("%s has no weights for %s: they keep their values", source, summarize_names(missing))
        if unexpected:
            self.logger.warning("%s: the model has no place for %s", source, summarize_names(unexpected))

    def _fill_base(self, base: dict[str, Tensor], own_names: Tensor | None, source: str) -> None:
        """Give the model the base that a file has beside the tuned weights.

        Raises:
            CheckpointError: It is no base of the model, its own names are missing, or no results are wanted.
        """
        if not self._for_results or self._changes != WeightChanges():
            wanted = "to train from or to change (MODEL.GLIPV2.TUNING.WEIGHTS, INTERPOLATE_WITH)"
            raise CheckpointError(_two_sets(source, wanted))
        if own_names is None:
            raise CheckpointError(f"{source}: by_name.own_names: expected the names that were tuned, found none")
        expected = self.model.state_dict()
        base, left_out = without_missing_heads(base, expected)
        if left_out:
            self.logger.warning("%s: the model has no place for %s", source, summarize_names(left_out))
        unknown = sorted(base.keys() - expected.keys())
        if unknown or not isinstance(self.model, GLIPv2):
            raise CheckpointError(
                f"{source}: by_name.base: expected weights of the model, found {summarize_names(unknown or list(base))}"
            )
        check_fit({**expected, **base}, expected, source)
        check_values(base, expected, source)
        try:
            names = unpack_names(own_names)
        except InputError as error:
            raise CheckpointError(f"{source}: by_name.own_names: {error}") from error
        self.logger.info("%s: tuned weights for the names that they were tuned on, the base for all others", source)
        add_base(self.model, base, names)

    def _check_missing(self, missing: list[str], source: str) -> list[str]:
        """Return the names among those that a file lacks that are worth a warning; raise if one is needed."""
        # Prompt tables and low-rank updates start from zero.
        untuned = [name for name in missing if any(pattern.fullmatch(name) for pattern in _TUNED_NAMES.values())]
        if untuned and self._for_results and not self._changes.tuned_weights:
            raise CheckpointError(
                f"{source}: expected weights for {summarize_names(untuned)} (MODEL.GLIPV2.TUNING.MODE), found none; "
                "MODEL.GLIPV2.TUNING.WEIGHTS names a file that has them"
            )
        # These are computed from the window size; timm does not save them.
        missing = [name for name in missing if not name.endswith("relative_position_index") and name not in untuned]
        # The results of a head with random weights would be noise.
        heads = self._heads_of_results if self._for_results else set()
        needed = sorted({name.partition(".")[0] for name in missing} & heads)
        if self._for_results:
            optional = HEADS.keys() - heads
            parameters = dict(self.model.named_parameters())
            needed += [name for name in missing if name in parameters and name.partition(".")[0] not in optional]
        if self._for_results and getattr(getattr(self.model, "class_words_head", None), "starts_random", False):
            needed += [name for name in missing if name.startswith("class_words_head.classifier.")]
        # Position weights start random. A file without them may be trained from, not evaluated.
        needed += [
            name
            for name in missing
            if is_position_weight(name) and (self._for_results or not self.model.get_parameter(name).requires_grad)
        ]
        if needed:
            raise CheckpointError(
                f"{source}: expected weights for {needed[0]}, which the config switches on, found none"
            )
        return missing

    def _fetch_from_timm(self, address: str) -> dict[str, Tensor]:
        """Return ImageNet weights of timm under the names of the model's bottom-up network."""
        name = address.removeprefix(_TIMM_PREFIX)
        if not timm.is_model(name):
            raise CheckpointError(
                f"{address}: expected a model of timm, found {name!r}; timm.list_models() lists their names"
            )
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
        except _TIMM_ERRORS as error:
            reason = str(error).strip().split("\n")[0]
            raise CheckpointError(
                f"{address}: expected the pretrained weights of {name} from timm's hub, found {reason!r}; without "
                "network, put the file on the disk and name it in MODEL.TIMM.WEIGHTS or MODEL.WEIGHTS"
            ) from error
        return fetched if body is None else {f"{BOTTOM_UP}.body.{key}": value for key, value in fetched.items()}


def _two_sets(source: str, wanted: str) -> str:
    """Say that a file has two sets of weights where one is wanted."""
    return (
        f"{source}: expected one set of weights {wanted}, found two, for own names and for all others; in the folder "
        f"of its training {BEST_WEIGHTS} or {FINAL_WEIGHTS} has the tuned ones, {BASE_WEIGHTS} those of all others"
    )
