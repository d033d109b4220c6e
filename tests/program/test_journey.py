"""A new user's way: the commands of README, "Getting started" and notebook, word for word, in a new folder.

Commands that need a downloaded file, a GPU or another hour are left out by name, and so are those that have made the
environment that the tests run in.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"README": ROOT / "README.md", "getting_started": ROOT / "docs" / "GETTING_STARTED.md"}
NOTEBOOK = ROOT / "docs" / "notebooks" / "own_photos.ipynb"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Commands that made this environment or make another, need a file of the official repository, or take an hour.
LEFT_OUT = (
    "make ",
    "source ",
    "pip ",
    "glip_tiny_model",
    "output/demo/run/",
    "train_mine.py",
    "register_coco_grounding",
)
NUM_PHOTOGRAPHS = 30
PATIENCE = 120


@pytest.fixture
def folder(tmp_path):
    """A folder with photographs of disks and squares, annotated as Pascal VOC; one file is cut off."""
    draw_photographs(tmp_path / "photos")
    (tmp_path / "photo.jpg").write_bytes((tmp_path / "photos" / "images" / "00.jpg").read_bytes())
    return tmp_path


def draw_photographs(folder: Path) -> None:
    generator = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "annots").mkdir()
    for number in range(NUM_PHOTOGRAPHS):
        image = Image.fromarray(generator.integers(60, 200, (120, 160, 3), dtype=np.uint8))
        objects = ""
        for name, color in (("red disk", (230, 20, 20)), ("blue square", (20, 20, 230)))[: 1 + number % 2]:
            left, top, side = (int(generator.integers(*limits)) for limits in ((5, 90), (5, 60), (30, 55)))
            pen = ImageDraw.Draw(image)
            shape = pen.ellipse if name == "red disk" else pen.rectangle
            shape((left, top, left + side - 1, top + side - 1), fill=color)
            corners = zip(("xmin", "ymin", "xmax", "ymax"), (left, top, left + side, top + side))
            box = "".join(f"<{key}>{value}</{key}>" for key, value in corners)
            objects += f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"
        size = "<size><width>160</width><height>120</height><depth>3</depth></size>"
        image.save(folder / "images" / f"{number:02d}.jpg", quality=90)
        (folder / "annots" / f"{number:02d}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    cut_off = folder / "images" / f"{NUM_PHOTOGRAPHS - 1:02d}.jpg"
    cut_off.write_bytes(cut_off.read_bytes()[:-20])


def steps(page: Path) -> Iterator[tuple[str, str]]:
    """The kind, "" or "python", and the text of each command or block of code that this test runs."""
    for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        for step in [text] if kind else text.replace("\\\n", " ").splitlines():
            is_run = kind == "python" or step.startswith(("glipv2 ", "python "))
            if is_run and not any(words in step for words in LEFT_OUT):
                yield kind, step


def environment() -> dict[str, str]:
    scripts = os.path.dirname(sys.executable)
    return {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def run_step(kind: str, text: str, folder: Path) -> None:
    if text.startswith("glipv2 serve"):
        serve(text, folder)
        return
    command = [sys.executable, "-c", text] if kind == "python" else shlex.split(text, comments=True)
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert "Traceback" not in done.stderr and "\x1b[" not in done.stdout


def serve(text: str, folder: Path) -> None:
    """Start a page, look at it, and end it as a user would."""
    pytest.importorskip("gradio")
    with subprocess.Popen(shlex.split(text), cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True) as page:
        begin = time.time()
        line = page.stdout.readline()
        address = re.search(r"http://\S+", line).group().rstrip("/")
        assert "glipv2" in urllib.request.urlopen(address, timeout=PATIENCE).read().decode()
        assert time.time() - begin < PATIENCE
        page.terminate()


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_every_command_of_a_page_does_what_it_says(page, folder):
    run = list(steps(page))
    assert any(text.startswith("glipv2 train --data photos --output output/mine") for _, text in run)
    for kind, text in run:
        run_step(kind, text, folder)
    results = json.loads((folder / "output" / "mine" / "results.json").read_text())
    # Two shapes of two colours are easy.
    assert results["val"]["bbox"]["AP50"] > 60
    assert (folder / "output" / "mine" / "model_best.pth").is_file()
    assert list((folder / "output" / "mine" / "report").glob("val_*.png"))


def test_the_notebook_runs_from_its_first_cell_to_its_last(folder):
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    lines = ["import subprocess", "import matplotlib", "matplotlib.use('Agg')"]
    for line in "\n".join("".join(cell["source"]) for cell in cells).splitlines():
        lines.append(f"subprocess.run(f{line[1:]!r}, shell=True, check=True)" if line.startswith("!") else line)
    # Shorter than the five minutes of the page; the rest is word for word.
    run_step("python", "\n".join(lines).replace("--minutes 5", "--minutes 1"), folder)
    assert (folder / "found.png").is_file() and (folder / "output" / "notebook_model" / "model.safetensors").is_file()
