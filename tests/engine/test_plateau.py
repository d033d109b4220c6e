"""A training that follows a validation metric: learning rate, best weights, early end, and all that across a resume."""

import math
from pathlib import Path

import pytest
import torch

from glipv2_d2 import GLIPv2Trainer
from glipv2_d2.checkpoint.checkpointer import GLIPv2Checkpointer
from glipv2_d2.engine.plateau import build_plateau_hook, result_of
from glipv2_d2.errors import InputError

RATE = 0.01


@pytest.fixture
def make_trainer(train_cfg, monkeypatch):
    """A function that makes a trainer of the config with these changes, whose evaluations give the values in turn.

    A run without updates of any size: what is trained does not matter here. ``rates`` are those of all its updates.
    """

    def make(values, *options, resume=False, max_iter=None):
        train_cfg.merge_from_list(
            [
                *("SOLVER.AUTO_STEP.ENABLED", True, "TEST.EVAL_PERIOD", 1, "SOLVER.WARMUP_ITERS", 0),
                *("SOLVER.BASE_LR", RATE, "SOLVER.BIAS_LR_FACTOR", 1.0, "SOLVER.MAX_ITER", len(values)),
                *("SOLVER.TEXT_ENCODER_MULTIPLIER", 1.0, "SOLVER.EMA_DECAY", 0.0, "SOLVER.CHECKPOINT_PERIOD", 1),
                *options,
            ]
        )
        trainer = GLIPv2Trainer(train_cfg)
        trainer.resume_or_load(resume=resume)
        trainer.rates, trainer.evaluated = [], []
        weight = trainer.model.head.bbox_pred.bias

        def run_step():
            trainer.rates.append(trainer.optimizer.param_groups[0]["lr"])
            with torch.no_grad():
                weight.fill_(trainer.iter + 1.0)

        def test(cfg, model):
            value = values[min(trainer.iter, len(values) - 1)]
            trainer.evaluated.append(weight[0].item())
            return {"bbox": {"AP": value}}

        monkeypatch.setattr(trainer, "run_step", run_step)
        monkeypatch.setattr(trainer, "test", test)
        if max_iter is not None:
            trainer.max_iter = max_iter
        return trainer

    return make


def best_bias(cfg):
    content = torch.load(Path(cfg.OUTPUT_DIR) / "model_best.pth", weights_only=True)
    return content["iteration"], content["model"]["head.bbox_pred.bias"][0].item()


def test_the_rate_drops_after_more_evaluations_without_gain_than_the_patience(make_trainer):
    values = [1.0, 2.0, 2.0, 1.0, 1.5, 1.0, 1.0, 1.0, 1.0]
    trainer = make_trainer(values, "SOLVER.AUTO_STEP.PATIENCE", 2, "SOLVER.AUTO_STEP.FACTOR", 0.5)
    trainer.train()
    # The best is the second; the next three bring nothing (an equal value is no gain), the three after them neither.
    assert trainer.rates == pytest.approx([RATE] * 5 + [RATE / 2] * 3 + [RATE / 4])


def test_a_gain_starts_the_count_again(make_trainer):
    trainer = make_trainer([1.0, 0.0, 2.0, 0.0, 3.0, 0.0, 0.0, 0.0], "SOLVER.AUTO_STEP.PATIENCE", 1)
    trainer.train()
    assert trainer.rates == pytest.approx([RATE] * 7 + [RATE / 10])


def test_no_rate_drops_below_the_lowest_one(make_trainer):
    options = ("SOLVER.AUTO_STEP.PATIENCE", 0, "SOLVER.AUTO_STEP.MIN_LR", 0.004, "SOLVER.AUTO_STEP.FACTOR", 0.5)
    trainer = make_trainer([1.0] * 5, *options)
    # A rate that starts lower stays where it is.
    trainer.scheduler.base_lrs[-1] = 0.003
    trainer.train()
    assert trainer.rates == pytest.approx([0.01, 0.01, 0.005, 0.004, 0.004])
    assert trainer.scheduler.base_lrs[-1] == 0.003


def test_evaluations_during_the_warm_up_lower_nothing_but_can_be_the_best(make_trainer, train_cfg):
    options = ("SOLVER.WARMUP_ITERS", 4, "SOLVER.WARMUP_FACTOR", 0.0, "SOLVER.AUTO_STEP.PATIENCE", 0)
    trainer = make_trainer([5.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], *options)
    trainer.train()
    # Four updates of warm-up; the evaluation after the fourth is the first that counts.
    expected = [0.0, RATE / 4, RATE / 2, 3 * RATE / 4, RATE / 10, RATE / 100, RATE / 1000]
    assert trainer.rates == pytest.approx(expected)
    assert best_bias(train_cfg) == (0, 1.0)


def test_a_model_that_finds_nothing_counts_as_zero(make_trainer, train_cfg):
    trainer = make_trainer([math.nan, 0.0, math.nan, math.nan], "SOLVER.AUTO_STEP.PATIENCE", 1)
    trainer.train()
    assert trainer.rates == pytest.approx([RATE, RATE, RATE, RATE / 10])
    assert best_bias(train_cfg) == (0, 1.0)


def test_a_model_that_finds_something_is_better_than_one_that_finds_nothing(make_trainer, train_cfg):
    make_trainer([math.nan, math.nan, 0.5, math.nan], "SOLVER.AUTO_STEP.PATIENCE", 9).train()
    assert best_bias(train_cfg) == (2, 3.0)


def test_the_warm_up_does_not_count_for_an_early_end(make_trainer):
    options = ("SOLVER.EARLY_STOP_PATIENCE", 2, "SOLVER.AUTO_STEP.ENABLED", False, "SOLVER.WARMUP_ITERS", 4)
    trainer = make_trainer([5.0] + [1.0] * 8, *options)
    trainer.train()
    # The evaluations after updates 4 and 5 are the first two that count.
    assert len(trainer.rates) == 5


def test_a_run_that_forgets_nothing_and_ends_early_leaves_its_best_weights_with_those_before(
    make_trainer, train_cfg, tmp_path
):
    GLIPv2Checkpointer(GLIPv2Trainer.build_model(train_cfg), str(tmp_path)).save("base")
    options = ("MODEL.WEIGHTS", str(tmp_path / "base.pth"), "MODEL.GLIPV2.TUNING.KEEP.ENABLED", True)
    trainer = make_trainer([1.0, 3.0, 2.0, 2.0, 9.0, 9.0], *options, "SOLVER.EARLY_STOP_PATIENCE", 2)
    trainer.train()
    assert len(trainer.evaluated) == 4
    kept = torch.load(Path(train_cfg.OUTPUT_DIR) / "model_kept.pth", weights_only=True)["model"]
    base = torch.load(tmp_path / "base.pth", weights_only=True)["model"]["head.bbox_pred.bias"]
    assert kept["head.bbox_pred.bias"][0] == 2.0 and torch.equal(kept["by_name.base.head.bbox_pred.bias"], base)


def test_the_last_evaluation_can_be_the_best(make_trainer, train_cfg):
    make_trainer([1.0, 2.0, 3.0], "SOLVER.EARLY_STOP_PATIENCE", 2).train()
    # After the loop its counter is one further.
    assert best_bias(train_cfg) == (3, 3.0)


def test_only_every_period_is_looked_at(make_trainer):
    trainer = make_trainer([9.0, 1.0] + [1.0] * 7, "TEST.EVAL_PERIOD", 2, "SOLVER.AUTO_STEP.PATIENCE", 0)
    trainer.train()
    assert trainer.rates == pytest.approx([RATE] * 4 + [RATE / 10] * 2 + [RATE / 100] * 2 + [RATE / 1000])


def test_training_ends_early_and_a_resumed_run_has_nothing_left_to_do(make_trainer, train_cfg):
    values = [1.0, 3.0, 2.0, 2.0, 9.0, 9.0]
    options = ("SOLVER.EARLY_STOP_PATIENCE", 2, "SOLVER.AUTO_STEP.ENABLED", False)
    trainer = make_trainer(values, *options)
    assert trainer.train() is None
    assert trainer.evaluated == [1.0, 2.0, 3.0, 4.0]
    assert best_bias(train_cfg) == (1, 2.0)
    final = torch.load(Path(train_cfg.OUTPUT_DIR) / "model_final.pth", weights_only=True)
    assert final["iteration"] == 3 and final["model"]["head.bbox_pred.bias"][0] == 4.0
    # Without automatic steps the rate follows the schedule of the config, here down at update 3.
    assert trainer.rates == pytest.approx([RATE, RATE, RATE, RATE / 10])
    again = make_trainer(values, *options, resume=True)
    again.train()
    assert again.start_iter == 4 and again.evaluated == [] and again.rates == []


@pytest.mark.parametrize(
    ("start_iter", "values", "best"),
    [
        (4, [1.0, 0.5, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0], (2, 3.0)),
        (5, [1.0, 0.5, 2.0, 1.0, 3.0, 2.5, 2.5, 2.5], (4, 5.0)),
    ],
)
def test_a_resumed_run_takes_the_same_decisions(make_trainer, train_cfg, tmp_path, start_iter, values, best):
    options = ("SOLVER.AUTO_STEP.PATIENCE", 1, "SOLVER.EARLY_STOP_PATIENCE", 5)
    straight = make_trainer(values, *options, "OUTPUT_DIR", str(tmp_path / "straight"))
    straight.train()
    assert len(straight.rates) == 8
    make_trainer(values, *options, "OUTPUT_DIR", str(tmp_path / "cut"), max_iter=5).train()
    # A run that is made longer, or as if it had been killed before the fifth evaluation.
    for name in ("model_final.pth", "model_0000004.pth") if start_iter == 4 else ():
        (tmp_path / "cut" / name).unlink()
    resumed = make_trainer(values, *options, resume=True)
    resumed.train()
    assert resumed.start_iter == start_iter
    assert resumed.rates == straight.rates[start_iter:]
    assert best_bias(train_cfg) == best


def test_the_moving_average_is_what_is_kept(make_trainer, train_cfg):
    trainer = make_trainer([1.0, 2.0, 1.0], "SOLVER.EMA_DECAY", 0.5)
    start = trainer.model.head.bbox_pred.bias[0].item()
    trainer.train()
    # Weights 1 and 2 after the first updates: 0.5 * (0.5 * start + 0.5 * 1) + 0.5 * 2.
    assert best_bias(train_cfg)[1] == pytest.approx(0.25 * start + 1.25)


def test_what_is_tuned_is_kept_alone_as_well(make_trainer, train_cfg):
    make_trainer([1.0, 2.0], "MODEL.GLIPV2.TUNING.MODE", "linear_probe").train()
    folder = Path(train_cfg.OUTPUT_DIR)
    assert (folder / "tuned_best.safetensors").stat().st_size < (folder / "model_best.pth").stat().st_size / 2


def test_the_newest_checkpoints_are_kept(make_trainer, train_cfg):
    make_trainer([1.0, 2.0, 3.0, 4.0], "SOLVER.MAX_CHECKPOINTS", 2).train()
    names = {path.name for path in Path(train_cfg.OUTPUT_DIR).glob("*.pth")}
    assert names == {"model_0000002.pth", "model_0000003.pth", "model_final.pth", "model_best.pth"}


def test_an_unknown_metric_names_those_there_are(make_trainer):
    trainer = make_trainer([1.0, 2.0], "SOLVER.AUTO_STEP.METRIC", "segm/AP")
    with pytest.raises(ValueError, match="SOLVER.AUTO_STEP.METRIC: .*such as bbox/AP, found 'segm/AP'"):
        trainer.train()


@pytest.mark.parametrize("results", [{"bbox": {"AP": 3.0, "AP50": math.nan}}, {"bbox/AP": 3.0, "bbox/AP50": math.nan}])
def test_a_result_of_the_evaluation_is_found_by_task_or_flat_and_is_0_where_nothing_is_found(results):
    assert (result_of(results, "bbox/AP"), result_of(results, "bbox/AP50")) == (3.0, 0.0)
    with pytest.raises(InputError, match="^A.KEY: .*such as bbox/AP, bbox/AP50, found 'segm/AP'$"):
        result_of({"total_loss": 1.0, "data/skipped": 0.0, **results}, "segm/AP", "A.KEY")


def test_nothing_is_watched_unless_it_is_asked_for(train_cfg):
    assert build_plateau_hook(train_cfg, None, None) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("TEST.EVAL_PERIOD", 0),
        ("DATASETS.TEST", ()),
        ("SOLVER.AUTO_STEP.PATIENCE", -1),
        ("SOLVER.AUTO_STEP.FACTOR", 1.0),
        ("SOLVER.AUTO_STEP.FACTOR", 0.0),
        ("SOLVER.AUTO_STEP.MIN_LR", -0.1),
        ("SOLVER.EARLY_STOP_PATIENCE", -1),
    ],
)
def test_values_that_cannot_be_are_named(train_cfg, key, value):
    train_cfg.merge_from_list(["SOLVER.AUTO_STEP.ENABLED", True, "TEST.EVAL_PERIOD", 1, key, value])
    with pytest.raises(ValueError, match=f"{key}: expected"):
        build_plateau_hook(train_cfg, None, None)


def test_the_best_weights_by_some_metrics_are_kept_without_automatic_steps(make_trainer, train_cfg, monkeypatch):
    train_cfg.merge_from_list(["TEST.BEST_METRICS", ("lvis/bbox_fixed/AP", "flickr/any_box/R@1")])
    # By the number of updates.
    results = {1: (1.0, 9.0), 2: (3.0, float("nan")), 3: (2.0, 1.0), 4: (2.5, 9.5)}

    def run(max_iter, resume=False):
        trainer = make_trainer([0.0] * 4, "SOLVER.AUTO_STEP.ENABLED", False, resume=resume, max_iter=max_iter)

        def test(cfg, model):
            found, phrases = results[int(trainer.model.head.bbox_pred.bias[0])]
            return {"lvis": {"bbox_fixed": {"AP": found}}, "flickr": {"any_box": {"R@1": phrases}}}

        monkeypatch.setattr(trainer, "test", test)
        trainer.train()

    def kept(name):
        return torch.load(Path(train_cfg.OUTPUT_DIR) / f"model_best_{name}.pth", weights_only=True)["iteration"]

    run(2)
    assert (kept("lvis_bbox_fixed_AP"), kept("flickr_any_box_R_1")) == (2, 0)
    # A run that is made longer knows its best values, also that of its last evaluation: the one after update 2.
    run(4, resume=True)
    assert (kept("lvis_bbox_fixed_AP"), kept("flickr_any_box_R_1")) == (1, 4)
    assert not (Path(train_cfg.OUTPUT_DIR) / "model_best.pth").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["TEST.EVAL_PERIOD", 0], "TEST.BEST_METRICS: expected a period of at least 1 and a dataset to watch"),
        (["DATASETS.TEST", ()], r"found TEST.EVAL_PERIOD 1 and DATASETS.TEST \(\)"),
    ],
)
def test_best_weights_need_an_evaluation(train_cfg, options, message):
    train_cfg.merge_from_list(["TEST.BEST_METRICS", ("bbox/AP",), "TEST.EVAL_PERIOD", 1, *options])
    with pytest.raises(InputError, match=message):
        GLIPv2Trainer(train_cfg)
