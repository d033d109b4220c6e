import logging
import multiprocessing
import re
import subprocess
import sys
import time

import pytest
import torch
import yaml

from glipv2_d2.engine.progress import quiet_terminal
from glipv2_d2.engine.run_log import start_log
from glipv2_d2.engine.runs import sole_training, start_run
from glipv2_d2.errors import InputError
from glipv2_d2.folders import lock_folder
from glipv2_d2.program.config_arguments import parse_train_arguments

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def arguments(tiny_cfg, tmp_path):
    """A command line whose config leaves the device open."""
    (tmp_path / "config.yaml").write_text(tiny_cfg.dump().replace("DEVICE: cpu", "DEVICE: auto"))
    keys = ["--opts", "OUTPUT_DIR", str(tmp_path / "out")]
    return lambda *flags: parse_train_arguments(["--config-file", str(tmp_path / "config.yaml"), *flags, *keys])


def test_details_are_in_the_file_alone_and_once(arguments, tmp_path, capsys):
    start_run(arguments())
    for name in ("detectron2.data.common", "detectron2.evaluation.evaluator", "detectron2.evaluation.testing"):
        logging.getLogger(name).info("a step of %s", name)
        logging.getLogger(name).warning("a warning of %s", name)
    logging.getLogger("glipv2_d2.data").info("news")
    shown, log = capsys.readouterr().out, (tmp_path / "out" / "log.txt").read_text()
    for detail in (
        "environment:",
        "command line:",
        "PyTorch built with",
        "MAX_ITER: ",
        "a step of detectron2.data.common",
        "a step of detectron2.evaluation.evaluator",
    ):
        assert detail not in shown and log.count(detail) == 1
    assert re.search(r"^\[\d\d:\d\d:\d\d\] news$", shown, re.MULTILINE) and "glipv2_d2.data INFO: news" in log
    assert "] WARNING: a warning of detectron2.data.common" in shown
    assert "\x1b[" not in shown + log and "not built correctly" not in log
    # Each word of the command line once.
    assert log.count("'OUTPUT_DIR'") == 1


def test_other_processes_write_to_their_own_file(arguments, tiny_cfg, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda: 1)
    tiny_cfg.OUTPUT_DIR = str(tmp_path / "out")
    start_log(tiny_cfg, arguments())
    logging.getLogger("glipv2_d2").info("news")
    assert capsys.readouterr().out == ""
    assert "news" in (tmp_path / "out" / "log.txt.rank1").read_text()
    assert not (tmp_path / "out" / "config.yaml").exists()


def test_the_file_has_what_a_training_does_not_show(arguments, tiny_cfg, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    tiny_cfg.OUTPUT_DIR = str(tmp_path / "out")
    start_log(tiny_cfg, arguments())
    quiet_terminal()
    logging.getLogger("detectron2.data.build").info("a detail")
    logging.getLogger("glipv2_d2.engine.runs").info("news")
    shown, log = capsys.readouterr().out, (tmp_path / "out" / "log.txt").read_text()
    assert "a detail" not in shown and shown.count("news") == 1
    assert log.count("a detail") == 1 and log.count("news") == 1


def test_a_log_without_space_is_told_once_and_the_run_goes_on(arguments, tiny_cfg, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "log.txt").symlink_to("/dev/full")
    tiny_cfg.OUTPUT_DIR = str(tmp_path / "out")
    start_log(tiny_cfg, arguments())
    logging.getLogger("detectron2").info("news")
    shown, told = capsys.readouterr()
    assert "news" in shown and told.count("\n") == 1
    assert told.startswith(f"{tmp_path}/out/log.txt: expected space for the file, found the disk or the quota at its")


def test_one_training_at_a_time_has_a_folder(arguments, tmp_path):
    (tmp_path / "out").mkdir()
    ready = FORK.Event()
    other = FORK.Process(target=hold, args=(tmp_path / "out", ready), daemon=True)
    other.start()
    assert ready.wait(60)
    message = f"^OUTPUT_DIR: {tmp_path}/out: expected no other run, found another one, "
    with pytest.raises(InputError, match=message), sole_training(arguments()):
        pass
    assert not (tmp_path / "out" / "config.yaml").exists()
    start_run(arguments("--eval-only"), for_results=True)
    other.kill()
    other.join()
    with sole_training(arguments()) as cfg, sole_training(arguments()):
        assert (tmp_path / "out" / "config.yaml").exists() and cfg.OUTPUT_DIR == f"{tmp_path}/out"


def hold(folder, ready):
    with lock_folder(folder, "there", inherited=False):
        ready.set()
        time.sleep(600)


def test_an_evaluation_leaves_the_config_of_a_training_alone(arguments, tmp_path):
    start_run(arguments())
    (tmp_path / "out" / "last_checkpoint").touch()
    before = (tmp_path / "out" / "config.yaml").read_text()
    evaluation = arguments("--eval-only")
    evaluation.opts += ["SEED", "77"]
    start_run(evaluation, for_results=True)
    assert (tmp_path / "out" / "config.yaml").read_text() == before
    assert "SEED: 77" in (tmp_path / "out" / "log.txt").read_text()


@pytest.mark.parametrize(("flags", "device"), [((), "auto"), (("--num-gpus", "0"), "cpu")])
def test_no_gpus_means_the_cpu_and_the_saved_config_stays_open(arguments, flags, device, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("glipv2_d2.engine.run_log.collect_env_info", lambda: "")
    assert start_run(arguments(*flags)).MODEL.DEVICE == device
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["MODEL"]["DEVICE"] == "auto"


def test_the_package_is_imported_and_a_model_is_built_without_a_warning():
    code = (
        "from glipv2_d2 import build_model, get_config; import torch\n"
        "cfg = get_config('glipv2_micro'); cfg.MODEL.DEVICE = 'cpu'; model = build_model(cfg).eval()\n"
        "model.anchor_generator([torch.zeros(1, 1, 4, 4)] * 3)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout + done.stderr == ""
