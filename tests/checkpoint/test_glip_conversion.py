import gzip
import json
import math
import re

import pytest
import torch
from conftest import ASSETS
from official_names import to_official
from torch import Tensor

from glipv2_d2 import convert_glip_state_dict
from glipv2_d2.checkpoint.glip_conversion import TowerLayout, find_layout, is_glip_state_dict
from glipv2_d2.tensor_files import CheckpointError

# Released layout: names, of them kept by a detector, blocks, fusion. Left out are cls_logits (2), anchors (5) and
# position_ids (1), which the newer lists lack.
LAYOUTS = {
    "state_dict_A.tsv.gz": (542, 534, TowerLayout(6, False)),
    "state_dict_T.tsv.gz": (746, 738, TowerLayout(6, True)),
    "state_dict_L.tsv.gz": (1022, 1014, TowerLayout(8, True)),
    "glip_t_shapes.json.gz": (745, 738, TowerLayout(6, True)),
    "glip_l_shapes.json.gz": (1021, 1014, TowerLayout(8, True)),
}


def official_shapes(name):
    """Names and shapes as the official code builds them."""
    text = gzip.decompress((ASSETS / "golden" / name).read_bytes()).decode()
    if ".json" in name:
        return {key: tuple(entry["shape"]) for key, entry in json.loads(text)["state_dict"].items()}
    rows = [line.split("\t") for line in text.splitlines()]
    return {row[0]: tuple(int(size) for size in re.findall(r"\d+", row[1])) for row in rows}


def official_tensors(name):
    """The tensors of a released layout without the memory for their values; no two are one object."""
    return {key: torch.empty(shape, device="meta") for key, shape in official_shapes(name).items()}


def parameters_below(prefix, *names):
    return {f"{prefix}.{name}.{kind}" for name in names for kind in ("weight", "bias")}


def our_names(official, layout):
    """The names of the model, written out module by module: Swin and BERT keep what stands below their prefix."""
    names = set()
    for name in official:
        if name.startswith("backbone.body."):
            names.add("backbone.bottom_up." + name[len("backbone.body.") :])
        elif name.startswith("language_backbone.body.model.") and "position_ids" not in name:
            names.add("text_encoder.bert." + name[len("language_backbone.body.model.") :])
    levels = [f"fpn_{kind}{level}" for kind in ("lateral", "output") for level in (3, 4, 5)]
    names |= parameters_below("backbone", *levels, "top_block.p6", "top_block.p7")
    names |= parameters_below("head", "bbox_pred", "centerness", "text_projection")
    names |= {"head.log_scale", "head.bias_lang", "head.bias0", *(f"head.scales.{level}.scale" for level in range(5))}
    for block in (f"fusion_tower.blocks.{index}" for index in range(layout.num_blocks)):
        convs = [f"convs.{index}.{part}" for index in range(3) for part in ("conv", "norm")]
        names |= parameters_below(f"{block}.dyconv", *convs, "offset", "level_attention", "relu.fc.0", "relu.fc.2")
        if layout.fused:
            sides = ("visual", "language")
            projections = [f"attention.{side}_{kind}" for side in sides for kind in ("proj", "value_proj", "out_proj")]
            names |= parameters_below(f"{block}.fusion", "norm_visual", "norm_language", *projections)
            names |= {f"{block}.fusion.gamma_visual", f"{block}.fusion.gamma_language"}
            attention = ("query", "key", "value", "attention_output", "attention_norm")
            names |= parameters_below(f"{block}.language_layer", *attention, "intermediate", "output", "output_norm")
    return names


@pytest.mark.parametrize("name", LAYOUTS)
def test_released_layouts_convert_with_nothing_missing_and_nothing_unknown(name):
    num_names, num_kept, layout = LAYOUTS[name]
    official = official_tensors(name)
    expected = our_names(official, layout)
    assert (len(official), len(expected)) == (num_names, num_kept)
    converted, report = convert_glip_state_dict(official, expected=expected)
    assert converted.keys() == expected
    assert report.missing == () and report.unknown == ()
    assert len(report.ignored) == num_names - num_kept
    assert find_layout(converted) == layout


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_inverse_gives_back_names_and_tensors(name):
    official = official_tensors(name)
    converted, report = convert_glip_state_dict(official)
    back = to_official(converted)
    assert back.keys() == official.keys() - report.ignored.keys()
    assert all(back[key] is official[key] for key in back)


@pytest.mark.parametrize(
    ("fused", "official", "ours"),
    [
        (True, "backbone.fpn.fpn_inner2.weight", "backbone.fpn_lateral3.weight"),
        (True, "backbone.fpn.fpn_layer4.bias", "backbone.fpn_output5.bias"),
        (True, "backbone.fpn.top_blocks.p7.weight", "backbone.top_block.p7.weight"),
        (True, "backbone.body.norm1.weight", "backbone.bottom_up.norm1.weight"),
        (True, "rpn.head.dot_product_projection_text.bias", "head.text_projection.bias"),
        (True, "rpn.head.scales.4.scale", "head.scales.4.scale"),
        # In a fused tower entry 3 is the second fusion, 4 its text layer, 5 its DyConv.
        (True, "{tower}.3.b_attn.gamma_v", "{blocks}.1.fusion.gamma_visual"),
        (True, "{tower}.3.b_attn.layer_norm_l.bias", "{blocks}.1.fusion.norm_language.bias"),
        (True, "{tower}.3.b_attn.attn.l_proj.weight", "{blocks}.1.fusion.attention.language_proj.weight"),
        (True, "{tower}.3.b_attn.attn.values_v_proj.bias", "{blocks}.1.fusion.attention.visual_value_proj.bias"),
        (True, "{tower}.3.b_attn.attn.out_l_proj.bias", "{blocks}.1.fusion.attention.language_out_proj.bias"),
        (True, "{tower}.4.attention.output.dense.weight", "{blocks}.1.language_layer.attention_output.weight"),
        (True, "{tower}.4.attention.output.LayerNorm.bias", "{blocks}.1.language_layer.attention_norm.bias"),
        (True, "{tower}.4.output.dense.weight", "{blocks}.1.language_layer.output.weight"),
        (True, "{tower}.4.output.LayerNorm.bias", "{blocks}.1.language_layer.output_norm.bias"),
        (True, "{tower}.5.DyConv.2.bn.weight", "{blocks}.1.dyconv.convs.2.norm.weight"),
        (True, "{tower}.5.AttnConv.1.bias", "{blocks}.1.dyconv.level_attention.bias"),
        (True, "{tower}.5.relu.fc.2.bias", "{blocks}.1.dyconv.relu.fc.2.bias"),
        # In that of GLIP-T (A) it is the fourth DyConv.
        (False, "{tower}.3.DyConv.0.conv.weight", "{blocks}.3.dyconv.convs.0.conv.weight"),
        (False, "{tower}.3.offset.bias", "{blocks}.3.dyconv.offset.bias"),
    ],
)
def test_a_name_means_what_the_official_code_means_by_it(fused, official, ours):
    places = {"tower": "rpn.head.dyhead_tower", "blocks": "fusion_tower.blocks"}
    _, report = convert_glip_state_dict(official_tensors(f"state_dict_{'T' if fused else 'A'}.tsv.gz"))
    assert report.used[official.format(**places)] == ours.format(**places)


def test_whole_checkpoints_with_module_prefix_give_the_same_weights_or_their_average():
    official = official_tensors("state_dict_A.tsv.gz")
    average = official_tensors("state_dict_A.tsv.gz")
    content = {
        "model": {f"module.{name}": tensor for name, tensor in official.items()},
        "model_ema": {f"module.{name}": tensor for name, tensor in average.items()},
        "optimizer": {"state": {}},
        "iteration": 7,
    }
    converted, _ = convert_glip_state_dict(content)
    assert converted["head.bias0"] is official["rpn.head.bias0"]
    converted, _ = convert_glip_state_dict(content, ema=True)
    assert converted["head.bias0"] is average["rpn.head.bias0"]


@pytest.mark.parametrize(
    "extra",
    [
        "language_backbone.body.model.pooler.dense.weight",
        "language_backbone.body.model.embeddings.position_ids",
        "rpn.head.cls_logits.weight",
        "rpn.head.contrastive_align_projection_image.weight",
        "rpn.loss_evaluator.centerness_loss.weight",
        "rpn.anchor_generator.cell_anchors.0",
        "rpn.tunable_linear.weight",
        "rpn.resizer.fc.weight",
    ],
)
def test_parts_of_other_trainings_are_ignored_with_a_reason(extra):
    official = official_tensors("state_dict_A.tsv.gz") | {extra: torch.empty(3, 5, device="meta")}
    converted, report = convert_glip_state_dict(official)
    assert len(converted) == 534 and report.unknown == ()
    assert report.ignored[extra] and extra not in report.used


PRETRAINING_NAMES = {
    "rpn.head.mlm_head.transform.dense.weight": "mlm_head.dense.weight",
    "rpn.head.mlm_head.transform.dense.bias": "mlm_head.dense.bias",
    "rpn.head.mlm_head.transform.LayerNorm.weight": "mlm_head.norm.weight",
    "rpn.head.mlm_head.transform.LayerNorm.bias": "mlm_head.norm.bias",
    "rpn.head.mlm_head.decoder.weight": "mlm_head.decoder.weight",
    "rpn.head.mlm_head.decoder.bias": "mlm_head.decoder.bias",
    "rpn.head.mlm_head.bias": "mlm_head.decoder.bias",
    "rpn.loss_evaluator.shallow_contrastive_projection_image.weight": "contrastive_head.image_projection.weight",
    "rpn.loss_evaluator.shallow_contrastive_projection_image.bias": "contrastive_head.image_projection.bias",
    "rpn.loss_evaluator.shallow_contrastive_projection_text.weight": "contrastive_head.text_projection.weight",
    "rpn.loss_evaluator.shallow_contrastive_projection_text.bias": "contrastive_head.text_projection.bias",
    "rpn.loss_evaluator.shallow_log_scale": "contrastive_head.log_scale",
}


def pretraining_tensors():
    tensors = {name: torch.empty(1, device="meta") for name in PRETRAINING_NAMES}
    # One tensor with two names.
    tensors["rpn.head.mlm_head.bias"] = tensors["rpn.head.mlm_head.decoder.bias"]
    return tensors


def test_heads_of_the_pre_training_convert_both_ways():
    official = official_tensors("state_dict_A.tsv.gz") | pretraining_tensors()
    converted, report = convert_glip_state_dict(official)
    assert {name: report.used[name] for name in PRETRAINING_NAMES} == PRETRAINING_NAMES
    assert len(converted) == 534 + len(set(PRETRAINING_NAMES.values())) and report.unknown == ()
    back = to_official(converted)
    assert back.keys() == official.keys() - report.ignored.keys()
    assert all(back[name] is official[name] for name in back)


def test_bias_of_the_decoder_is_read_under_either_name():
    for name in ("rpn.head.mlm_head.decoder.bias", "rpn.head.mlm_head.bias"):
        official = official_tensors("state_dict_A.tsv.gz") | {name: torch.ones(3)}
        assert convert_glip_state_dict(official)[0]["mlm_head.decoder.bias"] is official[name]


def test_heads_of_the_pre_training_are_ignored_for_a_model_without_them():
    official = official_tensors("state_dict_A.tsv.gz")
    expected = our_names(official, TowerLayout(6, False))
    converted, report = convert_glip_state_dict(official | pretraining_tensors(), expected=expected)
    assert converted.keys() == expected and report.missing == () and report.unknown == ()
    assert report.ignored.keys() >= PRETRAINING_NAMES.keys()
    assert "rpn.head.* (7): head of MODEL.GLIPV2.MLM.ENABLED, which the model does not train with" in str(report)
    assert (
        "rpn.loss_evaluator.* (5): head of MODEL.GLIPV2.CONTRASTIVE.ENABLED, which the model does not train with"
        in str(report)
    )


def test_a_name_that_a_known_model_lacks_is_used_outside_the_heads_of_the_pre_training():
    official = official_tensors("state_dict_A.tsv.gz")
    expected = our_names(official, TowerLayout(6, False)) - {"head.bias0"}
    assert "head.bias0" in convert_glip_state_dict(official, expected=expected)[0]


def test_the_report_lists_missing_and_unknown_names():
    official = official_tensors("state_dict_T.tsv.gz")
    del official["rpn.head.dyhead_tower.7.intermediate.dense.bias"]
    official["rpn.head.novelty.weight"] = torch.empty(1, device="meta")
    expected = our_names(official_shapes("state_dict_T.tsv.gz"), TowerLayout(6, True))
    converted, report = convert_glip_state_dict(official, expected=expected)
    assert report.missing == ("fusion_tower.blocks.2.language_layer.intermediate.bias",)
    assert report.unknown == ("rpn.head.novelty.weight",)
    assert len(report.used) == len(converted) == 737
    text = str(report).splitlines()
    assert text[0] == "GLIP, 6 blocks with fusion: 737 tensors used"
    assert "ignored: rpn.head.* (2): classification branch that nothing reads" in text
    assert "ignored: rpn.anchor_generator.* (5): anchors come from the config" in text
    assert "unknown: rpn.head.novelty.weight" in text
    assert "missing: fusion_tower.blocks.2.language_layer.intermediate.bias" in text


def test_a_tower_of_no_released_form_is_refused():
    official = official_tensors("state_dict_T.tsv.gz")
    for name in [name for name in official if name.startswith("rpn.head.dyhead_tower.5.")]:
        del official[name]
    with pytest.raises(CheckpointError) as caught:
        convert_glip_state_dict(official, source="x.pth")
    assert str(caught.value) == (
        "x.pth: expected the DyConv layers of the fused tower at [2, 5, 8, 11, 14], found them at [2, 8, 11, 14, 17]"
    )


@pytest.mark.parametrize("names", [["patch_embed.proj.weight"], ["backbone.bottom_up.norm1.weight", "head.bias0"]])
def test_weights_of_other_models_are_refused(names):
    assert not is_glip_state_dict(names)
    with pytest.raises(CheckpointError) as caught:
        convert_glip_state_dict({name: torch.ones(1) for name in names}, source="x.pth")
    assert "\n" not in str(caught.value)
    assert "x.pth" in str(caught.value) and names[0] in str(caught.value)


def count(tensors: dict[str, Tensor]) -> int:
    return sum(math.prod(tensor.shape) for tensor in tensors.values())


def test_converted_weights_hold_as_many_numbers_as_the_official_detector_reads():
    converted, _ = convert_glip_state_dict(official_tensors("state_dict_T.tsv.gz"))
    trained = {name: tensor for name, tensor in converted.items() if not name.endswith("relative_position_index")}
    # 231,780,222 trainable numbers, of them 80 * 256 + 80 in cls_logits.
    assert count(trained) == 231_780_222 - 20_560
