"""One finding of a check of data, and the words that findings share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# From the gravest to the lightest.
SEVERITIES = ("stop", "warning", "note")
# The kind of the finding that not all images were looked into.
UNOPENED = "images not opened"
# Cases in the lines of a finding, and characters of one.
_MOST_SHOWN = 3
_LONGEST_CASE = 90


class Finding(NamedTuple):
    """One thing that was found.

    Attributes:
        severity: "stop": nothing useful can be trained; "warning": results will suffer; "note": good to know.
        kind: A fixed name, such as "truncated images".
        number: How many files, boxes or names it concerns, each once.
        text: What was found, a sentence without full stop.
        advice: What to do, a sentence without full stop; "" where nothing is to be done.
        cases: The files, boxes or names, with what is special about each.
    """

    severity: str
    kind: str
    number: int
    text: str
    advice: str = ""
    cases: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return what was found and what to do in one line, and the first cases in another."""
        text = f"{self.severity}: {self.text}" + (f"; {self.advice}" if self.advice else "")
        shown = [case if len(case) <= _LONGEST_CASE else f"{case[:_LONGEST_CASE]}..." for case in self.cases]
        return [text, f"    {some(shown, _MOST_SHOWN, '; ')}"] if shown else [text]


def some(cases: Sequence[str], number: int, separator: str = ", ") -> str:
    """Name the first of some things."""
    return separator.join(cases[:number]) + (f" and {len(cases) - number} more" if len(cases) > number else "")


def percent(share: float) -> str:
    """Return a share in [0, 1] as whole per cent."""
    return f"{100 * share:.0f} %" if share >= 0.005 or share == 0 else "under 1 %"
