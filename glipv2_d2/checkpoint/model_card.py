"""The page about a saved model, ``README.md``: what its config says, and what was measured with its weights."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from torch import nn

from ..errors import InputError
from ..tensor_files import file_sha256
from .saved_names import class_names

CARD_FILE = "README.md"

# Files of results: of an evaluation, and of a run on one's own data.
_TABLE_FILE = "result_table.json"
_RUN_FILE = "results.json"
# An identifier of SPDX or of the hub.
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
# Names of classes that the page lists.
_MOST_NAMES = 40


class Measured(NamedTuple):
    """What was measured on a dataset with the weights.

    Attributes:
        dataset: Name of the dataset.
        task: Such as "bbox".
        metrics: Values by name; None for one that could not be measured.
    """

    dataset: str
    task: str
    metrics: dict[str, float | None]


def check_license(text: str) -> None:
    """Check the name of a licence; "" is none.

    Raises:
        InputError: It is not a short name, such as "apache-2.0".
    """
    if text and not _LICENSE.fullmatch(text):
        raise InputError(f"license: expected a short name such as 'apache-2.0' or 'cc-by-4.0', found {text!r:.100}")


def find_measured(cfg: CfgNode, results: str | os.PathLike | None = None) -> list[Measured]:
    """Find what was measured with the weights of a config, and with no others.

    A ``result_table.json`` counts if it holds the hashes of these weights. A ``results.json`` counts if it names the
    file of these weights in its own folder, which was not written after it.

    Args:
        cfg: Config whose MODEL.WEIGHTS, and what is applied over them, were measured.
        results: Such a file, or a folder of them; None: the folder of MODEL.WEIGHTS.

    Raises:
        InputError: ``results`` is given, and was measured with other weights or is no such file.
    """
    place = Path(cfg.MODEL.WEIGHTS).parent if results is None else Path(results)
    files = [place] if place.is_file() else [place / name for name in (_TABLE_FILE, _RUN_FILE)]
    if not os.path.isfile(cfg.MODEL.WEIGHTS):
        files = []
    measured = [one for file in files if file.is_file() for one in _read_measured(cfg, file)]
    if results is not None and not measured:
        raise InputError(
            f"results: expected {_TABLE_FILE} or {_RUN_FILE}, measured with {cfg.MODEL.WEIGHTS}, found none at {place}"
        )
    return measured


def model_card(name: str, cfg: CfgNode, model: nn.Module, measured: Sequence[Measured], license_name: str = "") -> str:
    """Return the page in markdown, with the fields that the hub reads at its top.

    Args:
        name: Title, which is also what ``from_pretrained`` is called with.
        cfg: Config of the model.
        model: Its parameters are counted.
        measured: Nothing else is said about how good the model is.
        license_name: See ``check_license``.
    """
    head = ["---", *([f"license: {license_name}"] if license_name else [])]
    head += ["library_name: glipv2_d2", "pipeline_tag: zero-shot-object-detection", "tags:"]
    head += ["- glipv2", "- detectron2", "- object-detection", "---", ""]
    download = ", download=True" if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else ""
    use = [
        *("## Use", "", "```python", "from glipv2_d2 import GLIPv2Predictor", ""),
        f'predictor = GLIPv2Predictor.from_pretrained("{name}"{download})',
        *('result = predictor("photo.jpg", ["dog", "red car"])', "print(result.to_json())", "```", ""),
    ]
    return "\n".join([*head, f"# {name}", "", _abilities(cfg), "", *_facts(cfg, model), "", *_results(measured), *use])


def _read_measured(cfg: CfgNode, file: Path) -> list[Measured]:
    """Read a file of results; nothing if it was measured with other weights or is not such a file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return []
    if not isinstance(content, dict):
        return []
    if "results" in content:
        return _of_tasks(content["results"]) if _has_hashes(cfg, content.get("weights")) else []
    return _of_tasks({"val": content.get("val")}) if _is_of_run(cfg, content.get("weights"), file) else []


def _of_tasks(results: Any) -> list[Measured]:
    """Return results by dataset, task and metric as a list; what is not of this form is left out."""
    if not isinstance(results, dict):
        return []
    return [
        Measured(str(dataset), str(task), {str(name): value for name, value in metrics.items() if _is_value(value)})
        for dataset, tasks in results.items()
        if isinstance(tasks, dict)
        for task, metrics in tasks.items()
        if isinstance(metrics, dict)
    ]


def _is_value(value: Any) -> bool:
    return value is None or isinstance(value, (int, float))


def _has_hashes(cfg: CfgNode, records: Any) -> bool:
    """Tell whether the weights of a table are the files of a config, by their content."""
    tuning = cfg.MODEL.GLIPV2.TUNING
    used = {"MODEL.WEIGHTS": cfg.MODEL.WEIGHTS, "MODEL.GLIPV2.TUNING.WEIGHTS": tuning.WEIGHTS}
    used["MODEL.GLIPV2.TUNING.INTERPOLATE_WITH"] = tuning.INTERPOLATE_WITH
    files = [path for path in used.values() if path]
    if not isinstance(records, dict) or not all(os.path.isfile(path) for path in files):
        return False
    # A resumed evaluation names its checkpoint in place of MODEL.WEIGHTS.
    found = sorted(str(record.get("sha256")) for record in records.values() if isinstance(record, dict))
    return found == sorted(file_sha256(path) for path in files)


def _is_of_run(cfg: CfgNode, weights: Any, file: Path) -> bool:
    """Tell whether the results of a run are those of MODEL.WEIGHTS."""
    if not isinstance(weights, str) or cfg.MODEL.GLIPV2.TUNING.WEIGHTS or cfg.MODEL.GLIPV2.TUNING.INTERPOLATE_WITH:
        return False
    path = file.parent / Path(weights).name
    if not path.is_file() or not os.path.isfile(cfg.MODEL.WEIGHTS) or not path.samefile(cfg.MODEL.WEIGHTS):
        return False
    return path.stat().st_mtime <= file.stat().st_mtime


def _abilities(cfg: CfgNode) -> str:
    able = ["finds what a text names in images"]
    able += ["with masks"] if cfg.MODEL.MASK_ON else []
    able += ["answers questions about them"] if cfg.MODEL.GLIPV2.VQA.ENABLED else []
    able += ["describes them"] if cfg.MODEL.GLIPV2.CAPTIONING.ENABLED else []
    return f"A model of glipv2_d2 that {', '.join(able)}. Everything below is read from its config and its results."


def _facts(cfg: CfgNode, model: nn.Module) -> list[str]:
    """Return a table of what the config says."""
    sizes = f"{cfg.INPUT.MIN_SIZE_TEST} (short side), at most {cfg.INPUT.MAX_SIZE_TEST} (long side)"
    facts = {
        "model": cfg.MODEL.META_ARCHITECTURE,
        "backbone": cfg.MODEL.BACKBONE.NAME,
        "text encoder": cfg.MODEL.TEXT_ENCODER.NAME,
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        "pixels of an image": sizes,
        "DATASETS.TRAIN": ", ".join(cfg.DATASETS.TRAIN) or "none",
        "updates (SOLVER.MAX_ITER)": f"{cfg.SOLVER.MAX_ITER:,}",
    }
    if getattr(model, "by_name", None) is not None:
        facts["weights"] = "two sets: the tuned names have their own, all others those of before the tuning"
    names = class_names(cfg)
    if names:
        more = ", ..." if len(names) > _MOST_NAMES else ""
        facts["names of its test data"] = ", ".join(names[:_MOST_NAMES]) + more
    return ["| | |", "| --- | --- |", *(f"| {key} | {_cell(value)} |" for key, value in facts.items())]


def _results(measured: Sequence[Measured]) -> list[str]:
    lines = ["## Results", ""]
    if not measured:
        return [*lines, "No results of these weights are recorded.", ""]
    lines += ["| data | task | metric | value |", "| --- | --- | --- | ---: |"]
    for one in measured:
        for metric, value in one.metrics.items():
            shown = "not measured" if value is None else f"{value:.2f}"
            lines.append(f"| {_cell(one.dataset)} | {_cell(one.task)} | {_cell(metric)} | {shown} |")
    return [*lines, ""]


def _cell(text: str) -> str:
    """Return a text as it may stand in a cell of a table: names of classes and datasets may be any text."""
    return re.sub(r"([\\|<>`\[\]])", r"\\\1", " ".join(text.split()))
