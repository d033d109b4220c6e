import hashlib

import pytest
import torch
from conftest import make_tiny_cfg
from safetensors import safe_open

from glipv2_d2.checkpoint.checkpointer import GLIPv2Checkpointer
from glipv2_d2.checkpoint.tuned_weights import base_hash, load_tuned, save_tuned
from glipv2_d2.checkpoint.weight_changes import WeightChanges
from glipv2_d2.modeling import build_model
from glipv2_d2.tensor_files import CheckpointError, read_tensors, write_tensors


def build(tuning="prompt", seed=0, **keys):
    cfg = make_tiny_cfg()
    cfg.merge_from_list(["MODEL.GLIPV2.TUNING.MODE", tuning])
    cfg.merge_from_list(["MODEL.GLIPV2.TUNING.LORA.RANK", 2, "MODEL.GLIPV2.TUNING.LORA.PARTS", ("fusion_tower",)])
    for key, value in keys.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    torch.manual_seed(seed)
    return build_model(cfg)


def fill_tuned(model):
    """Let every number that trains be as after a training."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))


def assert_same(model, other):
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory):
    """A tuned prompt table with the model that it is of."""
    model = build()
    fill_tuned(model)
    path = tmp_path_factory.mktemp("tuned") / "tuned.safetensors"
    save_tuned(model, path)
    return path, model


@pytest.mark.parametrize("mode", ["prompt", "linear_probe", "lora"])
def test_what_is_tuned_survives_its_file_and_nothing_else_is_in_it(tmp_path, mode, caplog):
    model, path = build(mode), tmp_path / "tuned.safetensors"
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fill_tuned(model)
    save_tuned(model, path)
    tensors, metadata = read_tensors(path)
    buffers = {"prompt_tuner.prompt_ids"} if mode == "prompt" else set()
    assert set(tensors) == {name for name, one in model.named_parameters() if one.requires_grad} | buffers
    assert metadata["mode"] == mode and len(metadata["base_sha256"]) == 64
    other = build(mode, seed=1)
    other.load_state_dict(base)
    with caplog.at_level("WARNING"):
        load_tuned(other, path)
    assert_same(model, other)
    assert not caplog.messages


def test_a_tuned_mask_head_is_in_the_file(tmp_path):
    keys = {"MODEL__MASK_ON": True, "MODEL__GLIPV2__MASK_HEAD__CONV_DIM": 16, "MODEL__GLIPV2__TUNING__MASK_HEAD": True}
    model, path = build(**keys), tmp_path / "tuned.safetensors"
    fill_tuned(model)
    save_tuned(model, path)
    parts = {name.partition(".")[0] for name in read_tensors(path)[0]}
    assert parts == {"prompt_tuner", "mask_head"}
    other = build(**keys)
    load_tuned(other, path)
    assert_same(model, other)
    with pytest.raises(CheckpointError, match=r"tuned.safetensors: .*mask_head\..*TUNING.MASK_HEAD"):
        load_tuned(build(), path)


def test_the_hash_is_of_names_types_shapes_and_values_of_what_stays():
    model = build()
    digest = hashlib.sha256()
    for name in sorted(model.state_dict()):
        if not name.startswith(("prompt_tuner.", "pixel_", "anchor_")):
            tensor = model.state_dict()[name]
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
    assert base_hash(model, ["prompt_tuner.embeddings"]) == digest.hexdigest()
    model.prompt_tuner.embeddings.data += 1
    assert base_hash(model, ["prompt_tuner.embeddings"]) == digest.hexdigest()
    without_bias = base_hash(model, ["head.bias0"])
    model.head.bias0.data += 1
    assert base_hash(model, ["prompt_tuner.embeddings"]) != digest.hexdigest()
    assert base_hash(model, ["head.bias0"]) == without_bias != digest.hexdigest()


def test_other_weights_below_are_warned_of(prompt_file, caplog):
    other = build(seed=1)
    with caplog.at_level("WARNING"):
        load_tuned(other, prompt_file[0])
    assert len(caplog.messages) == 1 and "tuned from other weights" in caplog.messages[0]
    assert torch.equal(other.prompt_tuner.embeddings, prompt_file[1].prompt_tuner.embeddings)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"tuning": "linear_probe"}, ["MODEL.GLIPV2.TUNING.MODE", "'linear_probe'", "'prompt'"]),
        (
            {"MODEL__TEXT_ENCODER__HIDDEN_SIZE": 64},
            ["prompt_tuner.embeddings", "(1000, 64)", "(1000, 48)", "hidden size"],
        ),
    ],
)
def test_a_file_of_another_tuning_is_refused_on_one_line(prompt_file, model, words):
    other = build(**model)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_tuned(other, prompt_file[0])
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in [str(prompt_file[0]), *words])
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_other_settings_of_low_rank_updates_are_refused(tmp_path):
    path = tmp_path / "tuned.safetensors"
    save_tuned(build("lora"), path)
    with pytest.raises(
        CheckpointError, match="MODEL.GLIPV2.TUNING.LORA.ALPHA: expected weights of '4.0'.* found '16.0'"
    ):
        load_tuned(build("lora", MODEL__GLIPV2__TUNING__LORA__ALPHA=4.0), path)


def test_a_file_that_is_no_tuning_and_a_model_that_tunes_everything_are_errors(tmp_path, prompt_file):
    write_tensors(tmp_path / "x.safetensors", {"prompt_tuner.embeddings": torch.zeros(6, 48)})
    with pytest.raises(CheckpointError, match="x.safetensors: expected tuned weights"):
        load_tuned(build(), tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError, match="none.safetensors"):
        load_tuned(build(), tmp_path / "none.safetensors")
    for call in (save_tuned, load_tuned):
        with pytest.raises(ValueError, match="TUNING.MODE: .* found 'full'"):
            call(build("full"), prompt_file[0])


def test_a_name_that_is_missing_is_said(tmp_path, prompt_file):
    with safe_open(prompt_file[0], framework="pt") as file:
        metadata = file.metadata()
    write_tensors(tmp_path / "x.safetensors", {"odd": torch.zeros(1)}, metadata)
    with pytest.raises(CheckpointError, match="x.safetensors: .*odd is found, but nothing that the model tunes"):
        load_tuned(build(), tmp_path / "x.safetensors")


def write_base(model, path):
    names = [name for name in model.state_dict() if not name.startswith("prompt_tuner.") and ".lora." not in name]
    write_tensors(path, {name: model.state_dict()[name] for name in names})
    return str(path)


def test_the_checkpointer_applies_tuned_weights_over_the_base(tmp_path, prompt_file):
    path, model = prompt_file
    base = write_base(model, tmp_path / "base.safetensors")
    other = build(seed=1)
    GLIPv2Checkpointer(other, changes=WeightChanges(str(path))).load(base)
    assert_same(model, other)


def test_a_checkpoint_that_a_run_goes_on_from_is_not_changed(tmp_path, prompt_file):
    model = build(seed=1)
    folder = tmp_path / "run"
    GLIPv2Checkpointer(model, str(folder)).save("model_final", iteration=3)
    other = build(seed=2)
    GLIPv2Checkpointer(other, str(folder), changes=WeightChanges(str(prompt_file[0]))).resume_or_load("", resume=True)
    assert_same(model, other)


def test_weights_of_a_tuning_do_not_lose_it_unsaid(tmp_path):
    for mode in ("prompt", "lora"):
        model = build(mode)
        write_tensors(tmp_path / f"{mode}.safetensors", model.state_dict())
        with pytest.raises(CheckpointError, match=f"MODEL.GLIPV2.TUNING.MODE: expected '{mode}'"):
            GLIPv2Checkpointer(build("full")).load(str(tmp_path / f"{mode}.safetensors"))


@torch.no_grad()
def test_low_rank_updates_are_merged_for_inference_and_kept_for_training(tmp_path):
    model, path = build("lora"), tmp_path / "tuned.safetensors"
    fill_tuned(model)
    save_tuned(model, path)
    base = write_base(model, tmp_path / "base.safetensors")
    changes = WeightChanges(str(path))
    training, merged = build("lora", seed=1), build("lora", seed=2)
    GLIPv2Checkpointer(training, changes=changes).load(base)
    assert_same(model, training)
    GLIPv2Checkpointer(merged, for_results=True, changes=changes).load(base)
    plain = build("full")
    assert set(merged.state_dict()) == set(plain.state_dict())
    changed = model.get_submodule("fusion_tower.blocks.0.dyconv.convs.0.conv")
    assert torch.equal(merged.get_submodule("fusion_tower.blocks.0.dyconv.convs.0.conv").weight, changed.weight)
    assert not torch.equal(changed.weight, changed._parameters["weight"])


def test_a_resumed_evaluation_merges_too(tmp_path):
    model = build("lora")
    fill_tuned(model)
    GLIPv2Checkpointer(model, str(tmp_path)).save("model_final", iteration=0)
    merged = build("lora", seed=1)
    GLIPv2Checkpointer(merged, str(tmp_path), for_results=True).resume_or_load("", resume=True)
    name = "fusion_tower.blocks.0.dyconv.convs.1.conv"
    assert torch.equal(merged.get_submodule(name).weight, model.get_submodule(name).weight)
    assert not any(".lora." in one for one in merged.state_dict())
