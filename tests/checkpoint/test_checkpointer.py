import logging

import pytest
import timm
import torch
from conftest import assert_one_line, make_tiny_cfg
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from huggingface_hub.errors import HfHubHTTPError
from official_names import to_official
from timm import create_model as create_timm_model
from torch import nn

from glipv2_d2.checkpoint.checkpointer import GLIPv2Checkpointer
from glipv2_d2.modeling import build_model
from glipv2_d2.tensor_files import CheckpointError, read_tensors, write_tensors


@pytest.fixture(scope="module")
def weights():
    """Weights of the tiny model, as some run may have left them."""
    torch.manual_seed(0)
    return {name: tensor.clone() for name, tensor in build_model(make_tiny_cfg()).state_dict().items()}


@pytest.fixture(scope="module")
def built():
    return build_model(make_tiny_cfg())


@pytest.fixture
def model(built):
    """The tiny model, all zeros."""
    for tensor in built.state_dict().values():
        tensor.zero_()
    return built


@pytest.fixture
def messages():
    """Messages that a checkpointer logs, with their level."""
    found = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append((record.levelname, record.getMessage()))
    logger = logging.getLogger("fvcore.common.checkpoint")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    yield found
    logger.setLevel(level)
    logger.removeHandler(handler)


class Counter:
    """A checkpointable that counts."""

    def __init__(self, value=0):
        self.value = value

    def state_dict(self):
        return {"value": self.value, "history": [torch.tensor(float(self.value))]}

    def load_state_dict(self, state_dict):
        self.value = state_dict["value"]


def warnings_of(messages):
    return [text for level, text in messages if level == "WARNING"]


def assert_holds(model, weights, only=""):
    for name, tensor in model.state_dict().items():
        if name.startswith(only):
            assert torch.equal(tensor, weights[name]), name


def official_checkpoint(weights):
    official = to_official(weights)
    extras = {"rpn.head.cls_logits.bias": torch.ones(80), "rpn.anchor_generator.cell_anchors.0": torch.ones(4)}
    return {
        "model": {f"module.{name}": tensor for name, tensor in (official | extras).items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        "iteration": 9,
    }


@pytest.mark.parametrize(
    "write",
    [
        lambda path, weights: write_tensors(path, weights),
        lambda path, weights: torch.save(weights, path),
        lambda path, weights: torch.save({"model": weights}, path),
        lambda path, weights: torch.save({"model": {f"module.{k}": v for k, v in weights.items()}}, path),
        lambda path, weights: write_tensors(path, to_official(weights)),
        lambda path, weights: torch.save(official_checkpoint(weights), path),
    ],
    ids=["own safetensors", "own flat", "own", "own in DDP", "GLIP safetensors", "GLIP"],
)
def test_every_accepted_file_fills_the_whole_model(tmp_path, model, weights, messages, write):
    write(tmp_path / "x", weights)
    assert GLIPv2Checkpointer(model).load(str(tmp_path / "x")) == {}
    assert_holds(model, weights)
    assert warnings_of(messages) == []


def test_an_imagenet_swin_fills_the_bottom_up_network(tmp_path, model, weights, messages):
    prefix = "backbone.bottom_up."
    swin = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    swin = without(swin, "norm") | {"head.weight": torch.ones(1000, 192), "norm.weight": torch.ones(192)}
    torch.save({"model": swin}, tmp_path / "x.pth")
    assert GLIPv2Checkpointer(model).load(str(tmp_path / "x.pth")) == {}
    assert_holds(model, weights, only="backbone.bottom_up.layers")
    assert not model.state_dict()["head.bbox_pred.weight"].any()
    (warning,) = warnings_of(messages)
    assert "text_encoder.bert.*" in warning and "backbone.bottom_up.* (6)" in warning and "they keep" in warning


def test_an_imagenet_swin_is_refused_by_a_model_with_another_backbone(tmp_path):
    swin = {"patch_embed.proj.weight": torch.ones(1), "layers.0.blocks.0.attn.qkv.weight": torch.ones(1)}
    torch.save(swin, tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as caught:
        GLIPv2Checkpointer(nn.Linear(1, 1)).load(str(tmp_path / "x.pth"))
    assert_one_line(caught, "x.pth", "MODEL.BACKBONE.NAME")


def test_no_weights_leave_the_model_alone(model):
    assert GLIPv2Checkpointer(model).load("") == {}
    assert not any(tensor.any() for tensor in model.state_dict().values())


def without(weights, beginning):
    return {name: tensor for name, tensor in weights.items() if not name.startswith(beginning)}


def test_names_that_do_not_meet_are_said_once_and_grouped(tmp_path, model, weights, messages):
    extra = {"mask_head.conv.weight": torch.ones(1), "mask_head.conv.bias": torch.ones(1), "odd": torch.ones(1)}
    write_tensors(tmp_path / "x.safetensors", without(weights, "head.b") | extra)
    GLIPv2Checkpointer(model).load(str(tmp_path / "x.safetensors"))
    missing, unexpected = warnings_of(messages)
    assert all(entry in missing for entry in ("head.bias_lang", "head.bias0", "head.bbox_pred.* (2)", "they keep"))
    assert "no place for mask_head.conv.* (2), odd" in unexpected
    assert_holds(model, weights, only="fusion_tower.")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensor: tensor.fill_(float("nan")), ("NaN",)),
        (lambda tensor: tensor.fill_(float("-inf")), ("infinite",)),
        (lambda tensor: tensor.bool(), ("torch.bool",)),
        (lambda tensor: tensor.to(torch.int8), ("torch.int8",)),
        (lambda tensor: tensor.to(torch.complex64), ("torch.complex64",)),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), ("torch.float8_e4m3fn",)),
        (lambda tensor: tensor.to("meta"), ("without values",)),
    ],
)
def test_weights_that_are_no_finite_numbers_are_named(tmp_path, model, weights, change, words):
    name = "head.bbox_pred.weight"
    torch.save({**weights, name: change(weights[name].clone())}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as caught:
        GLIPv2Checkpointer(model).load(str(tmp_path / "x.pth"))
    assert_one_line(caught, "x.pth", name, *words)
    assert not any(tensor.any() for tensor in model.state_dict().values())


def test_results_need_the_heads_that_give_them_and_a_training_starts_without(tmp_path, weights, messages):
    write_tensors(tmp_path / "x.safetensors", weights)
    cfg = make_tiny_cfg()
    cfg.MODEL.MASK_ON = True
    model = build_model(cfg)
    GLIPv2Checkpointer(model).load(str(tmp_path / "x.safetensors"))
    assert any(level == "WARNING" and "no weights for mask_head" in text for level, text in messages)
    with pytest.raises(CheckpointError, match="expected weights for mask_head, which the config switches on"):
        GLIPv2Checkpointer(model, for_results=True).load(str(tmp_path / "x.safetensors"))


def test_a_shortlist_needs_the_head_that_ranks_its_names(tmp_path, weights):
    write_tensors(tmp_path / "x.safetensors", weights)
    cfg = make_tiny_cfg()
    cfg.MODEL.GLIPV2.CONTRASTIVE.ENABLED = True
    GLIPv2Checkpointer.from_config(build_model(cfg), cfg, for_results=True).load(str(tmp_path / "x.safetensors"))
    cfg.MODEL.GLIPV2.TEST.SHORTLIST = 5
    checkpointer = GLIPv2Checkpointer.from_config(build_model(cfg), cfg, for_results=True)
    with pytest.raises(CheckpointError, match="expected weights for contrastive_head, which the config switches on"):
        checkpointer.load(str(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("part", ["head.", "fusion_tower.", "backbone."])
def test_results_need_every_part_of_the_detector(tmp_path, model, weights, part):
    write_tensors(tmp_path / "x.safetensors", without(weights, part))
    with pytest.raises(CheckpointError) as caught:
        GLIPv2Checkpointer(model, for_results=True).load(str(tmp_path / "x.safetensors"))
    assert_one_line(caught, "x.safetensors", f"weights for {part}")


def test_weights_with_positions_need_a_model_with_positions(tmp_path, messages):
    def make(positions):
        cfg = make_tiny_cfg()
        cfg.merge_from_list(["MODEL.GLIPV2.FUSION.POSITIONS", positions])
        return build_model(cfg)

    files = {positions: str(tmp_path / f"{positions}.safetensors") for positions in (True, False)}
    models = {positions: make(positions) for positions in files}
    for positions, file in files.items():
        write_tensors(file, models[positions].state_dict())
    with pytest.raises(CheckpointError, match=r"position_proj.*expected a model with .*FUSION.POSITIONS True"):
        GLIPv2Checkpointer(models[False]).load(files[True])
    weight = models[True].fusion_tower.blocks[0].fusion.position_proj.weight
    saved = weight.detach().clone()
    torch.nn.init.ones_(weight)
    GLIPv2Checkpointer(models[True]).load(files[True])
    assert torch.equal(weight, saved)
    # They are random before a training, which results cannot be.
    GLIPv2Checkpointer(models[True]).load(files[False])
    assert "position_proj" in warnings_of(messages)[0]
    with pytest.raises(CheckpointError, match="expected weights for .*position_proj.weight, which the config switches"):
        GLIPv2Checkpointer(models[True], for_results=True).load(files[False])
    # Nor can a training that fixes them go on from them.
    weight.requires_grad_(False)
    with pytest.raises(CheckpointError, match="expected weights for .*position_proj.weight, which the config switches"):
        GLIPv2Checkpointer(models[True]).load(files[False])
    GLIPv2Checkpointer(models[True]).load(files[True])


def two_blocks(weights):
    second = {n.replace("blocks.0", "blocks.1"): t for n, t in weights.items() if n.startswith("fusion_tower.blocks.0")}
    return weights | second


def a_layer_more(weights):
    last = "text_encoder.bert.encoder.layer.1."
    return weights | {n.replace("layer.1.", "layer.2."): t for n, t in weights.items() if n.startswith(last)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w | {"head.bias_lang": torch.ones(7)}, ["head.bias_lang", "expected shape (48,)", "found (7,)"]),
        (
            lambda w: w | {"head.bias_lang": torch.ones(7), "head.bias0": torch.ones(2)},
            ["head.bias", "1 more shapes differ"],
        ),
        (two_blocks, ["expected 1 blocks, fusion True", "found 2 blocks, fusion True"]),
        (
            lambda w: {n: t for n, t in w.items() if ".fusion." not in n and ".language_layer." not in n},
            ["expected 1 blocks, fusion True", "found 1 blocks, fusion False", "FUSION.ENABLED"],
        ),
        (a_layer_more, ["text_encoder.bert.encoder.layer: expected 2 entries, found 3"]),
        (lambda w: {f"student.{n}": t for n, t in w.items()}, ["none of its", "found 'student."]),
    ],
    ids=["shape", "shapes", "blocks", "fusion", "layers", "names"],
)
@pytest.mark.parametrize("official", [False, True], ids=["own", "GLIP"])
def test_weights_of_another_model_are_an_error_and_change_nothing(tmp_path, model, weights, change, words, official):
    tensors = change(weights)
    if official and not any(name.startswith("student") for name in tensors):
        tensors = to_official(tensors)
    torch.save(tensors, tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as caught:
        GLIPv2Checkpointer(model).load(str(tmp_path / "x.pth"))
    assert_one_line(caught, tmp_path / "x.pth", *words)
    assert not any(tensor.any() for tensor in model.state_dict().values())


def test_a_missing_file_is_named(tmp_path, model):
    with pytest.raises(FileNotFoundError) as caught:
        GLIPv2Checkpointer(model).load(str(tmp_path / "x.pth"))
    assert_one_line(caught, tmp_path / "x.pth")


def test_a_training_comes_back_with_its_states_and_extra_values(tmp_path):
    model, counter = nn.Linear(2, 2), Counter(5)
    GLIPv2Checkpointer(model, str(tmp_path), counter=counter).save("model_0000004", iteration=4)
    fresh, other = nn.Linear(2, 2), Counter()
    extra = GLIPv2Checkpointer(fresh, str(tmp_path), counter=other).resume_or_load("", resume=True)
    assert torch.equal(fresh.weight, model.weight) and other.value == 5 and extra == {"iteration": 4}


def test_without_resume_only_weights_are_loaded(tmp_path):
    model, counter = nn.Linear(2, 2), Counter(5)
    GLIPv2Checkpointer(model, str(tmp_path / "old"), counter=counter).save("model_final", iteration=4)
    fresh, other = nn.Linear(2, 2), Counter()
    checkpointer = GLIPv2Checkpointer(fresh, str(tmp_path / "old"), counter=other)
    extra = checkpointer.resume_or_load(str(tmp_path / "old" / "model_final.pth"), resume=False)
    assert torch.equal(fresh.weight, model.weight) and other.value == 0
    assert extra["iteration"] == 4


def test_resume_in_an_empty_folder_loads_the_given_weights_alone(tmp_path):
    model = nn.Linear(2, 2)
    write_tensors(tmp_path / "x.safetensors", model.state_dict())
    fresh, counter = nn.Linear(2, 2), Counter(3)
    checkpointer = GLIPv2Checkpointer(fresh, str(tmp_path / "out"), counter=counter)
    assert checkpointer.resume_or_load(str(tmp_path / "x.safetensors")) == {}
    assert torch.equal(fresh.weight, model.weight) and counter.value == 3
    assert not checkpointer.has_checkpoint()


def test_a_truncated_last_checkpoint_is_passed_over_with_a_warning(tmp_path, messages):
    model, counter = nn.Linear(2, 2), Counter(1)
    checkpointer = GLIPv2Checkpointer(model, str(tmp_path), counter=counter)
    checkpointer.save("model_0000009", iteration=9)
    weight = model.weight.detach().clone()
    model.weight.data.zero_()
    counter.value = 2
    checkpointer.save("model_0000019", iteration=19)
    path = tmp_path / "model_0000019.pth"
    path.write_bytes(path.read_bytes()[:-100])
    counter.value = 3
    assert checkpointer.resume_or_load("")["iteration"] == 9
    assert torch.equal(model.weight, weight) and counter.value == 1
    (warning,) = warnings_of(messages)
    assert "model_0000019.pth is damaged" in warning and "model_0000009.pth" in warning
    assert checkpointer.has_checkpoint()
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000009.pth")


def test_a_checkpoint_without_a_state_says_so(tmp_path, messages):
    GLIPv2Checkpointer(nn.Linear(2, 2), str(tmp_path)).save("model_final")
    GLIPv2Checkpointer(nn.Linear(2, 2), str(tmp_path), counter=Counter()).resume_or_load("")
    (warning,) = warnings_of(messages)
    assert "no state of 'counter'" in warning


def test_saving_writes_the_file_first_and_then_its_name(tmp_path, monkeypatch):
    checkpointer = GLIPv2Checkpointer(nn.Linear(2, 2), str(tmp_path / "new"))
    checkpointer.save("model_0000009")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["last_checkpoint", "model_0000009.pth"]
    assert (tmp_path / "new" / "last_checkpoint").read_text() == "model_0000009.pth"

    def killed(content, path):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpointer.save("model_0000019")
    assert (tmp_path / "new" / "last_checkpoint").read_text() == "model_0000009.pth"


def test_a_name_with_a_folder_in_it_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected no folder"):
        GLIPv2Checkpointer(nn.Linear(2, 2), str(tmp_path)).save("../model")


def test_nothing_is_saved_without_a_folder_or_by_other_ranks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    GLIPv2Checkpointer(nn.Linear(2, 2)).save("model")
    GLIPv2Checkpointer(nn.Linear(2, 2), str(tmp_path), save_to_disk=False).save("model")
    assert list(tmp_path.iterdir()) == []


def test_ranks_that_find_different_checkpoints_stop(tmp_path, monkeypatch):
    checkpointer = GLIPv2Checkpointer(nn.Linear(2, 2), str(tmp_path))
    checkpointer.save("model_0000009")
    monkeypatch.setattr(comm, "all_gather", lambda mine: [mine, ""])
    with pytest.raises(CheckpointError) as caught:
        checkpointer.resume_or_load("")
    assert_one_line(caught, tmp_path, "model_0000009.pth", "OUTPUT_DIR")


def test_detectron2_reads_what_is_saved(tmp_path):
    model, fresh = nn.Linear(2, 2), nn.Linear(2, 2)
    GLIPv2Checkpointer(model, str(tmp_path)).save("model_final", iteration=3)
    DetectionCheckpointer(fresh).load(str(tmp_path / "model_final.pth"))
    assert torch.equal(fresh.weight, model.weight)


class Backbone(nn.Module):
    """What ``timm://`` looks at in a model."""

    def __init__(self, bottom_up):
        super().__init__()
        self.bottom_up = bottom_up


def model_around(body):
    bottom_up = nn.Module()
    bottom_up.body = body
    model = nn.Module()
    model.backbone = Backbone(bottom_up)
    return model


@pytest.fixture
def hub(monkeypatch):
    """timm whose pretrained weights are random ones; returns the models it made."""
    made = []

    def fetch(name, *, pretrained, **arguments):
        assert pretrained
        made.append(create_timm_model(name, **arguments))
        return made[-1]

    monkeypatch.setattr(timm, "create_model", fetch)
    return made


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet10t"])
def test_timm_weights_fill_a_timm_backbone(name, hub, messages):
    body = create_timm_model(name, features_only=True, out_indices=(2, 3))
    model = model_around(body)
    GLIPv2Checkpointer(model).load(f"timm://{name}")
    (fetched,) = hub
    expected = fetched.state_dict()
    assert expected.keys() == body.state_dict().keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in body.state_dict().items())
    assert warnings_of(messages) == []


@pytest.mark.parametrize("kind", [OSError, HfHubHTTPError.__bases__[0]])
def test_a_timm_address_without_network_says_what_was_tried(model, monkeypatch, kind):
    def offline(*args, **kwargs):
        raise kind("[Errno 101] Network is unreachable\nmore")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(CheckpointError) as caught:
        GLIPv2Checkpointer(model).load("timm://swin_tiny_patch4_window7_224")
    assert_one_line(caught, "timm://swin_tiny_patch4_window7_224", "Network is unreachable", "MODEL.TIMM.WEIGHTS")


def test_timm_addresses_that_cannot_work_are_refused_before_any_download(model, hub):
    for target, address, words in [
        (model, "timm://no_such_model", "expected a model of timm, found 'no_such_model'"),
        (model_around(None), "timm://resnet10t", "timm or Swin backbone"),
        (nn.Linear(1, 1), "timm://resnet10t", "timm or Swin backbone"),
    ]:
        with pytest.raises(CheckpointError) as caught:
            GLIPv2Checkpointer(target).load(address)
        assert_one_line(caught, address, words)
    assert hub == []


def test_timm_weights_of_another_architecture_are_an_error(hub):
    body = create_timm_model("efficientnet_lite0", features_only=True, out_indices=(2, 3))
    with pytest.raises(CheckpointError, match="timm://efficientnet_lite2"):
        GLIPv2Checkpointer(model_around(body)).load("timm://efficientnet_lite2")


def test_the_weights_that_were_saved_can_be_read_as_tensors(tmp_path):
    model = nn.Linear(2, 2)
    GLIPv2Checkpointer(model, str(tmp_path), counter=Counter()).save("model_final", iteration=3)
    tensors, _ = read_tensors(tmp_path / "model_final.pth")
    assert tensors.keys() == {"weight", "bias"}
