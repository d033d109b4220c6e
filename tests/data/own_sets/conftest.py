"""Own sets in a temporary folder, and what a reader left out of them."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from glipv2_d2.data.datasets.skip_report import DataReport
from glipv2_d2.data.own_sets import OwnSets, find_own_sets


class Found(NamedTuple):
    """What was found, and counts of what was left out and changed, by kind."""

    own: OwnSets
    left_out: dict[str, int]
    changed: dict[str, int]

    def boxes(self, split: str = "train") -> dict[str, list[tuple]]:
        """(name, x, y, width, height) of the boxes of each image of a split."""
        content = self.own.splits[split].content
        names = {row["id"]: row["name"] for row in content["categories"]}
        return {
            image["file_name"]: [
                (names[item["category_id"]], *item["bbox"])
                for item in content["annotations"]
                if item["image_id"] == image["id"]
            ]
            for image in content["images"]
        }


@pytest.fixture
def find() -> Callable[[Path], Found]:
    def run(path: Path) -> Found:
        with DataReport() as report:
            own = find_own_sets(path)
        left_out: dict[str, int] = {}
        changed: dict[str, int] = {}
        for one in report.files.values():
            for (_, kind), number in one.counts.items():
                left_out[kind] = left_out.get(kind, 0) + number
            for kind, number in one.changed.items():
                changed[kind] = changed.get(kind, 0) + number
        return Found(own, left_out, changed)

    return run
