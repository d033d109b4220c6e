import functools
import json
import os
import shutil

import numpy as np
import pytest
import torch
import yaml
from conftest import assert_one_line, load_config, make_tiny_cfg
from detectron2.config import CfgNode
from transformers import BertConfig, BertModel, BertTokenizerFast

from glipv2_d2 import GLIPv2Predictor
from glipv2_d2.checkpoint import pretrained_folder
from glipv2_d2.checkpoint.pretrained_folder import MANIFEST_FILE, save_pretrained
from glipv2_d2.engine.command_line import build_config
from glipv2_d2.modeling import build_model
from glipv2_d2.prompts.tokenizer import VOCABULARY_FILE
from glipv2_d2.tensor_files import CheckpointError, file_sha256, read_tensors, write_tensors

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
IMAGE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)


def make_cfg(**keys):
    cfg = make_tiny_cfg()
    cfg.MODEL.GLIPV2.TEST.SCORE_THRESH = 0.001
    cfg.DATASETS.TEST = ()
    cfg.merge_from_list([part for key, value in keys.items() for part in (key.replace("__", "."), value)])
    return cfg


def make_predictor(cfg):
    torch.manual_seed(0)
    return GLIPv2Predictor(cfg)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A predictor and the folder that it wrote; not to be changed."""
    absent = {"MODEL__GLIPV2__VQA__ANSWERS": "/absent/answers.txt", "OUTPUT_DIR": "/absent/output"}
    absent["MODEL__GLIPV2__CLASS_WORDS__WEIGHTS"] = "/absent/classifier.pth"
    predictor = make_predictor(make_cfg(**absent))
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    predictor.save_pretrained(folder)
    return predictor, folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved[1], tmp_path / "moved")


def assert_same(one, other):
    states = one.model.state_dict(), other.model.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    results = [predictor(IMAGE, ["red dog", "cup"])["instances"] for predictor in (one, other)]
    assert len(results[0]) > 0
    assert torch.equal(results[0].scores, results[1].scores)
    assert torch.equal(results[0].pred_boxes.tensor, results[1].pred_boxes.tensor)


def values_of(node):
    for value in node.values():
        yield from values_of(value) if isinstance(value, CfgNode) else [value]


def change_manifest(folder, change):
    content = json.loads((folder / MANIFEST_FILE).read_text())
    (folder / MANIFEST_FILE).write_text(json.dumps(change(content)))


def renew_hash(folder, name):
    digest = file_sha256(folder / name)
    change_manifest(folder, lambda content: {"files": {**content["files"], name: digest}})


def test_a_folder_gives_the_same_model_wherever_it_lies(saved, folder, monkeypatch):
    names = ["README.md", "config.yaml", "files.json", "model.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert len({path.stat().st_mode for path in saved[1].iterdir()}) == 1
    predictor = GLIPv2Predictor.from_pretrained(folder)
    assert_same(predictor, saved[0])
    assert saved[0].cfg.OUTPUT_DIR == "/absent/output"
    # Also by a relative path.
    monkeypatch.chdir(folder.parent)
    assert GLIPv2Predictor.from_pretrained("moved").model.state_dict().keys() == predictor.model.state_dict().keys()


def test_nothing_in_the_config_leads_out_of_the_folder(folder):
    cfg = load_config(folder / "config.yaml")
    texts = [value for value in values_of(cfg) if isinstance(value, str)]
    assert [text for text in texts if os.path.isabs(text) or "://" in text] == []
    assert cfg.MODEL.WEIGHTS == "./model.safetensors" and cfg.MODEL.GLIPV2.VQA.ANSWERS == ""
    assert cfg.OUTPUT_DIR == "./output" and cfg.MODEL.SWIN.EMBED_DIM == 24


def test_the_config_of_a_folder_is_one_for_every_command_line(folder):
    cfg = build_config(str(folder / "config.yaml"), ["TEST.DETECTIONS_PER_IMAGE", "7"])
    assert cfg.MODEL.WEIGHTS == str(folder / "model.safetensors") and cfg.TEST.DETECTIONS_PER_IMAGE == 7
    # A path on the command line is the user's own.
    cfg = build_config(str(folder / "config.yaml"), ["MODEL.WEIGHTS", "./other.pth"])
    assert cfg.MODEL.WEIGHTS == "./other.pth"


def test_a_config_elsewhere_keeps_its_paths(folder, tmp_path):
    (folder / MANIFEST_FILE).unlink()
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(folder / "config.yaml", tmp_path / "elsewhere" / "config.yaml")
    assert build_config(str(tmp_path / "elsewhere" / "config.yaml"), []).MODEL.WEIGHTS == "./model.safetensors"
    # Beside the weights it is any config, whose weights are looked for beside it.
    assert build_config(str(folder / "config.yaml"), []).MODEL.WEIGHTS == str(folder / "model.safetensors")
    shutil.copy(folder / "config.yaml", folder / "other.yaml")
    (folder / MANIFEST_FILE).write_text("no list")
    assert build_config(str(folder / "other.yaml"), []).MODEL.WEIGHTS == str(folder / "model.safetensors")


def test_a_predictor_runs_where_it_can_whatever_the_config_says(saved, tmp_path, monkeypatch):
    cfg = saved[0].cfg.clone()
    cfg.MODEL.DEVICE = "cuda:3"
    save_pretrained(saved[0].model, cfg, tmp_path / "folder")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert GLIPv2Predictor.from_pretrained(tmp_path / "folder").model.device.type == "cpu"
    with pytest.raises(ValueError, match="MODEL.DEVICE: .*found 'cuda'"):
        GLIPv2Predictor.from_pretrained(tmp_path / "folder", ["MODEL.DEVICE", "cuda"])
    predictor = GLIPv2Predictor.from_pretrained(tmp_path / "folder", ["TEST.DETECTIONS_PER_IMAGE", "3"])
    assert len(predictor(IMAGE, ["dog"])["instances"]) == 3


def make_bert(folder, **form):
    """A small BERT with its tokenizer, as the transformers library writes them."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 40}
    config = BertConfig(vocab_size=30522, max_position_embeddings=260, **sizes, **form)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    BertTokenizerFast(vocab_file=str(VOCABULARY_FILE), do_lower_case=False).save_pretrained(folder)
    (folder / "subfolder").mkdir()
    return str(folder)


@pytest.mark.parametrize(
    ("form", "copies_encoder"), [({"position_embedding_type": "absolute"}, False), ({"layer_norm_eps": 1e-3}, True)]
)
def test_text_encoder_and_tokenizer_of_a_directory_come_along(tmp_path, form, copies_encoder):
    (tmp_path / "bert").mkdir()
    path = make_bert(tmp_path / "bert", **form)
    predictor = make_predictor(make_cfg(MODEL__TEXT_ENCODER__WEIGHTS=path, MODEL__TEXT_ENCODER__TOKENIZER=path))
    predictor.save_pretrained(tmp_path / "folder")
    shutil.rmtree(tmp_path / "bert")
    loaded = GLIPv2Predictor.from_pretrained(tmp_path / "folder")
    assert_same(loaded, predictor)
    encoder = loaded.cfg.MODEL.TEXT_ENCODER
    assert encoder.TOKENIZER == str(tmp_path / "folder" / "tokenizer")
    assert encoder.WEIGHTS == (str(tmp_path / "folder" / "text_encoder") if copies_encoder else "")
    if not copies_encoder:
        sizes = encoder.HIDDEN_SIZE, encoder.NUM_LAYERS, encoder.NUM_HEADS, encoder.INTERMEDIATE_SIZE
        assert sizes == (32, 1, 2, 40) and (encoder.VOCAB_SIZE, encoder.MAX_POSITIONS) == (30522, 260)
    # This tokenizer keeps capitals, unlike the packaged one.
    texts = [predictor.tokenizer.count_tokens("A Dog"), loaded.tokenizer.count_tokens("A Dog")]
    assert texts[0] == texts[1]
    # A folder is saved again from a folder.
    loaded.save_pretrained(tmp_path / "again")
    assert_same(GLIPv2Predictor.from_pretrained(tmp_path / "again"), predictor)
    # A library would read it.
    (tmp_path / "again" / "tokenizer" / "added_tokens.json").write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        GLIPv2Predictor.from_pretrained(tmp_path / "again")
    assert_one_line(caught, "again/tokenizer/added_tokens.json", "expected only files that files.json lists")


def test_text_encoder_from_a_file_of_tensors_comes_along(tmp_path):
    keys = {"MODEL__TEXT_ENCODER__NAME": "CLIPTextEncoder", "MODEL__TEXT_ENCODER__MAX_POSITIONS": 256}
    state = build_model(make_cfg(**keys)).text_encoder.state_dict()
    write_tensors(tmp_path / "clip.safetensors", state)
    keys |= {"MODEL__TEXT_ENCODER__WEIGHTS": str(tmp_path / "clip.safetensors"), "MODEL__TEXT_ENCODER__NUM_LAYERS": 9}
    predictor = make_predictor(make_cfg(**keys))
    predictor.save_pretrained(tmp_path / "folder")
    (tmp_path / "clip.safetensors").unlink()
    loaded = GLIPv2Predictor.from_pretrained(tmp_path / "folder")
    assert_same(loaded, predictor)
    assert loaded.cfg.MODEL.TEXT_ENCODER.NUM_LAYERS == 2


class OtherEncoder(torch.nn.Module):
    """What somebody else may register."""


@pytest.mark.parametrize("name", ["encoder.safetensors", "encoder"])
def test_weights_of_an_encoder_of_another_type_are_copied(tmp_path, name):
    if "." in name:
        write_tensors(tmp_path / name, {"a": torch.ones(1)})
    else:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "code.py").write_text("raise SystemExit")
    model = torch.nn.Module()
    model.text_encoder = OtherEncoder()
    model.weight = torch.nn.Parameter(torch.ones(2))
    save_pretrained(model, make_cfg(MODEL__TEXT_ENCODER__WEIGHTS=str(tmp_path / name)), tmp_path / "folder")
    cfg = build_config(str(tmp_path / "folder" / "config.yaml"), [])
    suffix = ".safetensors" if "." in name else ""
    assert cfg.MODEL.TEXT_ENCODER.WEIGHTS == str(tmp_path / "folder" / f"text_encoder{suffix}")
    files = sorted(path.relative_to(tmp_path / "folder").as_posix() for path in (tmp_path / "folder").rglob("*.*"))
    copied = "text_encoder.safetensors" if suffix else "text_encoder/config.json"
    assert files == sorted(["README.md", "config.yaml", "files.json", "model.safetensors", copied])


def test_a_model_without_text_has_no_text_encoder_to_bring(tmp_path):
    save_model = torch.nn.Linear(1, 1)
    cfg = make_cfg(MODEL__TEXT_ENCODER__WEIGHTS=str(tmp_path / "absent"))
    with pytest.raises(CheckpointError) as caught:
        save_pretrained(save_model, cfg, tmp_path / "folder")
    assert_one_line(caught, "none of its 2 names is the model's")


def test_a_folder_without_anything_to_copy_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    cfg = make_cfg(MODEL__TEXT_ENCODER__TOKENIZER=str(tmp_path / "empty"))
    with pytest.raises(CheckpointError) as caught:
        save_pretrained(torch.nn.Linear(1, 1), cfg, tmp_path / "folder")
    assert_one_line(caught, tmp_path / "empty", "*.json")


@pytest.mark.parametrize(
    ("name", "text", "copy"),
    [("mine.json", '["yes", "no", "red", "two"]', "answers.json"), ("mine", "yes\nno\n", "answers.txt")],
)
def test_the_list_of_answers_comes_along_in_its_form(tmp_path, name, text, copy):
    (tmp_path / name).write_text(text)
    keys = {"MODEL__GLIPV2__VQA__ENABLED": True, "MODEL__GLIPV2__VQA__ANSWERS": str(tmp_path / name)}
    predictor = make_predictor(make_cfg(**keys))
    predictor.save_pretrained(tmp_path / "folder")
    (tmp_path / name).unlink()
    loaded = GLIPv2Predictor.from_pretrained(tmp_path / "folder")
    answers = [one.answer(IMAGE, "how many?")["answers"] for one in (predictor, loaded)]
    assert answers[0] == answers[1] and {answer for answer, _ in answers[0]} >= {"yes", "no"}
    assert (tmp_path / "folder" / copy).read_text() == text


def test_tuned_and_merged_weights_are_part_of_the_model(tmp_path):
    lora = make_cfg(MODEL__GLIPV2__TUNING__MODE="lora")
    torch.manual_seed(0)
    model = build_model(lora).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("lora.up"):
            torch.nn.init.normal_(parameter, std=0.02)
    save_pretrained(model, lora, tmp_path / "apart")
    assert any(name.endswith("lora.up") for name in read_tensors(tmp_path / "apart" / "model.safetensors")[0])
    merged = GLIPv2Predictor.from_pretrained(tmp_path / "apart")
    merged.save_pretrained(tmp_path / "merged")
    loaded = GLIPv2Predictor.from_pretrained(tmp_path / "merged")
    assert (merged.cfg.MODEL.GLIPV2.TUNING.MODE, loaded.cfg.MODEL.GLIPV2.TUNING.MODE) == ("lora", "full")
    assert_same(loaded, merged)


def test_files_that_changed_the_weights_are_not_named_again(saved, tmp_path):
    cfg = saved[0].cfg.clone()
    cfg.merge_from_list(
        ["MODEL.GLIPV2.TUNING.WEIGHTS", "/absent/tuned.safetensors", "MODEL.GLIPV2.TUNING.INTERPOLATION", 0.5]
    )
    cfg.merge_from_list(
        ["MODEL.GLIPV2.TUNING.INTERPOLATE_WITH", "/absent/base.pth", "MODEL.TIMM.WEIGHTS", "/absent/timm.pth"]
    )
    save_pretrained(saved[0].model, cfg, tmp_path / "folder")
    assert_same(GLIPv2Predictor.from_pretrained(tmp_path / "folder"), saved[0])


def test_a_folder_with_something_in_it_is_not_touched(saved, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    for target in (tmp_path / "folder", tmp_path / "folder" / "mine.txt"):
        with pytest.raises(FileExistsError) as caught:
            saved[0].save_pretrained(target)
        assert_one_line(caught, target, "new or an empty folder")
    with pytest.raises(FileNotFoundError) as caught:
        saved[0].save_pretrained(tmp_path / "no" / "folder")
    assert_one_line(caught, tmp_path / "no")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "mine.txt"]
    (tmp_path / "folder" / "mine.txt").unlink()
    saved[0].save_pretrained(str(tmp_path / "folder"))
    assert len(list((tmp_path / "folder").iterdir())) == 4


def test_a_write_that_fails_leaves_nothing(saved, tmp_path, monkeypatch):
    def disk_is_full(path, tensors, metadata):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(pretrained_folder, "write_tensors", disk_is_full)
    with pytest.raises(OSError, match="No space left"):
        saved[0].save_pretrained(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("MODEL.GLIPV2.TOWER.NUM_BLOCKS", 2, ["fusion tower", "found 1 blocks"]),
        ("MODEL.TEXT_ENCODER.INTERMEDIATE_SIZE", 40, ["expected shape (40, 48), found (96, 48)"]),
        ("MODEL.GLIPV2.MLM.ENABLED", True, ["expected the tensors of its config", "mlm_head"]),
    ],
)
def test_a_model_of_another_config_is_not_written(saved, tmp_path, key, value, words):
    cfg = saved[0].cfg.clone()
    cfg.merge_from_list([key, value])
    with pytest.raises(CheckpointError) as caught:
        save_pretrained(saved[0].model, cfg, tmp_path / "folder")
    assert_one_line(caught, "the model to save", *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors"])
def test_a_changed_file_is_named(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(bytes(content))
    with pytest.raises(CheckpointError) as caught:
        GLIPv2Predictor.from_pretrained(folder)
    assert_one_line(caught, folder / name, "expected sha256", "copy the folder again")


@pytest.mark.parametrize("name", ["", "config.yaml", "model.safetensors", "files.json"])
def test_a_missing_file_is_named(folder, name):
    if name:
        (folder / name).unlink()
    else:
        shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError) as caught:
        GLIPv2Predictor.from_pretrained(folder)
    assert_one_line(caught, folder / name, "expected")


DIGEST = "0" * 64
NEEDED = {"config.yaml": DIGEST, "model.safetensors": DIGEST}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ["expected a list of files as JSON"]),
        ("[" * 100_000, ["expected a list of files as JSON"]),
        ("[]", ["expected 'files'"]),
        ('{"files": []}', ["expected 'files'"]),
        (json.dumps({"files": {"config.yaml": DIGEST}}), ["model.safetensors"]),
        (json.dumps({"files": {**NEEDED, "config.yaml": "12"}}), ["config.yaml: expected a sha256, found '12'"]),
        (json.dumps({"files": {**NEEDED, "config.yaml": 12}}), ["config.yaml: expected a sha256, found 12"]),
        (json.dumps({"files": {**NEEDED, "../secret": DIGEST}}), ["files of the folder, found '../secret'"]),
        (json.dumps({"files": {**NEEDED, "/etc/hosts": DIGEST}}), ["files of the folder, found '/etc/hosts'"]),
    ],
)
def test_a_damaged_list_of_files_is_named(folder, text, words):
    (folder / MANIFEST_FILE).write_text(text)
    with pytest.raises(CheckpointError) as caught:
        GLIPv2Predictor.from_pretrained(folder)
    assert_one_line(caught, folder / MANIFEST_FILE, *words)


@pytest.mark.parametrize(
    "path", ["./../other.safetensors", "./absent.pth", "./model", "/elsewhere/base.pth", "https://example.org/base.pth"]
)
def test_the_config_names_files_of_the_folder_only(folder, path):
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("./model.safetensors", path))
    renew_hash(folder, "config.yaml")
    with pytest.raises(CheckpointError) as caught:
        GLIPv2Predictor.from_pretrained(folder)
    assert_one_line(caught, folder / "config.yaml", "MODEL.WEIGHTS", repr(path))


@pytest.mark.parametrize(
    "line", ["_BASE_: {}", '"_BASE_": {}', '"\\x5fBASE_": {}', "<<: {{_BASE_: {}}}", "? _BASE_\n: {}"]
)
def test_the_config_of_a_folder_stands_alone(folder, tmp_path, line):
    (tmp_path / "other.yaml").write_text("SEED: 1\n")
    with open(folder / "config.yaml", "a") as file:
        file.write(line.format(tmp_path / "other.yaml") + "\n")
    renew_hash(folder, "config.yaml")
    with pytest.raises(CheckpointError) as caught:
        GLIPv2Predictor.from_pretrained(folder)
    assert_one_line(caught, folder / "config.yaml", "_BASE_")


def change_key(folder, key, value):
    content = yaml.safe_load((folder / "config.yaml").read_text())
    *parts, name = key.split(".")
    node = functools.reduce(lambda node, part: node[part], parts, content)
    node[name] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    renew_hash(folder, "config.yaml")


def test_results_of_a_model_go_to_no_folder_that_its_config_names(folder):
    change_key(folder, "OUTPUT_DIR", "/etc")
    assert build_config(str(folder / "config.yaml"), []).OUTPUT_DIR == "./output"


@pytest.mark.parametrize("key", ["MODEL.TIMM.WEIGHTS", "MODEL.GLIPV2.CLASS_WORDS.WEIGHTS"])
def test_what_the_weights_of_a_folder_hold_is_read_from_no_other_file(folder, key):
    change_key(folder, key, "http://127.0.0.1:9/weights.pth")
    cfg = build_config(str(folder / "config.yaml"), [])
    assert functools.reduce(getattr, key.split("."), cfg) == ""


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.GLIPV2.TUNING.WEIGHTS", "http://127.0.0.1:9/tuned.safetensors"),
        ("MODEL.GLIPV2.TUNING.INTERPOLATE_WITH", "http://127.0.0.1:9/base.pth"),
        ("MODEL.TEXT_ENCODER.ALLOW_DOWNLOAD", True),
        ("DATASETS.REGISTER", ["/etc"]),
    ],
)
def test_the_config_of_a_folder_names_nothing_outside_of_it(folder, key, value):
    change_key(folder, key, value)
    with pytest.raises(CheckpointError) as caught:
        GLIPv2Predictor.from_pretrained(folder)
    assert_one_line(caught, folder / "config.yaml", f"{key}: expected", "a folder that stands alone")


def test_a_config_of_a_folder_is_read_in_a_moment(folder):
    with open(folder / "config.yaml", "a") as file:
        file.write("SEED: " + "[" * 20_000)
    renew_hash(folder, "config.yaml")
    with pytest.raises(CheckpointError) as caught:
        GLIPv2Predictor.from_pretrained(folder)
    assert_one_line(caught, folder / "config.yaml", "levels deep")


def test_code_in_a_config_does_not_run(folder, tmp_path):
    line = f"SEED: !!python/object/apply:os.mkdir ['{tmp_path / 'ran'}']\n"
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("SEED: 3\n", line))
    assert line in (folder / "config.yaml").read_text()
    renew_hash(folder, "config.yaml")
    with pytest.raises(ValueError) as caught:
        GLIPv2Predictor.from_pretrained(folder)
    assert_one_line(caught, "config.yaml", "python/object/apply")
    assert not (tmp_path / "ran").exists()
