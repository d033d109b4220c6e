"""A drawn image with masks, and a model of the tiny config that reads it."""

import torch
from detectron2.structures import BitMasks, Boxes, Instances
from prompt_samples import make_prompt

from glipv2_d2.modeling import build_model

BOX_LOSSES = {"loss_grounding", "loss_box_reg", "loss_centerness"}


def make_input(prompt, boxes, has_mask=None, seed=0, size=(64, 96)):
    """An image whose masks are the left halves of its boxes."""
    image = torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.arange(len(boxes)) % len(prompt.phrases)
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for row, (left, top, right, bottom) in enumerate(boxes):
        masks[row, top:bottom, left : (left + right) // 2] = True
    instances.gt_masks = BitMasks(masks)
    instances.gt_has_mask = torch.tensor(has_mask if has_mask is not None else [True] * len(boxes), dtype=torch.bool)
    return {"image": image, "height": size[0], "width": size[1], "prompts": [prompt], "instances": instances}


def build(cfg, **keys):
    torch.manual_seed(0)
    for key, value in keys.items():
        cfg.merge_from_list([f"MODEL.GLIPV2.{key}", value])
    return build_model(cfg)


PROMPT = make_prompt([1], [3, 4])
BOXES = [[8, 8, 60, 50], [40, 10, 90, 60]]
