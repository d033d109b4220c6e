"""What ``import glipv2_d2`` gives: names that load on first use, and registrations that come with the first of them."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import glipv2_d2

# What the package imports from others, in a process that none of its modules has been imported in.
LIBRARIES = """
import os, sys
import detectron2.engine, scipy.optimize, timm, torch, torchvision.transforms.v2
import transformers.image_processing_utils, transformers.models.bert.modeling_bert
assert not any(name.startswith("glipv2_d2") for name in sys.modules)
"""
# Prints which of our models, backbones and datasets detectron2 and our text encoders know, and our path prefix.
REPORT = """
from detectron2.data import DatasetCatalog
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.utils.file_io import PathManager
print("GLIPv2" in META_ARCH_REGISTRY, "DyHead" in META_ARCH_REGISTRY)
print(*sorted(name for name, _ in BACKBONE_REGISTRY if "glipv2" in name or "timm" in name))
print("flickr30k_test" in DatasetCatalog.list(), "odinw_pothole_test" in DatasetCatalog.list())
print(PathManager.exists("package://glipv2_d2/prompts/bert_uncased_vocab.txt"))
"""
BACKBONES = "build_glipv2_coswin_fpn_backbone build_glipv2_swin_fpn_backbone build_timm_fpn_backbone"


FIRST_LINES = (
    "import glipv2_d2; glipv2_d2.Prompt",
    "from glipv2_d2 import add_glipv2_config",
    "import glipv2_d2.registrations",
    "from glipv2_d2.engine.command_line import build_config",
)


@pytest.fixture(scope="module")
def reports() -> dict[str, list[str]]:
    """What each first line registers, in a process of its own; all are forked from one that has the libraries."""
    codes = {line: line + REPORT for line in FIRST_LINES}
    code = f"{LIBRARIES}for code in {[*codes.values()]}:\n    print('next', flush=True)\n    if not os.fork():\n"
    code += "        exec(code)\n        sys.stdout.flush()\n        os._exit(0)\n    assert os.wait()[1] == 0"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return dict(zip(codes, [part.splitlines() for part in done.stdout.split("next\n")[1:]], strict=True))


@pytest.mark.parametrize("first_line", FIRST_LINES)
def test_the_first_use_registers_everything(reports, first_line):
    assert reports[first_line] == ["True True", BACKBONES, "True True", "True"]


def test_import_alone_loads_neither_torch_nor_detectron2():
    code = "import sys, glipv2_d2; print('torch' in sys.modules, 'detectron2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False False\n"


def test_every_public_name_loads_and_is_listed():
    for name in glipv2_d2.__all__:
        assert getattr(glipv2_d2, name).__name__ == name
    assert {*glipv2_d2.__all__, "__version__"} <= set(dir(glipv2_d2))
    with pytest.raises(AttributeError, match="no attribute 'GLIPv3'"):
        _ = glipv2_d2.GLIPv3


def test_type_checkers_see_the_public_names():
    tree = ast.parse(Path(glipv2_d2.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {(item.module, alias.asname) for item in block.body for alias in item.names}
    listed = {(module, name) for module, names in glipv2_d2._PUBLIC.items() for name in names}
    assert seen == listed
    for module, name in listed:
        assert hasattr(importlib.import_module(f"glipv2_d2.{module}"), name)
