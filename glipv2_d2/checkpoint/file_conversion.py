"""Weights of any accepted kind as a file of this package, or as a folder with the whole model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from detectron2.config import CfgNode
from torch import Tensor

from ..modeling.build import build_model
from ..modeling.by_name import take_base, without_missing_heads
from ..tensor_files import CheckpointError, read_checkpoint, unwrap_weights, write_tensors
from .conversion import find_kind
from .fit_check import check_fit
from .model_shapes import build_meta_model
from .name_rules import ConversionReport, summarize_names
from .pretrained_folder import save_pretrained


def convert_file(
    source: str,
    target: str,
    cfg: CfgNode | None = None,
    *,
    ema: bool = False,
    device: str = "auto",
    report: Callable[[str], None],
) -> int:
    """Convert weights to this package's names; nothing is written that does not fit.

    Args:
        source: File of an accepted kind; the names in it tell the kind.
        target: File to write, .safetensors; or, with a config, a new folder for the whole model.
        cfg: Config of the model that the weights have to fit, on the CPU.
        ema: Take the moving average kept under 'model_ema'.
        device: ``MODEL.DEVICE`` of the config in the folder.
        report: Called with what became of every name, before the weights are compared with the model.

    Returns:
        The number of tensors that are written.

    Raises:
        CheckpointError: The file is of no accepted kind or damaged, does not fit the config, or ``target`` is neither a
            file nor a folder together with a config.
        FileExistsError, FileNotFoundError: See ``read_checkpoint`` and ``save_pretrained``.
    """
    if cfg is not None:
        cfg = cfg.clone()
        cfg.defrost()
        # The weights of the config may be those that a training started from.
        cfg.MODEL.WEIGHTS = source
    to_folder = Path(target).suffix != ".safetensors"
    if to_folder and cfg is None:
        raise CheckpointError(
            f"{target}: expected a name that ends in .safetensors, or a folder together with --config-file"
        )
    expected = None if cfg is None else _expected_tensors(cfg)
    content, _ = read_checkpoint(source, mmap=True)
    kind = find_kind(weights := unwrap_weights(content, source, ema=ema))
    tensors, conversion = kind.convert(weights, expected=expected, source=source)
    report(str(conversion))
    if expected is not None:
        _check_places(tensors, conversion, expected, source, kind.fills_detector or to_folder)
    if to_folder and cfg is not None:
        _save_folder(tensors, cfg, target, device, is_measured=not ema)
    else:
        write_tensors(target, tensors, {"source": conversion.source})
    return len(tensors)


def _expected_tensors(cfg: CfgNode) -> dict[str, Tensor]:
    """Return the tensors of the model of a config; without values if the config gives the sizes of its text encoder."""
    if cfg.MODEL.TEXT_ENCODER.WEIGHTS:
        return build_model(cfg).state_dict()
    return build_meta_model(cfg).state_dict()


def _check_places(
    tensors: Mapping[str, Tensor], report: ConversionReport, expected: Mapping[str, Tensor], source: str, is_whole: bool
) -> None:
    """Check that the model has a parameter for every tensor and, with ``is_whole``, a tensor for every parameter.

    Tensors of two sets of weights, see ``ByName``, are compared set by set.

    Raises:
        CheckpointError: A tensor has another shape, is missing, or has no parameter.
    """
    own, base, own_names = take_base(tensors)
    check_fit(own, expected, source)
    if is_whole and report.missing:
        raise CheckpointError(f"{source}: expected weights for {summarize_names(report.missing)}, found none")
    if base is not None:
        base, _ = without_missing_heads(base, expected)
        check_fit({**expected, **base}, expected, source)
        if own_names is None:
            raise CheckpointError(f"{source}: by_name.own_names: expected the names that were tuned, found none")
    surplus = [name for name in (*own, *(base or ())) if name not in expected]
    if surplus:
        raise CheckpointError(f"{source}: expected parameters of the model alone, found {summarize_names(surplus)} too")


def _save_folder(
    tensors: Mapping[str, Tensor], cfg: CfgNode, folder: str | os.PathLike, device: str, is_measured: bool
) -> None:
    """Write the model of a config, filled with these tensors, as a folder.

    With ``is_measured`` the results of MODEL.WEIGHTS are theirs.
    """
    tuning = cfg.MODEL.GLIPV2.TUNING
    if tuning.WEIGHTS or tuning.INTERPOLATE_WITH:
        raise CheckpointError(
            f"{folder}: MODEL.GLIPV2.TUNING.WEIGHTS, INTERPOLATE_WITH: expected none, found "
            f"{tuning.WEIGHTS or tuning.INTERPOLATE_WITH!r}; GLIPv2Predictor.save_pretrained writes such models"
        )
    model = build_model(cfg)
    model.load_state_dict(tensors)
    portable = cfg.clone()
    portable.MODEL.DEVICE = device
    if not is_measured:
        portable.MODEL.WEIGHTS = ""
    save_pretrained(model, portable, folder)
