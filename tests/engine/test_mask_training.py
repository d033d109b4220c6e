"""The second stage through the trainer: the mask head learns, everything else stays bit for bit."""

import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import make_tiny_cfg
from detectron2.data import MetadataCatalog

from glipv2_d2 import GLIPv2Predictor, GLIPv2Trainer, register_coco_grounding
from glipv2_d2.engine.launch import launch_run
from glipv2_d2.program.config_arguments import parse_train_arguments
from glipv2_d2.tensor_files import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def add_masks(dataset):
    """Give the boxes of the drawn images their masks: all but one a polygon, which is the box itself."""
    path = Path(MetadataCatalog.get(dataset).json_file)
    content = json.loads(path.read_text())
    for annotation in content["annotations"][:-1]:
        x, y, width, height = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    path.write_text(json.dumps(content))


@pytest.fixture
def mask_cfg(train_cfg):
    add_masks(train_cfg.DATASETS.TRAIN[0])
    train_cfg.merge_from_list(["MODEL.MASK_ON", True, "MODEL.GLIPV2.MASK_HEAD.CONV_DIM", 16])
    return train_cfg


def run(cfg, *options):
    cfg = cfg.clone()
    cfg.merge_from_list(list(options))
    trainer = GLIPv2Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer


def load(folder):
    return torch.load(Path(folder) / "model_final.pth", weights_only=True)


def test_second_stage_leaves_every_other_weight_bit_identical(mask_cfg, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    run(mask_cfg, "MODEL.MASK_ON", False, "OUTPUT_DIR", str(first), "DATASETS.TEST", ())
    trainer = run(
        mask_cfg,
        *("MODEL.GLIPV2.TUNING.MODE", "mask_head", "MODEL.WEIGHTS", str(first / "model_final.pth")),
        *("OUTPUT_DIR", str(second), "SOLVER.BASE_LR", 0.01, "SOLVER.EMA_DECAY", 0.9),
    )
    before, after = load(first)["model"], load(second)
    assert set(after["model"]) > set(before)
    assert all(torch.equal(tensor, after["model"][name]) for name, tensor in before.items())
    added = set(after["model"]) - set(before)
    assert all(name.startswith("mask_head.") for name in added)
    # The optimizer knows the head's parameters alone.
    state = after["trainer"]["_trainer"]["optimizer"]
    num_parameters = len(list(trainer.model.mask_head.parameters()))
    assert len(state["state"]) == sum(len(group["params"]) for group in state["param_groups"]) == num_parameters
    results = trainer._last_eval_results
    assert {"bbox", "segm"} <= set(results)


def test_second_stage_has_no_loss_but_that_of_the_masks(mask_cfg):
    trainer = run(mask_cfg, "MODEL.GLIPV2.TUNING.MODE", "mask_head", "DATASETS.TEST", ())
    histories = trainer.storage.histories()
    assert {name for name in histories if name.startswith("loss_")} == {"loss_mask"}
    values = [value for value, _ in histories["loss_mask"].values()]
    assert len(values) == 4 and max(values) > 0
    assert values == [value for value, _ in histories["total_loss"].values()]


def test_full_fine_tuning_moves_detector_and_mask_head(mask_cfg):
    before = {name: tensor.clone() for name, tensor in GLIPv2Trainer(mask_cfg).model.state_dict().items()}
    torch.manual_seed(0)
    trainer = run(mask_cfg, "DATASETS.TEST", (), "SOLVER.BASE_LR", 0.01, "SOLVER.EMA_DECAY", 0.0)
    after = trainer.model.state_dict()
    for name in ("head.bbox_pred.weight", "mask_head.text_projection.weight"):
        assert not torch.equal(before[name], after[name]), name
    assert all(tensor.isfinite().all() for tensor in after.values())


def test_predictor_returns_masks_and_the_region_that_a_phrase_refers_to(mask_cfg):
    run(mask_cfg, "DATASETS.TEST", ())
    mask_cfg.merge_from_list(["MODEL.WEIGHTS", str(Path(mask_cfg.OUTPUT_DIR) / "model_final.pth")])
    mask_cfg.merge_from_list(["MODEL.GLIPV2.TEST.SCORE_THRESH", 0.0, "MODEL.GLIPV2.TEST.REFERRING_THRESH", 0.0])
    predictor = GLIPv2Predictor(mask_cfg)
    image = torch.zeros(40, 60, 3, dtype=torch.uint8).numpy()
    found = predictor(image, ["red box", "blue box"])["instances"]
    assert len(found) > 0 and found.pred_masks.shape == (len(found), 40, 60)
    referred = predictor.refer(image, "the red box")
    assert referred["phrases"] == ["the red box"]
    # With a threshold of 0 it is the union of all masks.
    assert (referred["mask"] == referred["instances"].pred_masks.any(dim=0).numpy()).all()
    for phrase in ("", " ", None):
        with pytest.raises(ValueError, match="phrase: expected"):
            predictor.refer(image, phrase)


def test_predictor_without_a_mask_head_cannot_refer(mask_cfg):
    mask_cfg.MODEL.MASK_ON = False
    with pytest.raises(ValueError, match="MODEL.MASK_ON True"):
        GLIPv2Predictor(mask_cfg).refer(torch.zeros(40, 60, 3, dtype=torch.uint8).numpy(), "a box")


def train_rank(config: str, dataset: str, _) -> None:
    """What each of several processes does."""
    register_coco_grounding("drawn", Path(dataset) / "annotations.json", dataset)
    cfg = make_tiny_cfg()
    cfg.merge_from_file(config)
    torch.manual_seed(0)
    trainer = GLIPv2Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["mask_head", "full"])
def test_two_processes_train_masks_although_some_images_have_none(mask_cfg, tmp_path, monkeypatch, tuning):
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    mask_cfg.merge_from_list(["MODEL.GLIPV2.TUNING.MODE", tuning, "DATASETS.TRAIN", ("drawn",), "DATASETS.TEST", ()])
    mask_cfg.merge_from_list(["SOLVER.MAX_ITER", 6, "SOLVER.STEPS", (), "OUTPUT_DIR", str(tmp_path / "two")])
    config = tmp_path / "config.yaml"
    config.write_text(mask_cfg.dump())
    run = partial(train_rank, str(config), str(tmp_path / "drawn"))
    launch_run(run, parse_train_arguments(["--num-gpus", "2", "--dist-url", "auto"]))
    assert load(tmp_path / "two")["iteration"] == 5


def test_masks_of_a_head_without_weights_are_an_error_and_no_result(mask_cfg, tmp_path):
    run(mask_cfg, "MODEL.MASK_ON", False, "DATASETS.TEST", (), "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", ())
    mask_cfg.MODEL.WEIGHTS = str(Path(mask_cfg.OUTPUT_DIR) / "model_final.pth")
    with pytest.raises(CheckpointError, match="expected weights for mask_head"):
        GLIPv2Predictor(mask_cfg)
    mask_cfg.MODEL.MASK_ON = False
    GLIPv2Predictor(mask_cfg)


def test_fixed_parts_without_weights_are_warned_of(mask_cfg, caplog):
    mask_cfg.merge_from_list(["MODEL.GLIPV2.TUNING.MODE", "mask_head", "DATASETS.TEST", ()])
    with caplog.at_level("WARNING", "glipv2_d2"):
        GLIPv2Trainer(mask_cfg)
    assert any("stay random" in message for message in caplog.messages)
