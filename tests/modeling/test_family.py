"""The larger models of the paper, with their own structure but narrow: they train and detect."""

import pytest
import torch
from conftest import ASSETS, load_config
from detectron2.structures import Boxes, Instances

from glipv2_d2.modeling import build_model
from glipv2_d2.structures import TokenizedPrompt

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

CONFIGS = ASSETS.parents[1] / "configs"
# Heads stay as many as they are: four channels for each.
WIDTHS = {"pretrain/glipv2_swin_b.yaml": 16, "pretrain/glipv2_coswin_h.yaml": 44, "glip/glip_swin_l.yaml": 24}


def build_narrow(name):
    cfg = load_config(name)
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", "cpu", "MODEL.SWIN.EMBED_DIM", WIDTHS[name], "MODEL.SWIN.DEPTHS", [1, 1, 2, 1]),
            *("MODEL.FPN.OUT_CHANNELS", 32, "MODEL.GLIPV2.TOWER.CHANNELS", 32),
            *("MODEL.GLIPV2.FUSION.EMBED_DIM", 32, "MODEL.GLIPV2.FUSION.NUM_HEADS", 2),
            *("MODEL.TEXT_ENCODER.HIDDEN_SIZE", 32, "MODEL.TEXT_ENCODER.NUM_HEADS", 4),
            *("MODEL.TEXT_ENCODER.INTERMEDIATE_SIZE", 64, "MODEL.TEXT_ENCODER.NUM_LAYERS", 2),
            # The tokenizer of CLIP is no part of the package; the prompt is written below.
            *("MODEL.TEXT_ENCODER.TOKENIZER", ""),
            *("MODEL.GLIPV2.TEST.SCORE_THRESH", 0.0, "TEST.DETECTIONS_PER_IMAGE", 10),
        ]
    )
    torch.manual_seed(0)
    return build_model(cfg)


def make_input(masked):
    # Two names of one and two tokens; the second token of the second name is to be restored.
    token_map = torch.tensor([[0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0]]).bool()
    labels = torch.tensor([-100, -100, -100, -100, 9, -100]) if masked else None
    prompt = TokenizedPrompt(
        torch.tensor([1, 5, 6, 7, 3, 2]), token_map, torch.arange(2), ("cat", "kick scooter"), labels
    )
    generator = torch.Generator().manual_seed(1)
    instances = Instances((64, 96))
    instances.gt_boxes = Boxes(torch.tensor([[0.0, 0, 64, 64], [30, 10, 90, 60]]))
    instances.gt_classes = instances.gt_category_ids = torch.tensor([0, 1])
    image = torch.randint(0, 256, (3, 64, 96), generator=generator, dtype=torch.uint8)
    return {"image": image, "height": 128, "width": 192, "prompts": [prompt], "instances": instances}


@pytest.mark.parametrize(
    ("name", "losses"),
    [
        ("pretrain/glipv2_swin_b.yaml", {"loss_contrastive", "loss_mlm"}),
        ("pretrain/glipv2_coswin_h.yaml", {"loss_contrastive", "loss_mlm"}),
        ("glip/glip_swin_l.yaml", set()),
    ],
)
def test_narrow_model_trains_all_it_has_and_detects(name, losses):
    model = build_narrow(name)
    model.train()
    found = model([make_input(masked=bool(losses))])
    assert set(found) == {"loss_grounding", "loss_box_reg", "loss_centerness"} | losses
    assert all(loss.isfinite() and loss > 0 for loss in found.values())
    sum(found.values()).backward()
    idle = {name for name, one in model.named_parameters() if one.requires_grad and one.grad is None}
    assert idle == set()
    model.eval()
    with torch.no_grad():
        instances = model([make_input(masked=False)])[0]["instances"]
    assert instances.image_size == (128, 192) and len(instances) >= 10
    assert instances.scores.isfinite().all() and set(instances.pred_classes.tolist()) <= {0, 1}
