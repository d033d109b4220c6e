import importlib.util
from pathlib import Path

import pytest
import torch
import yaml
from conftest import make_tiny_cfg

from glipv2_d2.checkpoint.glip_conversion import revert_to_glip_state_dict
from glipv2_d2.checkpoint.model_shapes import build_meta_model
from glipv2_d2.tensor_files import read_tensors

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("convert_glip_weights", ROOT / "tools" / "convert_glip_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def weights():
    """Random weights in the form of the tiny model."""
    torch.manual_seed(0)
    return {
        name: torch.randn(tensor.shape) if tensor.is_floating_point() else torch.ones(tensor.shape, dtype=tensor.dtype)
        for name, tensor in build_meta_model(make_tiny_cfg()).state_dict().items()
    }


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    """The tiny config as a file."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(make_tiny_cfg().dump())
    assert yaml.safe_load(path.read_text())["MODEL"]["META_ARCHITECTURE"] == "GLIPv2"
    return str(path)


def save_official(path, weights, **extra):
    official = revert_to_glip_state_dict(weights) | {"rpn.head.cls_logits.bias": torch.ones(80)}
    torch.save({"model": {f"module.{name}": tensor for name, tensor in official.items()}, **extra}, path)


def assert_fails_with_one_line(main, capsys, arguments, *words):
    assert main(arguments) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


def test_a_checkpoint_is_converted_checked_and_reported(tmp_path, main, weights, config_file, capsys):
    save_official(tmp_path / "in.pth", weights)
    output = tmp_path / "out.safetensors"
    assert main([str(tmp_path / "in.pth"), str(output), "--config-file", config_file]) == 0
    printed = capsys.readouterr().out
    assert f"GLIP, 1 blocks with fusion: {len(weights)} tensors used" in printed
    assert "rpn.head.cls_logits.bias: classification branch that nothing reads" in printed
    tensors, metadata = read_tensors(output)
    assert tensors.keys() == weights.keys()
    assert all(torch.equal(tensors[name], weights[name]) for name in weights)
    assert metadata == {"source": "GLIP, 1 blocks with fusion"}


def test_the_moving_average_is_converted_on_request(tmp_path, main, weights):
    average = {f"module.{name}": tensor for name, tensor in revert_to_glip_state_dict(weights).items()}
    save_official(tmp_path / "in.pth", {name: torch.zeros_like(t) for name, t in weights.items()}, model_ema=average)
    assert main([str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors"), "--ema"]) == 0
    assert torch.equal(read_tensors(tmp_path / "out.safetensors")[0]["head.bias_lang"], weights["head.bias_lang"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: {n: t for n, t in w.items() if n != "head.bias0"}, ["lacks weights for head.bias0"]),
        (lambda w: w | {"text_encoder.bert.novel.weight": torch.ones(1)}, ["no place for text_encoder.bert.novel"]),
        (lambda w: w | {"head.bias_lang": torch.ones(7)}, ["head.bias_lang: expected shape (48,), found (7,)"]),
        (
            lambda w: {n: t for n, t in w.items() if ".fusion." not in n and ".language_layer." not in n},
            ["expected 1 blocks, fusion True", "found 1 blocks, fusion False"],
        ),
    ],
    ids=["missing", "surplus", "shape", "layout"],
)
def test_weights_of_another_model_than_the_config_are_not_written(
    tmp_path, main, weights, config_file, capsys, change, words
):
    save_official(tmp_path / "in.pth", change(weights))
    arguments = [str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors"), "--config-file", config_file]
    assert_fails_with_one_line(main, capsys, arguments, "in.pth", *words)
    assert not (tmp_path / "out.safetensors").exists()


def test_files_that_are_no_glip_checkpoint_are_named(tmp_path, main, capsys):
    torch.save({"model": {"conv.weight": torch.ones(1)}}, tmp_path / "other.pth")
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    for name, words in [
        ("other.pth", "official GLIP code"),
        ("page.pth", "found something else"),
        ("absent.pth", "no such file"),
    ]:
        arguments = [str(tmp_path / name), str(tmp_path / "out.safetensors")]
        assert_fails_with_one_line(main, capsys, arguments, name, words)
    assert not (tmp_path / "out.safetensors").exists()


def test_the_output_has_to_be_called_safetensors(tmp_path, main, capsys):
    assert_fails_with_one_line(main, capsys, ["in.pth", str(tmp_path / "out.pth")], "out.pth", ".safetensors")
