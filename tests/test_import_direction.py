"""Imports point down only: which room of the package may import which."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "glipv2_d2"

# Rooms on one floor may use each other, but for those in APART, and never in a circle.
FLOORS = {
    "errors": 0,
    "folders": 0,
    "config": 0,
    "detectron2_keys": 0,
    "structures": 0,
    "device_copies": 0,
    "distributed": 0,
    "paths": 0,
    "likeness": 0,
    "plurals": 0,
    "config_files": 0,
    "tensor_files": 0,
    "yaml_texts": 0,
    "kernels": 0,
    "layers": 0,
    "prompts": 1,
    "modeling": 2,
    "data": 2,
    "registrations": 2,
    "checkpoint": 3,
    "data_check": 3,
    "solver": 3,
    "evaluation": 3,
    "engine": 3,
    "colored_text": 3,
    "fonts": 3,
    "sheets": 3,
    "heat_maps": 3,
    "visualizer": 3,
    "program": 4,
    "__main__": 4,
}
APART = {("modeling", "data"), ("data", "modeling")}


def module_name(file: Path, root: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(file: Path, root: Path) -> list[str]:
    """Absolute names of everything a file imports, in functions too; ``from a import b`` gives ``a`` and ``a.b``."""
    package = module_name(file, root).split(".")
    if file.stem != "__init__":
        package = package[:-1]
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names


def room_edges(root: Path) -> dict[tuple[str, str], str]:
    """Pairs (importing room, imported room) below the package's root, each with one file that shows it."""
    edges = {}
    for file in sorted((root / PACKAGE).rglob("*.py")):
        here = module_name(file, root).split(".")
        if len(here) == 1:
            continue  # The package's front door opens onto every room.
        for name in imported_modules(file, root):
            there = name.split(".")
            # "from glipv2_d2 import x" reaches up to the front door: room "" below. The base of a longer name is
            # listed for itself too, and says nothing.
            if there[0] == PACKAGE and len(there) > 1 and there[1] != here[1]:
                edges[here[1], there[1]] = str(file.relative_to(root))
    return edges


def violations(root: Path) -> list[str]:
    found = []
    for (here, there), file in room_edges(root).items():
        if there not in FLOORS:
            found.append(f"{file}: imports {PACKAGE}.{there}, which is no room (rooms are imported by their own name)")
        elif FLOORS[there] > FLOORS[here]:
            found.append(f"{file}: {here} (floor {FLOORS[here]}) imports {there} (floor {FLOORS[there]})")
        elif (here, there) in APART:
            found.append(f"{file}: {here} imports {there}; they meet in structures only")
    return found


def circles(edges: set[tuple[str, str]]) -> set[str]:
    """Rooms on or above a circle of imports: what stays when rooms that import none of the others are taken away."""
    rooms = {room for edge in edges for room in edge}
    while True:
        free = {room for room in rooms if not any(here == room and there in rooms for here, there in edges)}
        if not free:
            return rooms
        rooms -= free


def test_every_module_has_a_floor():
    members = (ROOT / PACKAGE).iterdir()
    rooms = {path.stem for path in members if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__"} <= set(FLOORS)


def test_imports_point_down():
    assert violations(ROOT) == []


def test_rooms_import_each_other_in_no_circle():
    edges = set(room_edges(ROOT))
    rooms = circles(edges)
    assert rooms == set(), [edge for edge in edges if set(edge) <= rooms]


def test_package_imports_no_program():
    programs = {"train_net", "tools", "tests", "datasets"} | {file.stem for file in (ROOT / "tools").glob("*.py")}
    for file in (ROOT / PACKAGE).rglob("*.py"):
        tops = {name.split(".")[0] for name in imported_modules(file, ROOT)}
        assert not tops & programs, f"{file} imports {tops & programs}"


def test_layers_know_no_config_and_no_registry():
    for file in (ROOT / PACKAGE / "layers").rglob("*.py"):
        names = imported_modules(file, ROOT)
        assert not [name for name in names if name.startswith("detectron2.config") or "registry" in name.lower()], file
        assert f"{PACKAGE}.config" not in names, file


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("layers/fusion.py", "from ..modeling import matcher", "layers (floor 0) imports modeling (floor 2)"),
        ("layers/fusion.py", "import glipv2_d2.prompts.builder", "layers (floor 0) imports prompts (floor 1)"),
        ("data/build.py", "def f():\n    from glipv2_d2.engine.trainer import T", "data (floor 2) imports engine"),
        ("data/dataset_mappers/base.py", "from ...modeling.matcher import M", "data imports modeling"),
        ("modeling/matcher.py", "from ..data import build", "modeling imports data"),
        ("engine/trainer.py", "from glipv2_d2 import GLIPv2", "which is no room"),
        ("engine/trainer.py", "from .. import GLIPv2", "which is no room"),
    ],
)
def test_an_import_that_points_up_is_found(tmp_path, file, source, expected):
    path = tmp_path / PACKAGE / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    (found,) = violations(tmp_path)
    assert expected in found


def test_imports_that_point_down_or_stay_in_the_room_are_allowed(tmp_path):
    path = tmp_path / PACKAGE / "engine" / "trainer.py"
    path.parent.mkdir(parents=True)
    path.write_text("import torch\nfrom ..solver import S\nfrom .hooks import H\nfrom ..layers.fusion import F")
    (tmp_path / PACKAGE / "__init__.py").write_text("from .engine.trainer import T")
    assert violations(tmp_path) == []


def test_a_circle_is_found():
    assert circles({("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")}) >= {"b", "c"}
    assert circles({("a", "b"), ("b", "c"), ("a", "c")}) == set()
