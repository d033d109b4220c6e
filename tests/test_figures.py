"""Figures in README and docs are those that were measured, with the command, commit and date of each."""

import json
import re
from pathlib import Path

import compare_own_sets
import pytest
import run_ablation

ROOT = Path(__file__).resolve().parent.parent
FIGURES = json.loads((ROOT / "docs" / "experiments" / "figures.json").read_text(encoding="utf-8"))
KEYS = {"page", "text", "values", "command", "commit", "date", "machine"}
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
# What only a measurement can say. Pages that hold published figures and estimates say so, and those below
# docs/experiments have command and date in them.
CLAIM = re.compile(
    r"\bAP(?:50|75)? (?:of |from |was )?\d+\.\d|\brecall@\d+ (?:of|from) \d|\bCIDEr of \d"
    r"|\b\d+(?:\.\d+)? minutes (?:on|with) |`make (?:demo|train)`, \d+ minutes|\| \d+\.\d+ s\b"
)
PUBLISHED = {"MODEL_ZOO.md", "continued_pretraining.md", "zero_shot.md"}
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").glob("*.md") if page.name not in PUBLISHED)]
EXPERIMENTS = sorted(page for page in (ROOT / "docs" / "experiments").glob("*.md") if page.name != "README.md")


def digits(number: str) -> int:
    """How many digits a number has behind its point."""
    return len(number.partition(".")[2])


@pytest.mark.parametrize("figure", FIGURES, ids=lambda one: f"{one['page']}: {one['text'][:30]}")
def test_numbers_of_a_page_are_the_measured_ones(figure):
    assert figure.keys() == KEYS and all(figure[key] for key in KEYS)
    assert figure["text"] in (ROOT / figure["page"]).read_text(encoding="utf-8")
    printed = [number.replace(",", "") for number in NUMBER.findall(figure["text"])]
    assert len(printed) == len(figure["values"])
    for number, value in zip(printed, figure["values"]):
        # Half a unit of the last digit, and rounding itself.
        assert abs(float(number) - value) <= 0.5 * 10 ** -digits(number) + 1e-9, (number, value)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_figure_of_a_page_was_measured(page):
    text = page.read_text(encoding="utf-8")
    name = str(page.relative_to(ROOT))
    known = [one["text"] for one in FIGURES if one["page"] == name]
    spans = [(text.index(one), text.index(one) + len(one)) for one in known]
    for claim in CLAIM.finditer(text):
        line = text[: claim.start()].count("\n") + 1
        inside = any(begin <= claim.start() < end for begin, end in spans)
        assert inside, f"{name}:{line}: expected a record in docs/experiments/figures.json, found {claim.group()!r}"


@pytest.mark.parametrize("page", EXPERIMENTS, ids=lambda page: page.name)
def test_every_experiment_has_its_command_commit_and_date(page):
    text = page.read_text(encoding="utf-8")
    for what in (r"\b(?:python|glipv2|make|pytest) \S", r"\b2026-\d\d-\d\d\b", r"\bcommit.*\b[0-9a-f]{7}\b"):
        assert re.search(what, text), what


@pytest.mark.parametrize(
    ("page", "records", "table_of"),
    [
        ("own_photographs.md", "own_photographs.json", compare_own_sets.table_of),
        ("pretraining.md", "ablation.json", run_ablation.tables_of),
    ],
)
def test_table_of_a_page_is_made_from_its_records(page, records, table_of):
    folder = ROOT / "docs" / "experiments"
    of_runs = json.loads((folder / records).read_text(encoding="utf-8"))
    assert table_of(of_runs) in (folder / page).read_text(encoding="utf-8")
