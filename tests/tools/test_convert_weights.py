import json
from pathlib import Path

import pytest
import torch
import yaml
from conftest import make_tiny_cfg
from official_names import to_official
from transformers import BertConfig, BertModel

from glipv2_d2 import GLIPv2Predictor
from glipv2_d2.checkpoint.model_shapes import build_meta_model
from glipv2_d2.modeling import build_model
from glipv2_d2.modeling.by_name import pack_names
from glipv2_d2.modeling.heads.class_words_head import ClassWordsHead
from glipv2_d2.tensor_files import read_tensors

BODY = "backbone.bottom_up."
# Sizes of the text encoder of the tiny model.
BERT = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}


@pytest.fixture
def main(load_tool):
    return load_tool("convert_weights").main


@pytest.fixture(scope="module")
def weights():
    """Random weights in the form of the tiny model."""
    torch.manual_seed(0)
    return {
        name: torch.randn(tensor.shape) if tensor.is_floating_point() else torch.ones(tensor.shape, dtype=tensor.dtype)
        for name, tensor in build_meta_model(make_tiny_cfg()).state_dict().items()
    }


def save_official(path, weights, **extra):
    official = to_official(weights) | {"rpn.head.cls_logits.bias": torch.ones(80)}
    torch.save({"model": {f"module.{name}": tensor for name, tensor in official.items()}, **extra}, path)


def assert_fails_with_one_line(main, arguments, *words):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    line = exit_info.value.code
    assert line.startswith("error: ") and "\n" not in line
    for word in words:
        assert word in line


def assert_same(tensors, weights):
    assert tensors.keys() == weights.keys()
    assert all(torch.equal(tensors[name], weights[name]) for name in weights)


def test_a_checkpoint_is_converted_checked_and_reported(tmp_path, main, weights, config, capsys):
    save_official(tmp_path / "in.pth", weights)
    output = tmp_path / "out.safetensors"
    main([str(tmp_path / "in.pth"), str(output), "--config-file", config])
    printed = capsys.readouterr().out
    assert f"GLIP, 1 blocks with fusion: {len(weights)} tensors used" in printed
    assert "rpn.head.cls_logits.bias: classification branch that nothing reads" in printed
    tensors, metadata = read_tensors(output)
    assert_same(tensors, weights)
    assert metadata == {"source": "GLIP, 1 blocks with fusion"}


def test_a_part_of_a_detector_is_converted_although_the_rest_is_missing(tmp_path, main, weights, config, capsys):
    swin = {name.removeprefix(BODY): tensor for name, tensor in weights.items() if name.startswith(BODY)}
    kept = {name: tensor for name, tensor in swin.items() if not name.startswith("norm")}
    torch.save({"model": {**kept, "head.weight": torch.ones(9, 9)}}, tmp_path / "swin.pth")
    main([str(tmp_path / "swin.pth"), str(tmp_path / "out.safetensors"), "--config-file", config])
    printed = capsys.readouterr().out
    assert f"ImageNet Swin Transformer: {len(kept)} tensors used" in printed and "missing: " in printed
    assert_same(read_tensors(tmp_path / "out.safetensors")[0], {BODY + name: t for name, t in kept.items()})


def test_a_training_of_this_package_becomes_a_folder_that_predicts(tmp_path, main, weights, config, capsys):
    extra = {"mlm_head.dense.bias": torch.ones(3)}
    torch.save({"model": weights | extra, "optimizer": {"state": {}}, "iteration": 3}, tmp_path / "model_final.pth")
    arguments = [str(tmp_path / "model_final.pth"), str(tmp_path / "folder"), "--config-file", config]
    main([*arguments, "--opts", "TEST.DETECTIONS_PER_IMAGE", "9", "MODEL.DEVICE", "cuda"])
    printed = capsys.readouterr().out
    assert f"glipv2_d2: {len(weights)} tensors used" in printed and "ignored: mlm_head.dense.bias" in printed
    assert f"wrote {len(weights)} tensors to {tmp_path / 'folder'}" in printed
    predictor = GLIPv2Predictor.from_pretrained(tmp_path / "folder", ["MODEL.DEVICE", "cpu"])
    assert_same(predictor.model.state_dict(), weights)
    assert predictor.cfg.TEST.DETECTIONS_PER_IMAGE == 9
    saved = yaml.safe_load((tmp_path / "folder" / "config.yaml").read_text())
    assert saved["MODEL"]["DEVICE"] == "cuda"
    main([*arguments[:1], str(tmp_path / "other"), *arguments[2:]])
    assert yaml.safe_load((tmp_path / "other" / "config.yaml").read_text())["MODEL"]["DEVICE"] == "cpu"


def test_the_page_of_a_folder_has_results_of_its_own_weights_alone(tmp_path, main, weights, config):
    """The config of a training names those that it started from, and a moving average was not measured."""
    for name, ap in (("start", 11.25), ("run", 22.5)):
        (tmp_path / name).mkdir()
        torch.save({"model": weights, "model_ema": weights}, tmp_path / name / "model_final.pth")
        content = {"val": {"bbox": {"AP": ap}}, "weights": "model_final.pth"}
        (tmp_path / name / "results.json").write_text(json.dumps(content))
    arguments = [str(tmp_path / "run" / "model_final.pth"), "--config-file", config]
    options = ["--opts", "MODEL.WEIGHTS", str(tmp_path / "start" / "model_final.pth")]
    for flags, shown in (([], "22.50"), (["--ema"], "No results of these weights are recorded")):
        main([*arguments, str(tmp_path / f"folder{len(flags)}"), *flags, *options])
        page = (tmp_path / f"folder{len(flags)}" / "README.md").read_text()
        assert shown in page and "11.25" not in page


def test_what_a_file_says_of_classes_is_not_read_anew(tmp_path, main, tiny_cfg, config, monkeypatch):
    def read(head, encoder):
        assert head.class_vectors.is_meta or tiny_cfg.MODEL.WEIGHTS == "random"
        head.class_vectors.fill_(2)

    monkeypatch.setattr(ClassWordsHead, "read_classes", read)
    BertModel(BertConfig(**BERT), add_pooling_layer=False).save_pretrained(tmp_path / "bert")
    tiny_cfg.MODEL.GLIPV2.CLASS_WORDS.ENABLED = tiny_cfg.MODEL.TEXT_ENCODER.FREEZE = True
    tiny_cfg.merge_from_list(["MODEL.TEXT_ENCODER.WEIGHTS", str(tmp_path / "bert"), "MODEL.WEIGHTS", "random"])
    torch.save({"model": build_model(tiny_cfg).state_dict()}, tmp_path / "words.pth")
    tiny_cfg.MODEL.WEIGHTS = ""
    Path(config).write_text(tiny_cfg.dump())
    main([str(tmp_path / "words.pth"), str(tmp_path / "folder"), "--config-file", config])
    saved = read_tensors(tmp_path / "folder" / "model.safetensors")[0]
    assert saved["class_words_head.class_vectors"].unique().tolist() == [2]


def test_both_sets_of_a_tuning_that_kept_names_become_a_folder(tmp_path, main, weights, config, capsys):
    """Of heads that the config does not have, neither set is there."""
    base = {"by_name.base.head.bias0": weights["head.bias0"] + 1, "by_name.own_names": pack_names(["red car"])}
    extra = {name + "mlm_head.dense.bias": torch.ones(3) for name in ("", "by_name.base.")}
    torch.save({"model": weights | base | extra}, tmp_path / "model_kept.pth")
    arguments = [str(tmp_path / "model_kept.pth"), str(tmp_path / "folder"), "--config-file", config]
    main(arguments)
    predictor = GLIPv2Predictor.from_pretrained(tmp_path / "folder", ["MODEL.DEVICE", "cpu"])
    assert_same(predictor.model.state_dict(), weights | base)
    for change, words in (
        ({"by_name.base.head.bias7": torch.ones(1)}, ["expected parameters of the model alone", "head.bias7"]),
        ({"by_name.base.head.bias0": torch.ones(2)}, ["head.bias0: expected shape"]),
        ({"by_name.own_names": None}, ["by_name.own_names: expected the names that were tuned, found none"]),
    ):
        tensors = {name: tensor for name, tensor in (weights | base | change).items() if tensor is not None}
        torch.save({"model": tensors}, tmp_path / "model_kept.pth")
        assert_fails_with_one_line(main, [arguments[0], str(tmp_path / "other"), *arguments[2:]], *words)
        assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("key", ["TUNING.WEIGHTS", "TUNING.INTERPOLATE_WITH"])
def test_changes_of_the_weights_are_not_dropped_silently(tmp_path, main, weights, config, capsys, key):
    torch.save({"model": weights}, tmp_path / "model_final.pth")
    arguments = [str(tmp_path / "model_final.pth"), str(tmp_path / "folder"), "--config-file", config]
    arguments += ["--opts", f"MODEL.GLIPV2.{key}", "tuned.safetensors"]
    assert_fails_with_one_line(main, arguments, key.split(".")[1], "tuned.safetensors", "save_pretrained")
    assert not (tmp_path / "folder").exists()


def test_a_folder_needs_a_config_and_a_whole_detector(tmp_path, main, weights, config, capsys):
    kept = {name.removeprefix(BODY): tensor for name, tensor in weights.items() if name.startswith(BODY)}
    torch.save({name: tensor for name, tensor in kept.items() if not name.startswith("norm")}, tmp_path / "swin.pth")
    arguments = [str(tmp_path / "swin.pth"), str(tmp_path / "folder")]
    assert_fails_with_one_line(main, arguments, "folder", ".safetensors", "--config-file")
    arguments += ["--config-file", config]
    assert_fails_with_one_line(main, arguments, "expected weights for", "text_encoder.bert")
    assert not (tmp_path / "folder").exists()


def test_the_moving_average_is_converted_on_request(tmp_path, main, weights):
    average = {f"module.{name}": tensor for name, tensor in to_official(weights).items()}
    save_official(tmp_path / "in.pth", {name: torch.zeros_like(t) for name, t in weights.items()}, model_ema=average)
    main([str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors"), "--ema"])
    assert torch.equal(read_tensors(tmp_path / "out.safetensors")[0]["head.bias_lang"], weights["head.bias_lang"])


@pytest.mark.parametrize("official", [True, False])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: {n: t for n, t in w.items() if n != "head.bias0"}, ["expected weights for head.bias0, found none"]),
        (lambda w: w | {"text_encoder.bert.novel.weight": torch.ones(1)}, ["found text_encoder.bert.novel"]),
        (lambda w: w | {"head.bias_lang": torch.ones(7)}, ["head.bias_lang: expected shape (48,), found (7,)"]),
        (
            lambda w: {n: t for n, t in w.items() if ".fusion." not in n and ".language_layer." not in n},
            ["expected 1 blocks, fusion True", "found 1 blocks, fusion False"],
        ),
    ],
    ids=["missing", "surplus", "shape", "layout"],
)
def test_weights_of_another_model_than_the_config_are_not_written(
    tmp_path, main, weights, config, capsys, change, words, official
):
    if official:
        save_official(tmp_path / "in.pth", change(weights))
    else:
        torch.save(change(weights), tmp_path / "in.pth")
    arguments = [str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors"), "--config-file", config]
    assert_fails_with_one_line(main, arguments, "in.pth", *words)
    assert not (tmp_path / "out.safetensors").exists()


def test_files_that_are_no_checkpoint_are_named(tmp_path, main, config, capsys):
    torch.save({"model": {"conv.weight": torch.ones(1)}}, tmp_path / "other.pth")
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    for name, words in [
        ("other.pth", "none of its 1 names is the model's"),
        ("page.pth", "found something else"),
        ("absent.pth", "no such file"),
    ]:
        arguments = [str(tmp_path / name), str(tmp_path / "out.safetensors"), "--config-file", config]
        assert_fails_with_one_line(main, arguments, name, words)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_text_encoder_from_files_is_built_to_compare_with(tmp_path, main, weights, config):
    BertModel(BertConfig(**BERT), add_pooling_layer=False).save_pretrained(tmp_path / "bert")
    save_official(tmp_path / "in.pth", weights)
    arguments = [str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors"), "--config-file", config]
    main([*arguments, "--opts", "MODEL.TEXT_ENCODER.WEIGHTS", str(tmp_path / "bert")])
    assert_same(read_tensors(tmp_path / "out.safetensors")[0], weights)
