"""One training step: micro-batches, mixed precision, clipping, losses that are not finite, a model on several ranks."""

from __future__ import annotations

import contextlib
import itertools
import logging
import random
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer, create_ddp_model
from detectron2.modeling.backbone.swin import SwinTransformerBlock
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ..distributed import is_sharded, placed_like, reduce_mean, whole_tensor
from ..errors import InputError
from ..modeling.fusion_tower import TowerBlock
from ..modeling.tasks.build import enabled_tasks
from ..solver import GradientClipper, total_gradient_norm

# A loss scale below this cannot be the cause of overflowing gradients: the gradients themselves are not finite.
MIN_LOSS_SCALE = 1.0

# Their sharded weights come together where they are computed, one after the other; all others stay for the whole step.
_UNITS = (SwinTransformerBlock, TowerBlock)

_AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class NonfiniteLossError(InputError, FloatingPointError):
    """The loss of a training is no longer finite; another learning rate, precision or other data may help."""


class GroundingTrainLoop(SimpleTrainer):
    """Update the weights once from the gradients of several batches.

    A step whose loss or gradients are not finite changes no weights: its images are logged and it counts as an
    iteration. All ranks take that decision together. Randomness inside the model is a function of seed, iteration and
    rank, so that a resumed run equals an uninterrupted one.

    Args:
        model: The model, wrapped in DistributedDataParallel or sharded if there are several ranks.
        data_loader: Yields lists of model inputs, without end; may be set before the first step.
        optimizer: Updates the weights.
        clip_gradients: Clips the gradients of all parameters and returns their norm, see ``build_gradient_clipper``.
        accumulation_steps: Batches per update; their losses are averaged.
        precision: Type of the autocast: None for none, ``torch.bfloat16``, or ``torch.float16`` with loss scaling.
        max_nonfinite_steps: Number of skipped steps in a row that ends the training.
        seed: Base of the randomness in the model; negative: the generators are left alone.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict[str, Any]]] | None,
        optimizer: torch.optim.Optimizer,
        *,
        clip_gradients: GradientClipper = total_gradient_norm,
        accumulation_steps: int = 1,
        precision: torch.dtype | None = None,
        max_nonfinite_steps: int = 10,
        seed: int = -1,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        if accumulation_steps < 1:
            raise InputError(f"SOLVER.ACCUMULATION_STEPS: expected at least 1, found {accumulation_steps}")
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.device = self.parameters[0].device
        self.clip_gradients = clip_gradients
        self.accumulation_steps = accumulation_steps
        self.precision = precision
        self.grad_scaler = torch.amp.GradScaler(self.device.type, enabled=precision == torch.float16)
        self.max_nonfinite_steps = max_nonfinite_steps
        self.nonfinite_steps = 0
        self.seed = seed
        self._is_sharded = is_sharded(model)

    def run_step(self) -> None:
        """Do one update, or skip it.

        Raises:
            NonfiniteLossError: ``max_nonfinite_steps`` steps in a row were skipped.
        """
        self.optimizer.zero_grad()
        losses: dict[str, Tensor] = {}
        totals: list[Tensor] = []
        image_ids: list[list[str]] = []
        data_time = 0.0
        for micro_step in range(self.accumulation_steps):
            start = time.perf_counter()
            batch = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            batch_losses = self._backward(batch, micro_step)
            totals.append(torch.stack([*batch_losses.values()]).sum())
            image_ids.append([str(inputs.get("image_id", inputs.get("file_name"))) for inputs in batch])
            for name, loss in batch_losses.items():
                losses[name] = losses.get(name, 0.0) + loss / self.accumulation_steps
        # The CPU waits once for all numbers. Where losses are scaled, gradients are read only if the losses are finite.
        clipped = [] if self.grad_scaler.is_enabled() else [self.clip_gradients(self.parameters)]
        norm = [whole_tensor(one).to(self.device) for one in clipped]
        numbers = torch.stack([*losses.values(), *totals, *norm]).cpu()
        logged, total, norm = numbers.split([len(losses), len(totals), len(norm)])
        finite = total.isfinite().tolist()
        suspects = [one for ids, is_finite in zip(image_ids, finite, strict=True) for one in ids if not is_finite]
        if self._any_rank(bool(suspects)) or not self._update(norm):
            self._skip(suspects)
            return
        self.nonfinite_steps = 0
        self._write_metrics(dict(zip(losses, logged, strict=True)), data_time)

    def _backward(self, batch: list[dict[str, Any]], micro_step: int) -> dict[str, Tensor]:
        """Add the gradients of one batch; return its losses, detached."""
        # The data loader may draw random numbers when it starts, so the generators are seeded after the batch came.
        if self.seed >= 0:
            seed_generators(self.seed, self.iter, micro_step, comm.get_rank())
        is_last = micro_step == self.accumulation_steps - 1
        wrapped = isinstance(self.model, DistributedDataParallel)
        # The ranks exchange gradients once per update.
        if self._is_sharded:
            self.model.set_requires_gradient_sync(is_last)
        with self.model.no_sync() if wrapped and not is_last else contextlib.nullcontext():
            with torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision is not None):
                losses = self.model(batch)
            total = sum(losses.values()) / self.accumulation_steps
            self.grad_scaler.scale(total).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _update(self, norm: Tensor) -> bool:
        """Update; return False, with unchanged weights, if the gradients are not finite.

        Gradients that overflow because of the loss scale are not a failure: the scale shrinks, the next step counts.

        Args:
            norm: Norm of the gradients, which are clipped; empty where losses are scaled: then they are clipped here.
        """
        self.grad_scaler.unscale_(self.optimizer)
        # Equal on all ranks, since the gradients are.
        finite = bool(torch.isfinite(norm if len(norm) else self.clip_gradients(self.parameters)))
        if finite:
            self.grad_scaler.step(self.optimizer)
        if not self.grad_scaler.is_enabled():
            return finite
        scale = self.grad_scaler.get_scale()
        self.grad_scaler.update()
        return finite or MIN_LOSS_SCALE < scale > self.grad_scaler.get_scale()

    def _skip(self, suspects: list[str]) -> None:
        self.optimizer.zero_grad()
        self.nonfinite_steps += 1
        image_ids = sorted({image_id for ids in comm.all_gather(suspects) for image_id in ids})
        cause = f"loss is not finite, image ids {', '.join(image_ids)}" if image_ids else "gradients are not finite"
        logging.getLogger(__name__).warning(
            "iteration %d: %s; update skipped (%d in a row)", self.iter, cause, self.nonfinite_steps
        )
        if self.nonfinite_steps >= self.max_nonfinite_steps:
            raise NonfiniteLossError(
                f"training stopped at iteration {self.iter}: expected a finite loss, found {self.nonfinite_steps} "
                f"steps in a row without one (SOLVER.MAX_NONFINITE_STEPS); the last: {cause}"
            )

    def _any_rank(self, flag: bool) -> bool:
        if comm.get_world_size() == 1:
            return flag
        return bool(reduce_mean(torch.tensor(float(flag), device=self.device)) > 0)

    def _write_metrics(self, loss_dict: dict[str, Tensor], data_time: float, prefix: str = "") -> None:
        super()._write_metrics(loss_dict, data_time, prefix)
        if len(loss_dict) == 1 and comm.is_main_process():
            # detectron2 does not write a loss that is the only one; here the losses can differ from step to step.
            (name,) = loss_dict
            storage = get_event_storage()
            storage.put_scalar(name, storage.history(f"{prefix}total_loss").latest())

    def state_dict(self) -> dict[str, Any]:
        """Return iteration, optimizer, loss scale and the count of skipped steps, in plain types and tensors."""
        return {
            **super().state_dict(),
            "grad_scaler": self.grad_scaler.state_dict(),
            "nonfinite_steps": self.nonfinite_steps,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Read what ``state_dict`` returned; a run resumed in another precision starts a new loss scale.

        Raises:
            InputError: The parameters that train are grouped in another way.
        """
        groups = [
            [len(group["params"]) for group in optimizer["param_groups"]]
            for optimizer in (state_dict["optimizer"], self.optimizer.state_dict())
        ]
        if groups[0] != groups[1]:
            raise InputError(
                f"SOLVER: expected the checkpoint's groups of parameters with rates and decay of their own, of sizes "
                f"{groups[0]}, found {groups[1]}; a factor of rates or decays that was 1, or is 1 now, has to stay"
            )
        super().load_state_dict({**state_dict, "optimizer": self._placed(state_dict["optimizer"])})
        if self.grad_scaler.is_enabled() and state_dict["grad_scaler"]:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        self.nonfinite_steps = state_dict["nonfinite_steps"]

    def _placed(self, optimizer_state: dict[str, Any]) -> dict[str, Any]:
        """Return the state of an optimizer with this rank's part of the tensors that have the shape of a parameter."""
        state = {
            number: {
                key: placed_like(value, self.parameters[number])
                if isinstance(value, Tensor) and value.shape == self.parameters[number].shape
                else value
                for key, value in of_parameter.items()
            }
            for number, of_parameter in optimizer_state["state"].items()
        }
        return {**optimizer_state, "state": state}


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """Return the autocast type that ``SOLVER.AMP`` asks for, None for none.

    Raises:
        InputError: ``SOLVER.AMP.DTYPE`` is neither "float16" nor "bfloat16".
    """
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    if cfg.SOLVER.AMP.DTYPE not in _AMP_DTYPES:
        raise InputError(f"SOLVER.AMP.DTYPE: expected one of {list(_AMP_DTYPES)}, found {cfg.SOLVER.AMP.DTYPE!r}")
    return _AMP_DTYPES[cfg.SOLVER.AMP.DTYPE]


def has_idle_parts(cfg: CfgNode) -> bool:
    """Tell whether layers may be without gradients: a loss is switched off, or batches are of different tasks."""
    if len(enabled_tasks(cfg)) > 1:
        return True
    grounding, box = cfg.MODEL.GLIPV2.GROUNDING, cfg.MODEL.GLIPV2.BOX
    mask_weight = cfg.MODEL.GLIPV2.MASK_HEAD.LOSS_WEIGHT if cfg.MODEL.MASK_ON else 1.0
    words = cfg.MODEL.GLIPV2.CLASS_WORDS
    words_weight = words.LOSS_WEIGHT if words.ENABLED else 1.0
    return 0 in (
        *(grounding.LOSS_WEIGHT, box.REG_LOSS_WEIGHT, box.CENTERNESS_LOSS_WEIGHT),
        *(mask_weight, words_weight),
    )


def check_sharding(cfg: CfgNode) -> None:
    """Check that what ``SOLVER.SHARD_WEIGHTS`` does not go with is off.

    Raises:
        InputError: Less than the whole model is tuned, losses are scaled, layers may be without gradients, or there is
            the classifier of class words, whose weights have an order in memory that FSDP2 does not take.
    """
    if not cfg.SOLVER.SHARD_WEIGHTS:
        return
    for key, found, is_allowed, expected in (
        ("MODEL.GLIPV2.TUNING.MODE", cfg.MODEL.GLIPV2.TUNING.MODE, cfg.MODEL.GLIPV2.TUNING.MODE == "full", "'full'"),
        (
            *("SOLVER.AMP.DTYPE", cfg.SOLVER.AMP.DTYPE),
            *(not cfg.SOLVER.AMP.ENABLED or cfg.SOLVER.AMP.DTYPE == "bfloat16", "'bfloat16'"),
        ),
        ("MODEL.GLIPV2.CLASS_WORDS.ENABLED", True, not cfg.MODEL.GLIPV2.CLASS_WORDS.ENABLED, "False"),
        ("SOLVER.SHARD_WEIGHTS", True, not has_idle_parts(cfg), "False where there are several tasks or a loss is 0"),
    ):
        if not is_allowed:
            raise InputError(f"{key}: expected {expected} with SOLVER.SHARD_WEIGHTS, found {found!r}")


def shard_model(model: nn.Module) -> None:
    """Leave to each rank its part of every parameter; the ranks start from the weights of the first.

    Names stay. Parameters become new ones, so the optimizer and the moving average are built afterwards.
    """
    # Imported late: half a second that no other run needs.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for tensor in itertools.chain(model.parameters(), model.buffers()):
        distributed.broadcast(tensor.detach(), 0)
    mesh = init_device_mesh(next(model.parameters()).device.type, (comm.get_world_size(),))
    for module in list(model.modules()):
        if isinstance(module, _UNITS):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


@contextlib.contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """Within the context every rank holds all weights, since the ranks test different numbers of batches.

    A model that is not sharded stays as it is. All ranks enter and leave it.
    """
    units: list[Any] = [module for module in model.modules() if hasattr(module, "unshard")]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
            # The outermost keeps its own weights between its forward and its backward pass.
            unit.set_reshard_after_forward(unit is not units[0], recurse=False)


def wrap_model(model: nn.Module, find_unused_parameters: bool = False) -> nn.Module:
    """Wrap a model that is not sharded for gradient averaging if there are several ranks, on CPU and GPU alike."""
    if is_sharded(model):
        return model
    on_gpu = next(model.parameters()).is_cuda
    return create_ddp_model(
        model,
        broadcast_buffers=False,
        find_unused_parameters=find_unused_parameters,
        device_ids=[comm.get_local_rank()] if on_gpu else None,
    )


def seed_generators(*numbers: int) -> None:
    """Seed torch, numpy and random with one number made from several non-negative ones."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
