"""The export to ONNX: what is written, against the model, by the example that runs it without torch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import benchmark
import numpy as np
import pytest
import torch
from benchmarks import compare
from compare_onnx import Difference, Found, differences, load_example
from PIL import Image
from torch import nn
from torchvision.ops import nms

from glipv2_d2 import GLIPv2Predictor, build_model
from glipv2_d2.engine.command_line import build_config
from glipv2_d2.engine.export import warn_of_left_out
from glipv2_d2.engine.onnx_export import export_onnx, files_of
from glipv2_d2.engine.onnx_graphs import quantize, translate
from glipv2_d2.errors import InputError

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "onnx_detect.py"
# Runs the example where importing torch or the package is an error.
WITHOUT_TORCH = """
import runpy, sys
sys.modules.update(dict.fromkeys(["torch", "torchvision", "glipv2_d2", "detectron2", "transformers", "cv2"]))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Branching(nn.Module):
    """A module whose way depends on numbers."""

    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


class ForOneSize(nn.Module):
    """A module for maps of one size."""

    def forward(self, x):
        return x.view(1, 6, 8)


class Foreign(nn.Module):
    """A module with an operation that ONNX lacks."""

    def forward(self, x):
        return torch.linalg.eigvalsh(x @ x.transpose(1, 2))


@pytest.mark.parametrize(
    ("kind", "reason"), [(Branching, "cannot follow"), (ForOneSize, "cannot follow"), (Foreign, "no form in it")]
)
def test_a_module_that_cannot_be_exported_is_named(kind, reason):
    rows = torch.export.Dim("rows")
    whole = nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU(), kind()))
    with pytest.raises(InputError) as caught:
        translate(whole, {"x": torch.ones(1, 6, 8)}, {"x": {1: rows}}, ["y"])
    message = str(caught.value)
    assert message.startswith("1.1: expected a module that ONNX can hold") and reason in message
    assert ".pt2" in message and "\n" not in message


def test_a_part_of_a_model_is_named_as_in_the_model():
    part = nn.Sequential(nn.ReLU(), Branching())
    names = {module: f"fusion_tower.blocks.3.{name}" for name, module in part.named_modules()}
    with pytest.raises(InputError, match=r"^fusion_tower\.blocks\.3\.1: expected a module that ONNX can hold"):
        translate(part, {"x": torch.ones(2, 3)}, {"x": None}, ["y"], names.__getitem__)


def test_what_an_export_leaves_out_is_warned_of(tiny_cfg, caplog):
    warn_of_left_out(tiny_cfg, SimpleNamespace(mask_head=None, class_words_head=None), Path("a.onnx"))
    assert not caplog.messages
    tiny_cfg.MODEL.GLIPV2.TEST.SHORTLIST, tiny_cfg.TEST.AUG.ENABLED = 3, True
    warn_of_left_out(tiny_cfg, SimpleNamespace(mask_head=1, class_words_head=1), Path("a.pt2"))
    masks, shortlist, words, sizes = caplog.messages
    assert masks.startswith("a.pt2: its masks") and "SHORTLIST" in shortlist and "CLASS_WORDS" in words
    assert sizes.startswith("a.pt2: TEST.AUG is left out")


def test_detections_are_compared_in_both_directions_but_for_the_last():
    boxes = np.array([[0, 0, 10, 10], [5, 5, 9, 9], [1, 1, 3, 3]], np.float32)
    one = Found(boxes, np.array([0.9, 0.5, 0.1]), np.array([0, 1, 0]))
    assert differences(one, one) == Difference(0, 0, 0, 4)
    moved = Found(boxes + 0.25, np.array([0.9, 0.498, 0.1]), np.array([0, 1, 0]))
    found = differences(one, moved)
    assert (found.pixels, found.lost, found.compared) == (0.25, 0, 4) and found.score == pytest.approx(0.002)
    # Another name, and one that the other side has not found.
    assert differences(one, Found(boxes[:2], one.scores[:2], np.array([1, 1])))[2:] == (2, 2)


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """The micro model with random weights and many scores, its config, and the folder of its export."""
    folder = tmp_path_factory.mktemp("export")
    blocks = ["MODEL.GLIPV2.TOWER.NUM_BLOCKS", "2"]
    cfg = build_config("glipv2_micro", ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "random", *blocks])
    torch.manual_seed(0)
    model = build_model(cfg)
    for parameter in model.head.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    model.head.bias0.data.fill_(-1.0)
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(folder / "model.pth")
    cfg.freeze()
    export_onnx(cfg, folder / "mine.onnx", ["cat", "dog"])
    return cfg, folder


@pytest.mark.filterwarnings("error")
def test_the_example_keeps_the_boxes_that_torchvision_keeps():
    corners = np.random.default_rng(1).integers(0, 9, (300, 2, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1).astype("f4")
    scores = np.linspace(1, 0.1, len(boxes), dtype="f4")
    about = {"nms_threshold": 0.5, "detections": {"of_a_prompt": 0}}
    expected = nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.5)
    assert load_example().decode(boxes, scores, np.zeros(300, np.int64), about)[1].tolist() == scores[expected].tolist()


@pytest.mark.slow
def test_one_export_finds_what_the_model_finds_in_images_of_any_size_for_any_names(export):
    cfg, folder = export
    predictor, example = GLIPv2Predictor(cfg), load_example()
    rng = np.random.default_rng(0)
    for names in (["cat"], ["traffic light", "a_dog (small)", "cat"], [f"thing number {n}" for n in range(90)]):
        detector = example.Detector(folder / "mine.onnx", names, threads=1)
        for height, width in ((240, 320), (400, 200), (33, 47)):
            small = rng.integers(0, 256, (8, 9, 3), dtype=np.uint8)
            image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
            instances = predictor(image, names)["instances"]
            tensors = instances.pred_boxes.tensor, instances.scores, instances.pred_classes
            found = differences(Found(*detector(image)), Found(*(tensor.numpy() for tensor in tensors)))
            assert found.compared > 50 and not found.lost
            assert found.pixels < 0.05 and found.score < 1e-4


@pytest.mark.slow
def test_the_example_runs_without_torch_and_package(export, tmp_path):
    _, folder = export
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    command = [sys.executable, "-I", "-c", WITHOUT_TORCH, str(EXAMPLE), str(folder / "mine.onnx"), "a.png"]
    done = subprocess.run([*command, "--threshold", "0"], cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "a.png" and len(lines) > 50 and lines[1].split()[0] in ("cat", "dog")


@pytest.mark.slow
def test_description_and_files_belong_together(export):
    cfg, folder = export
    files = files_of(folder / "mine.onnx")
    assert sorted(path.name for path in folder.iterdir()) == sorted(["model.pth", *(path.name for path in files)])
    about = json.loads(files.description.read_text())
    assert about["names"] == ["cat", "dog"] and about["multiple_of"] == 32
    assert about["resize"] == {"shortest": cfg.INPUT.MIN_SIZE_TEST, "longest": cfg.INPUT.MAX_SIZE_TEST}
    assert about["int8"] is False
    inputs = {one.name: one.shape for one in onnxruntime.InferenceSession(files.detector).get_inputs()}
    assert set(inputs) == set(about["inputs"])
    # Open axes have names in place of numbers.
    assert [type(axis) for axis in inputs["image"]] == [int, str, str]
    assert [type(axis) for axis in inputs["phrase_token_map"]] == [str, str]


@pytest.mark.slow
def test_products_of_integers_are_smaller_and_close(export, tmp_path):
    _, folder = export
    example, found = load_example(), []
    for path in files_of(folder / "mine.onnx"):
        shutil.copy(path, tmp_path)
    files = files_of(tmp_path / "mine.onnx")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8))
    for quantizes in (False, True):
        for path in files[:2] if quantizes else ():
            before = path.stat().st_size
            quantize(path)
            assert path.stat().st_size < 0.8 * before
        found.append(np.sort(example.Detector(files.detector, ["a dog", "cat"], threads=1)(image)[1])[-50:])
    exact, close = found
    assert 0 < np.abs(exact - close).max() < 0.05


@pytest.mark.slow
def test_an_export_is_a_contender_of_the_benchmark(export, tmp_path, monkeypatch):
    cfg, folder = export
    monkeypatch.setattr(compare, "RATE_SIDES", (64,))
    page, numbers = tmp_path / "page.md", tmp_path / "numbers.json"
    arguments = [
        "--size",
        "64",
        "90",
        "--num-names",
        "2",
        "--repeat",
        "1",
        "--without",
        "GroundingDINO",
        "--clock",
        "cpu",
    ]
    arguments += ["--onnx", str(folder / "mine.onnx"), "--page", str(page), "--json", str(numbers)]
    arguments += ["--device", "cpu", "--config-file", "glipv2_micro", "--opts", "MODEL.WEIGHTS", cfg.MODEL.WEIGHTS]
    benchmark.main(["compare", *arguments, "MODEL.GLIPV2.TOWER.NUM_BLOCKS", "2"])
    (case,) = [rows for name, rows in json.loads(numbers.read_text())["results"].items() if name != "rates"]
    assert list(case["contenders"]) == ["ours", "ours, new text", "plain", "exported"]
    assert case["contenders"]["exported"].keys() == {"first", "seconds"}
    assert "| exported | " in page.read_text() and "--onnx mine.onnx" in page.read_text()
