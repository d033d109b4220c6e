"""What the tests of the programs share: programs loaded by path, and a small config as a file."""

import importlib.util
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def load_tool():
    """Load a program of tools/ as a module, whose name hides no other."""

    def load(name):
        spec = importlib.util.spec_from_file_location(f"{name}_program", TOOLS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def config(tiny_cfg, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(tiny_cfg.dump())
    return str(path)
