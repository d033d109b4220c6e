"""The configs of GLIPv2-B and GLIPv2-H: schedules, losses and sizes of the paper."""

import pytest
from conftest import ASSETS
from detectron2.config import get_cfg

from glipv2_d2 import add_glipv2_config
from glipv2_d2.checkpoint.model_shapes import build_meta_model
from glipv2_d2.layers.pre_norm_layer import PreNormLayer
from glipv2_d2.modeling.backbone.coswin import CoSwin
from glipv2_d2.modeling.backbone.swin import FreezableSwin
from glipv2_d2.modeling.text_encoder import CLIPTextEncoder

CONFIGS = ASSETS.parents[1] / "configs"
B, B_STAGE_2, H = (f"pretrain/glipv2_{name}.yaml" for name in ("swin_b", "swin_b_stage2", "coswin_h"))
# Table 8 of the paper, with GoldG as its two parts; its second stage leaves the captions out (Sec. 4.3).
DETECTION_AND_GROUNDING = {
    "objects365_v2_train",
    "coco_2017_train",
    "openimages_train",
    "vg_train",
    "imagenet_boxes_train",
    "flickr30k_train",
    "mixed_train",
}
CAPTIONS = {"cc_pseudo", "sbu_pseudo"}


def load(name):
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.merge_from_file(str(CONFIGS / name))
    return cfg


@pytest.mark.parametrize(
    ("name", "length", "steps", "masked"),
    [
        (B, 1_000_000, (670_000, 890_000), True),
        (B_STAGE_2, 500_000, (335_000, 445_000), False),
        (H, 1_000_000, (670_000, 890_000), True),
    ],
)
def test_schedule_losses_and_data_are_those_of_the_paper(name, length, steps, masked):
    cfg = load(name)
    solver = cfg.SOLVER
    assert (solver.MAX_ITER, tuple(solver.STEPS), solver.GAMMA) == (length, steps, 0.1)
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.TEXT_ENCODER_MULTIPLIER) == (64, 1e-4, 1.0)
    assert cfg.MODEL.GLIPV2.CONTRASTIVE.ENABLED and cfg.MODEL.GLIPV2.MLM.ENABLED is masked
    assert cfg.MODEL.TEXT_ENCODER.MAX_TOKENS == 256
    expected = DETECTION_AND_GROUNDING | (CAPTIONS if masked else set())
    assert sorted(cfg.DATASETS.TRAIN) == sorted(expected)


@pytest.mark.parametrize(
    ("name", "kind", "width", "window", "num_blocks"),
    [(B, FreezableSwin, 128, 7, 6), (B_STAGE_2, FreezableSwin, 128, 7, 6), (H, CoSwin, 352, 12, 8)],
)
def test_models_have_swin_and_clip_in_their_sizes(name, kind, width, window, num_blocks):
    cfg = load(name)
    # The tokenizer of CLIP is no part of the package.
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
