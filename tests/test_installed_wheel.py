"""The program of an installed wheel, started from another folder, without the checkout."""

import os
import re
import resource
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from drawn_images import draw_dataset

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow

ANSI = re.compile(r"\x1b\[")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The folder of an environment with the wheel alone; what it needs comes from the environment of the tests."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-base", folder / "build"]
    subprocess.run([*command, "bdist_wheel", "--dist-dir", folder], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", python, "install", "--no-deps", "--no-index", wheel]
    # What lies on this path would count as installed.
    elsewhere = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(pip, check=True, capture_output=True, cwd=folder, env=elsewhere)
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True, capture_output=True
    )
    # A path in such a file comes after the environment's own, and files of this kind beyond it are not read.
    Path(site.stdout.decode().strip(), "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "env" / "bin"


@pytest.fixture
def run(program, tmp_path):
    """Start a program of the environment in an empty folder."""

    def start(name, *arguments, status=0, **variables):
        own = {"PATH": f"{program}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path), **variables}
        done = subprocess.run([program / name, *arguments], cwd=tmp_path, env=own, capture_output=True, text=True)
        assert done.returncode == status, done.stdout + done.stderr
        return done

    return start


def test_help_comes_at_once(run):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "glipv2 eval" in run("glipv2", "--help").stdout
    assert "--config-file" in run("glipv2", "eval", "--help").stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Seconds of two starts on an idle core.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_the_package_is_that_of_the_wheel_and_brings_its_configs(run, program):
    code = "import glipv2_d2; print(glipv2_d2.__file__); print(glipv2_d2.get_config_file('glip_swin_t_c'))"
    files = run("python", "-c", code).stdout.splitlines()
    assert all(Path(file).is_relative_to(program.parent) and Path(file).is_file() for file in files)


def test_every_command_has_its_help(run):
    text = run("glipv2", "--help").stdout
    names = re.findall(r"^  (\S+)  +\S", text.partition("commands:")[2].partition("examples:")[0], re.MULTILINE)
    assert {"train", "eval", "predict", "check-data", "convert-data", "convert-weights", "export", "serve"} == {*names}
    for name in names:
        assert f"glipv2 {name}" in run("glipv2", name, "--help").stdout


def test_data_are_checked_and_converted_and_an_image_is_looked_at(run, tmp_path):
    (tmp_path / "photos").mkdir()
    draw_dataset(tmp_path / "photos")
    run("glipv2", "check-data", "--data", "photos", "--output", "report")
    assert any((tmp_path / "report").iterdir())
    run("glipv2", "convert-data", "photos", "coco")
    assert list((tmp_path / "coco").glob("*.json"))
    model = ["--config-file", "glipv2_micro", "--names", "red box", "--opts", "MODEL.WEIGHTS", "random"]
    done = run("glipv2", "predict", "photos/0.png", "--output", "found", *model)
    assert "1 image," in done.stdout and list((tmp_path / "found").glob("*0*"))


def test_a_model_is_measured_by_the_name_of_its_config_and_the_terminal_stays_short(run, tmp_path):
    images = tmp_path / "data" / "shapeworld" / "val"
    images.mkdir(parents=True)
    (images.parent / "annotations").mkdir()
    draw_dataset(images).rename(images.parent / "annotations" / "val.json")
    keys = ["MODEL.WEIGHTS", "random", "DATASETS.TEST", "('shapeworld_val',)", "OUTPUT_DIR", "out"]
    done = run("glipv2", "eval", "--config-file", "glipv2_micro", *keys, DETECTRON2_DATASETS=str(tmp_path / "data"))
    assert "AP50" in done.stdout and len(done.stdout.splitlines()) < 50
    # Nothing warns, and no bar is drawn into a file.
    assert done.stderr == ""
    log = (tmp_path / "out" / "log.txt").read_text()
    assert not ANSI.search(done.stdout) and not ANSI.search(log)
    for details in ("EfficientNet", "TORCH_CUDA_ARCH_LIST", "MAX_ITER: 4800"):
        assert details not in done.stdout
    assert log.count("MAX_ITER: 4800") == 1 and "(fusion_tower)" in log and "PyTorch" in log
    assert "not built correctly" not in done.stdout + log
    assert "DEVICE: auto" in (tmp_path / "out" / "config.yaml").read_text()
    assert (tmp_path / "out" / "result_table.md").is_file()


def test_bad_input_is_one_line_on_standard_error(run):
    done = run("glipv2", "eval", "--config-file", "glipv2_mikro", status=1)
    assert done.stdout == "" and done.stderr.count("\n") == 1 and "did you mean" in done.stderr
