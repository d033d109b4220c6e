"""Which parts leave half precision under autocast: the table of docs/precision.md, on the CPU and a pretended GPU."""

import re
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from pretended_device import pretended_device
from torch.utils._pytree import tree_leaves

from glipv2_d2.layers.dyconv import DyConv
from glipv2_d2.modeling import build_model
from glipv2_d2.structures import TokenizedPrompt

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

PAGE = Path(__file__).parents[2] / "docs" / "precision.md"
ROW = re.compile(r"\| `([\w.]+)` \| (\w+) \| (\w+) \| ")
# Functions that compute in single precision whatever they are given: their results, or what they are called with.
RESULTS = (
    *("glipv2_d2.layers.fusion._single", "glipv2_d2.modeling.losses.token_focal_loss._value"),
    "glipv2_d2.layers.deform_conv._at_least_float32",
)
ARGUMENTS = (
    *("glipv2_d2.modeling.heads.anchor_head.giou_loss_legacy", "glipv2_d2.modeling.heads.anchor_head.box_deltas"),
    "glipv2_d2.modeling.losses.contrastive_loss.masked_logsumexp",
)


@pytest.fixture
def model(tiny_cfg):
    """A small model with the heads of the page."""
    for part in ("MODEL.GLIPV2.CONTRASTIVE.ENABLED", "MODEL.GLIPV2.MLM.ENABLED", "MODEL.MASK_ON"):
        tiny_cfg.merge_from_list([part, True])
    tiny_cfg.MODEL.GLIPV2.MASK_HEAD.CONV_DIM = 16
    tiny_cfg.MODEL.GLIPV2.TEST.SCORE_THRESH = 0.0
    torch.manual_seed(0)
    return build_model(tiny_cfg).train()


def make_input():
    token_map = torch.tensor([[0, 1, 0, 0, 0], [0, 0, 0, 1, 0]], dtype=torch.bool)
    labels = torch.tensor([-100, 1001, -100, -100, -100])
    prompt = TokenizedPrompt(torch.arange(1000, 1005), token_map, torch.tensor([7, 8]), ("a", "b"), labels)
    boxes, classes = Boxes(torch.tensor([[8.0, 8, 60, 50], [0, 0, 30, 40]])), torch.arange(2)
    instances = Instances((64, 64), gt_boxes=boxes, gt_classes=classes, gt_category_ids=prompt.category_ids)
    instances.gt_masks, instances.gt_has_mask = BitMasks(torch.ones(2, 64, 64)), torch.ones(2, dtype=torch.bool)
    image = torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return {"image": image, "height": 64, "width": 64, "prompts": [prompt], "instances": instances}


def types(value):
    return {one.dtype for one in tree_leaves(value) if isinstance(one, torch.Tensor) and one.is_floating_point()}


def spy(found, name, of_arguments):
    """Note the types of a function's floating point results, or arguments."""
    module, _, attribute = name.rpartition(".")
    function = getattr(__import__(module, fromlist=[attribute]), attribute)

    def run(*args, **kwargs):
        result = function(*args, **kwargs)
        found.setdefault(name, set()).update(types(args if of_arguments else result))
        return result

    return mock.patch(name, run)


def step(model, device, dtype):
    """Run a training step under autocast; return the types of the outputs of the page's modules, and of functions."""
    modules, functions = {}, {}
    handles = []
    for name, *_ in ROW.findall(PAGE.read_text(encoding="utf-8")):
        hook = lambda module, inputs, output, name=name: modules.setdefault(name, set()).update(types(output))  # noqa: E731
        handles.append(model.get_submodule(name).register_forward_hook(hook))
    with ExitStack() as stack:
        for name in RESULTS:
            stack.enter_context(spy(functions, name, False))
        for name in ARGUMENTS:
            stack.enter_context(spy(functions, name, True))
        with torch.autocast(device, dtype):
            losses = model([make_input()])
        sum(losses.values()).backward()
    for handle in handles:
        handle.remove()
    functions["losses"], functions["gradients"] = types(losses), types([one.grad for one in model.parameters()])
    return modules, functions


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cuda", torch.bfloat16),
        ("cpu", torch.bfloat16),
        pytest.param("cuda", torch.float16, marks=pytest.mark.slow),
    ],
)
def test_types_are_those_of_the_page(model, device, dtype):
    with pretended_device():
        model.to(device)
        modules, functions = step(model, device, dtype)
    rows = ROW.findall(PAGE.read_text(encoding="utf-8"))
    assert len(rows) > 10
    named = {"float32": torch.float32, "bfloat16": dtype}
    assert modules == {name: {named[gpu if device == "cuda" else cpu]} for name, gpu, cpu in rows}
    assert set(functions) == {*RESULTS, *ARGUMENTS, "losses", "gradients"}
    assert all(found == {torch.float32} for found in functions.values()), functions


def test_offsets_and_scores_of_phrases_stay_in_single_precision(model):
    model.eval()
    found = {}
    scores = "glipv2_d2.modeling.heads.detection_selector.token_to_phrase_scores"
    offsets = DyConv._offsets

    def note_offsets(self, level):
        result = offsets(self, level)
        found.setdefault("offsets", set()).update(types(result))
        return result

    with mock.patch.object(DyConv, "_offsets", note_offsets), spy(found, scores, False), torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            (result,) = model([make_input()])
    assert found == {"offsets": {torch.float32}, scores: {torch.float32}}
    assert types([result["instances"].pred_boxes.tensor, result["instances"].scores]) == {torch.float32}
