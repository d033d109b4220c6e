"""What a GPU would wait for and be sent at test time, for every task and kind of model; see ``pretended_device``."""

import dataclasses
import json
from typing import NamedTuple

import pytest
import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from pretended_device import DeviceTensor, pretended_device
from prompt_samples import make_prompt

from glipv2_d2.modeling import build_model

VQA, CAPTIONING = "MODEL.GLIPV2.VQA.ENABLED", "MODEL.GLIPV2.CAPTIONING."
MASKS = ("MODEL.MASK_ON", True, "MODEL.GLIPV2.MASK_HEAD.CONV_DIM", 16)


class Case(NamedTuple):
    """A model, and what a batch may cost on a device.

    Attributes:
        keys: Config of the model.
        task: What it is asked for.
        waits: Moments at which the CPU waits: for the candidates of all images, which it suppresses itself.
        copies: Pieces that are sent: images, prompts, order of the images, rules of the choice, results.
        launches: Kernels that two more images may take: where prompts have two lengths, levels are selected.
    """

    keys: tuple
    task: str = "detection"
    waits: int = 1
    copies: int = 5
    launches: int = 6


MODELS = {
    "detection": Case(()),
    "the largest score of a phrase": Case(("MODEL.GLIPV2.TEST.SCORE_AGGREGATION", "max")),
    # Boxes and words of masks, and their order. Masks are drawn image by image, since images have different sizes.
    "masks": Case(MASKS, copies=8, launches=50),
    "masks without a limit": Case((*MASKS, "TEST.DETECTIONS_PER_IMAGE", 0), copies=8, launches=50),
    "questions": Case((VQA, True), "vqa"),
    # One more wait for the text, and one for every eight steps.
    "captions": Case(
        (
            f"{CAPTIONING}ENABLED",
            True,
            f"{CAPTIONING}GROUNDED",
            True,
            f"{CAPTIONING}MAX_LENGTH",
            7,
            f"{CAPTIONING}BEAM_SIZE",
            2,
        ),
        "captioning",
        3,
    ),
    "CLIP": Case(("MODEL.TEXT_ENCODER.NAME", "CLIPTextEncoder")),
    # The CPU waits for the chosen names too; prompts that are new are sent and read.
    "a shortlist": Case(
        ("MODEL.GLIPV2.CONTRASTIVE.ENABLED", True, "MODEL.GLIPV2.TEST.SHORTLIST", 1), waits=2, copies=8, launches=130
    ),
    "a tuned prompt": Case(("MODEL.GLIPV2.TUNING.MODE", "prompt")),
    "no fusion": Case(("MODEL.GLIPV2.FUSION.ENABLED", False), launches=11),
    "DyHead": Case(("MODEL.META_ARCHITECTURE", "DyHead", "MODEL.GLIPV2.CLASS_HEAD.NUM_CLASSES", 2)),
}
# The others take too long for every run.
OFTEN = ("masks", "captions", "DyHead")
NAMES = [pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow) for name in MODELS]
AUTOCAST_NAMES = [pytest.param(name, marks=() if name == "masks" else pytest.mark.slow) for name in MODELS]


@pytest.fixture
def build(tiny_cfg, tmp_path):
    """Make a model and a function that makes model inputs for its task."""
    (tmp_path / "answers.json").write_text(json.dumps(["yes", "no"]))

    def make(name):
        task, keys = MODELS[name].task, MODELS[name].keys
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
def test_the_cpu_waits_once_for_a_batch_and_sends_a_few_pieces_whatever_the_number_of_images(build, name):
    (model, inputs), case = build(name), MODELS[name]
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
            assert traffic.waits.total() <= case.waits, traffic
            assert traffic.copies.total() <= case.copies, traffic
            counts.append(traffic.launches)
        assert counts[1] - counts[0] <= case.launches
        assert all(isinstance(one["instances"].scores, DeviceTensor) for one in found if "instances" in one)
    for one, other in zip(found, expected, strict=True):
        one, other = numbers(one), numbers(other)
        assert one.keys() == other.keys()
        for key, value in one.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(value, other[key], rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_where_nothing_is_found_the_empty_masks_are_on_the_device_too(build):
    model, inputs = build("masks")
    # No probability is above 1.
    model.head.selector = dataclasses.replace(model.head.selector, score_thresh=1.0)
    with pretended_device():
        model.to("cuda")
        for output in model(inputs(2)):
            found = output["instances"]
            assert len(found) == 0 and isinstance(found.scores, DeviceTensor)
            assert isinstance(found.pred_masks, DeviceTensor) and found.pred_masks.shape == (0, *found.image_size)


@pytest.mark.slow
@torch.no_grad()
def test_a_vocabulary_of_a_shortlist_is_read_in_one_pass_whatever_its_size(build):
    model, inputs = build("a shortlist")
    vocabularies = []
    for count in (3, 31):
        prompts = [make_prompt([1], [3, 4]) for _ in range(count)]
        for number, prompt in enumerate(prompts):
            prompt.input_ids.add_(100 * count + number)
        vocabularies.append(prompts)
    expected = [model([one | {"prompts": prompts} for one in inputs(2)]) for prompts in vocabularies]
    with pretended_device() as traffic:
        model.to("cuda")
        model(inputs(2))
        for prompts, outputs in zip(vocabularies, expected, strict=True):
            traffic.clear()
            found = model([one | {"prompts": prompts} for one in inputs(2)])
            # The words of the vocabulary and of the chosen names, four pieces; otherwise as for one that is known.
            assert traffic.waits.total() <= 2 and traffic.copies.total() <= 5 + 4, traffic
            assert not traffic.mixed and not traffic.unpinned, traffic
            for one, other in zip(found, outputs, strict=True):
                one, other = one["instances"], other["instances"]
                assert torch.equal(one.pred_classes.numbers, other.pred_classes)
                torch.testing.assert_close(one.scores.numbers, other.scores, rtol=1e-5, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", AUTOCAST_NAMES)
def test_autocast_meets_no_tensors_of_two_devices_and_waits_no_more(build, name):
    model, inputs = build(name)
    with pretended_device() as traffic, torch.autocast("cuda", torch.bfloat16):
        model.to("cuda")
        model(inputs(2))
        traffic.clear()
        found = model(inputs(2))
        assert not traffic.mixed and not traffic.unpinned and traffic.waits.total() <= MODELS[name].waits, traffic
    for output in found:
        tensors = [one for one in numbers(output).values() if isinstance(one, torch.Tensor)]
        assert len(tensors) > 1 and all(len(one) and one.isfinite().all() for one in tensors)


@pytest.mark.parametrize("sizes", [[(64, 96)], [(60, 90)], [(64, 96), (60, 90), (33, 96)]])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_images_are_normalized_and_padded_as_by_detectron2_bit_for_bit(build, sizes, dtype):
    model, _ = build("detection")
    inputs = [{"image": make_input("detection", row)["image"][:, :h, :w].to(dtype)} for row, (h, w) in enumerate(sizes)]
    expected = DenseDetector.preprocess_image(model, inputs)
    found = model.preprocess_image(inputs)
    assert torch.equal(found.tensor, expected.tensor) and found.image_sizes == expected.image_sizes
    with pretended_device():
        assert torch.equal(model.to("cuda").preprocess_image(inputs).tensor.numbers, expected.tensor)
