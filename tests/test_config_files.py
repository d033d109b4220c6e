"""Configs by name, from a checkout and from a wheel."""

import shutil
from pathlib import Path

import pytest
from conftest import CONFIGS, assert_one_line

from glipv2_d2 import config_files, get_config, get_config_file
from glipv2_d2.config_files import config_names, find_config_file
from glipv2_d2.engine.command_line import build_config
from glipv2_d2.errors import InputError


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("glip_swin_t_c", "glip/glip_swin_t_c.yaml"),
        ("glip_swin_t_c.yaml", "glip/glip_swin_t_c.yaml"),
        ("glip/glip_swin_t_c", "glip/glip_swin_t_c.yaml"),
        ("configs/glip/glip_swin_t_c.yaml", "glip/glip_swin_t_c.yaml"),
        ("./configs/glip/glip_swin_t_c.yaml", "glip/glip_swin_t_c.yaml"),
        ("Base-GLIPv2", "Base-GLIPv2.yaml"),
        # Several folders have these two.
        ("glipv2_micro", "demo/glipv2_micro.yaml"),
        ("glipv2_swin_t", "models/glipv2_swin_t.yaml"),
        ("pretrain/glipv2_micro", "pretrain/glipv2_micro.yaml"),
    ],
)
def test_a_name_leads_to_its_file_from_any_folder(name, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Path(get_config_file(name)) == CONFIGS / expected
    assert find_config_file(name) == get_config_file(name)


def test_every_config_has_a_name():
    assert config_names() == sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
    assert [Path(get_config_file(name)) for name in config_names()] == [CONFIGS / name for name in config_names()]


def test_a_file_of_ones_own_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "glip_swin_t_c.yaml").write_text("SEED: 12\n")
    assert find_config_file("glip_swin_t_c.yaml") == "glip_swin_t_c.yaml"
    assert get_config("glip_swin_t_c.yaml").SEED == 12
    assert find_config_file(str(tmp_path / "glip_swin_t_c.yaml")) == str(tmp_path / "glip_swin_t_c.yaml")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("glip_swim_t_c", ["did you mean", "glip/glip_swin_t_c"]),
        ("glip/glip_swin_t_z", ["did you mean glip/glip_swin_t_"]),
        ("/nowhere/glip_swin_t_c.yaml", ["found none at /nowhere"]),
        ("", ["''"]),
        (".", ["'.'"]),
        ("swin_t_c", ["swin_t_c"]),
        ("../configs/glip/glip_swin_t_c.yaml", ["../configs"]),
    ],
)
def test_an_unknown_name_lists_similar_ones(name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        find_config_file(name)
    assert_one_line(caught, "expected", *words)


def test_a_name_of_several_files_lists_them():
    with pytest.raises(InputError) as caught:
        get_config_file("coco_swin_t")
    assert_one_line(caught, "finetune/coco_swin_t", "prompt_tuning/coco_swin_t")


def test_a_config_can_be_changed_and_is_that_of_the_command_line():
    cfg = get_config("glipv2_micro")
    assert cfg.dump() == build_config("glipv2_micro", []).dump() and cfg.MODEL.DEVICE == "auto"
    cfg.SEED = 5


def test_a_wheel_has_its_configs_inside_the_package(tmp_path, monkeypatch):
    shutil.copytree(CONFIGS, tmp_path / "glipv2_d2" / "configs")
    monkeypatch.setattr(config_files, "__file__", str(tmp_path / "glipv2_d2" / "config_files.py"))
    assert get_config_file("glip_swin_t_c") == str(tmp_path / "glipv2_d2/configs/glip/glip_swin_t_c.yaml")
