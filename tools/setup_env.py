"""Make the environment of this project from nothing; this is the program behind ``make setup``.

It needs only a Python that can make virtual environments (3.10 to 3.12) and pip's way to a package registry. A finished
run leaves a stamp inside the environment with the inputs it was made from and the files that show that its result is
still there: a second run does nothing. A run that was cut off passes quickly over the packages that are there.

    python3 tools/setup_env.py [--venv .venv] [--python /path/to/python3.11]
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from virtual_env import (
    Environment,
    Outcome,
    SetupError,
    Step,
    ask,
    candidate_interpreters,
    dotted,
    find_interpreter,
    run_steps,
    supported_range,
)

ROOT = Path(__file__).resolve().parent.parent
LOCK_FILE = ROOT / "requirements.lock"
MIN_TORCH = (2, 6)
# torch with its CUDA libraries is 5.5 GB unpacked; pip needs room for the downloads besides.
NEEDED_DISK_GB = 8

BUILD_TOOLS = ("pip", "setuptools", "wheel")
TORCH_FAMILY = re.compile(r"(torch|torchvision|triton|(nvidia|cuda)-.*)$")

# The one complete build of detectron2 in the registry. Its tag says Python 3.10; its Python part runs on all of ours.
DETECTRON2_REQUIREMENT = "sal-detectron2==0.7.2"
DETECTRON2_METADATA = "sal_detectron2-0.7.2.dist-info"
DETECTRON2_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
DETECTRON2_TAGS = "--only-binary=:all: --python-version 3.10 --implementation cp --abi none --platform any".split()

FIND_DETECTRON2 = """
import importlib.util
spec = importlib.util.find_spec("detectron2")
print(spec.origin if spec and spec.origin else "")
"""
CHECK_TORCH_PAIR = """
import torch, torchvision
torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
print(torch.__version__)
"""
CHECK_DETECTRON2 = "import detectron2.modeling, detectron2.engine; print(detectron2.__version__)"
# It also compiles what it imports, even where byte code is not written otherwise: see ``pip_install`` below.
CHECK_ALL = """
import sys
sys.dont_write_bytecode = False
import torch, torchvision, detectron2, detectron2.engine, detectron2.model_zoo, glipv2_d2
assert len(torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)) == 1
device = "a CUDA device" if torch.cuda.is_available() else "the CPU"
print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, detectron2 {detectron2.__version__}, "
      f"glipv2_d2 {glipv2_d2.__version__}, running on {device}")
"""

REGISTRY_WAY_OUT = (
    "read the end of the log; if pip could not reach its package registry, repair the network or pip's configuration "
    "(pip config list), then run make setup again: what is installed is kept"
)
DETECTRON2_WAY_OUT = REGISTRY_WAY_OUT + (
    "; if its hash is not the expected one, the registry's file has changed: build detectron2 from its source into the "
    "environment (README, Install), and make setup keeps that one"
)


def make_environment(env: Environment, requested: str) -> Outcome:
    """Make the environment, or take the one that is there."""
    if env.python.exists():
        env.load()
        # One without pip was cut off while it was made, and making it again completes it.
        if env.has_pip:
            return Outcome(f"took the one that is there, Python {dotted(env.version)}", [])
    interpreter = find_interpreter(requested, candidate_interpreters())
    way_out = f"remove {env.path}, check that its disk has room and can be written, and run make setup again"
    env.run([interpreter.path, "-m", interpreter.makers[0], env.path], way_out)
    env.load()
    return Outcome(f"Python {dotted(env.version)} from {interpreter.path}", [])


def check_requested_python(env: Environment, requested: str) -> None:
    """Refuse an environment of another Python than the requested one.

    Raises:
        SetupError: The requested Python is unusable or differs from that of the environment.
    """
    wanted = find_interpreter(requested, []).version
    if tuple(wanted[:2]) != env.version[:2]:
        found = f"{env.path}: expected Python {dotted(wanted)} ({requested}), found Python {dotted(env.version)}"
        raise SetupError(found, f"remove the environment (rm -rf {env.path}) and run make setup again")


# --- the locked packages


def pip_install(env: Environment, *arguments: object, way_out: str = REGISTRY_WAY_OUT) -> None:
    """Run the environment's pip."""
    quiet = "--quiet --disable-pip-version-check --no-input --progress-bar off".split()
    # Compiling all 13,000 modules takes longer than installing them; most are never imported.
    env.run([env.python, "-m", "pip", "install", *quiet, "--no-compile", "--no-deps", *arguments], way_out)


def read_lock(text: str) -> dict[str, list[str]]:
    """Sort the entries of a lock file into ``build``, ``torch`` (with its CUDA libraries) and ``rest``.

    Returns:
        Lines ``name==version --hash=sha256:...``, with all hashes of an entry and with its marker, if it has one.

    Raises:
        SetupError: An entry is not of that form.
    """
    groups: dict[str, list[str]] = {"build": [], "torch": [], "rest": []}
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for entry in "\n".join(lines).replace("\\\n", " ").splitlines():
        line = " ".join(entry.split())
        if not line:
            continue
        if not re.match(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+( ;.*?)?( --hash=sha256:[0-9a-f]{64})+$", line):
            found = f"{LOCK_FILE.name}: expected name==version with its hashes, found {line[:100]!r}"
            raise SetupError(found, "restore the file from version control")
        name = pin_of(line).partition("==")[0]
        group = "build" if name in BUILD_TOOLS else "torch" if TORCH_FAMILY.match(name) else "rest"
        groups[group].append(line)
    return groups


def installed_packages(site: Path) -> dict[str, Path]:
    """Folders of metadata in site-packages by ``name==version``."""
    found = {}
    for folder in site.glob("*.dist-info"):
        name, _, version = folder.name[: -len(".dist-info")].rpartition("-")
        found[pin_of(f"{name}=={version}")] = folder
    return found


def pin_of(line: str) -> str:
    """``name==version`` of a line of the lock, with the canonical form of the name."""
    name, _, version = line.split()[0].partition("==")
    return f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}"


def install_locked(env: Environment, lines: list[str]) -> Outcome:
    """Install exactly these lines, without looking at what the packages themselves ask for: the lock is complete.

    pip takes only files, wheels or sources, whose hash is in the line.
    """
    remove_half_installed(env.site)
    listing = env.state / "wanted.txt"
    listing.write_text("\n".join(lines) + "\n")
    pip_install(env, "--require-hashes", "--no-build-isolation", "-r", listing)
    installed = installed_packages(env.site)
    wanted = set(map(pin_of, lines)) & set(installed)  # A line whose marker is false installs nothing.
    return Outcome(f"{len(wanted)} packages", [os.path.relpath(installed[pin], env.path) for pin in wanted])


def remove_half_installed(site: Path) -> None:
    """Remove the metadata of packages whose installation was killed: pip would take them for installed.

    Installers write the file INSTALLER after the package's own files.
    """
    for folder in site.glob("*.dist-info"):
        if not (folder / "INSTALLER").exists():
            shutil.rmtree(folder)


def install_torch(env: Environment, lines: list[str]) -> Outcome:
    """Install the locked torch and torchvision, unless the user's own detectron2 was built against others.

    Raises:
        SetupError: Too little room on the disk.
    """
    own = find_detectron2(env)
    if own and not _registry_metadata(env.site):
        with contextlib.suppress(SetupError):
            version = env.run([env.python, "-c", CHECK_TORCH_PAIR], "").splitlines()[-1]
            if tuple(map(int, version.split(".")[:2])) >= MIN_TORCH:
                return Outcome(f"kept torch {version}, as {own} may be built against it", [])
    free = shutil.disk_usage(str(env.path)).free / 1e9
    if free < NEEDED_DISK_GB and not set(map(pin_of, lines)) & set(installed_packages(env.site)):
        way_out = "make room, or put the environment on another disk: make setup VENV=/path/to/folder"
        raise SetupError(f"{env.path}: expected {NEEDED_DISK_GB} GB of free disk, found {free:.1f} GB", way_out)
    return install_locked(env, lines)


# --- detectron2


def find_detectron2(env: Environment) -> str:
    """File of the detectron2 that the environment would import; empty if there is none."""
    return (ask([str(env.python), "-c", FIND_DETECTRON2]) or "").strip()


def _registry_metadata(folder: Path) -> list[Path]:
    return list(folder.glob("sal_detectron2-*.dist-info"))


def install_detectron2(env: Environment) -> Outcome:
    """Keep the detectron2 that is importable, or install the registry's, whose sha256 pip checks.

    Raises:
        SetupError: One that the user brought cannot be imported, or the registry's cannot be had.
    """
    witness = env.site / "detectron2" / "__init__.py"
    installed = _registry_metadata(env.site)
    if witness.exists() and [folder.name for folder in installed] == [DETECTRON2_METADATA]:
        return Outcome("there already", [os.path.relpath(witness, env.path)])
    found = find_detectron2(env)
    if found and not installed:
        way_out = f"repair it, or remove it ({env.python} -m pip uninstall detectron2): make setup then installs one"
        version = env.run([env.python, "-c", CHECK_DETECTRON2], way_out).splitlines()[-1]
        return Outcome(f"kept {version} at {found}", [os.path.relpath(found, env.path)])
    wanted, staging = env.state / "detectron2.txt", env.state / "staging"
    wanted.write_text(f"{DETECTRON2_REQUIREMENT} --hash=sha256:{DETECTRON2_SHA256}\n")
    shutil.rmtree(staging, ignore_errors=True)
    pip_install(env, *DETECTRON2_TAGS, "--target", staging, "-r", wanted, way_out=DETECTRON2_WAY_OUT)
    strip_detectron2(staging)
    for old in [*installed, witness.parent]:
        shutil.rmtree(old, ignore_errors=True)
    # Metadata first: once the package itself has moved, the installation is whole.
    for part in [*_registry_metadata(staging), staging / "detectron2"]:
        os.replace(str(part), str(env.site / part.name))
    shutil.rmtree(staging)
    return Outcome(f"{DETECTRON2_REQUIREMENT}, sha256 as expected", [os.path.relpath(witness, env.path)])


def strip_detectron2(tree: Path) -> None:
    """Drop the stray top-level ``tools`` and the binary for another torch: they must not reach site-packages."""
    shutil.rmtree(tree / "tools", ignore_errors=True)
    for binary in (tree / "detectron2").glob("_C*.so"):
        binary.unlink()
    for metadata in _registry_metadata(tree):
        record = metadata / "RECORD"
        lines = record.read_text().splitlines(keepends=True)
        record.write_text("".join(line for line in lines if (tree / line.split(",")[0]).exists()))


# --- the project itself, and the check of it all


def install_project(env: Environment) -> Outcome:
    """Install this checkout in editable form."""
    pip_install(env, "--no-build-isolation", "-e", ROOT, way_out="read the end of the log")
    folders = [folder for pin, folder in installed_packages(env.site).items() if pin.startswith("glipv2-d2==")]
    return Outcome("editable", [os.path.relpath(folder, env.path) for folder in folders])


def check_imports(env: Environment) -> Outcome:
    """Import the packages that everything is built on, and run one compiled operator."""
    way_out = f"remove the environment (rm -rf {env.path}) and run make setup again"
    return Outcome(env.run([env.python, "-c", CHECK_ALL], way_out).splitlines()[-1], [])


def all_steps(requested_python: str) -> list[Step]:
    """The steps in order; the last one checks the others."""
    lock = read_lock(LOCK_FILE.read_text())
    return [
        Step("Python environment", lambda env: make_environment(env, requested_python)),
        Step("pip and build tools", lambda env: install_locked(env, lock["build"])),
        Step("torch and torchvision", lambda env: install_torch(env, lock["torch"])),
        Step("locked packages", lambda env: install_locked(env, lock["rest"])),
        Step("detectron2", install_detectron2),
        Step("glipv2_d2", install_project),
        Step("import check", check_imports),
    ]


def all_inputs() -> str:
    """What decides what the steps make: this program, the lock, and what pip reads of this checkout."""
    files = [Path(__file__), LOCK_FILE, ROOT / "setup.py"]
    version = re.findall(r"__version__.*", (ROOT / "glipv2_d2" / "__init__.py").read_text())
    return "\n".join([*(file.read_text() for file in files), *version, str(ROOT)])


@contextlib.contextmanager
def _alone(env: Environment) -> Iterator[None]:
    """Let only one run at a time work on this checkout; another one waits, where the file system has locks."""
    # NFS locks only what is open for writing; a checkout that cannot be written to has nothing to do here.
    with open(LOCK_FILE, "a" if os.access(LOCK_FILE, os.W_OK) else "r") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            env.say("make setup: another run is at work here, waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            # As on Lustre that is mounted without locks.
            pass
        yield


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run; the exit status is 0 only if the environment is complete."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--venv", default=".venv", help="folder of the environment, relative to the checkout")
    parser.add_argument("--python", default="", help=f"interpreter that makes it, {supported_range()}; default: found")
    options = parser.parse_args(arguments)
    begin = time.monotonic()
    env = Environment(Path(os.path.abspath(ROOT / (options.venv or ".venv"))))
    try:
        with _alone(env):
            if env.python.exists():
                env.load()
                if options.python:
                    check_requested_python(env, options.python)
            ran = run_steps(env, all_steps(options.python), all_inputs())
    except SetupError as error:
        env.say(f"make setup: {error}")
        log = env.log if error.command else ""
        for name, text in {"command": error.command, "way out": error.way_out, "log": log}.items():
            if text:
                env.say(f"  {name}: {text}")
        return 1
    except KeyboardInterrupt:
        env.say("make setup: interrupted; run it again to go on, what is installed is kept")
        return 130
    what = "done" if ran else "nothing changed"
    env.say(f"make setup: {what}, {env.path} with Python {dotted(env.version)} ({time.monotonic() - begin:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
