"""The report of a check of data: lines for a terminal, json, and a page."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any

from ..errors import space_errors
from .facts import DataFacts
from .findings import SEVERITIES, Finding
from .page import page_html

JSON_FILE, PAGE_FILE = "data_check.json", "data_check.html"
_MOST_LISTED = 1000  # cases of one finding, in the json


class DataFindings:
    """What was found in the splits of one set.

    Args:
        facts: The figures of the set.
        findings: In any order.

    Attributes:
        facts: As given.
        findings: The gravest first; those of one severity as given.
    """

    def __init__(self, facts: DataFacts, findings: Iterable[Finding]) -> None:
        self.facts = facts
        self.findings = sorted(findings, key=lambda one: SEVERITIES.index(one.severity))

    @property
    def stops(self) -> list[Finding]:
        """The findings with which nothing useful can be trained."""
        return [one for one in self.findings if one.severity == "stop"]

    @property
    def unreadable(self) -> dict[str, list[str]]:
        """For each split the names of the files that cannot be read, relative to its folder; no empty lists."""
        names: dict[str, list[str]] = {}
        for image in self.facts.images:
            if image.error:
                names.setdefault(image.split, []).append(image.name)
        return names

    def lines(self) -> list[str]:
        """Return a text for a terminal: the figures, then a line or two for each finding, the gravest first."""
        return [*self.facts.summary(), *(line for one in self.findings for line in one.lines())]

    def content(self) -> dict[str, Any]:
        """Return everything in types of json; of each finding at most 1,000 cases."""
        findings = [one._asdict() | {"cases": list(one.cases[:_MOST_LISTED])} for one in self.findings]
        return {"name": self.facts.name, "findings": findings, **self.facts.content()}

    def write(self, folder: str | os.PathLike[str]) -> list[str]:
        """Write data_check.json and data_check.html, a page that needs no other file, and return their paths.

        Args:
            folder: Made if it is not there. Files of an earlier check are replaced.
        """
        os.makedirs(folder, exist_ok=True)
        texts = {JSON_FILE: json.dumps(self.content(), indent=1, ensure_ascii=False) + "\n"}
        texts[PAGE_FILE] = page_html(self.facts, self.findings)
        paths = []
        for name, text in texts.items():
            paths.append(os.path.join(os.fspath(folder), name))
            with space_errors(paths[-1]), open(paths[-1], "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        return paths
