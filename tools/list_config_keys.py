#!/usr/bin/env python
"""List all config keys of the package: ``python tools/list_config_keys.py > docs/config_keys.md``.

The list is made from the source, ``glipv2_d2/config.py``: a comment above a key says what the key does, also for the
keys after it that have no comment of their own.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).resolve().parent.parent / "glipv2_d2" / "config.py"
HEAD = """# Config keys

Every key that this package adds to [detectron2's](https://detectron2.readthedocs.io/en/latest/modules/config.html),
with its default, which is that of GLIPv2-T. `glipv2_d2/detectron2_keys.py` says which of detectron2's own keys are used
here, and refuses changes of the others. A key is set in a yaml file, or as `KEY VALUE` at the end of a command.

Made from `glipv2_d2/config.py` by `python tools/list_config_keys.py > docs/config_keys.md`.
"""
_TABLE = ("| key | default | what it does |", "| --- | --- | --- |")
_ASSIGNMENT = re.compile(r"    cfg\.([A-Z][\w.]*) = (.+)")


class Row(NamedTuple):
    """Keys that one comment explains: lines of the comment, then name and default of each key."""

    comment: list[str]
    keys: list[tuple[str, str]]


def read_rows(source: str) -> list[Row]:
    """Return the rows of a config source in its order; a row without keys is a remark or introduces a section."""
    rows: list[Row] = []
    comment: list[str] = []
    for line in source.splitlines():
        assignment = _ASSIGNMENT.fullmatch(line)
        if line.startswith("    # "):
            comment.append(line[6:])
        elif assignment is not None:
            name, default = assignment.groups()
            if comment or not rows or not rows[-1].keys:
                rows.append(Row(comment, []))
            if default != "CN()":
                rows[-1].keys.append((name, default))
            comment = []
        elif comment:
            rows.append(Row(comment, []))
            comment = []
    return rows


def as_markdown(rows: list[Row]) -> str:
    """Write rows as sections, one for each node of the config that holds keys, in the order of their first keys."""
    sections: dict[str, list[str]] = {}
    remark: list[str] = []
    for comment, keys in rows:
        if not keys:
            remark = [*remark, *comment]
            continue
        lines = sections.setdefault(keys[0][0].rpartition(".")[0], [])
        if remark or not lines:
            lines += [*[""] * bool(lines), *_paragraph(remark), *_TABLE]
        remark = []
        names = "<br>".join(f"`{name}`" for name, _ in keys)
        defaults = "<br>".join(f"`{default}`" for _, default in keys)
        text = " ".join(comment).replace("|", chr(92) + "|") or "see above"
        lines.append(f"| {names} | {defaults} | {text} |")
    return HEAD + "".join("\n".join([f"\n## {node}", "", *lines, ""]) for node, lines in sections.items())


def _paragraph(remark: list[str]) -> list[str]:
    return [*textwrap.wrap(" ".join(remark), 120), ""] if remark else []


def main() -> None:
    """Write the list to standard output."""
    sys.stdout.write(as_markdown(read_rows(SOURCE.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
