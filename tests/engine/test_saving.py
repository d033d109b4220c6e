"""When a run is saved, what ends it, and what becomes of it when it is resumed."""

import json
import logging
import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from conftest import assert_one_line
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from drawn_images import draw_dataset
from training_runs import assert_same, load, train, without_evaluation

from glipv2_d2 import GLIPv2Trainer, register_coco_grounding
from glipv2_d2.checkpoint.checkpointer import GLIPv2Checkpointer
from glipv2_d2.checkpoint.resume import find_result_file
from glipv2_d2.engine.command_line import one_line_errors
from glipv2_d2.engine.stopping import RunStopped
from glipv2_d2.tensor_files import write_checkpoint, write_tensors

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


class Counted(DatasetEvaluator):
    """Gives values from a list; None fails."""

    def __init__(self, values):
        self._values = values

    def evaluate(self):
        value = self._values.pop(0)
        if value is None:
            raise RuntimeError("the evaluation fails")
        return {"bbox": {"AP": value}}


def give_results(monkeypatch, *values):
    evaluator = Counted(list(values))
    monkeypatch.setattr(GLIPv2Trainer, "build_evaluator", lambda cfg, dataset: evaluator)


def names(cfg):
    return {path.name for path in Path(cfg.OUTPUT_DIR).glob("*.pth")}


def send_at(trainer, iteration, signum=signal.SIGTERM):
    step = trainer.run_step

    def run_step():
        step()
        if trainer.iter == iteration:
            os.kill(os.getpid(), signum)

    trainer.run_step = run_step
    return trainer


def test_failing_evaluation_leaves_a_checkpoint(train_cfg, monkeypatch):
    train_cfg.merge_from_list(["SOLVER.CHECKPOINT_PERIOD", 100, "TEST.EVAL_PERIOD", 2])
    give_results(monkeypatch, None)
    with pytest.raises(RuntimeError, match="evaluation fails"):
        train(train_cfg)
    assert names(train_cfg) == {"model_0000001.pth"}
    give_results(monkeypatch, 1.0)
    assert train(train_cfg, resume=True).start_iter == 2
    assert names(train_cfg) == {"model_0000001.pth", "model_final.pth"}


def test_the_checkpoint_before_an_evaluation_lasts_until_the_next_one(train_cfg, monkeypatch):
    train_cfg.merge_from_list(["SOLVER.CHECKPOINT_PERIOD", 3, "TEST.EVAL_PERIOD", 1])
    give_results(monkeypatch, 1.0, 1.0, 1.0, 1.0)
    train(train_cfg)
    assert names(train_cfg) == {"model_0000002.pth", "model_final.pth"}


def test_a_step_is_saved_once(train_cfg, monkeypatch):
    train_cfg.merge_from_list(["SOLVER.CHECKPOINT_PERIOD", 1, "TEST.EVAL_PERIOD", 1, "SOLVER.EARLY_STOP_PATIENCE", 9])
    train_cfg.merge_from_list(["SOLVER.MAX_ITER", 3, "SOLVER.STEPS", ()])
    give_results(monkeypatch, 1.0, 1.0, 1.0)
    saved = []
    save = GLIPv2Checkpointer.save
    monkeypatch.setattr(
        GLIPv2Checkpointer, "save", lambda self, name, **more: (saved.append(name), save(self, name, **more))
    )
    train(train_cfg)
    assert sorted(name for name in saved if name != "model_best") == [
        "model_0000000",
        "model_0000001",
        "model_0000002",
        "model_final",
    ]


def test_a_resumed_run_keeps_as_many_numbered_checkpoints_as_it_may(train_cfg, tmp_path):
    options = ("SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.MAX_CHECKPOINTS", 1)
    cfg = without_evaluation(train_cfg, tmp_path / "run", *options)
    with pytest.raises(RunStopped):
        send_at(GLIPv2Trainer(cfg), 2).train()
    # That of the signal stands beside that of the period.
    assert names(cfg) == {"model_0000001.pth", "model_0000002.pth"}
    train(cfg, resume=True)
    assert names(cfg) == {"model_0000003.pth", "model_final.pth"}


def test_a_step_that_is_done_again_on_resume_counts_once_among_the_kept(train_cfg, tmp_path, monkeypatch):
    options = ["SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.MAX_CHECKPOINTS", 2, "TEST.EVAL_PERIOD", 1]
    train_cfg.merge_from_list([*options, "SOLVER.EARLY_STOP_PATIENCE", 9])
    give_results(monkeypatch, 1.0, None)
    with pytest.raises(RuntimeError, match="evaluation fails"):
        train(train_cfg)
    kept = {"model_0000000.pth", "model_0000001.pth", "model_best.pth"}
    assert names(train_cfg) == kept
    give_results(monkeypatch, 1.0, None)
    with pytest.raises(RuntimeError, match="evaluation fails"):
        train(train_cfg, resume=True)
    assert names(train_cfg) == {"model_0000001.pth", "model_0000002.pth", "model_best.pth"}


def test_best_weights_of_an_earlier_run_are_not_those_of_a_new_one(train_cfg, tmp_path):
    cfg = without_evaluation(train_cfg, tmp_path / "run")
    (tmp_path / "run").mkdir()
    write_checkpoint(tmp_path / "run" / "model_best.pth", {"model": {"old": torch.ones(1)}})
    train(cfg)
    assert find_result_file(cfg.OUTPUT_DIR) == str(tmp_path / "run" / "model_final.pth")
    # Nothing is lost.
    assert load(tmp_path / "run" / "model_best_before.pth")["model"].keys() == {"old"}


def without_categories(content):
    del content["categories"]


def with_a_list_as_name(content):
    content["categories"][1]["name"] = []


@pytest.mark.parametrize(("damage", "words"), [(without_categories, ("categories",)), (with_a_list_as_name, ("name",))])
def test_test_data_are_checked_before_the_first_update(train_cfg, tmp_path, monkeypatch, damage, words):
    (tmp_path / "test").mkdir()
    json_file = draw_dataset(tmp_path / "test")
    content = json.loads(json_file.read_text())
    damage(content)
    json_file.write_text(json.dumps(content))
    register_coco_grounding("damaged", json_file, tmp_path / "test")
    train_cfg.merge_from_list(["DATASETS.TEST", (*train_cfg.DATASETS.TEST, "damaged")])
    monkeypatch.setattr(GLIPv2Trainer, "run_step", lambda trainer: pytest.fail("a step has run"))
    with pytest.raises(ValueError) as caught:
        train(train_cfg)
    assert_one_line(caught, json_file, *words)


def test_all_test_data_are_there_before_one_is_read(train_cfg, tmp_path):
    dataset = train_cfg.DATASETS.TEST[0]
    GLIPv2Trainer.check_test_data(train_cfg)
    train_cfg.DATASETS.TEST = (dataset, "odinw_nowhere_test")
    with pytest.raises(ValueError, match="'odinw_nowhere_test' is not registered"):
        GLIPv2Trainer.check_test_data(train_cfg)
    MetadataCatalog.get(dataset).image_ids_file = str(tmp_path / "ids.txt")
    with pytest.raises(FileNotFoundError, match=f"'{dataset}': image_ids_file .*ids.txt"):
        GLIPv2Trainer.check_test_data(train_cfg)


def test_a_dataset_of_the_catalog_without_evaluator_type_is_evaluated_as_coco(train_cfg, monkeypatch):
    dicts = DatasetCatalog.get(train_cfg.DATASETS.TEST[0])
    names = MetadataCatalog.get(train_cfg.DATASETS.TEST[0]).thing_classes
    DatasetCatalog.register("by_hand", lambda: dicts)
    MetadataCatalog.get("by_hand").thing_classes = names
    train_cfg.merge_from_list(["DATASETS.TEST", ("by_hand",), "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", ()])
    assert "AP" in train(train_cfg)._last_eval_results["bbox"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stopped_run_goes_on_bit_for_bit(train_cfg, tmp_path, signum, capsys):
    options = ("SOLVER.CHECKPOINT_PERIOD", 100)
    torch.manual_seed(0)
    train(without_evaluation(train_cfg, tmp_path / "straight", *options))
    cfg = without_evaluation(train_cfg, tmp_path / "cut", *options)
    before = signal.getsignal(signum)
    torch.manual_seed(0)
    trainer = send_at(GLIPv2Trainer(cfg), 1, signum)
    with pytest.raises(SystemExit) as ended, one_line_errors():
        trainer.train()
    assert ended.value.code == 128 + signum and signal.getsignal(signum) == before
    lines = capsys.readouterr().err.splitlines()[-2:]
    assert lines[0] == f"stopped by {signum.name} after 2 updates"
    assert lines[1] == f"--resume goes on from {tmp_path / 'cut' / 'model_0000001.pth'}"
    assert names(cfg) == {"model_0000001.pth"}
    torch.manual_seed(1)
    assert train(cfg, resume=True).start_iter == 2
    assert_same(load(tmp_path / "straight" / "model_final.pth"), load(tmp_path / "cut" / "model_final.pth"))


@pytest.mark.parametrize("fails", [True, False])
def test_decisions_by_an_evaluation_that_was_cut_off_are_taken_on_resume(train_cfg, tmp_path, monkeypatch, fails):
    train_cfg.merge_from_list(["SOLVER.AUTO_STEP.ENABLED", True, "SOLVER.AUTO_STEP.PATIENCE", 0])
    train_cfg.merge_from_list(["SOLVER.EMA_DECAY", 0.9, "SOLVER.WARMUP_ITERS", 0, "TEST.EVAL_PERIOD", 1])
    train_cfg.merge_from_list(["SOLVER.CHECKPOINT_PERIOD", 3, "SOLVER.STEPS", ()])
    straight, cut = train_cfg.clone(), train_cfg.clone()
    straight.OUTPUT_DIR, cut.OUTPUT_DIR = str(tmp_path / "straight"), str(tmp_path / "cut")
    torch.manual_seed(0)
    give_results(monkeypatch, 4.0, 3.0, 2.0, 1.0)
    train(straight)
    torch.manual_seed(0)
    give_results(monkeypatch, 4.0, *([None] if fails else []))
    trainer = GLIPv2Trainer(cut)
    with pytest.raises(RuntimeError if fails else RunStopped):
        (trainer if fails else send_at(trainer, 1)).train()
    assert names(cut) == {"model_0000001.pth", "model_best.pth"}
    give_results(monkeypatch, 3.0, 2.0, 1.0)
    assert train(cut, resume=True).start_iter == 2
    assert_same(load(tmp_path / "straight" / "model_final.pth"), load(tmp_path / "cut" / "model_final.pth"))


def test_a_signal_in_an_evaluation_ends_it(train_cfg, monkeypatch):
    train_cfg.merge_from_list(["SOLVER.CHECKPOINT_PERIOD", 100, "TEST.EVAL_PERIOD", 2])
    give_results(monkeypatch, 1.0)
    monkeypatch.setattr(Counted, "evaluate", lambda self: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(RunStopped, match="SIGTERM in an evaluation"):
        train(train_cfg)
    assert names(train_cfg) == {"model_0000001.pth"}


def test_what_fails_after_a_signal_is_its_consequence(train_cfg, monkeypatch):
    def evaluate(self):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except RunStopped:
            # The same signal has ended a worker.
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated.") from None

    give_results(monkeypatch, 1.0)
    monkeypatch.setattr(Counted, "evaluate", evaluate)
    with pytest.raises(RunStopped, match="^stopped by SIGTERM; --resume goes on") as caught:
        train(train_cfg)
    assert caught.value.exit_status == 143


@pytest.fixture
def heeds_ctrl_c():
    """Ctrl-C reaches the test: a process that a shell has put into the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_ends_in_two_lines(train_cfg, capsys):
    train_cfg.merge_from_list(["DATASETS.TEST", ()])
    trainer = send_at(GLIPv2Trainer(train_cfg), 2, signal.SIGINT)
    with pytest.raises(SystemExit) as ended, one_line_errors():
        trainer.train()
    assert ended.value.code == 130
    last = Path(train_cfg.OUTPUT_DIR) / "model_0000001.pth"
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "stopped by Ctrl-C in iteration 2",
        f"--resume goes on from {last}",
    ]


@pytest.mark.parametrize("max_iter", [4, 2])
def test_a_run_resumed_at_its_end_says_so_and_writes_the_last_checkpoint(train_cfg, tmp_path, max_iter, caplog):
    cfg = without_evaluation(train_cfg, tmp_path / "run")
    train(cfg)
    final = tmp_path / "run" / "model_final.pth"
    content = load(final)
    final.unlink()
    left = tmp_path / "run" / ".model_final.pth.1234567.tmp"
    left.touch()
    cfg.merge_from_list(["SOLVER.MAX_ITER", max_iter, "SOLVER.STEPS", ()])
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        train(cfg, resume=True)
    assert f"SOLVER.MAX_ITER {max_iter}: the checkpoint has had 4 updates already" in caplog.text
    resumed = load(final)
    # The solver keys are those of the run that wrote the file.
    for one in (content, resumed):
        del one["trainer"]["hooks"]["SolverKeysHook"]
    assert_same(content, resumed)
    assert not left.exists()
    written = final.stat().st_mtime_ns
    train(cfg, resume=True)
    assert final.stat().st_mtime_ns == written


@pytest.mark.parametrize("write", [write_checkpoint, write_tensors])
def test_a_full_disk_is_named_and_the_old_file_is_kept(tmp_path, write):
    path = tmp_path / "weights.safetensors"
    write(path, {"weight": torch.ones(3)})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(SystemExit) as caught, one_line_errors():
            write(path, {"weight": torch.ones(300_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_one_line(caught, path, "expected space", "disk or the quota at its limit")
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == [path.name]
