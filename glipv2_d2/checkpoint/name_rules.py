"""Rename tensors by a table of pairs, and report what became of every name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..plurals import counted


@dataclass(frozen=True)
class ConversionReport:
    """What became of the names of a file.

    Attributes:
        source: Kind of the file, in words.
        used: Names of the file, each with the name it became.
        ignored: Names that the model does not use, each with the reason.
        unknown: Names that no rule covers.
        missing: Names that the model expects and no tensor became; empty if the model is not known.
    """

    source: str
    used: dict[str, str]
    ignored: dict[str, str]
    unknown: tuple[str, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.source}: {counted(len(self.used), 'tensor')} used"]
        reasons = defaultdict(list)
        for name, reason in self.ignored.items():
            reasons[reason].append(name)
        lines += [f"ignored: {summarize_names(names)}: {reason}" for reason, names in reasons.items()]
        if self.unknown:
            lines.append(f"unknown: {summarize_names(self.unknown)}")
        if self.missing:
            lines.append(f"missing: {summarize_names(self.missing)}")
        return "\n".join(lines)


def translate_name(name: str, pairs: Mapping[str, str]) -> str | None:
    """Replace the longest dotted beginning of ``name`` that is in ``pairs``, keep the rest; None if there is none."""
    beginning = name
    while beginning:
        if beginning in pairs:
            return pairs[beginning] + name[len(beginning) :]
        beginning = beginning.rpartition(".")[0]
    return None


def convert_names(
    tensors: Mapping[str, Tensor],
    pairs: Mapping[str, str],
    ignored_patterns: Iterable[tuple[str, str]],
    *,
    source: str,
    expected: Collection[str] | None = None,
    optional_parts: Mapping[str, str] | None = None,
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Rename tensors and report on every name.

    Args:
        tensors: Tensors by the names of the file.
        pairs: Dotted beginnings of names with their replacements, see ``translate_name``.
        ignored_patterns: Regular expressions of whole names to leave out, with the reason. They precede ``pairs``.
        source: Kind of file, for the report.
        expected: Names that the model has, if it is known.
        optional_parts: First parts of new names that are left out where a known model lacks them, with the reason.

    Returns:
        The same tensors under their new names, and the report.
    """
    used, ignored, unknown = {}, {}, []
    optional_parts = optional_parts or {}
    for name in tensors:
        reason = next((reason for pattern, reason in ignored_patterns if re.fullmatch(pattern, name)), None)
        if reason is not None:
            ignored[name] = reason
            continue
        new_name = translate_name(name, pairs)
        if new_name is None:
            unknown.append(name)
            continue
        part = new_name.partition(".")[0]
        if expected is not None and new_name not in expected and part in optional_parts:
            ignored[name] = optional_parts[part]
        else:
            used[name] = new_name
    converted = {new_name: tensors[name] for name, new_name in used.items()}
    missing = tuple(name for name in expected or () if name not in converted)
    return converted, ConversionReport(source, used, ignored, tuple(unknown), missing)


def summarize_names(names: Iterable[str]) -> str:
    """Join names for a message: those that begin with the same two parts become one entry with their number."""
    groups = defaultdict(list)
    for name in names:
        groups[".".join(name.split(".")[:2])].append(name)
    return ", ".join(
        group[0] if len(group) == 1 else f"{beginning}.* ({len(group)})" for beginning, group in groups.items()
    )
