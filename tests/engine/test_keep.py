"""A tuning that forgets nothing: through the trainer, across a kill, and what is left at its end."""

from pathlib import Path

import numpy as np
import pytest
import torch
from training_runs import assert_same, load, train

from glipv2_d2 import GLIPv2Predictor, GLIPv2Trainer
from glipv2_d2.checkpoint.checkpointer import GLIPv2Checkpointer
from glipv2_d2.checkpoint.resume import BASE_WEIGHTS, find_result_file
from glipv2_d2.engine.share_choice import Comparison
from glipv2_d2.errors import InputError
from glipv2_d2.modeling.by_name import unpack_names
from glipv2_d2.prompts.tokenizer import PromptTokenizer
from glipv2_d2.tensor_files import CheckpointError, read_tensors, write_tensors

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

KEEP = "MODEL.GLIPV2.TUNING.KEEP"


class Killed(BaseException):
    """What ends a process at once."""


@pytest.fixture
def keep_cfg(train_cfg, tmp_path):
    """Two updates from weights in a file, each with its checkpoint, that keep all other names on every image."""
    model = GLIPv2Trainer.build_model(train_cfg)
    GLIPv2Checkpointer(model, str(tmp_path)).save("base")
    train_cfg.merge_from_list(["MODEL.WEIGHTS", str(tmp_path / "base.pth"), "SOLVER.CHECKPOINT_PERIOD", 1])
    train_cfg.merge_from_list(
        ["SOLVER.MAX_ITER", 2, "SOLVER.STEPS", (), "SOLVER.WARMUP_ITERS", 0, "SOLVER.BASE_LR", 0.01]
    )
    train_cfg.merge_from_list([f"{KEEP}.ENABLED", True, f"{KEEP}.IMAGES", 0.7, "SOLVER.EMA_DECAY", 0.5])
    train_cfg.merge_from_list([f"{KEEP}.BY_NAME", False])
    return train_cfg


@pytest.fixture
def by_name_cfg(keep_cfg):
    """The same with both sets of weights in one model."""
    keep_cfg.merge_from_list([f"{KEEP}.BY_NAME", True, "MODEL.GLIPV2.TEST.SCORE_THRESH", 0.0])
    keep_cfg.merge_from_list(["TEST.DETECTIONS_PER_IMAGE", 0, "DATASETS.TEST", ()])
    return keep_cfg


def assert_answers_by_name(cfg, both, base):
    """Own names have the results of the tuned weights alone, others those of the base."""
    own, others = ["red box", "Blue_box"], ["cat", "traffic light"]
    image = np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)
    found = both(image, [own[0], others[0], own[1], others[1]])["instances"]
    tuned = str(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    for names, rows, weights in ((own, [0, 2], tuned), (others, [1, 3], base)):
        alone = GLIPv2Predictor(with_options(cfg, cfg.OUTPUT_DIR, "MODEL.WEIGHTS", weights))(image, names)["instances"]
        part = found[torch.isin(found.pred_classes, torch.tensor(rows))]
        assert len(part) == len(alone) > 0 and torch.equal(part.scores, alone.scores)
        assert torch.equal(part.pred_boxes.tensor, alone.pred_boxes.tensor)
        assert torch.equal(part.pred_classes, torch.tensor(rows)[alone.pred_classes])


def with_options(cfg, folder, *options):
    cfg = cfg.clone()
    cfg.merge_from_list(["OUTPUT_DIR", str(folder), *options])
    return cfg


def kill_at(monkeypatch, update):
    whole = GLIPv2Trainer.before_step

    def before_step(self):
        if self.iter == update:
            raise Killed
        whole(self)

    monkeypatch.setattr(GLIPv2Trainer, "before_step", before_step)


def test_a_killed_run_goes_on_and_ends_bit_for_bit_alike(keep_cfg, tmp_path, monkeypatch):
    whole, cut = (with_options(keep_cfg, tmp_path / name) for name in ("whole", "cut"))
    trainer = train(whole)
    with monkeypatch.context() as patches:
        kill_at(patches, 1)
        with pytest.raises(Killed):
            train(cut)
    assert not (tmp_path / "cut" / "model_kept.pth").exists()
    # The base is that of the run, wherever the file that it began with has gone.
    Path(keep_cfg.MODEL.WEIGHTS).unlink()
    train(cut, resume=True)
    for name in ("model_final.pth", "model_kept.pth"):
        first, second = (load(tmp_path / folder / name) for folder in ("whole", "cut"))
        assert_same(first["model"], second["model"])
    assert first["share"] == second["share"]
    assert find_result_file(str(tmp_path / "whole")) == str(tmp_path / "whole" / "model_kept.pth")
    # It is between the base and the weights of the training.
    base, final = read_tensors(tmp_path / "whole" / BASE_WEIGHTS)[0], load(tmp_path / "whole" / "model_final.pth")
    for name, tensor in first["model"].items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, torch.lerp(base[name], final["model"][name], first["share"]))
    # The base is no part of a checkpoint, nor of the model.
    assert final["model"].keys() == base.keys()
    assert final["trainer"]["hooks"]["KeepHook"].keys() == {"base_sha256"}
    assert {"loss_keep_names", "loss_keep_boxes"} <= trainer.storage.latest().keys()
    # A run that was killed in the choice at its end makes it anew.
    (tmp_path / "cut" / "model_kept.pth").unlink()
    train(cut, resume=True)
    assert_same(load(tmp_path / "cut" / "model_kept.pth")["model"], first["model"])
    assert not (tmp_path / "cut" / "model_kept_before.pth").exists()


def test_weights_of_the_first_end_of_a_run_that_is_made_longer_are_put_aside(by_name_cfg, monkeypatch):
    by_name_cfg.merge_from_list(["SOLVER.MAX_ITER", 1])
    train(by_name_cfg)
    kept = find_result_file(by_name_cfg.OUTPUT_DIR)
    assert kept.endswith("model_kept.pth")
    longer = with_options(by_name_cfg, by_name_cfg.OUTPUT_DIR, "SOLVER.MAX_ITER", 3)
    with monkeypatch.context() as patches:
        kill_at(patches, 2)
        with pytest.raises(Killed):
            train(longer, resume=True)
    # What is used until the new end is the newest checkpoint, not what is older than it.
    assert find_result_file(by_name_cfg.OUTPUT_DIR).endswith("model_0000001.pth")
    assert load(kept.replace("kept", "kept_before"))["iteration"] == 1
    train(longer, resume=True)
    assert find_result_file(by_name_cfg.OUTPUT_DIR) == kept and load(kept)["iteration"] == 3


def test_the_base_of_a_run_is_checked_when_it_goes_on(keep_cfg, tmp_path):
    keep_cfg.merge_from_list(["SOLVER.MAX_ITER", 1, f"{KEEP}.LEAST_OWN", 0.0])
    train(keep_cfg)
    assert not (Path(keep_cfg.OUTPUT_DIR) / "model_kept.pth").exists()
    file = Path(keep_cfg.OUTPUT_DIR) / BASE_WEIGHTS
    tensors = read_tensors(file)[0]
    write_tensors(file, tensors | {"head.bias0": tensors["head.bias0"] + 1})
    keep_cfg.merge_from_list(["SOLVER.MAX_ITER", 2])
    with pytest.raises(CheckpointError, match="expected the weights that the run began with"):
        train(keep_cfg, resume=True)
    plain = with_options(keep_cfg, tmp_path / "plain", f"{KEEP}.ENABLED", False, "SOLVER.MAX_ITER", 1)
    train(plain)
    plain.merge_from_list([f"{KEEP}.ENABLED", True, "SOLVER.MAX_ITER", 2])
    with pytest.raises(InputError, match="expected False for a run that began without"):
        train(plain, resume=True)


def test_a_run_ends_with_both_sets_of_weights_that_answer_by_name_from_everywhere(by_name_cfg, tmp_path, monkeypatch):
    whole, cut = (with_options(by_name_cfg, tmp_path / name) for name in ("whole", "cut"))
    train(whole)
    with monkeypatch.context() as patches:
        kill_at(patches, 1)
        with pytest.raises(Killed):
            train(cut)
    train(cut, resume=True)
    kept, again = (load(tmp_path / folder / "model_kept.pth")["model"] for folder in ("whole", "cut"))
    assert_same(kept, again)
    final, base = load(tmp_path / "whole" / "model_final.pth")["model"], load(by_name_cfg.MODEL.WEIGHTS)["model"]
    assert {name: one for name, one in kept.items() if not name.startswith("by_name")}.keys() == final.keys()
    names = ["red box", "green box", "blue box"]
    tokens = map(PromptTokenizer.from_config(by_name_cfg).token_name, names)
    assert unpack_names(kept["by_name.own_names"]) == [*names, *tokens]
    differing = {name for name, one in base.items() if not torch.equal(one, final[name])}
    assert {name for name in kept if name.startswith("by_name.base.")} == {f"by_name.base.{one}" for one in differing}
    # Nothing but the two sets of weights costs time: the training is that without KEEP.
    plain = with_options(by_name_cfg, tmp_path / "plain", f"{KEEP}.ENABLED", False)
    train(plain)
    assert_same(load(tmp_path / "plain" / "model_final.pth")["model"], final)
    file = find_result_file(str(tmp_path / "whole"))
    both = GLIPv2Predictor(with_options(whole, tmp_path / "whole", "MODEL.WEIGHTS", file))
    assert_answers_by_name(whole, both, by_name_cfg.MODEL.WEIGHTS)
    both.save_pretrained(tmp_path / "folder")
    assert "| weights | two sets: the tuned names" in (tmp_path / "folder" / "README.md").read_text()
    assert_answers_by_name(whole, GLIPv2Predictor.from_pretrained(tmp_path / "folder"), by_name_cfg.MODEL.WEIGHTS)
    # It is no start of a training, nor is that of a folder, beside which lie no others.
    message = "expected one set of weights to train from .*; in the folder of its training model_best.pth"
    for path in (file, str(tmp_path / "folder" / "model.safetensors")):
        with pytest.raises(CheckpointError, match=message):
            train(with_options(plain, tmp_path / "more", "MODEL.WEIGHTS", path))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lora", "linear_probe", "text_encoder"])
def test_every_mode_answers_by_name(by_name_cfg, mode):
    by_name_cfg.merge_from_list(["MODEL.GLIPV2.TUNING.MODE", mode, "SOLVER.BASE_LR", 0.1])
    train(by_name_cfg)
    kept = str(Path(by_name_cfg.OUTPUT_DIR) / "model_kept.pth")
    # The base of low-rank updates is the model without them.
    base = {name for name in load(kept)["model"] if name.startswith("by_name.base.")}
    parts = {name.split(".")[2] for name in base}
    assert parts == {"lora": set(), "linear_probe": {"head"}, "text_encoder": {"text_encoder"}}[mode]
    both = GLIPv2Predictor(with_options(by_name_cfg, by_name_cfg.OUTPUT_DIR, "MODEL.WEIGHTS", kept))
    plain = with_options(by_name_cfg, by_name_cfg.OUTPUT_DIR, "MODEL.WEIGHTS", by_name_cfg.MODEL.WEIGHTS)
    if mode == "lora":
        plain.MODEL.GLIPV2.TUNING.MODE = "full"
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    expected, found = (one(image, ["cat"])["instances"] for one in (GLIPv2Predictor(plain), both))
    assert torch.equal(expected.scores, found.scores) and len(found)


@pytest.mark.slow
def test_low_rank_updates_are_kept_small_in_their_own_file(keep_cfg, tmp_path):
    keep_cfg.merge_from_list(["MODEL.GLIPV2.TUNING.MODE", "lora", "MODEL.GLIPV2.TUNING.LORA.RANK", 2])
    keep_cfg.merge_from_list(["SOLVER.MAX_ITER", 2, "SOLVER.EMA_DECAY", 0.0])
    train(keep_cfg)
    output = Path(keep_cfg.OUTPUT_DIR)
    kept, final = load(output / "model_kept.pth"), load(output / "model_final.pth")["model"]
    name = "fusion_tower.blocks.0.fusion.attention.visual_proj.lora.up"
    assert final[name].any() and torch.equal(kept["model"][name], final[name] * kept["share"])
    assert torch.equal(read_tensors(output / "tuned_kept.safetensors")[0][name], kept["model"][name])
    assert not any("lora" in name for name in read_tensors(output / BASE_WEIGHTS)[0])


@pytest.mark.slow
def test_a_new_run_in_a_folder_leaves_no_kept_weights_of_the_last(keep_cfg):
    keep_cfg.merge_from_list(["SOLVER.MAX_ITER", 1])
    train(keep_cfg)
    keep_cfg.merge_from_list([f"{KEEP}.ENABLED", False])
    train(keep_cfg)
    assert find_result_file(keep_cfg.OUTPUT_DIR).endswith("model_final.pth")


def test_a_model_agrees_with_itself_and_less_with_another(keep_cfg):
    model = GLIPv2Trainer.build_model(keep_cfg).eval()
    compare = Comparison(keep_cfg, model)
    assert compare(model) == 1.0
    other = GLIPv2Trainer.build_model(keep_cfg).eval()
    assert 0.0 < compare(other) < 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.WEIGHTS", ""], "MODEL.WEIGHTS: expected the weights to keep"),
        (["MODEL.WEIGHTS", "random"], "MODEL.WEIGHTS: expected the weights to keep"),
        ([f"{KEEP}.LEAST_OWN", 1.5], "LEAST_OWN: expected a share from 0 to 1"),
        ([f"{KEEP}.NAMES_WEIGHT", -1.0], "NAMES_WEIGHT: expected at least 0"),
        ([f"{KEEP}.BOXES_WEIGHT", -1.0], "BOXES_WEIGHT: expected at least 0"),
        (["DATASETS.TEST", ()], "DATASETS.TEST: expected validation data"),
    ],
)
def test_what_nothing_can_be_kept_with_is_named(keep_cfg, options, message):
    keep_cfg.merge_from_list(options)
    with pytest.raises(InputError, match=message):
        GLIPv2Trainer(keep_cfg)


def test_a_tuned_prompt_has_nothing_to_keep(keep_cfg, caplog):
    keep_cfg.merge_from_list(["MODEL.GLIPV2.TUNING.MODE", "prompt", "SOLVER.EMA_DECAY", 0.0])
    with caplog.at_level("INFO", "glipv2_d2"):
        trainer = GLIPv2Trainer(keep_cfg)
    assert any("a tuned prompt answers for its own names alone" in message for message in caplog.messages)
    assert not any(type(hook).__name__ == "KeepHook" for hook in trainer._hooks)
    (prompts,) = {one["prompts"][0].phrases for one in next(iter(trainer.build_train_loader(keep_cfg)))}
    assert set(prompts) == {"red box", "green box", "blue box"}


def test_a_model_is_tested_on_the_names_that_it_keeps(keep_cfg, tmp_path):
    """Only the names of the training data are left out of the others."""
    (tmp_path / "names.txt").write_text("red box\ngreen box\nblue box\n")
    keep_cfg.merge_from_list([f"{KEEP}.NAMES", str(tmp_path / "names.txt")])
    GLIPv2Trainer.check_test_data(keep_cfg)
    with pytest.raises(InputError, match="expected a name that the training data do not have"):
        GLIPv2Trainer.build_train_loader(keep_cfg)
