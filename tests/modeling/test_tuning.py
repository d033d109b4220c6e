import pytest
import torch
from mask_samples import BOX_LOSSES, BOXES, PROMPT, build, make_input

from glipv2_d2.modeling import build_model
from glipv2_d2.modeling.tuning import TUNING_MODES, tuned_tensors
from glipv2_d2.solver import build_optimizer

PROBE = {"bbox_pred.weight", "bbox_pred.bias", "centerness.weight", "centerness.bias", "log_scale", "bias_lang"}
PROBE = {f"head.{name}" for name in PROBE | {"bias0", "text_projection.weight", "text_projection.bias"}}
MODES = [mode for mode in TUNING_MODES if mode not in ("full", "mask_head")]


def is_tuned(mode, name):
    """What should train, by the name of the weight."""
    if mode == "linear_probe":
        return name in PROBE
    if mode == "lora":
        return name.endswith((".lora.down", ".lora.up"))
    return name.startswith({"prompt": "prompt_tuner.", "text_encoder": "text_encoder."}[mode])


@pytest.fixture
def tuning_cfg(tiny_cfg):
    tiny_cfg.merge_from_list(["MODEL.GLIPV2.MASK_HEAD.CONV_DIM", 16, "MODEL.GLIPV2.GROUNDING.PRIOR_PROB", 0.3])
    tiny_cfg.merge_from_list(["MODEL.GLIPV2.TUNING.LORA.RANK", 2])
    tiny_cfg.merge_from_list(["SOLVER.BASE_LR", 0.01, "SOLVER.TEXT_ENCODER_MULTIPLIER", 1.0])
    return tiny_cfg


def step_twice(cfg, model):
    """Train for two updates as the trainer does; return the names of the losses and of the weights that moved."""
    optimizer, names = build_optimizer(cfg, model.train()), set()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for seed in range(2):
        losses = model([make_input(PROMPT, BOXES, seed=seed)])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        names |= set(losses)
    after = model.state_dict()
    return names, {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_moves_its_own_numbers_and_no_others(tuning_cfg, mode):
    model = build(tuning_cfg, **{"TUNING.MODE": mode, "PHRASE_CENTER.ENABLED": True})
    expected = {name for name in model.state_dict() if is_tuned(mode, name)}
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if is_tuned(mode, name)} != set()
    losses, moved = step_twice(tuning_cfg, model)
    # No text is drawn to what a fixed head reads of it.
    assert losses == BOX_LOSSES
    # The first step moves only one of the two thin matrices of a new update, and relative positions are no weights.
    assert moved <= expected and moved == {name for name in trained if name in moved}
    unmoved = trained - moved
    assert all("word_embeddings" not in name for name in unmoved)
    assert not unmoved or mode in ("lora", "text_encoder"), unmoved
    assert all(one.grad is None for name, one in model.named_parameters() if name not in trained)


@pytest.mark.parametrize("mode", ["full", *MODES])
def test_the_mask_head_trains_beside_a_mode_only_where_it_should(tuning_cfg, mode):
    tuning_cfg.MODEL.MASK_ON = True
    model = build(tuning_cfg, **{"TUNING.MODE": mode, "TUNING.MASK_HEAD": True})
    losses, moved = step_twice(tuning_cfg, model)
    assert losses == BOX_LOSSES | {"loss_mask"}
    moved_of_head = {name for name in moved if name.startswith("mask_head.")}
    assert moved_of_head == {f"mask_head.{name}" for name, _ in model.mask_head.named_parameters()}
    if mode != "full":
        assert model.mask_head.training and not model.backbone.training
        assert all(is_tuned(mode, name) for name in moved - moved_of_head)


@pytest.mark.parametrize(("mode", "has_mask_loss"), [("linear_probe", False), ("prompt", True), ("lora", True)])
def test_a_fixed_mask_head_has_a_loss_where_that_moves_something(tuning_cfg, mode, has_mask_loss):
    tuning_cfg.MODEL.MASK_ON = True
    model = build(tuning_cfg, **{"TUNING.MODE": mode})
    losses, moved = step_twice(tuning_cfg, model)
    assert losses == BOX_LOSSES | ({"loss_mask"} if has_mask_loss else set())
    assert not any(name.startswith("mask_head.") for name in moved)


@pytest.mark.parametrize("mode", MODES)
def test_what_is_fixed_is_in_eval_mode_and_repeats_in_spite_of_its_dropout(tuning_cfg, mode):
    tuning_cfg.MODEL.GLIPV2.FUSION.DROPOUT = 0.5
    tuning_cfg.MODEL.TEXT_ENCODER.DROPOUT = 0.0 if mode == "text_encoder" else 0.5
    model = build(tuning_cfg, **{"TUNING.MODE": mode}).eval().train()
    whole = {"prompt": "prompt_tuner", "text_encoder": "text_encoder"}.get(mode)
    assert model.training
    assert {name for name, part in model.named_children() if part.training} == ({whole} if whole else set())
    first, second = (model([make_input(PROMPT, BOXES)]) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("mode", "has_text_graph", "has_image_graph"),
    [("linear_probe", False, False), ("prompt", False, False), ("text_encoder", True, False), ("lora", False, True)],
)
def test_no_graph_is_built_of_what_nothing_below_trains(tuning_cfg, mode, has_text_graph, has_image_graph):
    tuning_cfg.MODEL.SWIN.USE_CHECKPOINT = True
    model = build(tuning_cfg, **{"TUNING.MODE": mode}).train()
    seen = {}
    model.text_encoder.register_forward_hook(lambda _, __, out: seen.update(text=out.hidden.requires_grad))
    model.backbone.register_forward_hook(lambda _, __, out: seen.update(image=out["p3"].requires_grad))
    model([make_input(PROMPT, BOXES)])
    assert seen == {"text": has_text_graph, "image": has_image_graph}


def test_a_fixed_tower_is_computed_again_instead_of_remembered(tuning_cfg):
    gradients, calls = [], []
    for use_checkpoint in (False, True):
        tuning_cfg.MODEL.GLIPV2.TOWER.USE_CHECKPOINT = use_checkpoint
        model = build(tuning_cfg, **{"TUNING.MODE": "prompt"}).train()
        model.fusion_tower.blocks[0].register_forward_pre_hook(lambda *_, used=use_checkpoint: calls.append(used))
        sum(model([make_input(PROMPT, BOXES)]).values()).backward()
        gradients.append(model.prompt_tuner.embeddings.grad)
    assert calls == [False, True, True]
    torch.testing.assert_close(*gradients)


def test_updates_above_a_fixed_layer_have_gradients_also_where_activations_are_computed_again(tuning_cfg):
    # Rank 16 is no smaller than the patch embedding, so that the first block reads what does not train.
    tuning_cfg.merge_from_list(["MODEL.GLIPV2.TUNING.LORA.RANK", 16, "MODEL.GLIPV2.TUNING.LORA.PARTS", ("backbone",)])
    tuning_cfg.MODEL.SWIN.USE_CHECKPOINT = True
    model = build(tuning_cfg, **{"TUNING.MODE": "lora"}).train()
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    assert not any("patch_embed" in name for name in trained)
    sum(model([make_input(PROMPT, BOXES)]).values()).backward()
    assert [name for name, one in trained.items() if one.grad is None] == []


def test_the_table_may_have_a_rate_of_its_own_beside_the_mask_head(tuning_cfg):
    tuning_cfg.merge_from_list(["MODEL.MASK_ON", True, "SOLVER.PROMPT_MULTIPLIER", 50.0, "SOLVER.BIAS_LR_FACTOR", 1.0])
    model = build(tuning_cfg, **{"TUNING.MODE": "prompt", "TUNING.MASK_HEAD": True})
    groups = build_optimizer(tuning_cfg, model).param_groups
    rates = {id(one): group["lr"] for group in groups for one in group["params"]}
    assert rates.pop(id(model.prompt_tuner.embeddings)) == pytest.approx(0.5)
    assert set(rates.values()) == {0.01}


def test_an_update_of_one_part_leaves_the_other_without(tuning_cfg):
    tuning_cfg.MODEL.GLIPV2.TUNING.LORA.PARTS = ("backbone",)
    model = build(tuning_cfg, **{"TUNING.MODE": "lora"})
    names = {name for name, one in model.named_parameters() if one.requires_grad}
    assert names and all(name.startswith("backbone.") for name in names)
    assert any(name.startswith("backbone.fpn_output3") for name in names)
    assert any("attn.qkv.lora.up" in name for name in names)


@torch.no_grad()
@pytest.mark.parametrize("fuses", [True, False])
def test_a_prompt_table_changes_detections_also_when_the_text_is_remembered(tuning_cfg, fuses):
    tuning_cfg.MODEL.GLIPV2.FUSION.ENABLED = fuses
    tuning_cfg.MODEL.GLIPV2.TEST.SCORE_THRESH = 0.0
    model = build(tuning_cfg, **{"TUNING.MODE": "prompt"}).eval()
    inputs = [make_input(PROMPT, BOXES)]
    before, again = (model(inputs)[0]["instances"].scores for _ in range(2))
    assert torch.equal(before, again)
    model.prompt_tuner.embeddings.normal_(generator=torch.Generator().manual_seed(0))
    tuned = model(inputs)[0]["instances"].scores
    assert tuned.shape != before.shape or not torch.equal(tuned, before)
    model.prompt_tuner.embeddings.zero_()
    assert torch.equal(model(inputs)[0]["instances"].scores, before)


@torch.no_grad()
def test_every_chunk_of_a_vocabulary_gets_the_first_rows(tuning_cfg):
    model = build(tuning_cfg, **{"TUNING.MODE": "prompt"}).eval()
    model.tasks["detection"].max_detections = 10_000
    model.prompt_tuner.embeddings.normal_(generator=torch.Generator().manual_seed(0))
    second = PROMPT.__class__(PROMPT.input_ids + 7, PROMPT.phrase_token_map, PROMPT.category_ids + 2, PROMPT.phrases)
    image = make_input(PROMPT, BOXES)
    together = model([image | {"prompts": [PROMPT, second]}])[0]["instances"]
    alone = [model([image | {"prompts": [prompt]}])[0]["instances"] for prompt in (PROMPT, second)]
    assert len(together) == sum(map(len, alone)) > 0
    torch.testing.assert_close(together.scores, torch.cat([one.scores for one in alone]).sort(descending=True).values)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("TUNING.MASK_HEAD", True), "TUNING.MASK_HEAD: found True without a mask head, expected MODEL.MASK_ON True"),
        (("TUNING.MODE", "mask_head"), "expected MODEL.MASK_ON True"),
        (("TUNING.MODE", "LoRA"), "TUNING.MODE: expected one of .*'lora'.* found 'LoRA'"),
        (("TUNING.MODE", "lora", "TUNING.LORA.RANK", 0), "TUNING.LORA.RANK"),
        (("TUNING.MODE", "prompt", "CAPTIONING.ENABLED", True), "CAPTIONING.ENABLED False"),
    ],
)
def test_tuning_what_is_not_there_is_an_error(tuning_cfg, keys, message):
    for key, value in zip(keys[::2], keys[1::2]):
        tuning_cfg.merge_from_list([f"MODEL.GLIPV2.{key}", value])
    with pytest.raises(ValueError, match=message):
        build_model(tuning_cfg)


def test_tuning_a_frozen_text_encoder_is_an_error(tuning_cfg):
    tuning_cfg.MODEL.TEXT_ENCODER.FREEZE = True
    with pytest.raises(ValueError, match="MODEL.TEXT_ENCODER.FREEZE False"):
        build(tuning_cfg, **{"TUNING.MODE": "text_encoder"})


def test_a_batch_that_trains_nothing_is_an_error(tuning_cfg, tmp_path):
    answers = tmp_path / "answers.txt"
    answers.write_text("yes\nno\n")
    tuning_cfg.merge_from_list(["MODEL.GLIPV2.VQA.ENABLED", True, "MODEL.GLIPV2.VQA.ANSWERS", str(answers)])
    model = build(tuning_cfg, **{"TUNING.MODE": "linear_probe"}).train()
    question = make_input(PROMPT, []) | {"task": "vqa", "answer_scores": torch.tensor([[1.0, 0.0]])}
    del question["instances"]
    with pytest.raises(ValueError, match="TUNING.MODE: expected .* of the task 'vqa', found 'linear_probe'"):
        model([question])


@pytest.mark.parametrize("mode", MODES)
def test_what_is_tuned_is_told_by_name(tuning_cfg, mode):
    model = build(tuning_cfg, **{"TUNING.MODE": mode})
    tensors = tuned_tensors(model, model.tuning)
    assert set(tensors) == {name for name in model.state_dict() if is_tuned(mode, name)}
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in tensors.items())
