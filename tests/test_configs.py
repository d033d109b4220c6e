import gzip
import math
import re

import pytest
import torch
import yaml
from conftest import ASSETS
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator
from detectron2.solver import build_lr_scheduler

from glipv2_d2 import add_glipv2_config, convert_glip_state_dict
from glipv2_d2.checkpoint.model_shapes import build_meta_model

CONFIGS = ASSETS.parents[1] / "configs"
FILES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))


# Fine-tuning of detector and mask head.
MASK_TUNING = ("finetune/coco_mask", "finetune/lvis", "finetune/phrasecut")


def load(name):
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.merge_from_file(str(CONFIGS / name))
    return cfg


def chain(path):
    """A config and what it builds on."""
    base = yaml.safe_load(path.read_text()).get("_BASE_")
    return [path, *(chain((path.parent / base).resolve()) if base else [])]


def leaves(tree, place=()):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*place, key))
        elif key != "_BASE_":
            yield (*place, key), value


@pytest.mark.parametrize("name", FILES)
def test_every_config_has_known_keys_only_and_stands_on_the_base(name):
    cfg = load(name)
    assert cfg.MODEL.META_ARCHITECTURE == ("DyHead" if name.startswith("dyhead/") else "GLIPv2")
    files = chain(CONFIGS / name)
    assert files[-1] == CONFIGS / "Base-GLIPv2.yaml" and len(files) <= 3


@pytest.mark.parametrize(
    "name", [name for name in FILES if name.startswith(("dyhead/", "glip/", "pretrain/", "finetune/"))]
)
def test_a_config_holds_only_what_differs_from_what_it_stands_on(name):
    parent = load(chain(CONFIGS / name)[1].relative_to(CONFIGS).as_posix())
    own = load(name)
    for place, _ in leaves(yaml.safe_load((CONFIGS / name).read_text())):
        old, new = parent, own
        for key in place:
            old, new = old[key], new[key]
        assert old != new, ".".join(place)


def official_tensors(released):
    """Names, shapes and kinds (P for parameter) of a released architecture."""
    text = gzip.decompress((ASSETS / "golden" / f"state_dict_{released}.tsv.gz").read_bytes()).decode()
    rows = [line.split("\t") for line in text.splitlines()]
    return [(name, tuple(map(int, re.findall(r"\d+", shape))), kind) for name, shape, _, kind in rows]


@pytest.mark.parametrize(
    ("name", "released", "trainable"),
    [
        # Trainable numbers of the official models, all with 80 * 256 + 80 that nothing reads.
        ("glip/glip_swin_t_a.yaml", "A", 151_430_526),
        ("glip/glip_swin_t_b.yaml", "T", 231_780_222),
        ("glip/glip_swin_t_c.yaml", "T", 231_780_222),
        ("glip/glip_swin_l.yaml", "L", 430_422_384),
        ("pretrain/glipv2_swin_t.yaml", "T", 231_780_222),
    ],
)
def test_models_have_the_tensors_of_the_released_ones(name, released, trainable):
    cfg = load(name)
    # What only the losses of pre-training have.
    cfg.MODEL.GLIPV2.CONTRASTIVE.ENABLED = cfg.MODEL.GLIPV2.MLM.ENABLED = False
    model = build_meta_model(cfg)
    assert sum(parameter.numel() for parameter in model.parameters()) == trainable - 20_560
    official = official_tensors(released)
    assert sum(math.prod(shape) for _, shape, kind in official if kind == "P") == trainable
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tensors = {name: torch.empty(shape, device="meta") for name, shape, _ in official}
    _, report = convert_glip_state_dict(tensors, expected=shapes)
    assert report.missing == () and report.unknown == ()
    expected = {report.used[name]: shape for name, shape, _ in official if name in report.used}
    assert shapes == expected


def test_the_base_is_the_official_recipe():
    cfg = load("Base-GLIPv2.yaml")
    assert cfg.MODEL.PIXEL_MEAN == [103.530, 116.280, 123.675] and cfg.MODEL.PIXEL_STD == [57.375, 57.120, 58.395]
    assert cfg.INPUT.FORMAT == "BGR" and tuple(cfg.INPUT.MIN_SIZE_TRAIN) == (480, 560, 640, 720, 800)
    assert (cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (1333, 800, 1333)
    solver = cfg.SOLVER
    assert (solver.BASE_LR, solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_BIAS) == (1e-4, 1e-4, 0.0)
    assert (solver.BIAS_LR_FACTOR, solver.TEXT_ENCODER_MULTIPLIER, solver.BACKBONE_MULTIPLIER) == (2.0, 0.1, 1.0)
    clip = solver.CLIP_GRADIENTS
    assert (clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE, clip.NORM_TYPE) == (True, "full_model", 1.0, 2.0)
    assert (solver.IMS_PER_BATCH, solver.EMA_DECAY, solver.AMP.ENABLED) == (64, 0.999, True)
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 100 and cfg.SEED >= 0


def test_a_pretraining_runs_with_the_numbers_of_paper_and_official_code():
    cfg = load("pretrain/glipv2_swin_t.yaml")
    assert cfg.MODEL.GLIPV2.MLM.MASK_PROB == 0.15  # GLIPv2, Sec. 3.2
    assert cfg.MODEL.GLIPV2.CONTRASTIVE.LOG_SCALE == -2.66  # a temperature of 0.07
    assert (cfg.INPUT.PROMPT.NUM_NEGATIVES, cfg.INPUT.PROMPT.NO_NEGATIVE_CAPTIONS_PROB) == (85, 0.4)


def test_prompt_tuning_has_the_official_rate_and_decay():
    solver = load("prompt_tuning/coco_swin_t.yaml").SOLVER
    assert (solver.BASE_LR, solver.WEIGHT_DECAY) == (0.05, 0.25)


@pytest.mark.parametrize(
    ("name", "length"),
    [
        ("Base-GLIPv2.yaml", 40_000),
        ("pretrain/glipv2_swin_t.yaml", 330_000),
        ("pretrain/glipv2_swin_t_stage2.yaml", 300_000),
        ("glip/glip_swin_l.yaml", 1_000_000),
        # 24 epochs of COCO, 24 of LVIS, 8 of PhraseCut in batches of 64.
        ("pretrain/glipv2_swin_t_mask_stage2.yaml", (24 * 118_287 + 24 * 100_170 + 8 * 310_816) // 64),
        ("pretrain/glipv2_swin_b_mask_stage2.yaml", 120_773),
        ("pretrain/glipv2_coswin_h_mask_stage2.yaml", 120_773),
        ("dyhead/dyhead_swin_t.yaml", 24 * 118_287 // 64),
        ("dyhead/dyhead_swin_b.yaml", 24 * 118_287 // 64),
        # Epochs of App. D.2 in batches of 32.
        ("finetune/coco_mask_swin_t.yaml", 24 * 118_287 // 32),
        ("finetune/coco_mask_swin_b.yaml", 5 * 118_287 // 32),
        ("finetune/lvis_swin_t.yaml", 24 * 100_170 // 32),
        ("finetune/lvis_swin_b.yaml", 5 * 100_170 // 32),
        ("finetune/phrasecut_swin_t.yaml", 12 * 310_816 // 32),
        ("finetune/phrasecut_swin_b.yaml", 3 * 310_816 // 32),
        ("finetune/vqa_swin_t.yaml", 100_000),
        ("finetune/caption_swin_b.yaml", 70_800),
        ("finetune/caption_coswin_h.yaml", 70_800),
        ("prompt_tuning/coco_swin_t.yaml", 24 * 118_287 // 32),
    ],
)
def test_the_rate_warms_up_and_drops_twice(name, length):
    cfg = load(name)
    assert cfg.SOLVER.MAX_ITER == length
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=cfg.SOLVER.BASE_LR)
    multiplier = build_lr_scheduler(cfg, optimizer)._multiplier
    # Two iterations around each drop: the scheduler rounds its place in the run to a millionth.
    first, second = round(0.67 * length), round(0.89 * length)
    factors = {0: 0.001, 1000: 0.5005, 2000: 1.0, first - 2: 1.0, first + 2: 0.1, second - 2: 0.1, second + 2: 0.01}
    for iteration, factor in factors.items():
        assert multiplier(iteration / length) == pytest.approx(factor, rel=1e-6), iteration


def test_anchors_are_the_official_ones_with_the_far_edges_moved_by_one_pixel():
    # Official, inclusive corners: -28..35 at stride 8.
    cfg = load("Base-GLIPv2.yaml")
    generator = build_anchor_generator(cfg, [ShapeSpec(channels=1, stride=2**level) for level in range(3, 8)])
    anchors = generator([torch.zeros(1, 1, 1, 2)] * 5)
    assert anchors[0].tensor.tolist() == [[-28, -28, 36, 36], [-20, -28, 44, 36]]
    assert anchors[4].tensor[0].tolist() == [-448, -448, 576, 576]


@pytest.mark.parametrize(("name", "masked"), [("glipv2_swin_t.yaml", True), ("glipv2_swin_t_stage2.yaml", False)])
def test_tiny_model_is_pretrained_with_the_losses_of_the_paper(name, masked):
    # Table 4, row 6: all losses in the first stage, no masked language modelling in the second.
    heads = load(f"pretrain/{name}").MODEL.GLIPV2
    assert heads.CONTRASTIVE.ENABLED and heads.MLM.ENABLED is masked


@pytest.mark.parametrize(
    ("model", "head"),
    # Scales, layers and channels of App. D.1.
    [("swin_t", (1, 1, 256)), ("swin_b", (1, 1, 256)), ("coswin_h", (2, 4, 384))],
)
def test_mask_heads_have_the_sizes_of_the_paper_and_train_alone(model, head):
    model = load(f"pretrain/glipv2_{model}_mask_stage2.yaml").MODEL
    mask_head = model.GLIPV2.MASK_HEAD
    assert (mask_head.HOURGLASS_DEPTH, mask_head.NUM_HOURGLASSES, mask_head.CONV_DIM) == head
    assert model.MASK_ON and model.GLIPV2.TUNING.MODE == "mask_head"
    # Masked words would be words that no mask can be found for.
    assert not model.GLIPV2.MLM.ENABLED and not model.GLIPV2.CONTRASTIVE.ENABLED


def test_the_mask_stage_of_the_huge_model_has_its_detector():
    detector, masks = (load(f"pretrain/glipv2_coswin_h{stage}.yaml").MODEL for stage in ("", "_mask_stage2"))
    assert masks.BACKBONE == detector.BACKBONE and masks.TEXT_ENCODER == detector.TEXT_ENCODER
    assert {**masks.SWIN, "USE_CHECKPOINT": True} == dict(detector.SWIN)
    assert masks.GLIPV2.TOWER == detector.GLIPV2.TOWER and masks.GLIPV2.FUSION == detector.GLIPV2.FUSION


@pytest.mark.parametrize(("letter", "twin"), [("t", "glip/glip_swin_t_c.yaml"), ("b", "pretrain/glipv2_swin_b.yaml")])
def test_dyhead_has_backbone_and_tower_of_its_twin_that_reads_text(letter, twin):
    dyhead, other = load(f"dyhead/dyhead_swin_{letter}.yaml").MODEL, load(twin).MODEL
    assert (dyhead.SWIN, dyhead.FPN, dyhead.ANCHOR_GENERATOR) == (other.SWIN, other.FPN, other.ANCHOR_GENERATOR)
    assert dyhead.GLIPV2.TOWER == other.GLIPV2.TOWER and dyhead.BACKBONE.NAME == other.BACKBONE.NAME
    assert dyhead.GLIPV2.CLASS_HEAD.NUM_CLASSES == 80


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith(MASK_TUNING)])
def test_fine_tuning_trains_all_weights_at_one_rate_in_batches_of_32(name):
    cfg = load(name)
    assert cfg.MODEL.MASK_ON and cfg.MODEL.GLIPV2.TUNING.MODE == "full"
    assert (cfg.SOLVER.TEXT_ENCODER_MULTIPLIER, cfg.SOLVER.IMS_PER_BATCH) == (1.0, 32)
    assert cfg.SOLVER.BASE_LR == (1e-5 if name.endswith("_t.yaml") else 5e-6)
    assert not cfg.MODEL.GLIPV2.MLM.ENABLED and not cfg.MODEL.GLIPV2.CONTRASTIVE.ENABLED
