import pytest
import torch

from glipv2_d2.errors import InputError
from glipv2_d2.modeling import build_model, choose_device


@pytest.mark.parametrize(
    ("name", "has_gpu", "expected"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("cuda:1", True, "cuda:1")],
)
def test_auto_is_the_gpu_where_one_can_be_used(name, has_gpu, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert choose_device(name) == torch.device(expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [("cuda", "expected 'auto' or 'cpu' on a machine without a usable GPU"), ("gpu", "expected 'auto', 'cpu', 'cuda'")],
)
def test_a_device_that_is_not_there_is_named(name, message, tiny_cfg, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    tiny_cfg.MODEL.DEVICE = name
    with pytest.raises(InputError, match=f"MODEL.DEVICE: {message}"):
        build_model(tiny_cfg)


def test_a_model_is_built_where_auto_leads_and_the_config_keeps_auto(tiny_cfg, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    tiny_cfg.MODEL.DEVICE = "auto"
    tiny_cfg.freeze()
    assert {parameter.device.type for parameter in build_model(tiny_cfg).parameters()} == {"cpu"}
    assert tiny_cfg.MODEL.DEVICE == "auto"
