"""Tuning through the trainer: what is frozen stays bit for bit, and the small file brings the tuned model back."""

from pathlib import Path

import numpy as np
import pytest
import torch

from glipv2_d2 import GLIPv2Predictor, GLIPv2Trainer
from glipv2_d2.checkpoint.checkpointer import GLIPv2Checkpointer
from glipv2_d2.checkpoint.weight_changes import WeightChanges
from glipv2_d2.errors import InputError
from glipv2_d2.tensor_files import CheckpointError, read_tensors

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def tuning_cfg(train_cfg, tmp_path):
    """Two updates from weights in a file, without an evaluation."""
    model = GLIPv2Trainer.build_model(train_cfg)
    GLIPv2Checkpointer(model, str(tmp_path)).save("base")
    train_cfg.merge_from_list(["MODEL.WEIGHTS", str(tmp_path / "base.pth"), "DATASETS.TEST", ()])
    train_cfg.merge_from_list(["SOLVER.MAX_ITER", 2, "SOLVER.STEPS", (), "SOLVER.WARMUP_ITERS", 0])
    train_cfg.merge_from_list(["INPUT.PROMPT.NUM_NEGATIVES", -1, "INPUT.PROMPT.SHUFFLE", False])
    train_cfg.merge_from_list(["MODEL.GLIPV2.TUNING.LORA.RANK", 2])
    return train_cfg


def run(cfg):
    trainer = GLIPv2Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer


def load(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_a_tuned_prompt_is_written_alone_and_brings_the_model_back(tuning_cfg, ema_decay):
    tuning_cfg.merge_from_list(
        ["MODEL.GLIPV2.TUNING.MODE", "prompt", "SOLVER.EMA_DECAY", ema_decay, "SOLVER.BASE_LR", 0.05]
    )
    trainer = run(tuning_cfg)
    output = Path(tuning_cfg.OUTPUT_DIR)
    base, final = load(tuning_cfg.MODEL.WEIGHTS)["model"], load(output / "model_final.pth")
    assert all(torch.equal(tensor, final["model"][name]) for name, tensor in base.items())
    optimizer = final["trainer"]["_trainer"]["optimizer"]
    assert len(optimizer["state"]) == sum(len(group["params"]) for group in optimizer["param_groups"]) == 1
    table = final["model"]["prompt_tuner.embeddings"]
    assert table[:3].any() and not table[-1].any()
    # Also of the moving average, which is what is evaluated.
    tensors, _ = read_tensors(output / "tuned.safetensors")
    assert set(tensors) == {"prompt_tuner.embeddings", "prompt_tuner.prompt_ids"}
    assert torch.equal(tensors["prompt_tuner.embeddings"], table)
    if trainer._ema:
        assert not torch.equal(trainer.model.prompt_tuner.embeddings, table)
        assert set(trainer._ema.state_dict()) == {"prompt_tuner.embeddings"}
    restored = GLIPv2Trainer.build_model(tuning_cfg)
    changes = WeightChanges(str(output / "tuned.safetensors"))
    GLIPv2Checkpointer(restored, changes=changes).load(tuning_cfg.MODEL.WEIGHTS)
    assert all(torch.equal(tensor, final["model"][name]) for name, tensor in restored.state_dict().items())


def test_a_run_that_trains_everything_writes_no_small_file(tuning_cfg):
    run(tuning_cfg)
    assert not (Path(tuning_cfg.OUTPUT_DIR) / "tuned.safetensors").exists()


def test_the_predictor_reads_tuned_weights_and_interpolates(tuning_cfg):
    tuning_cfg.merge_from_list(["MODEL.GLIPV2.TUNING.MODE", "lora", "SOLVER.BASE_LR", 0.05, "SOLVER.EMA_DECAY", 0.0])
    run(tuning_cfg)
    output, base = Path(tuning_cfg.OUTPUT_DIR), load(tuning_cfg.MODEL.WEIGHTS)["model"]
    name = "fusion_tower.blocks.0.fusion.attention.visual_proj"
    tuning_cfg.MODEL.GLIPV2.TUNING.WEIGHTS = str(output / "tuned.safetensors")
    full = GLIPv2Predictor(tuning_cfg).model.get_submodule(name).weight
    tuned = load(output / "model_final.pth")["model"]
    delta = tuned[f"{name}.lora.up"] @ tuned[f"{name}.lora.down"] * 8
    assert delta.any()
    torch.testing.assert_close(full, base[f"{name}.weight"] + delta)
    tuning_cfg.merge_from_list(["MODEL.GLIPV2.TUNING.INTERPOLATE_WITH", tuning_cfg.MODEL.WEIGHTS])
    tuning_cfg.MODEL.GLIPV2.TUNING.INTERPOLATION = 0.5
    half = GLIPv2Predictor(tuning_cfg).model.get_submodule(name).weight
    torch.testing.assert_close(half, base[f"{name}.weight"] + delta / 2)


def test_low_rank_updates_of_another_factor_are_named(tuning_cfg):
    tuning_cfg.merge_from_list(["MODEL.GLIPV2.TUNING.MODE", "lora", "MODEL.GLIPV2.TUNING.LORA.ALPHA", 16.0])
    run(tuning_cfg)
    tuning_cfg.MODEL.WEIGHTS = f"{tuning_cfg.OUTPUT_DIR}/model_final.pth"
    tuning_cfg.MODEL.GLIPV2.TUNING.LORA.ALPHA = 160.0
    with pytest.raises(CheckpointError, match=r"LORA.ALPHA / RANK 80, found 8$"):
        GLIPv2Predictor(tuning_cfg)


@pytest.mark.parametrize("mode", ["prompt", "lora"])
def test_results_of_a_mode_need_its_weights(tuning_cfg, mode):
    tuning_cfg.MODEL.GLIPV2.TUNING.MODE = mode
    with pytest.raises(CheckpointError, match="TUNING.WEIGHTS names a file that has them"):
        GLIPv2Predictor(tuning_cfg)


def test_a_checkpoint_that_is_evaluated_is_interpolated_too(tuning_cfg):
    tuning_cfg.merge_from_list(["SOLVER.BASE_LR", 0.05, "SOLVER.EMA_DECAY", 0.0])
    run(tuning_cfg)
    files = (tuning_cfg.MODEL.WEIGHTS, f"{tuning_cfg.OUTPUT_DIR}/model_final.pth")
    base, tuned = (load(path)["model"] for path in files)
    model = GLIPv2Trainer.build_model(tuning_cfg)
    changes = WeightChanges(interpolate_with=tuning_cfg.MODEL.WEIGHTS, interpolation=0.5)
    GLIPv2Checkpointer(model, tuning_cfg.OUTPUT_DIR, for_results=True, changes=changes).resume_or_load("", resume=True)
    name = "fusion_tower.blocks.0.fusion.attention.visual_proj.weight"
    assert not torch.equal(base[name], tuned[name])
    torch.testing.assert_close(model.state_dict()[name], (base[name] + tuned[name]) / 2)


def test_tuned_weights_are_what_a_training_starts_from(tuning_cfg):
    tuning_cfg.merge_from_list(["MODEL.GLIPV2.TUNING.MODE", "prompt", "SOLVER.BASE_LR", 0.05, "SOLVER.EMA_DECAY", 0.0])
    run(tuning_cfg)
    path = Path(tuning_cfg.OUTPUT_DIR) / "tuned.safetensors"
    tuning_cfg.MODEL.GLIPV2.TUNING.WEIGHTS = str(path)
    trainer = GLIPv2Trainer(tuning_cfg)
    trainer.resume_or_load(resume=False)
    assert torch.equal(trainer.model.prompt_tuner.embeddings, read_tensors(path)[0]["prompt_tuner.embeddings"])


def test_a_tuned_prompt_belongs_to_its_prompt(tuning_cfg):
    """It is trained on the prompt of the test, whatever the keys of training prompts say, and answers no other."""
    (train,) = tuning_cfg.DATASETS.TRAIN
    tuning_cfg.merge_from_list(
        ["INPUT.PROMPT.SHUFFLE", True, "INPUT.PROMPT.NUM_NEGATIVES", 1, "DATASETS.TEST", (train,)]
    )
    tuning_cfg.merge_from_list(["MODEL.GLIPV2.TUNING.MODE", "prompt", "SOLVER.BASE_LR", 0.05, "SOLVER.EMA_DECAY", 0.0])
    assert run(tuning_cfg).model.prompt_tuner.prompt_ids.all()
    file = f"{tuning_cfg.OUTPUT_DIR}/tuned.safetensors"
    tuning_cfg.merge_from_list(["MODEL.GLIPV2.TUNING.WEIGHTS", file])
    predictor, image = GLIPv2Predictor(tuning_cfg), np.zeros((64, 64, 3), np.uint8)
    names = list(predictor.metadata.thing_classes)
    predictor(image)
    predictor(image, names)
    for foreign in (names[::-1], names[:-1], [*names, "dog"], "a red box near a blue box"):
        with pytest.raises(InputError, match="prompts: expected the prompt that was tuned"):
            predictor(image, foreign)
    tuning_cfg.INPUT.PROMPT.SEPARATOR = ", "
    with pytest.raises(InputError, match="prompts: expected the prompt that was tuned"):
        GLIPv2Predictor(tuning_cfg)(image)
    # A tuning of another prompt does not go on from it.
    trainer = GLIPv2Trainer(tuning_cfg)
    trainer.resume_or_load(resume=False)
    with pytest.raises(InputError, match="DATASETS.TRAIN: expected the prompts that the tuned prompt was begun with"):
        trainer.train()


def test_a_vocabulary_that_is_cut_has_a_table_for_each_prompt(tuning_cfg):
    (train,) = tuning_cfg.DATASETS.TRAIN
    tuning_cfg.merge_from_list(["MODEL.GLIPV2.TUNING.MODE", "prompt", "SOLVER.BASE_LR", 0.05, "SOLVER.EMA_DECAY", 0.0])
    tuning_cfg.merge_from_list(["MODEL.GLIPV2.TEST.PROMPT_CHUNK_SIZE", 1, "DATASETS.TEST", (train,)])
    with pytest.raises(InputError, match="TUNING.NUM_PROMPTS: expected 3, a table for each prompt .* found 1"):
        run(tuning_cfg)
    tuning_cfg.merge_from_list(["MODEL.GLIPV2.TUNING.NUM_PROMPTS", 3, "SOLVER.MAX_ITER", 6])
    tuner = run(tuning_cfg).model.prompt_tuner
    assert len(set(tuner.prompt_ids.tolist())) == 3
    # Each was trained.
    assert all(table.any() for table in tuner.embeddings.view(3, -1))
    tuning_cfg.MODEL.GLIPV2.TUNING.WEIGHTS = f"{tuning_cfg.OUTPUT_DIR}/tuned.safetensors"
    results = GLIPv2Predictor(tuning_cfg)(np.zeros((64, 64, 3), np.uint8))
    assert len(results["phrases"]) == 3


PRETRAINING = [
    "MODEL.GLIPV2.MLM.ENABLED",
    True,
    "MODEL.GLIPV2.MLM.MASK_PROB",
    1.0,
    "MODEL.GLIPV2.CONTRASTIVE.ENABLED",
    True,
]


@pytest.mark.parametrize("mode", ["prompt", "lora", "linear_probe", "text_encoder"])
def test_tuning_masks_no_word_and_has_no_loss_of_a_pretraining(tuning_cfg, mode, caplog):
    tuning_cfg.merge_from_list([*PRETRAINING, "MODEL.GLIPV2.TUNING.MODE", mode])
    with caplog.at_level("WARNING", "glipv2_d2"):
        trainer = GLIPv2Trainer(tuning_cfg)
    assert any("without effect with MODEL.GLIPV2.TUNING.MODE" in message for message in caplog.messages)
    batch = next(iter(trainer.build_train_loader(tuning_cfg)))
    prompts = [prompt for sample in batch for prompt in sample["prompts"]]
    assert prompts and all(prompt.mlm_labels is None for prompt in prompts)
    assert {tuple(prompt.input_ids.tolist()) for prompt in prompts} == {tuple(prompts[0].input_ids.tolist())}
    assert set(trainer.model(batch)) == {"loss_grounding", "loss_box_reg", "loss_centerness"}


@pytest.mark.parametrize(
    ("options", "losses", "warned"),
    [
        # As asked for; the tuning of all weights is told by its prompt.
        (["MODEL.GLIPV2.TUNING.MODE", "lora", "MODEL.GLIPV2.TUNING.PRETRAINING_LOSSES", True], True, True),
        (["INPUT.PROMPT.SHUFFLE", False], True, True),
        (["INPUT.PROMPT.SHUFFLE", True, "INPUT.PROMPT.NUM_NEGATIVES", 5], True, False),
        (
            [
                "INPUT.PROMPT.SHUFFLE",
                False,
                "MODEL.GLIPV2.MLM.ENABLED",
                False,
                "MODEL.GLIPV2.CONTRASTIVE.ENABLED",
                False,
            ],
            False,
            False,
        ),
    ],
)
def test_losses_of_a_pretraining_that_stay_in_a_tuning_are_warned_of(tuning_cfg, caplog, options, losses, warned):
    tuning_cfg.merge_from_list([*PRETRAINING, *options])
    with caplog.at_level("WARNING", "glipv2_d2"):
        trainer = GLIPv2Trainer(tuning_cfg)
    assert any("found True in a tuning" in message for message in caplog.messages) is warned
    batch = next(iter(trainer.build_train_loader(tuning_cfg)))
    assert ({"loss_mlm", "loss_contrastive"} <= set(trainer.model(batch))) is losses
