"""Tables and plot of a grid of tuned models, for tools/run_odinw.py."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from glipv2_d2.tensor_files import atomic_path, write_text

ZERO_SHOT = "zero_shot"
ALL_DATA = "all"
# Names that a tuned model is tested on beside its own.
OTHERS = ("old", "unseen")


def mean_and_deviation(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, sample standard deviation (0 for one value) and number of values; without values, two are None."""
    if not values:
        return {"mean": None, "deviation": None, "runs": 0}
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "deviation": deviation, "runs": len(values)}


def summarize(results: Iterable[dict], sets: Sequence[str]) -> list[dict[str, Any]]:
    """Summarize results over seeds and over sets.

    Args:
        results: Results of the cells, with ``dataset``, ``mode``, ``shots``, ``seed``, ``value``, ``old`` and
            ``unseen``, the values of other datasets by name, and ``seconds`` of the training, or None.
        sets: Names of the sets, in the order of the columns.

    Returns:
        A row for each mode and number of shots, in the order of the results. Its values are those of
        ``mean_and_deviation``: ``sets`` for each set over the seeds, ``old`` and ``unseen`` for each other dataset and
        ``seconds`` over sets and seeds, and ``average`` over the seeds that have all sets, of the means over the sets.
    """
    rows: dict[tuple[str, str], list[dict]] = {}
    for result in results:
        rows.setdefault((result["mode"], result["shots"]), []).append(result)
    summary = []
    for (mode, shots), cells in rows.items():
        by_set = {name: [cell["value"] for cell in cells if cell["dataset"] == name] for name in sets}
        by_seed: dict[int | None, dict[str, float]] = {}
        for cell in cells:
            by_seed.setdefault(cell["seed"], {})[cell["dataset"]] = cell["value"]
        whole = [statistics.fmean(values.values()) for values in by_seed.values() if set(sets) <= values.keys()]
        others = {
            kind: {name: [cell[kind][name] for cell in cells] for name in cells[0].get(kind, ())} for kind in OTHERS
        }
        seconds = [cell["seconds"] for cell in cells if cell.get("seconds") is not None]
        summary.append(
            {
                **{"mode": mode, "shots": shots, "average": mean_and_deviation(whole)},
                "sets": {name: mean_and_deviation(values) for name, values in by_set.items()},
                **{kind: _means(by_name) for kind, by_name in others.items()},
                "seconds": mean_and_deviation(seconds),
            }
        )
    return summary


def markdown(
    summary: Sequence[dict], sets: Sequence[str], head: dict[str, Any], failures: Mapping[str, str] | None = None
) -> str:
    """Return the tables as text: means over all sets by mode and shots, then every set, then the other datasets.

    Args:
        summary: Output of ``summarize``.
        sets: Names of the sets, the columns of the second table.
        head: Names and values of the lines above the tables.
        failures: For cells that failed, by their folders, the reason.
    """
    by_mode = {(row["mode"], row["shots"]): row for row in summary}
    shots = _shots(summary)
    modes = [mode for mode in dict.fromkeys(row["mode"] for row in summary) if mode != ZERO_SHOT]
    lines = ["# Few-shot tuning", "", *(f"- {name}: {value}" for name, value in head.items()), ""]
    lines += [f"## Mean over {len(sets)} sets, by shots", "", *_table_head(["mode", *shots])]
    zero = by_mode.get((ZERO_SHOT, "0"))
    for mode in modes or [ZERO_SHOT]:
        cells = [zero if one == "0" else by_mode.get((mode, one)) for one in shots]
        lines.append(_line([mode, *(_cell(row and row["average"]) for row in cells)]))
    lines += ["", "## Every set", "", *_table_head(["mode", "shots", *sets, "mean"])]
    for row in summary:
        values = [_cell(row["sets"][name]) for name in sets]
        lines.append(_line([row["mode"], row["shots"], *values, _cell(row["average"])]))
    lines += _other_datasets(summary)
    if failures:
        lines += ["", "## Cells that failed", "", *_table_head(["cell", "result"])]
        lines += [_line([cell, f"failed: {reason.replace('|', '/')}"]) for cell, reason in failures.items()]
    return "\n".join(lines) + "\n"


def _other_datasets(summary: Sequence[dict]) -> list[str]:
    """Return the table of old and unseen names, and that of what is kept of them, in lines; none without such data."""
    names = [(kind, name) for kind in OTHERS for name in (summary[0][kind] if summary else ())]
    if not names:
        return []
    lines = ["", "## Other datasets, mean over sets and seeds", ""]
    if any(row["mode"] == "prompt" for row in summary):
        lines += ["With `prompt` this is the base model: a tuned prompt answers for its own names alone.", ""]
    titles = [name if kind == "old" else f"{name} (unseen)" for kind, name in names]
    lines += _table_head(["mode", "shots", "new classes", *titles])
    for row in summary:
        values = [_cell(row["average"]), *(_cell(row[kind][name]) for kind, name in names)]
        lines.append(_line([row["mode"], row["shots"], *values]))
    by_mode = {(row["mode"], row["shots"]): row for row in summary}
    base = by_mode.get((ZERO_SHOT, "0"))
    lines += ["", "## What is kept: parts of `full` and of the base, in per cent", ""]
    lines += _table_head(["mode", "shots", "new classes of `full`", *titles, "time of `full`"])
    for row in summary:
        full = by_mode.get(("full", row["shots"]))
        parts = [_part(row["average"], full and full["average"])]
        parts += [_part(row[kind][name], base and base[kind][name]) for kind, name in names]
        lines.append(_line([row["mode"], row["shots"], *parts, _part(row["seconds"], full and full["seconds"])]))
    return lines


def _part(value: dict[str, Any], whole: dict[str, Any] | None) -> str:
    """Return the part of one mean in another, in per cent."""
    return f"{100 * value['mean'] / whole['mean']:.0f}" if whole and whole["mean"] and value["runs"] else "-"


def _means(by_name: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    return {name: mean_and_deviation(values) for name, values in by_name.items()}


def write_report(
    output: Path,
    results: Sequence[dict],
    sets: Sequence[str],
    head: dict[str, Any],
    failures: Mapping[str, str] | None = None,
) -> None:
    """Write ``table.md``, ``table.json`` and ``data_efficiency.png``, each whole or not at all."""
    summary = summarize(results, sets)
    write_text(output / "table.md", markdown(summary, sets, head, failures))
    content = {**head, "sets": list(sets), "rows": summary, "failed": dict(failures or {})}
    write_text(output / "table.json", json.dumps(content, indent=1) + "\n")
    plot_data_efficiency(summary, output / "data_efficiency.png", str(head["metric"]), len(sets))


def plot_data_efficiency(summary: Sequence[dict], path: Path, metric: str, num_sets: int) -> None:
    """Draw the mean over the sets against the amount of data, one line for each mode (the paper's Figure 3).

    Rows without a mean are left out; bars are deviations over the seeds.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shots = _shots(summary)
    done = [row for row in summary if row["average"]["runs"]]
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for mode in dict.fromkeys(row["mode"] for row in done):
        if mode == ZERO_SHOT and any(row["mode"] != ZERO_SHOT for row in done):
            continue
        rows = sorted(
            (row for row in done if row["mode"] in (mode, ZERO_SHOT)), key=lambda row: shots.index(row["shots"])
        )
        ticks = [shots.index(row["shots"]) for row in rows]
        means = [row["average"]["mean"] for row in rows]
        deviations = [row["average"]["deviation"] for row in rows]
        axes.errorbar(ticks, means, deviations, label=mode, marker="o", capsize=3, linewidth=1.2)
    axes.set_xticks(range(len(shots)), shots)
    axes.set(xlabel="images of each category", ylabel=f"{metric}, mean over {num_sets} sets")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)


def finite(value: float) -> float:
    """Return a metric; 0 if it is not a number, as for a model that finds nothing."""
    return float(value) if math.isfinite(value) else 0.0


def _shots(summary: Sequence[dict]) -> list[str]:
    found = {row["shots"] for row in summary}
    return sorted(found, key=lambda shots: math.inf if shots == ALL_DATA else int(shots))


def _cell(value: dict[str, Any] | None) -> str:
    if not value or not value["runs"]:
        return "-"
    return f"{value['mean']:.1f}" + (f" ± {value['deviation']:.1f}" if value["runs"] > 1 else "")


def _table_head(titles: Sequence[str]) -> list[str]:
    return [_line(titles), _line(["---"] * len(titles))]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
