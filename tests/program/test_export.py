import json
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import cv2
import matplotlib.cbook
import numpy as np
import pytest
import torch

from glipv2_d2 import GLIPv2Predictor, build_model
from glipv2_d2.engine.command_line import build_config
from glipv2_d2.engine.export import Exported
from glipv2_d2.program.main import main
from glipv2_d2.program.predict import read_prompt

PAGE = Path(__file__).resolve().parents[2] / "docs" / "export.md"
# What the code of the page is followed by.
REPORT = """
import sys
assert not [name for name in sys.modules if name.startswith(("glipv2_d2", "detectron2"))]
json.dump([boxes.tolist(), scores.tolist(), categories.tolist()], open("found.json", "w"))
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of the micro model with which many scores pass the threshold."""
    torch.manual_seed(0)
    model = build_model(build_config("glipv2_micro", ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "random"]))
    model.head.bias0.data.fill_(-1.0)
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": model.state_dict()}, path)
    return str(path)


@pytest.mark.slow
def test_the_code_of_the_page_finds_in_a_photograph_what_the_model_finds(weights, tmp_path, capsys):
    photo = cv2.imread(str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))
    cv2.imwrite(str(tmp_path / "photo.png"), photo)
    names = ["person", "cap", "flag"]
    arguments = ["--config-file", "glipv2_micro", "--names", ",".join(names), "--size", "256", "192"]
    assert main(["export", *arguments, "--output", str(tmp_path / "mine.pt2"), "MODEL.WEIGHTS", weights]) == 0
    assert "person, cap, flag" in capsys.readouterr().out
    about = json.loads((tmp_path / "mine.json").read_text())
    assert about["names"] == names and about["size"] == [256, 192]
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    code = code.replace("photo.jpg", "photo.png") + REPORT
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True, capture_output=True)
    boxes, scores, categories = map(np.array, json.loads((tmp_path / "found.json").read_text()))
    predictor = GLIPv2Predictor(build_config("glipv2_micro", ["MODEL.WEIGHTS", weights, "MODEL.DEVICE", "cpu"]))
    expected = predictor(photo, names)["instances"]
    count = len(scores)
    assert count == 100 <= len(expected) and scores.min() > 0.2
    np.testing.assert_allclose(scores, expected.scores[:count], atol=1e-5)
    np.testing.assert_allclose(boxes, expected.pred_boxes.tensor[:count], atol=1e-2)
    assert (categories == expected.pred_classes[:count].numpy()).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "mine.pth"], "--output: expected a name that ends in .onnx or .pt2, found mine.pth"),
        (["--output", "mine.onnx", "--size", "64", "64"], "--size: expected none for .onnx"),
        (["--output", "mine.pt2", "--int8"], "--int8: expected --output FILE.onnx with it, found .pt2"),
        (["--output", "none/mine.onnx"], "none/mine.onnx: expected the folder none, found none"),
        (["--names", " , "], "--names: expected names with commas between them, found ' , '"),
        (["--size", "250", "192", "--names", "a"], "--size: expected height and width in multiples of 32"),
        (["--names", ",".join(f"thing {n}" for n in range(300))], "--names: expected names that fit into one prompt"),
    ],
)
def test_what_cannot_be_exported_is_one_line(arguments, message, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        main(["export", "--config-file", "glipv2_micro", *arguments, "MODEL.WEIGHTS", weights])
    assert message in exit_info.value.code and "\n" not in exit_info.value.code
    assert not list(tmp_path.iterdir())


def test_names_are_those_between_commas_as_in_predict(tmp_path, monkeypatch):
    # As one text for the predictor these are a caption.
    text, names = "with mask,without mask, mask worn incorrectly", []
    assert read_prompt(Namespace(names=text, names_file=None)) == [one.strip() for one in text.split(",")]

    def export(cfg, output, asked, size):
        names.extend(asked)
        return Exported(output, output, asked)

    monkeypatch.setattr("glipv2_d2.engine.export.export_detector", export)
    main(["export", "--config-file", "glipv2_micro", "--names", text, "--output", str(tmp_path / "mine.pt2")])
    assert names == ["with mask", "without mask", "mask worn incorrectly"]


def test_a_config_is_needed():
    with pytest.raises(SystemExit) as exit_info:
        main(["export"])
    assert "--config-file, --model: expected the config or the folder of a model, found neither" in exit_info.value.code
