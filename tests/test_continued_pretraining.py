"""The plan for a GLIPv2-T: its commands can be run, and its arithmetic is right."""

import functools
import gzip
import re
from pathlib import Path

import pytest
import torch
from conftest import ASSETS, load_config
from published_rows import NUM_IMAGES
from test_docs import commands

from glipv2_d2 import convert_glip_state_dict
from glipv2_d2.checkpoint.model_shapes import build_meta_model
from glipv2_d2.engine.command_line import build_config
from glipv2_d2.program.config_arguments import parse_train_arguments

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "continued_pretraining.md").read_text("utf-8")
RUNS = [tuple(words) for program, words in commands(PAGE) if program.name == "train_net.py"]
PARAMETERS, GLIP_PARAMETERS = 255_888_873, 231_759_662


@functools.cache
def config_of(words):
    arguments = parse_train_arguments(words)
    return build_config(str(ROOT / arguments.config_file), [*arguments.opts, "MODEL.DEVICE", "cpu"])


def table(head):
    """The rows below the row that starts with a head, cell by cell."""
    lines = PAGE[PAGE.index(f"| {head} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[2:]]


@pytest.mark.parametrize("words", RUNS, ids=lambda words: words[words.index("OUTPUT_DIR") + 1])
def test_commands_are_configs_whose_rate_drops_as_in_the_paper(words):
    cfg = config_of(words)
    if "--eval-only" in words:
        return
    assert tuple(round(step / cfg.SOLVER.MAX_ITER, 2) for step in cfg.SOLVER.STEPS) == (0.67, 0.89)
    assert cfg.SOLVER.WARMUP_ITERS < cfg.SOLVER.STEPS[0] and cfg.SOLVER.IMS_PER_BATCH == 64
    with_captions = "cap4m_pseudo" in cfg.DATASETS.TRAIN
    is_control, is_stage2 = "control" in cfg.OUTPUT_DIR, "stage2" in words[words.index("--config-file") + 1]
    assert with_captions is not is_stage2
    assert cfg.MODEL.GLIPV2.CONTRASTIVE.ENABLED is not is_control
    assert cfg.MODEL.GLIPV2.MLM.ENABLED is (not is_control and not is_stage2)
    # What is watched is tested on.
    assert {metric.split("/")[0] for metric in cfg.TEST.BEST_METRICS} <= set(cfg.DATASETS.TEST)


def test_the_released_file_has_all_weights_but_those_of_the_new_heads():
    listed = gzip.decompress((ASSETS / "golden" / "state_dict_T.tsv.gz").read_bytes()).decode().splitlines()
    official = {line.split("\t")[0]: torch.empty(1, device="meta") for line in listed}
    model = build_meta_model(load_config("pretrain/glipv2_swin_t.yaml"))
    _, report = convert_glip_state_dict(official, expected=model.state_dict().keys())
    assert {name.split(".")[0] for name in report.missing} == {"contrastive_head", "mlm_head"}


def test_a_control_differs_from_its_stage_in_the_losses_alone():
    by_output = {config_of(words).OUTPUT_DIR: config_of(words) for words in RUNS}
    for stage, control in (("t_stage1", "t_control1"), ("t_stage2", "t_control2")):
        one, other = by_output[f"output/{stage}"].clone(), by_output[f"output/{control}"].clone()
        one.defrost()
        other.defrost()
        for cfg in (one, other):
            cfg.OUTPUT_DIR = cfg.MODEL.WEIGHTS = ""
            cfg.MODEL.GLIPV2.CONTRASTIVE.ENABLED = cfg.MODEL.GLIPV2.MLM.ENABLED = False
        assert one == other


def test_hours_follow_from_images_and_speeds():
    for part, updates, images, factor, hours in table("part"):
        number = float(images.replace(",", ""))
        rate = 8 * (3.74 if updates == "-" else 1.62)
        assert updates == "-" or number == 64 * float(updates.replace(",", "")), part
        assert float(hours) == round(number / rate / 3600 * float(factor), 1), part
    # Each image of Flickr30K has five captions.
    images, captions = NUM_IMAGES["coco_2017_val"], 5 * NUM_IMAGES["flickr30k_val"]
    lvis = 31 * 0.73 * NUM_IMAGES["lvis_v1_minival"]
    evaluation = [images / (8 * 4.12), captions / (8 * 3.74), lvis / (8 * 4.12)]
    assert [f"{seconds:,.0f} s" in PAGE for seconds in evaluation] == [True] * 3


def test_lengths_are_those_of_the_commands():
    by_part = {row[0]: int(row[1].replace(",", "")) for row in table("part") if row[1] != "-"}
    lengths = {cfg.OUTPUT_DIR: cfg.SOLVER.MAX_ITER for cfg in map(config_of, RUNS)}
    assert by_part["stage 1"] == lengths["output/t_stage1"] and by_part["stage 2"] == lengths["output/t_stage2"]
    assert by_part["control, both stages"] == lengths["output/t_control1"] + lengths["output/t_control2"]
    assert by_part["rate, three runs of 5,000"] == 3 * lengths["output/t_rate_1e-4"]


def test_memory_follows_from_parameters_and_the_published_figure():
    sizes = (ROOT / "configs" / "README.md").read_text("utf-8")
    assert f"{PARAMETERS:,}" in PAGE and f"{PARAMETERS:,}" in sizes and f"{GLIP_PARAMETERS:,}" in sizes
    fixed, glip = 6 * 4 * PARAMETERS / 1e9, 5 * 4 * GLIP_PARAMETERS / 1e9
    image = round((16.0 - glip) / 2, 1)
    assert f"{fixed:.1f} GB" in PAGE and image == 5.7
    for images, memory, card, _ in table("images in a GPU"):
        found = round(fixed, 1) + int(images) * image
        assert memory == f"{found:.1f} GB" and found < float(re.match(r"\d+", card)[0])
    assert f"{4 * 4 * PARAMETERS / 1e9:.1f} GB" in PAGE
