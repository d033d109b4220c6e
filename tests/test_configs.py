"""Configs load, stand on each other in one way, and hold the numbers of the papers and of the official code."""

import gzip
import math
import re

import pytest
import torch
import yaml
from conftest import ASSETS, CONFIGS, load_config
from detectron2.data import DatasetCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator
from detectron2.solver import build_lr_scheduler

from glipv2_d2 import convert_glip_state_dict
from glipv2_d2.checkpoint.model_shapes import build_meta_model
from glipv2_d2.data.datasets.odinw import ODINW_13, ODINW_SETS, dataset_of_set
from glipv2_d2.detectron2_keys import check_config
from glipv2_d2.layers.pre_norm_layer import PreNormLayer
from glipv2_d2.modeling.backbone.coswin import CoSwin
from glipv2_d2.modeling.backbone.swin import FreezableSwin
from glipv2_d2.modeling.text_encoder import CLIPTextEncoder
from glipv2_d2.prompts.protocols import chunk_size_of, limits_of

FILES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
SUITES = ["coco", "flickr30k", "lvis_minival", "lvis_val", "odinw13", "odinw35", "phrasecut", "refcoco"]
# Table 8 of the paper, with GoldG as its two parts. It names no version of Objects365: the first gives the number of
# images of Sec. 4. The second stage of GLIPv2-B leaves the captions out (Sec. 4.4).
DETECTION_AND_GROUNDING = {
    *("objects365_v1_train", "coco_2017_train", "openimages_train", "vg_train", "imagenet_boxes_train"),
    *("flickr30k_train", "mixed_train"),
}
# Those of the official GLIP-L; all others count once.
COPIES = {"flickr30k_train": 8, "mixed_train": 4, "objects365_v1_train": 2, "vg_train": 3, "imagenet_boxes_train": 2}
CAPTIONS = {"cc_pseudo", "sbu_pseudo"}
T, B, H = "swin_t", "swin_b", "coswin_h"
# Updates of each stage (App. D.1).
PRETRAINING = {T: 330_000, f"{T}_stage2": 300_000, B: 1_000_000, f"{B}_stage2": 500_000, H: 1_000_000}
# Images or phrases of an epoch, with the epochs of GLIPv2-T, and of B and H, in batches of 32 (App. D.2).
TUNING = {
    "coco": (118_287, 24, 5),
    "coco_mask": (118_287, 24, 5),
    "lvis": (100_170, 24, 5),
    "phrasecut": (310_816, 12, 3),
}


def in_folders(*folders):
    return [name for name in FILES if name.startswith(tuple(f"{folder}/" for folder in folders))]


def read(name):
    """What a file itself says."""
    return yaml.safe_load((CONFIGS / name).read_text())


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


# ---- how configs stand on each other


@pytest.mark.parametrize("name", FILES)
def test_every_config_has_known_keys_only_that_are_read_and_stands_on_the_base(name):
    cfg = load_config(name)
    check_config(cfg)
    assert cfg.MODEL.META_ARCHITECTURE == ("DyHead" if name.startswith("dyhead/") else "GLIPv2")
    files = chain(CONFIGS / name)
    assert files[-1] == CONFIGS / "Base-GLIPv2.yaml" and len(files) <= 3


@pytest.mark.parametrize("name", [name for name in FILES if "/" in name])
def test_a_config_opens_with_the_command_that_runs_it(name):
    comment = re.match(r"(#.*\n)+", (CONFIGS / name).read_text()).group()
    assert f"--config-file configs/{name} " in re.sub(r"\s*\\\n#\s*", " ", comment).replace("\n", " ")


@pytest.mark.parametrize(
    "name", in_folders("demo", "dyhead", "glip", "models", "pretrain", "finetune", "prompt_tuning")
)
def test_a_config_holds_only_what_differs_from_what_it_stands_on(name):
    parent, own = load_config(chain(CONFIGS / name)[1]), load_config(name)
    for place, _ in leaves(read(name)):
        old, new = parent, own
        for key in place:
            old, new = old[key], new[key]
        assert old != new, ".".join(place)


@pytest.mark.parametrize("name", FILES)
def test_no_config_switches_off_a_part_that_its_base_switched_on(name):
    on = set()
    for path in reversed(chain(CONFIGS / name)):
        said = dict(leaves(yaml.safe_load(path.read_text()).get("MODEL", {})))
        assert not {place for place, value in said.items() if value is False} & on
        on |= {place for place, value in said.items() if value is True}


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("pretrain/")])
def test_only_a_pretraining_has_masked_words_and_contrast(name):
    heads = load_config(name).MODEL.GLIPV2
    assert not heads.MLM.ENABLED and not heads.CONTRASTIVE.ENABLED


# ---- sizes and numbers of the papers and the official code


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
        ("models/glipv2_swin_t.yaml", "T", 231_780_222),
    ],
)
def test_models_have_the_tensors_of_the_released_ones(name, released, trainable):
    cfg = load_config(name)
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
    cfg = load_config("Base-GLIPv2.yaml")
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


@pytest.mark.parametrize("name", [name for name in in_folders("prompt_tuning") if "micro" not in name])
def test_prompt_tuning_trains_the_table_alone_with_the_official_rate_and_decay(name):
    cfg = load_config(name)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.PROMPT_MULTIPLIER) == (0.05, 0.25, 1.0)
    assert (cfg.MODEL.GLIPV2.TUNING.MODE, cfg.MODEL.GLIPV2.TUNING.MASK_HEAD) == ("prompt", False)
    if "phrasecut" not in name:
        assert (cfg.INPUT.PROMPT.NUM_NEGATIVES, cfg.INPUT.PROMPT.SHUFFLE) == (-1, False)
    assert cfg.MODEL.MASK_ON is any(word in name for word in ("mask", "lvis", "phrasecut"))
    # A table for each prompt of the test: 40 of 1,203 names at a time.
    tables = [math.ceil(1_203 / chunk_size_of(cfg, data)) if "lvis" in data else 1 for data in cfg.DATASETS.TRAIN]
    assert [cfg.MODEL.GLIPV2.TUNING.NUM_PROMPTS] == tables


@pytest.mark.parametrize(
    ("name", "length"),
    [
        ("Base-GLIPv2.yaml", 40_000),
        *((f"pretrain/glipv2_{name}.yaml", length) for name, length in PRETRAINING.items()),
        ("glip/glip_swin_l.yaml", 1_000_000),
        # 24 epochs of COCO, 24 of LVIS, 8 of PhraseCut in batches of 64.
        ("pretrain/glipv2_swin_t_mask_stage2.yaml", (24 * 118_287 + 24 * 100_170 + 8 * 310_816) // 64),
        ("pretrain/glipv2_swin_b_mask_stage2.yaml", 120_773),
        ("pretrain/glipv2_coswin_h_mask_stage2.yaml", 120_773),
        ("dyhead/dyhead_swin_t.yaml", 24 * 118_287 // 64),
        ("dyhead/dyhead_swin_b.yaml", 24 * 118_287 // 64),
        *((f"finetune/{name}_{T}.yaml", size * epochs // 32) for name, (size, epochs, _) in TUNING.items()),
        *(
            (f"finetune/{name}_{model}.yaml", size * epochs // 32)
            for name, (size, _, epochs) in TUNING.items()
            for model in (B, H)
        ),
        *((f"finetune/vqa_{model}.yaml", 100_000) for model in (T, B, H)),
        *((f"finetune/caption_{model}.yaml", 70_800) for model in (T, B, H)),
        *(
            (f"prompt_tuning/{name}_{model}.yaml", TUNING[name][0] * TUNING[name][1] // 32)
            for name in ("coco", "coco_mask", "lvis", "phrasecut")
            for model in (T, B, H)
        ),
    ],
)
def test_the_rate_warms_up_and_drops_twice(name, length):
    cfg = load_config(name)
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
    cfg = load_config("Base-GLIPv2.yaml")
    generator = build_anchor_generator(cfg, [ShapeSpec(channels=1, stride=2**level) for level in range(3, 8)])
    anchors = generator([torch.zeros(1, 1, 1, 2)] * 5)
    assert anchors[0].tensor.tolist() == [[-28, -28, 36, 36], [-20, -28, 44, 36]]
    assert anchors[4].tensor[0].tolist() == [-448, -448, 576, 576]


@pytest.mark.parametrize("model", PRETRAINING)
def test_losses_and_data_of_a_pretraining_are_those_of_the_paper(model):
    cfg = load_config(f"pretrain/glipv2_{model}.yaml")
    solver, heads = cfg.SOLVER, cfg.MODEL.GLIPV2
    # Table 4, row 6: all losses in the first stage, no masked language modelling in the second.
    masked = not model.endswith("stage2")
    assert heads.CONTRASTIVE.ENABLED and heads.MLM.ENABLED is masked
    assert (heads.MLM.MASK_PROB, heads.CONTRASTIVE.LOG_SCALE) == (0.15, -2.66)  # Sec. 3.2; a temperature of 0.07
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, cfg.MODEL.TEXT_ENCODER.MAX_TOKENS) == (64, 1e-4, 256)
    assert solver.TEXT_ENCODER_MULTIPLIER == (0.1 if model.startswith(T) else 1.0)
    assert (cfg.INPUT.PROMPT.NUM_NEGATIVES, cfg.INPUT.PROMPT.NO_NEGATIVE_CAPTIONS_PROB) == (85, 0.4)
    if not model.startswith(T):
        assert set(cfg.DATASETS.TRAIN) == DETECTION_AND_GROUNDING | (CAPTIONS if masked else set())
        assert len(set(cfg.DATASETS.TRAIN)) == len(cfg.DATASETS.TRAIN)
    copies = dict(zip(cfg.DATASETS.TRAIN, cfg.DATASETS.TRAIN_COPIES or [1] * 9))
    assert all(copies[name] == (1 if model.startswith(T) else COPIES.get(name, 1)) for name in cfg.DATASETS.TRAIN)


@pytest.mark.parametrize(
    ("name", "kind", "width", "window", "num_blocks"),
    [(B, FreezableSwin, 128, 7, 6), (H, CoSwin, 352, 12, 8)],
)
def test_large_models_have_swin_and_clip_in_their_sizes(name, kind, width, window, num_blocks):
    cfg = load_config(f"models/glipv2_{name}.yaml")
    # The tokenizer of CLIP is not in the package.
    cfg.MODEL.TEXT_ENCODER.TOKENIZER = ""
    model = build_meta_model(cfg)
    swin, text_encoder = model.backbone.bottom_up, model.text_encoder
    assert type(swin) is kind and swin.patch_embed.proj.out_channels == width
    assert [len(stage.blocks) for stage in swin.layers] == [2, 2, 18, 2]
    # A head of Swin is 32 wide.
    attention = [stage.blocks[0].attn for stage in swin.layers]
    assert [one.num_heads for one in attention] == [width * 2**stage // 32 for stage in range(4)]
    assert {tuple(one.window_size) for one in attention} == {(window, window)}
    assert isinstance(text_encoder, CLIPTextEncoder)
    assert (text_encoder.vocab_size, text_encoder.hidden_size, text_encoder.max_positions) == (49408, 512, 256)
    assert [layer.attn.num_heads for layer in text_encoder.resblocks] == [8] * 12
    assert text_encoder.resblocks[0].mlp.c_fc.out_features == 2048
    layers = [block.language_layer for block in model.fusion_tower.blocks]
    assert [type(layer) for layer in layers] == [PreNormLayer] * num_blocks
    assert all(layer.attn.in_proj_weight.shape == (3 * 512, 512) for layer in layers)


@pytest.mark.parametrize(
    ("model", "head"),
    # Scales, layers and channels of App. D.1.
    [("swin_t", (1, 1, 256)), ("swin_b", (1, 1, 256)), ("coswin_h", (2, 4, 384))],
)
def test_mask_heads_have_the_sizes_of_the_paper_and_train_alone(model, head):
    model = load_config(f"pretrain/glipv2_{model}_mask_stage2.yaml").MODEL
    mask_head = model.GLIPV2.MASK_HEAD
    assert (mask_head.HOURGLASS_DEPTH, mask_head.NUM_HOURGLASSES, mask_head.CONV_DIM) == head
    assert model.MASK_ON and model.GLIPV2.TUNING.MODE == "mask_head"


@pytest.mark.parametrize("model", [T, B, H])
def test_every_config_of_a_model_has_its_detector(model):
    expected = load_config(f"models/glipv2_{model}.yaml").MODEL
    for name in in_folders("pretrain", "finetune"):
        if model in name:
            own = load_config(name).MODEL
            own.SWIN.USE_CHECKPOINT = False  # The same model, trained in less memory.
            for part in ("BACKBONE", "SWIN", "FPN", "ANCHOR_GENERATOR", "TEXT_ENCODER"):
                assert own[part] == expected[part], (name, part)
            assert (own.GLIPV2.TOWER, own.GLIPV2.FUSION) == (expected.GLIPV2.TOWER, expected.GLIPV2.FUSION), name


@pytest.mark.parametrize(("letter", "twin"), [("t", "glip/glip_swin_t_c.yaml"), ("b", "models/glipv2_swin_b.yaml")])
def test_dyhead_has_backbone_and_tower_of_its_twin_that_reads_text(letter, twin):
    dyhead, other = load_config(f"dyhead/dyhead_swin_{letter}.yaml").MODEL, load_config(twin).MODEL
    assert (dyhead.SWIN, dyhead.FPN, dyhead.ANCHOR_GENERATOR) == (other.SWIN, other.FPN, other.ANCHOR_GENERATOR)
    assert dyhead.GLIPV2.TOWER == other.GLIPV2.TOWER and dyhead.BACKBONE.NAME == other.BACKBONE.NAME
    assert dyhead.GLIPV2.CLASS_HEAD.NUM_CLASSES == 80


@pytest.mark.parametrize("model", [T, B, H])
@pytest.mark.parametrize("data", TUNING)
def test_fine_tuning_trains_all_weights_at_one_rate_in_batches_of_32(data, model):
    cfg = load_config(f"finetune/{data}_{model}.yaml")
    assert cfg.MODEL.MASK_ON is (data != "coco") and cfg.MODEL.GLIPV2.TUNING.MODE == "full"
    assert (cfg.SOLVER.TEXT_ENCODER_MULTIPLIER, cfg.SOLVER.IMS_PER_BATCH) == (1.0, 32)
    assert cfg.SOLVER.BASE_LR == (1e-5 if model == T else 5e-6)
    # The official builder of LVIS draws all negatives.
    assert cfg.INPUT.PROMPT.FULL_NEGATIVES_PROB == (1.0 if data == "lvis" else 0.5)


@pytest.mark.parametrize("name", [name for name in in_folders("finetune", "prompt_tuning", "pretrain") if H in name])
def test_masks_of_the_largest_model_have_its_mask_head(name):
    cfg = load_config(name)
    head = cfg.MODEL.GLIPV2.MASK_HEAD
    if cfg.MODEL.MASK_ON:
        assert (head.HOURGLASS_DEPTH, head.NUM_HOURGLASSES, head.CONV_DIM) == (2, 4, 384)
    # As many processes as the command starts share a batch.
    command = (CONFIGS / name).read_text()
    machines = int((re.search(r"--num-machines (\d+)", command) or [0, 1])[1])
    assert cfg.SOLVER.IMS_PER_BATCH % (8 * machines) == 0


@pytest.mark.parametrize("model", PRETRAINING)
def test_a_pretraining_evaluates_and_keeps_the_best_weights_by_lvis_and_flickr30k(model):
    cfg = load_config(f"pretrain/glipv2_{model}.yaml")
    assert tuple(cfg.DATASETS.TEST) == ("coco_2017_val", "lvis_v1_minival", "flickr30k_val")
    assert tuple(cfg.TEST.BEST_METRICS) == ("lvis_v1_minival/bbox_fixed/AP", "flickr30k_val/any_box/R@1")
    assert cfg.TEST.EVAL_PERIOD > 0 and cfg.SOLVER.MAX_ITER % cfg.TEST.EVAL_PERIOD == 0
    assert cfg.TEST.EVAL_PERIOD % cfg.SOLVER.CHECKPOINT_PERIOD == 0


# ---- protocols


def protocol_of(cfg, dataset):
    """Names of a prompt, detections of a prompt, detections of an image."""
    return (chunk_size_of(cfg, dataset), *limits_of(cfg, dataset))


@pytest.mark.parametrize("name", FILES)
def test_coco_and_lvis_are_evaluated_by_their_own_protocols_in_every_config(name):
    cfg = load_config(name)
    assert protocol_of(cfg, "coco_2017_val") == (0, 0, 100)
    for dataset in ("lvis_v1_minival", "lvis_v1_val_grounding", "lvis_v1_val"):
        assert protocol_of(cfg, dataset) == (40, 300, 0)
    assert protocol_of(cfg, "phrasecut_miniv") == (0, 0, 100)


def test_keys_of_the_config_change_the_protocol_of_a_dataset():
    cfg = load_config("zero_shot/lvis_minival.yaml")
    cfg.merge_from_list(["TEST.DETECTIONS_PER_IMAGE", 300])
    assert protocol_of(cfg, "lvis_v1_minival") == (40, 300, 0)
    cfg.merge_from_list(["MODEL.GLIPV2.TEST.DETECTIONS_PER_PROMPT", 0, "MODEL.GLIPV2.TEST.PROMPT_CHUNK_SIZE", 0])
    assert protocol_of(cfg, "lvis_v1_minival") == (0, 0, 300)
    cfg.merge_from_list(["MODEL.GLIPV2.TEST.DETECTIONS_PER_PROMPT", 7, "MODEL.GLIPV2.TEST.PROMPT_CHUNK_SIZE", 3])
    assert protocol_of(cfg, "coco_2017_val") == (3, 7, 300)


# ---- zero-shot suites


def test_there_is_a_config_for_each_suite():
    assert in_folders("zero_shot") == [f"zero_shot/{name}.yaml" for name in SUITES]


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_names_data_and_protocol_and_nothing_else_of_the_model_than_masks(name):
    cfg, own = load_config(f"zero_shot/{name}.yaml"), read(f"zero_shot/{name}.yaml")
    assert cfg.DATASETS.TEST and set(cfg.DATASETS.TEST) <= set(DatasetCatalog.list())
    assert len(set(cfg.DATASETS.TEST)) == len(cfg.DATASETS.TEST)
    assert cfg.OUTPUT_DIR == f"output/zero_shot/{name}"
    # Any other _BASE_ is evaluated by the same protocol.
    assert own.pop("_BASE_") == "../glip/glip_swin_t_c.yaml"
    model = own.pop("MODEL", {})
    assert set(own) <= {"DATASETS", "TEST", "OUTPUT_DIR"} and set(own["DATASETS"]) == {"TEST"}
    assert set(model) <= {"MASK_ON", "GLIPV2"} and set(model.get("GLIPV2", {})) <= {"TEST"}
    assert cfg.MODEL.MASK_ON is (name == "phrasecut")


@pytest.mark.parametrize("name", ["lvis_val", "lvis_minival"])
def test_lvis_has_the_official_protocol(name):
    cfg = load_config(f"zero_shot/{name}.yaml")
    assert protocol_of(cfg, *cfg.DATASETS.TEST) == (40, 300, 0)
    assert tuple(cfg.TEST.LVIS_PROTOCOLS) == ("standard", "fixed") and cfg.TEST.LVIS_BOXES == "official"


@pytest.mark.parametrize(("name", "keys"), [("odinw13", ODINW_13), ("odinw35", tuple(ODINW_SETS))])
def test_odinw_is_tested_on_all_its_sets(name, keys):
    assert load_config(f"zero_shot/{name}.yaml").DATASETS.TEST == tuple(dataset_of_set(key, "test") for key in keys)


def test_another_architecture_takes_the_place_of_the_base(tmp_path):
    # As docs/zero_shot.md says.
    text = (CONFIGS / "zero_shot" / "lvis_minival.yaml").read_text()
    (tmp_path / "large.yaml").write_text(text.replace("../glip", str(CONFIGS / "glip")).replace("swin_t_c", "swin_l"))
    cfg = load_config(tmp_path / "large.yaml")
    assert cfg.MODEL.SWIN.EMBED_DIM == 192 and protocol_of(cfg, *cfg.DATASETS.TEST) == (40, 300, 0)
