import logging

import pytest
import torch

from glipv2_d2.checkpoint.checkpointer import GLIPv2Checkpointer
from glipv2_d2.checkpoint.fit_check import check_update_scales, without_other_classes
from glipv2_d2.modeling import build_model
from glipv2_d2.tensor_files import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def build(cfg, num_classes):
    cfg = cfg.clone()
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "DyHead", "MODEL.GLIPV2.CLASS_HEAD.NUM_CLASSES", num_classes])
    return build_model(cfg)


@pytest.fixture
def five_classes(tiny_cfg, tmp_path):
    """A saved model of five classes, and its file."""
    model = build(tiny_cfg, 5)
    GLIPv2Checkpointer(model, str(tmp_path)).save("five")
    return model, str(tmp_path / "five.pth")


def test_model_of_other_classes_takes_all_weights_but_those_of_the_classes(tiny_cfg, five_classes, caplog):
    source, file = five_classes
    model = build(tiny_cfg, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        GLIPv2Checkpointer(model).load(file)
    for name, tensor in model.state_dict().items():
        expected = before[name] if name.startswith("head.cls_logits.") else source.state_dict()[name]
        assert torch.equal(tensor, expected), name
    assert "head.cls_logits" in caplog.text


def test_model_of_as_many_classes_takes_their_weights_too(tiny_cfg, five_classes):
    source, file = five_classes
    model = build(tiny_cfg, 5)
    GLIPv2Checkpointer(model).load(file)
    assert torch.equal(model.head.cls_logits.weight, source.head.cls_logits.weight)


def test_evaluation_never_starts_classes_at_random(tiny_cfg, five_classes):
    _, file = five_classes
    with pytest.raises(CheckpointError, match=r"head\.cls_logits\.\w+: expected shape \(3.*found \(5"):
        GLIPv2Checkpointer(build(tiny_cfg, 3), for_results=True).load(file)


def test_class_layer_of_another_width_is_refused(tiny_cfg, five_classes):
    _, file = five_classes
    tiny_cfg.MODEL.GLIPV2.TOWER.CHANNELS = 48
    with pytest.raises(CheckpointError, match="expected shape"):
        GLIPv2Checkpointer(build(tiny_cfg, 3)).load(file)


@pytest.mark.parametrize(("shape", "is_left_out"), [((5, 8, 1, 1), True), ((3, 8, 1, 1), False), ((5, 9, 1, 1), False)])
def test_a_class_layer_is_left_out_where_only_its_number_of_classes_differs(shape, is_left_out):
    model = {"head.cls_logits.weight": torch.zeros(3, 8, 1, 1)}
    tensors = {"head.cls_logits.weight": torch.zeros(shape), "head.scale": torch.zeros(1)}
    kept = without_other_classes(tensors, model)
    assert kept.keys() == tensors.keys() - ({"head.cls_logits.weight"} if is_left_out else set())


def test_low_rank_updates_have_the_scale_of_the_config():
    name = "fusion_tower.blocks.0.lora.scale"
    check_update_scales({name: torch.tensor(2.0)}, {name: torch.tensor(2.0)}, "x.pth")
    with pytest.raises(
        CheckpointError, match=r"x\.pth: .*scale: expected MODEL.GLIPV2.TUNING.LORA.ALPHA / RANK 4, found 2"
    ):
        check_update_scales({name: torch.tensor(2.0)}, {name: torch.tensor(4.0)}, "x.pth")


def test_weights_of_the_detector_without_fusion_start_the_one_without_text(tiny_cfg, tmp_path):
    tiny_cfg.MODEL.GLIPV2.FUSION.ENABLED = False
    glip = build_model(tiny_cfg)
    GLIPv2Checkpointer(glip, str(tmp_path)).save("glip")
    model = build(tiny_cfg, 3)
    GLIPv2Checkpointer(model).load(str(tmp_path / "glip.pth"))
    for name in ("backbone.fpn_output3.weight", "fusion_tower.blocks.0.dyconv.offset.weight", "head.bbox_pred.weight"):
        assert torch.equal(model.state_dict()[name], glip.state_dict()[name])
