"""A virtual environment that is being made: the Python it comes from, the commands run in it, and its stamp.

Used by ``setup_env.py`` beside it, before anything is installed: standard library only, Python 3.7 or newer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 12)

PROBE_INTERPRETER = """
import json, sys
makers = []
try:
    import venv, ensurepip
    ensurepip.version()
    makers.append("venv")
except Exception:
    pass
try:
    import virtualenv
    makers.append("virtualenv")
except Exception:
    pass
print(json.dumps([sys.executable, list(sys.version_info[:3]), makers]))
"""
PROBE_ENVIRONMENT = """
import importlib.util, json, sys, sysconfig
has_pip = importlib.util.find_spec("pip") is not None
print(json.dumps([list(sys.version_info[:3]), sysconfig.get_path("purelib"), has_pip]))
"""


class SetupError(Exception):
    """A state that the user has to mend.

    Args:
        message: The expected and the found state.
        way_out: The repair.
        command: The command that failed; empty if no command did.
    """

    def __init__(self, message: str, way_out: str, command: str = "") -> None:
        super().__init__(message)
        self.way_out = way_out
        self.command = command


class Interpreter(NamedTuple):
    """A Python on this machine, and the modules with which it can make an environment, best first."""

    path: str
    version: tuple[int, ...]
    makers: list[str]


class Outcome(NamedTuple):
    """The message of a finished step, and the files (relative to the environment) that show its result."""

    message: str
    witnesses: list[str]


class Step(NamedTuple):
    """One step; it is quick where its result is there already."""

    title: str
    run: Callable[[Environment], Outcome]


class Environment:
    """The virtual environment that is being made, its stamp and its log.

    Args:
        path: Absolute path of the environment's folder, there or not.
        stream: Where progress is written; a terminal gets one running line for each step.
    """

    def __init__(self, path: Path, stream: TextIO = sys.stdout) -> None:
        self.path = path
        self.python = path / "bin" / "python"
        self.state = path / ".glipv2_setup"
        self.log = self.state / "setup.log"
        self._stamp = self.state / "done"
        self.site = path
        self.version = (0, 0, 0)
        self.has_pip = False
        self._stream = stream
        self._label = ""
        self._started = time.monotonic()

    def load(self) -> None:
        """Read version and site-packages of the environment's Python.

        Raises:
            SetupError: It does not start, or its version is out of range.
        """
        way_out = f"remove the environment (rm -rf {self.path}) and run make setup again"
        answer = ask([str(self.python), "-c", PROBE_ENVIRONMENT])
        if answer is None:
            raise SetupError(
                f"{self.python}: expected the Python of an environment, found one that does not start", way_out
            )
        version, site, self.has_pip = json.loads(answer)
        if not is_supported(version):
            raise SetupError(f"{self.python}: expected {supported_range()}, found Python {dotted(version)}", way_out)
        self.version, self.site = tuple(version), Path(site)

    def is_done(self, inputs: str) -> bool:
        """True if the environment was made whole from these inputs and every file that shows it is still there."""
        try:
            stamp = json.loads(self._stamp.read_text())
            return stamp["key"] == self._key(inputs) and all((self.path / file).exists() for file in stamp["witnesses"])
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def mark_done(self, inputs: str, witnesses: Iterable[str]) -> None:
        """Write the stamp, whole or not at all."""
        partial = self._stamp.with_suffix(".partial")
        partial.write_text(json.dumps({"key": self._key(inputs), "witnesses": sorted(witnesses)}))
        os.replace(str(partial), str(self._stamp))

    def run(self, command: Iterable[object], way_out: str) -> str:
        """Run a command with its output in the log, showing the time that passes; return what it printed.

        Raises:
            SetupError: The command cannot be started or ends with an error.
        """
        words = list(map(str, command))
        shown = " ".join(map(shlex.quote, words))
        with open(self.log, "a+", encoding="utf-8", errors="replace") as log:
            log.write(f"$ {shown}\n")
            log.flush()
            begin = log.tell()
            try:
                # Not in the checkout: an import must find what is installed, not what lies in the current folder.
                process = subprocess.Popen(words, stdout=log, stderr=log, cwd=str(self.state))
            except OSError as error:
                raise SetupError(f"cannot start {words[0]}: {error.strerror}", way_out, shown) from error
            self._wait(process)
            log.seek(begin)
            output = log.read().strip()
        if process.returncode != 0:
            tail = "".join(f"\n    {line}" for line in output.splitlines()[-12:] if line.strip())
            raise SetupError(f"exit status {process.returncode}{tail}", way_out, shown)
        return output

    def start(self) -> None:
        """Remove the stamp and empty the log: it holds the latest run that did something."""
        self.state.mkdir(parents=True, exist_ok=True)
        self.log.write_text("")
        with contextlib.suppress(FileNotFoundError):
            self._stamp.unlink()

    def begin(self, label: str) -> None:
        """Announce a step."""
        self._label, self._started = label, time.monotonic()
        self.say(f"{label} ...", end="" if self._stream.isatty() else "\n")

    def end(self, message: str) -> None:
        """Close the announced step with its outcome and its time."""
        self.say(f"{self._label}: {message} ({self._elapsed():.1f} s)")

    def say(self, text: str, end: str = "\n") -> None:
        """Write a line, over the running one if there is one."""
        self._stream.write(("\r\033[K" if self._stream.isatty() else "") + text + end)
        self._stream.flush()

    def _key(self, inputs: str) -> str:
        return hashlib.sha256("\n".join([inputs, str(self.version), str(self.path)]).encode()).hexdigest()

    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _wait(self, process: subprocess.Popen) -> None:
        try:
            next_word = 30.0
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.5)
                    return
                if self._stream.isatty():
                    self.say(f"{self._label} ... {self._elapsed():.0f} s", end="")
                elif self._elapsed() > next_word:
                    next_word += 30.0
                    self.say(f"{self._label} ... still at work, {self._elapsed():.0f} s")
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()


def run_steps(env: Environment, steps: list[Step], inputs: str) -> bool:
    """Run all steps, unless the environment is whole already; return whether they ran.

    Args:
        inputs: Everything that decides what the steps make.

    Raises:
        SetupError: A step failed. The message names the step.
    """
    if env.is_done(inputs):
        return False
    env.start()
    witnesses = []
    for number, step in enumerate(steps, 1):
        env.begin(f"[{number}/{len(steps)}] {step.title}")
        try:
            outcome = step.run(env)
        except SetupError as error:
            where = f"step {number} of {len(steps)} ({step.title}) failed: {error}"
            raise SetupError(where, error.way_out, error.command) from error
        witnesses += outcome.witnesses
        env.end(outcome.message)
    env.mark_done(inputs, witnesses)
    return True


def candidate_interpreters() -> Iterator[str]:
    """Pythons to try, best first: the one that runs this file, those on PATH, those of pyenv and uv."""
    yield sys.executable
    names = [f"python3.{minor}" for minor in range(NEWEST_PYTHON[1], OLDEST_PYTHON[1] - 1, -1)] + ["python3"]
    for name in names:
        for folder in os.environ.get("PATH", "").split(os.pathsep):
            if folder and os.access(os.path.join(folder, name), os.X_OK):
                yield os.path.join(folder, name)
    for pattern in (".pyenv/versions/3.*/bin/python", ".local/share/uv/python/*/bin/python3"):
        # Path.home() fails for a user without one, as in containers.
        yield from sorted(map(str, Path(os.path.expanduser("~")).glob(pattern)), reverse=True)


def find_interpreter(requested: str, candidates: Iterable[str]) -> Interpreter:
    """Choose the Python that makes the environment.

    Args:
        requested: Name or path given by the user; empty: the first candidate that will do. One with ``venv`` goes
            before one that has only ``virtualenv``.
        candidates: Paths to try.

    Raises:
        SetupError: The requested one is missing or out of range, or no candidate will do; says what was found.
    """
    spare, reasons = [], []
    for path in dict.fromkeys([requested] if requested else candidates):
        answer = ask([path, "-c", PROBE_INTERPRETER])
        if answer is None:
            reasons.append(f"{path} does not start")
            continue
        interpreter = Interpreter(*json.loads(answer))
        if not is_supported(interpreter.version):
            reasons.append(f"{path} is Python {dotted(interpreter.version)}")
        elif not interpreter.makers:
            reasons.append(f"{path} has neither venv with ensurepip nor virtualenv")
        elif "venv" in interpreter.makers:
            return interpreter
        else:
            spare.append(interpreter)
    if spare:
        return spare[0]
    found = f"expected {supported_range()}, found no usable one ({'; '.join(reasons) or 'none on PATH'})"
    raise SetupError(
        found,
        f"install one of {supported_range()} with its venv module (Debian and Ubuntu: apt-get install python3 "
        "python3-venv), or name one: make setup PYTHON=/path/to/python3.11",
    )


def is_supported(version: Iterable[int]) -> bool:
    """True if the project runs on this version of Python."""
    return OLDEST_PYTHON <= tuple(version)[:2] <= NEWEST_PYTHON


def supported_range() -> str:
    """The supported versions in words."""
    return f"Python {dotted(OLDEST_PYTHON)} to {dotted(NEWEST_PYTHON)}"


def dotted(version: Iterable[int]) -> str:
    """``(3, 11, 7)`` as ``3.11.7``."""
    return ".".join(map(str, version))


def ask(command: list[str]) -> str | None:
    """The output of a short command; None if it cannot be started or fails."""
    try:
        answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.decode()
