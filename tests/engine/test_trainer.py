import logging
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_one_line, make_tiny_cfg
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from tar_shards import cut_tar, write_shards
from training_runs import assert_same, load, train, without_evaluation

from glipv2_d2 import GLIPv2Trainer, register_coco_grounding
from glipv2_d2.data import register_shards
from glipv2_d2.engine.launch import launch_run
from glipv2_d2.engine.train_loop import amp_dtype
from glipv2_d2.errors import InputError
from glipv2_d2.program.config_arguments import parse_train_arguments

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def check_resume(cfg, folder, half):
    options = ("SOLVER.MAX_ITER", 2 * half, "SOLVER.CHECKPOINT_PERIOD", half, "SOLVER.ACCUMULATION_STEPS", 2)
    torch.manual_seed(0)
    train(without_evaluation(cfg, folder / "straight", *options))
    # The same run is cut off after its first checkpoint.
    torch.manual_seed(0)
    cut = GLIPv2Trainer(without_evaluation(cfg, folder / "cut", *options))
    cut.max_iter = half
    cut.train()
    (folder / "cut" / "model_final.pth").unlink()
    torch.manual_seed(1)
    resumed = train(without_evaluation(cfg, folder / "cut", *options), resume=True)
    assert resumed.start_iter == half
    straight = load(folder / "straight" / "model_final.pth")
    assert_same(straight, load(folder / "cut" / "model_final.pth"))
    return straight


@pytest.mark.parametrize("half", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_resumed_training_equals_the_uninterrupted_one_bit_for_bit(train_cfg, tmp_path, half):
    checkpoint = check_resume(train_cfg, tmp_path, half)
    assert checkpoint["iteration"] == 2 * half - 1


def test_run_trains_evaluates_and_writes_its_checkpoints(train_cfg):
    before = GLIPv2Trainer(train_cfg).model.state_dict()["head.bbox_pred.weight"].clone()
    trainer = train(train_cfg)
    output = Path(train_cfg.OUTPUT_DIR)
    assert {"model_0000001.pth", "model_0000003.pth", "model_final.pth"} <= {file.name for file in output.iterdir()}
    assert (output / "inference" / train_cfg.DATASETS.TEST[0] / "coco_instances_results.json").is_file()
    assert "bbox" in trainer._last_eval_results
    weights = load(output / "model_final.pth")["model"]
    assert not torch.equal(weights["head.bbox_pred.weight"], before)
    assert all(tensor.isfinite().all() for tensor in weights.values())


class WeightRecorder(DatasetEvaluator):
    """Takes the weights that the evaluated model has."""

    def __init__(self, model):
        self.model = model

    def evaluate(self):
        return {"weight": self.model.state_dict()["head.bbox_pred.weight"].sum().item()}


def test_evaluation_and_checkpoints_hold_the_moving_average(train_cfg, monkeypatch):
    train_cfg.merge_from_list(["SOLVER.EMA_DECAY", 0.5, "SOLVER.MAX_ITER", 2, "SOLVER.BASE_LR", 0.01])
    trainer = GLIPv2Trainer(train_cfg)
    monkeypatch.setattr(GLIPv2Trainer, "build_evaluator", lambda cfg, name: WeightRecorder(trainer.model))
    parameter = trainer.model.head.bbox_pred.weight
    history = [parameter.detach().clone()]
    step = trainer.run_step

    def run_step():
        step()
        history.append(parameter.detach().clone())

    trainer.run_step = run_step
    trainer.train()
    average = 0.5 * (0.5 * history[0] + 0.5 * history[1]) + 0.5 * history[2]
    saved = load(Path(train_cfg.OUTPUT_DIR) / "model_final.pth")["model"]["head.bbox_pred.weight"]
    assert torch.allclose(saved, average, atol=1e-7) and not torch.allclose(saved, history[2], atol=1e-5)
    assert trainer._last_eval_results["weight"] == pytest.approx(average.sum().item(), abs=1e-5)
    assert torch.equal(parameter, history[2])


def test_moving_average_starts_from_loaded_weights(train_cfg, tmp_path):
    weights = {name: torch.full_like(t, 0.25) for name, t in GLIPv2Trainer(train_cfg).model.state_dict().items()}
    torch.save({"model": weights}, tmp_path / "start.pth")
    # No update changes anything at a learning rate of 0, so the average has to stay what was loaded.
    train_cfg.merge_from_list(["MODEL.WEIGHTS", str(tmp_path / "start.pth"), "SOLVER.MAX_ITER", 1])
    train_cfg.merge_from_list(["SOLVER.BASE_LR", 0.0, "SOLVER.EMA_DECAY", 0.9, "DATASETS.TEST", ()])
    train(train_cfg)
    saved = load(Path(train_cfg.OUTPUT_DIR) / "model_final.pth")["model"]
    assert torch.equal(saved["head.bbox_pred.weight"], weights["head.bbox_pred.weight"])


def test_bfloat16_run_is_finite(train_cfg):
    train_cfg.merge_from_list(["SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "bfloat16", "DATASETS.TEST", ()])
    trainer = train(train_cfg)
    assert trainer._trainer.nonfinite_steps == 0
    assert all(tensor.isfinite().all() for tensor in trainer.model.state_dict().values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_run_on_a_gpu_learns_with_finite_weights(train_cfg, dtype):
    train_cfg.merge_from_list(["MODEL.DEVICE", "cuda", "SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", dtype])
    train_cfg.merge_from_list(["SOLVER.MAX_ITER", 30, "SOLVER.STEPS", (), "SOLVER.BASE_LR", 0.001])
    losses = []
    trainer = GLIPv2Trainer(train_cfg)
    write = trainer._trainer._write_metrics
    trainer._trainer._write_metrics = lambda loss, *rest: (losses.append(sum(loss.values()).item()), write(loss, *rest))
    trainer.train()
    assert all(tensor.isfinite().all() for tensor in trainer.model.state_dict().values())
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_nonfinite_loss_of_the_model_leaves_weights_finite_and_stops(train_cfg, monkeypatch):
    train_cfg.merge_from_list(["SOLVER.MAX_NONFINITE_STEPS", 2, "DATASETS.TEST", ()])
    trainer = GLIPv2Trainer(train_cfg)
    trainer.model.pixel_mean.fill_(float("nan"))
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    with pytest.raises(FloatingPointError, match="SOLVER.MAX_NONFINITE_STEPS"):
        trainer.train()
    assert trainer.iter == 1
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_too_many_unreadable_images_stop_the_run(train_cfg, monkeypatch, caplog):
    monkeypatch.setattr("glipv2_d2.engine.data_hooks.MIN_BAD_FILES", 1)
    train_cfg.merge_from_list(["DATASETS.TEST", (), "SOLVER.MAX_ITER", 20])
    broken = Path(MetadataCatalog.get(train_cfg.DATASETS.TRAIN[0]).image_root) / "0.png"
    broken.write_bytes(broken.read_bytes()[:40])
    trainer = GLIPv2Trainer(train_cfg)
    # detectron2's logger does not hand records on.
    with caplog.at_level(logging.WARNING, "glipv2_d2"), pytest.raises(ValueError, match="MAX_SKIPPED_SHARE.*0.png"):
        trainer.train()
    assert trainer.iter < 19


def test_one_unreadable_image_does_not_stop_a_run(train_cfg, caplog):
    train_cfg.merge_from_list(["DATASETS.TEST", (), "SOLVER.MAX_ITER", 6, "DATALOADER.MAX_SKIPPED_SHARE", 0.0])
    broken = Path(MetadataCatalog.get(train_cfg.DATASETS.TRAIN[0]).image_root) / "0.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        GLIPv2Trainer(train_cfg).train()
    assert any(message.startswith("1 unreadable image, skipped") for message in caplog.messages)


def test_learning_rate_follows_the_schedule(train_cfg):
    train_cfg.merge_from_list(["DATASETS.TEST", (), "SOLVER.BASE_LR", 0.01, "SOLVER.BACKBONE_MULTIPLIER", 0.5])
    trainer = GLIPv2Trainer(train_cfg)
    rates = []
    step = trainer.run_step
    trainer.run_step = lambda: (rates.append([g["lr"] for g in trainer.optimizer.param_groups]), step())
    trainer.train()
    # Warm-up from 0.001 over two steps, then the full rate, and a tenth of it from step 3 on.
    factors = [0.001, 0.5005, 1.0, 0.1]
    highest = np.array(rates).max(axis=1)
    assert highest == pytest.approx(0.02 * np.array(factors), rel=1e-3)


def test_unknown_amp_type_names_the_key_unless_amp_is_off(tiny_cfg):
    tiny_cfg.merge_from_list(["SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "int8"])
    with pytest.raises(ValueError, match="SOLVER.AMP.DTYPE.*'int8'"):
        amp_dtype(tiny_cfg)
    tiny_cfg.SOLVER.AMP.ENABLED = False
    assert amp_dtype(tiny_cfg) is None


def test_reference_world_size_scales_the_run(train_cfg):
    # One process where the config was made for two: half the batch and rate, twice the length.
    train_cfg.merge_from_list(["SOLVER.REFERENCE_WORLD_SIZE", 2])
    trainer = GLIPv2Trainer(train_cfg)
    assert (trainer.max_iter, trainer.cfg.SOLVER.IMS_PER_BATCH) == (8, 1)


def train_rank(config: str, dataset: str, shards: str, resume: bool, _) -> None:
    """What each of several processes does: a run that knows the datasets by the paths of their files."""
    register_coco_grounding("drawn", Path(dataset) / "annotations.json", dataset)
    register_shards("shards", shards)
    cfg = make_tiny_cfg()
    cfg.merge_from_file(config)
    torch.manual_seed(0)
    trainer = GLIPv2Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    if not resume and cfg.OUTPUT_DIR.endswith("cut"):
        trainer.max_iter = 3
    trainer.train()


@pytest.mark.slow
def test_two_ranks_with_shards_go_on_bit_for_bit(train_cfg, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "shards").mkdir()
    shards = write_shards(tmp_path / "shards", [5, 4, 3])
    train_cfg.merge_from_list(["DATASETS.TRAIN", ("drawn", "shards"), "DATASETS.TRAIN_RATIOS", (1, 3)])
    train_cfg.merge_from_list(["DATALOADER.SHUFFLE_BUFFER", 2, "DATALOADER.NUM_WORKERS", 1, "SOLVER.MAX_ITER", 6])
    train_cfg.merge_from_list(["SOLVER.CHECKPOINT_PERIOD", 3, "SOLVER.STEPS", ()])
    for name, resume in (("straight", False), ("cut", False), ("cut", True)):
        config = tmp_path / f"{name}.yaml"
        config.write_text(without_evaluation(train_cfg, tmp_path / name).dump())
        if resume:
            (tmp_path / "cut" / "model_final.pth").unlink()
        run = partial(train_rank, str(config), str(tmp_path / "drawn"), shards, resume)
        launch_run(run, parse_train_arguments(["--num-gpus", "2", "--dist-url", "auto"]))
    straight, cut = (load(tmp_path / name / "model_final.pth") for name in ("straight", "cut"))
    assert_same(straight, cut)
    assert len(cut["trainer"]["hooks"]["DataStateHook"]["positions"]) == 2


@pytest.fixture
def sharded_cfg(train_cfg, tmp_path):
    """The run of ``train_cfg`` on drawn images and two shards of captions, one of them cut off."""
    name = f"shards_{tmp_path.name}"
    (tmp_path / "shards").mkdir()
    register_shards(name, write_shards(tmp_path / "shards", [5, 4]))
    cut_tar(tmp_path / "shards" / "caps-001.tar", "0008.png", 10)
    train_cfg.merge_from_list(["DATASETS.TRAIN", (*train_cfg.DATASETS.TRAIN, name), "DATASETS.TRAIN_RATIOS", (1, 2)])
    train_cfg.merge_from_list(["DATALOADER.SHUFFLE_BUFFER", 3])
    return train_cfg


@pytest.mark.parametrize(("num_workers", "half"), [(0, 3), (2, 3), pytest.param(2, 10, marks=pytest.mark.slow)])
def test_resumed_training_with_shards_equals_the_uninterrupted_one_bit_for_bit(
    sharded_cfg, tmp_path, num_workers, half
):
    sharded_cfg.DATALOADER.NUM_WORKERS = num_workers
    checkpoint = check_resume(sharded_cfg, tmp_path, half)
    state = checkpoint["trainer"]["hooks"]["DataStateHook"]
    assert state["seed"] == 3 and len(state["positions"]) == max(1, num_workers)


def test_a_drawn_seed_of_the_data_is_restored(train_cfg):
    train_cfg.merge_from_list(["SEED", -1, "DATASETS.TEST", (), "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", ()])
    first = train(train_cfg)
    train_cfg.merge_from_list(["SOLVER.MAX_ITER", 3])
    second = train(train_cfg, resume=True)
    assert first._data_state.state_dict()["seed"] == second._data_state.state_dict()["seed"]
    assert load(Path(train_cfg.OUTPUT_DIR) / "model_final.pth")["iteration"] == 2


def test_a_changed_layout_of_the_data_is_named(sharded_cfg, caplog):
    sharded_cfg.merge_from_list(["DATASETS.TEST", (), "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", ()])
    train(sharded_cfg)
    sharded_cfg.merge_from_list(["SOLVER.MAX_ITER", 3, "DATASETS.TRAIN_RATIOS", (1, 1)])
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        train(sharded_cfg, resume=True)
    (message,) = [message for message in caplog.messages if "another order" in message]
    assert message.endswith("DATASETS.TRAIN_RATIOS was [1, 2], is [1, 1]")


def named_keys(caplog) -> list[str]:
    return [message for message in caplog.messages if "solver keys" in message]


def test_solver_keys_that_are_not_those_of_the_checkpoint_are_named(train_cfg, caplog):
    train_cfg.merge_from_list(["DATASETS.TEST", (), "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", ()])
    train(train_cfg)
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        GLIPv2Trainer(train_cfg).resume_or_load(resume=True)
    assert not named_keys(caplog)
    train_cfg.merge_from_list(["SOLVER.MAX_ITER", 3, "SOLVER.BASE_LR", 0.5, "SOLVER.AMP.DTYPE", "bfloat16"])
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        trainer = GLIPv2Trainer(train_cfg)
        trainer.resume_or_load(resume=True)
    (message,) = named_keys(caplog)
    assert message.startswith("the run goes on with other solver keys than the checkpoint's: ")
    assert sorted(message.partition(": ")[2].split("; ")) == [
        "SOLVER.AMP.DTYPE was float16, is bfloat16",
        "SOLVER.BASE_LR was 0.0001, is 0.5 (without effect: the optimizer keeps the checkpoint's)",
        "SOLVER.MAX_ITER was 2, is 3",
    ]
    # The rates of the checkpoint stay.
    assert max(group["initial_lr"] for group in trainer.optimizer.param_groups) < 1e-3


def test_other_groups_of_parameters_are_refused_in_one_line(train_cfg):
    train_cfg.merge_from_list(["DATASETS.TEST", (), "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", ()])
    train(train_cfg)
    train_cfg.merge_from_list(["SOLVER.MAX_ITER", 3, "SOLVER.BACKBONE_MULTIPLIER", 0.5])
    with pytest.raises(InputError) as caught:
        GLIPv2Trainer(train_cfg).resume_or_load(resume=True)
    assert_one_line(caught, "SOLVER: expected the checkpoint's groups of parameters")


def test_a_damaged_shard_is_named_once_and_does_not_stop_the_run(sharded_cfg, caplog):
    sharded_cfg.merge_from_list(["DATASETS.TEST", (), "SOLVER.MAX_ITER", 12, "DATALOADER.MAX_SKIPPED_SHARE", 0.0])
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        train(sharded_cfg)
    named = [message for message in caplog.messages if message.startswith("left out") and "caps-001.tar" in message]
    assert len(named) == 1
    assert any(message.startswith("1 damaged shard, read up to the damage") for message in caplog.messages)
