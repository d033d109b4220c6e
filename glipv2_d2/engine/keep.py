"""A tuning that forgets nothing: its base, which a resumed run needs too, and final weights of both or between both."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn

from ..checkpoint.resume import BASE_WEIGHTS, BEST_WEIGHTS, FINAL_WEIGHTS, KEPT_WEIGHTS
from ..checkpoint.tuned_weights import base_hash, save_tuned
from ..checkpoint.weight_changes import interpolate_weights
from ..data.dataset_mappers.build import mapper_of
from ..errors import InputError
from ..modeling.by_name import base_tensors
from ..modeling.keeping import Keeping, KeepWeights
from ..modeling.lora import merge_lora
from ..prompts.vocabulary import trained_names, trained_tokens
from ..tensor_files import NO_WEIGHTS, CheckpointError, read_tensors, write_checkpoint, write_tensors
from .plateau import PlateauHook, result_of
from .share_choice import Choice, Comparison, choose_share

KEPT_TUNED_WEIGHTS = "tuned_kept.safetensors"
_KEY = "MODEL.GLIPV2.TUNING.KEEP"

# Evaluates a model as it is.
Test = Callable[[nn.Module], Mapping[str, Any]]


class KeepHook(HookBase):
    """Give the model its base before training, and at its end write the weights of both, or choose some between both.

    The base is written to the folder of the run, not to checkpoints, which hold its hash.

    Args:
        cfg: Full config.
        model: The model, not wrapped.
        test: Evaluates it on DATASETS.TEST.
        plateau: Keeps the best weights and knows of an early end; None: the last weights count.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, test: Test, plateau: PlateauHook | None) -> None:
        keep = cfg.MODEL.GLIPV2.TUNING.KEEP
        self._model: Any = model
        self._test = test
        self._plateau = plateau
        self._patience = cfg.SOLVER.EARLY_STOP_PATIENCE
        self._weights = KeepWeights.from_config(cfg)
        self._own_names = trained_names(cfg) if keep.BY_NAME else []
        self._own_tokens = trained_tokens(cfg) if keep.BY_NAME else []
        self._least_own = keep.LEAST_OWN
        self._metric = cfg.SOLVER.AUTO_STEP.METRIC
        self._folder = cfg.OUTPUT_DIR
        self._compare = lambda base: Comparison(cfg, base)
        self._base: Any = None
        self._has_begun = False
        self._hash = ""
        self._is_done = False

    def before_train(self) -> None:
        """Copy the model, or read the base of a run that goes on.

        Raises:
            InputError: The run began without a base.
            CheckpointError: The file of the base is not that of this run.
        """
        path = os.path.join(self._folder, BASE_WEIGHTS)
        self._model.keeping = None
        base = frozen_copy(self._model)
        if not self._hash:
            if self.trainer.start_iter:
                raise InputError(f"{_KEY}.ENABLED: expected False for a run that began without, found True")
            self._hash = base_hash(base, ())
            if comm.is_main_process():
                write_tensors(path, {name: tensor.cpu() for name, tensor in base.state_dict().items()})
            comm.synchronize()
        else:
            base.load_state_dict(read_tensors(path)[0])
            if base_hash(base, ()) != self._hash:
                raise CheckpointError(
                    f"{path}: expected the weights that the run began with (hash {self._hash:.12}), found others"
                )
        self._has_begun, self._base = True, None if self._own_names else base
        self._is_done = self.trainer.start_iter >= self.trainer.max_iter
        if any(self._weights):
            self._model.keeping = Keeping(base, self._weights)

    def after_step(self) -> None:
        # A last step that fails does not come here.
        self._is_done = self.trainer.iter + 1 == self.trainer.max_iter

    def after_train(self) -> None:
        """At the end of the run, not where it fails, write its final weights."""
        ended_early = self._plateau is not None and 0 < self._patience <= self._plateau.since_best
        self._model.keeping = None
        if self._has_begun and (self._is_done or ended_early):
            if self._own_names:
                self._write_both()
            elif self._least_own:
                self._choose_between()

    def state_dict(self) -> dict[str, Any]:
        return {"base_sha256": self._hash}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._hash = state_dict["base_sha256"]

    def _read_tuned(self) -> dict[str, Tensor]:
        comm.synchronize()
        return read_tensors(os.path.join(self._folder, FINAL_WEIGHTS if self._plateau is None else BEST_WEIGHTS))[0]

    def _write_both(self) -> None:
        """Write the tuned weights with those of the base that differ, see ``ByName``."""
        tuned = self._read_tuned()
        if comm.is_main_process():
            names = [*self._own_names, *self._own_tokens]
            base = base_tensors(tuned, read_tensors(os.path.join(self._folder, BASE_WEIGHTS))[0], names)
            content = {"model": {**tuned, **base}, "iteration": self.trainer.iter}
            write_checkpoint(os.path.join(self._folder, KEPT_WEIGHTS), content)
            logging.getLogger(__name__).info(
                "the final weights, %s: the tuned ones for %d names, and for all others %d tensors of the base",
                *(KEPT_WEIGHTS, len(self._own_names), len(base) - 1),
            )
        comm.synchronize()

    def _choose_between(self) -> None:
        """Write the weights between both, see ``choose_share``."""
        tuned, compare = self._read_tuned(), self._compare(self._base)

        def move(share: float) -> Any:
            self._model.load_state_dict(tuned)
            interpolate_weights(self._model, self._base.state_dict(), share, BASE_WEIGHTS)
            return self._model.eval()

        def own(share: float) -> float:
            return result_of(self._test(move(share)), self._metric)

        choice = choose_share(own, lambda share: compare(move(share)), self._least_own)
        model = move(choice.share)
        for line in choice_lines(choice, self._metric):
            logging.getLogger(__name__).info("%s", line)
        if comm.is_main_process():
            content = {"model": model.state_dict(), "iteration": self.trainer.iter, "share": choice.share}
            write_checkpoint(os.path.join(self._folder, KEPT_WEIGHTS), content)
            if model.tuning.mode != "full":
                save_tuned(model, os.path.join(self._folder, KEPT_TUNED_WEIGHTS))
        comm.synchronize()


def frozen_copy(model: nn.Module) -> Any:
    """Return a copy of a model for results, low-rank updates merged; it shares other weights that do not train."""
    parameters = dict(model.named_parameters())
    shared = {
        id(parameter): parameter
        for name, parameter in parameters.items()
        if not parameter.requires_grad and f"{name.removesuffix('.weight')}.lora.up" not in parameters
    }
    memo: dict[int, Any] = dict(shared)
    base = copy.deepcopy(model, memo).requires_grad_(False)
    merge_lora(base)
    return base.eval()


def give_base(cfg: CfgNode, model: Any) -> None:
    """Give a model that is thrown away itself as the base, if training updates are with one; to measure their time."""
    if build_keep_hook(cfg, model, lambda model: {}, None) is not None and any(weights := KeepWeights.from_config(cfg)):
        model.keeping = Keeping(frozen_copy(model), weights)


def choice_lines(choice: Choice, metric: str) -> list[str]:
    """Say which share of the tuned weights was chosen and why, in lines."""
    tried = [
        f"share {share:g} of the tuned weights: {metric} {choice.own[share]:.2f}"
        + (f", agreement with the base {choice.agreement[share]:.3f}" if share in choice.agreement else "")
        for share in sorted(choice.own)
    ]
    return [
        *tried,
        f"the final weights, {KEPT_WEIGHTS}: share {choice.share:g} of the tuned ones, the rest of the base",
    ]


def build_keep_hook(cfg: CfgNode, model: nn.Module, test: Test, plateau: PlateauHook | None) -> KeepHook | None:
    """Build the hook that ``TUNING.KEEP`` needs; None where it is off, and for a tuned prompt.

    A tuned prompt answers for its own names alone: for all others the model is the base.

    Raises:
        InputError: A key has a value that is not allowed, or there are no weights or names to keep.
    """
    tuning, keep = cfg.MODEL.GLIPV2.TUNING, cfg.MODEL.GLIPV2.TUNING.KEEP
    if not keep.ENABLED:
        return None
    named = [name for name in cfg.DATASETS.TRAIN if mapper_of(name).has_category_names]
    architecture, has_test = cfg.MODEL.META_ARCHITECTURE, len(cfg.DATASETS.TEST) > 0
    for key, value, valid, expected in (
        (f"{_KEY}.NAMES_WEIGHT", keep.NAMES_WEIGHT, keep.NAMES_WEIGHT >= 0, "at least 0"),
        (f"{_KEY}.BOXES_WEIGHT", keep.BOXES_WEIGHT, keep.BOXES_WEIGHT >= 0, "at least 0"),
        (f"{_KEY}.LEAST_OWN", keep.LEAST_OWN, 0 <= keep.LEAST_OWN <= 1, "a share from 0 to 1"),
        ("MODEL.META_ARCHITECTURE", architecture, architecture == "GLIPv2", "'GLIPv2'"),
        ("MODEL.WEIGHTS", cfg.MODEL.WEIGHTS, cfg.MODEL.WEIGHTS not in NO_WEIGHTS, "the weights to keep"),
        ("SOLVER.SHARD_WEIGHTS", True, not cfg.SOLVER.SHARD_WEIGHTS, "False"),
        ("DATASETS.TRAIN", cfg.DATASETS.TRAIN, len(named) == len(cfg.DATASETS.TRAIN), "data of names and boxes alone"),
        ("DATASETS.TEST", cfg.DATASETS.TEST, has_test or keep.BY_NAME or not keep.LEAST_OWN, "validation data"),
    ):
        if not valid:
            raise InputError(f"{key}: expected {expected} with {_KEY}.ENABLED, found {value!r}")
    if tuning.MODE == "prompt":
        logging.getLogger(__name__).info(
            "%s: a tuned prompt answers for its own names alone, and the base for all others: nothing to do", _KEY
        )
        return None
    return KeepHook(cfg, model, test, plateau)
