"""Training goes on while its checkpoint is written, and whatever ends it waits for the file."""

import errno
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from detectron2.evaluation import DatasetEvaluator
from training_runs import assert_same, load, train, without_evaluation

from glipv2_d2 import GLIPv2Trainer
from glipv2_d2.checkpoint import checkpointer as checkpointer_module
from glipv2_d2.checkpoint.checkpointer import GLIPv2Checkpointer
from glipv2_d2.engine.stopping import RunStopped
from glipv2_d2.tensor_files import write_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def after_step(trainer, call):
    """Call a function with the iteration after each step and before the hooks."""
    step = trainer.run_step

    def run_step():
        step()
        call(trainer.iter)

    trainer.run_step = run_step
    return trainer


def names(folder):
    return {path.name for path in Path(folder).glob("*.pth")}


def test_the_next_step_runs_while_a_file_is_written_and_the_file_is_that_of_its_step(train_cfg, tmp_path, monkeypatch):
    options = ("SOLVER.MAX_ITER", 3, "SOLVER.STEPS", ())
    torch.manual_seed(0)
    train(without_evaluation(train_cfg, tmp_path / "blocking", *options, "SOLVER.SAVE_IN_BACKGROUND", False))
    next_step = threading.Event()

    def write(path, content):
        if path.name == "model_0000001.pth":
            assert next_step.wait(60)
        write_checkpoint(path, content)

    monkeypatch.setattr(checkpointer_module, "write_checkpoint", write)
    torch.manual_seed(0)
    trainer = GLIPv2Trainer(without_evaluation(train_cfg, tmp_path / "beside", *options))
    after_step(trainer, lambda iteration: next_step.set() if iteration == 2 else None).train()
    assert names(tmp_path / "beside") == {"model_0000001.pth", "model_final.pth"}
    for name in names(tmp_path / "beside"):
        one, other = (load(tmp_path / folder / name) for folder in ("blocking", "beside"))
        for content in (one, other):
            # It alone knows the key that differs.
            del content["trainer"]["hooks"]["SolverKeysHook"]["SOLVER.SAVE_IN_BACKGROUND"]
        assert_same(one, other)
    # Of one state both ways write the same bytes.
    files = []
    for in_background in (True, False):
        folder = tmp_path / f"again_{in_background}"
        again = GLIPv2Checkpointer(trainer.model, str(folder), in_background=in_background, trainer=trainer)
        again.save("model_final", iteration=2)
        files.append(Path(again.get_checkpoint_file()).read_bytes())
    assert files[0] == files[1]


def test_a_run_that_a_signal_stops_in_a_write_waits_for_the_file(train_cfg, tmp_path, monkeypatch):
    def write(path, content):
        time.sleep(0.3)
        write_checkpoint(path, content)

    monkeypatch.setattr(checkpointer_module, "write_checkpoint", write)
    cfg = without_evaluation(train_cfg, tmp_path / "run", "SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.MAX_CHECKPOINTS", 1)
    stop = lambda iteration: os.kill(os.getpid(), signal.SIGTERM) if iteration == 1 else None  # noqa: E731
    with pytest.raises(RunStopped, match="--resume goes on from .*model_0000001.pth"):
        after_step(GLIPv2Trainer(cfg), stop).train()
    assert names(cfg.OUTPUT_DIR) == {"model_0000001.pth"}
    assert not list(Path(cfg.OUTPUT_DIR).glob(".*.tmp"))


def test_a_full_disk_ends_the_run_after_the_step_in_which_it_is_known(train_cfg, tmp_path, monkeypatch):
    failed = threading.Event()

    def write(path, content):
        if path.name == "model_0000001.pth":
            failed.set()
            raise OSError(errno.ENOSPC, f"{path}: expected space for the file, found none")
        write_checkpoint(path, content)

    monkeypatch.setattr(checkpointer_module, "write_checkpoint", write)
    cfg = without_evaluation(train_cfg, tmp_path / "run", "SOLVER.MAX_ITER", 9, "SOLVER.CHECKPOINT_PERIOD", 2)
    steps = []
    trainer = after_step(GLIPv2Trainer(cfg), lambda iteration: (steps.append(iteration), time.sleep(0.05)))
    with pytest.raises(OSError, match="model_0000001.pth: expected space"):
        trainer.train()
    assert failed.is_set() and steps == [0, 1, 2] and names(cfg.OUTPUT_DIR) == set()


class Looks(DatasetEvaluator):
    """Notes which checkpoints are there when an evaluation begins."""

    def __init__(self, folder):
        self.folder, self.found = folder, []

    def reset(self):
        self.found.append(names(self.folder))

    def evaluate(self):
        return {"bbox": {"AP": 1.0}}


def test_an_evaluation_begins_when_the_file_of_its_step_is_there(train_cfg, monkeypatch):
    def write(path, content):
        time.sleep(0.3)
        write_checkpoint(path, content)

    monkeypatch.setattr(checkpointer_module, "write_checkpoint", write)
    evaluator = Looks(train_cfg.OUTPUT_DIR)
    monkeypatch.setattr(GLIPv2Trainer, "build_evaluator", lambda cfg, dataset: evaluator)
    train_cfg.merge_from_list(
        ["SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 1, "SOLVER.MAX_ITER", 3, "SOLVER.STEPS", ()]
    )
    train(train_cfg)
    assert evaluator.found == [{"model_0000000.pth"}, {"model_0000001.pth"}, {"model_0000001.pth", "model_final.pth"}]
