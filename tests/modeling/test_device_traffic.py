"""What a GPU would wait for and be sent at test time, for every task and kind of model; see ``pretended_device``."""

import json

import pytest
import torch
from pretended_device import DeviceTensor, pretended_device
from prompt_samples import make_prompt

from glipv2_d2.modeling import build_model

DYHEAD = ("MODEL.META_ARCHITECTURE", "DyHead", "MODEL.GLIPV2.CLASS_HEAD.NUM_CLASSES", 2)
MASKS = ("MODEL.MASK_ON", True, "MODEL.GLIPV2.MASK_HEAD.CONV_DIM", 16)
VQA = ("MODEL.GLIPV2.VQA.ENABLED", True)
# Name of a model, and its task and keys.
MODELS = {
    "detection": ("detection", ()),
    "the largest score of a phrase": ("detection", ("MODEL.GLIPV2.TEST.SCORE_AGGREGATION", "max")),
    "masks": ("detection", MASKS),
    "masks without a limit": ("detection", (*MASKS, "TEST.DETECTIONS_PER_IMAGE", 0)),
    "questions": ("vqa", VQA),
    "CLIP": ("detection", ("MODEL.TEXT_ENCODER.NAME", "CLIPTextEncoder")),
    "a tuned prompt": ("detection", ("MODEL.GLIPV2.TUNING.MODE", "prompt")),
    "no fusion": ("detection", ("MODEL.GLIPV2.FUSION.ENABLED", False)),
    "DyHead": ("detection", DYHEAD),
}
# The others take too long for every run.
OFTEN = ("masks", "questions", "DyHead")
NAMES = [pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow) for name in MODELS]


@pytest.fixture
def build(tiny_cfg, tmp_path):
    """Make a model and a function that makes model inputs for its task."""
    (tmp_path / "answers.json").write_text(json.dumps(["yes", "no"]))

    def make(name):
        task, keys = MODELS[name]
        options = ["MODEL.GLIPV2.TEST.SCORE_THRESH", 0.0, "MODEL.GLIPV2.GROUNDING.PRIOR_PROB", 0.3]
        tiny_cfg.merge_from_list([*options, "MODEL.GLIPV2.VQA.ANSWERS", str(tmp_path / "answers.json"), *keys])
        torch.manual_seed(0)
        return build_model(tiny_cfg).eval(), lambda count: [make_input(task, row) for row in range(count)]

    return make


def make_input(task, row):
    """Images of two sizes that are padded to one, with prompts of two lengths."""
    height, width = [(64, 96), (60, 90)][row % 2]
    image = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(row), dtype=torch.uint8)
    prompt = [make_prompt([1], [3, 4]), make_prompt([2], [1])][row % 2]
    return {"image": image, "height": 2 * height, "width": 2 * width, "task": task, "prompts": [prompt]}


def numbers(value):
    """All tensors of an output, on the CPU, by name."""
    if isinstance(value, dict):
        return {f"{key}.{name}": one for key, item in value.items() for name, one in numbers(item).items()}
    if hasattr(value, "get_fields"):
        return numbers(value.get_fields())
    value = getattr(value, "tensor", value)
    return {"": getattr(value, "numbers", value)}


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_the_cpu_waits_twice_for_a_batch_and_sends_a_few_pieces_whatever_the_number_of_images(build, name):
    model, inputs = build(name)
    expected = model(inputs(4))
    with pretended_device() as traffic:
        model.to("cuda")
        # Prompts are encoded, and anchors made, once.
        model(inputs(2))
        counts = []
        for count in (2, 4):
            traffic.clear()
            found = model(inputs(count))
            assert not traffic.mixed and not traffic.unpinned, traffic
            assert traffic.waits.total() <= 2, traffic
            assert traffic.copies.total() <= (8 if "masks" in name else 5), traffic
            counts.append(traffic.launches.total())
        assert all(isinstance(one["instances"].scores, DeviceTensor) for one in found)
    # Prompts of two lengths change the order of four images: up to ten levels are selected by their places. Only masks,
    # whose images have different sizes, are drawn image by image.
    assert counts[1] - counts[0] <= (50 if "masks" in name else 11)
    for one, other in zip(found, expected, strict=True):
        one, other = numbers(one), numbers(other)
        assert one.keys() == other.keys()
        for key, value in one.items():
            torch.testing.assert_close(value, other[key], rtol=1e-5, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_autocast_meets_no_tensors_of_two_devices_and_waits_no_more(build, name):
    model, inputs = build(name)
    with pretended_device() as traffic, torch.autocast("cuda", torch.bfloat16):
        model.to("cuda")
        model(inputs(2))
        traffic.clear()
        found = model(inputs(2))
        assert not traffic.mixed and not traffic.unpinned and traffic.waits.total() <= 2, traffic
        assert all(len(one["instances"]) and one["instances"].scores.isfinite().all() for one in found)
