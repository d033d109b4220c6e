"""The results of an evaluation in one format, as json and as markdown, with what they were measured with."""

from __future__ import annotations

import json
import logging
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from ..data.datasets.odinw import ODINW_13, ODINW_SETS, SPLITS, dataset_of_set
from ..prompts.protocols import chunk_size_of, limits_of
from ..tensor_files import file_sha256, write_text

# Results of a dataset: task, metric, value.
TaskResults = Mapping[str, Mapping[str, float]]

# Name of the files without their suffix.
_TABLE = "result_table"
_SUITES = {"odinw13": ODINW_13, "odinw35": tuple(ODINW_SETS)}
# detectron2 has the AP of each category too, as "AP-cat"; they are in the json only.
_OF_ONE_CATEGORY = "AP-"
_STATISTICS: dict[str, Callable[[list[float]], float]] = {"mean": statistics.fmean, "median": statistics.median}


def warn_of_earlier_results(output_dir: str) -> None:
    """Say on the main process that a folder has results of an earlier evaluation, some of which will be replaced."""
    table = os.path.join(output_dir, f"{_TABLE}.md")
    if comm.is_main_process() and os.path.isfile(table):
        logging.getLogger(__name__).warning(
            "%s is of an earlier evaluation and is replaced, as is what that one found in the same datasets; another "
            "OUTPUT_DIR keeps both",
            table,
        )


def write_result_table(
    cfg: CfgNode,
    results: Mapping[str, Any],
    output_dir: str,
    *,
    config_file: str = "",
    checkpoint: str = "",
    failures: Mapping[str, str] | None = None,
) -> None:
    """Write ``result_table.json`` and ``result_table.md`` of an evaluation of ``cfg.DATASETS.TEST``.

    The markdown has a table for each task: a row for each dataset, a column for each metric, and, if all sets of
    ODinW-13 or ODinW-35 were evaluated on a split, their mean and median. The json also has the AP of each category. A
    value that is not finite is null in the json and "-" in the tables, and so are the mean and the median that it is
    part of. A set that failed has a row with the reason in the first table. Only the main process writes.

    Args:
        cfg: Config of the run.
        results: The results of each dataset, as far as they are there.
        output_dir: Folder of the two files.
        config_file: Name of the config, as on the command line.
        checkpoint: File of the weights, if the config names another one, as in a resumed run.
        failures: For datasets whose evaluation failed, the reason.
    """
    if not comm.is_main_process():
        return
    names = list(cfg.DATASETS.TEST)
    by_dataset = {dataset: _finite(results.get(dataset, {})) for dataset in names}
    content = {
        "config_file": config_file,
        "weights": _weights(cfg, checkpoint),
        "protocol": _protocol(cfg),
        "results": by_dataset,
        "failed": dict(failures or {}),
        "summary": {title: summarize(by_dataset, datasets) for title, datasets in _whole_suites(names).items()},
    }
    PathManager.mkdirs(output_dir)
    text = json.dumps(content, indent=2, allow_nan=False)
    write_text(os.path.join(output_dir, f"{_TABLE}.json"), text + "\n")
    write_text(os.path.join(output_dir, f"{_TABLE}.md"), _markdown(content))


def summarize(
    results: Mapping[str, Mapping[str, Mapping[str, float | None]]], datasets: Sequence[str]
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return mean and median over datasets: for each of the two by task and metric.

    Args:
        results: Results of each dataset; None is a value that is not finite.
        datasets: Names of the datasets that count, at least one.

    Returns:
        All tasks and metrics of the first dataset that has any, without the AP of single categories; None if one of the
        datasets has no value.
    """
    first = next((results[dataset] for dataset in datasets if results[dataset]), {})
    summary: dict[str, dict[str, dict[str, float | None]]] = {name: {} for name in _STATISTICS}
    for task, metrics in first.items():
        for metric in metrics:
            if metric.startswith(_OF_ONE_CATEGORY):
                continue
            values = [results[dataset].get(task, {}).get(metric) for dataset in datasets]
            finite = [value for value in values if value is not None]
            for name, function in _STATISTICS.items():
                value = function(finite) if len(finite) == len(values) else None
                summary[name].setdefault(task, {})[metric] = value
    return summary


def _finite(results: TaskResults) -> dict[str, dict[str, float | None]]:
    return {
        task: {metric: float(value) if math.isfinite(value) else None for metric, value in metrics.items()}
        for task, metrics in results.items()
    }


def _whole_suites(names: Sequence[str]) -> dict[str, list[str]]:
    """Return, by title, the datasets of the suites that are complete among the names."""
    found = {}
    for suite, keys in _SUITES.items():
        for split in SPLITS:
            datasets = [dataset_of_set(key, split) for key in keys]
            if set(datasets) <= set(names):
                found[f"{suite} {split}"] = datasets
    return found


def _weights(cfg: CfgNode, checkpoint: str) -> dict[str, dict[str, Any]]:
    """Return the files of the weights, with their SHA-256, by config key."""
    if checkpoint:
        return {"checkpoint": _file_record(checkpoint)}
    tuning = cfg.MODEL.GLIPV2.TUNING
    weights = {"MODEL.WEIGHTS": _file_record(cfg.MODEL.WEIGHTS)}
    if tuning.WEIGHTS:
        weights["MODEL.GLIPV2.TUNING.WEIGHTS"] = _file_record(tuning.WEIGHTS)
    if tuning.INTERPOLATE_WITH:
        share = {"share_of_others": tuning.INTERPOLATION}
        weights["MODEL.GLIPV2.TUNING.INTERPOLATE_WITH"] = {**_file_record(tuning.INTERPOLATE_WITH), **share}
    return weights


def _file_record(path: str) -> dict[str, Any]:
    """Return path and SHA-256, which is None without a file, as for random weights and those of timm's hub."""
    local_path = PathManager.get_local_path(path) if path else ""
    return {"file": path, "sha256": file_sha256(local_path) if os.path.isfile(local_path) else None}


def _protocol(cfg: CfgNode) -> dict[str, Any]:
    """Return the settings that results depend on, beside model and data."""
    test = cfg.MODEL.GLIPV2.TEST
    return {
        "INPUT.MIN_SIZE_TEST": cfg.INPUT.MIN_SIZE_TEST,
        "INPUT.MAX_SIZE_TEST": cfg.INPUT.MAX_SIZE_TEST,
        **({"TEST.AUG." + key: value for key, value in cfg.TEST.AUG.items()} if cfg.TEST.AUG.ENABLED else {}),
        "INPUT.PROMPT.SEPARATOR": cfg.INPUT.PROMPT.SEPARATOR,
        "INPUT.PROMPT.DATASET_TEXTS": cfg.INPUT.PROMPT.DATASET_TEXTS,
        "MODEL.TEXT_ENCODER.MAX_TOKENS": cfg.MODEL.TEXT_ENCODER.MAX_TOKENS,
        "MODEL.GLIPV2.TEST.SCORE_THRESH": test.SCORE_THRESH,
        "MODEL.GLIPV2.TEST.SCORE_AGGREGATION": test.SCORE_AGGREGATION,
        "MODEL.GLIPV2.TEST.TOPK_CANDIDATES": test.TOPK_CANDIDATES,
        "MODEL.GLIPV2.TEST.NMS_THRESH": test.NMS_THRESH,
        **_protocols_of_datasets(cfg),
        **({"MODEL.GLIPV2.TEST.SHORTLIST": test.SHORTLIST} if test.SHORTLIST else {}),
        "TEST.LVIS_BOXES": cfg.TEST.LVIS_BOXES,
        "TEST.LVIS_PROTOCOLS": list(cfg.TEST.LVIS_PROTOCOLS),
    }


def _protocols_of_datasets(cfg: CfgNode) -> dict[str, Any]:
    """Return what datasets may decide themselves: one value, or where they differ one for each."""
    names = cfg.DATASETS.TEST
    limits = {name: limits_of(cfg, name) for name in names}
    found = {
        "MODEL.GLIPV2.TEST.PROMPT_CHUNK_SIZE": {name: chunk_size_of(cfg, name) for name in names},
        "MODEL.GLIPV2.TEST.DETECTIONS_PER_PROMPT": {name: limit.per_prompt for name, limit in limits.items()},
        "TEST.DETECTIONS_PER_IMAGE": {name: limit.per_image for name, limit in limits.items()},
    }
    return {
        key: values if len(set(values.values())) > 1 else next(iter(values.values()))
        for key, values in found.items()
        if values
    }


def _markdown(content: Mapping[str, Any]) -> str:
    lines = ["# Results", "", f"Config: {_code(content['config_file'] or 'none')}", ""]
    for key, record in content["weights"].items():
        details = [f"sha256 {record['sha256']}"] if record["sha256"] else ["no file"]
        if "share_of_others" in record:
            details.append(f"{record['share_of_others']} of MODEL.WEIGHTS, the rest of this")
        lines += [f"{key}: {_code(record['file'] or 'none')}, {', '.join(details)}", ""]
    settings = [_code(f"{key} {_setting(value)}") for key, value in content["protocol"].items()]
    lines += ["Protocol: " + ", ".join(settings), ""]
    rows: dict[str, TaskResults] = dict(content["results"])
    for title, summary in content["summary"].items():
        rows.update({f"{name} of {title}": values for name, values in summary.items()})
    failures: Mapping[str, str] = content["failed"]
    tasks = list(dict.fromkeys(task for results in rows.values() for task in results))
    for index, task in enumerate(tasks or (["results"] if failures else [])):
        of_task = {name: results[task] for name, results in rows.items() if task in results}
        lines += [f"## {task}", "", *_table(of_task, {} if index else failures)]
    return "\n".join(lines)


def _setting(value: Any) -> str:
    """Write the value of a setting, or its values by dataset."""
    return ", ".join(f"{name} {one}" for name, one in value.items()) if isinstance(value, dict) else str(value)


def _table(rows: Mapping[str, Mapping[str, float | None]], failures: Mapping[str, str]) -> list[str]:
    """Return the lines of a table, its columns in the order of first use, and the datasets that failed at its end."""
    metrics = [metric for values in rows.values() for metric in values if not metric.startswith(_OF_ONE_CATEGORY)]
    columns = list(dict.fromkeys(metrics)) or ["-"]
    lines = [f"| dataset | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    for name, values in rows.items():
        cells = ["-" if values.get(column) is None else f"{values[column]:.2f}" for column in columns]
        lines.append(f"| {' | '.join([name, *cells])} |")
    for name, reason in failures.items():
        cells = [f"failed: {' '.join(reason.split()).replace('|', '/')}", *["-"] * (len(columns) - 1)]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return [*lines, ""]


def _code(text: str) -> str:
    """Quote a text for markdown, whatever is in it."""
    line = " ".join(text.split("\n")).replace("`", "'")
    return f"`{line}`"
